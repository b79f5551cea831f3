"""The tree of files on several hosts, hurt in random ways under writers: what they were told is done, is done, once.

A schedule is printed when it fails; `BEO_FAULTS_SEED=N` carries out the one of another seed, and `BEO_FAULTS=N` so many
of its faults.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from tests.cluster import ROOT
from tests.doses import dose
from tests.net.hosts import network
from tests.net.nemesis import DENSE, Nemesis, Tempo, plan
from tests.net.site import Site
from tests.net.space import do
from tests.scribes import Seen

pytestmark = [pytest.mark.root, pytest.mark.net]

SEED = int(os.environ.get("BEO_FAULTS_SEED", "20261126"))
FAULTS = int(os.environ.get("BEO_FAULTS", "10"))
FAULTS_SLOW = dose(300)
OFTEN = Tempo(0.7, 0.2, 3.0)
DISK_BYTES = 1 << 30  # of a head: a tree keeps 256 MiB of its log, and 64 MiB free
WORKERS = 3
CHECK_S = 120.0  # for the writers to come to their end, and to look


def hurt(folder: Path, seed: int, count: int, tempo: Tempo) -> None:
    """Carry out a schedule under writers, heal it, and hold what there is against what they were told."""
    stop = folder / "stop"
    with network(folder, 0) as net:
        site = Site(net, folder, 2, WORKERS, disk_bytes=DISK_BYTES)
        names = [host.name for host in site.heads], [host.name for host in site.workers]
        faults = plan(seed, count, *names, names[0], tempo)
        told: list[str] = []
        moments: list[tuple[float, str]] = []

        def tell(line: str) -> None:
            told.append(line)
            moments.append((time.monotonic(), line))

        try:
            site.await_step()
            scribes = site.client.start(
                sys.executable, "-m", "tests.scribes", str(seed), str(stop), stderr=subprocess.STDOUT
            )
            time.sleep(1.0)
            Nemesis(net, site.heads, site.workers, site.up).run(faults, tell)
            net.mend()
            site.await_up()
            stop.touch()
            out, _ = scribes.communicate(timeout=CHECK_S)
            assert scribes.returncode == 0, out
            seen = msgspec.json.decode(out.splitlines()[-1], type=Seen)
            print(f"{seen.done} done, {seen.refused} refused for want of room, {_silences(seen, moments)}")
            print(f"in the longest:\n{_longest(seen, moments)}")
            assert not seen.faults, "\n".join(seen.faults)
            assert seen.done > count, "hardly anything was done"
            site.await_step()
            volumes = [str(host.inside / "beo" / "head" / "tree") for host in site.heads]
            do([*net.switch.space.enter("mount", f"wd={ROOT}"), sys.executable, "-m", "tests.volumes", *volumes])
        except BaseException:
            print(
                f"{count} faults with BEO_FAULTS_SEED={seed}, begun (+) and ended (-) at",
                *told,
                sep="\n",
                file=sys.stderr,
            )
            raise


def _silences(seen: Seen, moments: list[tuple[float, str]]) -> str:
    """The longest silence of a writer by the kind of fault that began last before its middle."""
    longest: dict[str, float] = defaultdict(float)
    for end_s, lasting_s in seen.silences:
        before = [line.split()[3] for at_s, line in moments if at_s <= end_s - lasting_s / 2]
        kind = before[-1] if before else "none"
        longest[kind] = max(longest[kind], lasting_s)
    return f"longest silences: {', '.join(f'{kind} {s:.2f} s' for kind, s in sorted(longest.items()))}"


def _longest(seen: Seen, moments: list[tuple[float, str]]) -> str:
    """What was done to the hosts during the longest silence, and just before."""
    end_s, lasting_s = max(seen.silences, key=lambda silence: silence[1], default=(0.0, 0.0))
    began_s = end_s - lasting_s
    lines = [
        f"{at_s - began_s:7.2f} s of {lasting_s:.2f} {line}" for at_s, line in moments if began_s - 5 < at_s < end_s
    ]
    return "\n".join(lines)


def test_ten_faults_lose_no_file(tmp_path: Path) -> None:
    hurt(tmp_path, SEED, FAULTS, DENSE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_faults_lose_no_file(tmp_path: Path) -> None:
    hurt(tmp_path, SEED, FAULTS_SLOW, OFTEN)
