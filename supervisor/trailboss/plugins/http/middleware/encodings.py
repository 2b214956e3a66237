"""Content codings: which there are, which one a client gets, and how bytes are put into it.

gzip is always there (zlib); zstd and br where a library for them can be imported: the standard library's
`compression.zstd` or `zstandard`, and `brotli` or `brotlicffi`. Speed and size were weighed for a server that compresses
between two events of the network: quick levels, and windows of 128 to 256 KiB so that a long stream stays cheap in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Final, Protocol

__all__ = ["COMPRESSORS", "PREFERENCE", "Compressor", "choose_encoding", "is_compressible"]

_ZLIB_LEVEL: Final = 5
_ZSTD_LEVEL: Final = 3
_ZSTD_WINDOW_BITS: Final = 17
_BROTLI_QUALITY: Final = 4
_BROTLI_WINDOW_BITS: Final = 18

#: Best first; a client that weighs them differently gets what it prefers.
PREFERENCE: Final = ("zstd", "br", "gzip")

_COMPRESSIBLE: Final = frozenset(
    {
        b"application/atom+xml",
        b"application/graphql",
        b"application/javascript",
        b"application/json",
        b"application/ld+json",
        b"application/manifest+json",
        b"application/msgpack",
        b"application/rss+xml",
        b"application/vnd.ms-fontobject",
        b"application/wasm",
        b"application/x-javascript",
        b"application/x-ndjson",
        b"application/xhtml+xml",
        b"application/xml",
        b"font/otf",
        b"font/ttf",
        b"image/bmp",
        b"image/svg+xml",
        b"image/vnd.microsoft.icon",
        b"image/x-icon",
    }
)
#: Compressed streams of events are held back by some proxies, and keep a compressor's memory for hours.
_NEVER: Final = frozenset({b"text/event-stream"})


class Compressor(Protocol):
    """One body on its way into a coding."""

    def compress(self, data: bytes) -> bytes:
        """Take data, return what is ready of the result."""

    def flush(self) -> bytes:
        """Return what makes everything taken so far readable for the client."""

    def finish(self) -> bytes:
        """Return the rest."""


class _Zlib:
    __slots__ = ("_object",)

    def __init__(self) -> None:
        self._object = zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, 31)

    def compress(self, data: bytes) -> bytes:
        return self._object.compress(data)

    def flush(self) -> bytes:
        return self._object.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._object.flush()


class _FromCalls:
    """A library's object behind three functions of it."""

    __slots__ = ("compress", "finish", "flush")

    def __init__(
        self, compress: Callable[[bytes], bytes], flush: Callable[[], bytes], finish: Callable[[], bytes]
    ) -> None:
        self.compress = compress
        self.flush = flush
        self.finish = finish


def _find_zstd() -> Callable[[], Compressor] | None:
    try:
        module = import_module("compression.zstd")
    except ImportError:
        return _find_zstandard()
    options = {
        module.CompressionParameter.compression_level: _ZSTD_LEVEL,
        module.CompressionParameter.window_log: _ZSTD_WINDOW_BITS,
    }

    def make() -> Compressor:
        compressor = module.ZstdCompressor(options=options)
        return _FromCalls(
            compressor.compress, lambda: bytes(compressor.flush(compressor.FLUSH_BLOCK)), compressor.flush
        )

    return make


def _find_zstandard() -> Callable[[], Compressor] | None:
    try:
        module = import_module("zstandard")
    except ImportError:
        return None
    parameters = module.ZstdCompressionParameters.from_level(_ZSTD_LEVEL, window_log=_ZSTD_WINDOW_BITS)

    def make() -> Compressor:
        compressor = module.ZstdCompressor(compression_params=parameters).compressobj()
        block = module.COMPRESSOBJ_FLUSH_BLOCK
        return _FromCalls(compressor.compress, lambda: bytes(compressor.flush(block)), compressor.flush)

    return make


def _find_brotli() -> Callable[[], Compressor] | None:
    for name in ("brotli", "brotlicffi"):
        try:
            module = import_module(name)
        except ImportError:
            continue

        def make(module: object = module) -> Compressor:
            compressor = module.Compressor(  # type: ignore[attr-defined]
                quality=_BROTLI_QUALITY, lgwin=_BROTLI_WINDOW_BITS
            )
            return _FromCalls(compressor.process, compressor.flush, compressor.finish)

        return make
    return None


def _find_all() -> dict[str, Callable[[], Compressor]]:
    found = {"zstd": _find_zstd(), "br": _find_brotli(), "gzip": _Zlib}
    return {name: found[name] for name in PREFERENCE if found[name] is not None}  # type: ignore[misc]


#: What makes a compressor, by the name of its coding, best first.
COMPRESSORS: Final[Mapping[str, Callable[[], Compressor]]] = _find_all()


@lru_cache(maxsize=512)
def choose_encoding(accepted: bytes | None, offered: Sequence[str]) -> str:
    """Return which of `offered` (best first) suits the Accept-Encoding header, "" for none of them."""
    if not accepted:
        return ""
    weights: dict[str, float] = {}
    for part in accepted.split(b",")[:64]:
        name, _, parameters = part.partition(b";")
        coding = name.strip().lower().decode("latin-1")
        weights["gzip" if coding == "x-gzip" else coding] = _weight(parameters)
    others = weights.get("*", 0.0)
    best, best_weight = "", 0.0
    for coding in offered:
        weight = weights.get(coding, others)
        if weight > best_weight:
            best, best_weight = coding, weight
    # A client that would rather have the plain body says so; without a word of it, any coding is better.
    return best if best_weight >= weights.get("identity", 0.0) else ""


def _weight(parameters: bytes) -> float:
    name, _, value = parameters.strip().partition(b"=")
    if name.strip().lower() != b"q":
        return 1.0
    try:
        weight = float(value.strip().decode("ascii"))
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0


@lru_cache(maxsize=512)
def is_compressible(content_type: bytes) -> bool:
    """Say whether a body of this Content-Type is worth compressing."""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind in _NEVER:
        return False
    return kind.startswith(b"text/") or kind in _COMPRESSIBLE or kind.endswith((b"+json", b"+xml"))
