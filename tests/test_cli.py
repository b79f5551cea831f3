"""The command line: what each verb sends and prints, and what its user's mistakes are answered with."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beo import messages as m
from beo import records
from beo.cli.group import VERBS, main
from beo.cli.past import parse_moment
from beo.errors import Conflict
from beo.events import PartResult, RankResult
from beo.spec import JobSpec
from tests.fake_head import FakeHead, view

Beo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHead]:
    head = FakeHead(tmp_path / "cluster")
    monkeypatch.setenv("BEO_DIR", str(head.home.path))
    monkeypatch.chdir(tmp_path)
    yield head
    head.stop()


@pytest.fixture
def beo(capsys: pytest.CaptureFixture[str]) -> Beo:
    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        written = capsys.readouterr()
        return code, written.out, written.err

    return run


def submitted(head: FakeHead) -> JobSpec:
    """Return the spec that the head got last."""
    last = head.messages(m.Submit)[-1]
    assert isinstance(last, m.Submit)
    return last.spec


# ---- the frame ------------------------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_each_has_a_page_of_its_own(beo: Beo) -> None:
    code, out, _ = beo("--help")
    assert code == 0
    for verb, (_, line) in VERBS.items():
        assert f"  {verb} " in out and line in out
        code, page, _ = beo(verb, "--help")
        assert code == 0 and page.startswith(f"Usage: beo {verb}")
        for section in ("Exit codes:", "Environment:"):
            assert section in page


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["quue"], "no command 'quue': did you mean queue or requeue?"),
        (["xyzzy"], "no command 'xyzzy': see 'beo --help'"),
        (["queue", "--jsn"], "no option '--jsn': did you mean --json?"),
        (["queue", "x"], "'x' names no job: use an id, 'last', a range like 1-3, or 'all'"),
        (["queue", "--format", "nam"], "no column 'nam': did you mean name?"),
        (["show"], "no job named: name one: an id, 'last', '1-3' or 'all'"),
        (["wait", "1", "-t", "soon"], "'soon' is no duration: write it as"),
        (["gone"], "missing argument 'NODE': see 'beo gone --help'"),
        (["submit"], "no command (a job needs a program to run): put it last: beo submit CMD ..."),
        (["submit", "-n", "0", "true"], "the number of ranks is 0 (it must be from 1 to 16384): change -n"),
        (["submit", "-n", "two", "true"], "invalid value for '-n' / '--ranks': 'two' is not a valid integer"),
        (["submit", "--mem", "4", "true"], "'4' is no size (a bare number could mean bytes or MiB)"),
        (["submit", "--env", "X", "true"], "--env 'X' sets nothing: write it as NAME=VALUE"),
        (["submit", "--chdir", "/nowhere", "true"], "no folder /nowhere (the job would run there): make it"),
    ],
)
def test_a_mistake_exits_2_and_names_its_cure(head: FakeHead, beo: Beo, argv: list[str], text: str) -> None:
    head.on(m.ListJobs, m.JobsAre(()))
    code, out, err = beo(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("beo: " + text), err


def test_without_a_head_a_verb_exits_69(beo: Beo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEO_DIR", str(tmp_path))
    assert beo("queue") == (69, "", f"beo: no cluster in {tmp_path}: make one with 'beo up', or set BEO_DIR\n")


def test_what_the_head_refuses_is_told_with_its_own_exit_code(head: FakeHead, beo: Beo) -> None:
    def full(_: object) -> object:
        raise Conflict("the queue is full", "100 jobs", "wait for some to end")

    head.on(m.Submit, full)
    assert beo("submit", "true") == (75, "", "beo: the queue is full (100 jobs): wait for some to end\n")


# ---- submit ---------------------------------------------------------------------------------------------------------


def test_submit_prints_the_job_and_sends_what_was_asked_for(head: FakeHead, beo: Beo, tmp_path: Path) -> None:
    head.on(m.Submit, m.SubmittedIs(7, ("node02 is silent",)))
    (tmp_path / "sub").mkdir()
    options = "-n 4 -N 2 -c 2 --mem 1GiB -t 1h -J pi -o o.%j -e e --env A=1 --env A=2 --chdir sub --requeue auto"
    code, out, err = beo("submit", *options.split(), "--priority", "5", "python", "pi.py", "-n", "9")
    assert (code, out, err) == (0, "job 7\n", "beo: node02 is silent\n")
    spec = submitted(head)
    assert spec.argv == ("python", "pi.py", "-n", "9"), "options stop at the first word of the command"
    assert (spec.ranks, spec.nodes, spec.cpus, spec.mem_bytes, spec.time_limit_s) == (4, 2, 2, 1 << 30, 3600.0)
    assert (spec.name, spec.requeue, spec.priority, spec.env["A"]) == ("pi", "auto", 5, "2")
    assert (spec.cwd, spec.output) == (str(tmp_path / "sub"), str(tmp_path / "sub" / "o.%j"))
    assert spec.errors == str(tmp_path / "sub" / "e")
    assert not any(name.startswith("BEO_") for name in spec.env)


def test_submit_quietly_prints_the_bare_id(head: FakeHead, beo: Beo) -> None:
    head.on(m.Submit, m.SubmittedIs(7))
    assert beo("submit", "-q", "true") == (0, "7\n", "")


def test_submit_under_a_key_sends_that_key(head: FakeHead, beo: Beo) -> None:
    head.on(m.Submit, m.SubmittedIs(7))
    beo("submit", "--key", "mine", "true")
    (sent,) = head.messages(m.Submit)
    assert isinstance(sent, m.Submit)
    assert sent.key == "mine"


def test_submit_and_wait_exits_with_the_jobs_code(head: FakeHead, beo: Beo) -> None:
    head.on(m.Submit, m.SubmittedIs(7))
    head.on(m.WaitJobs, m.JobsAre((view(7, "failed", 3),)))
    assert beo("submit", "--wait", "false") == (3, "job 7\n", "")


SCRIPT = """#!/bin/sh
# a comment
#BEO -n 4 -t 1h   # of two
#BEO --env A=script --env B=script -J 'my job'

echo hello
#BEO -n 99
"""


def test_a_scripts_lines_count_below_the_command_line(head: FakeHead, beo: Beo, tmp_path: Path) -> None:
    head.on(m.Submit, m.SubmittedIs(1))
    (tmp_path / "job.sh").write_text(SCRIPT)
    assert beo("submit", "-n", "2", "--env", "A=typed", "job.sh", "x")[0] == 0
    spec = submitted(head)
    assert (spec.ranks, spec.time_limit_s, spec.name) == (2, 3600.0, "my job")
    assert (spec.env["A"], spec.env["B"]) == ("typed", "script")
    assert (spec.script, spec.batch, spec.argv) == (SCRIPT, True, ("job.sh", "x"))


def test_a_script_of_another_language_runs_once_per_rank(head: FakeHead, beo: Beo, tmp_path: Path) -> None:
    head.on(m.Submit, m.SubmittedIs(1))
    (tmp_path / "job.py").write_text("#!/usr/bin/env python3\n#BEO -n 3\nprint()\n")
    beo("submit", "./job.py")
    assert (submitted(head).ranks, submitted(head).batch) == (3, False)


def test_a_program_without_such_lines_is_left_alone(head: FakeHead, beo: Beo, tmp_path: Path) -> None:
    head.on(m.Submit, m.SubmittedIs(1))
    (tmp_path / "job.sh").write_text("#!/bin/sh\necho '#BEO'\n")
    (tmp_path / "binary").write_bytes(b"\x7fELF\n#BEO -n 4\n\0")
    for name in ("./job.sh", "./binary"):
        beo("submit", name)
        assert (submitted(head).script, submitted(head).argv) == ("", (name,))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("#BEO -n 4\necho\n", "job.sh has #BEO lines but no '#!' line: begin it with the line '#!/bin/sh'"),
        (
            "#!/bin/sh\n#BEO --rnks 4\n",
            "the #BEO lines of job.sh: no option '--rnks': did you mean --ranks or --nodes or --in?",
        ),
        ("#!/bin/sh\n#BEO -n four\n", "the #BEO lines of job.sh: invalid value for '-n' / '--ranks': 'four' is not"),
        ("#!/bin/sh\n#BEO -J 'x\n", 'the #BEO lines of job.sh: line 2 of the script: "#BEO -J \'x" (no closing'),
        ("#!/bin/sh\n#BEO python\n", "the #BEO lines of job.sh: 'python' is no option: the command comes below"),
        ("#!/bin/sh\n#BEO --key x\n", "the #BEO lines of job.sh: --key belongs on the command line"),
        ("#!/bin/sh\n#BEO --help\n", "the #BEO lines of job.sh: --help asks for help: leave it out"),
        ("#!/bin/sh\n#BEO -n 0\n", "the number of ranks is 0"),
    ],
)
def test_a_mistake_in_a_script_names_the_script(
    head: FakeHead, beo: Beo, tmp_path: Path, text: str, error: str
) -> None:
    (tmp_path / "job.sh").write_text(text)
    code, out, err = beo("submit", "job.sh")
    assert (code, out) == (2, "")
    assert err.startswith("beo: " + error), err


def test_lines_below_the_first_command_are_told_to_count_for_nothing(head: FakeHead, beo: Beo, tmp_path: Path) -> None:
    head.on(m.Submit, m.SubmittedIs(1))
    (tmp_path / "job.sh").write_text("#!/bin/sh\necho\n#BEO -n 4\n")
    assert beo("submit", "job.sh") == (
        0,
        "job 1\n",
        "beo: job.sh: #BEO lines below the first command count for nothing\n",
    )
    assert submitted(head).ranks == 1


# ---- reading verbs --------------------------------------------------------------------------------------------------


def test_queue_prints_a_table(head: FakeHead, beo: Beo) -> None:
    rows = (view(1, "running", started_s=0.0), view(12, "queued", name="a\nb", reason="4 slots wanted, 2 free"))
    head.on(m.ListJobs, m.JobsAre(rows, more=3))
    code, out, err = beo("queue")
    assert code == 0
    assert out.splitlines() == [
        "ID  NAME  USER  STATE    RANKS  NODES        TIME  REASON",
        " 1  pi    ada   running      4  node[01-02]  -     -",
        r"12  a\nb  ada   queued       4  -            -     4 slots wanted, 2 free",
    ]
    assert err == "beo: 3 more jobs: raise --limit, or name a range\n"


def test_queue_asks_for_what_is_wanted(head: FakeHead, beo: Beo) -> None:
    head.on(m.ListJobs, m.JobsAre((view(3),)))
    beo("queue")
    beo("queue", "-a", "--limit", "5")
    beo("queue", "3-5", "7")
    assert head.received == [m.ListJobs(), m.ListJobs((), True, 5), m.ListJobs(("3-5", "7"))]


def test_json_of_the_reading_verbs_parses_and_tells_whose_the_code_is(head: FakeHead, beo: Beo) -> None:
    rows = (view(1, "failed", 3), view(2, "cancelled", 130, code_by="beo"), view(3, "queued"))
    head.on(m.ListJobs, m.JobsAre(rows))
    found = json.loads(beo("queue", "--json")[1])
    assert [(row["id"], row["exit_code"], row["origin"]) for row in found] == [
        (1, 3, "job"),
        (2, 130, "beo"),
        (3, None, None),
    ]
    assert found[0]["time"] == 2.5 and found[2]["started_s"] is None
    head.on(m.WaitJobs, m.JobsAre(rows[:1]))
    code, out, _ = beo("wait", "--json", "1")
    assert (code, json.loads(out)[0]["origin"]) == (3, "job")


def test_quiet_prints_ids_only(head: FakeHead, beo: Beo) -> None:
    head.on(m.ListJobs, m.JobsAre((view(1), view(2))))
    assert beo("queue", "-q") == (0, "1\n2\n", "")


def detail() -> m.JobDetail:
    """Return a job that ran twice."""
    ranks = tuple(RankResult(rank, rank, 1.5, 0.25, 1 << 20) for rank in range(2))
    first = m.AttemptView(1, 1001.0, 1002.0, "node01 was lost", (("node01", 0, 2, "gone"),), ())
    second = m.AttemptView(2, 1003.0, 1005.0, "", (("node02", 0, 2, "ended"),), (PartResult(ranks),))
    spec = JobSpec(argv=("python", "a b.py"), cwd="/x", ranks=2, mem_bytes=1 << 30, time_limit_s=90.0, output="/x/o")
    return m.JobDetail(view(7, "failed", 1, ranks=2, attempt=2), spec, 1000, (first, second), ("rank 1 failed",))


def test_show_tells_everything_about_a_job(head: FakeHead, beo: Beo) -> None:
    head.on(m.ShowJob, m.DetailsAre((detail(),)))
    code, out, err = beo("show", "7")
    assert (code, err) == (0, "")
    for line in (
        "job 7  pi",
        "  state      failed, exit code 1 (the job's own)",
        "  command    python 'a b.py'",
        "  asked for  2 ranks, 1GiB per rank, 1m30s at most, requeue confirm",
        "  why        rank 1 failed",
        "             node01: ranks 0-1, gone",
        "             rank 1: status 1, 1.75 s of cpu, 1MiB at most",
    ):
        assert line in out.splitlines(), out
    assert "1s: node01 was lost" in out


def test_show_in_json_has_spec_and_attempts(head: FakeHead, beo: Beo) -> None:
    head.on(m.ShowJob, m.DetailsAre((detail(),)))
    (job,) = json.loads(beo("show", "7", "--json")[1])
    assert (job["id"], job["exit_code"], job["origin"], job["why"]) == (7, 1, "job", ["rank 1 failed"])
    assert job["spec"]["argv"] == ["python", "a b.py"]
    assert job["attempts"][1]["ranks"][1]["status"] == 1
    assert job["attempts"][0]["parts"] == [{"node": "node01", "first_rank": 0, "ranks": 2, "state": "gone"}]


def test_nodes_are_listed_with_their_facts(head: FakeHead, beo: Beo) -> None:
    facts = {"contain": "pidns", "memory": "cgroup2", "version": "0.1.0"}
    why = "no word for 7.0 s"
    node = m.NodeView("node01", "silent", 2, 1, 1 << 34, (3, 4), "10.0.0.7:99", facts, 7.0, "i1", why=why)
    head.on(m.ListNodes, m.NodesAre((node,)))
    assert beo("nodes")[1].splitlines() == [
        "NAME    STATE   SLOTS  USED  MEMORY  JOBS  ADDRESS   VERSION  WALLS  LIMIT    CRIU  DRAIN  WHY",
        "node01  silent      2     1   16GiB  3,4   10.0.0.7  0.1.0    pidns  cgroup2  -     -      no word for 7.0 s",
    ]
    (row,) = json.loads(beo("nodes", "--json")[1])
    assert (row["jobs"], row["facts"], row["incarnation"]) == ([3, 4], facts, "i1")


def test_events_are_listed_the_newest_last_and_by_job(head: FakeHead, beo: Beo) -> None:
    journal = [m.EventView(i, 1, 1000.0 + i, "Submitted", i % 3, "", f"e{i}") for i in range(1, 12)]

    def page(message: object) -> object:
        assert isinstance(message, m.ListEvents)
        behind = [event for event in journal if event.index > message.after]
        looked = behind[:4] if message.after else behind[-message.limit :]
        found = tuple(event for event in looked if message.job in (0, event.job))
        return m.EventsAre(found, 1, looked[-1].index if looked else message.after)

    head.on(m.ListEvents, page)
    assert [row["index"] for row in json.loads(beo("events", "-n", "3", "--json")[1])] == [9, 10, 11]
    assert beo("events", "--job", "2", "-q") == (0, "2\n5\n8\n11\n", "")
    assert beo("events", "--job", "2", "-q", "-n", "1") == (0, "11\n", "")


def test_following_events_prints_each_once_over_pages_that_have_none(head: FakeHead) -> None:
    journal = [m.EventView(i, 1, 1000.0 + i, "Submitted", i % 3, "n1", f"e{i}") for i in range(1, 4)]

    def page(message: object) -> object:
        assert isinstance(message, m.ListEvents)
        behind = [event for event in journal if event.index > message.after]
        looked = behind[:2] if message.after else behind[-message.limit :]
        found = tuple(event for event in looked if message.job in (0, event.job))
        return m.EventsAre(found, 1, looked[-1].index if looked else message.after)

    head.on(m.ListEvents, page)
    words = [sys.executable, "-m", "beo.front", "events", "-f", "--job", "2", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert json.loads(process.stdout.readline())["index"] == 2, "what was there before comes first"
        journal += [m.EventView(i, 1, 1000.0 + i, "Submitted", i % 3, "n1", f"e{i}") for i in range(4, 12)]
        assert [json.loads(process.stdout.readline())["index"] for _ in range(3)] == [5, 8, 11]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_following_events_says_what_is_no_longer_in_the_journal(head: FakeHead) -> None:
    def page(message: object) -> object:
        assert isinstance(message, m.ListEvents)
        born = m.EventView(6, 1, 1.0, "Born", 0, "", "x")
        return m.EventsAre((), 20, 30) if message.after else m.EventsAre((born,), 1, 6)

    head.on(m.ListEvents, page)
    words = [sys.executable, "-m", "beo.front", "events", "-f", "-q"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        line = process.stderr.readline()
        assert line == "beo: entries 7 to 19 are no longer in the journal: this reader was too slow\n"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def record(job: int, user: str = "ada", state: str = "done", **words: object) -> m.JobRecord:
    fields: dict[str, object] = {
        "name": "pi",
        "exit_code": 0 if state == "done" else 1,
        "code_by": "job",
        "submitted_s": 1000.0,
        "started_s": 1010.0,
        "ended_s": 1100.0,
        "waited_s": 10.0,
        "ran_s": 90.0,
        "cpu_s": 175.25,
        "peak_bytes": 3 << 20,
        "ranks": 2,
        "slots": 4,
        "nodes": "node[01-02]",
        "attempts": 1,
        "reason": "",
    }
    return m.JobRecord(id=job, user=user, state=state, **{**fields, **words})  # type: ignore[arg-type]


def test_history_lists_what_ended_jobs_took_the_newest_last(head: FakeHead, beo: Beo) -> None:
    head.on(m.ListHistory, m.HistoryAre((record(9, state="failed"), record(7))))
    code, out, err = beo("history", "--format", "id,state,exit,waited,ran,cpu,peak,ranks,nodes")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["ID", "STATE", "EXIT", "WAITED", "RAN", "CPU", "PEAK", "RANKS", "NODES"],
        ["7", "done", "0", "10s", "1m30s", "2m55s200ms", "3MiB", "2", "node[01-02]"],
        ["9", "failed", "1", "10s", "1m30s", "2m55s200ms", "3MiB", "2", "node[01-02]"],
    ]
    row = json.loads(beo("history", "--json")[1])[0]
    assert (row["id"], row["cpu"], row["attempts"], row["origin"]) == (7, 175.25, 1, "job")


def test_history_asks_page_by_page_and_stops_when_it_has_enough(head: FakeHead, beo: Beo) -> None:
    pages = {0: m.HistoryAre((record(9), record(8)), 8), 8: m.HistoryAre((), 5), 5: m.HistoryAre((record(3),), 0)}
    head.on(m.ListHistory, lambda message: pages[message.before])  # type: ignore[attr-defined]
    assert beo("history", "-q") == (0, "3\n8\n9\n", "")
    assert len(head.received) == 3
    code, out, err = beo("history", "-q", "-n", "1")
    assert (code, out) == (0, "9\n") and err.startswith("beo: these are the last 1: raise -n")
    assert len(head.received) == 4


def test_history_says_what_is_meant(head: FakeHead, beo: Beo) -> None:
    head.on(m.ListHistory, m.HistoryAre(()))
    words = ["3-7", "-u", "ada", "--state", "failed,lost", "--since", "2026-11-25", "--until", "2026-11-25 17:30"]
    assert beo("history", *words)[0] == 0
    (wish,) = head.messages(m.ListHistory)
    assert isinstance(wish, m.ListHistory)
    assert (wish.select, wish.user, wish.states) == (("3-7",), "ada", ("failed", "lost"))
    assert wish.until_s - wish.since_s == 17.5 * 3600


def test_history_sums_by_user_and_for_all(head: FakeHead, beo: Beo) -> None:
    jobs = (record(3, "bob", "failed", waited_s=0.0), record(2, peak_bytes=5 << 20), record(1, waited_s=20.0))
    head.on(m.ListHistory, m.HistoryAre(jobs))
    rows = json.loads(beo("history", "--sum", "--json")[1])
    assert [(row["user"], row["jobs"], row["done"], row["failed"]) for row in rows] == [
        ("ada", 2, 2, 0),
        ("bob", 1, 0, 1),
        ("*", 3, 2, 1),
    ]
    ada, _, everybody = rows
    assert (ada["waited"], ada["ran"], ada["slottime"], ada["cpu"], ada["peak"]) == (15.0, 180.0, 720.0, 350.5, 5 << 20)
    assert everybody["waited"] == 10.0


@pytest.mark.parametrize("word", ["yesterday", "2026-13-01", "25.11.2026", "-1h"])
def test_a_moment_that_is_none_is_a_mistake(head: FakeHead, beo: Beo, word: str) -> None:
    code, _, err = beo("history", "--since", word)
    assert code == 2 and err.startswith(f"beo: {word!r} is no moment: write it as 2026-11-25"), err


def test_moments_are_local_time_or_so_long_ago() -> None:
    now_s = time.mktime((2026, 11, 25, 17, 30, 0, 0, 0, -1))
    assert parse_moment("2h", now_s) == now_s - 7200
    assert parse_moment("now", now_s) == now_s
    assert parse_moment("today", now_s) == parse_moment("2026-11-25", now_s) == now_s - 17.5 * 3600
    assert parse_moment("2026-11-25T17:30", now_s) == parse_moment("2026-11-25 17:30:00", now_s) == now_s


def test_info_tells_who_answers(head: FakeHead, beo: Beo) -> None:
    head.on(m.Info, m.InfoIs("c" * 32, "A", 3, "ada", "0.1.0", ""))
    assert json.loads(beo("info", "--json")[1])["user"] == "ada"
    assert beo("info", "-q")[1] == "c" * 32 + "\n"
    assert "epoch           3" in beo("info")[1]


# ---- wait, cancel, gone ---------------------------------------------------------------------------------------------


def test_wait_exits_with_the_first_bad_code_by_id_and_tells_whose_doing_it_was(head: FakeHead, beo: Beo) -> None:
    rows = (view(1), view(2, "cancelled", 143, code_by="beo", reason="by ada"), view(3, "failed", 5))
    head.on(m.WaitJobs, lambda message: m.JobsAre(tuple(row for row in rows if row.id in message.jobs)))  # type: ignore[attr-defined]
    assert beo("wait", "3,2,1") == (143, "", "beo: job 2 was cancelled (by ada)\n")
    assert beo("wait", "1", "3") == (5, "", "")
    assert beo("wait", "1") == (0, "", "")


def test_wait_for_all_means_those_that_have_not_ended(head: FakeHead, beo: Beo) -> None:
    head.on(m.ListJobs, m.JobsAre((view(4, "running"),)))
    head.on(m.WaitJobs, m.JobsAre((view(4),)))
    assert beo("wait", "all")[0] == 0
    asked = head.received[0]
    assert isinstance(asked, m.ListJobs)
    assert (asked.select, asked.ended) == ((), False)


def test_wait_that_is_over_time_exits_124(head: FakeHead, beo: Beo) -> None:
    head.on(m.WaitJobs, m.JobsAre((view(4, "running"),)))
    code, _, err = beo("wait", "4", "-t", "0")
    assert code == 124
    assert err.startswith("beo: job 4 had not ended after 0s: 'beo wait' again")


def test_cancel_says_which_jobs_were_meant(head: FakeHead, beo: Beo) -> None:
    head.on(m.Cancel, m.JobsAre((view(4, "ending"), view(5, "cancelled"))))
    assert beo("cancel", "4-5") == (0, "job 4 ending\njob 5 cancelled\n", "")
    assert beo("cancel", "4-5", "-q")[1] == "4\n5\n"
    assert head.received[0] == m.Cancel(("4-5",))


@pytest.mark.parametrize(
    ("argv", "sent"),
    [
        (["hold", "4-5"], m.Hold(("4-5",))),
        (["release", "4", "5"], m.Release(("4", "5"))),
        (["set", "4-5", "--priority", "-3"], m.SetPriority(("4-5",), -3)),
    ],
)
def test_a_verb_that_changes_jobs_says_which_were_meant(
    head: FakeHead, beo: Beo, argv: list[str], sent: object
) -> None:
    head.on(type(sent), m.JobsAre((view(4, "held"), view(5, "queued"))))
    assert beo(*argv) == (0, "job 4 held\njob 5 queued\n", "")
    assert beo(*argv, "-q")[1] == "4\n5\n"
    assert [row["state"] for row in json.loads(beo(*argv, "--json")[1])] == ["held", "queued"]
    assert head.received == [sent] * 3


def test_requeue_names_the_attempts_that_it_saw(head: FakeHead, beo: Beo) -> None:
    rows = (view(4, "running", attempt=2), view(5, "done"), view(6, "queued"))
    head.on(m.ListJobs, m.JobsAre(rows))
    head.on(m.Requeue, m.JobsAre((view(4, "ending"), view(5, "queued"))))
    assert beo("requeue", "--hold", "4-6") == (0, "job 4 ending\njob 5 queued\n", "")
    assert beo("requeue", "all") == (0, "job 4 ending\njob 5 queued\n", "")
    assert head.messages(m.Requeue) == [m.Requeue(((4, 2), (5, 1), (6, 0)), True), m.Requeue(((4, 2),))]


def test_submit_can_hold_the_job(head: FakeHead, beo: Beo) -> None:
    head.on(m.Submit, m.SubmittedIs(7))
    assert beo("submit", "--hold", "true") == (0, "job 7\n", "")
    (sent,) = head.messages(m.Submit)
    assert isinstance(sent, m.Submit) and sent.hold


def test_drain_and_resume_say_how_the_nodes_are(head: FakeHead, beo: Beo) -> None:
    node = m.NodeView("n1", "draining", 2, 1, 0, (3, 4), "h:1", {}, 0.25, "i1", "by ada: new disk")
    idle = m.NodeView("n2", "drained", 2, 0, 0, (), "h:1", {}, 0.25, "i1", "by ada: new disk")
    head.on(m.Drain, m.NodesAre((node, idle)))
    assert beo("drain", "n1", "n2", "--reason", "new disk") == (
        0,
        "n1 draining: jobs 3,4 may end there\nn2 drained\n",
        "",
    )
    assert beo("drain", "n[1-2]", "-q")[1] == "n1\nn2\n"
    head.on(m.Resume, m.NodesAre((m.NodeView("n1", "up", 2, 1, 0, (3,), "h:1", {}, 0.25, "i1"),)))
    assert beo("resume", "n1") == (0, "n1 up\n", "")
    assert json.loads(beo("resume", "n1", "--json")[1])[0]["drain"] == ""
    assert [head.received[0], head.received[1], head.received[2]] == [
        m.Drain("n1,n2", "new disk"),
        m.Drain("n[1-2]"),
        m.Resume("n1"),
    ]


def test_forget_names_the_nodes(head: FakeHead, beo: Beo) -> None:
    head.on(m.ForgetNodes, m.NodesAre(()))
    assert beo("forget", "n1", "n[3-4]") == (0, "", "")
    assert head.received == [m.ForgetNodes("n1,n[3-4]")]


def looked_at(*rows: m.Process, silent: tuple[str, ...] = (), more: int = 0) -> m.ProcessesAre:
    machine = m.Machine(0.5, 4, 1 << 30, 1 << 29)
    return m.ProcessesAre((m.Inspected("node01", machine, rows),), {7: "ada"}, silent, more)


RANK = m.Process(7, 1, 4242, 4240, 0, "R", 90.5, 181.0, 3 << 20, 2, "python pi.py")
CHILD = m.Process(7, 1, 4243, 4242, -1, "S", 0.0, 180.0, 1 << 20, 1, "sh -c\x1b[2J")


def test_ps_lists_processes_with_ids_of_the_whole_cluster(head: FakeHead, beo: Beo) -> None:
    head.on(m.ListProcesses, looked_at(RANK, CHILD))
    assert beo("ps") == (
        0,
        "ID             USER  RANK  PARENT  STATE  TIME   CPU  MEMORY  THREADS  COMMAND\n"
        "7/node01/4242  ada      0    4240  R      1:30  50.0    3MiB        2  python pi.py\n"
        "7/node01/4243  ada      -    4242  S      0:00   0.0    1MiB        1  sh -c\\x1b[2J\n",
        "",
    )
    beo("ps", "7", "--node", "node[01-02]", "-u", "ada")
    assert head.received[-1] == m.ListProcesses(("7",), "node[01-02]", "ada")
    assert beo("ps", "-q")[1] == "7/node01/4242\n7/node01/4243\n"
    row = json.loads(beo("ps", "--json")[1])[1]
    assert (row["id"], row["rank"], row["memory"], row["job"], row["node"], row["pid"]) == (
        "7/node01/4243",
        None,
        1 << 20,
        7,
        "node01",
        4243,
    )


def test_ps_names_the_nodes_that_did_not_answer(head: FakeHead, beo: Beo) -> None:
    head.on(m.ListProcesses, looked_at(RANK, silent=("node02", "node03"), more=5))
    code, out, err = beo("ps", "-q")
    assert (code, out) == (75, "7/node01/4242\n")
    assert err.splitlines() == [
        "beo: 5 more processes: name a job or a node",
        "beo: no answer from node[02-03]: what runs there is not shown",
    ]


def test_kill_divides_jobs_ranks_and_processes_and_says_what_was_hit(head: FakeHead, beo: Beo) -> None:
    head.on(m.Signal, m.Done())
    hits = (m.Hit(7, 4242, -1, "", "sleep 60", "node01"), m.Hit(7, 50, 2, "", "python", "node02"))
    head.on(m.SignalProcesses, m.HitsAre(hits))
    assert beo("kill", "-s", "usr1", "3", "7/node01/4242", "7.2") == (
        0,
        "job 3: SIGUSR1 to every rank\n7/node01/4242: SIGUSR1 to sleep 60\n7/node02/50 (rank 2): SIGUSR1 to python\n",
        "",
    )
    (job,), (wish,) = head.messages(m.Signal), head.messages(m.SignalProcesses)
    assert isinstance(job, m.Signal) and isinstance(wish, m.SignalProcesses)
    assert (job.job, job.signal, wish.signal) == (3, 10, 10)
    assert wish.targets == (m.Target(7, "node01", 4242), m.Target(7, "", 0, 2))
    assert beo("kill", "-q", "-s", "9", "7.2")[:2] == (0, "")


def test_kill_names_what_was_not_hit_and_exits_1(head: FakeHead, beo: Beo) -> None:
    trouble = m.Hit(7, 4242, -1, "no process 4242 of job 7 runs here", "", "node01")
    head.on(m.SignalProcesses, m.HitsAre((trouble,), ("node02",)))
    code, out, err = beo("kill", "7/node01/4242", "7.9", "7/node02/5")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "beo: 7/node01/4242: no process 4242 of job 7 runs here",
        "beo: 7.9: no such rank runs (node02 did not answer)",
        "beo: 7/node02/5: not hit (node02 did not answer)",
    ]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["kill"], "missing argument 'ID...': see 'beo kill --help'"),
        (
            ["kill", "7/node01"],
            "'7/node01' names no process: write JOB/NODE/PID as 'beo ps' shows it, JOB.RANK, or JOB",
        ),
        (["kill", "7.x"], "'7.x' names no process: write JOB/NODE/PID"),
        (["kill", "x"], "'x' names no job"),
        (["kill", "-s", "TREM", "7"], "no signal 'TREM': did you mean TERM"),
        (["top", "-d", "1ms"], "a delay of 1ms (it must be 200ms at least): change -d"),
        (["ps", "x"], "'x' names no job"),
    ],
)
def test_a_mistake_about_processes_names_its_cure(head: FakeHead, beo: Beo, argv: list[str], text: str) -> None:
    code, out, err = beo(*argv)
    assert (code, out) == (2, "") and err.startswith("beo: " + text), err
    assert not head.received


def test_top_prints_looks_where_stdout_is_no_terminal(head: FakeHead, beo: Beo) -> None:
    head.on(m.Info, m.InfoIs("c" * 32, "A", 3, "ada", "0.1.0", ""))
    head.on(m.ListNodes, m.NodesAre((m.NodeView("node01", "up", 2, 1, 1 << 34, (7,), "h:1", {}, 0.25, "i1"),)))
    head.on(m.ListJobs, m.JobsAre((view(7, "running"),)))
    head.on(m.ListProcesses, looked_at(RANK))
    code, out, err = beo("top", "-n", "2", "-d", "200ms")
    assert (code, err) == (0, "")
    assert out.count("beo  cluster cccccccc") == 2 and out.count("7/node01/4242") == 2
    assert all(message.machines for message in head.messages(m.ListProcesses))  # type: ignore[attr-defined]


def test_gone_takes_the_operators_word(head: FakeHead, beo: Beo) -> None:
    head.on(m.DeclareGone, m.Done())
    assert beo("gone", "node02", "--yes") == (0, "", "")
    assert head.received == [m.DeclareGone("node02")]


# ---- logs and run ---------------------------------------------------------------------------------------------------


class Written:
    """What a job's attempts wrote: answers Fetch, and says that an attempt is over."""

    def __init__(self, **attempts: list[tuple[int, int, bytes]]) -> None:
        self.records = {
            int(name[1:]): b"".join(records.pack(*one) for one in found) for name, found in attempts.items()
        }

    def __call__(self, message: object) -> object:
        assert isinstance(message, m.Fetch)
        found = self.records[message.attempt]
        return m.Fetched(len(found), found[message.cursor :], True)


@pytest.fixture
def beo_raw(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, bytes, bytes]]:
    def run(*argv: str) -> tuple[int, bytes, bytes]:
        code = main(argv)
        written = capfdbinary.readouterr()
        return code, written.out, written.err

    return run


Raw = Callable[..., tuple[int, bytes, bytes]]
LINES = [(0, 1, b"a\nb"), (1, 2, b"bad\n"), (1, 1, b"\xff\n"), (0, 1, b"c\n")]


def test_logs_prints_both_streams_byte_for_byte(head: FakeHead, beo_raw: Raw) -> None:
    head.on(m.ListJobs, m.JobsAre((view(7),)))
    head.on(m.Fetch, Written(_1=LINES))
    assert beo_raw("logs", "7") == (0, b"a\nb\xff\nc\n", b"bad\n")
    assert beo_raw("logs") == (0, b"a\nb\xff\nc\n", b"bad\n")
    assert beo_raw("logs", "7", "--rank", "0") == (0, b"a\nbc\n", b"")


def test_logs_with_labels_keeps_the_lines_of_each_rank_whole(head: FakeHead, beo_raw: Raw) -> None:
    head.on(m.ListJobs, m.JobsAre((view(7),)))
    head.on(m.Fetch, Written(_1=[*LINES, (1, 1, b"unended")]))
    assert beo_raw("logs", "7", "-l") == (0, b"0: a\n1: \xff\n0: bc\n1: unended\n", b"1: bad\n")


def test_logs_of_a_job_that_has_not_started_says_how_to_wait(head: FakeHead, beo: Beo) -> None:
    head.on(m.ListJobs, m.JobsAre((view(7, "queued", reason="no room"),)))
    assert beo("logs", "7") == (75, "", "beo: job 7 has not started (no room): 'beo logs -f 7' waits for it\n")


def test_logs_of_several_jobs_or_an_unknown_attempt_is_a_mistake(head: FakeHead, beo: Beo) -> None:
    head.on(m.ListJobs, m.JobsAre((view(7), view(8))))
    assert beo("logs", "7-8") == (2, "", "beo: '7-8' names 2 jobs (logs prints one): name one of them\n")
    head.on(m.ListJobs, m.JobsAre((view(7),)))
    assert beo("logs", "7", "--attempt", "3")[2] == "beo: no attempt 3 of job 7 (the last one is 1): name another\n"


def test_following_goes_on_with_the_next_attempt_and_says_why(head: FakeHead, beo_raw: Raw) -> None:
    head.on(m.ListJobs, m.JobsAre((view(7, "running"),)))
    looks = iter([view(7, "running"), view(7, "queued", attempt=1), view(7, "running", attempt=2)])
    head.on(m.WaitJobs, lambda _: m.JobsAre((next(looks, view(7, attempt=2)),)))
    head.on(m.ShowJob, m.DetailsAre((detail(),)))
    head.on(m.Fetch, Written(_1=[(0, 1, b"first\n")], _2=[(0, 1, b"second\n")]))
    code, out, err = beo_raw("logs", "-f", "7")
    assert (code, out) == (0, b"first\nsecond\n")
    assert err == b"beo: attempt 1 ended (node01 was lost); attempt 2 follows\n"


def test_run_prints_the_output_and_exits_with_the_programs_code(head: FakeHead, beo_raw: Raw) -> None:
    head.on(m.Submit, m.SubmittedIs(7))
    head.on(m.WaitJobs, m.JobsAre((view(7, "failed", 9),)))
    head.on(m.Fetch, Written(_1=LINES))
    assert beo_raw("run", "-n", "2", "prog", "-x") == (9, b"a\nb\xff\nc\n", b"bad\n")
    spec = submitted(head)
    assert (spec.attached, spec.requeue, spec.argv, spec.ranks) == (True, "never", ("prog", "-x"), 2)
    assert all(isinstance(look, m.WaitJobs) and look.attached for look in head.messages(m.WaitJobs))


def test_run_forwards_a_signal_once_and_a_third_sigint_cancels(head: FakeHead, tmp_path: Path) -> None:
    state = {"now": view(7, "running")}
    head.on(m.Submit, m.SubmittedIs(7))
    head.on(m.WaitJobs, lambda _: m.JobsAre((state["now"],)))
    head.on(m.Fetch, lambda message: m.Fetched(0, b"", state["now"].state != "running"))
    head.on(m.Signal, m.Done())
    head.on(m.Cancel, m.JobsAre(()))
    process = subprocess.Popen([sys.executable, "-m", "beo.front", "run", "prog"], stderr=subprocess.PIPE, text=True)
    head.wait_for(lambda: bool(head.messages(m.Fetch)))
    process.send_signal(signal.SIGUSR1)
    head.wait_for(lambda: len(head.messages(m.Signal)) == 1)
    for count in range(2):
        process.send_signal(signal.SIGINT)
        head.wait_for(lambda count=count: len(head.messages(m.Signal)) == 2 + count)  # type: ignore[misc]
    process.send_signal(signal.SIGINT)
    head.wait_for(lambda: bool(head.messages(m.Cancel)))
    state["now"] = view(7, "cancelled", 130, code_by="beo", reason="cancelled by ada")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "beo: job 7 was cancelled (cancelled by ada)\n"
    sent = [message for message in head.messages(m.Signal) if isinstance(message, m.Signal)]
    assert [message.signal for message in sent] == [signal.SIGUSR1, signal.SIGINT, signal.SIGINT]
    assert len({message.key for message in sent}) == 3


def test_run_of_a_job_that_waits_is_cancelled_by_a_signal(head: FakeHead) -> None:
    state = {"now": view(7, "queued")}
    head.on(m.Submit, m.SubmittedIs(7))
    head.on(m.WaitJobs, lambda _: m.JobsAre((state["now"],)))

    def cancel(_: object) -> object:
        state["now"] = view(7, "cancelled", 130, code_by="beo", attempt=0)
        return m.JobsAre(())

    head.on(m.Cancel, cancel)
    process = subprocess.Popen([sys.executable, "-m", "beo.front", "run", "prog"])
    head.wait_for(lambda: len(head.messages(m.WaitJobs)) > 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143


def test_run_whose_reader_has_gone_cancels_the_job_and_dies_of_sigpipe(head: FakeHead) -> None:
    head.on(m.Submit, m.SubmittedIs(7))
    head.on(m.WaitJobs, m.JobsAre((view(7, "running"),)))
    head.on(m.Fetch, lambda message: m.Fetched(message.cursor + 1, records.pack(0, 1, b"y\n"), False))  # type: ignore[attr-defined]
    head.on(m.Cancel, m.JobsAre(()))
    process = subprocess.Popen([sys.executable, "-m", "beo.front", "run", "yes"], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.read(1) == b"y"
    process.stdout.close()
    assert process.wait(20) == -signal.SIGPIPE
    assert head.messages(m.Cancel) == [m.Cancel(("7",))]
