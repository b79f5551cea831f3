"""The resident: a verb that goes through it is the same verb, and whoever is killed, no verb is done twice."""

import contextlib
import os
import posix
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beo import front
from beo import messages as m
from beo.lockfile import holder
from tests.cluster import ROOT, is_alive, running, wait_for
from tests.fake_head import FakeHead, view

BEO = [sys.executable, "-m", "beo.front"]
PATIENCE_S = 30
MEMORY_MAX_BYTES = 24 << 20  # resident in the process that forks; what it forks in a moment

Answer = tuple[int, bytes, bytes]


class Place:
    """Where one test's residents live, and what it knows of them."""

    def __init__(self, folder: Path, cluster: Path) -> None:
        self.folder = folder / "beo"
        self.cluster = cluster
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("BEO_")}
        self.env |= {"XDG_RUNTIME_DIR": str(folder), "BEO_DIR": str(cluster), "PYTHONPATH": str(ROOT)}

    @property
    def path(self) -> Path:
        """The socket of the resident of this interpreter and this beo."""
        return self.folder / front.name()

    def start(self, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start `beo WORDS`, by way of the resident if there is one."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*BEO, *words], **{**pipes, "env": self.env, "cwd": self.cluster, **options})

    def beo(self, *words: str, **options: Any) -> Answer:
        """Run `beo WORDS` to its end: exit code, stdout, stderr."""
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def through(self, *words: str, **options: Any) -> Answer:
        """The same, and be sure that it went through the resident."""
        before = self.children()
        answer = self.beo(*words, **options)
        wait_for(lambda: not before <= self.children(), "a child of the resident has done it, and ended", 5.0)
        wait_for(lambda: len(self.children()) == len(before), "the next is there")
        return answer

    def directly(self, *words: str, **options: Any) -> Answer:
        """The same without the resident."""
        return self.beo(*words, **{"env": {**self.env, "BEO_RESIDENT": "0"}, **options})

    def pid(self) -> int | None:
        """The resident that holds the lock."""
        return holder(Path(f"{self.path}.lock"))

    def children(self, pid: int | None = None) -> set[int]:
        """The processes that wait for a front or have one."""
        pid = pid or self.pid()
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    def await_resident(self) -> int:
        """Return when a resident has its children."""
        pid = wait_for(self.pid, "a resident holds the lock")
        assert pid
        wait_for(lambda: self.path.exists() and len(self.children(pid)) == 3, "it has children")
        return pid


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))  # short, as a socket's path has to be
    yield path
    shutil.rmtree(path)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[FakeHead]:
    head = FakeHead(tmp_path)
    head.on(m.ListJobs, m.JobsAre((view(1, "running", started_s=0.0), view(2, "queued"))))
    head.on(m.Submit, m.SubmittedIs(7))
    yield head
    head.stop()


@pytest.fixture
def alone(folder: Path, head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place without a resident; what a test leaves there is ended."""
    monkeypatch.setitem(posix.environ, b"XDG_RUNTIME_DIR", os.fsencode(folder))
    place = Place(folder, head.home.path)
    yield place
    if pid := place.pid():
        family = {pid, *place.children(pid)}
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not any(map(is_alive, family)), "the resident and its children have ended")


@pytest.fixture
def place(alone: Place) -> Place:
    """A place with a resident that is ready."""
    assert alone.beo("--version")[0] == 0
    alone.await_resident()
    return alone


# ---- the same verb --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["queue"],
        ["queue", "--json"],
        ["queue", "--format", "nam"],
        ["submit", "--help"],
        ["submit", "-q", "true"],
        ["submit", "-n", "0", "true"],
        ["wait", "1", "-t", "0"],
        [],
        ["--help"],
        ["--vers"],
    ],
)
def test_a_verb_prints_and_exits_as_it_does_without_the_resident(
    place: Place, head: FakeHead, words: list[str]
) -> None:
    head.on(m.WaitJobs, m.JobsAre((view(1, "running"),)))
    assert place.through(*words) == place.directly(*words)


def test_a_verb_gets_directory_environment_and_user_of_its_front(place: Place, head: FakeHead, tmp_path: Path) -> None:
    sent = []
    env = {os.fsencode(k): os.fsencode(v) for k, v in place.env.items()}
    env |= {b"WORD": "grün".encode(), b"BYTES": b"\xff", b"EMPTY": b"", b"LINES": b"a\nb=c"}
    (tmp_path / "sub").mkdir()
    for beo in (place.through, place.directly):
        without = {b"BEO_RESIDENT": b"0"} if beo == place.directly else {}
        assert place.beo("submit", "-q", "sh", "-c", "ü", cwd=tmp_path / "sub", env={**env, **without})[0] == 0
        sent.append(head.messages(m.Submit)[-1])
    first, second = sent
    assert isinstance(first, m.Submit) and isinstance(second, m.Submit)
    assert (first.spec, first.uid, first.gid, first.groups) == (second.spec, second.uid, second.gid, second.groups)
    assert first.spec.cwd == str(tmp_path / "sub")
    assert (first.spec.env["WORD"], first.spec.env["EMPTY"], first.spec.env["LINES"]) == ("grün", "", "a\nb=c")
    assert "BYTES" not in first.spec.env, "what is no text is left out"


def test_a_verb_whose_folder_was_removed_says_what_it_says_without_the_resident(place: Place, tmp_path: Path) -> None:
    said = []
    for extra in ("", "BEO_RESIDENT=0"):
        (tmp_path / "gone").mkdir()
        script = f"cd gone; rmdir ../gone; {extra} exec {sys.executable} -m beo.front submit true"
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=place.env, capture_output=True, timeout=60)
        said.append((done.returncode, done.stdout, done.stderr))
    assert said[0] == said[1]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_verb_without_some_of_its_descriptors_ends_as_it_does_without_the_resident(place: Place, closed: str) -> None:
    for verb in ("queue", "queue nothing"):
        said = []
        for extra in ("", "BEO_RESIDENT=0"):
            script = f"{extra} exec {sys.executable} -m beo.front {verb} {closed}"
            done = subprocess.run(["sh", "-c", script], env=place.env, capture_output=True, timeout=60)
            said.append((done.returncode, done.stdout, done.stderr))
        assert said[0] == said[1]


def test_an_environment_of_two_megabytes_goes_through(place: Place, head: FakeHead) -> None:
    env = {**place.env, **{f"BIG{number}": "x" * 120_000 for number in range(14)}}
    told = place.beo("submit", "-q", "true", env=env)
    assert told == place.directly("submit", "-q", "true", env={**env, "BEO_RESIDENT": "0"})


def test_many_verbs_at_once_are_all_done(place: Place, head: FakeHead) -> None:
    processes = [place.start("submit", "-q", "true") for _ in range(100)]
    answers = [(*process.communicate(timeout=PATIENCE_S), process.returncode) for process in processes]
    assert answers == [(b"7\n", b"", 0)] * 100
    keys = [message.key for message in head.messages(m.Submit) if isinstance(message, m.Submit)]
    assert len(keys) == len(set(keys)) == 100, "each once"


def test_a_terminal_is_a_terminal_and_a_pipe_is_a_pipe(place: Place) -> None:
    ours, theirs = pty.openpty()
    assert place.through("queue", stdout=theirs)[0] == 0
    assert b"\r\n" in os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)


# ---- signals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(place: Place, head: FakeHead) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """Starts a `beo wait` through the resident that nobody answers, and returns when the head has its question."""
    head.on(m.WaitJobs, lambda _: None)
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        asked = len(head.messages(m.WaitJobs))
        started.append(place.start("wait", "1", process_group=0))
        head.wait_for(lambda: len(head.messages(m.WaitJobs)) > asked)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def server_of(place: Place) -> int:
    """The child that serves the only verb under way: the one that has the front's descriptors."""
    wait_for(lambda: len(place.children()) == 4, "one at work, and three ready")
    (server,) = wait_for(
        lambda: [pid for pid in place.children() if os.readlink(f"/proc/{pid}/fd/1") != os.devnull],
        "one has the front's output",
    )
    return server


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGINT"])
def test_a_signal_ends_front_and_verb_as_it_ends_the_verb_alone(
    place: Place, waiting: Callable[[], "subprocess.Popen[bytes]"], name: str
) -> None:
    number = getattr(signal, name)
    process = waiting()
    server = server_of(place)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130 if name == "SIGINT" else -number, b"")
    wait_for(lambda: not is_alive(server), "the verb has ended too")


def test_a_signal_that_is_ignored_stays_ignored(place: Place, head: FakeHead) -> None:
    head.on(m.WaitJobs, lambda _: None)
    process = place.start("wait", "1", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    head.wait_for(lambda: bool(head.messages(m.WaitJobs)))
    server = server_of(place)
    process.send_signal(signal.SIGHUP)
    os.kill(server, signal.SIGHUP)
    head.on(m.WaitJobs, m.JobsAre((view(1, "failed", 3),)))
    assert process.wait(PATIENCE_S) == 3
    process.communicate()


def test_a_verb_stops_and_goes_on_with_its_front(
    place: Place, head: FakeHead, waiting: Callable[[], "subprocess.Popen[bytes]"]
) -> None:
    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    process = waiting()
    server = server_of(place)
    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: state(process.pid) == state(server) == "T", "both have stopped")
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: "T" not in state(process.pid) + state(server), "both go on")
    head.on(m.WaitJobs, m.JobsAre((view(1, "failed", 3),)))
    assert process.wait(PATIENCE_S) == 3


def test_a_broken_pipe_ends_it_silently_by_the_signal(place: Place) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    answer = place.through("queue", stdout=writing)
    os.close(writing)
    assert (answer[0], answer[2]) == (-signal.SIGPIPE, b"")


# ---- who is killed, and when ----------------------------------------------------------------------------------------


def test_a_killed_front_ends_its_verb(place: Place, waiting: Callable[[], "subprocess.Popen[bytes]"]) -> None:
    process = waiting()
    server = server_of(place)
    process.kill()
    wait_for(lambda: not is_alive(server), "the verb has ended too")


def test_a_killed_resident_leaves_the_verbs_that_are_under_way_alone(
    place: Place, head: FakeHead, waiting: Callable[[], "subprocess.Popen[bytes]"]
) -> None:
    process = waiting()
    pid = place.pid()
    assert pid
    others = place.children() - {server_of(place)}
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, others)), "the children that had nothing to do have ended")
    head.on(m.WaitJobs, m.JobsAre((view(1, "failed", 3),)))
    assert process.wait(PATIENCE_S) == 3
    assert place.beo("queue", "-q") == (0, b"1\n2\n", b""), "without a resident it is done all the same"


def test_a_killed_child_is_told_and_its_front_ends_as_it_did(
    place: Place, waiting: Callable[[], "subprocess.Popen[bytes]"]
) -> None:
    process = waiting()
    os.kill(server_of(place), signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (-signal.SIGKILL, b"beo: what did this was ended by signal 9\n")


def test_when_all_is_killed_at_once_the_front_says_that_it_does_not_know(
    place: Place, waiting: Callable[[], "subprocess.Popen[bytes]"]
) -> None:
    process = waiting()
    pid = place.pid()
    assert pid
    server = server_of(place)
    os.kill(pid, signal.SIGSTOP)  # so that it can't tell of its child's end
    os.kill(server, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 70
    assert err.startswith(b"beo: what did this has gone (the resident process was killed), so it may be done or not")


def fake_resident(place: Place, answer: Callable[[socket.socket], None]) -> threading.Thread:
    """Listen where the resident would, and answer one front."""
    place.folder.mkdir(mode=0o700)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place.path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 20)
            answer(connection)
        listener.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def take(connection: socket.socket) -> None:
    """Say that the verb is going to be done here."""
    socket.send_fds(connection, [front.TAKEN], [os.pidfd_open(os.getpid())])
    assert connection.recv(1) == front.GO


@pytest.mark.parametrize(
    "answer",
    [
        lambda connection: None,
        lambda connection: connection.send(front.REFUSED),
        lambda connection: connection.send(front.TAKEN),  # without a process
        lambda connection: connection.recv(1),  # silence, until the front has lost its patience
    ],
    ids=["dies", "refuses", "lies", "hangs"],
)
def test_what_the_resident_has_not_taken_the_front_does_itself_and_once(
    alone: Place, head: FakeHead, answer: Callable[[socket.socket], None]
) -> None:
    thread = fake_resident(alone, answer)
    assert alone.beo("submit", "true") == (0, b"job 7\n", b"")
    thread.join()
    assert len(head.messages(m.Submit)) == 1
    alone.path.unlink()


def test_what_the_resident_has_taken_the_front_never_does_again(alone: Place, head: FakeHead) -> None:
    thread = fake_resident(alone, take)
    code, out, err = alone.beo("submit", "true")
    thread.join()
    assert (code, out, err[:31]) == (70, b"", b"beo: what did this has gone (th")
    assert not head.messages(m.Submit)
    alone.path.unlink()


@pytest.mark.parametrize(("word", "code"), [(front.EXITED + b"\x2a", 42), (front.SIGNALLED + b"\x0f", -15)])
def test_the_front_ends_as_it_is_told(alone: Place, word: bytes, code: int) -> None:
    def answer(connection: socket.socket) -> None:
        take(connection)
        connection.send(word)

    thread = fake_resident(alone, answer)
    assert alone.beo("queue")[0] == code
    thread.join()
    alone.path.unlink()


def hand_over(place: Place, *argv: str, body: bytes | None = None, size: int | None = None) -> socket.socket:
    """Send a front's request, or something like it."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(place.path))
    body = front.request(list(argv), "12") if body is None else body
    here, null = os.open(place.cluster, os.O_PATH), os.open("/dev/null", os.O_RDWR)
    length = (len(body) if size is None else size).to_bytes(8, sys.byteorder)
    socket.send_fds(connection, [length + body], [here, null, null])
    os.close(here)
    os.close(null)
    return connection


def test_a_front_that_has_gone_before_it_said_go_has_nothing_done(
    place: Place, head: FakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(posix.environ, b"BEO_DIR", os.fsencode(place.cluster))
    with hand_over(place, "submit", "true") as connection:
        data, (process,), _, _ = socket.recv_fds(connection, 1, 1)
        assert data == front.TAKEN
    wait_for(lambda: not is_alive_by(process), "the child has ended")
    with hand_over(place, "submit", "true") as connection:
        socket.recv_fds(connection, 1, 1)
        connection.send(front.GO)
        assert connection.recv(2) == front.EXITED + b"\0"
    assert len(head.messages(m.Submit)) == 1, "of the second alone"
    os.close(process)


def is_alive_by(pidfd: int) -> bool:
    """Whether a process lives, by its pidfd."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_no_request_is_dropped_and_the_next_is_served(place: Place) -> None:
    socket.socket(socket.AF_UNIX).connect(str(place.path))
    for body, size in ((b"", 0), (b"x", 1 << 40), (b"x\0y", None), (b"1\0", None), (b"1\0" + front.facts(), None)):
        with hand_over(place, body=body, size=size) as connection:
            assert connection.recv(1) in (b"", front.REFUSED), body
    with hand_over(place, body=b"abc", size=1000) as connection:  # the rest never comes
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    wait_for(lambda: len(place.children()) == 3, "as many children as before")
    assert place.through("queue", "-q") == (0, b"1\n2\n", b"")


# ---- its own life ---------------------------------------------------------------------------------------------------


def test_the_first_verb_starts_a_resident_and_many_at_once_start_one(alone: Place) -> None:
    processes = [alone.start("queue", "-q") for _ in range(10)]
    assert {process.communicate(timeout=PATIENCE_S)[0] for process in processes} == {b"1\n2\n"}
    alone.await_resident()
    mark = os.fsencode(alone.path)
    family = {alone.pid() or 0, *alone.children()}

    def strangers() -> set[int]:
        return {int(p.name) for p in Path("/proc").glob("[0-9]*") if mark in _command(p)} - family

    wait_for(lambda: not strangers(), "those that were too many have ended")


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_nobody_else_can_get_at_it(place: Place) -> None:
    assert place.folder.stat().st_mode & 0o777 == 0o700
    place.folder.chmod(0o755)
    before = place.children()
    assert place.beo("queue", "-q") == (0, b"1\n2\n", b""), "a folder that is open to others isn't used"
    assert place.children() == before
    place.folder.chmod(0o700)
    assert place.through("queue", "-q")[0] == 0


def test_the_resident_stays_small_and_lets_nothing_of_its_starter_live_on(place: Place) -> None:
    pid = place.pid()
    status = Path(f"/proc/{pid}/status").read_text()
    (size_kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    assert int(size_kib) * 1024 < MEMORY_MAX_BYTES
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    assert str(place.cluster).encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    assert os.getsid(pid or 0) == pid


def test_verbs_of_a_job_and_those_that_mean_this_process_are_not_handed_over(place: Place) -> None:
    before = place.children()
    place.beo("queue", env={**place.env, "BEO_JOB_ID": "1"})
    place.beo("resident")
    place.beo("quue")
    place.beo("run", "--pty", "true")
    assert place.children() == before


def test_resident_tells_and_stops(place: Place) -> None:
    pid = place.pid()
    code, out, err = place.beo("resident")
    assert (code, err) == (0, b"") and out.startswith(b"process %d, 3 more that wait or work, " % (pid or 0))
    assert place.beo("resident", "--stop") == (0, b"process %d takes no more verbs\n" % (pid or 0), b"")
    wait_for(lambda: not is_alive(pid or 0), "it has ended")
    assert not place.path.exists()
    assert place.beo("resident")[0] == 2


def test_a_resident_that_is_stopped_finishes_what_is_under_way(
    place: Place, head: FakeHead, waiting: Callable[[], "subprocess.Popen[bytes]"]
) -> None:
    process = waiting()
    server_of(place)
    pid = place.pid() or 0
    place.beo("resident", "--stop")
    wait_for(lambda: len(place.children(pid)) == 1, "only the one that works is left")
    head.on(m.WaitJobs, m.JobsAre((view(1, "failed", 3),)))
    assert process.wait(PATIENCE_S) == 3
    wait_for(lambda: not is_alive(pid), "then it has ended")


def test_a_resident_that_nobody_uses_ends(folder: Path) -> None:
    (folder / "beo").mkdir(mode=0o700)
    code = "from beo import resident; resident.IDLE_S = resident.LOOK_S = 0.1; resident.main()"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder / "beo" / "socket")], cwd=ROOT)
    assert process.wait(PATIENCE_S) == 0
    assert [path.name for path in (folder / "beo").iterdir()] == ["socket.lock"]


def test_changed_code_is_never_served_by_the_old_resident(alone: Place, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "beo", folder / "lib" / "beo", ignore=shutil.ignore_patterns("__pycache__"))
    alone.env["PYTHONPATH"] = str(folder / "lib")

    def residents() -> list[int]:
        return [pid for lock in alone.folder.glob("*.lock") if (pid := holder(lock))]

    alone.beo("--version")
    (old,) = wait_for(residents, "a resident")
    wait_for(lambda: len(alone.children(old)) == 3, "it has children")
    init = folder / "lib" / "beo" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "changed-'))
    assert alone.beo("--version")[1].startswith(b"beo changed-")
    wait_for(lambda: not is_alive(old), "the old one has ended")

    def next_one() -> list[int]:
        for lock in alone.folder.glob("*.lock"):
            os.utime(lock, (0, 0))  # as if it had begun long ago
        alone.beo("--version")
        return residents()

    (new,) = wait_for(next_one, "another takes over")
    family = {new, *alone.children(new)}
    os.kill(new, signal.SIGTERM)
    wait_for(lambda: not any(map(is_alive, family)), "it has ended")


# ---- with a real cluster --------------------------------------------------------------------------------------------


def test_run_through_the_resident_has_input_output_signals_and_exit_code(
    alone: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running(tmp_path_factory.mktemp("run") / "beo") as cluster:
        alone.env["BEO_DIR"] = str(cluster.home.path)
        alone.beo("--version")
        alone.await_resident()
        assert alone.through("run", "sh", "-c", "cat; echo bad >&2; exit 3", stdin=_pipe(b"a\nb\n")) == (
            3,
            b"a\nb\n",
            b"bad\n",
        )
        ours, theirs = pty.openpty()
        process = alone.start("run", "sh", "-c", "read word; echo got $word; cat; exit 4", stdin=theirs)
        os.write(ours, b"typed\n")
        assert process.stdout and process.stdout.readline() == b"got typed\n"
        os.write(ours, b"more\n\x04")
        assert process.stdout.read() == b"more\n"
        assert process.wait(PATIENCE_S) == 4
        process = alone.start("run", "sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done")
        assert process.stdout and process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 9
        os.close(ours)
        os.close(theirs)


def _pipe(data: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading
