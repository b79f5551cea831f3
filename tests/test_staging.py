"""What a job takes along and brings back: a snapshot at submit, the same folder on every rank, results kept when done.

The longer ones, with users and their quota, and with daemons that are killed at the worst moments, are in
test_staging_kills.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import beo
from beo import client
from beo.bulk.store import FOLDER
from beo.bulk.sweeper import Need, sweep
from beo.errors import EXIT_CONFLICT
from beo.headnode.state import CODE_FILES
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
    # Sweeps all the time, which takes nothing away that was sent within the hour.
    with running(tmp_path_factory.mktemp("staging") / "beo", workers=2, settings="[files]\nsweep_s = 0.5\n") as made:
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


def tree(cluster: Cluster) -> Files:
    """The tree, for root; to be closed."""
    with cluster.client() as own:
        return Files(session(cluster.home, own.secret()), ROOT_CALLER)


def chunks_of(cluster: Cluster) -> dict[str, w.Attr]:
    """All chunks in the tree, by their paths."""
    found = {}
    with tree(cluster) as files:
        for folder, _ in files.entries(f"{FOLDER}/{os.geteuid()}"):
            at = f"{FOLDER}/{os.geteuid()}/{folder}"
            found.update({f"{at}/{name}": attr for name, attr in files.entries(at)})
    return found


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def why(cluster: Cluster, job: int) -> str:
    return cluster.job(job).reason


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
    job = ok(cluster, here, "submit", *words, "python3", "sim.py").strip()
    (here / "data" / "x").write_text("after")
    (here / "sim.py").unlink()
    ok(cluster, here, "release", job)
    (view,) = cluster.wait(int(job))
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
    first = json.loads(_spec(cluster, ok(cluster, here, "submit", "-q", "--in", ".", "true").strip()))
    before = chunks_of(cluster)
    second = json.loads(_spec(cluster, ok(cluster, here, "submit", "-q", "--in", ".", "true").strip()))
    after = chunks_of(cluster)
    assert first["bundle"] == second["bundle"]
    assert {path: attr.ino for path, attr in before.items()} == {path: attr.ino for path, attr in after.items()}
    mine = [path for path in after if after[path].mtime_ns > before[path].mtime_ns]
    assert len(mine) >= 4, "they are touched: two of the file, a pack, the manifest"


def _spec(cluster: Cluster, job: str) -> str:
    with cluster.client() as own:
        (detail,) = own.show([job])
        return json.dumps({"bundle": detail.spec.bundle})


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
    job = ok(cluster, here, "submit", "--wait", "-q", "--out", "out", "sh", "-c", script).strip()
    assert ok(cluster, here, "ls", f"/jobs/{job}/out") == "link\nnew\n"
    assert ok(cluster, here, "cat", f"/jobs/{job}/out/new") == "new\n"


def test_partial_results_are_kept_at_the_time_limit_and_not_when_it_is_cancelled(cluster: Cluster, here: Path) -> None:
    words = ("submit", "-q", "--in", "data", "--out", "part", "sh", "-c", "echo so far > part; sleep 60")
    late = int(ok(cluster, here, *words[:2], "-t", "0.2", *words[2:]))
    cancelled = int(ok(cluster, here, *words))
    (view,) = cluster.wait(late)
    assert (view.state, view.exit_code) == ("failed", 124)
    assert ok(cluster, here, "cat", f"/jobs/{late}/part") == "so far\n"
    cluster.wait_for_state(cancelled, "running")
    ok(cluster, here, "cancel", "-q", str(cancelled))
    assert cluster.wait(cancelled)[0].state == "cancelled"
    assert do(cluster, here, "ls", f"/jobs/{cancelled}").returncode == 2


def test_results_that_can_t_be_kept_fail_the_job_and_say_so(cluster: Cluster, here: Path) -> None:
    words = ("submit", "-q", "--hold", "--in", "data", "--out", "out", "sh", "-c", "mkdir out; touch out/x")
    job = int(ok(cluster, here, *words))
    ok(cluster, here, "mkdir", "-p", f"/jobs/{job}")
    ok(cluster, here, "put", "sim.py", f"/jobs/{job}/out")  # a file, where a folder is to be
    ok(cluster, here, "release", str(job))
    (view,) = cluster.wait(job)
    assert (view.state, view.exit_code, view.code_by) == ("failed", CODE_FILES, "beo")
    assert view.reason == f"its results are not kept: /jobs/{job}/out: not a directory"
    assert view.reason in ok(cluster, here, "show", str(job))


def _submitted(cluster: Cluster, here: Path, words: tuple[str, ...]) -> tuple[int, str, str]:
    """Submit; return the job, and its new chunks: the pack of its files, and the manifest."""
    with tree(cluster) as files:
        files.mkdir(FOLDER, exist_ok=True)
        files.mkdir(f"{FOLDER}/{os.geteuid()}", 0o700, exist_ok=True)
    before = chunks_of(cluster)
    job = int(ok(cluster, here, *words))
    after = chunks_of(cluster)
    pack, manifest = sorted(after.keys() - before.keys(), key=lambda path: after[path].size)
    return job, pack, manifest


def test_inputs_that_are_gone_or_spoilt_fail_the_job_at_once_and_it_says_why(cluster: Cluster, here: Path) -> None:
    words = ("submit", "-q", "--hold", "--in", "data", "echo", "started")
    (here / "data" / "y").write_text("gone")
    gone, pack, _ = _submitted(cluster, here, words)
    with tree(cluster) as files:
        files.remove(pack)
    ok(cluster, here, "release", str(gone))
    (view,) = cluster.wait(gone)
    assert (view.state, view.exit_code, view.code_by) == ("failed", CODE_FILES, "beo")
    assert view.reason.startswith("its inputs are not in the tree any more (chunk ")
    assert view.reason.endswith(": submit the job anew")
    assert cluster.output(gone) == ""
    (here / "data" / "y").write_text("spoilt")  # other chunks: of the first ones the node has those that were whole
    spoilt, _, manifest = _submitted(cluster, here, words)
    with tree(cluster) as files:
        files.write(manifest, iter([bytes(files.stat(manifest).size)]), 0o600)
    ok(cluster, here, "release", str(spoilt))
    (view,) = cluster.wait(spoilt)
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
    job = client.new_spec(["true"], cwd=str(here), outputs=["./out/", "."])
    assert job.outputs == ("out", "*")


def test_from_a_program(cluster: Cluster, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEO_DIR", str(cluster.home.path))
    words = ["sh", "-c", "cat data/x > y"]
    job = beo.submit(words, inputs=["data"], outputs=["y"], cwd=str(here))
    assert job.wait() == 0
    assert ok(cluster, here, "cat", f"/jobs/{job.id}/y") == "before"
    assert beo.run(["cat", "data/link"], inputs=[str(here / "data")], cwd=str(here)).stdout == "before"
    with pytest.raises(beo.BeoError, match="inputs is one text"):
        beo.submit(["true"], inputs="data")
    job.cluster.close()


def test_chunks_that_no_job_needs_go_and_those_that_one_needs_or_that_are_young_stay(
    cluster: Cluster, here: Path
) -> None:
    (here / "data" / "x").write_text("of this test alone")
    words = ("submit", "-q", "--hold", "--in", "data", "true")
    before = chunks_of(cluster)
    job = int(ok(cluster, here, *words))
    needed = chunks_of(cluster).keys() - before.keys()
    assert len(needed) == 2
    bundle = json.loads(_spec(cluster, str(job)))["bundle"]
    time.sleep(1.0)  # the head's own sweeps spare all that is younger than an hour
    assert chunks_of(cluster).keys() >= needed
    with tree(cluster) as files:
        (one, *_) = needed
        files.write(
            f"{one}~", iter([b""])
        )  # as a sweep leaves it that was killed in the middle, and what it was is back
        assert sweep(files, Need(((os.geteuid(), bundle),), HOUR_S), time.time() + 2 * HOUR_S) > 0
        assert chunks_of(cluster).keys() == needed
        files.rename(one, f"{one}~")  # the same, before
        assert sweep(files, Need((), HOUR_S), time.time()) == 0
        assert chunks_of(cluster).keys() == needed, "it has its name again, and is young"
        ok(cluster, here, "release", str(job))
        assert cluster.wait(job)[0].state == "done"
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
    ok(cluster, here, "run", "-n", "4", "--in", ".", "--out", "none", "sh", "-c", script)
    wait_for(lambda: not list(Path("/tmp").glob(f"beo-{name}-*")), "its folders are removed")
    assert not list(cluster.home.nodes.glob("*/wardens/*/*.before"))
