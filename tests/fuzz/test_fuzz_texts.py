"""Spoilt texts and files: each parser gives a value or beo's own error, in a moment, and never anything else."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
import msgspec
import pytest

from beo import events, nodeset, records, selector, spec, units
from beo import messages as ms
from beo.cli.options import spec_of
from beo.cli.submit import submit
from beo.config import Home
from beo.errors import BeoError, UsageError
from beo.headnode.output import Full, Output
from beo.headnode.state import State
from beo.worker.frames import FRAME_BYTES_MAX, FrameError, Frames, frame
from tests.fuzz.bytes import CLIENT, dice, rounds, spoilt, traffic
from tests.fuzz.test_fuzz_agent import WORDS
from tests.world import World

ROUNDS = 3_000
MEMORY_MAX_BYTES = 64 << 20  # that reading one spoilt piece may take; the largest honest one takes a sixteenth


def words(data: bytes) -> str:
    """The bytes as a command line has them."""
    return data.decode(errors="surrogateescape")


PARSERS: list[tuple[str, Callable[[str], object], list[bytes]]] = [
    ("selector", lambda text: selector.parse(text.split()), [b"1", b"1-3", b"last", b"all", b"1,2,7-9", b"1 2 3"]),
    ("nodeset", nodeset.expand, [b"node[01-08,11],head", b"rack[1-2]-node[1-4/2]", b"a,b,c", b"n[1-999]"]),
    ("duration", units.parse_duration, [b"1h30m", b"500ms", b"2-12:00:00", b"01:30:00", b"90", b"1.5d"]),
    ("size", units.parse_size, [b"4GiB", b"512M", b"1.5TiB", b"100B"]),
    ("directives", spec.script_directives, [b"#!/bin/sh\n#BEO -n 4 -t 1h  # two\n#BEO -J 'my job'\necho\n#BEO -n 9\n"]),
    ("shell", spec.is_shell, [b"#!/bin/sh\n", b"#!/usr/bin/env -S bash\n", b"#!python\n"]),
    ("key", spec.key_made_s, [b"0123456789ab-x", b"mine"]),
]


@pytest.mark.parametrize(("name", "parse", "samples"), PARSERS, ids=[row[0] for row in PARSERS])
def test_a_spoilt_text_is_read_or_refused(name: str, parse: Callable[[str], object], samples: list[bytes]) -> None:
    for data in spoilt(name, samples, ROUNDS):
        with suppress(UsageError):
            parse(words(data))


def test_a_fold_of_an_expansion_is_the_same_set() -> None:
    for data in spoilt("fold", PARSERS[1][2], ROUNDS // 10):
        try:
            names = nodeset.expand(words(data))
        except UsageError:
            continue
        assert nodeset.expand(nodeset.fold(names)) == names


def test_spoilt_scripts_are_submitted_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = [b"#!/bin/sh\n#BEO -n 4 -t 1h --mem 4GiB\n#BEO --env A=1 -J 'my job' --requeue auto\necho hi\n"]
    made = 0
    for data in spoilt("scripts", samples, ROUNDS // 6):
        (tmp_path / "job.sh").write_bytes(data)
        try:
            spec.check(spec_of(submit.make_context("submit", ["job.sh"])))
            made += 1
        except (BeoError, click.ClickException):
            continue
    assert made > ROUNDS // 200


def test_spoilt_settings_are_read_or_refused_by_name(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", Path("docs/settings.md").read_text(), re.DOTALL)
    assert example
    home = Home(tmp_path)
    for data in spoilt("toml", [example[1].encode(), b"[worker]\nlease_s = 3.0\n"], ROUNDS // 6):
        home.toml.write_bytes(data)
        with suppress(UsageError):
            home.config()


def test_spoilt_cluster_files_are_read_or_named(tmp_path: Path) -> None:
    sample = b'{"cluster":"c","heads":["127.0.0.1:7420"],"key":"' + b"0" * 40 + b'","bulk":["127.0.0.1:7421"]}\n'
    home = Home(tmp_path)
    for data in spoilt("cluster.json", [sample], ROUNDS // 6):
        home.cluster_file.write_bytes(data)
        with suppress(BeoError):
            assert home.cluster().heads


# ---- messages and entries -------------------------------------------------------------------------------------------


def test_no_spoilt_message_is_anything_but_a_message_or_a_msgspec_error() -> None:
    samples = [ms.encode(message) for messages in traffic() for message in messages]
    readers: list[ms.Reader[object]] = [ms.to_head, ms.to_client, ms.to_agent, ms.bulk_to_head, ms.bulk_from_head]  # type: ignore[list-item]
    for count, data in enumerate(spoilt("decode", samples, 3 * ROUNDS)):
        try:
            readers[count % len(readers)].decode(data)
        except msgspec.MsgspecError:
            continue


MANY = b"".join(b"\xa6%06d\xa0" % number for number in range(100_000))
BOMBS = [
    ("lists in lists", b"\x91" * 1_000_000),
    ("maps in maps", b"\x81\xa1a" * 500_000),
    ("a list of 4 thousand million", b"\x92\xa8WaitJobs\xdd\xff\xff\xff\xff"),
    ("a map of 4 thousand million", b"\x9b\xa4Join" + b"\xa1x" * 5 + b"\x01\x01\xdf\xff\xff\xff\xff\x90"),
    ("a text of 4 GiB", b"\x92\xabDeclareGone\xdb\xff\xff\xff\xff"),
    ("a million small numbers", b"\x93\xa8WaitJobs\xdd\x00\x0f\x42\x40" + b"\1" * 1_000_000 + b"\xcb" + bytes(8)),
    ("a map of 100,000", b"\x99\xa4Join" + b"\xa1x" * 5 + b"\1\1\xdf\0\1\x86\xa0" + MANY + b"\x90"),
    ("a later version's word", b"\x92\xa4Info" + b"\x91" * 100_000),
]


@pytest.mark.parametrize("data", [row[1] for row in BOMBS], ids=[row[0] for row in BOMBS])
def test_a_message_that_promises_much_takes_no_more_memory_than_it_has_bytes(data: bytes) -> None:
    tracemalloc.start()
    try:
        for reader in (ms.to_head, ms.bulk_to_head):
            with suppress(msgspec.MsgspecError):
                reader.decode(data)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX_BYTES
    finally:
        tracemalloc.stop()


def journal() -> tuple[list[bytes], bytes]:
    """Entries of a small life of a cluster, and the state behind them."""
    world = World()
    node = world.node("n1")
    for name in ("a", "b"):
        job = world.submit(name=name)
        node.end(job, 3 if name == "a" else 0)
    world.submit(ranks=99)
    world.ask(ms.Cancel(("last",)))
    return list(world.disk.entries), world.state.encode()


def test_a_spoilt_entry_is_an_event_or_a_msgspec_error() -> None:
    entries, _ = journal()
    for data in spoilt("events", entries, 2 * ROUNDS):
        try:
            events.decode(data)
        except msgspec.MsgspecError:
            continue


def test_a_spoilt_snapshot_is_a_state_or_an_error_that_is_told() -> None:
    _, snapshot = journal()
    for data in spoilt("snapshot", [snapshot], ROUNDS // 3):
        try:
            State.decode(data)
        except (msgspec.MsgspecError, BeoError):
            continue


# ---- records and the store of output --------------------------------------------------------------------------------

SPOOL = b"".join(records.pack(rank, fd, b"line %d\n" % rank * 20) for rank in range(5) for fd in (1, 2))


def test_spoilt_records_are_records_or_damage() -> None:
    for data in spoilt("records", [SPOOL], ROUNDS):
        try:
            length = records.whole_length(data)
            assert sum(records.HEADER.size + len(r.data) for r in records.unpack(data[:length])) == length
            list(records.unpack(data))
        except records.DamagedRecord:
            continue


def test_a_spoilt_file_of_output_gives_what_is_whole_and_goes_on(tmp_path: Path) -> None:
    def opened() -> Output:
        return Output(tmp_path)

    first = opened()
    for number in range(8):
        first.append(1, 1, f"n{number % 2}", len(SPOOL) * (number // 2), SPOOL)
    first.sync()
    first.close()
    path = tmp_path / "1.1.log"
    whole = path.read_bytes()
    index = b"00000000 " + msgspec.json.encode({"size": len(whole), "have": {"n0": 1, "n1": 2**63}})
    random = dice("output")
    for data in spoilt("output", [whole], ROUNDS // 30):
        path.write_bytes(data)
        hint = path.with_suffix(".index")
        hint.write_bytes(random.choice((b"", index, data[:100], b"\xff")))
        store = opened()
        cursor, taken = 0, b""
        while cursor < store.end(1, 1):
            cursor, more = store.read(1, 1, cursor, 1 << 20)
            taken += more
        assert len(taken) < store.end(1, 1) or not taken
        try:
            store.append(1, 1, "n0", store.have(1, 1, "n0"), SPOOL)
            store.sync()
            assert store.read(1, 1, store.end(1, 1), 1) == (store.end(1, 1), b"")
        except Full:
            raise AssertionError("the disk isn't full") from None
        store.close()


# ---- frames between agent and warden --------------------------------------------------------------------------------


def test_spoilt_frames_are_messages_or_a_frame_error_and_little_is_kept_of_them() -> None:
    random = dice("frames")
    stream = b"".join(map(frame, WORDS))
    for data in spoilt("frames", [stream, *map(frame, WORDS)], ROUNDS):
        reader = Frames()
        at = 0
        try:
            while at < len(data):
                step = random.choice((1, 3, 4, 5, 100, 70_000))
                for message in reader.feed(data[at : at + step]):
                    assert isinstance(message, dict)
                at += step
                assert len(reader._rest) <= FRAME_BYTES_MAX + 4
        except FrameError:
            continue


def test_a_frame_that_never_ends_is_not_gathered_beyond_the_limit() -> None:
    reader = Frames()
    with pytest.raises(FrameError, match="over the limit"):
        reader.feed((FRAME_BYTES_MAX + 1).to_bytes(4))
    for text in (b'{"a":' * 100_000, b"[" * 100_000, b"9" * 100_000, b'{"a":' + b"9" * 5_000 + b"}", b"NaN", b"\xff"):
        with pytest.raises(FrameError):
            Frames().feed(len(text).to_bytes(4) + text)


def test_what_the_client_sends_is_what_the_head_reads() -> None:
    """The corpus is what it says: each message is read as it was."""
    for message in CLIENT:
        assert ms.to_head.decode(ms.encode(message)) == message
    assert rounds(1) >= 1
