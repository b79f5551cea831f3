"""The tree of files by its verbs, and as a folder of each node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.tree.mount import KIND, mounted
from tests.cluster import Cluster, running, wait_for
from tests.people import open_place

ENOUGH_S = 60.0
CAN_MOUNT = os.geteuid() == 0 and os.path.exists("/dev/fuse")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("files") / "beo", workers=1) as cluster:
        yield cluster


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with something of everything in it."""
    folder = tmp_path / "case"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "data.bin").write_bytes(os.urandom(3_000_000))
    (folder / "empty").touch()
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o751)
    (folder / "deep" / "er" / "ünï\tcode").write_text("x")
    (folder / "link").symlink_to("deep/er")
    os.utime(folder / "run.sh", ns=(1_000_000_000, 1_234_567_890_123_456_789))
    return folder


def beo(cluster: Cluster, *words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "beo.front", *map(str, words)],
        env=cluster.env,
        capture_output=True,
        text=True,
        timeout=ENOUGH_S,
        cwd=cwd,
    )


def ok(cluster: Cluster, *words: str | Path) -> str:
    done = beo(cluster, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_is_put_is_got_again_byte_for_byte_with_modes_times_and_links(
    cluster: Cluster, here: Path, tmp_path: Path
) -> None:
    ok(cluster, "put", here, "/")
    back = tmp_path / "back"
    ok(cluster, "get", "case", back)
    assert subprocess.run(["diff", "-r", "--no-dereference", here, back], capture_output=True).stdout == b""
    for name in ("run.sh", "data.bin"):
        one, other = (here / name).stat(), (back / name).stat()
        assert (one.st_mode, one.st_mtime_ns) == (other.st_mode, other.st_mtime_ns)
    assert (back / "link").readlink() == Path("deep/er")
    ok(cluster, "rm", "-r", "case")


def test_a_file_is_listed_printed_moved_and_removed(cluster: Cluster, here: Path) -> None:
    ok(cluster, "mkdir", "-p", "a/b")
    ok(cluster, "put", here / "run.sh", here / "empty", "a")
    assert ok(cluster, "ls", "a") == "b/\nempty\nrun.sh\n"
    assert ok(cluster, "ls", "-l", "a").splitlines()[-1].split()[0] == "-rwxr-x--x"
    (row,) = [row for row in json.loads(ok(cluster, "ls", "--json", "/a")) if row["name"] == "run.sh"]
    assert (row["size"], row["mtime_ns"]) == (10, 1_234_567_890_123_456_789)
    assert ok(cluster, "cat", "a/run.sh") == "#!/bin/sh\n"
    ok(cluster, "mv", "a/run.sh", "a/b")
    ok(cluster, "mv", "a/b/run.sh", "a/b/go.sh")
    assert ok(cluster, "ls", "a/b") == "go.sh\n"
    ok(cluster, "rm", "-r", "a")
    assert "free of" in ok(cluster, "df")


def test_what_can_t_be_is_said_and_nothing_is_lost(cluster: Cluster, here: Path, tmp_path: Path) -> None:
    ok(cluster, "mkdir", "d")
    ok(cluster, "put", here / "run.sh", "d")
    for words, code, text in (
        (("cat", "nothing"), 2, "beo: /nothing (no such file or directory): see what is there with 'beo ls'"),
        (("cat", "d"), 75, "beo: /d (it is a directory)"),
        (("ls", "d/run.sh/x"), 75, "beo: /d/run.sh/x (not a directory)"),
        (("mkdir", "d"), 75, "beo: /d (it exists)"),
        (("rm", "d"), 2, "beo: /d is a directory: say -r to remove it with all in it"),
        (("rm", "-r", "/"), 2, "beo: / can't be removed (it is the tree): name what is in it"),
        (("put", "gone", "/"), 2, "beo: gone (no such file or directory): see 'ls'"),
        (("put", here / "run.sh", here / "empty", "new"), 2, "beo: /new (no such file or directory)"),
        (("put", here, "nowhere/at/all"), 2, "beo: /nowhere/at (no such file or directory)"),
        (("get", "d", "nothing", "/dev/null"), 2, "beo: /dev/null is no directory"),
        (("mkdir", "x" * 256), 75, "the name is too long"),
    ):
        done = beo(cluster, *words, cwd=tmp_path)
        assert (done.returncode, text in done.stderr) == (code, True), (words, done)
        assert len(done.stderr.splitlines()) == 1
    assert ok(cluster, "ls", "d") == "run.sh\n"
    ok(cluster, "rm", "-r", "d")
    ok(cluster, "rm", "-f", "d")


def test_who_can_t_read_a_file_is_told_which_and_gets_the_others(cluster: Cluster, here: Path) -> None:
    os.mkfifo(here / "pipe")
    done = beo(cluster, "put", here, "/")
    assert done.returncode == 1
    assert done.stderr == f"beo: {here}/pipe: neither file, directory nor symbolic link: left out\n"
    assert "run.sh" in ok(cluster, "ls", "case")
    ok(cluster, "rm", "-r", "case")


@pytest.mark.skipif(not CAN_MOUNT, reason="needs root and /dev/fuse: run it as root, after 'modprobe fuse'")
def test_every_node_shows_the_tree_where_the_settings_say_and_a_job_works_there(tmp_path: Path) -> None:
    at = tmp_path / "at"
    at.mkdir()
    home = tmp_path / "beo"
    settings = f'[files.mounts]\n"{at}/all" = "/"\n"{at}/home" = "/home"\n'
    with running(home, workers=1, settings=settings) as cluster:
        wait_for(lambda: mounted(at / "all") == mounted(at / "home") == KIND, "both are mounted")
        done = beo(cluster, "run", "sh", "-c", "echo here > note; cat note", cwd=at / "home")
        assert (done.stdout, done.stderr) == ("here\n", "")
        assert ok(cluster, "cat", "/home/note") == "here\n"
        assert (at / "all" / "home" / "note").read_text() == "here\n"
        pid = int((home / "run" / f"mount{str(at / 'home').replace('/', '-')}.lock").read_text().split()[0])
        os.kill(pid, 9)
        wait_for(lambda: _reads(at / "home" / "note") == "here\n", "it is mounted anew")
    assert not any(mounted(at / name) for name in ("all", "home")), "nothing stays mounted"


def _reads(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.skipif(not CAN_MOUNT, reason="needs root and /dev/fuse: run it as root, after 'modprobe fuse'")
def test_a_folder_is_mounted_by_hand_and_given_back(cluster: Cluster, tmp_path: Path) -> None:
    at = tmp_path / "at"
    done = beo(cluster, "mount", at)
    assert (done.returncode, "there is no such folder" in done.stderr) == (2, True)
    at.mkdir()
    ok(cluster, "mount", at)
    (at / "file").write_text("x")
    assert ok(cluster, "cat", "file") == "x"
    with (at / "file").open():
        done = beo(cluster, "umount", at)
        assert (done.returncode, "is in use" in done.stderr) == (75, True)
    ok(cluster, "umount", at)
    assert beo(cluster, "umount", at).returncode == 2
    assert list(at.iterdir()) == []
    ok(cluster, "rm", "file")


@pytest.mark.skipif(not CAN_MOUNT, reason="needs root and /dev/fuse: run it as root, after 'modprobe fuse'")
def test_a_user_gets_no_more_than_his_quota_and_root_does() -> None:
    with open_place() as place:
        at = place / "at"
        limits = f'[files]\nuser_bytes_max = 100000\nuser_files_max = 5\n[files.mounts]\n"{at}" = "/"\n'
        with running(place / "beo", workers=1, settings=limits):
            wait_for(lambda: mounted(at) == KIND, "it is mounted")
            (at / "of_root").write_bytes(bytes(200_000))

            def told(script: str) -> str:
                words = ["sh", "-c", script]
                done = subprocess.run(words, cwd=at, user=1234, group=1234, capture_output=True, text=True)
                return done.stderr

            said = told("head -c 60000 /dev/zero > 1; head -c 60000 /dev/zero > 2; touch 3 4 5 6")
            assert "error writing 'standard output': Disk quota exceeded" in said
            assert "touch: cannot touch '6': Disk quota exceeded" in said
            assert sorted(path.name for path in at.iterdir()) == ["1", "2", "3", "4", "5", "of_root"]
            (at / "1").unlink()
            assert told("touch 6") == "", "what was given back can be had again"


def test_a_site_with_files_of_its_own_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "beo"
    with running(home, workers=1, settings='[files]\nbackend = "shared"\npath = "/data"\n') as cluster:
        done = beo(cluster, "ls")
        assert done.returncode == 75
        assert (
            done.stderr == "beo: this cluster's files are at /data on every machine: use them there, with ls and cp\n"
        )
        assert not (home / "head" / "tree" / "log").exists(), "nothing is served"
