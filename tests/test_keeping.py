"""When a job's nodes copy what they keep: all at one moment, and different jobs at different ones."""

from itertools import pairwise

from beo.settings import WorkerConfig
from beo.worker.keeping import round_of

EVERY_S = 300.0
CONFIG = WorkerConfig(checkpoint_copy_s=EVERY_S)


def begins(job: int) -> int:
    """How far into the clock's rounds a job's begin."""
    return next(second for second in range(1, 301) if round_of(job, second, CONFIG) != round_of(job, 0, CONFIG))


def test_a_job_has_one_round_in_each_interval_whatever_its_number() -> None:
    for job in (1, 2, 1_000_003):
        numbers = [round_of(job, at, CONFIG) for at in range(1_000_000, 1_003_000)]
        assert len(set(numbers)) in (10, 11)
        assert numbers == sorted(numbers)


def test_jobs_that_follow_each_other_dont_copy_at_once() -> None:
    moments = sorted(begins(job) for job in range(1, 11))
    assert min(b - a for a, b in pairwise(moments)) > EVERY_S / 40


def test_without_an_interval_there_are_no_rounds() -> None:
    config = WorkerConfig(checkpoint_copy_s=0.0)
    assert {round_of(job, at, config) for job in (1, 9) for at in (0.0, 1e9)} == {0}
