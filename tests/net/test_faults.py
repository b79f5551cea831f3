"""Real daemons on several hosts, hurt in random ways while clients work: what they were promised is kept.

A schedule is printed when it fails; `BEO_FAULTS_SEED=N` carries out the one of another seed, and `BEO_FAULTS=N` so many
of its dense faults.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.doses import dose
from tests.net.hosts import network
from tests.net.nemesis import DENSE, LONG, Nemesis, Tempo, plan
from tests.net.site import Site

pytestmark = [pytest.mark.root, pytest.mark.net]

SEED = int(os.environ.get("BEO_FAULTS_SEED", "20261125"))
FAULTS = int(os.environ.get("BEO_FAULTS", "12"))
FAULTS_SLOW = dose(200)
WORKERS = 3
HEADS = 2


def hurt(folder: Path, seed: int, count: int, tempo: Tempo) -> None:
    """Carry out a schedule on a cluster at work, heal it, and hold what happened against what was promised."""
    with network(folder, 0) as net:
        site = Site(net, folder, HEADS, WORKERS)
        names = [host.name for host in site.heads], [host.name for host in site.workers]
        faults = plan(seed, count, *names, names[0], tempo)
        told: list[str] = []
        try:
            site.start_visitor(seed)
            Nemesis(net, site.heads, site.workers, site.up).run(faults, told.append)
            net.mend()
            site.await_up()
            found = site.end()
            jobs, acts = site.history.jobs, site.history.acts
            print(f"{len(jobs)} jobs, {len(acts)} acts in {len({act.epoch for act in acts})} epochs")
            assert not found, "\n".join(found)
            assert len(jobs) > count, "hardly anything was acknowledged"
        except BaseException:
            print(
                f"{count} faults with BEO_FAULTS_SEED={seed}, begun (+) and ended (-) at",
                *told,
                sep="\n",
                file=sys.stderr,
            )
            raise


def test_a_dozen_faults_break_no_promise(tmp_path: Path) -> None:
    hurt(tmp_path, SEED, FAULTS, DENSE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_faults_break_no_promise(tmp_path: Path) -> None:
    hurt(tmp_path, SEED, FAULTS_SLOW, LONG)
