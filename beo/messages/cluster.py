"""The cluster as a whole: who answers, its heads, how a pair of them fares and who acts, and where the tree is."""

from __future__ import annotations

import msgspec

from beo.messages.form import Message
from beo.votes import Cfg

# ---- clients ask -----------------------------------------------------------------------------------------------------


class Info(Message, frozen=True):
    """Ask who answers. → InfoIs"""


class AskTree(Message, frozen=True):
    """Where is the tree of files served? From then on it is. → TreeIs"""


class AskPair(Message, frozen=True):
    """Tell how this head and its pair fare; answered by every head, whatever its role. → PairIs"""


class Steer(Message, frozen=True):
    """Change who acts: switchover, takeover, freeze, thaw, or force. To the head that it is about. → Done"""

    wish: str


class SetPair(Message, frozen=True):
    """Change settings that both heads share; None leaves one as it is. → PairIs"""

    level: str | None = None
    takeover: str | None = None
    failback: bool | None = None
    lease_s: float | None = None
    silence_s: float | None = None


class JoinHead(Message, frozen=True):
    """A newcomer that was enrolled as a head says where it is reached; it may say so again. → HeadJoinedIs"""

    control: str  # host:port
    bulk: str
    links: tuple[str, ...]


class LeaveHead(Message, frozen=True):
    """Let a head that doesn't act belong to the cluster no more. → Done"""

    head: str


# ---- the head answers ------------------------------------------------------------------------------------------------


class InfoIs(Message, frozen=True):
    """Which cluster, head and epoch; user is who the head takes the client for."""

    cluster: str
    head: str
    epoch: int
    user: str
    version: str
    bulk: str  # address of the bulk plane
    role: str = ""
    uid: int = -1  # whose jobs the client may submit; -1: anybody's
    heads: tuple[HeadView, ...] = ()  # all of them; none: only the one that answers


class TreeIs(Message, frozen=True):
    """Where the tree of files is served, host:port; "": nowhere yet, it is being started."""

    address: str


class HeadView(msgspec.Struct, frozen=True, array_like=True):
    """A head as its cluster knows it."""

    name: str
    control: str  # host:port
    bulk: str
    links: tuple[str, ...]  # host:port of its pair plane, one per path


class VoterView(msgspec.Struct, frozen=True, array_like=True):
    """A voter, or who could be one."""

    voter: str
    node: str
    rack: str
    votes: bool  # its vote counts at present
    silent_s: float


class PairIs(Message, frozen=True):
    """One head's view of the pair. Ages are in seconds; -1: never."""

    name: str
    role: str  # primary, standby, candidate, won or idle
    why: str  # it doesn't act or isn't in step, where there is a reason to tell
    epoch: int
    cfg: Cfg | None
    in_step: bool  # what is acknowledged is durable on both
    primary: str  # its name, "" where nobody is known to act
    last: int
    commit: int
    match: int  # of the other head's journal, as the primary knows it
    output_lag_bytes: int
    heard_s: float  # since the other head last answered
    heads: tuple[HeadView, ...]
    voters: tuple[VoterView, ...]
    level: str
    takeover: str
    failback: bool
    frozen: bool
    lease_s: float
    silence_s: float
    born_s: float  # wall clock
    down_s: float  # in all, since then: nobody acted
    takeovers: int
    orphans: int  # entries put aside here that the cluster does not have
    findings: tuple[str, ...]
    version: str
    entry_format: int
    other_version: str
    config: dict[str, str]  # this machine's [ha], to be compared


class HeadJoinedIs(Message, frozen=True):
    """Who the newcomer is, and what every head must know. time_s: the wall clock of who answers.

    keys: the cluster's secret keys by name (head, admin, worker). They travel nowhere else.
    """

    name: str
    cluster: str
    heads: tuple[HeadView, ...]
    time_s: float
    keys: dict[str, str] = msgspec.field(default_factory=dict)


class Elsewhere(Message, frozen=True):
    """This head doesn't act: ask the one at `head` ("" while none is known), whose epoch is this."""

    head: str
    epoch: int


ClusterRequest = Info | AskTree | AskPair | Steer | SetPair | JoinHead | LeaveHead
ClusterAnswer = InfoIs | TreeIs | PairIs | HeadJoinedIs | Elsewhere
