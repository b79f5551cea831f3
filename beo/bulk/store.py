"""Chunks in the tree of files, by a session: ``/.chunks/UID/XX/NAME``, each a file of the user whose job needs it.

Whoever keeps a chunk that is there already touches it, and looks again whether it still is: chunks that nobody needs
are taken away (sweeper.py), but none that was touched lately.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from beo.bulk import chunks, words
from beo.bulk.chunks import Chunk, Cut, Damaged, File, Manifest
from beo.errors import Conflict, Refused
from beo.tree import plans
from beo.tree import words as w
from beo.tree.files import Files, new_tag
from beo.tree.plans import Plan

FOLDER = f"/{words.FOLDER}"
WIDTH = 8  # chunks under way at a time: each is up to 4 MiB of memory
FILE_MODE, FOLDER_MODE = 0o600, 0o700
FETCH_TRIES = 3  # a chunk that is being looked at by the sweep isn't there for a moment
FETCH_AGAIN_S = 0.3

Fetch = Callable[[Sequence[str]], Iterator[tuple[str, bytes]]]
"""Get chunks by their names: each comes once, with its bytes, in any order. Raises `Missing` for one that isn't there.
What comes is not to be believed: who takes it checks it."""


class Missing(Damaged):
    """A chunk isn't there."""


class Store:
    """The chunks of one user, in one tree."""

    def __init__(self, files: Files, uid: int) -> None:
        """Keep and get them by this session."""
        self._files = files
        self._folder = f"{FOLDER}/{uid}"
        self._uid = uid
        self._known: dict[str, int] = {}  # kept by this object, and its size
        self.sent_bytes = 0

    def prepare(self) -> None:
        """Make the user's folder. Raises Refused where somebody else has made it."""
        self._files.mkdir(FOLDER, 0o1777, exist_ok=True)
        self._files.mkdir(self._folder, FOLDER_MODE, exist_ok=True)
        for path, owner in ((FOLDER, 0), (self._folder, self._uid)):
            found = self._files.stat(path, follow=False)
            if found.uid != owner or not found.is_dir:
                why = f"it belongs to uid {found.uid}" if found.is_dir else "it is no folder"
                raise Refused(f"{path} of the tree can't be used", why, f"let an admin 'beo rm -r {path}'")

    def keep(self, cuts: Iterable[Cut]) -> None:
        """Let these chunks be in the tree, on all heads that are in step; send those that aren't there yet."""
        for _, result in self._files.do_all((self._keep(cut) for cut in self._fresh(cuts)), WIDTH):
            if isinstance(result, OSError):
                raise result

    def hold(self, held: Iterable[Chunk]) -> set[bytes]:
        """Keep chunks that were kept before, without their bytes; return the names of those that are gone."""
        sizes = {chunk.name.hex(): chunk.size for chunk in held}
        gone = self._touch_all(sizes)
        self._known.update((name, size) for name, size in sizes.items() if name not in gone)
        return {bytes.fromhex(name) for name in gone}

    def keep_again(self) -> set[str]:
        """Touch all that were kept; return the names of those that are gone."""
        return self._touch_all(self._known)

    def _touch_all(self, sizes: Mapping[str, int]) -> set[str]:
        todo = (_named(name, _touch(self._path(name), size)) for name, size in sizes.items())
        gone = set()
        for _, result in self._files.do_all(todo, WIDTH * 8):
            if isinstance(result, OSError):
                raise result
            name, there = result
            if not there:
                gone.add(name)
        return gone

    def _fresh(self, cuts: Iterable[Cut]) -> Iterator[Cut]:
        for cut in cuts:
            if cut.name not in self._known:
                self._known[cut.name] = len(cut.data)
                yield cut

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name[:2]}/{name}"

    def _keep(self, cut: Cut) -> Plan[None]:
        path = self._path(cut.name)
        if (yield from _touch(path, len(cut.data))):
            return
        self.sent_bytes += len(cut.data)
        try:
            yield from plans.write(path, iter([cut.data]), new_tag(), FILE_MODE)
        except FileNotFoundError:
            yield from plans.make_folder(path.rpartition("/")[0], FOLDER_MODE, exist_ok=True)
            yield from plans.write(path, iter([cut.data]), new_tag(), FILE_MODE)

    def fetch(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Get chunks: see `Fetch`."""
        ahead = list(names)
        for left in reversed(range(FETCH_TRIES)):
            gone = []
            for _, result in self._files.do_all((_get(self._path(name), name) for name in ahead), WIDTH):
                if isinstance(result, OSError):
                    raise result
                name, data = result
                if data is None:
                    gone.append(name)
                else:
                    yield name, data
            ahead = gone
            if not ahead:
                return
            if left:
                time.sleep(FETCH_AGAIN_S)
        raise Missing(f"chunk {ahead[0][:12]}… is not in the tree")


def manifest(fetch: Fetch, bundle: str) -> Manifest:
    """Get the manifest of a bundle, whoever has its chunks; raises Damaged where it isn't whole."""
    ((_, first),) = fetch([bundle])
    names = chunks.parts(chunks.check(bundle, first))
    if not names:
        return chunks.read(first)
    found = dict(fetch(list(dict.fromkeys(names))))
    return chunks.read(first, [chunks.check(name, found[name]) for name in names])


def contents(fetch: Fetch, manifest: Manifest, files: Sequence[File]) -> dict[bytes, bytes]:
    """Get the bytes of some files of a bundle, by their paths; raises Damaged where they aren't there."""
    names = dict.fromkeys(chunk.name.hex() for file in files for chunk in chunks.chunks_of(manifest, file))
    found = {name: chunks.check(name, data) for name, data in fetch(list(names))}
    return {file.path: chunks.content(manifest, file, found) for file in files}


def _named(name: str, plan: Plan[bool]) -> Plan[tuple[str, bool]]:
    return name, (yield from plan)


def _touch(path: str, size: int) -> Plan[bool]:
    """Let a chunk be young, so that it stays; False where it isn't there, or not whole."""
    try:
        found = yield from plans.look(path, follow=False)
        if found.size != size:
            return False
        yield from plans.ask(w.Set(found.ino, mtime_ns=-1), path)
        again = yield from plans.look(path, follow=False)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE:
            return False
        raise
    return again.ino == found.ino


def _get(path: str, name: str) -> Plan[tuple[str, bytes | None]]:
    try:
        found = yield from plans.look(path, follow=False)
    except FileNotFoundError:
        return name, None
    if found.size > words.CHUNK_MAX_BYTES:
        raise plans.failure(errno.ESTALE, path)
    return name, b"".join((yield from plans.read(found, path)))


def told(error: OSError) -> Conflict:
    """Return what a person is told where inputs can't be kept."""
    cure = "free some of your files there ('beo ls', 'beo rm'), or ask an admin"
    return Conflict("the inputs can't be kept in the tree", error.strerror or str(error), cure)
