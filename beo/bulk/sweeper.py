"""Takes away the chunks that nobody needs: ``python -m beo.bulk.sweeper``, with BEO_DIR set, started by a head.

On its input: which bundles are needed, and how young a chunk must be to be spared: its job may not be submitted yet.
Whoever keeps a chunk touches it and looks again whether it is there (store.py). So what is to go is first given another
name, and looked at once more: was it touched meanwhile, it gets its name back.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import time
from collections.abc import Iterable, Iterator

import msgspec

from beo import messages as ms
from beo import question
from beo.bulk import chunks
from beo.bulk.chunks import Damaged
from beo.bulk.store import FOLDER, Store
from beo.config import home
from beo.errors import BeoError
from beo.log import setup
from beo.tree import plans
from beo.tree import words as w
from beo.tree.files import Files
from beo.tree.plans import Plan
from beo.tree.session import ROOT_CALLER, Session

ASIDE = "~"  # behind the name of a chunk that is being looked at
LOCATE_S = 5.0
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("beo.sweeper")


class Need(msgspec.Struct, frozen=True):
    """bundles: (uid, name) of each that is needed. spare_s: younger chunks stay, needed or not."""

    bundles: tuple[tuple[int, str], ...]
    spare_s: float


def sweep(files: Files, need: Need, now_s: float) -> int:
    """Do it once; return how many chunks went. now_s: by the clock of the head that serves the tree."""
    gone = 0
    young_ns = int((now_s - need.spare_s) * 1e9)
    try:
        users = [name for name, attr in files.entries(FOLDER) if attr.is_dir and name.isdigit()]
    except FileNotFoundError:
        return 0
    for user in users:
        needed = _names(files, int(user), [name for uid, name in need.bundles if uid == int(user)])
        for folder, attr in files.entries(f"{FOLDER}/{user}"):
            if not attr.is_dir:
                continue
            at = f"{FOLDER}/{user}/{folder}"
            todo = list(_to_do(at, files.entries(at), needed, young_ns))
            for _, result in files.do_all(todo):
                if isinstance(result, OSError):
                    log.warning("a chunk can't be taken away: %s: %s", result.filename, result.strerror)
                else:
                    gone += result
    return gone


def _names(files: Files, uid: int, bundles: Iterable[str]) -> dict[str, bool]:
    """The names of all chunks that these bundles need."""
    store = Store(files, uid)
    found: dict[str, bool] = {}
    for bundle in dict.fromkeys(bundles):
        found[bundle] = True
        try:
            ((_, first),) = store.fetch([bundle])
            parts = chunks.parts(chunks.check(bundle, first))
            found.update(dict.fromkeys(parts, True))
            more = dict(store.fetch(list(dict.fromkeys(parts)))) if parts else {}
            manifest = chunks.read(first, [chunks.check(name, more[name]) for name in parts])
        except Damaged as error:  # the job will be told
            log.warning("bundle %s of uid %d can't be read: %s", bundle[:12], uid, error)
            continue
        found.update((chunk.name.hex(), True) for chunk in manifest.chunks)
    return found


def _to_do(
    at: str, entries: Iterable[tuple[str, w.Attr]], needed: dict[str, bool], young_ns: int
) -> Iterator[Plan[int]]:
    for name, attr in entries:
        own = name.removesuffix(ASIDE)
        if name != own and chunks.is_name(own) and (own in needed or attr.mtime_ns >= young_ns):
            yield _put_back(f"{at}/{own}")  # a sweep was killed just here
        elif own not in needed and attr.mtime_ns < young_ns:
            yield _take(f"{at}/{name}", young_ns)


def _take(path: str, young_ns: int) -> Plan[int]:
    aside = path if path.endswith(ASIDE) else path + ASIDE
    parent, name = yield from plans.parent_of(path)
    other = plans.encoded(aside.rpartition("/")[2])
    try:
        if aside != path:
            yield from plans.ask(w.Rename(parent, name, parent, other), path)
        found = yield from plans.look(aside, follow=False)
        if found.mtime_ns >= young_ns and aside != path:
            yield from _put_back(path)
            return 0
        yield from plans.ask(w.Remove(parent, other), aside)
    except FileNotFoundError:  # its owner may do as he likes
        return 0
    return 1


def _put_back(path: str) -> Plan[int]:
    parent, name = yield from plans.parent_of(path)
    aside = name + ASIDE.encode()
    try:
        yield from plans.ask(w.Rename(parent, aside, parent, name, keep=True), path)
    except FileExistsError:  # it was sent again meanwhile
        yield from plans.ask(w.Remove(parent, aside), path)
    return 0


def main() -> int:
    """Sweep once; 0 where that was possible."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    setup("sweeper")
    need = msgspec.json.decode(sys.stdin.buffer.read(), type=Need)
    where = home()
    cluster, secret = where.cluster(), where.secret("admin")

    def locate() -> str:
        return question.ask(cluster.heads, cluster.key, secret, ms.AskTree(), ms.TreeIs, LOCATE_S).address

    try:
        with Files(Session(locate, cluster.key, secret), ROOT_CALLER) as files:
            began_s = time.monotonic()
            gone = sweep(files, need, time.time())
            if gone:
                log.info("%d chunks went that no job needs, in %.1f s", gone, time.monotonic() - began_s)
    except (BeoError, OSError) as error:
        log.warning("no sweep: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
