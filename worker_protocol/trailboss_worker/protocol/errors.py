"""What can go wrong on the wire, split by who did it.

`LocalProtocolError`: our own code asked for something the protocol forbids; nothing was sent.
`RemoteProtocolError`: the peer sent something it must not send; its relay or connection is done for.
`FrameError` is the one raised by the frame reader. It carries the bytes at which the stream stopped making
sense, and `likely_cause` turns them into the sentence a person needs at three in the morning: nearly always
a worker printed something on its standard output.
"""

from __future__ import annotations

EXCERPT_BYTES_MAX = 256


class ProtocolError(Exception):
    """Something on the wire, or about to go there, is against the protocol."""


class LocalProtocolError(ProtocolError):
    """We asked for something the protocol forbids; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol."""


class HandshakeError(RemoteProtocolError):
    """A worker's first frame is no valid answer to the pid request."""


class MessageError(RemoteProtocolError):
    """A context, body or argument is not what its codec or its limits allow."""


class RpcFrameError(RemoteProtocolError):
    """An RPC frame that cannot be answered; `close` says whether the connection has to end."""

    def __init__(self, text: str, *, close: bool) -> None:
        super().__init__(text)
        self.close = close


class FrameError(RemoteProtocolError):
    """The byte stream is no sequence of frames, and never will be again.

    `code` is "bad_crc", "version", "header_len", "too_large", "file_not_found" or "truncated"; `place` is
    "header", "options" or "payload" for a truncated frame, "header" for a wrong header, else "";
    `excerpt` holds up to 256 bytes from where the frame should have started.
    """

    def __init__(self, code: str, place: str = "", excerpt: bytes = b"") -> None:
        super().__init__(code, place, excerpt)
        self.code = code
        self.place = place
        self.excerpt = excerpt[:EXCERPT_BYTES_MAX]

    def __str__(self) -> str:
        what = _WHAT_HAPPENED[self.code]
        if self.code == "truncated":
            return f"{what} inside the {self.place} of a frame"
        return f"{what}: {self.likely_cause()}; the bytes there: {escaped(self.excerpt)}"

    def likely_cause(self) -> str:
        """Says in words what the bytes look like: "a PHP warning or notice printed on stdout", …"""
        if self.code == "truncated":
            return "the peer ended, or was killed, while it was sending"
        return likely_cause(self.excerpt, self.code)


_WHAT_HAPPENED = {
    "bad_crc": "bytes that are no frame (wrong header checksum)",
    "version": "a frame of an unknown protocol version",
    "header_len": "a frame with an impossible header length",
    "too_large": "a frame whose payload is above the limit",
    "file_not_found": "the interpreter could not open its script",
    "truncated": "the stream ended",
}

# Looked for in this order: the most telling first. The needles are matched in lower case.
_TEXT_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("could not open input file", "could not op"), "PHP cannot open the script named in the command"),
    (("can't open file",), "Python cannot open the script named in the command"),
    (("parse error:", "syntax error, unexpected"), "a PHP syntax error printed on stdout"),
    (("fatal error:", "uncaught exception", "uncaught error"), "a PHP fatal error printed on stdout"),
    (
        ("warning:", "notice:", "deprecated:"),
        "a PHP warning or notice printed on stdout (display_errors is on)",
    ),
    (("stack trace:", "phpunit", "xdebug:"), "a PHP stack trace printed on stdout"),
    (("traceback (most recent call last)",), "a Python traceback printed on stdout"),
    (("panic:", "goroutine "), "a Go panic printed on stdout"),
    (
        ("segmentation fault", "*** stack smashing", "free(): ", "malloc(): "),
        "a crash message printed on stdout",
    ),
    (
        ("command not found", "no such file or directory", "permission denied"),
        "a shell error printed on stdout",
    ),
    (("<!doctype", "<html", "<br", "<b>", "<pre", "<div", "<?xml"), "HTML printed on stdout"),
    (("<?php", "<?="), "PHP source printed on stdout (a file without its opening tag at the very start?)"),
    (("http/1.", "get / ", "post / ", "ssh-"), "a peer that speaks another protocol"),
)
_DUMP_STARTS = ("array(", "object(", "string(", "int(", "float(", "bool(", "null\n", "array\n", "stdclass ")


def likely_cause(excerpt: bytes, code: str = "bad_crc") -> str:
    """Explains the bytes found where a frame should start, in a phrase fit for a log line."""
    if code == "file_not_found":
        return "PHP cannot open the script named in the command"
    if excerpt.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "a byte order mark printed on stdout (a source file saved with BOM)"
    if excerpt.startswith(b"#!"):
        return "a shebang line printed on stdout (the script was included instead of executed)"
    text = excerpt.decode("utf-8", "replace")
    lowered = text.lower().lstrip()
    for needles, cause in _TEXT_CAUSES:
        if any(needle in lowered for needle in needles):
            return cause
    if lowered.startswith(_DUMP_STARTS):
        return "var_dump() or print_r() output on stdout"
    if excerpt and not excerpt.strip():
        return "blank lines printed on stdout (white space before <?php or after ?>)"
    if excerpt[:1].isspace() and _frame_after_space(excerpt):
        return "blank lines printed on stdout in front of a frame (white space before <?php or after ?>)"
    if code == "too_large":
        return "a payload above the limit, or a damaged length"
    if _mostly_printable(text):
        return "text printed on stdout (echo, print or a write to STDOUT)"
    if code in ("version", "header_len"):
        return "a peer with another protocol, or more options than a frame can hold"
    return "binary data on stdout, or bytes lost between two frames"


def escaped(excerpt: bytes) -> str:
    """The bytes as one printable ASCII line, for logs: `"PHP Warning:\\x0a"`."""
    return (
        '"' + "".join(chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\x{b:02x}" for b in excerpt) + '"'
    )


def _frame_after_space(excerpt: bytes) -> bool:
    rest = excerpt.lstrip()
    return bool(rest) and rest[0] >> 4 == 1 and 3 <= (rest[0] & 15) <= 13


def _mostly_printable(text: str) -> bool:
    if not text:
        return False
    # U+FFFD stands for bytes that are no UTF-8.
    printable = sum(1 for c in text if (c.isprintable() and c != "\ufffd") or c in "\r\n\t")
    return printable * 10 >= len(text) * 9
