"""The history checker has teeth: it passes a good run, and finds each way in which a run can be bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from beo.messages import EventView, JobView
from tests.history import History

GOOD = """\
start 1 1 0 7 100
alive 1 1 0 7 110
end 1 1 0 7 120
"""
AGAIN = "start 1 2 0 8 {at}\nend 1 2 0 8 900\n"


def row(**words: object) -> JobView:
    """A row of a job that is done."""
    facts = {"id": 1, "name": "", "user": "", "state": "done", "ranks": 1, "nodes": "", "attempt": 1}
    facts |= {"submitted_s": 0.0, "started_s": 0.0, "ended_s": 0.0, "exit_code": 0, "reason": ""}
    return JobView(**{**facts, **words})  # type: ignore[arg-type]  # the names above are the fields


def event(kind: str, text: str, epoch: int = 1) -> EventView:
    """An entry of the journal about job 1."""
    return EventView(1, epoch, 0.0, kind, 1, "node01" if kind == "PartEnded" else "", text)


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A good run of one job, which was acknowledged."""
    made = History(tmp_path / "notes")
    (tmp_path / "notes" / "a").write_text(GOOD)
    made.acknowledged("a", 1)
    return made


def test_a_good_run_has_no_faults(history: History) -> None:
    events = [event("Submitted", ""), event("Started", "attempt 1, 1 rank"), event("PartEnded", "attempt 1: status 0")]
    assert history.faults([row()], events, adopted=["a"]) == []


def test_an_attempt_that_was_lost_and_followed_by_another_is_no_fault(history: History, tmp_path: Path) -> None:
    (tmp_path / "notes" / "a").write_text(GOOD.replace("end", "alive") + AGAIN.format(at=130))
    assert history.faults([row(attempt=2)], []) == []


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([], "a: job 1 was acknowledged and is not there"),
        ([row(state="queued")], "a: job 1 is queued"),
        ([row(state="lost", exit_code=75, reason="sunk")], "a: job 1 is lost with 75 (sunk)"),
        ([row(attempt=2)], "a: job 1 is done in attempt 2, in which ranks [] came to their end"),
        ([row(ranks=2)], "a: job 1 is done in attempt 1, in which ranks [0] came to their end"),
    ],
)
def test_what_the_cluster_says_is_held_against_the_jobs(history: History, rows: list[JobView], fault: str) -> None:
    assert fault in history.faults(rows, [])


@pytest.mark.parametrize(
    ("notes", "fault"),
    [
        (GOOD + AGAIN.format(at=115), "a: job 1: attempt 1 lived 0.000 s into attempt 2"),
        (GOOD + AGAIN.format(at=130), "a: job 1: attempt 2 began after attempt 1 had ended"),
        (GOOD + AGAIN.format(at=130), "a: was started again: attempts [1, 2]"),
        (GOOD + "start 1 1 0 9 130\n", "a: job 1, attempt 1, rank 0: 2 times start"),
        (GOOD + GOOD.replace("start 1", "start 2"), "a: one submission ran as jobs [1, 2]"),
        (GOOD.replace(" 1 1 0", " 2 1 0"), "a: job 1 was acknowledged, but it ran as [2]"),
        (GOOD.replace(" 1 1 0", " 2 1 0"), "a: job 2 ran and nobody knows it"),
    ],
)
def test_what_the_jobs_wrote_down_is_looked_through(history: History, tmp_path: Path, notes: str, fault: str) -> None:
    (tmp_path / "notes" / "a").write_text(notes)
    assert fault in history.faults([row()], [], adopted=["a"])


def test_an_id_belongs_to_one_submission_and_a_submission_has_one_id(history: History) -> None:
    history.acknowledged("a", 5)
    history.acknowledged("b", 1)
    faults = history.faults([row()], [])
    assert "a was acknowledged as job 1 and as job 5" in faults
    assert "job 1 was given to 2 submissions" in faults


def test_a_journal_that_repeats_itself_is_found(history: History) -> None:
    twice = [event("PartEnded", "attempt 1: status 0"), event("PartEnded", "attempt 1: rank 0 was killed")]
    assert history.faults([row()], twice) == ["2 entries ('PartEnded', 1, 'node01', 'attempt 1')"]
    assert history.faults([row()], [event("Started", "attempt 1", 3), event("Started", "attempt 2", 1)]) == [
        "epochs go back"
    ]
