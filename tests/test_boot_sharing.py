"""An image that was made on one head is what machines get from the other, too, after a take-over."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.boot import sharing
from beo.boot.images import Manifest, Store
from beo.config import Home
from tests.cluster import Cluster, running, wait_for

BYTES = {"image": b"i" * 3_000_000, "kernel": b"k" * 10_000, "initrd": b"r" * 10_000}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("sharing") / "beo", workers=1, heads=2) as cluster:
        yield cluster


def add(home: Home, more: bytes = b"") -> Manifest:
    """Make an image current on a head, as a build does."""
    store = Store(home)
    store.folder.mkdir(exist_ok=True)
    files = {kind: store.folder / f".{kind}" for kind in BYTES}
    data = BYTES | {"image": BYTES["image"] + more}
    for kind, path in files.items():
        path.write_bytes(data[kind])
    named = {kind: hashlib.sha256(data[kind]).hexdigest() for kind in BYTES}
    sizes = len(data["image"]), named["kernel"], named["initrd"], len(data["kernel"]), len(data["initrd"])
    made = Manifest(named["image"], *sizes, "trixie", "vm", "6.12", "3.13", "0.1.0", "2026-11-26T20:15:00Z", {}, {})
    store.add(made, files)
    store.use(made.sha256)
    return made


def test_a_head_takes_the_image_that_was_made_current_on_the_other(cluster: Cluster) -> None:
    one, other = cluster.home, cluster.home.second
    assert sharing.take(other, Store(other)) is None, "there is none yet"
    first = add(one)
    sharing.share(one, Store(one))
    assert sharing.take(other, Store(other)) == first
    assert Store(other).find("current") == first
    Store(other).check(first)
    assert sharing.take(other, Store(other)) is None, "it is there"
    second = add(one, b"new")
    sharing.share(one, Store(one))
    assert sharing.take(other, Store(other)) == second
    assert (Store(other).marked("current"), Store(other).marked("previous")) == (second.sha256, first.sha256)
    listed = cluster.beo("ls", "/.boot").stdout.split()
    assert f"{first.sha256}.sqfs" not in listed and f"{second.sha256}.sqfs" in listed, "what is old goes"


def test_what_is_damaged_on_its_way_is_refused_and_the_current_image_stays(cluster: Cluster, tmp_path: Path) -> None:
    one, other = cluster.home, cluster.home.second
    made = add(one, b"newer")
    sharing.share(one, Store(one))
    before = Store(other).marked("current")
    spoilt = tmp_path / f"{made.sha256}.sqfs"
    spoilt.write_bytes(bytes(made.size_bytes))
    assert cluster.beo("put", str(spoilt), "/.boot").returncode == 0
    with pytest.raises(Exception, match="wasn't brought"):
        sharing.take(other, Store(other))
    assert Store(other).marked("current") == before
    wait_for(lambda: not list(Store(other).folder.glob(".*")), "nothing half is left")
