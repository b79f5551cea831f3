"""HTTP/1.1 as far as machines that boot need it: heads of requests and answers, and ranges. Pure.

iPXE, busybox and curl ask one thing after the other. What is too long, or no HTTP, is answered by a status and ends
the connection.
"""

from __future__ import annotations

import msgspec

HEAD_MAX_BYTES = 8 * 1024
HEADERS_MAX = 64
METHODS = ("GET", "HEAD", "POST")
REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 302: "Found", 400: "Bad Request", 403: "Forbidden"}
REASONS |= {404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict"}
REASONS |= {411: "Length Required", 413: "Content Too Large", 416: "Range Not Satisfiable", 431: "Header Too Large"}
REASONS |= {500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable"}


class Bad(Exception):
    """What was asked can't be; `status` is the answer's."""

    def __init__(self, status: int, why: str) -> None:
        """Keep both."""
        super().__init__(why)
        self.status = status


class Head(msgspec.Struct, frozen=True):
    """The head of a request. headers: by their names in lower case. length: of the body that follows."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    length: int
    keeps: bool  # whether the connection may be used again


def find_end(data: bytes | bytearray) -> int:
    """Return how long the head is, its empty line included; 0: it isn't whole yet. Raises Bad for one too long."""
    at = data.find(b"\r\n\r\n", 0, HEAD_MAX_BYTES)
    if at < 0 and len(data) >= HEAD_MAX_BYTES:
        raise Bad(431, f"a head has {HEAD_MAX_BYTES} bytes at most")
    return at + 4 if at >= 0 else 0


def parse_head(data: bytes) -> Head:
    """Read a whole head; raises Bad."""
    try:
        first, *lines = data.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    except UnicodeDecodeError:
        raise Bad(400, "a head is plain text") from None
    words = first.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1") or not first.isprintable():
        raise Bad(400, "this is no HTTP")
    method, target, version = words
    if method not in METHODS:
        raise Bad(501, f"only {', '.join(METHODS)} are known")
    if not target.startswith("/"):
        raise Bad(400, "a path begins with /")
    if len(lines) > HEADERS_MAX:
        raise Bad(431, f"{HEADERS_MAX} lines at most")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip() or (name in ("content-length", "host") and name in headers):
            raise Bad(400, "a line of the head is none")
        headers[name] = value.strip()
    path, _, query = target.partition("?")
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    connection = headers.get("connection", "").lower()
    keeps = "close" not in connection if version == "HTTP/1.1" else "keep-alive" in connection
    return Head(method, path, {key: value for key, _, value in pairs}, headers, _length(method, headers), keeps)


def _length(method: str, headers: dict[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise Bad(411, "a body's length must be said")
    text = headers.get("content-length", "")
    if not text and method == "POST":
        raise Bad(411, "a body's length must be said")
    if text and not (text.isdigit() and len(text) <= 15):
        raise Bad(400, "a length is a number")
    return int(text or 0)


def find_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the (start, length) that a Range line asks for; None for the whole. Raises Bad beyond the end."""
    unit, equals, said = text.partition("=")
    first, dash, last = said.strip().partition("-")
    if not equals or unit.strip().lower() != "bytes" or not dash or not (first or last):
        return None  # what isn't understood is to be ignored, and several ranges may be
    if not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in (first, last) if part):
        return None
    if not first:
        if not int(last) or not size:
            raise Bad(416, f"it has {size} bytes")
        return max(0, size - int(last)), min(size, int(last))
    start, end = int(first), min(size - 1, int(last)) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise Bad(416, f"it has {size} bytes")
    return start, end - start + 1


def write_head(status: int, length: int, kind: str, keeps: bool, more: dict[str, str] | None = None) -> bytes:
    """Return the head of an answer."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}"]
    if status != 204:
        lines += [f"Content-Length: {length}", f"Content-Type: {kind}"]
    lines += [f"{name}: {value}" for name, value in (more or {}).items()]
    lines += [f"Connection: {'keep-alive' if keeps else 'close'}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii", "replace")
