"""Jobs with checkpoints on machines of a network, whose power is cut and whose cables fall out, two heads' as well.

Each machine's memory goes with its power: what is left is what the others keep. Which fall, and when, follows from a
seed; `BEO_KILLS_SEED=N` does it again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from beo.errors import EXIT_NO_HEAD
from beo.nodeset import expand
from tests import test_migratable, test_movable
from tests.cluster import wait_for
from tests.doses import dose
from tests.net.hosts import Host, network
from tests.net.site import BACK_S, Site
from tests.stepped import Stepped, total

pytestmark = [pytest.mark.root, pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(900)]

SEED = int(os.environ.get("BEO_KILLS_SEED", "20261127"))
KILLS = dose(16)
STEPS, STEP_S, EVERY = 250, 0.02, 8
PER_JOB = 4  # machines that fall, before a job is left in peace
GOES_ON_S = 90.0


class Kind(NamedTuple):
    """A job: how it is protected, on how many machines, and how many of them it can lose at one moment."""

    level: str
    machines: int
    bears: int


KINDS = [Kind("rs", 4, 2), Kind("raid5", 3, 1), Kind("raid1", 2, 1)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two heads, which get no copies, since memory must do; as many workers as the widest job needs, and two more."""
    settings = "[worker]\nlease_s = 3.0\ncheckpoint_copy_s = 0\n"
    folder = tmp_path_factory.mktemp("checkpoints")
    with network(folder, 0) as net:
        site = Site(net, folder, 2, KINDS[0].machines + 2, settings=lambda _: settings, disk_bytes=1 << 30)
        site.await_up()
        yield site


def row(site: Site, job: str) -> dict[str, Any]:
    """What the cluster says of a job, as soon as a head acts."""

    def says() -> str:
        done = site.client.beo("queue", job, "--json")
        assert done.returncode in (0, EXIT_NO_HEAD), f"{done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    (found,) = msgspec.json.decode(wait_for(says, "a head acts", BACK_S), type=list[dict[str, Any]])
    return found


class Run(Stepped):
    """One job, one rank on each of its machines."""

    def __init__(self, site: Site, log: Path, kind: Kind) -> None:
        super().__init__(log)
        self.site, self.kind = site, kind
        self.done = 0  # its checkpoints when a machine was last hurt
        words = ["-n", str(kind.machines), "-N", str(kind.machines), "--requeue", "auto", "--name", kind.level]
        self.job = site.said("submit", *words, "--", *self.argv(kind.level, STEPS, STEP_S, EVERY)).split()[-1]

    def machines(self) -> list[Host]:
        """Those that it is on."""
        names = expand(row(self.site, self.job)["nodes"])
        return [host for host in self.site.workers if host.name in names]

    def is_done(self) -> bool:
        """Whether it has ended."""
        return bool(row(self.site, self.job)["state"] == "done")

    def is_whole(self) -> bool:
        """Whether it has taken a checkpoint since a machine was hurt, so that all parts of that are there; or ended."""
        words = [what for what, _ in self.told() if what != "step"]
        return (words[-1:] == ["kept"] and words.count("kept") > self.done) or self.is_done()

    def answer(self) -> str:
        """Wait for its end, and return what it says."""
        self.site.said("wait", self.job)
        return total(self.site.said("logs", self.job))


def hurt(site: Site, run: Run, chance: random.Random) -> list[str]:
    """Cut the power of as many of its machines as it bears, now and then of the acting head too, or their cables."""
    count = chance.randint(1, run.kind.bears)
    doomed = chance.sample(run.machines(), count)
    how = chance.choice(["power", "power", "cables"])
    heads = [site.primary] if how == "power" and chance.random() < 0.3 else []
    if how == "power":
        site.net.crash(*doomed, *heads)
    else:
        for host in doomed:
            site.net.cut(host)
    run.done = run.count("kept")
    names = {host.name for host in doomed}

    def missed() -> bool:
        rows = msgspec.json.decode(site.said("nodes", "--json"))
        return names <= {row["name"] for row in rows if row["state"] == "lost"}

    # With the acting head may have gone as many voters: then nobody may act, and say so, until some of them are back.
    if how == "cables" or (chance.random() < 0.5 and not heads):
        wait_for(missed, f"{names} are missed", BACK_S)
    for host in (*doomed, *heads):
        if how == "power":
            host.boot()
            site.up(host)
        else:
            site.net.mend(host)
    return sorted(names) + [host.name for host in heads] + [how]


def test_jobs_whose_machines_lose_their_power_end_with_their_answer_and_lose_no_step_that_was_kept(
    site: Site, tmp_path: Path
) -> None:
    answers = {kind: Run(site, tmp_path / kind.level, kind).answer() for kind in KINDS}
    chance = random.Random(SEED)
    done: list[str] = []
    again: list[int] = []
    kills = 0
    while kills < KILLS:
        kind = KINDS[len(done) % len(KINDS)]
        run = Run(site, tmp_path / f"log{len(done)}", kind)
        did: list[list[str]] = []
        for _ in range(PER_JOB):
            wait_for(run.is_whole, f"job {run.job} computes, seed {SEED}: {done} {did}", GOES_ON_S)
            if run.is_done():
                break
            did.append(hurt(site, run, chance))
            kills += len(did[-1]) - 1
        done.append(f"job {run.job} ({kind.level}): {did}")
        site.await_up()
        assert run.answer() == answers[kind], done
        assert not run.faults(), done
        again += run.again()
    print(f"{kills} machines fell, {len(again)} times anew, steps computed again: {sorted(again)}")
    assert len(again) >= len(done), "something has hurt"


def prints_on(site: Site, job: str) -> None:
    """Wait for 20 more lines."""
    lines = len(site.said("logs", job).splitlines())
    wait_for(lambda: len(site.said("logs", job).splitlines()) > lines + 20, "it prints", BACK_S)


def goes_on(site: Site, job: str, attempt: int) -> None:
    """Wait for the attempt after this one."""
    wait_for(lambda: row(site, job)["attempt"] > attempt, "it goes on elsewhere", BACK_S)


@pytest.mark.parametrize("name", test_movable.PROGRAMS)
def test_an_unmodified_program_is_moved_from_machine_to_machine_with_its_output_in_one_piece(
    site: Site, tmp_path: Path, name: str
) -> None:
    if why := test_movable.why_not():
        pytest.skip(f"{why[:200]}: make criu")
    stop = tmp_path / "stop"
    job = site.said("submit", "--movable", "--", *test_movable.program(name, stop)).split()[-1]
    for attempt in (1, 2):
        prints_on(site, job)
        before = row(site, job)["nodes"]
        site.said("migrate", job)
        goes_on(site, job, attempt)
        assert row(site, job)["nodes"] != before
    stop.touch()
    site.said("wait", job)
    test_movable.expect_undisturbed(name, site.said("logs", job))


def test_ranks_of_a_running_mpi_program_are_moved_to_another_machine_with_their_connections(
    site: Site, tmp_path: Path
) -> None:
    if why := test_migratable.why_not():
        pytest.skip(f"{why[:200]}: make criu CRIU_SUITE=sid")
    stop = tmp_path / "stop"
    job = site.said("submit", "-n", "4", "-N", "2", "--migratable", "--", *test_migratable.program(stop)).split()[-1]
    for attempt in (1, 2):
        prints_on(site, job)
        first = expand(row(site, job)["nodes"])[0]
        site.said("drain", first)
        goes_on(site, job, attempt)
        assert first not in expand(row(site, job)["nodes"])
        site.said("resume", first)
    stop.touch()
    site.said("wait", job)
    test_migratable.expect_whole(site.said("logs", job))
