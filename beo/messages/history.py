"""What has happened: the journal's entries in words, and what ended jobs took."""

from __future__ import annotations

import msgspec

from beo.messages.form import Message

# ---- clients ask -----------------------------------------------------------------------------------------------------


class ListEvents(Message, frozen=True):
    """Journal entries with an index above `after` (0: the last `limit`), newest last. → EventsAre

    At most `limit` entries are looked at; job and node: of these only those that name them.
    """

    after: int = 0
    limit: int = 100
    job: int = 0
    node: str = ""


class ListHistory(Message, frozen=True):
    """Ended jobs with an id below `before` (0: all), the newest first. → HistoryAre

    user, states: of this user, that ended so (empty: any). since_s, until_s: that ended then (0: no bound).
    """

    select: tuple[str, ...] = ()
    user: str = ""
    states: tuple[str, ...] = ()
    since_s: float = 0.0
    until_s: float = 0.0
    before: int = 0
    limit: int = 1_000


# ---- the head answers ------------------------------------------------------------------------------------------------


class EventView(msgspec.Struct, frozen=True, array_like=True):
    """One journal entry in words."""

    index: int
    epoch: int
    time_s: float
    kind: str
    job: int  # 0: none
    node: str
    text: str


class EventsAre(Message, frozen=True):
    """→ ListEvents. oldest: the first entry that the journal still has. upto: the last one that was looked at."""

    events: tuple[EventView, ...]
    oldest: int = 1
    upto: int = 0


class JobRecord(msgspec.Struct, frozen=True, array_like=True):
    """What an ended job took. waited_s: until its first attempt began. ran_s and cpu_s: over its last attempts."""

    id: int
    name: str
    user: str
    state: str
    exit_code: int
    code_by: str
    submitted_s: float
    started_s: float  # of the last attempt; 0: there was none
    ended_s: float
    waited_s: float
    ran_s: float
    cpu_s: float
    peak_bytes: int  # of the largest rank
    ranks: int
    slots: int
    nodes: str  # of the last attempt
    attempts: int
    reason: str


class HistoryAre(Message, frozen=True):
    """→ ListHistory. next: what to ask for as `before`; 0: there is no more."""

    jobs: tuple[JobRecord, ...]
    next: int = 0


HistoryRequest = ListEvents | ListHistory
HistoryAnswer = EventsAre | HistoryAre
