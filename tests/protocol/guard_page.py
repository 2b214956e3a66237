"""Program: the C frame reader on memory that ends at a page nobody may touch.

Two pages are mapped and the second is closed to every access; each prefix of each vector is copied so that it ends
at the border, and probed there. A read one byte too far ends this process by SIGSEGV. Prints the number of probes.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os

from trailboss_worker._frame import ffi, lib

PAGE = mmap.PAGESIZE


def main() -> None:
    """Probes everything, prints how often."""
    with open(os.path.join(os.path.dirname(__file__), "vectors.json"), encoding="utf-8") as file:
        vectors = [bytes.fromhex(vector["hex"]) for vector in json.load(file)["vectors"]]
    area = mmap.mmap(-1, 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if protect(start + PAGE, PAGE, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    border = ffi.cast("uint8_t *", start + PAGE)
    records = ffi.new("struct trailboss_frame[]", 8)
    end = ffi.new("struct trailboss_frame_end *")
    count = 0
    for data in vectors:
        for size in range(min(len(data), PAGE) + 1):
            ctypes.memmove(start + PAGE - size, data, size)
            lib.trailboss_frame_probe(border - size, size, 0, 2**64 - 1, 0, records, end)
            lib.trailboss_frame_walk(border - size, size, 0, 2**64 - 1, 1, records, 8, end)
            count += 2
    print(count)


if __name__ == "__main__":
    main()
