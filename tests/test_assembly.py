"""How files become an image: links are followed, nothing leads out of the root, layers are taken one upon the other."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from beo.boot import building, debian, modules
from beo.boot.assembly import Files, clean
from beo.boot.images import Store
from beo.boot.oci import Layout
from beo.config import Home
from beo.errors import BeoError, Conflict, NotFound, UsageError

EPOCH_S = 1_000_000_000


def archive(*members: tuple[str, object], mtime: int = 5) -> bytes:
    """A tar archive: (name, bytes) files, (name, None) folders, (name, "->x") and (name, "=x") links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            info.mtime, info.mode = mtime, 0o644
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
                continue
            if what is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif str(what).startswith("->"):
                info.type, info.linkname = tarfile.SYMTYPE, str(what)[2:]
            else:
                info.type, info.linkname = tarfile.LNKTYPE, str(what)[1:]
            tar.addfile(info)
    return out.getvalue()


def gathered(tmp_path: Path, *members: tuple[str, object]) -> Files:
    """Files of one archive."""
    path = tmp_path / "base.tar"
    path.write_bytes(archive(*members))
    files = Files(EPOCH_S)
    files.take_archive(path.open("rb"))
    return files


def unpacked(files: Files) -> dict[str, str]:
    """What a tar of these files holds: path -> content, or where a link leads."""
    out = io.BytesIO()
    files.write_tar(out)
    out.seek(0)
    found = {}
    with tarfile.open(fileobj=out) as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            found[info.name] = file.read().decode() if file else f">{info.linkname}" if info.linkname else "/"
    return found


def test_what_is_added_through_a_link_lands_where_it_leads(tmp_path: Path) -> None:
    files = gathered(tmp_path, ("usr/lib", None), ("lib", "->usr/lib"), ("lib/a", b"1"), ("./usr/lib/b", b"2"))
    files.add("lib/modules/x", b"3")
    files.folder("lib")
    assert unpacked(files) == {
        "lib": ">usr/lib", "usr": "/", "usr/lib": "/", "usr/lib/a": "1", "usr/lib/b": "2", "usr/lib/modules": "/",
        "usr/lib/modules/x": "3",
    }  # fmt: skip
    assert files.read("lib/modules/x") == b"3"


def test_hard_links_stay_links_whatever_their_order(tmp_path: Path) -> None:
    files = gathered(tmp_path, ("z", b"same"), ("a", "=z"), ("m", "=a"))
    assert unpacked(files) == {"a": "same", "m": ">a", "z": ">a"}
    assert files.read("m") == b"same"


def test_the_same_files_make_the_same_archive_whenever_they_were_made(tmp_path: Path) -> None:
    made = []
    for order in (1, -1):
        files = Files(EPOCH_S)
        for name in ("b", "a/x", "a/y")[::order]:
            files.add(name, name.encode())
        out = io.BytesIO()
        files.write_tar(out)
        made.append(out.getvalue())
    assert made[0] == made[1]


def test_no_file_is_younger_than_the_epoch(tmp_path: Path) -> None:
    files = Files(EPOCH_S)
    path = tmp_path / "a.tar"
    path.write_bytes(archive(("new", b""), mtime=EPOCH_S + 9))
    files.take_archive(path.open("rb"))
    assert files.member("new").mtime == EPOCH_S


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", "./.."])
def test_a_path_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="leads out"):
        clean(name)
    assert clean("/a/./b/../c") == "a/c" and clean("./") == ""


def test_links_that_follow_each_other_end(tmp_path: Path) -> None:
    files = gathered(tmp_path, ("a", "->b"), ("b", "->a"))
    with pytest.raises(KeyError):
        files.read("a/x")
    with pytest.raises((UsageError, RecursionError)):
        files.add("a/x", b"")


def test_the_kernels_own_form_is_read_by_another_program(tmp_path: Path) -> None:
    files = Files(EPOCH_S)
    files.add("init", b"#!/bin/sh\n", 0o755)
    files.link("bin/sh", "busybox")
    files.node("dev/console", 5, 1)
    with (tmp_path / "x.cpio").open("wb") as out:
        files.write_cpio(out)
    if not Path("/usr/bin/cpio").exists() and not Path("/bin/cpio").exists():
        pytest.skip("no cpio here: apt-get install -y cpio")
    told = subprocess.run(
        ["cpio", "-tv"], stdin=(tmp_path / "x.cpio").open("rb"), capture_output=True, text=True, check=True
    )
    lines = told.stdout.splitlines()
    assert any(line.startswith("-rwxr-xr-x") and line.endswith(" init") for line in lines), lines
    assert any(line.endswith("bin/sh -> busybox") for line in lines)
    assert any(line.startswith("crw") and line.endswith("dev/console") for line in lines)


# ---- containers


def layout(folder: Path, *layers: bytes, platform: str = "amd64") -> Path:
    """Write an OCI layout."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    described = [blob(gzip.compress(layer) if number % 2 else layer) for number, layer in enumerate(layers)]
    manifest = blob(json.dumps({"layers": described}).encode())
    manifest["platform"] = {"os": "linux", "architecture": platform}
    (folder / "index.json").write_text(json.dumps({"manifests": [manifest]}))
    return folder


def layered(tmp_path: Path, *layers: bytes) -> dict[str, str]:
    """What a layout comes to."""
    files = Files(EPOCH_S)
    opened = Layout(layout(tmp_path / "oci", *layers)).read(files, tmp_path)
    try:
        return unpacked(files)
    finally:
        for one in opened:
            one.close()


def test_a_later_layer_takes_away_and_replaces(tmp_path: Path) -> None:
    below = archive(("a/x", b"1"), ("a/y", b"1"), ("b/z", b"1"), ("c", b"1"), ("d/e", b"1"))
    above = archive(("a/.wh.x", b""), ("b/.wh..wh..opq", b""), ("b/new", b"2"), ("c", b"2"), (".wh.d", b""))
    assert layered(tmp_path, below, above) == {"a": "/", "a/y": "1", "b": "/", "b/new": "2", "c": "2"}


def test_a_layers_own_files_survive_its_own_opaque_folder(tmp_path: Path) -> None:
    above = archive(("b/new", b"2"), ("b/.wh..wh..opq", b""))
    assert layered(tmp_path, archive(("b/old", b"1")), above) == {"b": "/", "b/new": "2"}


def test_a_layer_that_leads_out_of_the_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leads out"):
        layered(tmp_path, archive(("../../etc/passwd", b"root")))


def test_a_link_out_of_the_root_leads_to_the_images_root(tmp_path: Path) -> None:
    found = layered(tmp_path, archive(("up", "->/etc"), ("up/passwd", b"1")))
    assert found["etc/passwd"] == "1" and found["up"] == ">/etc"


@pytest.mark.parametrize("what", ["layer", "manifest"])
def test_what_isnt_what_its_digest_says_is_refused(tmp_path: Path, what: str) -> None:
    folder = layout(tmp_path / "oci", archive(("a", b"1")))
    blobs = sorted((folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    path = blobs[-1 if what == "layer" else 0]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UsageError, match="not what its digest says"):
        Layout(folder).read(Files(EPOCH_S), tmp_path)


def test_a_layout_of_another_machine_or_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no OCI layout"):
        Layout(tmp_path)
    with pytest.raises(UsageError, match="linux/amd64"):
        Layout(layout(tmp_path / "oci", b"", platform="arm64")).read(Files(EPOCH_S), tmp_path)


def test_a_digest_that_is_a_path_is_refused(tmp_path: Path) -> None:
    folder = layout(tmp_path / "oci", b"")
    (folder / "index.json").write_text(json.dumps({"manifests": [{"digest": "sha256:../../../etc/passwd"}]}))
    with pytest.raises(UsageError, match="no digest"):
        Layout(folder).read(Files(EPOCH_S), tmp_path)


# ---- what goes wrong, and what is left of it


def test_a_base_tells_nothing_of_where_it_was_made(tmp_path: Path) -> None:
    files = gathered(
        tmp_path, ("etc/apt/sources.list", b"deb http://mirror.example/"), ("etc/apt/auth.conf.d/x", b"secret"),
        ("etc/resolv.conf", b"nameserver 10.9.8.7"), ("etc/machine-id", b"1"),
        ("var/lib/apt/lists/x", b"1"), ("etc/passwd", b"1"),
    )  # fmt: skip
    building.strip(files)
    assert [name for name in files.names() if not files.member(name).isdir()] == ["etc/passwd"]


def test_missing_programs_are_told_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path="": None if name in ("mksquashfs", "zstd") else name)
    with pytest.raises(NotFound, match="apt-get install -y squashfs-tools zstd"):
        debian.check_programs(["mksquashfs", "depmod", "zstd"])


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        ("E: Unable to locate package nosuch\nE: apt failed", UsageError, "no package nosuch"),
        ("dpkg: error: No space left on device", Conflict, "no space left"),
        ("Err: Could not resolve 'x'\nE: Some index files failed", Conflict, "Could not resolve"),
        ("I: working\nE: something odd\nbye", BeoError, "something odd"),
        ("", BeoError, "says nothing"),
    ],
)
def test_what_a_program_says_becomes_an_error_with_a_cure(told: str, kind: type[BeoError], words: str) -> None:
    error = debian.understand("make it", "mmdebstrap", told)
    assert isinstance(error, kind) and words in str(error) and error.cure


def test_a_wish_that_cant_be_is_refused_at_once() -> None:
    for wish in (building.Wish("desk"), building.Wish(added=("--help",)), building.Wish(added=("vim",), oci="x")):
        with pytest.raises(UsageError):
            building.check(wish)


@pytest.mark.parametrize("said", ["E: Unable to locate package nosuch", "No space left on device", "Failed to fetch x"])
def test_a_build_that_fails_leaves_nothing_half_made(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in debian.NEEDS:
        text = (
            'echo "Debian http://mirror.example/"'
            if name == "apt-get"
            else f'echo half >"$TMPDIR"/x; echo "{said}" >&2; exit 25'
        )
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    store = Store(Home(tmp_path / "home"))
    with pytest.raises(BeoError, match=r"nosuch|space|fetch"):
        building.build(store, building.Wish("vm", ("nosuch",)), store.folder / ".cache", lambda text: None)
    assert [path.name for path in store.folder.rglob("*")] == [".cache"]


def test_the_initrd_has_the_drivers_and_all_that_they_need() -> None:
    needs = modules.read_needs("kernel/drivers/net/ethernet/a/e1000e.ko.xz: kernel/drivers/ptp/ptp.ko.xz\n"
                               "kernel/drivers/ptp/ptp.ko.xz: kernel/drivers/pps/pps_core.ko.xz\n"
                               "kernel/drivers/pps/pps_core.ko.xz:\n")  # fmt: skip
    paths = [*needs, "kernel/sound/snd.ko.xz"]
    chosen = modules.for_initrd(paths, needs)
    assert chosen == sorted(needs)
    assert modules.for_root(paths) == list(needs)


def test_of_firmware_that_is_kept_for_which_a_driver_asks() -> None:
    module = b"\x7fELF\0license=GPL\0firmware=rtl_nic/one.fw\0firmware=tigon/*.bin\0xfirmware=no\0parm=firmware=x y\0"
    asked = modules.firmware_of(module)
    assert asked == {"rtl_nic/one.fw", "tigon/*.bin"}
    names = ["rtl_nic/one.fw.xz", "rtl_nic/two.fw", "tigon/a.bin", "tigon/a.txt"]
    assert modules.wanted(names, asked) == ["rtl_nic/one.fw.xz", "tigon/a.bin"]


def test_a_file_is_one_though_links_lead_to_it() -> None:
    files = Files(0)
    files.add("usr/lib/firmware/a", b"a")
    files.link("usr/lib/firmware/link", "a")
    files.link("usr/lib/firmware/dead", "gone")
    assert [name for name in files.names() if files.is_file(name)] == ["usr/lib/firmware/a", "usr/lib/firmware/link"]


def test_an_initrd_without_network_drivers_is_no_initrd() -> None:
    paths = [f"kernel/x/{name}.ko.xz" for name in modules.EXPECTED["lab"].split()]
    modules.check_drivers("lab", paths, "")
    with pytest.raises(BeoError, match="lacks the drivers e1000e"):
        modules.check_drivers("lab", [path for path in paths if "e1000e" not in path], "")
    modules.check_drivers("lab", [path for path in paths if "overlay" not in path], "kernel/fs/overlayfs/overlay.ko")
