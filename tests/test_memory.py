"""What an agent finds when it starts again: after a kill at any byte, a boot, damage, or a long life."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beo import messages as ms
from beo.spec import JobSpec
from beo.worker import memory
from beo.worker.memory import Memory

BOOT = "boot-1"


def order(job: int, index: int = 0, **spec: object) -> ms.Start:
    """The START of a job's first attempt."""
    wish = JobSpec(argv=("true",), cwd="/", **spec)  # type: ignore[arg-type]
    peer = ms.Peer("n1", "inc", "n1:7", "k", 0, 1)
    return ms.Start(3, "inc", index or job * 10, job, 1, "c", "nonce", "ada", 0, 0, (), wish, (peer,))


class Folder:
    """A node's folder, and the agents that open it one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: list[Memory] = []

    def open(self, boot: str = BOOT) -> Memory:
        """Open the memory, with a fresh name at hand, as an agent does when it starts."""
        self.opened.append(Memory(self.path, boot, f"fresh-{len(self.opened)}"))
        return self.opened[-1]

    def state(self) -> tuple[str, set[tuple[int, int, int]], list[int]]:
        """What an agent would find now: its incarnation, what was seen, the jobs of the orders."""
        found = self.open()
        return found.identity.incarnation, set(found.seen), [an_order.job for an_order in found.orders()]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "n1")
    yield made
    for one in made.opened:
        one.close()


def test_the_first_agent_of_a_node_is_fresh_and_knows_nothing(folder: Folder) -> None:
    assert folder.state() == ("fresh-0", set(), [])


def test_the_next_agent_knows_what_the_last_one_wrote_down(folder: Folder) -> None:
    first = folder.open()
    first.remember(order(1))
    first.remember(order(2, env={"A": "ü"}))
    first.saw(0, 3, 1)
    first.drop(1, 1)
    first.obey(7)
    second = folder.open()
    assert second.identity == first.identity and second.identity.epoch == 7
    assert second.seen == ((10, 1, 1), (20, 2, 1), (0, 3, 1))
    assert second.orders() == (order(2, env={"A": "ü"}),)


def test_a_boot_forgets_everything_but_the_epoch(folder: Folder) -> None:
    first = folder.open()
    first.remember(order(1))
    first.obey(7)
    second = folder.open("boot-2")
    assert (second.identity.incarnation, second.identity.boot, second.identity.epoch) == ("fresh-1", "boot-2", 7)
    assert not second.seen and not second.orders()
    assert folder.open("boot-2").identity.incarnation == "fresh-1"


def test_a_new_incarnation_has_seen_what_it_is_told(folder: Folder) -> None:
    first = folder.open()
    for job in (1, 2):
        first.remember(order(job))
    first.drop(1, 1)
    first.reborn("next", {(2, 1): 20})
    first.saw(30, 3, 1)
    assert folder.state() == ("next", {(20, 2, 1), (30, 3, 1)}, [2])


# ---- killed at any moment


def test_a_torn_line_of_seen_is_cut_and_everything_before_it_stands(folder: Folder) -> None:
    first = folder.open()
    first.saw(11, 1, 1)
    whole = len((folder.path / "seen").read_bytes())
    first.saw(22, 2, 123)
    data = (folder.path / "seen").read_bytes()
    for length in range(whole, len(data)):
        (folder.path / "seen").write_bytes(data[:length])
        again = folder.open()
        assert (again.identity.incarnation, again.seen) == ("fresh-0", ((11, 1, 1),))
        again.saw(33, 3, 1)  # isn't glued to what was torn
        assert folder.open().seen == ((11, 1, 1), (33, 3, 1))


@pytest.mark.parametrize("act", ["remember", "drop", "reborn", "obey", "compact", "introduce", "boot", "damage"])
def test_an_agent_killed_at_any_step_leaves_a_memory_that_can_be_trusted(
    folder: Folder, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same incarnation is never found with less seen than was written down for it, nor a torn order."""
    monkeypatch.setattr(memory, "SEEN_LINES_MAX", 1)
    first = folder.open()
    first.introduce("one address", "unused")
    for job in (1, 2):
        first.remember(order(job))
    for job in (3, 4, 5):
        first.saw(job * 10, job, 1)
    before = {(10, 1, 1), (20, 2, 1), (30, 3, 1), (40, 4, 1), (50, 5, 1)}
    image = folder.path.with_name("image")
    shutil.copytree(folder.path, image)

    class Killed(Exception):
        pass

    def carry_out(boot: str) -> None:
        agent = folder.open(boot)
        match act:
            case "remember":
                agent.remember(order(6))
            case "drop":
                agent.drop(1, 1)
            case "reborn":
                agent.reborn("next", {(1, 1): 10, (2, 1): 20})
            case "obey":
                agent.obey(9)
            case "compact":
                agent.compact({(1, 1): 10, (2, 1): 20})
            case "introduce":
                agent.introduce("another address", "next")

    real = {name: getattr(os, name) for name in ("replace", "write", "truncate", "unlink")}
    step = 0
    while True:
        shutil.rmtree(folder.path)
        shutil.copytree(image, folder.path)
        if act == "damage":
            (folder.path / "identity.json").write_bytes(b"\0")
        steps = iter(range(step, -1, -1))

        def killable(name: str, steps: Iterator[int] = steps) -> object:
            def call(*arguments: object, **more: object) -> object:
                if next(steps) == 0:
                    raise Killed
                return real[name](*arguments, **more)

            return call

        killed = False
        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(os, name, killable(name))
            try:
                carry_out("boot-2" if act == "boot" else BOOT)
            except Killed:
                killed = True
        found = folder.open("boot-2" if act == "boot" else BOOT)
        assert all(an_order == order(an_order.job) for an_order in found.orders())
        seen = set(found.seen)
        if found.identity.incarnation == "fresh-0":
            needed = {(10, 1, 1), (20, 2, 1)} if act == "compact" else before
            assert needed <= seen and act not in ("boot", "damage")
            assert act == "drop" or {1, 2} <= {an_order.job for an_order in found.orders()}
        assert {(o.index, o.job, o.attempt) for o in found.orders()} <= seen
        if not killed:
            break
        step += 1
    assert step


# ---- damage


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"[]",
        b"{}",
        b'{"incarnation": "", "boot": "boot-1"}',
        b'{"incarnation": 5, "boot": "boot-1"}',
        b'{"incarnation": "\xff", "boot": "boot-1"}',
        b'{"incarnation": "inc", "boot": "boot-1", "epoch": -1}',
        b'{"incarnation": "inc", "boot": "boot-1", "epoch": 1e99}',
        b'{"incarnation": "inc", "boot": "boot-1", "epoch": 99999999999999999999}',
        b'{"incarnation": "' + b"x" * 100 + b'", "boot": "boot-1"}',
        b" " * (memory.IDENTITY_SIZE_MAX_BYTES + 1),
    ],
)
def test_a_damaged_identity_is_replaced_and_the_orders_stand(folder: Folder, content: bytes) -> None:
    folder.open().remember(order(1))
    (folder.path / "identity.json").write_bytes(content)
    assert folder.state() == ("fresh-1", {(10, 1, 1)}, [1])
    assert folder.state() == ("fresh-1", {(10, 1, 1)}, [1])


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"1 2\n",
        b"1 2 3 4\n",
        b"-1 2 3\n",
        b"1 2 3\r\n",
        "1 2 ²\n".encode(),
        b"1 2 " + b"9" * 5_000 + b"\n",
        b"\0\n",
    ],
)
def test_a_memory_of_attempts_that_is_not_what_was_written_ends_the_incarnation(folder: Folder, content: bytes) -> None:
    first = folder.open()
    first.remember(order(1))
    first.saw(20, 2, 1)
    with (folder.path / "seen").open("ab") as file:
        file.write(content)
    assert folder.state() == ("fresh-1", {(10, 1, 1)}, [1])


def test_a_lost_memory_of_attempts_ends_the_incarnation(folder: Folder) -> None:
    folder.open().remember(order(1))
    (folder.path / "seen").unlink()
    assert folder.state() == ("fresh-1", {(10, 1, 1)}, [1])


def test_a_memory_of_attempts_beyond_all_bounds_is_not_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SEEN_SIZE_MAX_BYTES", 100)
    first = folder.open()
    for job in range(30):
        first.saw(job, job, 1)
    assert folder.state() == ("fresh-1", set(), [])


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\xc1" * 50, ms.encode(order(1))[:-1], ms.encode(order(2)), b'"\xff"']
)
def test_an_order_that_cannot_be_read_is_dropped_and_stays_seen(folder: Folder, content: bytes) -> None:
    first = folder.open()
    for job in (1, 3):
        first.remember(order(job))
    (folder.path / "orders" / "1.1").write_bytes(content)
    assert folder.state() == ("fresh-0", {(10, 1, 1), (30, 3, 1)}, [3])
    assert [path.name for path in (folder.path / "orders").iterdir()] == ["3.1"]


def test_foreign_things_in_the_folder_harm_nobody(folder: Folder) -> None:
    first = folder.open()
    first.remember(order(1))
    (folder.path / "orders" / "core.dump").mkdir()
    (folder.path / "orders" / "README").write_text("?")
    assert folder.state() == ("fresh-0", {(10, 1, 1)}, [1])
    assert folder.open("boot-2").orders() == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(name=st.sampled_from(["identity.json", "seen", "orders/1.1"]), content=st.binary(max_size=60))
def test_no_content_of_its_files_kills_an_agent(folder: Folder, name: str, content: bytes) -> None:
    folder.open().remember(order(1))
    (folder.path / name).write_bytes(content)
    folder.state()


def test_a_full_disk_is_an_error_and_leaves_a_memory_that_can_be_trusted(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = folder.open()
    first.saw(11, 1, 1)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
        with pytest.raises(OSError, match="No space left"):
            first.remember(order(2))
    assert folder.state() == ("fresh-0", {(11, 1, 1)}, [])


# ---- a long life


def test_compaction_keeps_what_matters_and_the_file_short(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SEEN_LINES_MAX", 100)
    first = folder.open()
    seen = {(0, 1): 0}  # of an index that is not known
    first.saw(0, 0, 1)
    for job in range(1, 1_000):
        first.remember(order(job))
        first.drop(job, 1)
        seen[job, 1] = job * 10
        seen = {key: index for key, index in seen.items() if index == 0 or index > (job - 5) * 10}
        first.compact(seen)
        assert len((folder.path / "seen").read_bytes().splitlines()) <= 100
    found = {(job, attempt): index for index, job, attempt in folder.open().seen}
    assert seen.items() <= found.items()


def test_compaction_waits_while_everything_still_matters(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SEEN_LINES_MAX", 10)
    first = folder.open()
    seen = {}
    for job in range(50):
        first.saw(job, job, 1)
        seen[job, 1] = job
        inode = (folder.path / "seen").stat().st_ino
        first.compact(seen)
        assert (folder.path / "seen").stat().st_ino == inode


# ---- what the head was told


def test_an_incarnation_that_was_introduced_otherwise_is_replaced_and_keeps_its_orders(folder: Folder) -> None:
    first = folder.open()
    first.introduce("10.0.0.1:7 pidns", "x")
    first.remember(order(1))
    first.saw(20, 2, 1)
    second = folder.open()
    second.introduce("10.0.0.1:7 pidns", "y")
    assert second.identity.incarnation == "fresh-0"
    second.introduce("10.0.0.1:7 subreaper", "z")
    assert (second.identity.incarnation, second.seen) == ("z", ((10, 1, 1),))
    assert folder.state() == ("z", {(10, 1, 1)}, [1])


def test_nothing_in_the_folder_is_for_other_eyes(folder: Folder) -> None:
    first = folder.open()
    first.remember(order(1, env={"PASSWORD": "x"}))
    for path in folder.path.rglob("*"):
        assert not path.stat().st_mode & 0o077, path
    assert msgspec.json.decode((folder.path / "identity.json").read_bytes())["boot"] == BOOT
