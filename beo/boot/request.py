"""What a machine asks over HTTP, and what it is answered: plain values, whoever carries them."""

from __future__ import annotations

import msgspec

BODY_MAX_BYTES = 64 * 1024  # of what is posted: a join has 400 bytes, a console's lines come in pieces


class Request(msgspec.Struct, frozen=True):
    """One request. path: without the query. peer: host:port of who asks. host: as he calls this server."""

    method: str
    path: str
    peer: str = ""
    host: str = ""
    body: bytes = b""


class Response(msgspec.Struct, frozen=True):
    """Its answer. file: what the body is instead, where it is large."""

    status: int
    body: bytes = b""
    kind: str = "text/plain; charset=utf-8"
    file: str = ""
