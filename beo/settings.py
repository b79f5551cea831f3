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


class WorkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[worker]"""

    lease_s: Annotated[float, msgspec.Meta(ge=LEASE_MIN_S, le=86_400)] = 15.0
    heartbeat_s: Annotated[float, msgspec.Meta(ge=0.02, le=60)] = 0.5
    peer_silence_s: Seconds = 4.0  # ranks of an attempt whose other node is silent for so long are ended
    grace_s: Seconds = 5.0  # between SIGTERM and SIGKILL


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of beo.toml; every key has a default."""

    head: HeadConfig = HeadConfig()
    worker: WorkerConfig = WorkerConfig()
