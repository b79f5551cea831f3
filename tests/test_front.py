"""The front: it starts at once, loads only what the verb needs, and ends as a well-behaved program does."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import front
from beo import messages as m
from beo.cli.group import VERBS
from tests.fake_head import FakeHead, view

# What answering `beo queue` must never load, for each costs more than all of beo's own code.
BANNED = {"asyncio", "logging", "numpy", "cloudpickle", "importlib.metadata", "subprocess", "rich", "inspect", "ssl"}
BANNED |= {"hashlib"}  # it loads OpenSSL


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHead]:
    head = FakeHead(tmp_path)
    monkeypatch.setenv("BEO_DIR", str(tmp_path))
    head.on(m.ListJobs, m.JobsAre((view(1, "running"),)))
    yield head
    head.stop()


def python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60)


def loaded_by(*argv: str) -> set[str]:
    """Return the modules that are really loaded (not just named) at the end of a command line."""
    code = """
import os, sys
from beo import direct, front
def leave(code):
    names = [name for name, module in sys.modules.items() if type(module).__name__ != "_Later"]
    print("\\n" + repr(names) + "\\n" + str(code), file=sys.stderr)
direct.os._exit = leave
front.main()
"""
    done = python(code, *argv)
    names, exit_code = done.stderr.splitlines()[-2:]
    assert exit_code == "0", done.stderr
    found: list[str] = json.loads(names.replace("'", '"'))
    return set(found)


def test_every_verb_is_done_either_here_or_by_the_resident() -> None:
    assert not front.HERE & front.THROUGH
    assert set(VERBS) == front.HERE | front.THROUGH, "add the verb to front.HERE or front.THROUGH"
    assert front.READING <= front.THROUGH


def test_importing_the_front_loads_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import beo.front; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == {"beo", "beo.front", "_socket"}


def test_queue_loads_no_more_than_it_needs(head: FakeHead) -> None:
    found = loaded_by("queue")
    assert not BANNED & found
    verbs = {name for name in found if name.startswith("beo.cli.")}
    assert verbs == {f"beo.cli.{name}" for name in ("group", "jobs", "tables", "waiting")}


def test_help_loads_no_verb() -> None:
    assert {name for name in loaded_by("--help") if name.startswith("beo.cli.")} == {"beo.cli.group"}
    assert not {"zmq", "beo.client"} & loaded_by("--version")


def test_a_module_that_is_put_off_is_whole_once_it_is_used() -> None:
    done = python(
        "from beo import direct; direct.run(['--version']); import inspect, json, random\n"
        "print(inspect.signature(lambda a: 0), json.dumps([1]), random.Random(1).random() > 0)\n"
        "from json import JSONDecodeError; import json.decoder; print(JSONDecodeError is json.decoder.JSONDecodeError)"
    )
    assert done.stdout.splitlines()[1:] == ["(a) [1] True", "True"], done.stderr


def test_output_goes_out_and_the_exit_code_is_the_verbs(head: FakeHead) -> None:
    done = subprocess.run([sys.executable, "-m", "beo.front", "queue", "-q"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n", b"")
    done = subprocess.run([sys.executable, "-m", "beo.front", "quue"], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, b"beo: no command 'quue': did you mean queue or requeue?\n")


def test_a_broken_pipe_ends_it_silently_by_the_signal(head: FakeHead) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "beo.front", "queue"], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


def test_output_that_can_not_be_written_is_an_error(head: FakeHead) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "beo.front", "queue"], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, b"beo: no space left on device\n")


def test_an_interrupt_ends_a_reading_verb_quietly_with_130(head: FakeHead) -> None:
    head.on(m.WaitJobs, lambda _: None)
    process = subprocess.Popen([sys.executable, "-m", "beo.front", "wait", "1"], stderr=subprocess.PIPE)
    head.wait_for(lambda: bool(head.messages(m.WaitJobs)))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
