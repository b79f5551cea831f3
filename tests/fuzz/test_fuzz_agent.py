"""Spoilt bytes at an agent, from the head, from other agents and from wardens: it never fails, whatever they say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest

from beo import birth
from beo import messages as ms
from beo.config import Home
from beo.worker import acts, core, remains, told
from beo.worker.agent import Agent
from beo.worker.frames import Frames, frame
from beo.worker.order import Order
from tests.fuzz.bytes import bend, bent, dice, rounds, spoilt, traffic

MESSAGES = 4_000

# One of each word that a warden says, as wardens say them.
RESULT = {
    "ranks": [{"rank": 0, "status": 3, "user_s": 0.1, "system_s": 0.0, "peak_bytes": 9}],
    "reason": "ended: cancelled",
    "culprit": 0,
    "status": 3,
}
WORDS: list[dict[str, Any]] = [
    {"op": "hello", "version": 1, "pid": 7, "keeper_pid": 6, "contain": "pidns", "fresh": True},
    {"op": "state", "phase": "idle"},
    {"op": "state", "phase": "running", "job": 1, "attempt": 1, "result": None, "spool_length": 5},
    {"op": "state", "phase": "ended", "job": 1, "attempt": 1, "result": RESULT, "spool_length": 5},
    {"op": "output", "job": 1, "attempt": 1, "spool_length": 100, "stalled": "No space left on device"},
    {"op": "ended", "job": 1, "attempt": 1, "result": RESULT, "spool_length": 100},
    {"op": "stdin", "job": 1, "attempt": 1, "have": 5, "closed": False},
    {"op": "peer", "job": 1, "attempt": 1, "to": "n2", "seq": 1, "body": {"fence": 0, "puts": {}}},
    {"op": "peer_ack", "job": 1, "attempt": 1, "to": "n2", "seq": 1},
    {"op": "idle"},
]


class FakeLink:
    """A warden that takes every order; what it is told must be a whole message, and an order a whole order."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def send(self, message: dict[str, Any]) -> None:
        """Read it as a warden does."""
        (again,) = Frames().feed(frame(message))
        if again["op"] == "start":
            with suppress(ValueError):
                Order(again)

    def close(self) -> None:
        """Do nothing."""


class Wire:
    """A connection or a server that loses all it is given."""

    address = "127.0.0.1:1"
    renewed = False
    stranger = b""
    server_key = "k" * 40

    def __init__(self, *_: object) -> None:
        self.heard: list[bytes] = []

    def send(self, *words: Any) -> bool:
        """Take a message: one that can be encoded."""
        assert isinstance(words[-1], bytes)
        return True

    def receive(self, *_: object) -> tuple[int, bytes] | None:
        """Give the next message."""
        return (0, self.heard.pop(0)) if self.heard else None

    def register(self, *_: object) -> None:
        """Do nothing."""

    unregister = close = register


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent that is as real as can be: but for sockets and wardens."""
    home = Home(tmp_path / "beo")
    birth.make_folder(home)
    birth.make_cluster(home)
    made = Agent(home, "n1", 2, 1 << 30)
    real = dict(made._heads._connections)
    sockets = [*real.values(), made._server]
    monkeypatch.setattr(made._heads, "_connections", {Wire.address: Wire()})
    monkeypatch.setattr(made, "_server", Wire())
    monkeypatch.setattr("beo.worker.agent.wire.Connection", Wire)
    monkeypatch.setattr(made, "_tmp", lambda job, attempt: str(tmp_path / "no such folder"))
    monkeypatch.setattr(made, "_cgroups", "")

    def spawn() -> int:
        made._next_warden += 1
        made._links[made._next_warden] = FakeLink(f"{made._wardens}/{made._next_warden}")  # type: ignore[assignment]
        return made._next_warden

    monkeypatch.setattr(made, "_spawn", spawn)
    yield made
    monkeypatch.undo()
    assert sockets == [*made._heads._connections.values(), made._server]
    release(made)


def release(agent: Agent) -> None:
    """Close what an agent that never ran has open, and remove what it has made."""
    remains.remove_folder(agent._private("vaults"))
    agent._memory.close()
    agent._heads.close()
    agent._server.close()
    agent._context.destroy(linger=0)
    agent._shipper._context.destroy(linger=0)
    os.close(agent._lock)


def say(agent: Agent, body: bytes) -> None:
    """The head says something."""
    agent._heads._connections[Wire.address].heard.append(body)  # type: ignore[attr-defined]
    agent._read_heads()


def join(agent: Agent) -> None:
    """Let the agent be a node that runs something, as far as that goes without a head."""
    worker = agent._core
    worker._epoch, worker._settled, worker._dying = 1, 0, False  # spoilt ones may have brought them to their ends
    epoch = 1
    say(agent, ms.encode(ms.Welcome(epoch, worker.incarnation, "127.0.0.1:1")))
    now = agent._now().boot_ns
    say(agent, ms.encode(ms.Pong(epoch, worker.incarnation, now, 100.0, worker._settled)))


def sound(agent: Agent) -> None:
    """What it holds is bounded."""
    worker = agent._core
    assert len(worker.seen) <= core.SEEN_MAX
    assert len(worker.idle) <= core.IDLE_MAX
    assert len(worker.held) <= len(worker.seen)
    assert all(key in worker.seen for key in worker.held)


def test_no_spoilt_command_harms_an_agent(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    _, commands = traffic()
    mine = []
    for command in commands:  # so that it takes them for its own
        if isinstance(command, ms.Start):
            command = msgspec.structs.replace(
                command, parts=tuple(msgspec.structs.replace(part, node="n1") for part in command.parts[:1])
            )
        mine.append(command)
    random = dice("commands")
    samples = [ms.encode(command) for command in mine]
    starts = 0
    for count, body in enumerate(chain(spoilt("commands", samples, MESSAGES), bent("commands", mine, MESSAGES))):
        if count % 50 == 0:
            join(agent)
        if random.random() < 0.8:
            body = _for(agent, body)
        say(agent, body)
        starts = max(starts, len(agent._core.held))
        if random.random() < 0.02:
            agent._handle(acts.Tick())
    assert starts > 20, "it took hardly anything for an order"
    sound(agent)


def _for(agent: Agent, body: bytes) -> bytes:
    """The same message for this incarnation and epoch, where it can be read."""
    try:
        command = ms.to_agent.decode(body)
    except msgspec.MsgspecError:
        return body
    words: dict[str, object] = {}
    if hasattr(command, "incarnation") and not isinstance(command, ms.Probe):
        words["incarnation"] = agent._core.incarnation
    if hasattr(command, "epoch"):
        words["epoch"] = agent._core._epoch
    try:
        return ms.encode(msgspec.structs.replace(command, **words))
    except (OverflowError, UnicodeEncodeError):
        return body


def test_no_spoilt_word_of_another_agent_harms_one(agent: Agent) -> None:
    _, commands = traffic()
    words = [word for word in commands if isinstance(word, ms.Probe | ms.Relay | ms.RelayAck)]
    samples = [ms.encode(word) for word in words]
    for body in chain(spoilt("peers", samples, MESSAGES), bent("peers", words, MESSAGES)):
        agent._hear_peer(b"channel", "k" * 40, body)
    sound(agent)
    assert not agent._peers


def test_no_spoilt_word_of_a_warden_harms_an_agent(agent: Agent) -> None:
    random = dice("wardens")
    join(agent)
    _, commands = traffic()
    orders = [command for command in commands if isinstance(command, ms.Start)]
    for order in orders[:4]:
        part = msgspec.structs.replace(order.parts[0], node="n1")
        other = msgspec.structs.replace(order.parts[0], node="n2")
        say(agent, _for(agent, ms.encode(msgspec.structs.replace(order, index=10_000, parts=(part, other)))))
    assert agent._core.held
    for _ in range(rounds(MESSAGES)):
        held = random.choice([*agent._core.held.values()]) if agent._core.held else None
        word = bend(random, random.choice(WORDS)) if random.random() < 0.8 else random.choice(WORDS)
        if isinstance(word, dict) and held and "job" in word and random.random() < 0.7:
            word = {**word, "job": held.key[0], "attempt": held.key[1]}
        try:
            (message,) = Frames().feed(frame(json.loads(json.dumps(word))))
        except (ValueError, TypeError):
            continue
        number = held.warden if held and random.random() < 0.9 else random.randrange(1, 9)
        agent._handle(acts.FromWarden(number, message))
        agent._core._unknown.clear()  # an impossible word ends its warden; here none ends
    sound(agent)


def test_told_read_gives_a_word_or_a_value_error() -> None:
    random = dice("told")
    read = 0
    for _ in range(rounds(4 * MESSAGES)):
        word = bend(random, bend(random, random.choice(WORDS)))
        if not isinstance(word, dict):
            continue
        try:
            found = told.read(word)
        except ValueError:
            continue
        read += found is not None
        if isinstance(found, (told.Ended, told.State)) and found.result:
            told.part_result(found.result)
    assert read > MESSAGES // 10


def test_no_content_of_a_nodes_folder_keeps_an_agent_from_starting(tmp_path: Path) -> None:
    """identity.json, seen and orders have their own tests (test_memory.py); here what the agent itself keeps."""
    home = Home(tmp_path / "beo")
    birth.make_folder(home)
    birth.make_cluster(home)
    random = dice("folder")
    for count in range(rounds(12)):
        folder = home.nodes / "n1"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "wardens" / "3").mkdir(parents=True)
        (folder / "address").write_bytes(random.randbytes(random.randrange(40)) if count % 2 else b"127.0.0.1:0x7")
        pids = random.choice((b"", b"1 2\n", b"x y\n", b"1\n", b"9 9 9\n", b"\xff\n", b"1 " + b"9" * 400))
        (folder / "wardens" / "3" / "pids").write_bytes(pids)
        (folder / "wardens" / "junk").write_bytes(b"")
        agent = Agent(home, "n1", 2, 1 << 30)
        agent._look_into_limbo()
        assert not agent._limbo
        release(agent)
