"""beo node and beo console, typed at a real cluster."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from beo import messages as m
from beo.boot.desk import Desk
from beo.boot.request import Request
from beo.cli import node, power
from beo.errors import BeoError, UsageError
from beo.proof import words_of
from tests.cluster import Cluster, running

MAC = "52:54:00:00:66:01"
KEY = "k" * 40
WORDS = words_of(KEY)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("node") / "beo", workers=1, slots=1) as own:
        yield own


def typed(cluster: Cluster, *words: str, code: int = 0) -> str:
    done = cluster.beo(*words)
    assert done.returncode == code, done
    return done.stdout if not code else done.stderr


def test_a_machine_is_set_asked_for_approved_and_forgotten(cluster: Cluster) -> None:
    assert "a cluster" not in typed(cluster, "node", "list")
    said = typed(cluster, "node", "set", MAC, "--name", "lab1", "--image", "a" * 64)
    assert said == f"lab1: {MAC}, no address of ours, approve, image {'a' * 12}\n"
    assert "hasn't asked to join" in typed(cluster, "node", "approve", "lab1", code=75)
    with cluster.client() as own:
        own.request(m.JoinMachine(MAC, "b1", KEY, "10.0.0.1:700"))
    assert WORDS in typed(cluster, "node", "pending") and "lab1" in typed(cluster, "node", "pending")
    assert typed(cluster, "node", "approve", *WORDS.split()) == "lab1 may join\n"
    assert "lab1" not in typed(cluster, "node", "pending", "-q")
    row = json.loads(typed(cluster, "node", "list", "--json"))[0]
    assert (row["name"], row["state"], row["words"], row["image"]) == ("lab1", "approved", WORDS, "a" * 64)
    typed(cluster, "node", "set", "lab1", "--policy", "asset", "--tag", "PC-0042")
    assert "PC-0042" not in typed(cluster, "events") + typed(cluster, "node", "list", "--json")
    typed(cluster, "node", "forget", "lab1")
    assert "no machine 'lab1'" in typed(cluster, "node", "forget", "lab1", code=2)


@pytest.mark.parametrize("text", ["52-54-00-00-66-0A", "52540000660a", "52:54:00:00:66:0A"])
def test_a_machine_that_never_booted_is_put_on_record_however_its_address_is_written(
    cluster: Cluster, text: str
) -> None:
    assert "lab9: 52:54:00:00:66:0a," in typed(cluster, "node", "set", text, "--name", "lab9")
    typed(cluster, "node", "forget", "lab9")


def test_the_cure_for_an_unknown_machine_can_be_typed(cluster: Cluster) -> None:
    with pytest.raises(BeoError) as told, cluster.client() as own:
        own.request(m.JoinMachine("52:54:00:00:66:0b", "b1", KEY, "10.0.0.1:700"))
    words = told.value.cure.partition("'beo ")[2].partition("'")[0].split()
    assert "52:54:00:00:66:0b" in typed(cluster, *words)
    typed(cluster, "node", "forget", "52:54:00:00:66:0b")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("node set nobody --policy lan", "no machine 'nobody'"),
        ("node set 52:54:00:00:66:02", "say --name, --policy"),
        ("node set zz:zz:zz:zz:zz:zz --policy lan", "is no machine's MAC address"),
        ("node set 52:54:00:00:66:02 --policy open", "no policy 'open'"),
        ("node approve nobody", "no machine 'nobody'"),
        ("node explode", "no action 'explode'"),
        ("node power reset x", "is not one of"),
        ("console nobody", "no machine 'nobody'"),
    ],
)
def test_each_mistake_gets_a_clear_word(cluster: Cluster, words: str, said: str) -> None:
    assert said in typed(cluster, *words.split(), code=2)


def test_a_console_is_printed_and_nothing_in_it_moves_the_readers_cursor(cluster: Cluster) -> None:
    typed(cluster, "node", "set", MAC, "--name", "lab1")
    assert typed(cluster, "console", "lab1") == ""
    desk = Desk(cluster.home)
    for text in (b"first line\n", b"\x1b[2Jlast \xff line\n"):
        desk.handle(Request("POST", f"/console/{MAC}", body=text))
    desk.close()
    said = typed(cluster, "console", "lab1", "--all")
    assert said.splitlines()[0] == "first line" and "last" in said and "\x1b" not in said.replace("\\x1b", "")


def view(**words: str) -> m.MachineView:
    fields = {
        "mac": MAC,
        "name": "lab1",
        "address": "10.77.0.9",
        "image": "current",
        "policy": "lan",
        "state": "joined",
    }
    rest = {"words": "", "key": "", "has_tag": False, "power": "", "seen_s": 0.0, "joined_s": 0.0}
    return m.MachineView(**{**fields, **rest, **words})  # type: ignore[arg-type]


def test_a_machine_is_waked_by_its_own_packet() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
        card.bind(("127.0.0.1", 0))
        card.settimeout(5)
        power.wake(MAC, "127.0.0.1", card.getsockname()[1])
        packet = card.recv(200)
    assert packet == b"\xff" * 6 + bytes.fromhex("525400006601") * 16
    with pytest.raises(BeoError, match="no waking packet"):
        power.wake(MAC, "not an address")


def test_a_power_command_is_filled_in_and_no_shell_sees_it() -> None:
    machine = view(power="echo '{action} {name}' {mac} {address} '; reboot'", name="lab1")
    assert power.words_of(machine, "on") == ["echo", "on lab1", MAC, "10.77.0.9", "; reboot"]
    assert power.turn(machine, "cycle", "") == f"cycle lab1 {MAC} 10.77.0.9 ; reboot"
    for command, said in (("false", "false failed"), ("/no/such", "doesn't start"), ("'", "can't be read")):
        with pytest.raises(BeoError, match=said):
            power.turn(view(power=command), "on", "")
    with pytest.raises(UsageError, match="no power command"):
        power.turn(view(), "off", "")


def test_a_machine_is_found_by_name_address_or_words() -> None:
    machines = (view(words=WORDS), view(mac="52:54:00:00:66:02", name="lab2", words="a b c d"))
    for word in ("lab1", MAC, MAC.upper().replace(":", "-"), "525400006601", WORDS, f" {WORDS.upper()} "):
        assert node.find(machines, word).mac == MAC
    for word in ("", "lab3", "52:54:00:00:66:03", WORDS[:-1]):
        with pytest.raises(BeoError, match="no machine"):
            node.find(machines, word)
