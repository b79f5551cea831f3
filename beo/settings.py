"""The settings of a cluster, as ``beo.toml`` has them. Values only; config.py reads the file."""

from __future__ import annotations

from typing import Annotated

import msgspec

LEASE_MIN_S = 0.5  # below, a busy machine loses its lease to its own scheduler

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class HeadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[head]"""

    listen: str = "127.0.0.1:0"  # port 0: a free one, remembered in cluster.json
    finished_keep_s: Annotated[float, msgspec.Meta(ge=0)] = 7 * 86_400.0  # records of ended jobs and their output
    finished_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 100_000
    queued_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = (
        100_000  # about 10 kB of RAM each with a usual environment
    )
    private: bool = False  # whether the names of others' jobs are hidden in `beo queue`
    attached_grace_s: Seconds = 60.0  # a job of `beo run` ends when its client was silent for so long


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one user may have; of the maxima of running jobs, 0 is no limit."""

    queued_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 10_000  # so one alone can't fill head.queued_max
    running_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0  # jobs at one time
    slots_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0  # of all his running jobs together
    priority_max: Annotated[int, msgspec.Meta(ge=-1_000, le=1_000)] = 0  # he may lower a job's priority, not raise it


NO_LIMITS = Limits(queued_max=1_000_000, priority_max=1_000)  # an admin's


class UsersConfig(Limits, frozen=True, forbid_unknown_fields=True):
    """[users], for every user but admins; ``[users.NAME]`` says otherwise for one (`named`)."""

    door: bool = True  # local users need no key: see docs/users.md
    overrides: dict[str, Limits] | msgspec.UnsetType = msgspec.UNSET

    @property
    def named(self) -> dict[str, Limits]:
        """The limits of those who have their own."""
        return {} if self.overrides is msgspec.UNSET else self.overrides

    def where(self, name: str) -> str:
        """Return which table of beo.toml sets a user's limits."""
        return f"users.{name}" if name in self.named else "users"

    def of(self, name: str) -> Limits:
        """Return the limits of a user."""
        return self.named.get(name, self)


class WorkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[worker]"""

    lease_s: Annotated[float, msgspec.Meta(ge=LEASE_MIN_S, le=86_400)] = 15.0
    heartbeat_s: Annotated[float, msgspec.Meta(ge=0.02, le=60)] = 0.5
    peer_silence_s: Seconds = 4.0  # ranks of an attempt whose other node is silent for so long are ended
    grace_s: Seconds = 5.0  # between SIGTERM and SIGKILL
    processes_max: Annotated[int, msgspec.Meta(ge=16, le=1 << 22)] = 4_096  # of an attempt on one node, threads counted
    output_max_bytes: Annotated[int, msgspec.Meta(ge=1 << 20)] = 1 << 36  # that an attempt may print on one node
    shm_max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0  # of its /dev/shm; 0: a quarter of the node's memory
    free_min_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1 << 28  # of the node's disks, or a twentieth of a smaller one


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of beo.toml; every key has a default."""

    head: HeadConfig = HeadConfig()
    worker: WorkerConfig = WorkerConfig()
    users: UsersConfig = UsersConfig()
