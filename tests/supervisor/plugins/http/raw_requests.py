"""Raw requests and what has to come of them, written from RFC 9112 and RFC 9110 before any code was asked.

A case is bytes as a client sends them, the statuses of all answers in order, the bodies the handler saw, and whether the
connection is still open afterwards. A refusal (4xx or 5xx of the front) always ends the connection, and nothing behind
it is ever answered. `rule` says where the verdict comes from: a section of RFC 9112 ("9112 3.2") or 9110, or "ours"
where the RFC leaves the choice to the server and Trailboss is strict.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CASES", "RawRequest"]

HOST = b"Host: a.example\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST
POST = b"POST / HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
#: A request behind the one that is tried; if it is answered where it must not be, something was smuggled.
NEXT = b"GET /next HTTP/1.1\r\n" + HOST + b"\r\n"


@dataclass(frozen=True, slots=True)
class RawRequest:
    """One case."""

    name: str
    data: bytes
    statuses: tuple[int, ...]
    rule: str
    bodies: tuple[bytes, ...] = ()
    is_open: bool = True


CASES: list[RawRequest] = []


def accept(name: str, data: bytes, rule: str, *bodies: bytes, count: int = 1, is_open: bool = True) -> None:
    """Add a case in which `count` requests are answered with 200."""
    CASES.append(RawRequest(name, data, (200,) * count, rule, bodies, is_open))


def refuse(name: str, data: bytes, status: int, rule: str, *, before: int = 0, behind: bytes = NEXT) -> None:
    """Add a case that ends in `status`; a request is put behind it, which must never be answered."""
    CASES.append(RawRequest(name, data + behind, (200,) * before + (status,), rule, is_open=False))


def wait(name: str, data: bytes, rule: str, *, before: int = 0) -> None:
    """Add a case in which more bytes are waited for."""
    CASES.append(RawRequest(name, data, (200,) * before, rule))


# --- the request line -------------------------------------------------------------------------------------------------

for method in (
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"PROPFIND",
    b"REPORT",
    b"QUERY",
):
    accept(f"method {method.decode()}", method + b" / HTTP/1.1\r\n" + HOST + b"\r\n", "9110 9.1")
for method in (b"FOO", b"get", b"Get", b"GETX", b"G"):
    refuse(
        f"method {method.decode()} is not known",
        method + b" / HTTP/1.1\r\n" + HOST + b"\r\n",
        501,
        "9110 9.1",
    )
for name, method in {
    "empty": b"",
    "with a space before": b" GET",
    "with a tab before": b"\tGET",
    "with parentheses": b"G(T",
    "with a slash": b"G/T",
    "with a quote": b'G"T',
    "with NUL": b"G\x00T",
    "with a byte above ASCII": b"G\xc4T",
    "with a colon": b"GET:",
    "with a control character": b"GE\x07T",
    "with a carriage return": b"\rGET",
    "with a line feed before": b"\nGET",
}.items():
    refuse(f"method {name}", method + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "9110 5.6.2")

for target in (
    b"/",
    b"/a/b.c",
    b"/?",
    b"/?a=b&c=d",
    b"/a?b?c",
    b"//double",
    b"/..//../x",
    b"/%41%00%ff",
    b"/%zz",
    b"/a;b=c,d",
    b"/~user/!$&'()*+,;=:@",
    b"/a|b{c}^`\\",
    b'/?q="<>"',
    b"/" + b"a" * 4000,
):
    accept(
        f"target {target[:30].decode()}", b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n", "9112 3.2.1"
    )
for name, target in {
    "no slash": b"index.html",
    "query only": b"?a=b",
    "fragment": b"/a#b",
    "fragment only": b"#",
    "a byte above ASCII": b"/\xc3\xa4",
    "NUL": b"/a\x00b",
    "DEL": b"/a\x7fb",
    "a tab": b"/a\tb",
    "a space": b"/a b",
    "two spaces before": b" /",
    "two spaces behind": b"/ ",
    "a tab before": b"\t/",
    "a form feed": b"/a\x0cb",
    "a carriage return": b"/a\rb",
    "a line feed": b"/a\nb",
    "star with GET": b"*",
    "star and more": b"*a",
    "another scheme": b"ftp://a.example/",
    "no scheme name": b"://a.example/",
    "user in the authority": b"http://u:p@a.example/",
    "no authority": b"http:///a",
    "authority only": b"a.example:80",
    "a port with a letter": b"http://a.example:8a/",
    "a port too large": b"http://a.example:65536/",
    "an authority with a space code": b"http://a example/",
    "an open bracket": b"http://[::1/",
    "nothing": b"",
}.items():
    refuse(f"target with {name}", b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n", 400, "9112 3.2")
accept("OPTIONS *", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", "9112 3.2.4")
accept("absolute form", b"GET http://a.example/x?y HTTP/1.1\r\n" + HOST + b"\r\n", "9112 3.2.2")
accept("absolute form without a path", b"GET http://a.example HTTP/1.1\r\n" + HOST + b"\r\n", "9112 3.2.2")
accept(
    "absolute form, query without a path",
    b"GET http://a.example?x HTTP/1.1\r\n" + HOST + b"\r\n",
    "9112 3.2.2",
)
accept("absolute form, upper case", b"GET HTTP://A.EXAMPLE/x HTTP/1.1\r\n" + HOST + b"\r\n", "9110 4.2.3")
accept("absolute form, another Host", b"GET http://b.example/ HTTP/1.1\r\n" + HOST + b"\r\n", "9112 3.2.2")
accept("absolute form, https", b"GET https://a.example/ HTTP/1.1\r\n" + HOST + b"\r\n", "9112 3.2.2")
refuse("absolute form without Host", b"GET http://a.example/ HTTP/1.1\r\n\r\n", 400, "9112 3.2")
refuse("CONNECT", b"CONNECT a.example:80 HTTP/1.1\r\n" + HOST + b"\r\n", 501, "9110 9.3.6")
refuse("CONNECT with a path", b"CONNECT / HTTP/1.1\r\n" + HOST + b"\r\n", 501, "9112 3.2.3")

for version in (b"HTTP/2.0", b"HTTP/3.0", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/0.9", b"HTTP/9.9", b"HTTP/0.0"):
    refuse(f"version {version.decode()}", b"GET / " + version + b"\r\n" + HOST + b"\r\n", 505, "9110 15.6.6")
for version in (
    b"",
    b"http/1.1",
    b"Http/1.1",
    b"HTTP/1",
    b"HTTP/1.",
    b"HTTP/.1",
    b"HTTP/11",
    b"HTTP/1.10",
    b"HTTP/01.1",
    b"HTTP/1.01",
    b"HTTP/1,1",
    b"HTTP/+1.1",
    b"HTTP/1.1 ",
    b"HTTP/1.1\t",
    b"HTTP/1.1 x",
    b"HTTP 1.1",
    b"HTTP/ 1.1",
    b"HTTPS/1.1",
    b"ICE/1.0",
    b"RTSP/1.0",
    b"HTTP/1.\xb9",
    b"HTTP/1.1\x00",
):
    refuse(f"version {version!r}", b"GET / " + version + b"\r\n" + HOST + b"\r\n", 400, "9112 2.3")
refuse("HTTP/0.9", b"GET /\r\n", 400, "9112 2.3")
refuse("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "9113 3.4")
refuse("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400, "ours")
refuse("an SSH greeting", b"SSH-2.0-OpenSSH_9.6\r\n", 400, "ours")
refuse("nothing but spaces", b"   \r\n\r\n", 400, "9112 3")
accept("an empty line before", b"\r\n" + GET + b"\r\n", "9112 2.2")
refuse("two empty lines before", b"\r\n\r\n" + GET + b"\r\n", 400, "ours")
refuse("a bare LF before", b"\n" + GET + b"\r\n", 400, "9112 2.2")
accept("an empty line between", GET + b"\r\n\r\n" + NEXT, "9112 2.2", count=2)

# --- lines and fields -------------------------------------------------------------------------------------------------

for name, field in {
    "no space": b"A:b",
    "spaces and tabs around": b"A: \t b \t ",
    "empty": b"A:",
    "only spaces": b"A:   ",
    "spaces inside": b"A: b  c\td",
    "bytes above ASCII": b"A: \xe4\xff\x80",
    "UTF-8": "A: grüße".encode(),
    "every token character": b"!#$%&'*+-.^_`|~09azAZ: x",
    "underscore": b"a_b: x",
    "digits": b"1: x",
    "colons in the value": b"A: b:c: d",
    "quotes": b'A: "b\\"c"',
    "long": b"A: " + b"x" * 8000,
}.items():
    accept(f"field with {name}", GET + field + b"\r\n\r\n", "9110 5.5")
for name, field in {
    "a space before the colon": b"A : b",
    "a tab before the colon": b"A\t: b",
    "no colon": b"A",
    "no name": b": b",
    "a space in front": b" A: b",
    "a space inside the name": b"A B: c",
    "parentheses in the name": b"A(): b",
    "a slash in the name": b"A/B: c",
    "brackets in the name": b"A[b]: c",
    "a byte above ASCII in the name": b"\xc4: b",
    "NUL in the name": b"A\x00: b",
    "DEL in the name": b"A\x7f: b",
    "NUL in the value": b"A: b\x00c",
    "a bell in the value": b"A: b\x07c",
    "an escape in the value": b"A: \x1b[31m",
    "a vertical tab": b"A: b\x0bc",
    "a form feed": b"A: b\x0cc",
    "DEL in the value": b"A: b\x7fc",
    "a bare CR in the value": b"A: b\rc",
    "a bare CR before the end": b"A: b\r",
    "a bare LF in the value": b"A: b\nC: d",
    "a bare CR as line end": b"A: b\rC: d",
    "LF CR": b"A: b\n\rC: d",
    "a folded line": b"A: b\r\n c",
    "a line folded with a tab": b"A: b\r\n\tc",
    "a folded Content-Length": b"Content-Length:\r\n 5",
    "a folded empty line": b"A: b\r\n ",
}.items():
    refuse(f"field with {name}", GET + field + b"\r\n\r\n", 400, "9112 5")
refuse("a field line as the first one", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "9112 2.2")
refuse("LF only", b"GET / HTTP/1.1\nHost: a\n\n", 400, "9112 2.2")
refuse("LF after the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "9112 2.2")
refuse("LF after a field", b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400, "9112 2.2")
refuse("LF as the empty line", b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400, "9112 2.2")
refuse("CR CR LF", b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400, "9112 2.2")
refuse("CR as the empty line", GET + b"\r\r\n", 400, "9112 2.2")
wait("a head without its empty line", GET, "9112 2.1")
wait("half a request line", b"GET / HT", "9112 2.1")
wait("a CR and nothing more", GET + b"\r", "9112 2.1")
wait("nothing but an empty line", b"\r\n", "9112 2.2")

# --- sizes ------------------------------------------------------------------------------------------------------------

accept("a request line of 8 KiB", b"GET /" + b"a" * (8192 - 14) + b" HTTP/1.1\r\n" + HOST + b"\r\n", "ours")
refuse(
    "a request line of 8 KiB and a byte",
    b"GET /" + b"a" * (8192 - 13) + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    414,
    "9110 15.5.15",
)
refuse("a request line without end", b"GET /" + b"a" * 9000, 414, "9110 15.5.15", behind=b"")
accept("100 headers", GET + b"".join(b"H%d: x\r\n" % number for number in range(99)) + b"\r\n", "ours")
refuse(
    "101 headers", GET + b"".join(b"H%d: x\r\n" % number for number in range(100)) + b"\r\n", 431, "6585 5"
)
refuse("a head of more than 64 KiB", GET + b"A: " + b"x" * 65536 + b"\r\n\r\n", 431, "6585 5")
refuse("a head without end", GET + b"A: " + b"x" * 65536, 431, "6585 5", behind=b"")
refuse("a header name without end", GET + b"x" * 65536, 431, "6585 5", behind=b"")

# --- Host -------------------------------------------------------------------------------------------------------------

for host in (
    b"a",
    b"a.example",
    b"A.EXAMPLE",
    b"a.example:80",
    b"a.example:",
    b"a.example:65535",
    b"127.0.0.1:8080",
    b"[::1]",
    b"[::1]:8080",
    b"[2001:db8::1]:443",
    b"under_score.example",
    b"xn--bcher-kva.example",
    b"a%20b.example",
    b"",
):
    accept(f"Host {host.decode()!r}", b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", "9112 3.2")
for host in (
    b"a b",
    b"a,b",
    b"a, b",
    b"u@a",
    b"a/b",
    b"http://a",
    b"a?b",
    b"a#b",
    b"a\\b",
    b"a:80:80",
    b"a:8o",
    b"a:+80",
    b"a:-1",
    b"a:65536",
    b"a:123456",
    b":80",
    b"[::1",
    b"::1",
    b"[::1]x",
    b"[]",
    b"[g::1]",
    b"a%zz",
    b"a%2",
    b"\xc3\xa4.example",
    b"a\tb",
    b'"a"',
    b"<a>",
    b"a|b",
    b"a^b",
    b"{a}",
):
    refuse(f"Host {host!r}", b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", 400, "9112 3.2")
refuse("no Host", b"GET / HTTP/1.1\r\n\r\n", 400, "9112 3.2")
refuse("Host twice", GET + HOST + b"\r\n", 400, "9112 3.2")
refuse("Host twice, different", GET + b"Host: b\r\n\r\n", 400, "9112 3.2")
refuse("Host twice, cases differ", GET + b"HOST: b\r\n\r\n", 400, "9112 3.2")
refuse("Host twice, one empty", GET + b"Host:\r\n\r\n", 400, "9112 3.2")
refuse("Host twice in HTTP/1.0", b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400, "9112 3.2")

# --- Content-Length ---------------------------------------------------------------------------------------------------

for length, body in {
    b"5": b"hello",
    b"0": b"",
    b"005": b"hello",
    b"00": b"",
    b" 5": b"hello",
    b"5 ": b"hello",
    b"\t5\t": b"hello",
}.items():
    accept(
        f"Content-Length {length!r}",
        POST + b"Content-Length:" + length + b"\r\n\r\n" + body,
        "9112 6.2",
        body,
    )
for length in (
    b"+5",
    b"-5",
    b"-0",
    b"5_0",
    "٥".encode(),
    "５".encode(),
    b"\xb2",
    b"0x5",
    b"0b1",
    b"0o5",
    b"5.0",
    b"5e0",
    b"5,",
    b"5, 5",
    b"5,5",
    b",5",
    b"5 5",
    b"5;",
    b"'5'",
    b'"5"',
    b"five",
    b"",
    b" ",
    b"0x",
    b"NaN",
    b"inf",
    b"5L",
    b"5h",
    b"\xa05",
    b"5\xa0",
    b"1 000",
    b"1,000",
):
    refuse(
        f"Content-Length {length!r}", POST + b"Content-Length: " + length + b"\r\n\r\nhello", 400, "9112 6.3"
    )
for length in (
    b"1048576001",
    b"18446744073709551615",
    b"18446744073709551621",
    b"99999999999999999999999",
    b"9" * 400,
):
    refuse(
        f"Content-Length {length[:30].decode()}",
        POST + b"Content-Length: " + length + b"\r\n\r\n",
        413,
        "9110 15.5.14",
    )
for name, fields in {
    "twice, equal": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "twice, different": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "twice, zero first": b"Content-Length: 0\r\nContent-Length: 5\r\n",
    "twice, cases differ": b"Content-Length: 5\r\ncontent-length: 5\r\n",
    "and Transfer-Encoding": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "behind Transfer-Encoding": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "zero and Transfer-Encoding": b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
    "and Transfer-Encoding identity": b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
}.items():
    refuse(f"Content-Length {name}", POST + fields + b"\r\n0\r\n\r\n", 400, "9112 6.3")
accept(
    "GET with a body", GET + b"Content-Length: 5\r\n\r\nhello" + NEXT, "9110 9.3.1", b"hello", b"", count=2
)
accept(
    "DELETE with a body",
    b"DELETE / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello",
    "9110 9.3.5",
    b"hello",
)
accept("POST without any length", POST + b"\r\n" + NEXT, "9112 6.3", b"", b"", count=2)
refuse(
    "TRACE with a body", b"TRACE / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello", 400, "9110 9.3.8"
)
wait("a body that is short", POST + b"Content-Length: 6\r\n\r\nhello", "9112 6.3")
accept(
    "a body and a pipelined request",
    POST + b"Content-Length: 5\r\n\r\nhello" + NEXT,
    "9112 9.3.2",
    b"hello",
    b"",
    count=2,
)
accept(
    "a body that looks like a request",
    POST + b"Content-Length: %d\r\n\r\n" % len(NEXT) + NEXT,
    "9112 6.3",
    NEXT,
)

# --- Transfer-Encoding ------------------------------------------------------------------------------------------------

for value in (b"chunked", b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked"):
    accept(
        f"Transfer-Encoding {value!r}",
        POST + b"Transfer-Encoding:" + value + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + NEXT,
        "9112 7.1",
        b"hello",
        b"",
        count=2,
    )
for value in (
    b"identity",
    b"xchunked",
    b"chunkedx",
    b"chunked, identity",
    b"chunked,",
    b",chunked",
    b"chunked, chunked",
    b"chunked;q=1",
    b"chunked chunked",
    b'"chunked"',
    b"chunked\x0b",
    b"\x0bchunked",
    b"chun ked",
    b"gzip",
    b"",
    b"chunked\xa0",
    b"\xa0chunked",
):
    refuse(
        f"Transfer-Encoding {value!r}",
        POST + b"Transfer-Encoding: " + value + b"\r\n\r\n0\r\n\r\n",
        400,
        "9112 6.1",
    )
for value in (b"gzip, chunked", b"identity, chunked", b"deflate,chunked", b"x-unknown, chunked"):
    refuse(
        f"Transfer-Encoding {value!r}",
        POST + b"Transfer-Encoding: " + value + b"\r\n\r\n0\r\n\r\n",
        501,
        "9112 6.1",
    )
refuse(
    "Transfer-Encoding twice",
    POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    400,
    "9112 6.1",
)
refuse(
    "Transfer-Encoding identity first",
    POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    400,
    "9112 6.1",
)
refuse(
    "Transfer-Encoding in HTTP/1.0",
    b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    400,
    "9112 6.1",
)
refuse(
    "Transfer_Encoding is another field",
    POST + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
    400,
    "ours",
    before=1,
)

# --- chunks -----------------------------------------------------------------------------------------------------------

for name, body, content in (
    ("one", b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    ("none", b"0\r\n\r\n", b""),
    ("two", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
    ("upper-case hex", b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    ("lower-case hex", b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    ("leading zeros", b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    ("an extension", b"5;a=b\r\nhello\r\n0\r\n\r\n", b"hello"),
    ("an extension without a value", b"5;a\r\nhello\r\n0;b\r\n\r\n", b"hello"),
    ("a quoted extension", b'5;a="b;c"\r\nhello\r\n0\r\n\r\n', b"hello"),
    ("space before an extension", b"5 ;a=b\r\nhello\r\n0\r\n\r\n", b"hello"),
    ("a trailer", b"5\r\nhello\r\n0\r\nA: b\r\n\r\n", b"hello"),
    ("two trailers", b"5\r\nhello\r\n0\r\nA: b\r\nC:d\r\n\r\n", b"hello"),
    ("line ends in the content", b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    ("extensions of 1 KiB", b"5;" + b"x" * 1023 + b"\r\nhello\r\n0\r\n\r\n", b"hello"),
):
    accept(f"chunks with {name}", CHUNKED + body + NEXT, "9112 7.1", content, b"", count=2)
for name, body in {
    "a plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "a minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "an Arabic digit": "٥".encode() + b"\r\nhello\r\n0\r\n\r\n",
    "a space in front": b" 5\r\nhello\r\n0\r\n\r\n",
    "a space behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "a tab behind": b"5\t\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "an extension only": b";a\r\nhello\r\n0\r\n\r\n",
    "a letter behind hex": b"5g\r\nhello\r\n0\r\n\r\n",
    "a comma": b"5,5\r\nhello\r\n0\r\n\r\n",
    "a size of 16 digits": b"0000000000000005\r\nhello\r\n0\r\n\r\n",
    "a size of 2 to the 64": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "content that is longer": b"5\r\nhello!\r\n0\r\n\r\n",
    "content that is shorter": b"5\r\nhell\r\n0\r\n\r\n",
    "no CRLF behind the content": b"5\r\nhello0\r\n\r\n",
    "LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "LF behind the content": b"5\r\nhello\n0\r\n\r\n",
    "CR behind the size": b"5\rhello\r\n0\r\n\r\n",
    "CR CR LF behind the size": b"5\r\r\nhello\r\n0\r\n\r\n",
    "LF behind the last size": b"0\n\r\n",
    "LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    "extensions above 1 KiB": b"5;" + b"x" * 1024 + b"\r\nhello\r\n0\r\n\r\n",
    "many extensions": b"1;xxxxxxx\r\nx\r\n" * 200 + b"0\r\n\r\n",
    "an extension without end": b"5;" + b"x" * 5000,
    "a trailer without a colon": b"0\r\nA\r\n\r\n",
    "a trailer with a space before the colon": b"0\r\nA : b\r\n\r\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "a trailer with NUL": b"0\r\nA: \x00\r\n\r\n",
    "a trailer that ends in LF": b"0\r\nA: b\n\r\n",
    "a request where a trailer has to be": b"0\r\nGET / HTTP/1.1\r\n\r\n",
}.items():
    refuse(f"chunks with {name}", CHUNKED + body, 400, "9112 7.1")
refuse("chunks beyond the largest body", CHUNKED + b"3e800001\r\n", 413, "9110 15.5.14")
refuse("a chunk of 15 digits", CHUNKED + b"fffffffffffffff\r\n", 413, "9110 15.5.14")
refuse("trailers without end", CHUNKED + b"0\r\nA: " + b"x" * 9000, 431, "6585 5")
refuse("many trailers", CHUNKED + b"0\r\n" + b"A: b\r\n" * 2000 + b"\r\n", 431, "6585 5")
wait("chunks without the last one", CHUNKED + b"5\r\nhello\r\n", "9112 7.1")
wait("chunks without the last line", CHUNKED + b"5\r\nhello\r\n0\r\n", "9112 7.1")
wait("half a chunk", CHUNKED + b"5\r\nhel", "9112 7.1")
wait("half a size", CHUNKED + b"5", "9112 7.1")

# --- the connection ---------------------------------------------------------------------------------------------------

accept("pipelined", GET + b"\r\n" + NEXT + NEXT, "9112 9.3.2", count=3)
accept("Connection: keep-alive", GET + b"Connection: keep-alive\r\n\r\n" + NEXT, "9112 9.3", count=2)
for value in (b"close", b"Close", b"keep-alive, close", b"close , x", b"x,close"):
    accept(
        f"Connection: {value.decode()}",
        GET + b"Connection: " + value + b"\r\n\r\n" + NEXT,
        "9112 9.6",
        is_open=False,
    )
for value in (b"closed", b"x-close", b"close2, x", b"", b"upgrade"):
    accept(
        f"Connection: {value.decode()!r} is not close",
        GET + b"Connection: " + value + b"\r\n\r\n" + NEXT,
        "9112 9.6",
        count=2,
    )
accept(
    "close on a second field",
    GET + b"Connection: x\r\nConnection: close\r\n\r\n" + NEXT,
    "9112 9.6",
    is_open=False,
)
accept(
    "Upgrade is not taken",
    GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + NEXT,
    "9110 7.8",
    count=2,
)
accept(
    "Upgrade with a body",
    POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\nhello" + NEXT,
    "9110 7.8",
    b"hello",
    b"",
    count=2,
)
accept("HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n" + NEXT, "9112 9.3", is_open=False)
accept("HTTP/1.0 with Host", b"GET / HTTP/1.0\r\n" + HOST + b"\r\n", "9112 9.3", is_open=False)
accept(
    "HTTP/1.0 with keep-alive",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + NEXT,
    "9112 9.3",
    is_open=False,
)
accept(
    "HTTP/1.0 with a body",
    b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
    "9112 6.3",
    b"hello",
    is_open=False,
)
accept(
    "HTTP/1.0 with Expect",
    b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    "9110 10.1.1",
    b"hello",
    is_open=False,
)
refuse(
    "an expectation that is not known",
    POST + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\nhello",
    417,
    "9110 10.1.1",
)
refuse(
    "two expectations",
    POST + b"Expect: 100-continue, x\r\nContent-Length: 5\r\n\r\nhello",
    417,
    "9110 10.1.1",
)
accept(
    "Expect with the body already there",
    POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    "9110 10.1.1",
    b"hello",
)
refuse("the second of a pipeline is bad", GET + b"\r\n" + GET + HOST + b"\r\n", 400, "9112 3.2", before=1)
refuse(
    "garbage behind a body",
    POST + b"Content-Length: 5\r\n\r\nhelloGARBAGE\r\n\r\n",
    400,
    "9112 6.3",
    before=1,
)
refuse("a body without a length", POST + b"\r\nhello\r\n\r\n", 400, "9112 6.3", before=1)
