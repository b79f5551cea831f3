"""What is known of the cluster: what its events have come to, and beside it what is derived from that.

State (state.py) is this with snapshots and `apply`; the files in folds/ change it, each event in one of them. Where a
change touches what is derived (the queue, sums per user and node), it is one of the methods here, which keep it right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from beo.headnode.model import (
    Attempt,
    Authorized,
    HeadInfo,
    Holding,
    Job,
    Machine,
    Node,
    PartState,
    Reservation,
    Submission,
    Token,
)
from beo.headnode.queue import Queue
from beo.votes import PairSettings


class Known:
    """Jobs, nodes, keys and all else, in plain attributes: who asks reads them."""

    def __init__(self) -> None:
        """Nothing is known before the first event."""
        self.index = 0
        self.cluster = ""
        self.head = ""
        self.epoch = 0
        self.next_job = 1
        self.jobs: dict[int, Job] = {}
        self.nodes: dict[str, Node] = {}
        self.authorized: dict[str, Authorized] = {}
        self.tokens: dict[str, Token] = {}  # by public key, the oldest first
        self.next_token = 1
        self.keys: dict[str, Submission] = {}  # in the order of submission
        self.revoked: dict[str, float] = {}  # key -> when, the oldest first
        self.barred: dict[str, float] = {}  # user whom no door lets in -> since when
        self.keys_from_s = 0.0  # keys made before this may have been forgotten
        self.heads: dict[str, HeadInfo] = {}
        self.pair = PairSettings()
        self.born_s = 0.0  # wall clock
        self.down_s = 0.0  # in all: nobody acted
        self.takeovers = 0  # how often another head has begun to act than the one before
        self.parted: dict[str, list[str]] = {}  # node that was forgotten -> its incarnations, the oldest first
        self.lost = 0  # how often a node was lost, since the cluster began
        self.reservations: dict[str, Reservation] = {}  # by name, in the order of making
        self.next_reservation = 1
        self.machines: dict[str, Machine] = {}  # that boot from the heads, by MAC address
        # Derived, rebuilt from the above:
        self.queue = Queue()
        self.live: dict[str, dict[tuple[int, int], tuple[Job, Attempt, PartState]]] = {}  # per node, not over
        self.held = 0  # jobs that wait to be released
        self.node_keys: dict[str, str] = {}  # node -> the key that speaks for it alone
        self.running = 0
        self.priorities: Counter[int] = Counter()  # of the jobs that run
        self.making_room: dict[int, tuple[int, float]] = {}  # job that is to halt -> for which one, since when
        self.admins: set[str] = set()
        self.holdings: dict[str, Holding] = {}  # by user, of those who have jobs that run or wait
        self.changed: set[int] = set()  # jobs that changed since the core looked last
        self._environments: dict[frozenset[tuple[str, str]], dict[str, str]] = {}

    # ---- questions

    @property
    def waiting(self) -> int:
        """How many jobs wait, held ones too."""
        return len(self.queue) + self.held

    def is_dead(self, name: str, incarnation: str) -> bool:
        """Whether an incarnation of a node is over: lost, followed by another one, or forgotten with its node."""
        node = self.nodes.get(name)
        if not node:
            return incarnation in self.parted.get(name, ())
        return incarnation in node.dead or (incarnation == node.incarnation and node.state != "up")

    def live_parts(self, node: str) -> dict[tuple[int, int], tuple[Job, Attempt, PartState]]:
        """Return what is placed on a node and not over, by (job, attempt)."""
        return self.live.get(node, {})

    def jobs_with(self, node: str) -> list[int]:
        """Return the jobs that have not ended and need a node on record: START names all nodes of an attempt."""
        return [
            job.id
            for job in self.jobs.values()
            if job.attempt and job.state in ("running", "ending") and any(p.node == node for p in job.attempt.parts)
        ]

    # ---- changes, which keep what is derived right

    def authorize(self, key: str, whom: Authorized) -> None:
        """Let a key speak for somebody; a node's former key does no more."""
        self.revoke(key)
        if whom.node:
            self.revoke(self.node_keys.get(whom.node, ""))
            self.node_keys[whom.node] = key
        self.authorized[key] = whom
        if whom.role == "admin":
            self.admins.add(whom.user)

    def revoke(self, key: str) -> None:
        """Take a key; one that isn't there is nothing."""
        known = self.authorized.pop(key, None)
        if known and known.node:
            del self.node_keys[known.node]
        if known and known.role == "admin":
            self.admins = {found.user for found in self.authorized.values() if found.role == "admin"}

    def share_environment(self, job: Job) -> None:
        """Most jobs of a user have the same environment: kept once, it is the greater part of a queue's memory."""
        env = job.spec.env
        if env:
            shared = self._environments.setdefault(frozenset(env.items()), env)
            if shared is not env:
                job.spec = msgspec.structs.replace(job.spec, env=shared)
            if len(self._environments) > 1_000:  # of distinct ones; those in use stay alive through their jobs
                self._environments.clear()

    def wait(self, job: Job) -> None:
        """Let a job wait: in the queue, or to be released."""
        self.count(job.user, waiting=1)
        if job.hold:
            job.state = "held"
            self.held += 1
        else:
            job.state = "queued"
            self.queue.add(job)

    def wait_no_more(self, job: Job) -> None:
        """It is to run, or has ended, or waits otherwise."""
        self.count(job.user, waiting=-1)
        if job.state == "held":
            self.held -= 1
        else:
            self.queue.remove(job)

    def run(self, job: Job) -> None:
        """Count a job that runs."""
        self.running += 1
        self.priorities[job.spec.priority] += 1
        self.count(job.user, jobs=1)

    def run_no_more(self, job: Job) -> None:
        """Its attempt is over."""
        self.running -= 1
        self.priorities[job.spec.priority] -= 1
        if not self.priorities[job.spec.priority]:
            del self.priorities[job.spec.priority]
        self.making_room.pop(job.id, None)
        self.count(job.user, jobs=-1)

    def count(self, user: str, jobs: int = 0, slots: int = 0, waiting: int = 0) -> None:
        """Change what a user has of the cluster by so many."""
        held = self.holdings.setdefault(user, Holding())
        held.jobs += jobs
        held.slots += slots
        held.waiting += waiting
        if not held.jobs and not held.slots and not held.waiting:
            del self.holdings[user]

    def place(self, job: Job, attempt: Attempt, part: PartState) -> None:
        """Give a part its slots and memory."""
        node = self.nodes[part.node]
        node.used_slots += part.places * job.spec.slots_per_place
        node.used_bytes += part.places * job.spec.mem_bytes
        self.live.setdefault(part.node, {})[job.id, attempt.number] = (job, attempt, part)
        self.count(job.user, slots=part.places * job.spec.slots_per_place)

    def free(self, job: Job, attempt: Attempt, part: PartState) -> None:
        """Take them back: it is over."""
        node = self.nodes[part.node]
        node.used_slots -= part.places * job.spec.slots_per_place
        node.used_bytes -= part.places * job.spec.mem_bytes
        self.count(job.user, slots=-part.places * job.spec.slots_per_place)
        placed = self.live[part.node]
        del placed[job.id, attempt.number]
        if not placed:
            del self.live[part.node]


Folds = dict[type, Callable[[Known, Any], None]]
"""By the kind of event, what changes where it is applied. Nothing changes where it doesn't fit any more."""
