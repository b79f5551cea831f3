"""Commands at a real cluster of two heads, whose primary is stopped and killed: none of them says a word about it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import HEADS, PATIENCE_S, Cluster, kill, running, send, wait_for

PRINT = "i=0; until [ -e {stop} ]; do echo $i; i=$((i+1)); sleep 0.02; done; echo end"
SINGLE = "read a; echo got $a; read a; echo got $a; read a; echo got $a"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path / "beo", 2, 4, heads=2) as cluster:
        yield cluster


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.slow
def test_run_logs_events_and_wait_go_on_over_two_take_overs_without_a_word_or_a_doubled_line(
    pair: Cluster, tmp_path: Path
) -> None:
    first = HEADS[pair.await_step().name]
    files = {name: (tmp_path / f"{name}.out", tmp_path / f"{name}.err") for name in ("run", "logs", "events", "typed")}
    stop = tmp_path / "stop"

    def start(name: str, *words: str, **options: object) -> subprocess.Popen[str]:
        out, err = files[name]
        return pair.start(*words, stdout=out.open("w"), stderr=err.open("w"), **options)

    events = start("events", "events", "-f", "-q")
    run = start("run", "run", "sh", "-c", PRINT.format(stop=stop))
    wait_for(lambda: len(lines(files["run"][0])) > 5, "the job prints")
    logs = start("logs", "logs", "-f", "1")
    wait = pair.start("wait", "1")
    typed = start("typed", "run", "sh", "-c", SINGLE, stdin=subprocess.PIPE)
    assert typed.stdin

    def say(word: str) -> None:
        assert typed.stdin
        typed.stdin.write(f"{word}\n")
        typed.stdin.flush()
        wait_for(lambda: f"got {word}" in lines(files["typed"][0]), f"{word} comes back")

    say("one")
    jobs = [pair.submit(["true"])]

    stopped = pair.pid(first)
    send([stopped], signal.SIGSTOP)
    jobs.append(pair.submit(["true"]))  # by a client that knows nothing of the take-over
    say("two")
    before = len(lines(files["run"][0]))
    wait_for(lambda: len(lines(files["run"][0])) > before + 5, "output goes on")
    send([stopped], signal.SIGCONT)

    second = HEADS[pair.await_step().name]
    assert second != first
    kill([pair.pid(second)])
    jobs.append(pair.submit(["true"]))
    say("three")
    before = len(lines(files["run"][0]))
    wait_for(lambda: len(lines(files["run"][0])) > before + 5, "output goes on again")
    stop.touch()
    for process in (run, logs, wait, typed):
        assert process.wait(PATIENCE_S) == 0
    assert [view.state for view in pair.wait(*jobs)] == ["done"] * 3
    time.sleep(1.0)  # for the last events
    events.terminate()
    events.wait()

    count = len(lines(files["run"][0])) - 1
    assert lines(files["run"][0]) == [*map(str, range(count)), "end"]
    assert lines(files["logs"][0]) == lines(files["run"][0])
    assert lines(files["typed"][0]) == ["got one", "got two", "got three"]
    with pair.client() as own:
        told = ["1", *(str(event.index) for event in own.journal())]  # which begins behind the birth
    seen = lines(files["events"][0])
    assert len(seen) == len(set(seen)) and seen == told[told.index(seen[0]) : told.index(seen[-1]) + 1]
    for name, (_, err) in files.items():
        assert err.read_text() == "", name
