"""Machines that boot from the heads: who is on record, and who of them may join. The head's core, asked by the process
that serves boots."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beo import events as ev
from beo import messages as ms
from beo.errors import UsageError
from beo.headnode import acts, booting, decide, permissions
from beo.headnode.state import State
from beo.proof import mac_of, prove, tag_key, words_of
from beo.settings import BootConfig, Config, FilesConfig, WorkerConfig
from tests.world import DAY_S, World
from tests.world import settings as plain

MAC, OTHER_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
FIRST, LAST = "10.77.0.100", "10.77.0.103"
PEER = f"{FIRST}:700"


def key(letter: str) -> str:
    return letter * 40


K1, K2, K3 = key("1"), key("2"), key("3")


def made(**words: Any) -> World:
    """A world whose machines boot; words: of [boot]."""
    config = plain(lease_s=3.0)
    boot = BootConfig(**{"range": f"{FIRST}-{LAST}", **words})
    return World(msgspec.structs.replace(config, boot=boot))


@pytest.fixture
def world() -> World:
    return made(policy="lan")


def lease(world: World, mac: str = MAC, hostname: str = "") -> ms.MachineView:
    answer = world.answer(ms.LeaseMachine(mac, hostname), "root")
    assert isinstance(answer, ms.MachineIs), answer
    machine: ms.MachineView = answer.machine
    return machine


def fetch(world: World, mac: str = MAC) -> None:
    assert isinstance(world.answer(ms.OpenMachine(mac), "root"), ms.MachineIs)


def join(world: World, letter: str = "1", boot: str = "b1", mac: str = MAC, peer: str = PEER, **words: Any) -> Any:
    return world.answer(ms.JoinMachine(mac, boot, key(letter), peer, **words), "root")


def refusal(answer: Any) -> str:
    assert isinstance(answer, ms.Failed), answer
    assert answer.error["cure"]
    return f"{answer.error['what']} ({answer.error['why']}): {answer.error['cure']}"


def row(world: World, mac: str = MAC) -> ms.MachineView:
    answer: ms.MachinesAre = world.answer(ms.ListMachines(), "root")
    return next(view for view in answer.machines if view.mac == mac)


def speaks_for(world: World, letter: str, node: str = "pc01") -> bool:
    user = decide.user_of(world.state, key(letter))
    return bool(user and permissions.speaks_for(world.state, user, node))


def agent(world: World, letter: str, incarnation: str, boot: str = "b1") -> Any:
    """What the head says to an agent that introduces itself with a key."""
    before = len(world.sent)
    word = ms.Join("pc01", incarnation, boot, "pc01:1", key(letter), 2, 1 << 30, {"contain": "pidns"}, ())
    world.handle(acts.Asked(b"agent", 0, key(letter), word))
    world.turn()
    return world.sent[before].message if len(world.sent) > before else None


# ---- records


def test_a_machine_keeps_its_name_and_address_for_good_over_restarts_of_the_head(world: World) -> None:
    first = lease(world)
    assert (first.name, first.address, first.state) == ("pc01", FIRST, "approved")
    assert lease(world, OTHER_MAC).address == "10.77.0.101"
    entries = len(world.disk.entries)
    world.restart()
    again = lease(world, MAC.upper().replace(":", "-"))
    assert (again.mac, again.name, again.address) == (MAC, "pc01", FIRST)
    assert len(world.disk.entries) == entries + 1, "only the head's new epoch was written"
    assert world.replays()


def test_a_range_that_is_used_up_is_told_and_room_is_made_of_whom_nobody_misses(world: World) -> None:
    macs = [f"52:54:00:00:01:{n:02x}" for n in range(5)]
    for mac in macs[:4]:
        lease(world, mac)
    said = refusal(world.answer(ms.LeaseMachine(macs[4]), "root"))
    assert "no address is left" in said and "'beo node forget'" in said
    world.wait(DAY_S + 1)
    assert lease(world, macs[4]).address == FIRST
    assert macs[0] not in world.state.machines
    assert world.replays()


def test_a_machine_that_has_joined_or_was_set_never_makes_room(world: World) -> None:
    macs = [f"52:54:00:00:01:{n:02x}" for n in range(5)]
    for mac in macs[:4]:
        lease(world, mac)
        world.answer(ms.SetMachine(mac, policy="approve"), "root")
    world.wait(DAY_S + 1)
    assert "no address is left" in refusal(world.answer(ms.LeaseMachine(macs[4]), "root"))


def test_addresses_of_heads_and_nodes_are_not_given_to_machines(world: World) -> None:
    join_word = ms.Join("n9", "i", "b", f"{FIRST}:1", "k", 1, 1, {}, ())
    world.handle(acts.Asked(b"n9", 0, "worker", join_word))
    world.turn()
    assert lease(world).address == "10.77.0.101"


def test_without_a_range_machines_have_the_address_of_another_server() -> None:
    world = made(range="")
    assert lease(world).address == ""


def test_a_machine_is_called_what_it_calls_itself_if_nobody_else_is(world: World) -> None:
    assert lease(world, MAC, "lab7.example.org").name == "lab7"
    assert lease(world, OTHER_MAC, "lab7").name == "pc01"
    for number, hostname in enumerate(("", "localhost", "a b", "x[1-3]", "-", "ä", "9" * 99, "../etc")):
        assert lease(made(), f"52:54:00:00:02:{number:02x}", hostname).name == "pc01"


@pytest.mark.parametrize("text", ["", "x", "52:54:00:00:00", "5254:0000:0001", "01:00:5e:00:00:01", "0:0:0:0:0:0"])
def test_what_is_no_mac_address_is_refused(world: World, text: str) -> None:
    for message in (ms.LeaseMachine(text), ms.OpenMachine(text), ms.SetMachine(text), ms.ForgetMachine(text)):
        assert "is no machine's MAC address" in refusal(world.answer(message, "root"))


def test_a_machine_nobody_knows_is_told_so(world: World) -> None:
    assert "none such is on record" in refusal(join(world))
    assert "none such is on record" in refusal(world.answer(ms.OpenMachine(MAC), "root"))


def test_what_the_operator_sets_stays_and_is_checked(world: World) -> None:
    lease(world)
    lease(world, OTHER_MAC)
    wish = ms.SetMachine(MAC, "lab1", "10.77.0.150", "a" * 64, "approve", None, "ipmitool power {action}")
    view = world.answer(wish, "root").machine
    assert (view.name, view.address, view.image, view.policy) == ("lab1", "10.77.0.150", "a" * 64, "approve")
    world.restart()
    assert row(world).power == "ipmitool power {action}"
    for words, said in (
        ({"name": "pc02"}, "there is a node pc02"),
        ({"name": "x[1-2]"}, "is no name"),
        ({"name": ""}, "is no name"),
        ({"address": "10.77.0.101"}, "is pc02's"),
        ({"address": "224.0.0.1"}, "no machine's address"),
        ({"address": "10.77"}, "is no address"),
        ({"image": "newest"}, "is no image"),
        ({"policy": "all"}, "no policy 'all'"),
        ({"tag": "PC-0042"}, "no asset tag's key"),
        ({"power": "a\nb"}, "power command"),
    ):
        assert said in refusal(world.answer(ms.SetMachine(MAC, **words), "root")), words
    assert world.replays()


def test_a_machine_may_be_put_on_record_before_it_boots(world: World) -> None:
    view = world.answer(ms.SetMachine(MAC, "lab1", policy="approve"), "root").machine
    assert (view.name, view.address, view.policy) == ("lab1", FIRST, "approve")
    assert lease(world).name == "lab1"


def test_a_machine_that_is_forgotten_leaves_its_address_and_its_key_is_void(world: World) -> None:
    lease(world)
    fetch(world)
    assert join(world).state == "joined"
    agent(world, "1", "i1")
    assert "pc01 is up" in refusal(world.answer(ms.ForgetMachine(MAC), "root"))
    assert "pc01 is up" in refusal(world.answer(ms.SetMachine(MAC, "lab1"), "root"))
    world.wait(10)
    assert isinstance(world.answer(ms.ForgetMachine(MAC), "root"), ms.Done)
    assert not speaks_for(world, "1") and not world.state.machines
    assert lease(world, OTHER_MAC).address == FIRST
    assert world.replays()


def test_a_worker_with_a_token_gets_no_machines_name(world: World) -> None:
    lease(world)
    world.answer(ms.MakeToken(key("t"), "worker", "root", -1, 1, 60.0), "root")
    assert "boots from the heads" in refusal(world.answer(ms.Enrol(key("x"), "pc01"), key("t")))


# ---- lan


def test_where_another_server_gives_addresses_a_machine_joins_from_that_by_which_it_fetched_its_script(
    world: World,
) -> None:
    lease(world)
    assert isinstance(world.answer(ms.OpenMachine(MAC, "10.77.0.200"), "root"), ms.MachineIs)
    assert "its address is 10.77.0.200" in refusal(join(world)), "and not what is on record"
    assert join(world, peer="10.77.0.200:700").state == "joined"
    assert world.replays()


def test_a_machine_that_has_fetched_its_script_joins_once(world: World) -> None:
    lease(world)
    assert "fetched no boot script" in refusal(join(world))
    fetch(world)
    answer = join(world)
    assert (answer.state, answer.node) == ("joined", "pc01")
    assert speaks_for(world, "1") and not speaks_for(world, "1", "n1")
    assert row(world).state == "joined"
    assert "joined since it fetched" in refusal(join(world, "2", "b2"))
    assert not speaks_for(world, "2")
    assert world.replays()


def test_the_window_is_shut_after_some_minutes_by_the_heads_clock(world: World) -> None:
    lease(world)
    fetch(world)
    world.wait(301)
    assert "fetched no boot script within the last 5m" in refusal(join(world))


def test_an_answer_that_got_lost_is_given_again_and_writes_nothing(world: World) -> None:
    lease(world)
    fetch(world)
    first = join(world)
    entries = len(world.disk.entries)
    assert join(world) == first and len(world.disk.entries) == entries
    world.restart()
    assert join(world) == first


def test_a_replayed_join_gives_nobody_else_anything(world: World) -> None:
    lease(world)
    fetch(world)
    join(world)
    assert "has joined already (by another key)" in refusal(join(world, "2", "b1"))
    fetch(world)
    join(world, "3", "b2")
    assert "is over" in refusal(join(world, "1", "b1")), "the former boot's own words"
    assert speaks_for(world, "3") and not speaks_for(world, "1")


@pytest.mark.parametrize("peer", [f"{FIRST}:1024", f"{FIRST}:0", f"{FIRST}:x", "", ":", f"{FIRST}:99999999999"])
def test_only_a_port_of_roots_is_believed(world: World, peer: str) -> None:
    lease(world)
    fetch(world)
    assert "asks from port" in refusal(join(world, peer=peer))
    assert not speaks_for(world, "1")


def test_a_machine_that_asks_from_anothers_address_is_not_believed(world: World) -> None:
    lease(world)
    fetch(world)
    assert "its address is 10.77.0.100" in refusal(join(world, peer="10.77.0.101:700"))


def test_nothing_is_said_before_it_is_durable(world: World) -> None:
    lease(world)
    fetch(world)
    world.disk.slow = True
    request = world.ask(ms.JoinMachine(MAC, "b1", K1, PEER), "root")
    assert not world.answers(request)
    world.restart()
    world.disk.slow = False
    world.flush()
    assert not speaks_for(world, "1"), "it is not half in"
    assert join(world).state == "joined"


def test_a_machine_that_boots_again_waits_until_it_was_missed_and_gets_a_new_key(world: World) -> None:
    lease(world)
    fetch(world)
    join(world)
    agent(world, "1", "i1")
    job = world.submit()
    world.wait(1.0)
    fetch(world)
    answer = join(world, "2", "b2")
    assert answer.state == "wait" and "has not missed pc01 yet" in answer.why
    assert "has not missed" in row(world).why
    assert speaks_for(world, "1") and not speaks_for(world, "2")
    world.wait(5.0)
    assert world.state.nodes["pc01"].state == "lost"
    assert join(world, "2", "b2").state == "joined"
    assert speaks_for(world, "2") and not speaks_for(world, "1")
    assert isinstance(agent(world, "2", "i2", "b2"), ms.Welcome)
    assert world.state.nodes["pc01"].state == "up" and world.state.nodes["pc01"].incarnation == "i2"
    assert "not authorized" in refusal(agent(world, "1", "i1"))
    assert world.job(job).state == "queued"
    assert world.replays()


def test_what_ran_on_a_machine_that_boots_again_is_certainly_gone(world: World) -> None:
    """A job that waits for its lost node's word goes on: the machine was off."""
    lease(world)
    fetch(world)
    join(world)
    agent(world, "1", "i1")
    world.handle(acts.Asked(b"agent", 0, K1, ms.Ping("pc01", "i1", 1, (), ())))
    job = world.submit(requeue="confirm")
    assert world.job(job).state == "running"
    world.wait(5.0)
    assert world.job(job).state == "running" and world.state.nodes["pc01"].state == "lost"
    fetch(world)
    join(world, "2", "b2")
    agent(world, "2", "i2", "b2")
    assert "came back without it" in world.job(job).attempts[0].cause[2]  # type: ignore[index]


# ---- approve


def test_a_machine_waits_for_the_operator_who_compares_four_words() -> None:
    world = made(policy="approve")
    assert lease(world).state == "pending"
    answer = join(world, peer=f"{FIRST}:50000")
    assert answer.state == "pending" and answer.words == words_of(K1) and len(answer.words.split()) == 4
    view = row(world)
    assert (view.state, view.words, view.key) == ("pending", answer.words, K1)
    entries = len(world.disk.entries)
    assert join(world).state == "pending" and len(world.disk.entries) == entries, "asking again writes nothing"
    world.restart()
    assert world.answer(ms.ApproveMachine(MAC, K1), "root").machine.state == "approved"
    assert join(world).state == "joined" and speaks_for(world, "1")
    assert row(world).state == "joined"
    assert world.replays()


def test_an_approval_is_for_the_key_whose_words_were_compared_and_for_no_other() -> None:
    world = made(policy="approve")
    lease(world)
    join(world, "1", "b1")
    world.wait(11)
    join(world, "2", "b2")
    assert words_of(K2) in refusal(world.answer(ms.ApproveMachine(MAC, K1), "root"))
    world.answer(ms.ApproveMachine(MAC, K2), "root")
    world.wait(11)
    assert join(world, "1", "b1").state == "pending"
    assert not speaks_for(world, "1")
    world.wait(11)
    assert join(world, "2", "b2").state == "joined"


def test_each_boot_needs_its_own_approval() -> None:
    world = made(policy="approve")
    lease(world)
    join(world)
    world.answer(ms.ApproveMachine(MAC, K1), "root")
    join(world)
    answer = join(world, "2", "b2")
    assert answer.state == "pending" and row(world).state == "pending"
    assert speaks_for(world, "1"), "whoever asks does the node that is up no harm"


def test_two_machines_with_one_mac_address_are_told_of_each_other() -> None:
    world = made(policy="approve")
    lease(world)
    join(world, "1", "b1")
    said = refusal(join(world, "2", "b2"))
    assert "another boot with the MAC address" in said and words_of(K2) in said
    assert "another boot with the MAC address" in row(world).why
    assert row(world).words == words_of(K1), "who asks first is not pushed out by who asks often"


def test_an_approval_without_a_question_is_refused() -> None:
    world = made(policy="approve")
    lease(world)
    assert "it hasn't asked" in refusal(world.answer(ms.ApproveMachine(MAC, K1), "root"))


# ---- asset


def proven(nonce: str, letter: str = "1", boot: str = "b1", tag: str = "PC-0042", mac: str = MAC) -> str:
    return prove(tag_key(mac, tag), nonce, mac, boot, key(letter))


@pytest.fixture
def tagged() -> World:
    world = made(policy="asset")
    lease(world)
    assert "no asset tag" in refusal(join(world))
    world.answer(ms.SetMachine(MAC, tag=tag_key(MAC, "PC-0042")), "root")
    return world


def test_a_machine_proves_its_tag_without_saying_it(tagged: World) -> None:
    asked = join(tagged)
    assert asked.state == "prove" and asked.nonce
    answer = join(tagged, nonce=asked.nonce, proof=proven(asked.nonce))
    assert answer.state == "joined" and speaks_for(tagged, "1")
    assert "PC-0042" not in repr(tagged.disk.entries)
    assert tagged.replays()


def test_a_wrong_or_replayed_proof_is_refused(tagged: World) -> None:
    nonce = join(tagged).nonce
    assert "the proof is wrong" in refusal(join(tagged, nonce=nonce, proof=proven(nonce, tag="PC-0043")))
    assert "too old, or was used" in refusal(join(tagged, nonce=nonce, proof=proven(nonce)))
    for words in ({"letter": "2"}, {"boot": "b2"}, {"mac": OTHER_MAC}):
        nonce = join(tagged).nonce
        assert "the proof is wrong" in refusal(join(tagged, nonce=nonce, proof=proven(nonce, **words)))
    nonce = join(tagged).nonce
    tagged.wait(61)
    assert "too old" in refusal(join(tagged, nonce=nonce, proof=proven(nonce)))
    for rubbish in ("", "x", "ä" * 9, "\ud800"):
        nonce = join(tagged).nonce
        answer = join(tagged, nonce=nonce, proof=rubbish)
        assert isinstance(answer, ms.JoinedIs) and answer.state == "prove" if not rubbish else refusal(answer)
    assert not speaks_for(tagged, "1")


def test_a_new_head_asks_for_a_new_proof(tagged: World) -> None:
    nonce = join(tagged).nonce
    tagged.restart()
    assert "too old" in refusal(join(tagged, nonce=nonce, proof=proven(nonce)))
    nonce = join(tagged).nonce
    assert join(tagged, nonce=nonce, proof=proven(nonce)).state == "joined"


# ---- absurd input, and what a worker is told


@pytest.mark.parametrize("new", ["", "short", " " * 40, "é" * 40, "k" * 41, "root"])
def test_a_key_that_is_none_is_refused(world: World, new: str) -> None:
    lease(world)
    fetch(world)
    assert "no public key" in refusal(world.answer(ms.JoinMachine(MAC, "b1", new, PEER), "root"))


@pytest.mark.parametrize("boot", ["", "x" * 65, "a\nb", "é"])
def test_a_boot_id_that_is_none_is_refused(world: World, boot: str) -> None:
    lease(world)
    fetch(world)
    assert "no usable id" in refusal(join(world, boot=boot))


def test_nobody_takes_anothers_key(world: World) -> None:
    lease(world)
    lease(world, OTHER_MAC)
    fetch(world)
    fetch(world, OTHER_MAC)
    join(world)
    assert "is in use" in refusal(join(world, "1", "b9", OTHER_MAC, "10.77.0.101:700"))
    assert speaks_for(world, "1", "pc01") and not speaks_for(world, "1", "pc02")
    world.answer(ms.MakeToken(key("t"), "worker", "root", -1, 1, 60.0), "root")
    assert "is in use" in refusal(join(world, "t", "b9", OTHER_MAC, "10.77.0.101:700"))


def test_a_worker_is_told_its_place_and_the_settings_of_its_cluster() -> None:
    worker = WorkerConfig(heartbeat_s=0.25, grace_s=7.0, rack="not theirs")
    files = FilesConfig(mounts={"/home": "/home", '/a "b" \\ü': "/x"}, without_head="read")
    world = World(Config(worker=worker, files=files, boot=BootConfig(policy="lan")))
    lease(world)
    fetch(world)
    assert join(world).state == "joined"
    answer = world.answer(ms.AskPlace("pc01"), K1)
    assert isinstance(answer, ms.EnrolledIs) and (answer.node, answer.role) == ("pc01", "worker")
    told = msgspec.convert(tomllib.loads(answer.settings), Config)
    assert told.files == files
    assert told.worker == WorkerConfig(heartbeat_s=0.25, grace_s=7.0)
    assert "can't speak for n1" in refusal(world.answer(ms.AskPlace("n1"), K1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("range", text) for text in ("x", "10.0.0.9-10.0.0.1", "10.0.0.0-10.1.0.0", "10.0.0.1")),
        *(("prefix", text) for text in ("", "1", "ä", "a b")),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$"):
        msgspec.convert({"boot": {field: value}}, Config)


def test_a_journal_of_before_has_no_machines() -> None:
    state = State()
    old = msgspec.msgpack.decode(state.encode())
    assert State.decode(msgspec.msgpack.encode(old[:-1])).machines == {}


def test_words_differ_and_can_be_said() -> None:
    seen = {words_of(key(letter)) for letter in "abcdefghijklmnop"}
    assert len(seen) == 16 and all(word.isalpha() and len(word) == 5 for words in seen for word in words.split())


# ---- all of it at once

MACS = [f"52:54:00:00:00:{n:02x}" for n in range(3)]
PEERS = [f"10.77.0.{100 + n}:{port}" for n in range(3) for port in (700, 7000)]
WISHES = st.one_of(
    st.builds(ms.LeaseMachine, st.sampled_from([*MACS, "rubbish"]), st.sampled_from(["", "lab", "pc01", "a b"])),
    st.builds(ms.OpenMachine, st.sampled_from(MACS)),
    st.builds(
        ms.JoinMachine,
        st.sampled_from(MACS),
        st.sampled_from(["b1", "b2", "b3"]),
        st.sampled_from([K1, K2, K3, "none", "worker"]),
        st.sampled_from(PEERS),
        st.sampled_from(["", "nonce-1nonce-2"]),
        st.sampled_from(["", "0" * 64]),
    ),
    st.builds(ms.ApproveMachine, st.sampled_from(MACS), st.sampled_from([K1, K2, K3, ""])),
    st.builds(
        ms.SetMachine,
        st.sampled_from(MACS),
        name=st.sampled_from([None, "lab", "pc01"]),
        policy=st.sampled_from([None, "lan", "approve", "asset", ""]),
        tag=st.sampled_from([None, "", tag_key(MAC, "t")]),
        address=st.sampled_from([None, "", "10.77.0.101"]),
    ),
    st.builds(ms.ForgetMachine, st.sampled_from(MACS)),
    st.just(ms.ListMachines()),
    st.sampled_from([1.0, 20.0, 400.0]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WISHES, min_size=5, max_size=40))
def test_whatever_is_asked_names_addresses_and_keys_stay_each_one_machines(wishes: list[Any]) -> None:
    world = made(policy="lan")
    for wish in wishes:
        if isinstance(wish, float):
            world.wait(wish)
            continue
        answer = world.answer(wish, "root")
        if isinstance(answer, ms.Failed):
            assert answer.error["what"] and answer.error["kind"] not in ("Internal",)
        if isinstance(wish, ms.JoinMachine) and isinstance(answer, ms.JoinedIs) and answer.state == "joined":
            assert world.state.authorized[wish.key].node == answer.node
        machines = list(world.state.machines.values())
        for values in ([m.name for m in machines], [m.address for m in machines if m.address]):
            assert len(values) == len(set(values))
        of_machines = {found.node for found in world.state.authorized.values() if found.node}
        assert len(of_machines) == sum(bool(found.node) for found in world.state.authorized.values())
        json.dumps(msgspec.to_builtins(world.answer(ms.ListMachines(), "root")))
    assert world.replays()


@given(st.text(max_size=30))
def test_a_mac_address_is_read_or_refused(text: str) -> None:
    try:
        found = mac_of(text)
    except UsageError:
        return
    assert mac_of(found) == found and len(found) == 17


def test_an_event_about_a_machine_that_is_gone_is_void() -> None:
    state = State()
    for event in (
        ev.MachineOpened(MAC, 1.0),
        ev.MachineAsked(MAC, "b", K1, 1.0),
        ev.MachineApproved(MAC, K1, "root", 1.0),
        ev.MachineJoined(MAC, "b", K1, "pc01", 1.0),
        ev.MachineForgotten(MAC, "root", 1.0),
    ):
        state.apply(event)
    assert not state.machines and not state.authorized
    assert booting.POLICIES == ("lan", "approve", "asset")
