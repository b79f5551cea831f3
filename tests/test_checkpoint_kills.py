"""Whatever of a cluster is killed with -9 at whatever moment: jobs with checkpoints end with their right answer.

One real cluster, one job after another, each protected in another way. What is hurt, and when, follows from a seed,
which is printed with all that was done if something goes wrong; `BEO_KILLS_SEED=N` does it again.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from beo.nodeset import expand, fold
from tests.cluster import Cluster, kill, running, wait_for
from tests.doses import dose
from tests.stepped import Stepped, total

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

SEED = int(os.environ.get("BEO_KILLS_SEED", "20261126"))
KILLS, KILLS_MOVING = dose(100), dose(30)
MOMENTS = ("computing", "computing", "saving", "beginning")
NODES = [f"node{number:02}" for number in range(1, 7)]
STEPS, STEP_S, EVERY = 400, 0.01, 8
PER_JOB = 8  # kills, before it is left in peace: so that all kinds of jobs are hurt
GOES_ON_S = 90.0  # for a job to compute again


class Kind(NamedTuple):
    """A job: how it is protected, on how many nodes, and the memory of how many it can lose at one moment."""

    level: str
    ranks: int
    bears: int


KINDS = [Kind("rs", 4, 2), Kind("raid5", 3, 1), Kind("raid1", 2, 1), Kind("raid4", 4, 1)]


class Run(Stepped):
    """One job, and what it wrote down."""

    def __init__(self, cluster: Cluster, place: Path, kind: Kind, number: int) -> None:
        super().__init__(place / f"log{number}")
        self.cluster, self.kind = cluster, kind
        self.whole_after = 0  # checkpoints, since one of its nodes was lost: then nothing of that is missing any more
        self.job = cluster.submit(self.argv(kind.level, STEPS, STEP_S, EVERY), ranks=kind.ranks, requeue="auto")

    def has_ended(self) -> bool:
        """Whether it is done. One of whose ranks was killed has failed by itself: that one is told to run again."""
        state = self.cluster.job(self.job).state
        if state == "failed":
            assert self.cluster.beo("requeue", str(self.job)).returncode == 0
        assert state not in ("lost", "cancelled")
        return state == "done"

    def computes(self) -> None:
        """Wait until it does another step, or has ended."""
        count = self.count("step")
        wait_for(lambda: self.count("step") > count or self.has_ended(), f"job {self.job} computes", GOES_ON_S)

    def answer(self) -> str:
        """Wait for its end, and return what it says."""
        wait_for(self.has_ended, f"job {self.job} ends", 2 * GOES_ON_S)
        return total(self.cluster.output(self.job))

    def is_whole(self) -> bool:
        """Whether its last checkpoint has all that its level says: it was taken since a node was last lost."""
        words = [what for what, _ in self.told() if what != "step"]
        return words[-1:] == ["kept"] and words.count("kept") > self.whole_after


class Trouble:
    """Kills, in a cluster whose supervisor is dead, so that what is killed comes back when this says so.

    Each returns whether there was something to kill.
    """

    def __init__(self, cluster: Cluster, chance: random.Random, moments: Sequence[str]) -> None:
        self.cluster, self.chance, self.moments = cluster, chance, moments
        self.done: list[str] = []

    def some_node(self, run: Run) -> str:
        """A node of the job, or now and then any."""
        mine = expand(self.cluster.job(run.job).nodes)
        return self.chance.choice(mine if mine and self.chance.random() < 0.9 else NODES)

    def rank(self, run: Run) -> bool:
        """A rank: that is the job's own failure, so somebody has to say that it shall run again."""
        ranks = self.cluster.ranks(run.job)
        if ranks:
            kill([self.chance.choice(sorted(ranks.values()))])
        return bool(ranks)

    def warden(self, run: Run) -> bool:
        """What holds a node's ranks."""
        wardens = self.cluster.wardens(self.some_node(run))
        if wardens:
            kill([self.chance.choice(wardens)])
        return bool(wardens)

    def agent(self, run: Run) -> bool:
        """A node's agent."""
        node = self.some_node(run)
        self.cluster.kill(node)
        self.cluster.start_agent(node)
        return True

    def head(self, run: Run) -> bool:
        """The head, now and then together with a node's agent."""
        node = self.some_node(run)
        if self.chance.random() < 0.3:
            self.cluster.kill(node)
            self.cluster.start_agent(node)
        self.cluster.kill_head_and_restart(lambda: None)
        return True

    def worker(self, run: Run) -> bool:
        """All that runs on a worker; its memory is still there."""
        self.lose([self.some_node(run)], run, False)
        return True

    def memory(self, run: Run) -> bool:
        """As many whole workers with all that they remember as the job's level bears, or fewer."""
        mine = expand(self.cluster.job(run.job).nodes)
        is_whole = bool(mine) and run.is_whole()
        if is_whole:
            self.lose(self.chance.sample(mine, min(len(mine), self.chance.randint(1, run.kind.bears))), run, True)
        return is_whole

    def lose(self, nodes: list[str], run: Run, forget: bool) -> None:
        """Cut the power of these nodes, in one moment, and have them back soon, or after they were missed."""
        doomed = [pid for node in nodes for pid in self.cluster.stop_worker(node)]
        forget = forget and run.is_whole()  # it may have begun anew meanwhile
        kill(doomed)
        run.whole_after = run.count("kept")
        mark = self.cluster.home.cluster().cluster[:8]
        for vault in [path for node in nodes for path in Path("/tmp").glob(f"beo-{mark}-{node}-vaults-*") if forget]:
            shutil.rmtree(vault / str(run.job), ignore_errors=True)
        if self.chance.random() < 0.5:
            wait_for(lambda: all(self.cluster.node(node).state == "lost" for node in nodes), f"{nodes} are lost")
        for node in nodes:
            self.cluster.start_agent(node)

    def now(self, run: Run) -> str:
        """Choose a moment and a harm, and do it. Returns which; "": there was nothing to kill."""
        moment = self.chance.choice(self.moments)
        name = self.chance.choice(["rank", "warden", "agent", "head", "worker", "memory", "memory"])
        self.done.append(f"job {run.job} ({run.kind.level}) after {run.told()[-1:]}: {name}, {moment}")
        match moment:
            case "computing":
                run.computes()
                time.sleep(self.chance.uniform(0, 0.5))
            case "saving":
                with suppress(ProcessLookupError, IndexError):
                    os.kill(self.chance.choice(sorted(self.cluster.ranks(run.job).values())), signal.SIGUSR1)
                time.sleep(self.chance.uniform(0, 0.03))
            case "moving":
                self.cluster.beo("migrate", str(run.job), fold(self.chance.sample(NODES, run.kind.ranks)))
                time.sleep(self.chance.uniform(0, 1.0))
        return name if getattr(self, name)(run) else ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """As many nodes as the widest job needs and two spares; the heads get no copy: memory must do."""
    path = tmp_path_factory.mktemp("kills") / "beo"
    with running(path, workers=len(NODES), slots=1, settings="checkpoint_copy_s = 0\n") as cluster:
        yield cluster


def hurt(cluster: Cluster, folder: Path, number: int, moments: Sequence[str]) -> None:
    """Kill so often, under one job after another, and hold them against what they would have been."""
    undisturbed = [Run(cluster, folder, kind, number) for number, kind in enumerate(KINDS)]
    answers = {run.kind: run.answer() for run in undisturbed}
    cluster.kill("supervisor")
    trouble = Trouble(cluster, random.Random(SEED), moments)
    kills: Counter[str] = Counter()
    runs: list[Run] = []
    try:
        while kills.total() < number:
            run = Run(cluster, folder, KINDS[len(runs) % len(KINDS)], len(KINDS) + len(runs))
            runs.append(run)
            run.computes()
            for _ in range(PER_JOB):
                if not run.has_ended() and (what := trouble.now(run)):
                    kills[what] += 1
            assert run.answer() == answers[run.kind]
            assert not run.faults()
    except BaseException:
        print(f"seed {SEED}", *trouble.done, *[run.log.read_text()[-400:] for run in runs[-1:]], sep="\n")
        for words in (["show", "all"], ["nodes"], ["events", "--job", str(runs[-1].job)]):
            print(cluster.beo(*words).stdout)
        raise
    finally:
        cluster.up()
    again = sorted(steps for run in runs for steps in run.again())
    print(f"{len(runs)} jobs, {dict(kills)}, {len(again)} times anew, steps computed again: {again}")
    assert again, "something has hurt"


def keeper(cluster: Cluster, node: str) -> int:
    """The process that copies a node's vault to the head; 0: there is none."""
    children = Path(f"/proc/{cluster.pid(node)}/task/{cluster.pid(node)}/children").read_text().split()
    return next((int(pid) for pid in children if b"beo.bulk.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()), 0)


def test_a_node_that_is_lost_when_others_have_left_their_part_at_the_head_already_costs_no_step(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = Run(cluster, tmp_path, Kind("raid1", 2, 1), 0)
    wait_for(lambda: run.count("kept") >= 3, "checkpoints")
    slow, fast = expand(cluster.job(run.job).nodes)
    cluster.kill("supervisor")
    try:
        cluster.beo("migrate", str(run.job), fold([node for node in NODES if node not in (slow, fast)][:2]))
        os.kill(wait_for(lambda: keeper(cluster, slow), "it copies"), signal.SIGSTOP)
        told = f"{fast}  attempt 1: status 85"
        wait_for(lambda: told in cluster.beo("events", "--job", str(run.job)).stdout, "the other's part is over")
        time.sleep(1)  # and it has been told so
        assert run.is_whole()
        Trouble(cluster, random.Random(1), ()).lose([slow], run, forget=True)
        assert run.answer()
        assert not run.faults()
        assert run.again(), "it was lost before it had left"
    finally:
        cluster.up()


def test_a_hundred_kills_of_all_kinds_cost_no_job_its_answer_nor_a_step_that_was_kept(
    cluster: Cluster, tmp_path: Path
) -> None:
    hurt(cluster, tmp_path, KILLS, MOMENTS)


def test_kills_while_jobs_move_cost_no_step_that_was_kept_either(cluster: Cluster, tmp_path: Path) -> None:
    hurt(cluster, tmp_path, KILLS_MOVING, (*MOMENTS, "moving", "moving"))
