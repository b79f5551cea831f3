"""What of the tree of files one of two real heads had alone, and what becomes of it: level A, and a forced head."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from beo import local
from tests.cluster import HEADS, OTHER, PATIENCE_S, Cluster, running, send, wait_for
from tests.scribes import Hand
from tests.volumes import await_equal, differences, tree_of, tree_pid

MIB = 1 << 20
LOST = 30  # files of 1 MiB: more than may be under way to the other head
LARGE = [b"%07d\n" % k * (MIB // 8) for k in range(LOST)]  # one file of them

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("tree") / "beo"
    with running(folder, workers=3, heads=2, settings='\n[files]\nlevel = "A"\n') as cluster:
        Hand(cluster.home).close()
        yield cluster


def said(cluster: Cluster, *words: str) -> str:
    """What `beo ha WORDS` prints."""
    done = cluster.beo("ha", *words)
    assert done.returncode < 2, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def orphans(cluster: Cluster, *words: str) -> list[dict[str, Any]]:
    """The rows of `beo ha orphans`."""
    rows: list[dict[str, Any]] = msgspec.json.decode(said(cluster, "orphans", "--json", *words))
    return rows


def test_at_level_a_a_writer_waits_for_one_disk_and_what_a_dead_primary_had_alone_is_listed(
    pair: Cluster, tmp_path: Path
) -> None:
    first = pair.await_step().name
    assert "files: level A" in said(pair, "status")
    hand = Hand(pair.home)
    hand.write("/kept", iter([b"k" * MIB]))
    behind = wait_for(lambda: tree_pid(pair, OTHER[first]), "the other head's tree")
    assert behind
    logs = [tree_of(pair, head) / "log" / "journal.db" for head in "AB"]
    wait_for(lambda: all(path.exists() for path in logs), "both logs")
    wait_for(lambda: differences(tree_of(pair, "A"), tree_of(pair, "B")) == [], "it has the file")
    send([behind], signal.SIGSTOP)
    began_s = time.monotonic()
    for k in range(LOST):
        hand.write(f"/lost{k:02}", iter([b"%02d" % k * (MIB // 2)]))
    took_s = time.monotonic() - began_s
    pair.kill(HEADS[first])
    send([behind], signal.SIGCONT)
    wait_for(lambda: pair.acting() == OTHER[first], f"head {OTHER[first]} to act", PATIENCE_S)
    print(f"{LOST} MiB were taken in {took_s:.2f} s, while the other head took nothing")
    assert hand.bytes_of("/kept") == b"k" * MIB
    there = {name for name, _ in hand.entries("/")}
    lost = [k for k in range(LOST) if f"lost{k:02}" not in there]
    assert lost, "some were on one disk alone"
    pair.await_step()
    await_equal(tree_of(pair, "A"), tree_of(pair, "B"))
    rows = orphans(pair)
    assert {row["name"] for row in rows} >= {f"/lost{k:02}" for k in lost[1:]}
    wait_for(lambda: "changes of files were here alone" in said(pair, "status"), "it is told")
    out = tmp_path / "out"
    orphans(pair, "--files", str(out))
    for k in lost[1:]:
        assert b"%02d" % k * (MIB // 2) in [path.read_bytes() for path in out.glob("**/*") if path.is_file()]
    assert not orphans(pair)
    hand.close()


def test_what_a_head_had_that_was_forced_away_is_listed_when_it_begins_anew(pair: Cluster, tmp_path: Path) -> None:
    first = pair.await_step().name
    second = OTHER[first]
    hand = Hand(pair.home)
    hand.write("/before", iter([b"before"]))
    pair.await_step()
    behind = tree_pid(pair, second)
    assert behind
    stopped = [pair.pid(HEADS[second]), behind]
    send(stopped, signal.SIGSTOP)
    hand.mkdir("/alone")
    hand.write("/alone/file", iter(LARGE))  # more than may be under way
    wait_for(lambda: pair.acting() == first, "the first one acts", PATIENCE_S)
    time.sleep(2.0)  # it goes on alone, and marks how far its store is
    pair.kill("supervisor")
    pair.kill(HEADS[first])
    hand.close()
    send(stopped, signal.SIGCONT)
    wait_for(lambda: "isn't in step" in said_why(pair, second), "the other one waits", PATIENCE_S)
    said(pair, "force-primary", second, "--i-know-the-other-is-dead")
    wait_for(lambda: pair.acting() == second, "it acts", PATIENCE_S)
    hand = Hand(pair.home)
    hand.write("/forced", iter([b"forced"]))
    local.start(pair.home, lambda last: last or local.Plan(3, 2))  # nobody waits for what can't be: both in step
    wait_for(lambda: "rejoin --wipe" in said_why(pair, first), "the first one is shut out", PATIENCE_S)
    assert hand.bytes_of("/before") == b"before"
    text = said(pair, "rejoin", first, "--wipe")
    assert f"changes of files were on head {first} alone" in text
    pair.await_step()
    await_equal(tree_of(pair, "A"), tree_of(pair, "B"))
    rows = [(row["kind"], row["name"], row["fate"]) for row in orphans(pair)]
    assert any(kind == "moved to /alone/file" for kind, _, _ in rows)  # what was on its way arrived before
    assert not any(name in ("/before", "/forced") for _, name, _ in rows)
    orphans(pair, "--files", str(tmp_path / "out"))
    assert (tmp_path / "out" / "alone" / "file").read_bytes() == b"".join(
        b"%07d\n" % k * (MIB // 8) for k in range(LOST)
    )
    assert not orphans(pair)
    assert {name for name, _ in hand.entries("/")} >= {"before", "forced"}
    hand.close()


def said_why(cluster: Cluster, head: str) -> str:
    """Why a head doesn't act, as it says itself."""
    view = cluster.views().get(head)
    return view.why if view else ""
