"""Where fuzzers take their bytes from: what beo's own cores say to each other in a simulation, and ways to spoil it.

`rounds(n)` is how often a fuzzer tries: a few seconds' worth in `make test`, `BEO_FUZZ` times as often in `make fuzz`.
Everything follows from a seed that is printed; another one is had with `BEO_FUZZ_SEED`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any, get_args

import msgspec

from beo import messages as ms
from beo import spec
from tests.sim.head import HeadHost
from tests.sim.world import Simulation

FACTOR = int(os.environ.get("BEO_FUZZ", "1"))
SEED = int(os.environ.get("BEO_FUZZ_SEED", "20261125"))
SPOILT_BYTES_MAX = 64 * 1024  # of one piece: enough for every limit but the socket's own
SAMPLES_MAX = 40  # of one kind of message

# What parsers stumble over: ends of the ranges of numbers, markers of MessagePack and JSON, what is no text.
SPECIAL = (
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"\x80" + b"\0" * 7,
    b"\x7f" + b"\xff" * 7,
    b"\xcf" + b"\xff" * 8,  # an integer of 64 bits
    b"\xd3" + b"\x80" + b"\0" * 7,
    b"\xcb\x7f\xf8" + b"\0" * 6,  # not a number
    b"\xdd\xff\xff\xff\xff",  # a list of 4 thousand million
    b"\xdf\xff\xff\xff\xff",  # and as large a map
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 2_000,
    b"[" * 2_000,
    b'{"a":' * 500,
    b"1e999",
    b"-1",
    b"9" * 400,
    b"\xed\xa0\x80",
    b"\r\n",
    b" cmd=",
)


def rounds(count: int) -> int:
    """How often to try."""
    return count * FACTOR


def dice(name: str) -> Random:
    """The randomness of one fuzzer."""
    print(f"BEO_FUZZ_SEED={SEED}")
    return Random(f"{SEED} {name}")


def spoil(random: Random, data: bytes, others: list[bytes]) -> bytes:
    """Return bytes that were right once."""
    piece = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(piece) + 1)
        match random.randrange(8):
            case 0 if piece:
                piece[at % len(piece)] ^= 1 << random.randrange(8)
            case 1 if piece:
                piece[at % len(piece)] = random.randrange(256)
            case 2:
                piece[at:at] = random.choice(SPECIAL)
            case 3:
                del piece[at:]
            case 4:
                del piece[at : at + random.randrange(1, 9)]
            case 5:
                piece[at:at] = piece[at : at + random.randrange(1, 65)]
            case 6:
                other = random.choice(others)
                piece[at:] = other[random.randrange(len(other) + 1) :]
            case _:
                piece[at : at + 8] = random.choice(SPECIAL)
        if len(piece) > SPOILT_BYTES_MAX:
            del piece[SPOILT_BYTES_MAX:]
    return bytes(piece)


def spoilt(name: str, samples: list[bytes], count: int) -> Iterator[bytes]:
    """Yield spoilt pieces of samples, and now and then one as it is."""
    random = dice(name)
    for _ in range(rounds(count)):
        sample = random.choice(samples)
        yield sample if random.random() < 0.05 else spoil(random, sample, samples)


ODD_NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64 - 1)
ODD_TEXTS = (
    "",
    "\0",
    "\n",
    "a,b",
    "n1",
    "n[1-9]",
    "all",
    "last",
    "1-99999999",
    "0",
    "x" * 300,
    "ü",
    "'",
    "{}",
    "\x1b[2J",
    "..",
)
ODD_FLOATS = (0.0, -1.0, 1e300, -1e300, float("inf"), float("-inf"), float("nan"), 5e-324)


def bend(random: Random, value: Any) -> Any:
    """Return a decoded message with another value somewhere in it: mostly one of the same type, so that it is read."""
    if isinstance(value, (list, tuple)) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        bent = list(value)
        match random.randrange(12):
            case 0:
                del bent[at]
            case 1:
                bent[at:at] = [bent[at]] * random.choice((1, 2, 300))
            case 2:
                bent[at] = random.choice((None, True, [], {}, "", 0, 0.5, b"", bent))
            case _:
                bent[at] = bend(random, bent[at])
        return bent
    if isinstance(value, dict) and value:
        key = random.choice(list(value))
        if random.random() < 0.2:
            return {**value, random.choice(ODD_TEXTS): random.choice(ODD_TEXTS)}
        return {**value, key: bend(random, value[key])}
    match value:
        case bool():
            return not value
        case int():
            return random.choice((*ODD_NUMBERS, value + 1, value - 1, -value))
        case float():
            return random.choice((*ODD_FLOATS, value * 2))
        case str():
            return random.choice((*ODD_TEXTS, value * 2, value[:-1]))
        case bytes():
            return spoil(random, value, [value])
    return value


def bent(name: str, messages: list[Any], count: int) -> Iterator[bytes]:
    """Yield messages of every kind with wrong values in them: what a decoder lets pass, and what it must not."""
    random = dice(name)
    kinds: dict[type, list[Any]] = {}
    for message in messages:
        kinds.setdefault(type(message), []).append(msgspec.msgpack.decode(ms.encode(message)))
    choices = list(kinds.values())
    for _ in range(rounds(count)):
        tag, *rest = random.choice(random.choice(choices))
        for _ in range(random.choice((1, 1, 2, 4))):
            rest = bend(random, rest) if rest else rest
        try:
            yield msgspec.msgpack.encode([tag, *rest] if isinstance(rest, list) else rest)
        except (OverflowError, RecursionError):
            continue


@cache
def traffic() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What was said to the head and to the agents in a simulation in which everything breaks, some of each kind."""
    to_head: dict[type, list[Any]] = {}
    to_agent: dict[type, list[Any]] = {}

    class Recorded(Simulation):
        def overhear(self, message: Any) -> None:
            to_head.setdefault(type(message), []).append(message)

        def deliver(self, head: HeadHost, effect: Any) -> None:
            if type(effect.message) in get_args(ms.HeadCommand):
                to_agent.setdefault(type(effect.message), []).append(effect.message)
            super().deliver(head, effect)

    Recorded(1, heads=1, workers=3).run()
    for said in (*CLIENT, *PEER):
        (to_agent if said in PEER else to_head).setdefault(type(said), []).append(said)
    return tuple(
        tuple(message for messages in kinds.values() for message in messages[:: max(1, len(messages) // SAMPLES_MAX)])
        for kinds in (to_head, to_agent)
    )  # type: ignore[return-value]


JOB = spec.JobSpec(argv=("python", "a b.py"), cwd="/x", env={"A": "1"}, ranks=2, script="#!/bin/sh\n", output="/x/o")
CLIENT = (
    ms.Info(),
    ms.Submit("key", JOB, 0, 0, (0, 1)),
    ms.ListJobs(("1-3", "last"), True, 10),
    ms.ShowJob(("all",)),
    ms.WaitJobs((1, 2), 1.0, True, "running/1"),
    ms.Cancel(("2",)),
    ms.Signal(1, 15, "key2"),
    ms.ListNodes(),
    ms.ListEvents(3, 100),
    ms.DeclareGone("n1"),
)
PEER = (
    ms.Probe("n2", "n2-1"),
    ms.Relay("n2", 7, 1, 1, b'{"fence": 0, "puts": {"a": "b"}}'),
    ms.RelayAck("n2", 7, 1, 3),
)
BULK = (
    ms.Fetch(1, 1, 0, 1.0),
    ms.Stdin(1, 1, 0, b"hello\n", False),
    ms.Chunk("n1", "n1-1", 1, 1, 0, b"\0\0\0\0\1\0\0\0\5hello"),
    ms.StdinAck(1, 1, 5, False),
    ms.BulkHello("n1", "n1-1"),
    ms.Copy(1, (ms.Piece(1, 1, 0, 0, b"beo1"),)),
    ms.Offer(1, 1, 1, ((1, 1, 100, 7),), True),
    ms.Exported(1, ((1, 1, "o"),)),
)
