"""The store of images: what has a name is whole, `current` changes in one step, and another head's copy is checked."""

from __future__ import annotations

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from beo.boot.images import KINDS, Manifest, Store, from_head
from beo.cli.group import main
from beo.config import Home
from beo.errors import BeoError, Conflict, NotFound


def make(store: Store, seed: str, made: str = "2026-01-01T00:00:00Z") -> Manifest:
    """Put a small image into a store."""
    store.folder.mkdir(parents=True, exist_ok=True)
    files, sums = {}, {}
    for kind in KINDS:
        path = store.folder / f".new-{kind}"
        path.write_bytes(f"{kind} of {seed}".encode())
        files[kind], sums[kind] = path, hashlib.sha256(path.read_bytes()).hexdigest()
    sizes = {kind: path.stat().st_size for kind, path in files.items()}
    manifest = Manifest(
        sums["image"], sizes["image"], sums["kernel"], sums["initrd"], sizes["kernel"], sizes["initrd"],
        "trixie", "vm", "6.12", "3.13", "0.1.0", made, {"bash": "5"}, {"click": "8"},
    )  # fmt: skip
    store.add(manifest, files)
    return manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(Home(tmp_path / "one"))


def test_an_image_that_was_used_is_current_and_the_one_before_is_previous(store: Store) -> None:
    first, second = make(store, "first"), make(store, "second", "2026-01-02T00:00:00Z")
    assert [image.sha256 for image in store.every()] == [second.sha256, first.sha256]
    assert store.marked("current") == ""
    store.use(first.sha256)
    store.use(second.sha256)
    assert (store.marked("current"), store.marked("previous")) == (second.sha256, first.sha256)
    store.use(second.sha256)  # again: nothing is forgotten
    assert store.marked("previous") == first.sha256
    assert store.revert() == first
    assert (store.find("current"), store.find("previous")) == (first, second)
    assert store.revert() == second


def test_an_image_is_found_by_the_beginning_of_its_name(store: Store) -> None:
    first = make(store, "first")
    make(store, "second")
    assert store.find(first.sha256[:8]) == first
    for word in ("", "zz", "../../etc/passwd", "previous"):
        with pytest.raises(NotFound):
            store.find(word)


def test_a_damaged_image_is_told(store: Store) -> None:
    manifest = make(store, "one")
    store.check(manifest)
    store.path("initrd", manifest.initrd).write_bytes(b"initrd of onf")
    with pytest.raises(BeoError, match=r"initrd .* is damaged"):
        store.check(manifest)
    store.path("initrd", manifest.initrd).unlink()
    with pytest.raises(NotFound):
        store.use(manifest.sha256)
    assert store.marked("current") == ""


def test_old_images_go_with_their_files_and_those_in_use_stay(store: Store) -> None:
    every = [make(store, str(number), f"2026-01-0{number + 1}T00:00:00Z") for number in range(6)]
    store.use(every[0].sha256)
    store.use(every[1].sha256)
    with pytest.raises(Conflict, match="current"):
        store.remove(every[1].sha256)
    with pytest.raises(Conflict, match="previous"):
        store.remove(every[0].sha256)
    with pytest.raises(Conflict, match="a machine boots"):
        store.remove(every[2].sha256, {every[2].sha256})
    assert [image.sha256 for image in store.prune(1, {every[2].sha256})] == [every[i].sha256 for i in (4, 3)]
    assert store.prune(1, {every[2].sha256}) == []
    assert [image.sha256 for image in store.prune(1)] == [every[2].sha256]
    kept = {every[i].sha256 for i in (0, 1, 5)}
    assert {path.stem for path in store.folder.glob("*.sqfs")} == kept
    assert len(list(store.folder.glob("*.kernel"))) == len(list(store.folder.glob("*.initrd"))) == len(kept)


def test_another_heads_image_is_taken_only_as_what_its_name_says(store: Store, tmp_path: Path) -> None:
    manifest = make(store, "one")
    other = Store(Home(tmp_path / "two"))
    files = {(kind, sha): store.path(kind, sha).read_bytes() for kind, (sha, _) in manifest.files().items()}
    for spoilt in (lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:-1] + b"?"):
        with pytest.raises(Conflict, match="wasn't brought"):
            other.take(manifest, lambda kind, sha, spoilt=spoilt: [spoilt(files[kind, sha])])  # type: ignore[misc]
        assert list(other.folder.iterdir()) == []
    total = sum(size for _, size in manifest.files().values())
    assert other.take(manifest, lambda kind, sha: [files[kind, sha][:3], files[kind, sha][3:]]) == total
    assert other.take(manifest, lambda kind, sha: pytest.fail("it is there")) == 0
    other.check(manifest)
    assert other.every() == [manifest]


def test_an_image_comes_from_another_heads_server(store: Store, tmp_path: Path) -> None:
    manifest = make(store, "one")
    paths = {f"/image/{manifest.sha256}.sqfs": store.path("image", manifest.sha256)}
    paths |= {f"/{kind}/{sha}": store.path(kind, sha) for kind, (sha, _) in manifest.files().items() if kind != "image"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = paths.get(self.path)
            self.send_response(200 if path else 404)
            self.end_headers()
            self.wfile.write(path.read_bytes() if path else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        other = Store(Home(tmp_path / "two"))
        address = f"127.0.0.1:{server.server_address[1]}"
        other.take(manifest, from_head(address))
        other.check(manifest)
        paths.clear()
        with pytest.raises(NotFound, match="404"):
            Store(Home(tmp_path / "three")).take(manifest, from_head(address))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(Conflict, match="sends no image"):
        Store(Home(tmp_path / "four")).take(manifest, from_head(address))


def test_the_manifest_says_what_the_server_of_boots_looks_for(store: Store) -> None:
    """Its records are read by field: these names are agreed upon."""
    manifest = make(store, "one")
    store.use(manifest.sha256)
    text = (store.folder / "current.json").read_text()
    for field in ("sha256", "size_bytes", "kernel", "initrd", "words"):
        assert f'"{field}"' in text
    assert os.readlink(store.folder / "current.json") == f"{manifest.sha256}.json"


def test_the_verb_lists_shows_reverts_and_removes(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make(store, "first"), make(store, "second", "2026-01-02T00:00:00Z")
    third = make(store, "third", "2026-01-03T00:00:00Z")
    monkeypatch.setenv("BEO_DIR", str(store.folder.parent))

    def say(*words: str) -> str:
        assert main(["image", *words]) == 0
        return capsys.readouterr().out

    say("use", first.sha256[:10])
    say("use", second.sha256)
    lines = say("list").splitlines()
    assert len(lines) == 4 and "current" in lines[2] and "previous" in lines[3] and second.sha256[:12] in lines[2]
    assert "bash=5" in say("show") and second.kernel in say("show", "--json")
    assert say("check") == f"{second.sha256[:12]} is whole\n"
    assert say("revert") == f"{first.sha256[:12]} is the current image\n"
    assert say("remove") == f"{third.sha256[:12]} is gone\n"
