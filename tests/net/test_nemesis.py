"""Schedules of faults: a seed always gives the same one, each kind comes up, and no host is hit twice at a time."""

from __future__ import annotations

from collections import Counter

from tests.net.nemesis import DENSE, LONG, OF_ALL, OF_CABLES, OF_HOSTS, plan

HEADS, WORKERS = ["pc1", "pc2"], ["pc3", "pc4", "pc5"]


def test_a_seed_gives_one_schedule_and_another_seed_another() -> None:
    again = [plan(7, 50, HEADS, WORKERS, HEADS, LONG) for _ in range(2)]
    assert again[0] == again[1] != plan(8, 50, HEADS, WORKERS, HEADS, LONG)
    assert len(again[0]) == 50 and again[0][10].at_s > again[0][0].at_s


def test_every_kind_of_fault_comes_up_and_heads_are_hit_most() -> None:
    faults = plan(1, 500, HEADS, WORKERS, HEADS, LONG)
    assert {fault.kind for fault in faults} == {*OF_HOSTS, *OF_CABLES, *OF_ALL}
    hit = Counter(name for fault in faults if fault.kind in OF_HOSTS for name in fault.hosts)
    assert hit["pc1"] + hit["pc2"] > hit["pc3"] + hit["pc4"] + hit["pc5"] > 0
    assert "fill" not in {fault.kind for fault in plan(1, 500, HEADS, WORKERS, [], LONG)}
    assert {fault.hosts for fault in faults if fault.kind == "fill"} == {("pc1",), ("pc2",)}


def test_no_hosts_processes_are_hurt_twice_at_a_time() -> None:
    busy: dict[str, float] = {}
    for fault in plan(3, 500, HEADS, WORKERS, HEADS, DENSE):
        for name in fault.hosts if fault.kind not in OF_CABLES else ():
            assert busy.get(name, 0.0) <= fault.at_s, fault
            busy[name] = fault.at_s + fault.lasting_s
