"""Machines that have booted join a real cluster over HTTP, by each policy, and come back by themselves."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from beo import events as ev
from beo import messages as m
from beo.boot import fitness, join
from beo.boot.book import Book
from beo.boot.console import Console, Logs, line_of
from beo.boot.desk import Desk
from beo.boot.records import Records
from beo.boot.request import BODY_MAX_BYTES, Request
from beo.cli import node
from beo.config import Home
from beo.errors import BeoError, NoHead, UsageError
from beo.headnode import consoles
from beo.proof import tag_key, words_of
from tests.booted import Machine, machine, serving
from tests.cluster import PATIENCE_S, Cluster, running, wait_for

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root asks from a privileged port: run it as root")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    settings = '[boot]\npolicy = "approve"\n[files]\nwithout_head = "read"\n'
    with running(tmp_path_factory.mktemp("booted") / "beo", workers=1, slots=1, settings=settings) as own:
        yield own


@pytest.fixture(scope="module")
def desk(cluster: Cluster) -> Iterator[str]:
    with serving(cluster.home) as address:
        yield address


NOBODY = 65_534
_macs = (f"52:54:00:00:77:{n:02x}" for n in range(256))


@contextmanager
def new(cluster: Cluster, desk: str, folder: Path, policy: str) -> Iterator[Machine]:
    """A machine of its own name, known by a policy."""
    mac = next(_macs)
    with cluster.client() as own:
        own.set_machine(mac, name=f"m{mac[-2:]}", policy=policy)
    with machine(cluster.home, folder / f"m{mac[-2:]}", desk, mac) as one:
        yield one


def view(cluster: Cluster, one: Machine) -> m.MachineView:
    with cluster.client() as own:
        return next(found for found in own.machines() if found.mac == one.mac)


def up(cluster: Cluster, name: str) -> None:
    """Wait until the head has a node of this name that gives signs of life."""

    def there() -> bool:
        with cluster.client() as own:
            return any(node.name == name and node.state == "up" and node.silent_s < 1.0 for node in own.nodes())

    wait_for(there, f"{name} is up")


def fetch(cluster: Cluster, one: Machine) -> None:
    """What the server of boots does when a machine wants its address, and then its script."""
    book: Book = (records := Records(cluster.home))
    assert book.lease(one.mac) == book.open(one.mac, "")
    records.close()


def post(desk: str, path: str, body: bytes) -> tuple[int, bytes]:
    """What a server of boots answers."""
    connection = http.client.HTTPConnection(desk, timeout=10)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# ---- each policy


@pytest.mark.slow
@AS_ROOT
def test_a_machine_joins_by_lan_runs_jobs_and_comes_back_after_a_power_cut_by_itself(
    cluster: Cluster, desk: str, tmp_path: Path
) -> None:
    with new(cluster, desk, tmp_path, "lan") as one:
        name = view(cluster, one).name
        fetch(cluster, one)
        one.boot()
        up(cluster, name)
        first = view(cluster, one)
        assert first.state == "joined"
        job = cluster.submit(["sh", "-c", "echo $BEO_NODE; sleep 60"], ranks=2, nodes=0, requeue="auto")
        cluster.wait_for_state(job, "running")

        one.cut()
        fetch(cluster, one)
        one.boot()
        one.hear("has to wait")  # the head hasn't missed it yet
        wait_for(lambda: view(cluster, one).key != first.key, "another key")
        up(cluster, name)
        assert view(cluster, one).state == "joined"
        assert cluster.wait_for_state(job, "running", 2).nodes == name
        with cluster.client() as own:
            own.cancel([str(job)])
            kinds = [event.kind for event in own.journal() if event.node == name]
        assert kinds.count("MachineJoined") == 2 and "NodeLost" in kinds


@AS_ROOT
def test_lan_believes_who_has_fetched_the_script_and_is_root_and_nobody_else(
    cluster: Cluster, desk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new(cluster, desk, tmp_path, "lan") as one:
        words = join.Words(cluster.home.cluster().heads, (desk,), cluster.home.cluster().key, one.mac)
        joiner = join.Joiner(one.home, words, "b1", lambda: "", lambda _: None)
        with pytest.raises(BeoError, match="isn't expected to join now"):
            joiner.join(0.1)
        fetch(cluster, one)
        with monkeypatch.context() as patched:
            patched.setattr(os, "geteuid", lambda: NOBODY)
            with pytest.raises(BeoError, match="only root's, below 1024, are believed"):
                joiner.join(0.1)
        assert joiner.join(0.1).node == view(cluster, one).name
        with pytest.raises(BeoError, match="has joined already"):
            join.Joiner(Home(tmp_path / "other"), words, "b1", lambda: "", lambda _: None).join(0.1)


def test_a_machine_waits_for_its_words_to_be_approved(cluster: Cluster, desk: str, tmp_path: Path) -> None:
    with new(cluster, desk, tmp_path, "approve") as one:
        before = tmp_path / "boot.log"
        before.write_text("beo: network: eth0\n")
        one.boot("--said", str(before))
        one.hear("waits for the operator")
        asked = view(cluster, one)
        assert asked.state == "pending" and asked.words in one.said, "the same words on both sides"
        with cluster.client() as own:
            own.approve_machine(one.mac, asked.key)
        up(cluster, asked.name)
        assert view(cluster, one).state == "joined"
        assert 'without_head = "read"' in one.home.toml.read_text(), "it has its cluster's settings"
        wait_for(lambda: f"{asked.name} has joined" in console(cluster, one, 0), "its console at the head")
        assert console(cluster, one, 0).startswith("beo: network: eth0\nbeo: ") and not before.read_bytes()
        wait_for(lambda: "serves the head" in console(cluster, one), "its agent's log at the head, too")


def console(cluster: Cluster, one: Machine, after: int = -1) -> str:
    with cluster.client() as own:
        return own.console(one.mac, after).data.decode(errors="replace")


def test_a_machine_joins_by_its_asset_tag_and_another_tag_is_refused(
    cluster: Cluster, desk: str, tmp_path: Path
) -> None:
    with new(cluster, desk, tmp_path, "asset") as one:
        words = join.Words(cluster.home.cluster().heads, (desk,), cluster.home.cluster().key, one.mac)

        def says(tag: str) -> str:
            try:
                return join.Joiner(one.home, words, "b1", lambda: tag, lambda _: None).join(0.1).node
            except BeoError as error:
                return str(error)

        assert "no asset tag" in says("PC-0042") and "--tag TAG" in says("PC-0042")
        with cluster.client() as own:
            own.set_machine(one.mac, tag=tag_key(one.mac, "PC-0042"))
        assert "firmware knows no asset tag" in says("")
        assert "the proof is wrong" in says("PC-0043")
        assert "the proof is wrong" in view(cluster, one).why, "the operator is told, too"
        assert says("PC-0042") == view(cluster, one).name
        assert says("PC-0042") == view(cluster, one).name, "asked again, it is in already"


# ---- what must not happen


def test_a_machine_that_nobody_knows_and_one_that_isnt_expected_are_told_so(
    cluster: Cluster, desk: str, tmp_path: Path
) -> None:
    with machine(cluster.home, tmp_path / "x", desk, "52:54:00:00:88:01") as one:
        one.boot(patience_s=0.1)
        assert one.end() == BeoError.exit_code + 1 and "none such is on record" in one.said
    with new(cluster, desk, tmp_path, "lan") as one:
        one.boot(patience_s=0.1)
        assert one.end() == 77 and "isn't expected to join now" in one.said
        assert "isn't expected to join now" in view(cluster, one).why
        with cluster.client() as own:
            assert view(cluster, one).name not in {node.name for node in own.nodes()}, "it is not half in"


def test_a_rogue_that_says_yes_without_the_heads_key_gets_no_worker(
    cluster: Cluster, desk: str, tmp_path: Path
) -> None:
    """Who plays the server of boots can say that a machine has joined; the head itself knows of nothing."""
    with new(cluster, desk, tmp_path, "approve") as one:
        words = join.Words(cluster.home.cluster().heads, (desk,), cluster.home.cluster().key, one.mac)
        joiner = join.Joiner(one.home, words, "b1", lambda: "", lambda _: None)
        with pytest.raises(BeoError, match="knows neither this token nor this key"):
            joiner._settle(view(cluster, one).name)
        assert not one.home.cluster_file.exists()
        wrong = join.Words(words.heads, (desk,), "x" * 40, one.mac)
        with pytest.raises(BeoError):
            join.Joiner(one.home, wrong, "b1", lambda: "", lambda _: None)._settle("m")
        assert not one.home.cluster_file.exists()


@pytest.mark.parametrize("off_s", [-366 * 86_400.0, 366 * 86_400.0])
def test_a_clock_that_is_a_year_off_changes_nothing_and_is_put_right(
    cluster: Cluster, desk: str, tmp_path: Path, off_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    clock: list[float] = []
    real = time.time
    with new(cluster, desk, tmp_path, "approve") as one:
        words = join.Words(cluster.home.cluster().heads, (desk,), cluster.home.cluster().key, one.mac)
        monkeypatch.setattr(time, "time", lambda: real() + off_s)
        joiner = join.Joiner(one.home, words, "b1", lambda: "", said.append, clock.append)
        with pytest.raises(BeoError):
            joiner.join(0.1)
        with cluster.client() as own:
            own.approve_machine(one.mac, view(cluster, one).key)
        assert joiner.join(5.0).node == view(cluster, one).name
        assert len(clock) == 1 and abs(clock[0] - real()) < 5.0
        assert any(("the clock was" in line and "s behind" in line) or "s ahead" in line for line in said)


def test_heads_are_asked_in_turn_where_one_does_not_answer(cluster: Cluster, desk: str, tmp_path: Path) -> None:
    with new(cluster, desk, tmp_path, "approve") as one:
        words = join.Words(cluster.home.cluster().heads, ("127.0.0.1:1", desk), cluster.home.cluster().key, one.mac)
        said: list[str] = []
        with pytest.raises(BeoError, match="waits for the operator"):
            join.Joiner(one.home, words, "b1", lambda: "", said.append).join(0.1)
        none = join.Words(words.heads, ("127.0.0.1:1",), words.pin, one.mac)
        with pytest.raises(NoHead, match="no server of boots answers"):
            join.Joiner(one.home, none, "b1", lambda: "", said.append).join(0.1)


@pytest.mark.slow
def test_machines_survive_the_head_that_has_seen_them(tmp_path: Path) -> None:
    """Its list, an approval and a join that was answered just before its death: the other head has them all."""
    settings = '[boot]\npolicy = "approve"\nrange = "10.77.0.100-10.77.0.199"\n'
    with running(tmp_path / "beo", workers=1, slots=1, settings=settings, heads=2) as pair, serving(pair.home) as desk:
        first, second = "52:54:00:00:55:01", "52:54:00:00:55:02"
        book = Records(pair.home)
        leased = [book.lease(mac) for mac in (first, second)]
        words = [
            join.Words(pair.home.cluster().heads, (desk,), pair.home.cluster().key, mac) for mac in (first, second)
        ]
        joiners = [
            join.Joiner(Home(tmp_path / f"m{number}"), words[number], f"b{number}", lambda: "", lambda _: None)
            for number in range(2)
        ]
        for joiner in joiners:
            with pytest.raises(BeoError, match="waits for the operator"):
                joiner.join(0.1)
        with pair.client() as own:
            for asked in own.machines():
                own.approve_machine(asked.mac, asked.key)
        assert joiners[0].join(0.1).node == leased[0].name
        pair.await_step()  # else nobody goes on, as it should be
        pair.kill("supervisor", "head")
        assert joiners[1].join(PATIENCE_S).node == leased[1].name, "approved by the head that is dead"
        assert joiners[0].join(PATIENCE_S).node == leased[0].name, "asked again, it is in already"
        assert [book.lease(mac).address for mac in (first, second)] == ["10.77.0.100", "10.77.0.101"]
        assert book.lease("52:54:00:00:55:03").address == "10.77.0.102", "and what it hasn't seen is new"
        book.close()


# ---- absurd input

GOOD = {"mac": "52:54:00:00:99:01", "boot": "b1", "key": "k" * 40, "nonce": "", "proof": ""}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "this is no join"),
        (b"[]", 400, "this is no join"),
        (b"{" * 60_000, 400, "this is no join"),
        (b'{"mac": 1}', 400, "this is no join"),
        (b"\xff\xfe", 400, "this is no join"),
        (b"x" * (BODY_MAX_BYTES + 1), 400, "it has 65536 at most"),
        (json.dumps(GOOD | {"mac": "x"}).encode(), 400, "no machine's MAC address"),
        (json.dumps(GOOD).encode(), 404, "none such is on record"),
    ],
)
def test_each_bad_join_gets_a_clear_word(cluster: Cluster, desk: str, body: bytes, status: int, said: str) -> None:
    code, answer = post(desk, "/join", body)
    error = json.loads(answer)["error"]
    assert code == status and said in f"{error['what']} ({error['why']})" and error["cure"]


def test_spoilt_joins_harm_nothing(cluster: Cluster) -> None:
    chance = random.Random(41)
    desk = Desk(cluster.home)
    mac = next(_macs)
    with cluster.client() as own:
        own.set_machine(mac, policy="asset", tag=tag_key(mac, "t"))
    good = json.dumps(GOOD | {"mac": mac, "nonce": "n" * 32, "proof": "0" * 64}).encode()
    for _ in range(300):
        body = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(body))
            if chance.random() < 0.3:
                del body[at:]
                body = body or bytearray(b"{")
            else:
                body[at] = chance.randrange(256)
        answer = desk.handle(Request("POST", "/join", "127.0.0.1:700", "head", bytes(body)))
        assert answer and answer.status in (200, 400, 403, 404, 409), answer
        json.loads(answer.body)
    with cluster.client() as own:
        assert not any(event.kind == ev.MachineJoined.__name__ for event in own.journal() if mac in event.text)
    desk.close()


def test_a_console_is_kept_for_known_machines_only_and_within_its_bounds(cluster: Cluster, desk: str) -> None:
    assert post(desk, "/console/52:54:00:00:99:02", b"x")[0] == 404
    assert post(desk, "/console/nonsense", b"x")[0] == 400
    assert post(desk, "/console/../../etc/passwd", b"x")[0] == 400
    mac = next(_macs)
    with cluster.client() as own:
        own.set_machine(mac)
        own_desk = Desk(cluster.home)
        for n in range(12):
            line = f"{n:02d}".encode() + b"x" * (BODY_MAX_BYTES - 3) + b"\n"
            answer = own_desk.handle(Request("POST", f"/console/{mac}", body=line))
            assert answer and answer.status == 204
        assert post(desk, f"/console/{mac}", b"x" * (BODY_MAX_BYTES + 1))[0] == 400
        last = own.console(mac)
        assert last.after == 12 * BODY_MAX_BYTES and last.data.endswith(b"x\n")
        first = own.console(mac, 0)
        assert first.begins >= 8 * BODY_MAX_BYTES and len(first.data) == consoles.READ_MAX_BYTES
        assert own.console(mac, last.after).data == b"" and own.console(mac, 10**18).data == last.data
        size = (cluster.home.head / "consoles" / mac.replace(":", "-")).stat().st_size
        assert size <= consoles.KEPT_MAX_BYTES + consoles.SLACK_BYTES + 100
        own.forget_machine(mac)
        other = next(_macs)
        own.set_machine(other)
        wait_for(lambda: post(desk, f"/console/{other}", b"x")[0] == 204, "the new one is known")
        assert not (cluster.home.head / "consoles" / mac.replace(":", "-")).exists(), "who is forgotten leaves nothing"
        own_desk.close()
        with pytest.raises(BeoError, match="no machine with the MAC"):
            own.console("52:54:00:00:99:03")


class Pair:
    """What two heads have heard of one machine's console. The second one acts when the first has told all of it."""

    def __init__(self, folder: Path, *said: tuple[str, bytes]) -> None:
        self._folder, self._said, self.asked = folder, list(said), 0
        for head, data in said:
            consoles.append(folder / head, "m", data)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def machines(self) -> tuple[m.MachineView, ...]:
        """One."""
        return (m.MachineView("m", "pc01", "", "", "lan", "joined", "", "", False, "", 0.0, 0.0),)

    def console(self, _: str, after: int) -> m.ConsoleIs:
        """The acting head's answer."""
        self.asked += 1
        if not self._said:
            raise KeyboardInterrupt
        head = self._said[0][0]
        answer = msgspec.structs.replace(consoles.read(self._folder / head, "m", after), head=head)
        if not answer.data and after >= 0:
            self._said.pop(0)
            if self._said:
                raise NoHead("no head answers", "", "")
        return answer


def test_who_follows_a_console_over_a_take_over_hears_all_that_the_next_head_has_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = Pair(tmp_path, ("A", b"one\ntwo\n"), ("B", b"a former boot's line, heard by B\nthree\n"))
    monkeypatch.setattr(node, "Cluster", lambda _: pair)
    monkeypatch.setattr(node, "LOOK_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        node.console.callback("pc01", follow=True, whole=False)  # type: ignore[misc]
    said = capsys.readouterr()
    assert said.out.splitlines() == ["one", "two", "a former boot's line, heard by B", "three"]
    assert said.err == "beo: from here on what head B has heard\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no beo.heads"),
        ("beo.heads=h:1 beo.boot=h:2 beo.mac=52:54:00:00:00:01", "no beo.pin"),
        ("beo.heads=h beo.boot=h:2 beo.pin=x beo.mac=x", "no list of addresses"),
        ("beo.heads=h:1 beo.boot=h:2 beo.pin=short beo.mac=52:54:00:00:00:01", "beo.pin is no key"),
        (f"beo.heads=h:1 beo.boot=h:2 beo.pin={'k' * 40} beo.mac=zz", "no machine's MAC"),
    ],
)
def test_a_command_line_that_lacks_something_is_told(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        join.read_words(text)


def test_a_command_line_is_read() -> None:
    key = "01" * 32
    text = f"quiet beo.heads=10.0.0.1:7420,10.0.0.2:7420 beo.boot=10.0.0.1:7425 beo.pin={key} ro "
    words = join.read_words(f"{text} beo.mac=52:54:00:00:00:01 beo.ip=10.0.0.9/24 beo.name=pc01", {"name": "pc02"})
    assert words.heads == ("10.0.0.1:7420", "10.0.0.2:7420") and len(words.pin) == 40
    assert (words.name, words.ip) == ("pc02", "10.0.0.9/24")


def test_logs_and_the_kernels_lines_are_followed(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    (tmp_path / "a.log").write_text("one\ntw")
    assert logs.news() == b"a: one\n" and logs.news() == b""
    (tmp_path / "a.log").write_text("one\ntwo\n")
    assert logs.news() == b"a: two\n"
    (tmp_path / "a.log").write_text("new\n")
    assert logs.news() == b"a: new\n"
    with (tmp_path / "a.log").open("a") as file:
        file.write(f"{'x' * 40_000}\nafter it\n")
    long = logs.news() + logs.news()
    assert long.count(b"x") == 40_000 and long.endswith(b"\na: after it\n"), "a very long line is no end of the rest"
    assert line_of(b"6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n") == b"[    5.140900] NET: Registered\n"
    assert line_of(b"rubbish") == b"rubbish\n"
    assert words_of("k" * 40).count(" ") == 3


@pytest.mark.parametrize(("text", "tag"), [("PC-0042\n", "PC-0042"), ("To Be Filled By O.E.M.", ""), ("", "")])
def test_the_asset_tag_is_what_the_firmware_says(tmp_path: Path, text: str, tag: str) -> None:
    assert join.find_tag(str(tmp_path)) == ""
    (tmp_path / "chassis_asset_tag").write_text(text)
    assert join.find_tag(str(tmp_path)) == tag
    (tmp_path / "product_serial").write_text("S123")
    assert join.find_tag(str(tmp_path)) == tag or "S123"


def test_doctor_tells_what_a_head_lacks_to_boot_machines(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mac = next(_macs)
    assert not fitness.is_wanted(cluster.home, ()), "who boots nothing is told nothing"
    with cluster.client() as own:
        own.set_machine(mac, name="doc", policy="lan")
        with pytest.raises(BeoError):
            own.request(m.JoinMachine(mac, "b1", "k" * 40, "127.0.0.1:700"))
        machines = [found for found in own.machines() if found.mac == mac]
    assert fitness.is_wanted(cluster.home, machines)
    monkeypatch.setattr(fitness, "FILES", {str(tmp_path / "undionly.kpxe"): "ipxe"})
    monkeypatch.setattr(fitness, "PROGRAMS", {"mksquashfs-of-nowhere": "squashfs-tools", "sh": "dash"})
    found = {(finding.what, finding.cure) for finding in fitness.findings(cluster.home, machines)}
    missing = f"machines can't boot from here: there is no {tmp_path}/undionly.kpxe, mksquashfs-of-nowhere"
    assert (missing, "apt-get install -y ipxe squashfs-tools") in found
    told = {what for what, _ in found}
    assert any("the head listens at 127.0.0.1" in what for what in told)
    assert any(what.startswith("doc doesn't join: doc isn't expected to join now") for what in told)
    assert "doc doesn't join" in cluster.beo("doctor").stdout


def test_what_no_head_has_taken_of_a_console_is_told_by_the_process_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEO_DIR", str(tmp_path))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: None)
    (tmp_path / "log").mkdir()
    console = Console(("127.0.0.1:1",), "52:54:00:00:99:04")
    console.say("nobody hears this")
    console.follow()
    assert Logs(tmp_path / "log").news() == b"boot: beo: nobody hears this\n"
