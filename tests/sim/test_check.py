"""What the checker knows of several heads, of what clients see, and of output: it passes what is right, and only that.

What it knows of jobs and the journal is tried in tests/test_history.py, with notes in files.
"""

from __future__ import annotations

import pytest

from beo.messages import JobView
from tests.sim.check import Acted, History, Line, Note, Seen, check_reigns


def row(state: str = "done", attempt: int = 1, code: int = 0) -> JobView:
    """A row of job 1."""
    return JobView(1, "", "", state, 1, "", attempt, 0.0, 0.0, 0.0, code, "")


def ran(attempt: int = 1, at_ns: int = 100, lines: int = 0) -> list[Note]:
    """What an attempt of job 1 writes down that comes to its end."""
    return [
        Note("start", 1, attempt, 0, 7, at_ns),
        Note("alive", 1, attempt, 0, 7, at_ns + 10),
        Note("end", 1, attempt, 0, 7, at_ns + 20, lines),
    ]


@pytest.fixture
def history() -> History:
    """Job 1 ran well, after two lines of an attempt that was lost."""
    made = History()
    made.acknowledged("a", 1, 50)
    for note in [*ran(1, 100)[:2], *ran(2, 200, lines=3)]:
        made.noted("a", note)
    return made


def lines(*texts: str) -> list[Line]:
    return [Line(*map(int, text.split())) for text in texts]


WHOLE = lines("1 0 0", "1 0 1", "2 0 0", "2 0 1", "2 0 2")


def test_primaries_that_follow_each_other_are_right() -> None:
    acts = [
        Acted("A", 1, 100, 120),
        Acted("A", 1, 200, 900),  # asked before B acted: the answer may be from then, however late it came
        Acted("B", 2, 250, 300),
        Acted("B", 2, 310, 320),
        Acted("A", 3, 310, 400),
    ]
    assert check_reigns(acts) == []


@pytest.mark.parametrize(
    ("acts", "fault"),
    [
        ([Acted("A", 1, 301, 302), Acted("B", 2, 250, 300)], "A acted in epoch 1 0.000 s into epoch 2"),
        ([Acted("A", 1, 1, 2), Acted("B", 1, 3, 4)], "epoch 1 is of A and of B"),
        ([Acted("B", 2, 1, 2), Acted("A", 3, 3, 4), Acted("B", 2, 5, 6)], "B acted in epoch 2 0.000 s into epoch 3"),
        ([Acted("A", 5, 1, 2), Acted("B", 4, 3, 4)], "B acted in epoch 4 0.000 s into epoch 5"),
    ],
)
def test_two_primaries_are_found(acts: list[Acted], fault: str, history: History) -> None:
    history.acts += acts
    assert history.faults([row(attempt=2)], []) == [fault]


def test_what_clients_see_may_lag_behind_as_long_as_they_wait(history: History) -> None:
    history.views += [
        Seen(1, "", 0, 10, 20),  # before it was acknowledged
        Seen(1, "queued", 0, 60, 70),
        Seen(1, "running", 1, 80, 500),
        Seen(1, "running", 2, 210, 220),
        Seen(1, "done", 2, 215, 230),
        Seen(1, "done", 2, 600, 700),
    ]
    assert history.faults([row(attempt=2)], []) == []


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        ([Seen(1, "", 0, 60, 70)], "job 1 was acknowledged, and later somebody was told that it doesn't exist"),
        (
            [Seen(1, "running", 2, 60, 70), Seen(1, "running", 1, 71, 80)],
            "job 1 was running in attempt 2, and later running in attempt 1",
        ),
        (
            [Seen(1, "done", 1, 60, 70), Seen(1, "running", 2, 71, 80)],
            "job 1 was done in attempt 1, and later running in attempt 2",
        ),
        ([Seen(1, "done", 1, 60, 70), Seen(1, "lost", 1, 71, 80)], "job 1 had ended as done, and later as lost"),
    ],
)
def test_a_client_that_sees_less_than_one_before_it_is_found(seen: list[Seen], fault: str, history: History) -> None:
    history.views += seen
    assert history.faults([row(attempt=2)], []) == [fault]


def test_a_follower_that_gets_each_line_once_is_right(history: History) -> None:
    history.followed("a", "logs", WHOLE)
    history.followed("a", "late", WHOLE[2:])
    history.followed("a", "killed", WHOLE[:1], whole=False)
    assert history.faults([row(attempt=2)], []) == []


@pytest.mark.parametrize(
    ("got", "fault"),
    [
        (WHOLE[:-1], "2 of 3 lines of attempt 2, rank 0"),
        (WHOLE[:2], "0 of 3 lines of attempt 2, rank 0"),
        ([*WHOLE[:3], *WHOLE[4:]], "line 2 of attempt 2, rank 0 comes where line 1 belongs"),
        ([*WHOLE[:4], *WHOLE[3:]], "line 1 of attempt 2, rank 0 comes where line 2 belongs"),
        ([*WHOLE[:3], WHOLE[4], WHOLE[3]], "line 2 of attempt 2, rank 0 comes where line 1 belongs"),
        (WHOLE[1:], "line 1 of attempt 1, rank 0 comes where line 0 belongs"),
        ([*WHOLE[2:], *WHOLE[:2]], "an earlier attempt's lines come behind a later one's"),
    ],
)
def test_a_line_that_is_lost_doubled_or_misplaced_is_found(got: list[Line], fault: str, history: History) -> None:
    history.followed("a", "logs", got)
    assert f"a: logs: {fault}" in history.faults([row(attempt=2)], [])


def test_a_job_may_be_cancelled_only_where_somebody_wished_it(history: History) -> None:
    ended = row("cancelled", 2, 143)
    assert history.faults([ended], []) == ["a: job 1 is cancelled with 143 ()"]
    history.cancelled("a")
    assert history.faults([ended], []) == history.faults([row(attempt=2)], []) == []
