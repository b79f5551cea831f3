"""What a job takes along and brings back: a snapshot at submit, the same folder on every rank, results kept when done.

The longer ones, with users and their quota, and with daemons that are killed at the worst moments, are in
test_staging_kills.py.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import beo
from beo import messages as m
from beo import submission
from beo.bulk.store import FOLDER
from beo.bulk.sweeper import Need, sweep
from beo.bulk.taking import take_along
from beo.errors import EXIT_CONFLICT
from beo.headnode.folds.attempts import CODE_FILES
from beo.tree import plans
from beo.tree import words as w
from beo.tree.files import Files
from beo.tree.locate import session
from beo.tree.session import ROOT_CALLER
from tests.cluster import BEO, Cluster, running, wait_for

ENOUGH_S = 60.0
HOUR_S = 3_600.0
# Tells where each rank runs and what it finds there; makes one result of its own, and one that all nodes make.
PROGRAM = """
import os, sys, pathlib
rank, node = os.environ["BEO_RANK"], os.environ["BEO_NODE"]
print(os.getcwd(), os.environ["BEO_WORK"], pathlib.Path("data/x").read_text(), os.access("run.sh", os.X_OK))
pathlib.Path("out/deep").mkdir(parents=True, exist_ok=True)
pathlib.Path("out/deep", "of" + rank).write_text(rank)
pathlib.Path("out/node").write_text(node)
pathlib.Path("out/all").write_text("the same")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("staging") / "beo", workers=2) as made:
        yield made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "x").write_text("before")
    (folder / "data" / "link").symlink_to("x")
    (folder / "sim.py").write_text(PROGRAM)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    return folder


def do(cluster: Cluster, here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `beo WORDS` in a folder."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": ENOUGH_S, "stdin": subprocess.DEVNULL}
    return subprocess.run([*BEO, *words], env=cluster.env, cwd=here, **options)


def ok(cluster: Cluster, here: Path, *words: str) -> str:
    done = do(cluster, here, *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def hand_in(
    cluster: Cluster, here: Path, *argv: str, inputs: tuple[str, ...] = (), hold: bool = False, **more: Any
) -> int:
    """Submit a job from a folder, without a command of its own; return its id."""
    with cluster.client() as own:
        job = submission.new_spec(list(argv), cwd=str(here), **more)
        return own.submit(take_along(own, job, inputs), hold=hold)


def release(cluster: Cluster, job: int) -> m.JobView:
    """Let a held job run, and return how it ended."""
    with cluster.client() as own:
        own.release([str(job)])
        return own.wait([job], ENOUGH_S)[0]


def cat(cluster: Cluster, path: str) -> str:
    """What is in a file of the tree."""
    with tree(cluster) as files:
        return b"".join(files.read(path)).decode()


def names(cluster: Cluster, path: str) -> list[str]:
    """What is in a directory of the tree."""
    with tree(cluster) as files:
        return [name for name, _ in files.entries(path)]


def tree(cluster: Cluster) -> Files:
    """The tree, for root; to be closed."""
    with cluster.client() as own:
        return Files(session(cluster.home, own.secret()), ROOT_CALLER)


def chunks_of(cluster: Cluster) -> dict[str, w.Attr]:
    """All chunks in the tree, by their paths."""
    found = {}
    with tree(cluster) as files, suppress(FileNotFoundError):  # before the first job with files along
        for folder, _ in files.entries(f"{FOLDER}/{os.geteuid()}"):
            at = f"{FOLDER}/{os.geteuid()}/{folder}"
            found.update({f"{at}/{name}": attr for name, attr in files.entries(at)})
    return found


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_job_runs_on_the_files_as_they_were_at_submit_and_its_results_are_kept_when_it_is_done(
    cluster: Cluster, here: Path, tmp_path: Path
) -> None:
    words = (
        "--hold",
        "-q",
        "-N",
        "2",
        "-n",
        "4",
        "--in",
        "sim.py",
        "--in",
        "data/",
        "--in",
        "run.sh",
        "--out",
        "out/*",
    )
    job = ok(cluster, here, "submit", *words, "python3", "-S", "sim.py").strip()
    (here / "data" / "x").write_text("after")
    (here / "sim.py").unlink()
    view = release(cluster, int(job))
    assert (view.state, view.reason) == ("done", "")
    ok(cluster, here, "get", f"/jobs/{job}", str(tmp_path / "got"))  # at once: they were there before it was done
    lines = cluster.output(int(job)).splitlines()
    folder = lines[0].split()[0]
    if os.geteuid() == 0:
        assert folder == "/run/beo/job"
        assert lines == [f"{folder} {folder} before True"] * 4, "one path on every rank of both nodes"
    found = contents(tmp_path / "got")
    assert found == {
        "out/all": "the same",  # once
        "out/node": "node01",  # rank 0's keeps the name
        "out/node.node02": "node02",
        **{f"out/deep/of{rank}": str(rank) for rank in range(4)},
    }
    page = ok(cluster, here, "show", job)
    assert f"inputs     a snapshot of files in {here}, " in page
    assert f"results    out/* to /jobs/{job} in the tree" in page


def test_the_same_inputs_are_sent_once(cluster: Cluster, here: Path) -> None:
    (here / "unlike any other").write_bytes(os.urandom(5 << 20))
    first = bundle_of(cluster, hand_in(cluster, here, "true", inputs=(".",), hold=True))
    before = chunks_of(cluster)
    second = bundle_of(cluster, hand_in(cluster, here, "true", inputs=(".",), hold=True))
    after = chunks_of(cluster)
    assert first == second
    assert {path: attr.ino for path, attr in before.items()} == {path: attr.ino for path, attr in after.items()}
    mine = [path for path in after if after[path].mtime_ns > before[path].mtime_ns]
    assert len(mine) >= 4, "they are touched: two of the file, a pack, the manifest"


def bundle_of(cluster: Cluster, job: int) -> str:
    with cluster.client() as own:
        (detail,) = own.show([str(job)])
        return detail.spec.bundle


def test_run_brings_the_results_here_those_of_a_failure_too(cluster: Cluster, here: Path) -> None:
    (here / "fail.sh").write_text(
        "#!/bin/sh\n#BEO --out made\n#BEO --in data\nmkdir made; cat data/x > made/y; exit 7\n"
    )
    (here / "made").mkdir()
    (here / "made" / "mine").write_text("stays")
    done = do(cluster, here, "run", "--out", "*.log", "./fail.sh")
    assert (done.returncode, done.stdout) == (7, "")
    assert contents(here / "made") == {"y": "before", "mine": "stays"}
    assert not list(here.glob("*.log"))


def test_without_inputs_what_is_new_in_the_jobs_folder_is_kept(cluster: Cluster, here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "old").write_text("old")
    (here / "out" / "new").write_text("old")
    script = "echo new > out/new; ln -s new out/link; mkfifo out/pipe"
    job = hand_in(cluster, here, "sh", "-c", script, outputs=["out"])
    assert cluster.wait(job)[0].state == "done"
    assert names(cluster, f"/jobs/{job}/out") == ["link", "new"]
    assert cat(cluster, f"/jobs/{job}/out/new") == "new\n"


def test_partial_results_are_kept_at_the_time_limit_and_not_when_it_is_cancelled(cluster: Cluster, here: Path) -> None:
    words = ("sh", "-c", "echo so far > part; echo; sleep 60")
    cancelled = hand_in(cluster, here, *words, inputs=("data",), outputs=["part"])
    late = hand_in(cluster, here, *words, inputs=("data",), outputs=["part"], time_limit=0.5)
    (view,) = cluster.wait(late)
    assert (view.state, view.exit_code) == ("failed", 124)
    assert cat(cluster, f"/jobs/{late}/part") == "so far\n"
    wait_for(lambda: cluster.output(cancelled), "it has written something")
    with cluster.client() as own:
        own.cancel([str(cancelled)])
    assert cluster.wait(cancelled)[0].state == "cancelled"
    assert str(cancelled) not in names(cluster, "/jobs")


def test_results_that_can_t_be_kept_fail_the_job_and_say_so(cluster: Cluster, here: Path) -> None:
    job = hand_in(cluster, here, "sh", "-c", "mkdir out; touch out/x", hold=True, inputs=("data",), outputs=["out"])
    with tree(cluster) as files:
        files.do(plans.make_folders(f"/jobs/{job}"))
        files.write(f"/jobs/{job}/out", iter([b"a file, where a folder is to be"]))
    view = release(cluster, job)
    assert (view.state, view.exit_code, view.code_by) == ("failed", CODE_FILES, "beo")
    assert view.reason == f"its results are not kept: /jobs/{job}/out: not a directory"
    assert view.reason in ok(cluster, here, "show", str(job))


def hand_in_new(cluster: Cluster, here: Path) -> tuple[int, str, str]:
    """Submit a held job; return it, and its new chunks: the pack of its files, and the manifest."""
    before = chunks_of(cluster)
    job = hand_in(cluster, here, "echo", "started", inputs=("data",), hold=True)
    after = chunks_of(cluster)
    pack, manifest = sorted(after.keys() - before.keys(), key=lambda path: after[path].size)
    return job, pack, manifest


def test_inputs_that_are_gone_or_spoilt_fail_the_job_at_once_and_it_says_why(cluster: Cluster, here: Path) -> None:
    (here / "data" / "y").write_text("gone")
    gone, pack, _ = hand_in_new(cluster, here)
    with tree(cluster) as files:
        files.remove(pack)
    view = release(cluster, gone)
    assert (view.state, view.exit_code, view.code_by) == ("failed", CODE_FILES, "beo")
    assert view.reason.startswith("its inputs are not in the tree any more (chunk ")
    assert view.reason.endswith(": submit the job anew")
    assert cluster.output(gone) == ""
    (here / "data" / "y").write_text("spoilt")  # other chunks: nobody can have seen them whole
    spoilt, _, manifest = hand_in_new(cluster, here)
    with tree(cluster) as files:
        files.write(manifest, iter([bytes(files.stat(manifest).size)]), 0o600)
    view = release(cluster, spoilt)
    assert view.state == "failed"
    assert view.reason.startswith("its inputs are damaged: chunk ")
    with tree(cluster) as files:
        files.remove(manifest)


def test_what_can_t_be_taken_along_or_kept_is_refused_at_once(cluster: Cluster, here: Path) -> None:
    (here / "out").symlink_to("/etc")
    for words, text in (
        (("--in", "nothing"), "beo: --in nothing (there is no "),
        (("--in", "."), "leads out of what is taken along (to /etc): name what it leads to with --in instead"),
        (("--out", "/abs"), "'/abs' is no pattern of results (results are below the job's folder"),
        (("--out", "a/../b"), "'a/../b' is no pattern of results"),
        (("--out", "x" * 20_000), "the patterns of results have 20000 bytes (the limit is 16384): name the folder"),
    ):
        done = do(cluster, here, "submit", *words, "true")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done
        assert text in done.stderr
    job = submission.new_spec(["true"], cwd=str(here), outputs=["./out/", "."])
    assert job.outputs == ("out", "*")


def test_from_a_program(cluster: Cluster, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEO_DIR", str(cluster.home.path))
    words = ["sh", "-c", "cat data/x > y"]
    job = beo.submit(words, inputs=["data"], outputs=["y"], cwd=str(here))
    assert job.wait() == 0
    assert cat(cluster, f"/jobs/{job.id}/y") == "before"
    assert beo.run(["cat", "data/link"], inputs=[str(here / "data")], cwd=str(here)).stdout == "before"
    with pytest.raises(beo.BeoError, match="inputs is one text"):
        beo.submit(["true"], inputs="data")
    job.cluster.close()


def test_chunks_that_no_job_needs_go_and_those_that_one_needs_or_that_are_young_stay(
    cluster: Cluster, here: Path
) -> None:
    (here / "data" / "x").write_text("of this test alone")
    before = chunks_of(cluster)
    job = hand_in(cluster, here, "true", inputs=("data",), hold=True)
    needed = chunks_of(cluster).keys() - before.keys()
    assert len(needed) == 2
    bundle = bundle_of(cluster, job)
    with tree(cluster) as files:
        (one, *_) = needed
        files.write(f"{one}~", iter([b""]))  # of a sweep that was killed; and what it had taken was sent again
        assert sweep(files, Need(((os.geteuid(), bundle),), HOUR_S), time.time() + 2 * HOUR_S) > 0
        assert chunks_of(cluster).keys() == needed
        files.rename(one, f"{one}~")  # the same, before
        assert sweep(files, Need((), HOUR_S), time.time()) == 0
        assert chunks_of(cluster).keys() == needed, "it has its name again, and is young"
        assert release(cluster, job).state == "done"
        assert sweep(files, Need((), HOUR_S), time.time() + 2 * HOUR_S) == 2
        assert not chunks_of(cluster)


def test_the_place_of_chunks_is_roots_whoever_makes_it(cluster: Cluster) -> None:
    with tree(cluster) as files:
        found = files.stat(FOLDER)
        assert (found.uid, found.mode & 0o7777) == (0, 0o1777)
        files.mkdir("/mine")
        with pytest.raises(PermissionError):
            files.rename("/mine", FOLDER)
        files.remove("/mine")


def test_where_files_are_shared_already_nothing_is_copied(tmp_path: Path, here: Path) -> None:
    settings = '[files]\nbackend = "shared"\npath = "/data"\n'
    with running(tmp_path / "beo", workers=1, settings=settings) as shared:
        done = do(shared, here, "submit", "--in", "data", "true")
        assert done.returncode == EXIT_CONFLICT
        assert (
            done.stderr == "beo: this cluster's files are at /data on every machine: use them there, with ls and cp\n"
        )
        done = do(shared, here, "submit", "--out", "x", "true")
        assert done.returncode == EXIT_CONFLICT
        assert (
            "--in and --out, where files are at /data on every machine (what lies there needs no copy)" in done.stderr
        )


def test_nothing_of_a_job_is_left_on_its_nodes(cluster: Cluster, here: Path) -> None:
    with cluster.client() as own:
        name = own.info().cluster[:8]
    script = "mkdir -p deep/er; touch deep/er/file; chmod 0 deep/er"
    job = hand_in(cluster, here, "sh", "-c", script, inputs=(".",), outputs=["none"], ranks=4)
    assert cluster.wait(job)[0].state == "done"

    def left() -> list[Path]:
        return [
            path for path in Path("/tmp").glob(f"beo-{name}-*") if "-vaults-" not in path.name or any(path.iterdir())
        ]

    wait_for(lambda: not left(), "its folders are removed")
    wait_for(lambda: not list(cluster.home.nodes.glob("*/wardens/*/*.before")), "what was noted is forgotten")
