"""Chunks in a real cluster: from the head and from each other, whatever is killed, and nobody gets another's."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import lockfile, wire
from beo.bulk import words
from beo.bulk.bringing import bring, read_by_session, stream
from beo.errors import BeoError, NotFound
from beo.tree import words as w
from beo.tree.files import Files
from beo.tree.locate import session
from beo.tree.session import ROOT_CALLER
from tests.bulk_nodes import UID, BulkNode, chunks, nodes, put_chunks
from tests.cluster import BEO, Cluster, is_alive, running, wait_for

SIZE = 400_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("bulk") / "beo", workers=1) as made:
        yield made


def servers_of_head(cluster: Cluster) -> list[int]:
    """The processes that send what the head has."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            ours = f"BEO_DIR={cluster.home.path}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if ours and b"beo.bulk.head" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def assert_brings(cluster: Cluster, node: BulkNode, made: dict[str, bytes]) -> None:
    with bring(cluster.home, node.name, UID, list(made), 60.0) as held:
        for digest, data in made.items():
            assert held.path(digest).read_bytes() == data


def bring_only(cluster: Cluster, digests: list[str], uid: int = UID) -> None:
    with bring(cluster.home, "n1", uid, digests):
        pass


def test_chunks_come_from_the_head_and_then_from_each_other(cluster: Cluster) -> None:
    made = chunks(1, 12, SIZE)
    put_chunks(cluster, made)
    with nodes(cluster, ["n1", "n2"]) as (first, second):
        assert_brings(cluster, first, made)
        (server,) = servers_of_head(cluster)
        os.kill(server, signal.SIGSTOP)
        try:
            time.sleep(0.3)  # until the head has heard what the first one has
            assert_brings(cluster, second, made)
        finally:
            os.kill(server, signal.SIGCONT)
        assert first.held() == second.held() == made.keys()
    secret = cluster.home.secret("worker")
    assert dict(read_by_session(cluster.home, secret, UID, list(made))) == made, "and without any of it"


def test_where_bulk_is_curve_chunks_come_encrypted_and_from_the_head_alone(tmp_path: Path) -> None:
    made = chunks(3, 6, SIZE)
    with running(tmp_path / "beo", workers=1, settings='[files]\nbulk = "curve"\n') as cluster:
        put_chunks(cluster, made)
        with nodes(cluster, ["n1", "n2"]) as (first, second):
            assert_brings(cluster, first, made)
            os.kill(first.process.pid, signal.SIGSTOP)
            try:
                assert_brings(cluster, second, made)
            finally:
                os.kill(first.process.pid, signal.SIGCONT)
            assert servers_of_head(cluster) == [], "nobody sends them unencrypted"


def test_nobody_gets_another_users_chunk_by_its_digest(cluster: Cluster) -> None:
    made = chunks(2, 2, SIZE)
    put_chunks(cluster, made)
    (digest, *_) = made
    with nodes(cluster, ["n1"]) as (node,):
        assert_brings(cluster, node, made)
        for whose in (UID + 1, 0):  # though its bytes are on this very node
            with pytest.raises(NotFound, match=f"no chunk {digest[:16]}… of user {whose}"):
                bring_only(cluster, [digest], whose)
            with pytest.raises(NotFound):
                list(read_by_session(cluster.home, cluster.home.secret("worker"), whose, [digest]))
        assert len(node.held()) == 2


def test_only_a_node_is_told_who_has_what(cluster: Cluster) -> None:
    made = chunks(3, 1, SIZE)
    put_chunks(cluster, made)
    name = words.name_of(UID, *made)
    who = words.Who("x" * 16, wants=(name,), lanes=1, all=True)
    answers: dict[str, w.Answer] = {}
    for role in ("worker", "admin"):
        with Files(session(cluster.home, cluster.home.secret(role)), ROOT_CALLER) as files:
            plan = iter([(who,)])

            def ask(plan: Iterator[tuple[w.Question, ...]] = plan):  # type: ignore[no-untyped-def]
                (answer,) = yield next(plan)
                return answer

            answers[role] = files.do(ask())
    assert answers["admin"] == w.Failed(1)
    told = answers["worker"]
    assert isinstance(told, words.SourcesAre) and [one.name for one in told.sources] == [name] and len(told.key) == 32
    assert wire.public_of(cluster.home.secret("worker"))[:8] not in repr(told.sources)


@pytest.mark.slow
def test_a_peer_that_lies_is_found_out_and_forgets_what_it_has_wrong(cluster: Cluster) -> None:
    made = chunks(4, 3, SIZE)
    put_chunks(cluster, made)
    with nodes(cluster, ["n1", "n2"]) as (liar, other):
        assert_brings(cluster, liar, made)
        for path in (liar.folder / "held").glob("*/*"):
            path.write_bytes(b"!" + path.read_bytes()[1:])
        time.sleep(0.3)
        assert_brings(cluster, other, made)
        wait_for(lambda: not liar.held(), "the liar has looked at what it has")


@pytest.mark.slow
def test_a_killed_node_is_not_waited_for_and_keeps_what_it_had(cluster: Cluster) -> None:
    made = chunks(5, 40, SIZE)
    put_chunks(cluster, made)
    with nodes(cluster, ["n1", "n2"]) as (first, second):
        assert_brings(cluster, first, made)
        outcome: list[BaseException | None] = []

        def work() -> None:
            try:
                assert_brings(cluster, second, made)
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_for(second.held, "some has come")
        first.kill()
        thread.join(60)
        assert outcome == [None]
        first.start()
        (server,) = servers_of_head(cluster)
        os.kill(server, signal.SIGSTOP)
        try:
            assert_brings(cluster, first, made)
        finally:
            os.kill(server, signal.SIGCONT)


@pytest.mark.slow
def test_the_heads_server_that_is_killed_is_made_up_for_by_the_session_and_comes_back(cluster: Cluster) -> None:
    made = chunks(6, 30, SIZE)
    put_chunks(cluster, made)
    with nodes(cluster, ["n1"]) as (node,):
        with bring(cluster.home, "n1", UID, list(made)[:1]):
            pass
        ended = servers_of_head(cluster)
        for pid in ended:
            os.kill(pid, signal.SIGKILL)
        assert_brings(cluster, node, made)
        wait_for(lambda: servers_of_head(cluster) not in ([], ended), "there is another one")


@pytest.mark.slow
def test_several_who_want_the_same_get_it_once(cluster: Cluster) -> None:
    made = chunks(7, 10, SIZE)
    put_chunks(cluster, made)
    with nodes(cluster, ["n1"]) as (node,):
        threads = [threading.Thread(target=assert_brings, args=(cluster, node, made)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert node.held() == made.keys()


@pytest.mark.slow
def test_more_than_a_node_may_hold_is_streamed_and_at_once_is_an_error(tmp_path: Path) -> None:
    room = 8 << 20
    settings = f"[files]\nheld_bytes_max = {room}\n"
    made = chunks(8, 12, 1 << 20)
    with running(tmp_path / "beo", workers=1, settings=settings) as cluster:
        put_chunks(cluster, made)
        with nodes(cluster, ["n1"]) as (node,):
            with pytest.raises(BeoError, match=r"no room for another chunk .* raise held_bytes_max in \[files\]"):
                bring_only(cluster, list(made))
            assert dict(stream(cluster.home, "n1", UID, list(made))) == made
            assert sum(path.stat().st_size for path in node.folder.glob("held/*/*")) <= room


@pytest.mark.slow
def test_a_node_that_ends_leaves_nothing_waiting(cluster: Cluster) -> None:
    with nodes(cluster, ["n1"]) as (node,):
        missing = words.digest(b"nobody has this")
        with pytest.raises(NotFound), bring(cluster.home, "n1", UID, [missing]):
            pass
        for ending in (signal.SIGTERM, signal.SIGKILL):
            failed: list[BeoError] = []
            with pytest.raises(NotFound):
                bring_only(cluster, [missing])
            os.kill(node.process.pid, signal.SIGSTOP)

            def work(failed: list[BeoError] = failed) -> None:
                try:
                    with bring(cluster.home, "n1", UID, [missing]):
                        pass
                except BeoError as error:
                    failed.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            time.sleep(0.1)
            node.process.send_signal(ending)
            os.kill(node.process.pid, signal.SIGCONT)
            thread.join(30)
            assert failed, ending
            node.process.wait(10)
            assert not is_alive(node.process.pid)
            node.start()


def test_a_jobs_inputs_come_by_the_process_of_its_node_which_ends_with_its_agent(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big").write_bytes(chunks(10, 1, 6 << 20).popitem()[1])
    words = ["submit", "-q", "--in", "data", "cmp", "data/big", str(tmp_path / "data" / "big")]
    held = cluster.home.nodes / "node01" / "bulk" / "held"
    lock = cluster.home.nodes / "node01" / "bulk" / "lock"

    def job_is_done() -> None:
        done = subprocess.run([*BEO, *words], env=cluster.env, cwd=tmp_path, capture_output=True, timeout=60)
        (view,) = cluster.wait(int(done.stdout))
        assert view.state == "done", (view.reason, done.stderr)

    job_is_done()
    assert sum(path.stat().st_size for path in held.glob(f"{os.geteuid()}/*")) > 6 << 20
    pid = lockfile.holder(lock)
    assert pid
    cluster.kill("node01")
    wait_for(lambda: not is_alive(pid), "it has ended with its agent")
    job_is_done()
    assert lockfile.holder(lock) not in (None, pid)


@pytest.mark.slow
def test_a_take_over_in_the_middle_is_noticed_by_nobody(tmp_path: Path) -> None:
    made = chunks(9, 60, 1 << 20)
    with running(tmp_path / "beo", workers=1, heads=2) as cluster:
        put_chunks(cluster, made)
        with nodes(cluster, ["n1", "n2", "n3"]) as three:
            threads = [threading.Thread(target=assert_brings, args=(cluster, node, made)) for node in three]
            for thread in threads:
                thread.start()
            wait_for(lambda: any(node.held() for node in three), "some has come")
            cluster.kill("head")
            for thread in threads:
                thread.join(90)
            assert all(node.held() == made.keys() for node in three)
