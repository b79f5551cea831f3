"""Brings chunks to this node, for whoever needs their bytes here: by the node's own process, or without any of it.

    with bring(where, "node01", uid, digests) as held:
        held.path(digest).read_bytes()

    for digest, data in stream(where, "node01", uid, digests):
        ...

`bring` keeps all of them here at once; `stream` gives them one by one as they come, for more than a node may hold.
`read_by_session` needs no process: everything comes from the head, encrypted, through this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from beo.bulk import words
from beo.bulk.held import PATIENCE_S, Held
from beo.config import Home
from beo.errors import BeoError, NotFound
from beo.tree.files import Files
from beo.tree.locate import session
from beo.tree.session import ROOT_CALLER


class Brought:
    """Chunks of one user that are all here."""

    def __init__(self, held: Held, uid: int) -> None:
        """Look for them there."""
        self._held, self._uid = held, uid

    def path(self, digest: str) -> Path:
        """Return the file of one of them."""
        return self._held.path(self._uid, digest)


@contextmanager
def bring(
    where: Home, node: str, uid: int, digests: Sequence[str], patience_s: float = PATIENCE_S
) -> Iterator[Brought]:
    """Bring all these chunks of a user, and keep them here while the block lasts.

    Raises BeoError where one can't be brought: there is no such chunk, or no room for all of them at once.
    """
    held = Held(where, node)
    try:
        held.bring(uid, digests, patience_s)
        yield Brought(held, uid)
    finally:
        held.close()


def stream(
    where: Home, node: str, uid: int, digests: Sequence[str], patience_s: float = PATIENCE_S
) -> Iterator[tuple[str, bytes]]:
    """Yield (digest, bytes) of each of these chunks of a user once, as they come. Raises as `bring` does."""
    held = Held(where, node)
    try:
        yield from held.stream(uid, digests, patience_s)
    finally:
        held.close()


def read_by_session(where: Home, secret: str, uid: int, digests: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (digest, bytes) of each of these chunks of a user, in order, by a session of its own with the tree.

    secret: a node's key. Raises BeoError where one isn't there, or is damaged.
    """
    with Files(session(where, secret), ROOT_CALLER) as files:
        for digest in digests:
            path = "/" + b"/".join(words.path_of(words.name_of(uid, digest))).decode()
            try:
                data = b"".join(files.read(path))
            except OSError as error:
                cure = "submit that job's inputs again"
                raise NotFound(f"no chunk {digest[:16]}… of user {uid}", str(error.strerror), cure) from None
            if words.digest(data) != digest:
                raise BeoError("a chunk in the tree is damaged", path, "submit that job's inputs again")
            yield digest, data
