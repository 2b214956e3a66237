"""Compares the C frame codec with the plain Python one on files: the corpus, or whatever a fuzzer found.

Every file is read by both batch readers and by both stream decoders, whole and byte by byte, under a few
settings. Prints how many comparisons were made; the first difference ends the program with exit code 1.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

from trailboss_worker.protocol import frames_native, frames_reference
from trailboss_worker.protocol.errors import FrameError

SETTINGS = [(cap, strict) for cap in (64 * 1024 * 1024, 16, 2**33) for strict in (True, False)]


def batch(codec: ModuleType, data: bytes, cap: int, strict: bool) -> object:
    """Everything a batch says."""
    found = codec.decode_batch(data, cap, strict)
    return list(found), found.missing, found.consumed, found.error


def stream(codec: ModuleType, data: bytes, cap: int, strict: bool, size: int) -> object:
    """Everything a decoder says when it is fed pieces of some size."""
    decoder = codec.FrameDecoder(cap, strict)
    said: list[object] = []
    for at in range(0, len(data), size):
        decoder.feed(data[at : at + size])
        try:
            said += decoder.next_frames()
            said.append(decoder.missing)
        except FrameError as error:
            said.append((error.code, error.place, error.excerpt))
            break
    return said, decoder.buffered


def main(folders: list[str]) -> int:
    """Compares all files of some folders; returns the exit code."""
    count = 0
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                data = file.read()
            for cap, strict in SETTINGS:
                pairs = [(batch(codec, data, cap, strict)) for codec in (frames_native, frames_reference)]
                for size in (1, 13, len(data) + 1):
                    if len(data) <= 512 or size > 1:
                        pairs += [
                            stream(codec, data, cap, strict, size)
                            for codec in (frames_native, frames_reference)
                        ]
                for ours, reference in zip(pairs[::2], pairs[1::2], strict=True):
                    count += 1
                    if ours != reference:
                        print(
                            f"{path} (cap {cap}, strict {strict}):\n  C:      {ours}\n  Python: {reference}"
                        )
                        return 1
    print(f"C and Python agree in {count} comparisons")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
