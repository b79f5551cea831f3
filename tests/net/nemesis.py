"""Faults over a cluster of several hosts, as a seed says: what is hurt, when, for how long; and how it is healed.

`plan` is a pure function of the seed and the names of hosts, so a schedule can be had again, and printed before
anything happens. `Nemesis` carries it out. Several faults may be at work at a time, on one host one that hurts its
processes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from tests.net.hosts import Host, Network

DATA_LINK = 0  # of several, the one that clients and workers use
LOSS_PERCENT = 30

# What hurts a host's processes, and what hurts its cables; the numbers say how often, in proportion.
OF_HOSTS = {"kill": 6, "kill-all": 2, "stop": 6, "stop-daemon": 3, "power": 3, "fill": 2}
OF_CABLES = {"cut": 4, "part": 4, "deafen": 3, "deafen-to": 3, "lose": 4}
OF_ALL = {"power-heads": 1, "power-workers": 1, "power-all": 1}
HEADS_SHARE = 0.65  # of what hits a single host


class Fault(msgspec.Struct, frozen=True):
    """One fault: `hosts` are names, with `part`, `deafen-to` and `lose` the two ends. It is over after `lasting_s`."""

    at_s: float
    lasting_s: float
    kind: str
    hosts: tuple[str, ...]

    def __str__(self) -> str:
        """A line of a schedule."""
        return f"{self.at_s:7.2f} s  {self.kind} {' '.join(self.hosts)} for {self.lasting_s:.2f} s"


class Tempo(msgspec.Struct, frozen=True):
    """How dense a schedule is. Faults begin `pause_s` apart, on average, and last a time between these two."""

    pause_s: float
    lasting_min_s: float
    lasting_max_s: float


DENSE = Tempo(0.35, 0.2, 1.0)
LONG = Tempo(0.7, 0.2, 4.5)  # some for longer than a worker's lease


def plan(
    seed: int, count: int, heads: Sequence[str], workers: Sequence[str], disks: Iterable[str], tempo: Tempo
) -> list[Fault]:
    """Draw so many faults. disks: the hosts with a disk of their own, which may be filled."""
    dice = random.Random(seed)
    names = [*heads, *workers]
    busy_until_s = dict.fromkeys(names, 0.0)
    kinds = {**OF_HOSTS, **OF_CABLES, **OF_ALL}
    if not disks:
        del kinds["fill"]
    faults: list[Fault] = []
    at_s = 0.0
    while len(faults) < count:
        at_s += dice.uniform(0, 2 * tempo.pause_s)
        [kind] = dice.choices(list(kinds), list(kinds.values()))
        lasting_s = dice.uniform(tempo.lasting_min_s, tempo.lasting_max_s)
        one = dice.choice(heads if dice.random() < HEADS_SHARE else workers)
        other = dice.choice([name for name in names if name != one])
        groups = {"power-heads": heads, "power-workers": workers, "power-all": names}
        if kind in groups:
            hosts = tuple(groups[kind])
        elif kind in ("part", "deafen-to", "lose"):
            hosts = (one, other)
        elif kind == "fill":
            hosts = (dice.choice(sorted(disks)),)
        else:
            hosts = (one,)
        if kind not in OF_CABLES:
            if any(busy_until_s[name] > at_s for name in hosts):
                continue
            busy_until_s |= dict.fromkeys(hosts, at_s + lasting_s)
        faults.append(Fault(round(at_s, 3), round(lasting_s, 3), kind, hosts))
    return faults


class Nemesis:
    """Carries out a schedule on the hosts of a network."""

    def __init__(
        self, net: Network, heads: Sequence[Host], workers: Sequence[Host], up: Callable[[Host], object]
    ) -> None:
        """Take whom to hurt; up: starts on a host what is missing, as an operator would have it started at boot."""
        self._net, self._up = net, up
        self._hosts = {host.name: host for host in (*heads, *workers)}
        self._heads = frozenset(host.name for host in heads)
        self._cables: list[Fault] = []  # at work now

    def run(self, faults: Iterable[Fault], tell: Callable[[str], None]) -> None:
        """Carry them out, and return when the last is over. What takes its time delays what comes after it."""
        moments = [(fault.at_s, 1, fault) for fault in faults]
        moments += [(fault.at_s + fault.lasting_s, 0, fault) for fault in faults]
        began_s = time.monotonic()
        for at_s, begins, fault in sorted(moments, key=lambda moment: moment[:2]):
            time.sleep(max(0.0, began_s + at_s - time.monotonic()))
            tell(f"{time.monotonic() - began_s:7.2f} s  {'+' if begins else '-'} {fault.kind} {' '.join(fault.hosts)}")
            if begins:
                self._begin(fault)
            else:
                self._end(fault)

    def _begin(self, fault: Fault) -> None:
        host = self._hosts[fault.hosts[0]]
        daemon = "head" if host.name in self._heads else "agent"
        match fault.kind:
            case "kill":
                host.kill(daemon)
            case "kill-all":
                host.kill()
            case "stop":
                host.stop()
            case "stop-daemon":
                host.stop(daemon)
            case "fill":
                host.fill_disk()
            case "power" | "power-heads" | "power-workers" | "power-all":
                self._net.crash(*(self._hosts[name] for name in fault.hosts))
            case _:
                self._cables.append(fault)
                self._hurt(fault)

    def _hurt(self, fault: Fault) -> None:
        one, other = self._hosts[fault.hosts[0]], self._hosts[fault.hosts[-1]]
        match fault.kind:
            case "cut":
                self._net.cut(one)
            case "part":
                self._net.part(one, other)
            case "deafen":
                self._net.deafen(one)
            case "deafen-to":
                self._net.deafen(one, other)
            case "lose":
                self._net.lose(one, other, LOSS_PERCENT)

    def _end(self, fault: Fault) -> None:
        hosts = [self._hosts[name] for name in fault.hosts]
        match fault.kind:
            case "kill":
                pass  # the supervisor has started another
            case "kill-all":
                self._up(hosts[0])
            case "stop" | "stop-daemon":
                hosts[0].go_on()
            case "fill":
                hosts[0].empty_disk()
            case "power" | "power-heads" | "power-workers" | "power-all":
                with ThreadPoolExecutor(len(hosts)) as pool:
                    list(pool.map(Host.boot, hosts))
                for host in hosts:
                    self._up(host)
            case _:
                self._cables.remove(fault)
                self._net.mend()
                for other in self._cables:
                    self._hurt(other)
