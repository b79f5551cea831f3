"""Programs that know nothing move between hosts with their output stream whole, or run on and it is said why."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.errors import EXIT_HALTED
from beo.worker import criu
from tests.cluster import wait_for
from tests.doses import dose
from tests.sandboxes import Sandbox, holder_of
from tests.wardens import Agent, alive

pytestmark = pytest.mark.root

NUMPY = """
import numpy, time
x = numpy.random.default_rng(1).random(1 << 18)
for turn in range(700):
    x = numpy.sqrt(x * x + 1e-3)
    print(turn, float(x.sum()).hex(), flush=True)
"""
PROCESSES = """
import multiprocessing as mp, numpy, os
from multiprocessing import shared_memory
def work(name, lock, inbox, outbox):
    own = shared_memory.SharedMemory(name)
    cells = numpy.ndarray((1 << 16,), dtype="i8", buffer=own.buf)
    while (turn := inbox.recv()) is not None:
        with lock:
            cells += turn
        outbox.send((turn, int(cells[-1])))
    del cells
    own.close()
if __name__ == "__main__":
    mp.set_start_method("fork")
    shared = shared_memory.SharedMemory(create=True, size=8 << 16)
    lock, pairs, children = mp.Lock(), [], []
    for _ in range(3):
        ours, theirs = mp.Pipe(), mp.Pipe()
        children.append(mp.Process(target=work, args=(shared.name, lock, ours[0], theirs[1])))
        children[-1].start()
        pairs.append((ours[1], theirs[0]))
    for turn in range(1500):
        for send, receive in pairs:
            send.send(turn)
            print(*receive.recv(), flush=True)
    for send, _ in pairs:
        send.send(None)
    for child in children:
        child.join()
    shared.close()
    shared.unlink()
"""
PIPELINE = (
    "seq 1 60000 | while read x; do echo $((x * 7919 % 60013)); done | tee >(sort -n | head -9000 >&2) | rev | cat -n"
)
PROGRAMS = {
    "numpy": [sys.executable, "-c", NUMPY],
    "processes": [sys.executable, "-c", PROCESSES],
    "pipeline": ["bash", "-c", PIPELINE],
}
COUNTING = "import time\nfor n in range(10**6):\n print(n, flush=True)\n time.sleep(0.001)\n"

Two = tuple[Sandbox, Sandbox]


@pytest.fixture(scope="module", autouse=True)
def works() -> None:
    """Skip where there is no CRIU, with what brings it."""
    try:
        criu.find()
    except criu.NoCriu as error:
        pytest.skip(str(error))


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    """Two hosts that share nothing but the test's folder."""
    hosts = Sandbox("one", tmp_path), Sandbox("two", tmp_path)
    yield hosts
    for host in hosts:
        host.crash()


class Reading:
    """What a held program prints, read in the background as a warden would."""

    def __init__(self, started: subprocess.Popen[bytes], folder: Path) -> None:
        self.started = started
        self._files = [folder / f"{started.pid}.{name}" for name in ("out", "err")]
        self._cats = []
        for stream, path in zip((started.stdout, started.stderr), self._files, strict=True):
            assert stream
            with path.open("wb") as file:
                self._cats.append(subprocess.Popen(["cat"], stdin=stream, stdout=file))
            stream.close()

    def rest(self) -> tuple[bytes, bytes]:
        """All of both streams, when nobody is left to write them."""
        for cat in self._cats:
            cat.wait(60)
        self.started.wait(60)
        if self.started.stdin:
            self.started.stdin.close()
        return self._files[0].read_bytes(), self._files[1].read_bytes()

    @property
    def sofar(self) -> bytes:
        """What has come of stdout by now."""
        return self._files[0].read_bytes()


TRIES = 3


def undisturbed(argv: list[str]) -> tuple[bytes, bytes, float]:
    """Both streams of a run that nobody moves, and its seconds."""
    began_s = time.monotonic()
    done = subprocess.run(argv, capture_output=True, check=True)
    return done.stdout, done.stderr, time.monotonic() - began_s


def moved(
    argv: list[str], images: Path, first: Sandbox, second: Sandbox, after_bytes: int = 1
) -> tuple[bytes, bytes, bool]:
    """Both streams of a run that is moved when it has printed so much, the first host crashing then; and whether it
    still ran."""
    run = Reading(first.hold(images, argv), images.parent)
    try:
        holder = holder_of(run.started)
        wait_for(lambda: len(run.sofar) >= after_bytes, "so much output")
        criu.dump(holder, images)
    except (criu.CannotDump, AssertionError):
        out, err = run.rest()  # it was over before we came
        assert run.started.returncode == 0, err.decode()
        return out, err, False
    first.crash()
    out, err = run.rest()
    assert run.started.returncode in (EXIT_HALTED, 128 + signal.SIGKILL, -signal.SIGKILL)
    again = Reading(second.hold(images, argv), images.parent)
    more_out, more_err = again.rest()
    assert again.started.returncode == 0, more_err.decode()
    assert not criu.is_sealed(images)
    return out + more_out, err + more_err, True


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_unmodified_program_moves_and_its_output_is_that_of_an_undisturbed_run(
    name: str, two: Two, tmp_path: Path
) -> None:
    argv = PROGRAMS[name]
    out, err, _ = undisturbed(argv)
    for n in range(TRIES):  # on a busy machine it may have ended before anybody came
        got_out, got_err, in_time = moved(argv, tmp_path / f"images-{n}", *two)
        assert got_out == out and got_err == err
        if in_time:
            return
    pytest.fail(f"it had ended before it was moved, {TRIES} times")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PROGRAMS)
def test_whenever_a_program_is_moved_no_line_of_it_is_lost_and_none_comes_twice(name: str, tmp_path: Path) -> None:
    argv = PROGRAMS[name]
    out, err, _ = undisturbed(argv)
    chance = random.Random(name)
    in_time = 0
    for turn in range(dose(40)):
        folder = tmp_path / str(turn)
        folder.mkdir()
        first, second = Sandbox("one", folder), Sandbox("two", folder)
        try:
            got_out, got_err, ran = moved(argv, folder / "images", first, second, chance.randrange(len(out) // 3))
        finally:
            first.crash()
            second.crash()
        assert got_out == out and got_err == err, f"turn {turn}"
        in_time += ran
    assert in_time > dose(40) // 3  # it may have ended by the time it is taken apart


def test_what_waits_in_its_input_and_a_reader_that_is_slow_cost_nothing(two: Two, tmp_path: Path) -> None:
    """The program sleeps with its input unread, and has filled its output's pipe."""
    first, second = two
    argv = ["bash", "-c", "seq 1 30000; cat; echo end"]
    images = tmp_path / "images"
    started = first.hold(images, argv)
    assert started.stdin and started.stdout
    started.stdin.write(b"unread\n")
    started.stdin.flush()
    holder = holder_of(started)
    time.sleep(0.2)
    criu.dump(holder, images)
    first.crash()
    run = Reading(started, tmp_path)
    before, _ = run.rest()
    started = second.hold(images, argv)
    assert started.stdin
    wait_for(lambda: not criu.is_sealed(images), "it to go on")
    started.stdin.write(b"more\n")
    started.stdin.close()
    started.stdin = None
    after, err = Reading(started, tmp_path).rest()
    assert not err
    assert before + after == "".join(f"{n}\n" for n in range(1, 30001)).encode() + b"unread\nmore\nend\n"


UNTRAVELLED: dict[str, tuple[str, str]] = {
    "device": ("held = open('/dev/loop-control')", "device"),
    "io_uring": (
        "import ctypes; held = ctypes.CDLL(None).syscall(425, 4, (ctypes.c_char * 120)()); assert held > 2",
        "io_uring",
    ),
    "outside": (
        "import socket; held = socket.socket(socket.AF_UNIX); held.connect(open('{folder}/address').read())",
        "connected to a process outside",
    ),
    "network": (
        "import socket; own = socket.create_server(('127.0.0.1', 0)); "
        "held = socket.create_connection(own.getsockname()), own.accept()",
        "it has a network",  # connection, or, on a kernel newer than criu, any socket at all
    ),
    "inotify": (
        "import ctypes; lib = ctypes.CDLL(None); fd = lib.inotify_init(); "
        "assert lib.inotify_add_watch(fd, b'/proc/self/status', 2) > 0",
        "watches a file",
    ),
    "system v": (
        "import ctypes; lib = ctypes.CDLL(None); lib.shmat.restype = ctypes.c_void_p; "
        "held = lib.shmat(lib.shmget(0, 4096, 0o1600), None, 0)",
        "System V",
    ),
    "daemon": ("import subprocess; subprocess.run('sleep 1000 & sleep 1001 &', shell=True)", "left processes behind"),
}


@pytest.mark.parametrize("name", UNTRAVELLED)
def test_what_cannot_travel_is_named_and_the_program_runs_on(name: str, two: Two, tmp_path: Path) -> None:
    first, _ = two
    begin, why = UNTRAVELLED[name]
    helper = None
    if name == "outside":
        helper = subprocess.Popen([*first.enter(), sys.executable, "-c", _LISTEN, str(tmp_path)])
        wait_for(lambda: (tmp_path / "address").exists(), "a process outside")
    _refused(first, tmp_path, begin.replace("{folder}", str(tmp_path)), why)
    if helper:
        helper.kill()
        helper.wait()


_LISTEN = """
import os, socket, sys
path = sys.argv[1]
own = socket.socket(socket.AF_UNIX)
own.bind("/tmp/outside")
own.listen()
with open(path + "/address.new", "w") as file:
    file.write("/tmp/outside")
os.rename(path + "/address.new", path + "/address")
held = own.accept()
held[0].recv(1)
"""


def _refused(host: Sandbox, folder: Path, begin: str, why: str, images: Path | None = None) -> None:
    """A program that begins so and then counts can't be dumped, and goes on counting."""
    images = images or folder / "images"
    run = Reading(host.hold(images, [sys.executable, "-c", f"{begin}\n{COUNTING}"]), folder)
    holder = holder_of(run.started)
    wait_for(lambda: run.sofar.count(b"\n") > 10, "the program to count")
    with pytest.raises(criu.CannotDump) as caught:
        criu.dump(holder, images)
    assert why in str(caught.value)
    assert not images.exists() or not list(images.iterdir())
    lines = run.sofar.count(b"\n")
    wait_for(lambda: run.sofar.count(b"\n") > lines + 50, "the program to go on")
    host.crash()
    out, err = run.rest()
    counted = out.split(b"\n")[:-1]
    assert counted == [b"%d" % n for n in range(len(counted))] and not err


@pytest.mark.parametrize(
    ("size", "begin"),
    [
        ("200k", ""),
        ("9M", "held = bytearray(b'x') * (8 << 20)"),
        ("13M", "open('/dev/shm/held', 'wb').write(b'x' * (12 << 20))"),
    ],
    ids=["at once", "in its memory", "in what it carries"],
)
def test_where_the_disk_is_full_the_program_runs_on_and_nothing_is_left(size: str, begin: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=True)
    try:
        host = Sandbox("one", tmp_path)
        try:
            _refused(host, tmp_path, begin, "folder is full", small)
        finally:
            host.crash()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


@pytest.mark.parametrize("part", ["pages-1.img", criu.SEAL, "core-1001.img", "missing"])
def test_a_spoilt_dump_is_refused(part: str, two: Two, tmp_path: Path) -> None:
    first, second = two
    images = tmp_path / "images"
    argv = [sys.executable, "-c", COUNTING]
    run = Reading(first.hold(images, argv), tmp_path)
    criu.dump(holder_of(run.started), images)
    run.rest()
    assert run.started.returncode == EXIT_HALTED
    if part == "missing":
        (images / "pstree.img").unlink()
    else:
        data = bytearray((images / part).read_bytes())
        data[len(data) // 2] ^= 1
        (images / part).write_bytes(data)
    again = Reading(second.hold(images, argv), tmp_path)
    out, err = again.rest()
    assert out == b"" and b"spoilt" in err and again.started.returncode == criu.SpoiltDump.exit_code
    assert criu.is_sealed(images)


@pytest.mark.slow
def test_a_program_moves_again_and_again(tmp_path: Path) -> None:
    """What it starts between moves never gets a number that the next host's holder, or its criu, has."""
    images = tmp_path / "images"
    argv = ["bash", "-c", "for n in {1..1500}; do /bin/echo $n; done"]
    whole = b""
    for turn in range(5):
        host = Sandbox(f"host{turn}", tmp_path)
        run = Reading(host.hold(images, argv), tmp_path)
        wait_for(lambda run=run: run.sofar.count(b"\n") > 10, "some output")  # type: ignore[misc]
        if turn < 4:
            criu.dump(holder_of(run.started), images)
        out, err = run.rest()
        host.crash()
        assert not err
        whole += out
    assert whole == b"".join(b"%d\n" % n for n in range(1, 1501))


def test_where_a_file_is_missing_the_dump_stays_and_goes_on_when_it_is_there(two: Two, tmp_path: Path) -> None:
    first, second = two
    images = tmp_path / "images"
    argv = [sys.executable, "-c", "held = open('/tmp/held', 'w')\n" + COUNTING.replace("10**6", "200")]
    run = Reading(first.hold(images, argv), tmp_path)
    wait_for(lambda: run.sofar, "some output")
    criu.dump(holder_of(run.started), images)
    before, _ = run.rest()
    failed = Reading(second.hold(images, argv), tmp_path)
    out, err = failed.rest()
    assert out == b"" and b"a file it has open isn't here" in err and b"tmp/held" in err
    assert failed.started.returncode == criu.CannotRestore.exit_code and criu.is_sealed(images)
    subprocess.run([*second.enter(), "touch", "/tmp/held"], check=True)
    again = Reading(second.hold(images, argv), tmp_path)
    after, err = again.rest()
    assert not err and before + after == b"".join(b"%d\n" % n for n in range(200))


def _may_read_limits() -> bool:
    """Whether root here has CAP_SYS_RESOURCE, without which CRIU can't dump another user's processes."""
    words = Path("/proc/self/status").read_text().partition("CapEff:")[2].split()
    return bool(int(words[0], 16) >> 24 & 1)


def test_a_program_goes_on_in_another_warden_with_its_signals_and_its_status(tmp_path: Path) -> None:
    """Real wardens, who know nothing of all this: the rank that they start is the holder. The job is another user's."""
    images = tmp_path / "images"
    program = "trap 'id -u; exit 7' USR1; n=0; while [ -e /dev/shm/there ]; do echo $((n += 1)); sleep 0.005; done"
    words = ["bash", "-c", f"touch /dev/shm/there; {program}"]
    argv = [sys.executable, "-I", str(Path(criu.__file__).with_name("holder.py")), str(images)]
    uid = 65534 if _may_read_limits() else 0
    argv += ["--as", f"{uid}:{uid}", "--", *words]
    one, two = Agent(tmp_path / "one"), Agent(tmp_path / "two")
    try:
        one.start(argv)
        wait_for(lambda: one.poll() and one.output().count(b"\n") > 20, "the program to count")
        criu.dump(one.pids()["0"], images)
        result = one.wait("ended")["result"]
        assert result["ranks"][0]["status"] == EXIT_HALTED
        before = one.output()
        os.kill(one.keeper, signal.SIGKILL)
        two.start(argv)
        wait_for(lambda: two.poll() and two.output().count(b"\n") > 20, "the program to go on")
        two.say("signal", serial=1, signal=int(signal.SIGUSR1))
        assert two.wait("ended")["result"]["ranks"][0]["status"] == 7
        lines = (before + two.output()).split(b"\n")[:-1]
        assert lines == [b"%d" % n for n in range(1, len(lines))] + [b"%d" % uid]
    finally:
        left = [*one.processes(), *two.processes()]
        for agent in (one, two):
            agent.link.close()
            try:
                os.kill(agent.keeper, signal.SIGKILL)
            except ProcessLookupError:
                pass
            agent.link.reaped()
    wait_for(lambda: not alive(left), "the end of all")


def test_where_no_criu_works_it_is_said_why_and_what_helps(tmp_path: Path) -> None:
    broken = tmp_path / "criu"
    broken.write_text("#!/bin/sh\necho 'Error (criu/cr-check.c:1): this kernel has no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    for place, why in ((str(broken), "this kernel has no such thing"), ("/nowhere/criu", "no such file")):
        with pytest.raises(criu.NoCriu) as caught:
            criu.find(place)
        assert why in str(caught.value) and "make criu" in str(caught.value)


def test_a_job_cannot_choose_what_runs_as_root(two: Two, tmp_path: Path) -> None:
    """Its environment comes by a file, and it is another user's; a folder with other things in it isn't emptied."""
    first, _ = two
    (tmp_path / "env").write_bytes(b"WORD=one = two\0PATH=/usr/bin:/bin\0")
    words = [sys.executable, "-I", str(Path(criu.__file__).with_name("holder.py")), str(tmp_path / "images")]
    words += ["--as", "65534:65534", "--env", str(tmp_path / "env"), "--", "sh", "-c", "id -u; env; kill -9 $$"]
    done = subprocess.run([*first.enter(), *words], capture_output=True, text=True, check=False)
    lines = done.stdout.split("\n")
    assert lines[0] == "65534" and "WORD=one = two" in lines and not [line for line in lines if "PYTEST" in line]
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    (tmp_path / "somebody's").touch()
    run = Reading(first.hold(tmp_path / "images", [sys.executable, "-c", COUNTING]), tmp_path)
    with pytest.raises(criu.CannotDump, match="name an empty folder"):
        criu.dump(holder_of(run.started), tmp_path)
    assert (tmp_path / "somebody's").exists()
    first.crash()
    run.rest()
