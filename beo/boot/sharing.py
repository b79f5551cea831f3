"""Images on both heads: what machines get is put into the tree of files, which both have, for root alone.

    /.boot/current.json      the manifest of what machines get
    /.boot/SHA256.json       of what single machines get in its place, by 'beo node set --image'
    /.boot/SHA256.sqfs       with .kernel and .initrd: the files that these name

A head that leads takes from there what it lacks. So it doesn't matter on which head an image was made, and after a
take-over machines get the same. Who can write to that folder of the tree says what machines boot: that is root.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from beo.boot.images import MANIFEST_MAX_BYTES, PIECE_BYTES, Manifest, Store
from beo.client import Cluster
from beo.config import Home
from beo.errors import BeoError, Conflict, reason
from beo.tree.files import Files
from beo.tree.locate import session
from beo.tree.words import Caller

PLACE = "/.boot"
CURRENT = "current"
LOOK_S = 20.0  # between two looks whether another image is current by now
PATIENCE_S = 30.0
ROOT = Caller(0, 0, (0,))
T = TypeVar("T")

log = logging.getLogger("beo.boot")


def _tree(home: Home) -> Files:
    return Files(session(home, Cluster(home).secret()), ROOT, PATIENCE_S)


def chosen(home: Home) -> frozenset[str]:
    """The images that single machines boot, whatever is current. Raises NoHead where no head answers."""
    if not home.cluster_file.exists():  # images may be made before there is a cluster
        return frozenset()
    with Cluster(home) as cluster:
        return frozenset(view.image for view in cluster.machines()) - {CURRENT}


def share(home: Home, store: Store) -> None:
    """Put the current image into the tree, and take away there what no machine gets. Raises BeoError."""
    made, wanted = store.find(CURRENT), chosen(home) | {CURRENT}
    try:
        with _tree(home) as files:
            files.mkdir(PLACE, 0o700, exist_ok=True)
            _put(files, store, made, CURRENT)
            kept = {name: _manifest(files, name) for name in _listed(files) if name in wanted}
            named = {store.path(kind, sha).name for one in kept.values() for kind, (sha, _) in one.files().items()}
            named |= {f"{name}.json" for name in kept}
            for name, _ in files.entries(PLACE):
                if name not in named:
                    files.remove(f"{PLACE}/{name}")
    except (OSError, msgspec.MsgspecError) as error:
        raise Conflict("the image isn't in the tree", reason(error), "free space on the heads") from None


def give(home: Home, store: Store) -> None:
    """Put the images of single machines into the tree that are here. Raises BeoError.

    It takes nothing away there, as another head may be putting something there at this moment.
    """
    wanted = chosen(home)
    found = [made for made in store.every() if made.sha256 in wanted]
    if not found:
        return
    try:
        with _tree(home) as files:
            files.mkdir(PLACE, 0o700, exist_ok=True)
            for made in found:
                _put(files, store, made, made.sha256)
    except OSError as error:
        raise Conflict("a machine's image isn't in the tree", reason(error), "free space on the heads") from None


def take(home: Home, store: Store) -> list[Manifest]:
    """Bring the images here that are in the tree, and make current what is so there; return which ones were news.

    What no machine gets any more stays in the tree until the next `share`, and isn't taken. Raises BeoError.
    """
    news, wanted = [], chosen(home) | {CURRENT}
    try:
        with _tree(home) as files:
            held = {made.sha256 for made in store.every()}
            for name in _listed(files):
                if name not in wanted or name in held:
                    continue
                made = _manifest(files, name)
                if name == CURRENT and store.marked(CURRENT) == made.sha256:
                    continue
                store.take(made, lambda kind, sha256: files.read(f"{PLACE}/{store.path(kind, sha256).name}"))
                if name == CURRENT:
                    store.use(made.sha256)
                news.append(made)
    except FileNotFoundError:  # there is none yet, or another one just now
        return news
    except (OSError, msgspec.MsgspecError) as error:
        raise Conflict("an image in the tree can't be had", reason(error), "'beo image use' it again") from None
    return news


def look(home: Home, store: Store) -> None:
    """Take what is in the tree, and give what single machines get; what goes wrong is logged, for the next look."""
    for made in _tried(lambda: take(home, store)) or ():
        log.info("the image %s is on this head, too", made.sha256[:12])
    _tried(lambda: give(home, store))


def keep_up(home: Home) -> None:
    """Look, now and again and again, for as long as this process lives."""

    def run() -> None:
        while True:
            look(home, store)
            ended.wait(LOOK_S)

    store, ended = Store(home), threading.Event()
    threading.Thread(target=run, name="images", daemon=True).start()


def _tried(do: Callable[[], T]) -> T | None:
    try:
        return do()
    except BeoError as error:
        log.warning("%s", error)
        return None


def _listed(files: Files) -> list[str]:
    """What manifests the tree has: CURRENT first, then SHA-256s of single machines' images. Raises OSError."""
    names = {name.removesuffix(".json") for name, _ in files.entries(PLACE) if name.endswith(".json")}
    return [CURRENT] * (CURRENT in names) + sorted(names - {CURRENT})


def _manifest(files: Files, name: str) -> Manifest:
    body = b"".join(files.read(f"{PLACE}/{name}.json"))
    return msgspec.json.decode(body[:MANIFEST_MAX_BYTES], type=Manifest)


def _put(files: Files, store: Store, made: Manifest, name: str) -> None:
    """Put an image into the tree; its manifest comes last, so nothing is half there. Raises OSError."""
    there = {name: attr.size for name, attr in files.entries(PLACE)}
    for kind, (sha256, size_bytes) in made.files().items():
        path = store.path(kind, sha256)
        if there.get(path.name) != size_bytes:
            files.write(f"{PLACE}/{path.name}", _pieces(path), 0o600)
    if name == CURRENT or f"{name}.json" not in there:
        files.write(f"{PLACE}/{name}.json", iter([msgspec.json.encode(made)]), 0o600)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
