"""Trouble: what befalls heads, workers, disks and the network, one thing after another, and how it is mended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.worker import BOOT_S

if TYPE_CHECKING:
    from tests.sim.head import HeadHost
    from tests.sim.worker import Machine
    from tests.sim.world import Simulation

KINDS = {
    "kill head": 5,
    "power of a head": 3,
    "stop head": 4,
    "isolate head": 3,
    "part heads": 3,
    "cut": 6,
    "stall": 3,
    "EIO": 1,
    "ENOSPC": 1,
    "flip": 1,
    "rack": 1,
    "both heads": 1,
    "everything": 1,
    "kill agent": 3,
    "power of a worker": 3,
    "stop agent": 3,
    "kill warden": 3,
    "witness": 2,
}

UNDER_WAY_S = 0.03  # a submission takes about so long


class Trouble:
    """Makes trouble until the world is healed."""

    def __init__(self, sim: Simulation, every_s: tuple[float, float], kinds: dict[str, int]) -> None:
        self._sim = sim
        self._every_s = every_s
        self._kinds = list(kinds)
        self._weights = list(kinds.values())
        self.count = 0
        self.crashes = 0

    def begin(self) -> None:
        """Begin, and go on."""
        sim = self._sim
        if sim.healed:
            return
        (kind,) = sim.random.choices(self._kinds, self._weights)
        self.count += 1
        if sim.random.random() < 0.5:  # what is under way just then is what may be lost
            sim.submit()
            sim.clock.after(sim.random.uniform(0.0, UNDER_WAY_S), lambda: self.make(kind))
        else:
            self.make(kind)
        sim.clock.after(sim.random.uniform(*self._every_s), self.begin)

    def _a_head(self) -> HeadHost:
        """More often the one that acts."""
        sim = self._sim
        acting = sim.truth.primary
        if acting and sim.random.random() < 0.4:
            return acting
        return sim.heads[sim.random.choice(sorted(sim.heads))]

    def make(self, kind: str) -> None:
        """Make trouble of one kind."""
        sim = self._sim
        random = sim.random
        head = self._a_head()
        machine = sim.machines[random.choice(sorted(sim.machines))] if sim.machines else None
        after = sim.clock.after
        match kind:
            case "kill head":
                self._kill(head, random.choice([0.05, 0.3, 1.0, 2.0, 5.0]))
            case "power of a head":
                self._cut_power(head, BOOT_S + random.choice([0.1, 2.0, 5.0]))
            case "stop head":
                head.pause(random.choice([0.3, 0.7, 1.5, 4.0]))
            case "isolate head":
                ways = [way for place in sim.places if place != head.name for way in _both(head.name, place)]
                self._cut(ways)
            case "part heads":
                self._cut([*_both("A", "B")][: random.choice([1, 2, 2])])
            case "cut":
                one, other = random.sample(sim.places, 2)
                self._cut(list(_both(one, other)) if random.random() < 0.5 else [(one, other)])
            case "stall":
                stall_s = random.choice([0.3, 0.8, 2.0, 4.0])
                sim.say(f"{head.name}'s disk stalls for {stall_s} s")
                head.disk.stall_until_s = sim.clock.s + stall_s
            case "EIO":
                head.disk.fails = "EIO"
            case "ENOSPC":
                head.disk.fails = random.choice(["ENOSPC", "register"])
            case "flip":
                self._flip(head)
            case "rack":
                rack = random.choice(["r1", "r2"])
                for host in sim.heads.values():
                    if sim.racks.get(host.name) == rack:
                        self._cut_power(host, BOOT_S + 1.0)
                for worker in sim.machines.values():
                    if sim.racks.get(worker.name) == rack:
                        self._switch_off(worker)
            case "both heads":
                for host in sim.heads.values():
                    self._kill(host, random.choice([0.3, 1.0, 3.0]))
            case "everything":
                for host in sim.heads.values():
                    self._cut_power(host, BOOT_S + random.choice([0.1, 1.0, 4.0]))
                for worker in sim.machines.values():
                    self._switch_off(worker)
            case "kill agent" if machine and machine.core:
                machine.stop_agent()
                after(random.choice([0.1, 1.0, 8.0]), machine.revive_agent)
            case "power of a worker" if machine and machine.core:
                self._switch_off(machine)
            case "stop agent" if machine:
                machine.pause(random.choice([0.5, 1.5, 5.0]))
            case "kill warden" if machine and machine.wardens:
                machine.wardens[random.choice(sorted(machine.wardens))].die()
            case "witness" if sim.witness:
                sim.witness.stop()
                after(random.choice([0.1, 2.0, 5.0]), sim.witness.start)

    def _kill(self, head: HeadHost, for_s: float) -> None:
        if head.replica:
            self.crashes += 1
            head.kill()
            self._sim.clock.after(for_s, head.start)

    def _cut_power(self, head: HeadHost, for_s: float) -> None:
        if head.powered:
            self.crashes += 1
            head.power_off()
            self._sim.clock.after(for_s, head.power_on)

    def _switch_off(self, machine: Machine) -> None:
        if machine.core:
            self.crashes += 1
            machine.stop()
            self._sim.clock.after(BOOT_S + self._sim.random.choice([0.1, 5.0]), machine.revive)

    def _cut(self, ways: list[tuple[str, str]]) -> None:
        for_s = self._sim.random.choice([0.3, 0.7, 2.0, 5.0, 8.0])
        self._sim.say(f"cut for {for_s} s: {ways}")
        self._sim.clock.after(for_s, self._sim.net.cut(ways))

    def _flip(self, head: HeadHost) -> None:
        """Not where the only whole journal is: no software brings that back."""
        sim = self._sim
        others = [host.disk for host in sim.heads.values() if host is not head]
        is_elsewhere = any(disk.durable >= head.disk.durable and not disk.damaged for disk in others)
        if sim.truth.alone != head.name and head.replica and is_elsewhere:
            sim.say(f"a bit flips on {head.name}")
            self._kill(head, 0.5)
            head.disk.flip()


def _both(one: str, other: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (one, other), (other, one)
