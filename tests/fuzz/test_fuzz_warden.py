"""Spoilt bytes at a warden: on its agent's socket, and on the PMI of two nodes. Its attempt goes on, or ends."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from beo.worker.frames import frame
from beo.worker.pmi import FENCE_BYTES_MAX, SERVICES_MAX, Bad, Effect, Fence, Pmi, Reply
from tests.fuzz.bytes import dice, rounds, spoil
from tests.wardens import Agent, alive

SAID: list[dict[str, Any]] = [
    {"op": "state"},
    {"op": "leash", "until_ns": 0},
    {"op": "signal", "serial": 1, "signal": 10, "job": 2, "attempt": 1},
    {"op": "stdin", "offset": 0, "data": "aGVsbG8=", "eof": False, "job": 2, "attempt": 1},
    {"op": "peer", "from": "node02", "seq": 1, "body": {"fence": 0, "puts": {}}, "job": 2, "attempt": 1},
    {"op": "peer_ack", "from": "node02", "seq": 1, "job": 2, "attempt": 1},
    {"op": "committed", "job": 2, "attempt": 1},
    {"op": "start", "job": 2, "attempt": 1, "argv": ["true"], "ranks": [0], "size": 1},
]
LINES = [
    b"cmd=init pmi_version=1 pmi_subversion=1",
    b"cmd=get_maxes",
    b"cmd=get_universe_size",
    b"cmd=get_appnum",
    b"cmd=get_my_kvsname",
    b"cmd=put kvsname=s key=k value=v",
    b"cmd=get kvsname=s key=k",
    b"cmd=barrier_in",
    b"cmd=finalize",
    b"cmd=publish_name service=x port=y",
    b"cmd=lookup_name service=x",
    b"cmd=unpublish_name service=x",
    b"mcmd=spawn",
    b"nprocs=1",
    b"execname=a",
    b"totspawns=1",
    b"spawnssofar=1",
    b"argcnt=0",
    b"preput_num=0",
    b"info_num=0",
    b"endcmd",
]


def test_a_warden_hangs_up_on_nonsense_and_its_attempt_goes_on(tmp_path: Path) -> None:
    random = dice("warden")
    agent = Agent(tmp_path / "w")
    try:
        agent.start(["sleep", "600"])
        before = agent.pids()
        agent.link.close()
        whole = [frame(said) for said in SAID]
        for _ in range(rounds(150)):
            with socket.socket(socket.AF_UNIX) as stranger:
                folder = os.open(tmp_path / "w", os.O_RDONLY)
                try:
                    stranger.connect(f"/proc/self/fd/{folder}/sock")
                    stranger.sendall(b"".join(spoil(random, random.choice(whole), whole) for _ in range(3)))
                except OSError:
                    pass  # it hung up on what came first, or has not yet taken those before
                finally:
                    os.close(folder)
        agent.reattach()
        assert agent.pids() == before and alive(before.values())
    finally:
        agent.close()


def test_two_nodes_bear_any_sequence_of_lines_and_hold_little_of_them() -> None:
    random = dice("pmi")
    for _ in range(rounds(60)):
        nodes = {name: Pmi([rank], 2, [other], "s") for rank, (name, other) in enumerate((("a", "b"), ("b", "a")))}
        ended = False
        for _ in range(200):
            name = random.choice("ab")
            line = random.choice(LINES)
            if random.random() < 0.2:
                line = spoil(random, line, LINES)
            pending: list[tuple[str, Effect]] = [(name, e) for e in nodes[name].handle("ab".index(name), line)]
            while pending:
                where, effect = pending.pop()
                ended = ended or isinstance(effect, Bad)
                if isinstance(effect, Reply):
                    assert effect.line.endswith(b"\n") and effect.line.count(b"\n") == 1
                elif isinstance(effect, Fence):
                    other = "b" if where == "a" else "a"
                    pending += [(other, e) for e in nodes[other].fence(where, effect.k, effect.puts)]
            machine = nodes[name]
            assert machine._puts_bytes <= FENCE_BYTES_MAX and len(machine._services) <= SERVICES_MAX
            assert len(machine._fences) <= 2 and len(machine._waiting) <= 1
            if ended:
                break  # the attempt does
