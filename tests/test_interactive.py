"""`beo run --pty`: a program of the cluster at a person's terminal, and what the terminal is like afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo import lockfile
from beo.cli.terminal import ESCAPE, HELP, LEAVE, SUSPEND, Escapes, Modes
from tests.cluster import BEO, Cluster, is_alive, running, wait_for
from tests.pseudo import Person

SHELL = ("/bin/bash", "--norc", "--noprofile", "-i")
PROMPT = "READY> "


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("interactive") / "beo", workers=1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _nothing_runs_on(cluster: Cluster) -> Iterator[None]:
    yield
    with cluster.client() as own:
        for view in own.jobs().jobs:
            own.cancel([str(view.id)])
    wait_for(lambda: cluster.node("node01").used == 0, "the slots are free")


def session(cluster: Cluster, *words: str, rows: int = 24, columns: int = 80) -> Person:
    """`beo run --pty WORDS` at a terminal of its own."""
    env = {**cluster.env, "TERM": "xterm", "PS1": PROMPT, "LINES": "1", "COLUMNS": "1"}
    return Person([*BEO, "run", "--pty", *words], env, rows, columns)


def python(program: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(program)]


def last(cluster: Cluster) -> int:
    with cluster.client() as own:
        return own.jobs(["last"]).jobs[0].id


# ---- the job's side


def test_a_shell_has_a_terminal_of_this_ones_size_and_kind(cluster: Cluster) -> None:
    with session(cluster, *SHELL, rows=31, columns=101) as person:
        person.sees(PROMPT)
        assert person.is_raw
        person.type("stty size; echo $TERM $(tty) $(ps -o tty= $$) $LINES $COLUMNS\r")
        person.sees(r"\r31 101\r\nxterm /dev/(pts/\d+) pts/\d+ 31 101\r\n")
        person.type("exit 7\r")
        assert person.left() == 7
        assert person.is_as_before


def test_keys_that_are_signals_reach_the_program_and_not_beo(cluster: Cluster) -> None:
    with session(cluster, *SHELL) as person:
        person.sees(PROMPT)
        person.type("sleep 1000; echo code $?\r")
        wait_for(lambda: _children(cluster, b"sleep"), "sleep runs")
        person.type(b"\x03")
        person.sees(PROMPT)
        person.type("echo code $?\r")
        person.sees("\rcode 130\r\n")
        person.type("sleep 1000\r")
        wait_for(lambda: _children(cluster, b"sleep"), "sleep runs")
        person.type(b"\x1a")
        person.sees("Stopped")
        person.type("kill -9 %1; wait; cat\r")
        wait_for(lambda: _children(cluster, b"cat"), "cat runs")
        person.type("typed\r")
        person.sees("typed\r\ntyped\r\n")
        person.type(b"\x04")
        person.sees(PROMPT)
        person.type(b"\x04")
        assert person.left() == 0


def _children(cluster: Cluster, name: bytes) -> list[int]:
    """The pids of a job's programs of that name."""
    found = []
    for pid in cluster.everything_of("node01"):
        try:
            if Path(f"/proc/{pid}/comm").read_bytes().strip() == name:
                found.append(pid)
        except OSError:
            pass
    return found


def test_a_new_size_reaches_the_program_by_sigwinch(cluster: Cluster) -> None:
    program = """
        import os, signal
        print("size", *os.get_terminal_size(), flush=True)
        size = None
        while size != (40, 10):
            signal.sigwait([signal.SIGWINCH])
            size = os.get_terminal_size()
            print("size", *size, flush=True)
    """
    blocked = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])\n{textwrap.dedent(program)}"
    with session(cluster, sys.executable, "-c", blocked, rows=24, columns=80) as person:
        person.sees("size 80 24\r\n")
        person.resize(50, 132)
        person.sees("size 132 50\r\n")
        for columns in range(30, 41):  # dragged: the last one wins
            person.resize(10, columns)
        person.sees("size 40 10\r\n")
        assert person.left() == 0


def test_a_full_screen_program_draws_and_the_screen_comes_back(cluster: Cluster) -> None:
    program = """
        import curses
        def main(screen):
            screen.addstr(screen.getmaxyx()[0] - 1, 0, "bottom")
            while (key := screen.getkey()) != "q":
                screen.addstr(2, 5, f"key {key}")
        curses.wrapper(main)
    """
    with session(cluster, *python(program)) as person:
        person.sees(r"\x1b\[\?1049h.*\x1b\[24dbottom")
        person.type(b"\x1bOA")
        person.sees(r"\x1b\[3d.*key KEY_UP")
        person.type("q")
        assert person.left() == 0
        person.sees(r"\x1b\[\?1049l")
        assert person.is_as_before


def test_what_a_killed_program_did_to_the_terminal_is_undone(cluster: Cluster) -> None:
    program = """
        import os, sys
        print("\\x1b[?1049h\\x1b[?25l\\x1b[?2004h\\x1b[?2004lhere", flush=True)
        os.kill(os.getpid(), 9)
    """
    with session(cluster, *python(program)) as person:
        person.sees("here")
        assert person.left() == 137
        person.sees(r"\x1b\[\?25h\x1b\[\?1049l\x1b\[m")
        assert b"\x1b[?2004l" not in person.screen[person.screen.index(b"here") :], "that was put back by the program"
        assert person.is_as_before


def test_several_ranks_with_a_terminal_are_one_process_with_all_the_slots(cluster: Cluster) -> None:
    with session(cluster, "-n", "2", "/bin/sh", "-c", "echo size $BEO_SIZE rank $BEO_RANK; sleep 1000") as person:
        person.sees("size 1 rank 0\r\n")
        assert cluster.node("node01").used == 2
        person.type(b"\x03")
        assert person.left() == 130


def test_a_program_that_is_not_there_is_told_in_lines(cluster: Cluster) -> None:
    with session(cluster, "nonesuch") as person:
        assert person.left() == 127
        person.sees(r"beo: node01: 'nonesuch' is not in PATH .*: install it on this node, or give its full path\r\n")
        assert person.is_as_before


def test_pty_without_a_terminal_is_a_mistake_with_its_cure(cluster: Cluster) -> None:
    done = cluster.beo("run", "--pty", "true")
    assert (done.returncode, done.stdout) == (2, "")
    cure = "run it from one ('ssh -t' makes one), or leave out --pty"
    assert done.stderr == f"beo: --pty takes a terminal (standard input is none): {cure}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-l"], "--label with --pty"),
        (["--requeue", "auto"], "--pty with --requeue auto"),
    ],
)
def test_what_a_terminal_can_not_have_is_refused(cluster: Cluster, words: list[str], text: str) -> None:
    with session(cluster, *words, "true") as person:
        assert person.left() == 2
        person.sees(f"beo: {text}")
        assert person.is_as_before


# ---- whoever dies


def test_no_key_and_no_output_is_lost_or_doubled_when_head_and_agent_are_killed(cluster: Cluster) -> None:
    program = """
        import os, sys, tty
        tty.setraw(0)
        os.write(1, b"go:")
        while (key := os.read(0, 1)) != b"Q":
            os.write(1, b"<" + key + b">")
    """
    keys = [chr(97 + n % 26) for n in range(60)]
    with session(cluster, *python(program)) as person:
        person.sees("go:")
        began = len(person.screen)
        for n, key in enumerate(keys):
            if n in (15, 45):
                cluster.kill_and_await("head")
            if n == 30:
                cluster.kill_and_await("node01")
            person.type(key)
            person.look(0.01)
        person.sees(f"<{keys[-1]}>")
        wait_for(lambda: person.look(0.01) and person.screen.count(b">") == len(keys), "all echoes")
        person.type("Q")
        assert person.left() == 0
    expected = "".join(f"<{key}>" for key in keys).encode()
    assert person.screen[began : began + len(expected)] == expected
    assert cluster.output(last(cluster)).encode() == b"go:" + expected, "beo logs has it, too"


def test_a_size_that_changes_while_nobody_hears_it_is_told_when_somebody_does(cluster: Cluster) -> None:
    with session(cluster, *SHELL) as person:
        person.sees(PROMPT)
        person.type("trap 'echo now $(stty size)' WINCH; sleep 0\r")
        person.sees(PROMPT)
        lock = cluster.lock("node01")
        agent = lockfile.holder(lock)
        cluster.kill("node01")
        person.resize(20, 70)
        person.look(0.1)
        person.resize(25, 75)
        wait_for(lambda: lockfile.holder(lock) not in (None, agent), "another agent")
        time.sleep(0.5)  # for it to find its warden: what is typed now is also told later
        person.type("\r")
        person.sees("now 25 75\r\n")
        person.type("exit\r")
        assert person.left() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_the_session_and_puts_the_terminal_back(cluster: Cluster, number: int, code: int) -> None:
    with session(cluster, *SHELL) as person:  # a shell that talks to a person ignores SIGTERM
        person.sees(PROMPT)
        (shell,) = cluster.ranks(last(cluster)).values()
        os.kill(person.pid, number)
        assert person.left() == code
        assert person.is_as_before
        wait_for(lambda: not is_alive(shell), "the shell has gone")
        assert cluster.wait(last(cluster))[0].state == "cancelled"


def test_a_terminal_that_is_closed_ends_the_job_by_sighup(cluster: Cluster, tmp_path: Path) -> None:
    mark = tmp_path / "hung up"
    trap = f"trap 'echo yes > \"{mark}\"; exit' HUP; echo go; while :; do sleep 0.05; done"
    with session(cluster, "/bin/sh", "-c", trap) as person:
        person.sees("go\r\n")
        job = last(cluster)
        person.close()
        assert person.left() == 129
        assert cluster.wait(job)[0].state == "cancelled"
        assert mark.read_text() == "yes\n"


def test_a_client_that_is_killed_takes_its_session_along(tmp_path: Path) -> None:
    hasty = "[head]\nattached_grace_s = 1.0\n"
    with running(tmp_path / "beo", workers=1, settings=hasty) as cluster, session(cluster, *SHELL) as person:
        person.sees(PROMPT)
        (shell,) = cluster.ranks(last(cluster)).values()
        os.kill(person.pid, signal.SIGKILL)
        assert person.left() == -signal.SIGKILL
        wait_for(lambda: not is_alive(shell), "the shell has gone")


def test_the_escape_leaves_also_when_no_head_answers(tmp_path: Path) -> None:
    with running(tmp_path / "beo", workers=1) as cluster, session(cluster, *SHELL) as person:
        person.sees(PROMPT)
        cluster.kill("supervisor")
        cluster.kill("head")
        person.type("lost\r~.")
        assert person.left() == 129
        person.sees(r"beo: left the session: job 1 ends by itself about a minute after a head is back")
        assert person.is_as_before
        cluster.up()


def test_escapes_suspend_and_explain_and_are_not_the_jobs(cluster: Cluster) -> None:
    env = {**cluster.env, "TERM": "xterm", "PS1": "HERE> "}
    command = " ".join([*BEO, "run", "--env", "'PS1=THERE> '", "--pty", *SHELL])
    with Person(list(SHELL), env) as person:
        person.sees("HERE> ")
        person.type(f"{command}\r")
        person.sees("THERE> ")
        person.type("~?")
        person.sees(r"\r\nAt the beginning of a line:\r\n  ~\.   end the session, also when no head answers\r\n  ~\^Z ")
        person.type("\r")
        person.sees("THERE> ")
        person.type(b"~\x1a")
        person.sees("Stopped.*HERE> ")
        person.type("stty -a | grep -wo icanon; fg\r")
        person.sees(r"\ricanon\r\n")
        person.sees("run --env")
        person.type("\r")
        person.sees("THERE> ")
        person.type("echo a~.\r")
        person.sees(r"\ra~\.\r\n.*THERE> ")
        person.type("~~.\x15\r")
        person.sees("THERE> ")
        person.type("exit 3\r")
        person.sees("HERE> ")
        person.type("echo code $?; exit\r")
        person.sees("code 3\r\n")
        assert person.left() == 0


# ---- the words


@given(st.lists(st.sampled_from([b"~", b".", b"\x1a", b"?", b"\r", b"\n", b"x"]), max_size=12), st.data())
def test_escapes_are_the_same_in_whatever_pieces_they_come(keys: list[bytes], data: st.DataObject) -> None:
    typed = b"".join(keys)
    at = data.draw(st.integers(0, len(typed)))
    whole, pieces = Escapes(), Escapes()
    first, second = pieces.feed(typed[:at]), pieces.feed(typed[at:])
    assert whole.feed(typed) == (first[0] + second[0], first[1] + second[1])


def test_escapes_count_at_the_beginning_of_a_line_alone() -> None:
    for typed, kept, found in (
        (b"~.", b"", [LEAVE]),
        (b"a~.", b"a~.", []),
        (b"a\r~.", b"a\r", [LEAVE]),
        (b"~~.", b"~.", []),
        (b"~x", b"~x", []),
        (b"~", b"", []),
        (b"\r~?~\x1a~?", b"\r", [HELP, SUSPEND, HELP]),
    ):
        assert Escapes().feed(typed) == (kept, found), typed
    assert chr(ESCAPE) == "~"


@given(st.integers(0, 40))
def test_modes_are_seen_across_the_pieces_of_output(at: int) -> None:
    output = b"\x1b[?1049h\x1b[?25l text \x1b[?1000;2004h\x1b[?1000l"
    modes = Modes()
    modes.see(output[:at])
    modes.see(output[at:])
    assert modes.undo() == b"\x1b[?2004l\x1b[?25h\x1b[?1049l\x1b[m"
    assert modes.undo() == b""


def test_modes_hold_on_to_little_of_an_endless_sequence() -> None:
    modes = Modes()
    for _ in range(100):
        modes.see(b"\x1b[?" + b"1" * 1000)
    modes.see(b"\x1b[?25l")
    assert modes.undo() == b"\x1b[?25h\x1b[m"


def test_the_help_tells_how_to_leave() -> None:
    done = subprocess.run([*BEO, "run", "--help"], capture_output=True, text=True, timeout=60)
    assert "--pty" in done.stdout and "~. ends the session" in done.stdout
