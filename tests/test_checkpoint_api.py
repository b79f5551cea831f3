"""What `beo.checkpoint` promises a program on one rank; tests/mpi/test_checkpoint.py has the others."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import beo
from beo.checkpoints.api import Checkpoint
from beo.checkpoints.store import Counters
from beo.errors import BeoError, UsageError
from tests.cluster import ROOT
from tests.test_checkpoint_word import said, write

STEPS = 10


class Killed(Exception):
    """What ends a program here as a kill does: it leaves everything behind."""


@contextmanager
def killed() -> Iterator[None]:
    """Where a program is Killed."""
    with pytest.raises(Killed):
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As beo gives it to a job."""
    for name in ("BEO_CHECKPOINT_WORD", "BEO_MTBF_S", "BEO_NODE", "PMI_RANK", "PMI_FD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BEO_CHECKPOINT_DIR", str(tmp_path / "vault"))
    return tmp_path / "vault"


def program(ends_at: int = -1, **options: Any) -> tuple[np.ndarray, int, list[int]]:
    """A program of STEPS steps. Returns its array, its number of steps and which it did in this run."""
    u, did = np.ones(4), []
    with beo.checkpoint(u=u, step=0, total=0, **{"every": 1, **options}) as ck:
        for ck.step in ck.range(STEPS):
            if ck.step == ends_at:
                raise Killed
            did.append(ck.step)
            u *= 1.5
            ck.total += 1
    return u, ck.total, did


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_program_that_was_killed_goes_on_with_the_step_it_was_in(folder: Path) -> None:
    expected, _, _ = program()
    with pytest.raises(Killed):
        program(ends_at=6)
    u, total, did = program()
    assert np.array_equal(u, expected) and total == STEPS
    assert did == [6, 7, 8, 9]


def test_where_the_last_checkpoint_is_lost_it_goes_on_with_the_one_before_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with killed():
        program(ends_at=6)
    newest = max(folder.rglob("*.manifest"), key=lambda path: path.stat().st_mtime_ns).with_suffix(".image")
    newest.write_bytes(bytes(newest.stat().st_size))
    assert program()[2] == [5, 6, 7, 8, 9]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("beo: the checkpoint of step 6 wasn't finished, or is lost (")
    assert told.endswith("): it goes on with the one of step 5")


def test_it_begins_anew_after_it_has_ended_and_leaves_nothing(folder: Path) -> None:
    for _ in range(2):
        _, _, did = program()
        assert did == list(range(STEPS))
    assert list(folder.iterdir()) == []


def test_fresh_begins_anew(folder: Path) -> None:
    with pytest.raises(Killed):
        program(ends_at=6)
    assert program(fresh=True)[2] == list(range(STEPS))


def test_a_folder_of_ones_own_is_used_and_left_empty(tmp_path: Path) -> None:
    own = tmp_path / "own"
    with pytest.raises(Killed):
        program(ends_at=3, folder=own)
    assert any(name.endswith(".manifest") for name in files(own))
    assert program()[2] == list(range(STEPS))
    assert program(folder=str(own))[2] == [3, 4, 5, 6, 7, 8, 9]
    assert not own.exists()


def test_a_folder_that_another_program_uses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beo.checkpoints.place.DYING_S", 0.1)
    with (
        beo.checkpoint(n=1, folder=tmp_path / "own"),
        pytest.raises(BeoError, match=r"own is in use .*: name another one with folder="),
    ):
        beo.checkpoint(n=1, folder=tmp_path / "own")


def test_a_folder_that_cant_be_made_isnt_told_to_be_in_use(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may write anywhere
    try:
        with pytest.raises(BeoError, match=r"no checkpoints in .*own \(permission denied\): name another folder"):
            beo.checkpoint(n=1, folder=closed / "own")
    finally:
        os.seteuid(user)


def test_a_twin_that_runs_at_the_same_time_has_a_folder_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("beo.checkpoints.place.DYING_S", 0.1)
    with beo.checkpoint(n=1) as first, beo.checkpoint(n=1) as second:
        assert first.folder != second.folder
        assert first.save() and second.save()
    assert "runs already: this one has checkpoints of its own" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_while_loops_and_programs_without_one_take_part_by_safe_points() -> None:
    def count() -> int:
        ck = beo.checkpoint(n=0, every=3)
        while ck.n < 10:
            ck.safe_point()
            if ck.n == 8 and not ck.restored:
                ck._close()  # as if killed
                return int(ck.n)
            ck.n += 1
        ck.end()
        return int(ck.n)

    assert count() == 8
    assert count() == 10
    assert count() == 8, "it had ended"


def test_save_takes_one_now_and_in_a_loop_when_the_step_is_done() -> None:
    ck = beo.checkpoint(n=0)
    ck.n = 5
    assert ck.save() and ck.counters.saves == 1
    ck._close()
    with killed(), beo.checkpoint(n=0) as again:
        assert again.restored and again.n == 5
        for number in again.range(5):
            again.n += 1
            if number == 2:
                assert again.save() and again.counters.saves == 0
            if number == 3:
                raise Killed
    with beo.checkpoint(n=0) as last:
        assert last.n == 8 and list(last.range(5)) == [3, 4]


def test_functions_of_the_programs_own_keep_and_take_back() -> None:
    class Simulation:
        def __init__(self) -> None:
            self.grid, self.time = np.zeros(5), 0.0

        def save(self) -> Any:
            return {"grid": self.grid, "time": self.time}

        def restore(self, kept: Any) -> None:
            self.grid, self.time = kept["grid"], kept["time"]

    sim = Simulation()
    ck = beo.checkpoint(save=sim.save, restore=sim.restore)
    sim.grid[2], sim.time = 7, 0.5
    assert ck.save()
    ck._close()
    other = Simulation()
    with beo.checkpoint(save=other.save, restore=other.restore) as ck:
        assert ck.restored and other.time == 0.5 and other.grid.tolist() == [0, 0, 7, 0, 0]
        other.grid[0] = 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"every": 0}, "every=0 is no interval"),
        ({"every": 2.5}, "every=2.5 is no interval"),
        ({"every": True}, "every=True is no interval"),
        ({"every": "often"}, "'often' is no duration"),
        ({"level": "raid9"}, "there is no level 'raid9'"),
        ({"level": "raid1"}, "level raid1 isn't possible"),
        ({"level": 5}, "there is no level 5"),
        ({"folder": ""}, "folder='' is no folder"),
        ({"folder": 3}, "folder=3 is no folder"),
        ({"fresh": "no"}, "fresh='no' is neither True nor False"),
        ({"fresh": None}, "fresh=None is neither True nor False"),
        ({"range": 1}, "'range' can't be the name of a state"),
        ({"_u": 1}, "'_u' can't be the name of a state"),
        ({"save": 3, "restore": 4}, "save= is no function"),
        ({"save": list}, "save= and restore= belong together"),
    ],
)
def test_wrong_options_are_refused_in_words(options: dict[str, Any], why: str, folder: Path) -> None:
    with pytest.raises(UsageError) as told:
        beo.checkpoint(**options)
    assert why in str(told.value)
    with beo.checkpoint(n=1) as ck:
        assert ck.n == 1, "a refusal holds no lock"
    assert not any(folder.iterdir())


@pytest.mark.parametrize("comm", [4, "world", {"u": 1}, np.zeros(3)])
def test_what_is_no_communicator_is_refused_in_words(comm: Any) -> None:
    with pytest.raises(UsageError, match=r"is no communicator .*beo.checkpoint\(comm, u=u, step=0\)"):
        beo.checkpoint(comm, step=0)


@pytest.mark.parametrize("wrong", [{"axis": "x"}, {"axis": 0.0}, {"halo": 0.5}, {"halo": True}])
def test_an_axis_or_a_halo_that_is_no_number_is_refused(wrong: dict[str, Any]) -> None:
    with beo.checkpoint(u=np.zeros(3)) as ck, pytest.raises(UsageError, match="is no whole number"):
        ck.shard("u", **wrong)


def test_a_masked_array_is_refused_as_its_mask_would_be_lost() -> None:
    with pytest.raises(UsageError, match=r"u can't be restored \(.*mask.*\): keep .*\.data and .*\.mask"):
        beo.checkpoint(u=np.ma.masked_less(np.arange(3.0), 1))


def test_a_checkpoint_that_has_ended_takes_no_other_and_says_so() -> None:
    ck = beo.checkpoint(step=0, every=1)
    ck.end()
    for used in (ck.save, ck.safe_point, lambda: list(ck.range(2))):
        with pytest.raises(UsageError, match="the checkpoint has ended"):
            used()


def test_files_of_the_users_own_in_a_folder_that_is_named_stay(tmp_path: Path) -> None:
    mine = [tmp_path / "a" / "results.csv", tmp_path / "b" / "1.csv", tmp_path / "b" / "more" / "x"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    with killed():
        program(ends_at=5, folder=tmp_path)
    assert program(folder=tmp_path)[2] == [5, 6, 7, 8, 9]
    assert set(files(tmp_path)) - {"lock"} == {str(path.relative_to(tmp_path)) for path in mine}


def test_an_array_of_another_shape_is_refused_with_the_cure(tmp_path: Path) -> None:
    ck = beo.checkpoint(u=np.zeros(3), folder=tmp_path / "own")
    assert ck.save()
    ck._close()
    with pytest.raises(UsageError, match=r"u of 3, and the program one of 4.*fresh=True"):
        beo.checkpoint(u=np.zeros(4), folder=tmp_path / "own")
    with beo.checkpoint(u=np.zeros(4), folder=tmp_path / "own", fresh=True) as ck:
        assert not ck.restored


def test_a_name_that_was_mistyped_is_an_error() -> None:
    with beo.checkpoint(step=0) as ck:
        with pytest.raises(AttributeError, match=r"beo.checkpoint\(..., stop=...\)"):
            ck.stop = 1
        with pytest.raises(AttributeError, match="has no 'stop'"):
            _ = ck.stop


def test_numbers_of_numpy_are_numbers() -> None:
    with beo.checkpoint(u=np.zeros(4), every=np.int64(2)).shard("u", axis=np.int64(0), halo=np.int64(1)) as ck:
        list(ck.range(4))
        assert ck.counters.saves == 2


def test_one_loop_is_counted() -> None:
    with beo.checkpoint(step=0) as ck:
        list(ck.range(2))
        with pytest.raises(UsageError, match="a checkpoint counts one loop"):
            ck.range(2)


def test_range_counts_as_the_built_in_one() -> None:
    for bounds in ((3,), (2, 5), (10, 0, -3), (0,)):
        with beo.checkpoint() as ck:
            assert list(ck.range(*bounds)) == list(range(*bounds))


def test_in_a_thread_it_works_without_signals() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(program()))
    thread.start()
    thread.join()
    assert results[0][1] == STEPS


# ---- when it is told


def test_sigusr1_takes_one_and_goes_on_and_sigterm_takes_one_and_halts() -> None:
    def run(ends: bool) -> tuple[list[int], Counters]:
        did = []
        with beo.checkpoint(step=0, every="1h") as ck:
            for ck.step in ck.range(20_000):
                did.append(ck.step)
                if ck.step == 100:
                    os.kill(os.getpid(), signal.SIGUSR1)
                if ck.step == 5000 and ends:
                    assert ck.counters.saves == 1
                    os.kill(os.getpid(), signal.SIGTERM)
        return did, ck.counters

    with pytest.raises(SystemExit) as told:
        run(ends=True)
    assert told.value.code == 85
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    did, counters = run(ends=False)
    assert 5000 < did[0] < 20_000 and did == list(range(did[0], 20_000))
    assert counters.saves == 0


def test_a_signal_during_a_checkpoint_leads_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from beo.checkpoints.store import Store

    save = Store.save

    def slow(self: Store, *args: Any) -> None:
        save(self, *args)
        if self.counters.saves == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Store, "save", slow)
    with beo.checkpoint(n=0, every="1h") as ck:
        os.kill(os.getpid(), signal.SIGUSR1)
        safe_points(ck)
        assert ck.counters.saves == 2


def safe_points(ck: Checkpoint, number: int = 3000) -> None:
    """So many that the ranks agree at some of them, however far apart."""
    for _ in range(number):
        ck.safe_point()


@pytest.fixture
def word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "word"
    write(path, b"")
    monkeypatch.setenv("BEO_CHECKPOINT_WORD", str(path))
    return path


def test_the_agents_word_takes_one_each_time_it_is_written_or_halts(word: Path) -> None:
    with beo.checkpoint(n=0, every="1h") as ck:
        for number in (1, 2):
            write(word, said(do="checkpoint", why="checkpoint"))
            os.utime(word, ns=(number, number))
            safe_points(ck)
            assert ck.counters.saves == number
        write(word, said(do="halt", why="drain", leaving=["node01"]))
        ck.n = 7
        with pytest.raises(SystemExit) as told:
            safe_points(ck)
        assert told.value.code == 85
    write(word, b"")
    with beo.checkpoint(n=0) as ck:
        assert ck.n == 7


# ---- when it fails


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A node's memory that is full for as long as the list isn't empty."""
    fallocate, is_full = os.posix_fallocate, [True]

    def refuse(fd: int, offset: int, length: int) -> None:
        if is_full:
            raise OSError(28, "No space left on device")
        fallocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    return is_full


def test_a_checkpoint_that_fails_is_told_once_and_the_program_goes_on_with_the_one_before(
    full: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    full.clear()
    with killed(), beo.checkpoint(u=np.zeros(8), big=b"", every=1) as ck:
        for step in ck.range(6):
            if step == 2:
                full.append(True)
                ck.big = bytes(1 << 16)  # needs more room than there is
            if step == 5:
                raise Killed
    told = capsys.readouterr().err
    assert told.count("wasn't written") == 1 and "no space left on device" in told and "goes on" in told
    with beo.checkpoint(u=np.zeros(8), big=b"") as ck:
        assert list(ck.range(6)) == [2, 3, 4, 5] and ck.big == b""


def test_a_checkpoint_that_comes_while_its_place_is_being_copied_is_taken_soon_after(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from beo.checkpoints.slots import Slots

    monkeypatch.setattr("beo.checkpoints.agreement.BUSY_S", 0.0)
    with beo.checkpoint(n=0, every="1h") as ck:
        with monkeypatch.context() as patch:
            patch.setattr(Slots, "lock", lambda *_: False)
            os.kill(os.getpid(), signal.SIGUSR1)
            safe_points(ck)
            assert ck.counters.saves == 0
        safe_points(ck)
        assert ck.counters.saves == 1
    assert capsys.readouterr().err == ""


def test_scrubbing_is_told_by_the_agent_and_mends_or_takes_another(
    word: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with beo.checkpoint(u=np.ones(1000), every="1h") as ck:
        assert ck.save()
        write(word, said(do="scrub", why="scrub"))
        safe_points(ck)
        assert (ck.counters.saves, capsys.readouterr().err) == (1, "")
        (image,) = Path(ck.folder).rglob("*.image")
        with image.open("r+b") as file:
            file.seek(4000)
            file.write(b"x")
        write(word, said(do="scrub", why="scrub"))
        os.utime(word, ns=(2, 2))
        safe_points(ck)
        assert ck.counters.saves == 2
        assert "a block of rank 0 is spoilt" in capsys.readouterr().err


def test_it_doesnt_halt_without_a_checkpoint_unless_it_is_told_again(
    full: list[bool], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beo.checkpoints.agreement.AGAIN_S", 0.0)
    with beo.checkpoint(n=0, every="1h") as ck:
        os.kill(os.getpid(), signal.SIGTERM)
        safe_points(ck)
        assert "it was to halt (SIGTERM), but has no checkpoint and goes on" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as told:
            safe_points(ck)
        assert told.value.code == 128 + 15, "it can't go on from anything"


def test_what_cant_be_pickled_any_more_is_told_and_the_program_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with beo.checkpoint(n=0) as ck:
        ck.n = (x for x in range(3))
        assert not ck.save()
        ck.n = 1
        assert ck.save()
    told = capsys.readouterr().err
    assert told.count("wasn't taken") == 1 and "generator" in told


# ---- run by hand


def by_hand(code: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("BEO_", "PMI"))}
    argv = [sys.executable, "-c", code, *words]
    return subprocess.run(
        argv, env={**clean, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True, timeout=60
    )


BY_HAND = """
import os, sys
import beo
assert "numpy" not in sys.modules
sys.modules["mpi4py"] = None  # as where it isn't installed
with beo.checkpoint(step=0, every=1) as ck:
    print(ck.folder, ck.restored)
    for ck.step in ck.range(5):
        if ck.step == 3 and os.environ.get("DIE"):
            os.kill(os.getpid(), 9)
    print("did", ck.step)
"""


def test_a_program_with_one_checkpoint_after_another_is_told_to_name_a_folder_for_each(tmp_path: Path) -> None:
    """Killed in its second part, its first one would go on with what the second one kept."""
    two = "import beo\nfor n in range(3):\n    with beo.checkpoint(n=n, **{}) as ck: pass\n"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "BEO_CHECKPOINT_DIR": str(tmp_path)}
    for options, times in (("{}", 1), ("{'folder': " + repr(str(tmp_path)) + " + f'/{n}'}", 0)):
        argv = [sys.executable, "-c", two.replace("{}", options)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
        assert done.stderr.count("it can't tell them apart") == times, done.stderr


def test_a_program_by_hand_finds_its_own_again_after_a_kill_by_its_words_and_directory(tmp_path: Path) -> None:
    mark = str(tmp_path)  # makes it a program that nobody else runs
    first = by_hand(BY_HAND, mark, DIE="1")
    assert first.returncode == -signal.SIGKILL, first.stderr
    other = by_hand(BY_HAND, mark, "other")
    again = by_hand(BY_HAND, mark)
    folder = first.stdout.split()[0]
    assert folder.startswith(f"/dev/shm/beo-{os.geteuid()}/")
    assert other.stdout.split()[0] != folder and other.stdout.split()[1] == "False"
    assert again.stdout.split() == [folder, "True", "did", "4"]
    assert not Path(folder).exists()


def test_a_folder_in_memory_that_others_may_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BEO_CHECKPOINT_DIR")
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / f"beo-{os.geteuid()}").mkdir()
    (tmp_path / f"beo-{os.geteuid()}").chmod(0o777)
    with pytest.raises(BeoError, match=r"it isn't yours alone.*chmod 700"):
        beo.checkpoint(n=1)


@pytest.mark.parametrize("number", range(5))
def test_the_programs_of_the_page_on_checkpoints_work(number: int, folder: Path) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "checkpoint.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 5
    printed = "9800000.0\n", "1.414213562373095\n", "10.0\n", "1024.0\n2048.0\n", ""
    done = by_hand(blocks[number], BEO_CHECKPOINT_DIR=str(folder))
    assert (done.returncode, done.stdout) == (0, printed[number]), done.stderr
    assert not list(folder.iterdir())


def test_importing_beo_stays_free() -> None:
    done = by_hand("import sys, beo; print(sorted({'numpy', 'mpi4py', 'typing', 'pickle'} & set(sys.modules)))")
    assert done.stdout == "[]\n"
    assert "checkpoint" in dir(beo) and callable(beo.checkpoint)
