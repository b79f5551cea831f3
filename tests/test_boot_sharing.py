"""An image that was made on one head is what machines get from the other, too, after a take-over."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from beo.boot import sharing
from beo.boot.images import Manifest, Store
from beo.boot.records import Records
from beo.config import Home
from beo.errors import EXIT_CONFLICT
from tests.cluster import Cluster, running, wait_for

BYTES = {"image": b"i" * 3_000_000, "kernel": b"k" * 10_000, "initrd": b"r" * 10_000}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("sharing") / "beo", workers=1, heads=2) as cluster:
        yield cluster


def add(home: Home, more: bytes = b"", current: bool = True) -> Manifest:
    """Make an image, and make it current, on a head, as a build does."""
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
    if current:
        store.use(made.sha256)
    return made


def test_a_head_takes_the_image_that_was_made_current_on_the_other(cluster: Cluster) -> None:
    one, other = cluster.home, cluster.home.second
    assert sharing.take(other, Store(other)) == [], "there is none yet"
    first = add(one)
    sharing.share(one, Store(one))
    assert sharing.take(other, Store(other)) == [first]
    assert Store(other).find("current") == first
    Store(other).check(first)
    assert sharing.take(other, Store(other)) == [], "it is there"
    second = add(one, b"new")
    sharing.share(one, Store(one))
    assert sharing.take(other, Store(other)) == [second]
    assert (Store(other).marked("current"), Store(other).marked("previous")) == (second.sha256, first.sha256)
    listed = cluster.beo("ls", "/.boot").stdout.split()
    assert f"{first.sha256}.sqfs" not in listed and f"{second.sha256}.sqfs" in listed, "what is old goes"


def test_an_image_that_one_machine_was_given_comes_to_the_other_head_and_stays_while_it_is_its(
    cluster: Cluster,
) -> None:
    one, other = cluster.home, cluster.home.second
    single, made = add(one, b"single", current=False), add(one, b"for the others")
    mac = "52:54:00:00:00:07"
    with closing(Records(one)) as records:
        records.lease(mac)
    assert cluster.beo("node", "set", mac, "--image", single.sha256).returncode == 0
    sharing.share(one, Store(one))
    sharing.look(one, Store(one))
    assert sharing.take(other, Store(other)) == [made, single]
    Store(other).check(single)
    assert Store(other).marked("current") == made.sha256
    assert sharing.take(other, Store(other)) == [], "both are there"

    newer = add(one, b"newer than that")
    sharing.share(one, Store(one))
    assert f"{single.sha256}.sqfs" in cluster.beo("ls", "/.boot").stdout, "that there is a new one changes nothing"
    refused = cluster.beo("image", "remove", single.sha256)
    assert refused.returncode == EXIT_CONFLICT and f"a machine boots {single.sha256[:12]}" in refused.stderr
    assert cluster.beo("image", "remove").returncode == 0
    assert Store(one).find(single.sha256) == single

    assert cluster.beo("node", "set", mac, "--image", "current").returncode == 0
    assert cluster.beo("image", "remove", single.sha256).returncode == 0
    assert sharing.take(one, Store(one)) == [], "what was removed doesn't come back"
    assert sharing.take(other, Store(other)) == [newer]
    sharing.share(one, Store(one))
    assert single.sha256 not in cluster.beo("ls", "/.boot").stdout


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
