"""Images on both heads: what one head's machines get is put into the tree of files, which both have, for root alone.

A head that leads takes from there what it lacks. So it doesn't matter on which head an image was made, and after a
take-over machines get the same. Who can write to that folder of the tree says what machines boot: that is root.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from beo.boot.images import MANIFEST_MAX_BYTES, PIECE_BYTES, Manifest, Store
from beo.client import Cluster
from beo.config import Home
from beo.errors import BeoError, Conflict, reason
from beo.tree.files import Files
from beo.tree.locate import session
from beo.tree.words import Caller

PLACE = "/.boot"
CURRENT = f"{PLACE}/current.json"
LOOK_S = 20.0  # between two looks whether another image is current by now
PATIENCE_S = 30.0
ROOT = Caller(0, 0, (0,))

log = logging.getLogger("beo.boot")


def _tree(home: Home) -> Files:
    return Files(session(home, Cluster(home).secret()), ROOT, PATIENCE_S)


def share(home: Home, store: Store) -> None:
    """Put the current image into the tree, and take others away there. Raises BeoError; nothing is half there then."""
    made = store.find("current")
    paths = {store.path(kind, sha256): size for kind, (sha256, size) in made.files().items()}
    try:
        with _tree(home) as files:
            files.mkdir(PLACE, 0o700, exist_ok=True)
            there = {name: attr.size for name, attr in files.entries(PLACE)}
            for path, size in paths.items():
                if there.get(path.name) != size:
                    files.write(f"{PLACE}/{path.name}", _pieces(path), 0o600)
            files.write(CURRENT, iter([msgspec.json.encode(made)]), 0o600)
            for name in there.keys() - {path.name for path in paths} - {"current.json"}:
                files.remove(f"{PLACE}/{name}")
    except OSError as error:
        raise Conflict("the image isn't in the tree", reason(error), "free space on the heads") from None


def take(home: Home, store: Store) -> Manifest | None:
    """Bring the image here that is current in the tree, and make it current; None: it is, or there is none.

    Raises BeoError.
    """
    try:
        with _tree(home) as files:
            body = b"".join(files.read(CURRENT))
            made = msgspec.json.decode(body[:MANIFEST_MAX_BYTES], type=Manifest)
            if store.marked("current") == made.sha256:
                return None
            store.take(made, lambda kind, sha256: files.read(f"{PLACE}/{store.path(kind, sha256).name}"))
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise Conflict("the image in the tree can't be had", reason(error), "'beo image use' it again") from None
    store.use(made.sha256)
    return made


def keep_up(home: Home) -> None:
    """Take what is current in the tree, now and again and again, for as long as this process lives."""

    def run() -> None:
        while True:
            try:
                if made := take(home, Store(home)):
                    log.info("the image %s is current on this head, too", made.sha256[:12])
            except BeoError as error:
                log.warning("%s", error)
            ended.wait(LOOK_S)

    ended = threading.Event()
    threading.Thread(target=run, name="images", daemon=True).start()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
