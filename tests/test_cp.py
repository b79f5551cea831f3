"""`beo cp`: files from and to a node's own disk, from node to node, and within the tree."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from beo import messages as m
from beo import spec as specs
from beo.worker.copier import StreamError, Taker, pack
from tests.cluster import PATIENCE_S, Cluster, running, wait_for
from tests.fuzz.bytes import spoilt
from tests.people import Person, open_place
from tests.test_full_disk import small_disk
from tests.world import World, spec

ANN = 61_011
ROUNDS = 600
LARGE_BYTES = 16 << 20  # more than any pipe, window or spool's piece on the way holds


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Where everybody may pass through; as root with a small disk in it, that nodes which start later see, too."""
    with open_place() as folder, small_disk(folder / "disk", 1 << 20) if os.geteuid() == 0 else nullcontext():
        yield folder


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Cluster]:
    """Two nodes whose every slot is taken."""
    with running(place / "beo", workers=2, slots=1) as cluster:
        cluster.wait_for_state(cluster.submit(["sleep", "1000"], ranks=2), "running")
        yield cluster


def done(cluster: Cluster, *words: str | Path) -> str:
    """What a copy prints that has to succeed."""
    did = cluster.beo("cp", *map(str, words))
    assert (did.returncode, did.stderr) == (0, ""), did
    return did.stdout


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A folder with something of everything in it."""
    folder = tmp_path / "case"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "data.bin").write_bytes(os.urandom(1_000_000))
    (folder / "empty").touch()
    (folder / "none").mkdir()
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o751)
    (folder / "deep" / "er" / "ünï\tcode\n").write_text("x")
    Path(os.fsdecode(bytes(folder) + b"/no\xfftext")).write_text("y")
    (folder / "link").symlink_to("deep/er")
    (folder / "deep").chmod(0o710)
    os.utime(folder / "run.sh", ns=(1_000_000_000, 1_234_567_890_123_456_789))
    return folder


def same(one: Path, other: Path) -> bool:
    """Whether two folders have the same in them, with modes, times and links."""

    def told(folder: Path) -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for path in sorted(folder.rglob("*")):
            stat = path.lstat()
            data = os.fsencode(path.readlink()) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
            found[str(path.relative_to(folder))] = (stat.st_mode, 0 if path.is_symlink() else stat.st_mtime_ns, data)
        return found

    return told(one) == told(other)


def test_a_file_comes_from_a_node_goes_to_one_and_from_one_to_the_other_though_no_slot_is_free(
    cluster: Cluster, tmp_path: Path
) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(LARGE_BYTES))
    source.chmod(0o640)
    os.utime(source, ns=(1, 1_234_567_890_123_456_789))
    for words in (
        ("node01:{}", "{}"),
        ("{}", "node02:{}"),
        ("node01:{}", "node02:{}"),
    ):
        target = tmp_path / "copy"
        assert done(cluster, words[0].format(source), words[1].format(target)) == ""
        assert target.read_bytes() == source.read_bytes()
        assert (target.stat().st_mode, target.stat().st_mtime_ns) == (source.stat().st_mode, source.stat().st_mtime_ns)
        target.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large"]


def test_directories_go_with_all_in_them(cluster: Cluster, case: Path, tmp_path: Path) -> None:
    printed = done(cluster, "-rv", f"node01:{case}", tmp_path / "back")
    assert f"{tmp_path}/back/deep/er\n" in printed and "ünï\\tcode\\n" in printed
    assert same(case, tmp_path / "back")
    (tmp_path / "into").mkdir()
    done(cluster, "-r", case, f"node02:{case}/empty", f"node01:{tmp_path}/into")
    assert same(case, tmp_path / "into" / "case") and (tmp_path / "into" / "empty").exists()


def test_what_can_t_be_is_said_with_what_helps_and_nothing_is_left(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder").mkdir()
    at, file = str(tmp_path), str(tmp_path / "file")
    for words, code, error in (
        ((f"node01:{at}/gone", at), 2, f"node01:{at}/gone (no such file or directory): see what is there on node01"),
        ((f"{at}/gone", f"node01:{at}"), 2, f"beo: {at}/gone (no such file or directory): see what is there: 'ls"),
        ((f"node01:{at}/folder", at), 2, f"node01:{at}/folder is a directory: say -r to copy it with all in it"),
        ((f"nod1:{file}", at), 2, "no node 'nod1': did you mean node01"),
        ((file, f"node01:{at}/no/where"), 2, f"node01:{at}/no/where (no such file or directory)"),
        ((f"node01:{file}", f"{at}/no/where"), 2, f"beo: {at}/no/where (no such file or directory)"),
        ((file, f"node01:{at}/new/"), 2, f"node01:{at}/new/ (no such file or directory)"),
        ((f"node01:{file}", f"{at}/file/"), 75, f"{at}/file/ (not a directory)"),
        ((f"node01:{file}", file, f"node02:{file}"), 75, f"node02:{file} (not a directory)"),
        ((f"node01:{at}/gone", f"node01:{file}", f"{at}/folder"), 1, f"beo: node01:{at}/gone: no such file"),
        (("node01:/dev/zero", at), 75, "node01:/dev/zero (neither file, directory nor symbolic link: left out)"),
        ((f"node01:{file}",), 2, "missing argument"),
    ):
        did = cluster.beo("cp", *words)
        assert did.returncode == code and error in did.stderr, (words, did)
        assert did.stdout == "" and len(did.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "folder"]


@pytest.mark.root
def test_a_full_disk_on_a_node_is_told_and_holds_no_half_file(cluster: Cluster, place: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    did = cluster.beo("cp", f"node01:{tmp_path}/large", f"node02:{place}/disk/")
    assert did.returncode == 75 and "no space left" in did.stderr and "make room on node02" in did.stderr, did
    assert list((place / "disk").iterdir()) == []


@pytest.mark.parametrize("towards", ["here", "there"])
def test_an_interrupted_copy_leaves_no_half_file_and_no_errand(cluster: Cluster, tmp_path: Path, towards: str) -> None:
    endless = tmp_path / "endless"
    endless.touch()
    os.truncate(endless, 1 << 40)
    words = (f"node01:{endless}", str(tmp_path / "got"))
    process = cluster.start("cp", *(words if towards == "here" else (str(endless), f"node02:{tmp_path}/got")))
    wait_for(lambda: [path for path in tmp_path.glob(".got.*~") if path.stat().st_size > 1 << 20], "it is under way")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    wait_for(lambda: [path.name for path in tmp_path.iterdir()] == ["endless"], "all is gone")
    with cluster.client() as own:
        wait_for(lambda: [job.name for job in own.jobs().jobs] == ["sleep"], "the errand has ended")


def test_a_copy_goes_on_over_a_killed_head_and_a_killed_agent(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(LARGE_BYTES))
    process = cluster.start("cp", f"node01:{tmp_path}/large", f"node02:{tmp_path}/got")
    wait_for(lambda: list(tmp_path.glob(".got.*~")), "it is under way")
    cluster.kill("head", "node01", "node02")
    _, err = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, err
    assert (tmp_path / "got").read_bytes() == (tmp_path / "large").read_bytes()
    cluster.wait_for_head()


@pytest.mark.root
def test_a_user_copies_with_his_own_rights_on_the_node(cluster: Cluster, place: Path) -> None:
    ann = Person(ANN, [ANN], place)
    (place / "roots").write_text("secret")
    (place / "roots").chmod(0o600)
    (place / "roots-folder").mkdir(mode=0o755)

    def refused(*words: str) -> str:
        did = ann.beo(cluster.home.path, "cp", *words)
        assert did.returncode == 77, did
        return did.stderr

    assert "permission denied" in refused(f"node01:{place}/roots", ".")
    (ann.home / "mine").write_text("ann's")
    assert "permission denied" in refused("mine", f"node01:{place}/roots-folder/x")
    did = ann.beo(cluster.home.path, "cp", "mine", f"node01:{ann.home}/there")
    assert did.returncode == 0, did.stderr
    assert ((ann.home / "there").stat().st_uid, (ann.home / "there").read_text()) == (ANN, "ann's")


def test_where_no_node_is_named_it_copies_within_the_tree(cluster: Cluster, case: Path) -> None:
    assert cluster.beo("put", str(case), "/").returncode == 0
    done(cluster, "/case/run.sh", "/case/go.sh")
    done(cluster, "-r", "case", "again")
    assert cluster.beo("cat", "again/go.sh").stdout == "#!/bin/sh\n"
    assert cluster.beo("ls", "-l", "again").stdout.count("-rwxr-x--x") == 2
    for words, code, error in (
        (("case", "new"), 2, "/case is a directory: say -r"),
        (("-r", "case", "case/deep"), 2, "/case/deep/case is below /case"),
        (("again/run.sh", "again/run.sh"), 2, "/again/run.sh is the same as /again/run.sh"),
        (("gone", "x"), 2, "/gone (no such file or directory)"),
    ):
        did = cluster.beo("cp", *words)
        assert did.returncode == code and error in did.stderr, did
    assert cluster.beo("rm", "-r", "case", "again").returncode == 0


# ---- the stream, without a cluster


def taken(folder: Path, data: bytes) -> Taker:
    taker = Taker(str(folder))
    try:
        taker.feed(data)
    finally:
        taker.close()
    return taker


def test_a_stream_in_whatever_pieces_gives_the_same_files(case: Path, tmp_path: Path) -> None:
    data = b"".join(pack([str(case)], True))
    for number, step in enumerate((7_001, 65_536, len(data))):
        taker = Taker(str(tmp_path / f"copy{number}"))
        for start in range(0, len(data), step):
            taker.feed(data[start : start + step])
        assert taker.done and not taker.failed
        assert same(case, tmp_path / f"copy{number}")


def test_a_file_whose_rest_is_missing_is_not_there(case: Path, tmp_path: Path) -> None:
    data = b"".join(pack([str(case / "data.bin")], False))
    (tmp_path / "to").mkdir()
    assert not taken(tmp_path / "to", data[:-100]).done
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("name", ["..", "", ".", "a/b", "/etc/x", "a\0b"])
def test_nothing_is_taken_for_a_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    import json

    for steps in ([name], ["ok", name]):
        record = {"kind": "folder", "at": steps, "mode": 0o755, "mtime_ns": 0}
        with pytest.raises(StreamError):
            taken(tmp_path, json.dumps(record).encode() + b"\n")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "to" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "file").write_text("x")
    taker = taken(tmp_path / "to", b"".join(pack([str(tmp_path / "link")], True)))
    assert taker.failures[0][3] == "not a directory" and list((tmp_path / "outside").iterdir()) == []


def test_spoilt_streams_are_refused_or_stay_below_their_folder(case: Path, tmp_path: Path) -> None:
    sample = b"".join(pack([str(case / "deep"), str(case / "run.sh"), str(case / "link")], True))
    (tmp_path / "to").mkdir()
    before = sorted(tmp_path.glob("*"))
    for data in spoilt("copies", [sample], ROUNDS):
        try:
            taken(tmp_path / "to", data)
        except StreamError:
            pass
        assert sorted(tmp_path.glob("*")) == before
        assert not list((tmp_path / "to").rglob(".*~")), "a file that is not whole was left"
        shutil.rmtree(tmp_path / "to")
        (tmp_path / "to").mkdir()


# ---- errands, without machines


def errand(node: str = "n1") -> specs.JobSpec:
    return spec(argv=("get", "-", "/x"), requeue="never", stdin=True, attached=True, errand=node)


def handed_in(world: World, wanted: specs.JobSpec) -> m.SubmittedIs | m.Failed:
    answer = world.answer(m.Submit(f"key {world.requests}", wanted, 1000, 1000, (1000,)))
    assert isinstance(answer, m.SubmittedIs | m.Failed)
    return answer


def test_an_errand_takes_no_slot_of_its_node_and_four_run_at_a_time() -> None:
    world = World()
    node = world.node("n1", slots=1)
    world.node("n2", slots=8)
    job = world.submit()
    assert world.job(job).attempt and world.state.nodes["n1"].used_slots == 1
    errands = [answer.job for _ in range(6) if isinstance(answer := handed_in(world, errand()), m.SubmittedIs)]
    assert [world.job(number).state for number in errands] == ["running"] * 4 + ["queued"] * 2
    assert world.why(errands[-1]) == ("waits until one of 4 copies on n1 is done",)
    assert {part.node for number in errands[:4] for part in world.job(number).attempts[0].parts} == {"n1"}
    assert world.state.nodes["n1"].used_slots == 1 and world.state.holdings["ann"].slots == 1
    node.end(errands[0])
    assert world.job(errands[4]).state == "running" and world.job(errands[5]).state == "queued"
    assert world.replays()
    world.restart()
    node.join()
    node.ping()
    world.tick()
    assert [world.job(number).state for number in errands] == ["done"] + ["running"] * 4 + ["queued"]


def test_an_errand_goes_to_a_drained_node_and_what_it_said_is_forgotten_soon() -> None:
    world = World()
    node = world.node("n1")
    assert isinstance(world.answer(m.Drain("n1"), "root"), m.NodesAre)
    answer = handed_in(world, errand())
    assert isinstance(answer, m.SubmittedIs)
    node.end(answer.job)
    world.wait(50.0, node)
    assert not world.forgotten
    world.wait(60.0, node)
    assert world.forgotten == [answer.job]


@pytest.mark.parametrize(
    "words",
    [
        {"argv": ("sh", "-c", "work"), "requeue": "never", "stdin": True, "attached": True},
        {"argv": ("get",), "requeue": "never", "stdin": True},
        {"argv": ("get",), "requeue": "never", "stdin": True, "attached": True, "ranks": 2},
        {"argv": ("get",), "requeue": "never", "stdin": True, "attached": True, "cpus": 2},
        {"argv": ("get",), "requeue": "never", "stdin": True, "attached": True, "env": {"A": "b"}},
        {"argv": ("get",), "requeue": "auto", "stdin": True, "attached": True},
    ],
)
def test_nobody_gets_a_program_of_his_own_past_the_slots_as_an_errand(words: dict[str, object]) -> None:
    world = World()
    world.node("n1")
    answer = handed_in(world, spec(**words, errand="n1"))
    assert isinstance(answer, m.Failed) and "an errand that is none" in str(answer.error)


def test_an_errand_to_a_node_that_is_lost_or_not_there_is_refused_at_once() -> None:
    world = World()
    world.node("n1")
    answer = handed_in(world, errand("n2"))
    assert isinstance(answer, m.Failed) and "no node 'n2'" in str(answer.error)
    world.wait(60.0)
    answer = handed_in(world, errand())
    assert isinstance(answer, m.Failed) and "n1 is lost" in str(answer.error)
