"""Who asks for a step, by `beo run` in a job or by beo-rsh, against a warden in the test's hands."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from beo.worker import rsh
from beo.worker.caller import StepError, environment
from tests.cluster import BEO, ROOT
from tests.fake_warden import FakeWarden, Talk

RSH = str(ROOT / "beo" / "worker" / "beo-rsh")
PATIENCE_S = 30


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose name is short enough for a socket's."""
    folder = Path(f"/tmp/beo-caller-{os.getpid()}")
    folder.mkdir()
    yield folder
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()


def run(warden: FakeWarden, words: list[str], stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command in the job of this warden."""
    env = {**warden.env, "PYTHONPATH": str(ROOT), "BEO_DIR": "/nonexistent", "BEO_PYTHON": sys.executable}
    taken: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(words, env=env, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, **taken)


def beo_run(*words: str) -> list[str]:
    """The words of a `beo run`."""
    return [*BEO, "run", *words]


def test_a_run_within_a_job_asks_the_warden_for_a_step(short: Path) -> None:
    heard: list[dict[str, Any]] = []

    def handler(talk: Talk) -> None:
        heard.append(talk.begin())
        talk.output(0, 1, b"to stdout\n")
        talk.output(1, 2, b"to stderr\n")
        talk.end(0, 7, 3)

    with FakeWarden(short, handler) as warden:
        warden.env |= {"A": "kept", "PMI_RANK": "3", "BEO_RANK": "3", "BEO_INTERFACE": "eth7", "FI_TCP_IFACE": "eth7"}
        done = run(warden, beo_run("-n", "3", "-N", "2", "-c", "4", "--env", "B=new", "--chdir", "/usr", "prog", "-x"))
    assert (done.returncode, done.stdout, done.stderr) == (7, b"to stdout\n", b"to stderr\n")
    (request,) = heard
    env = request.pop("env")
    assert request == {
        "op": "run",
        "argv": ["prog", "-x"],
        "cwd": "/usr",
        "ranks": 3,
        "nodes": 2,
        "cpus": 4,
        "on": None,
        "mpi": True,
        "stdin": False,
        "overlap": False,
    }
    assert (env["A"], env["B"]) == ("kept", "new")
    assert not {"PMI_RANK", "BEO_RANK", "BEO_STEPS", "TMPDIR", "FI_TCP_IFACE"} & env.keys()


def test_what_a_node_sets_for_itself_is_left_to_the_steps_own_nodes_but_for_what_the_job_has_changed() -> None:
    given = {
        "BEO_INTERFACE": "eth0",
        "HYDRA_IFACE": "eth0",
        "UCX_NET_DEVICES": "ib0",
        "TMPDIR": "/scratch",
        "X": "\udcff",
    }
    assert environment(given) == {"UCX_NET_DEVICES": "ib0", "TMPDIR": "/scratch"}


@pytest.mark.parametrize("room_bytes", [1 << 20, 1000], ids=["taken as it comes", "taken in small bites"])
def test_rank_0_gets_all_of_the_input_in_order(short: Path, room_bytes: int) -> None:
    text = os.urandom(200_000)

    def handler(talk: Talk) -> None:
        assert talk.begin()["stdin"] is True
        assert talk.read_input(room_bytes) == text
        talk.end(0)

    with FakeWarden(short, handler) as warden:
        assert run(warden, beo_run("cat"), text).returncode == 0


def test_input_that_nobody_takes_holds_nothing_up(short: Path) -> None:
    def handler(talk: Talk) -> None:
        talk.begin()
        assert (talk.hear() or {})["op"] == "stdin"
        talk.say("stdin", have=0, closed=True)
        talk.end(0)

    with FakeWarden(short, handler) as warden:
        assert run(warden, beo_run("true"), b"x" * 1_000_000).returncode == 0


def test_the_label_is_put_in_front_of_whole_lines(short: Path) -> None:
    def handler(talk: Talk) -> None:
        talk.begin()
        for rank, data in ((0, b"one "), (1, b"two\n"), (0, b"line\nno end")):
            talk.output(rank, 1, data)
        talk.end(0, 0)

    with FakeWarden(short, handler) as warden:
        assert run(warden, beo_run("-l", "-n", "2", "x")).stdout == b"1: two\n0: one line\n0: no end\n"


def test_a_megabyte_of_output_comes_whole_and_a_reader_who_takes_his_time_holds_the_warden_up(short: Path) -> None:
    piece, stuck = bytes(range(256)) * 128, threading.Event()

    def handler(talk: Talk) -> None:
        talk.begin()
        talk.connection.settimeout(0.5)
        sent_bytes = 0
        with suppress(TimeoutError):  # while nobody reads
            while sent_bytes < 64 << 20:
                talk.output(0, 1, piece)
                sent_bytes += len(piece)
        assert 1 << 20 < sent_bytes < 8 << 20
        stuck.set()

    with FakeWarden(short, handler) as warden:
        process = subprocess.Popen(
            beo_run("x"),
            env=warden.env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert stuck.wait(PATIENCE_S)
        out, err = process.communicate(timeout=PATIENCE_S)
    # The step was cut off in the middle of a frame: what came is in order, and the end is told as none of ours.
    assert len(out) > 1 << 20
    assert out == (piece * (len(out) // len(piece) + 1))[: len(out)]
    assert process.returncode == 75
    assert b"beo: the step's warden has gone" in err


def started(warden: FakeWarden, words: list[str]) -> subprocess.Popen[bytes]:
    """Start a command in the job of this warden."""
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=warden.env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)


def test_signals_go_to_the_step_and_its_end_by_one_needs_no_words(short: Path) -> None:
    ready, heard = threading.Event(), []

    def handler(talk: Talk) -> None:
        talk.begin()
        talk.output(0, 1, b"up\n")
        ready.set()
        heard.append([talk.hear(), talk.hear()])
        talk.end(128 + signal.SIGTERM, reason="rank 0 was killed by SIGTERM")

    with FakeWarden(short, handler) as warden:
        process = started(warden, beo_run("x"))
        assert process.stdout
        assert ready.wait(PATIENCE_S)
        assert process.stdout.readline() == b"up\n"
        for number in (signal.SIGUSR1, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.05)  # so that they come one by one
        _, err = process.communicate(timeout=PATIENCE_S)
    assert heard == [[{"op": "signal", "signal": signal.SIGUSR1}, {"op": "signal", "signal": signal.SIGTERM}]]
    assert (process.returncode, err) == (128 + signal.SIGTERM, b"")


def test_the_third_interrupt_hangs_up_which_kills_the_step(short: Path) -> None:
    ready, heard = threading.Event(), []

    def handler(talk: Talk) -> None:
        talk.begin()
        talk.output(0, 1, b"up\n")
        ready.set()
        while message := talk.hear():
            heard.append(message["signal"])

    with FakeWarden(short, handler) as warden:
        process = started(warden, beo_run("x"))
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert heard
    assert set(heard) == {signal.SIGINT}


def test_a_step_that_waits_is_given_up_at_the_first_signal_to_end(short: Path) -> None:
    waiting = threading.Event()

    def handler(talk: Talk) -> None:
        assert talk.hear()
        talk.say("waiting", why="all 4 slots are taken")
        waiting.set()
        assert talk.hear() is None

    with FakeWarden(short, handler) as warden:
        process = started(warden, beo_run("x"))
        assert waiting.wait(PATIENCE_S)
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_reader_who_has_gone_ends_the_step(short: Path) -> None:
    def handler(talk: Talk) -> None:
        talk.begin()
        with suppress(OSError):
            while True:
                talk.output(0, 1, b"y\n" * 10_000)

    with FakeWarden(short, handler) as warden:
        process = started(warden, beo_run("yes"))
        assert process.stdout
        process.stdout.close()
        assert process.wait(PATIENCE_S) == -signal.SIGPIPE
        assert process.stderr
        process.stderr.close()


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (
            {"op": "refused", "what": "too wide", "why": "4 slots", "cure": "ask for less"},
            75,
            "too wide (4 slots): ask",
        ),
        ({"op": "output", "rank": 0}, 75, "the warden's words make no sense"),
        (None, 75, "the step's warden has gone"),
    ],
    ids=["refused", "nonsense", "gone"],
)
def test_a_step_that_cannot_be_is_an_error_of_beos(
    short: Path, said: dict[str, str] | None, code: int, words: str
) -> None:
    def handler(talk: Talk) -> None:
        assert talk.hear()
        if said:
            talk.say(**said)

    with FakeWarden(short, handler) as warden:
        done = run(warden, beo_run("x"))
    assert done.returncode == code
    assert done.stderr.decode().startswith(f"beo: {words}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["-t", "1h"],
            "a step takes no --time (a step runs within the job that is there): leave it out, or give --new-job",
        ),
        (["--mem", "1G"], "a step takes no --mem"),
        (["-n", "0"], "the number of ranks is 0"),
    ],
)
def test_what_a_step_cannot_do_is_a_usage_error(short: Path, options: list[str], words: str) -> None:
    def handler(talk: Talk) -> None:
        assert talk.hear() is None

    with FakeWarden(short, handler) as warden:
        done = run(warden, beo_run(*options, "x"))
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"beo: {words}")


def test_a_script_with_beo_lines_is_no_step(short: Path) -> None:
    (short / "job.sh").write_text("#!/bin/sh\n#BEO -n 4\n")

    def handler(talk: Talk) -> None:
        assert talk.hear() is None

    with FakeWarden(short, handler) as warden:
        done = run(warden, beo_run(str(short / "job.sh")))
    assert done.returncode == 2
    assert b"job.sh has #BEO lines" in done.stderr


def test_new_job_goes_to_the_head_and_so_does_a_run_whose_warden_is_no_more(short: Path) -> None:
    with FakeWarden(short, lambda talk: None) as warden:
        assert b"no cluster in /nonexistent" in run(warden, beo_run("--new-job", "x")).stderr
    assert b"no cluster in /nonexistent" in run(warden, beo_run("x")).stderr
    warden.env["BEO_STEPS"] = "/nonexistent"
    assert b"no cluster in /nonexistent" in run(warden, beo_run("x")).stderr


# ---- beo-rsh


def test_rsh_runs_its_words_by_a_shell_on_that_node_and_exits_as_they_do(short: Path) -> None:
    heard: list[dict[str, Any]] = []

    def handler(talk: Talk) -> None:
        heard.append(talk.begin())
        assert talk.read_input() == b"input"
        talk.output(0, 2, b"oh\n")
        talk.output(0, 1, b"out")
        talk.end(42)

    with FakeWarden(short, handler) as warden:
        done = run(warden, [RSH, "-x", "-o", "BatchMode=yes", "me@node02", '"a b"', "c;", "echo", "$HOME"], b"input")
    assert (done.returncode, done.stdout, done.stderr) == (42, b"out", b"oh\n")
    (request,) = heard
    assert request["argv"] == ["/bin/sh", "-c", '"a b" c; echo $HOME']
    assert (request["on"], request["ranks"], request["overlap"], request["mpi"]) == (["node02"], 1, True, False)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["node02", "cmd"], ("node02", ["cmd"], True)),
        (["-x", "-q", "-n", "node02", "cmd", "-n"], ("node02", ["cmd", "-n"], False)),
        (["node02", "-n", "cmd"], ("node02", ["cmd"], False)),
        (["-p", "22", "-lme", "node02", "--", "cmd"], ("node02", ["cmd"], True)),
        (["-oStrictHostKeyChecking=no", "node02", "cmd"], ("node02", ["cmd"], True)),
    ],
)
def test_rsh_takes_sshs_options_and_makes_nothing_of_them(
    words: list[str], wanted: tuple[str, list[str], bool]
) -> None:
    assert rsh.parse(words) == wanted


@pytest.mark.parametrize("words", [[], ["node02"], ["-x", "-p"], ["-l", "me"]])
def test_rsh_without_a_command_says_how_to_call_it(words: list[str]) -> None:
    with pytest.raises(StepError, match="call it as beo-rsh NODE COMMAND"):
        rsh.parse(words)


def test_rsh_outside_of_a_job_says_so_and_exits_as_ssh_does() -> None:
    env = {key: value for key, value in os.environ.items() if key != "BEO_STEPS"}
    done = subprocess.run([RSH, "node01", "true"], env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (255, "beo-rsh: this process is in no job: call it from a job's script\n")


def test_rsh_says_what_the_warden_refuses(short: Path) -> None:
    def handler(talk: Talk) -> None:
        talk.hear()
        talk.say("refused", what="node07 is no node of this job", why="", cure="it has node01, node02")

    with FakeWarden(short, handler) as warden:
        done = run(warden, [RSH, "node07", "true"])
    assert done.returncode == 255
    assert done.stderr == b"beo-rsh: node07 is no node of this job: it has node01, node02\n"


def test_killing_rsh_hangs_up(short: Path) -> None:
    ready, gone = threading.Event(), threading.Event()

    def handler(talk: Talk) -> None:
        talk.begin()
        ready.set()
        if talk.hear() is None:
            gone.set()

    with FakeWarden(short, handler) as warden:
        process = started(warden, [RSH, "node02", "sleep", "100"])
        assert ready.wait(PATIENCE_S)
        process.kill()
        assert gone.wait(PATIENCE_S)
        process.communicate()
