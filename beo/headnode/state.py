"""The cluster's state, and `apply`: the only thing that changes it.

`apply(event)` never decides. It re-validates what it is told: an event that doesn't fit any more (a start for an
incarnation that has been replaced) is void, not an error. Whoever applies the same events in the same order, a
restarted head, a standby or a test, has the same state, byte for byte (`encode`). What each event changes is said in
folds/.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from beo import events as ev
from beo.headnode.folds import attempts, heads, jobs, keys, machines, nodes, reservations
from beo.headnode.known import Folds, Known
from beo.headnode.model import ENDED, WAITING, Authorized, HeadInfo, Job, Machine, Node, Reservation, Submission, Token
from beo.votes import PairSettings

DIGEST_ENTRIES = 1_000  # after so many the states of two heads are compared
DIGESTS_KEPT = 4

_APPLY: Folds = {
    **heads.FOLDS,
    **keys.FOLDS,
    **machines.FOLDS,
    **jobs.FOLDS,
    **attempts.FOLDS,
    **nodes.FOLDS,
    **reservations.FOLDS,
}


class Image(msgspec.Struct, array_like=True):
    """What a snapshot holds."""

    format: int
    index: int
    cluster: str
    head: str
    epoch: int
    next_job: int
    jobs: list[Job]
    nodes: list[Node]
    authorized: dict[str, Authorized]
    keys: dict[str, Submission]
    keys_from_s: float
    tokens: dict[str, Token] = {}
    next_token: int = 1
    revoked: dict[str, float] = {}
    barred: dict[str, float] = {}
    heads: dict[str, HeadInfo] = {}
    pair: PairSettings = PairSettings()
    born_s: float = 0.0
    down_s: float = 0.0
    takeovers: int = 0
    parted: dict[str, list[str]] = {}
    lost: int = 0
    reservations: list[Reservation] = []
    next_reservation: int = 1
    machines: dict[str, Machine] = {}


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Image)


class State(Known):
    """The whole cluster after the first `index` events."""

    def __init__(self) -> None:
        """Make the state before the first event."""
        super().__init__()
        # To be compared with the other head's: what was touched since the last whole DIGEST_ENTRIES, and its digests.
        self.digests: dict[int, bytes] = {}
        self._touched: tuple[set[int], set[str]] = set(), set()
        self._touched_from = 0

    # ---- snapshots

    def encode(self) -> bytes:
        """Encode everything that isn't derived; equal states give equal bytes."""
        return _encoder.encode(
            Image(
                ev.FORMAT,
                self.index,
                self.cluster,
                self.head,
                self.epoch,
                self.next_job,
                list(self.jobs.values()),
                list(self.nodes.values()),
                self.authorized,
                self.keys,
                self.keys_from_s,
                self.tokens,
                self.next_token,
                self.revoked,
                self.barred,
                self.heads,
                self.pair,
                self.born_s,
                self.down_s,
                self.takeovers,
                self.parted,
                self.lost,
                list(self.reservations.values()),
                self.next_reservation,
                self.machines,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> State:
        """Rebuild a state from `encode`'s bytes; raises msgspec.MsgspecError for others."""
        try:
            image = _decoder.decode(data)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(f"no snapshot: {error}") from None
        state = cls()
        state.index, state.cluster, state.head = image.index, image.cluster, image.head
        state.epoch, state.next_job = image.epoch, image.next_job
        state.authorized, state.keys_from_s = image.authorized, image.keys_from_s
        state.admins = {found.user for found in image.authorized.values() if found.role == "admin"}
        state.revoked, state.barred = dict(sorted(image.revoked.items(), key=lambda item: item[1])), image.barred
        state.keys = dict(sorted(image.keys.items(), key=lambda item: item[1].job))
        state.tokens = dict(sorted(image.tokens.items(), key=lambda item: item[1].number))
        state.next_token, state._touched_from = image.next_token, image.index
        state.heads, state.pair = dict(sorted(image.heads.items())), image.pair
        state.born_s, state.down_s, state.takeovers = image.born_s, image.down_s, image.takeovers
        state.parted, state.lost = image.parted, image.lost
        state.reservations = {one.name: one for one in image.reservations}
        state.next_reservation = image.next_reservation
        state.machines = image.machines
        state.node_keys = {known.node: key for key, known in state.authorized.items() if known.node}
        state.nodes = {node.name: node for node in image.nodes}
        for job in image.jobs:
            state.share_environment(job)
            state.jobs[job.id] = job
            if job.state in WAITING:
                state.wait(job)
            elif job.state not in ENDED:
                state.run(job)
                if job.move and job.move.for_job and job.state == "running":
                    state.making_room[job.id] = job.move.for_job, job.move.time_s
            if job.attempt and job.state not in ENDED:
                for part in job.attempt.parts:
                    if part.state in ("live", "reserved"):
                        state.live.setdefault(part.node, {})[job.id, job.attempt.number] = (job, job.attempt, part)
                        state.count(job.user, slots=part.places * job.spec.slots_per_place)
        return state

    # ---- changes

    def apply(self, event: ev.Event) -> None:
        """Take the next event. Deterministic; void where it doesn't fit any more."""
        self.index += 1
        _APPLY[type(event)](self, event)
        jobs, nodes = self._touched
        if job := getattr(event, "job", 0):
            jobs.add(job)
        elif node := getattr(event, "node", ""):
            nodes.add(node)
        if not self.index % DIGEST_ENTRIES:
            self._digest()

    def _digest(self) -> None:
        """Take the digest of what the last entries have touched: cheap, and any difference is in what they touched."""
        jobs = [self.jobs[number] for number in sorted(self._touched[0]) if number in self.jobs]
        nodes = [self.nodes[name] for name in sorted(self._touched[1]) if name in self.nodes]
        rest: tuple[object, ...] = (self.epoch, self.next_job, len(self.jobs), len(self.keys), self.running, self.held)
        rest = (*rest, self.pair, *self.reservations.values())
        if self._touched_from == self.index - DIGEST_ENTRIES:  # else it doesn't know all of them
            digest = blake2b(_encoder.encode((jobs, nodes, rest)), digest_size=16).digest()
            self.digests[self.index] = digest
            for old in sorted(self.digests)[:-DIGESTS_KEPT]:
                del self.digests[old]
        self._touched = set(), set()
        self._touched_from = self.index
