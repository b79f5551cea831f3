"""PMI-1 as a pure machine: what MPICH says is answered, what nobody should say ends the attempt, and nothing raises."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo.worker import pmi
from beo.worker.pmi import Abort, Bad, Effect, Fence, Pmi, Publish, Reply, Spawn, Spec


def lone(*ranks: int) -> Pmi:
    return Pmi(ranks, len(ranks), [], "space", space={"PMI_process_mapping": "(vector,(0,1,2))"})


def say(machine: Pmi, rank: int, text: str) -> str:
    """One request that has one answer; the answer's text."""
    effects = machine.handle(rank, text.encode())
    assert len(effects) == 1 and isinstance(effects[0], Reply) and effects[0].rank == rank
    return effects[0].line.decode().rstrip("\n")


def begun(*ranks: int) -> Pmi:
    machine = lone(*ranks)
    for rank in ranks:
        say(machine, rank, "cmd=init pmi_version=1 pmi_subversion=1")
    return machine


def test_a_rank_learns_who_it_is_and_where_everybody_is() -> None:
    machine = lone(0, 1)
    assert say(machine, 0, "cmd=init pmi_version=1 pmi_subversion=1").startswith("cmd=response_to_init")
    assert say(machine, 0, "cmd=get_maxes") == "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024 rc=0"
    assert say(machine, 0, "cmd=get_universe_size") == "cmd=universe_size size=2 rc=0"
    assert say(machine, 0, "cmd=get_appnum") == "cmd=appnum appnum=0 rc=0"
    assert say(machine, 0, "cmd=get_my_kvsname") == "cmd=my_kvsname kvsname=space rc=0"
    found = say(machine, 0, "cmd=get kvsname=space key=PMI_process_mapping")
    assert found == "cmd=get_result rc=0 msg=success value=(vector,(0,1,2))"


def test_puts_are_there_for_all_behind_the_barrier() -> None:
    machine = begun(0, 1)
    assert "rc=0" in say(machine, 0, "cmd=put kvsname=space key=a value=1#b$c=d e")
    assert machine.handle(0, b"cmd=barrier_in") == []
    assert machine.handle(1, b"cmd=barrier_in") == [
        Reply(0, b"cmd=barrier_out rc=0\n"),
        Reply(1, b"cmd=barrier_out rc=0\n"),
    ]
    assert say(machine, 1, "cmd=get kvsname=space key=a").endswith(" value=1#b$c=d e")
    assert "rc=-1" in say(machine, 1, "cmd=get kvsname=space key=b")
    assert "rc=-1" in say(machine, 1, "cmd=get kvsname=other key=a")


def test_too_much_is_refused_and_told_to_the_rank() -> None:
    machine = begun(0)
    assert "rc=-1" in say(machine, 0, f"cmd=put kvsname=space key={'k' * 65} value=1")
    assert "rc=-1" in say(machine, 0, f"cmd=put kvsname=space key=k value={'v' * 1025}")
    assert "rc=-1" in say(machine, 0, "cmd=put kvsname=other key=k value=v")
    value = "v" * pmi.VALUE_LENGTH_MAX
    refused = next(
        i for i in range(10_000) if "rc=-1" in say(machine, 0, f"cmd=put kvsname=space key={i} value={value}")
    )
    assert refused * len(value) <= pmi.FENCE_BYTES_MAX
    assert isinstance(machine.handle(0, b"x" * (pmi.LINE_BYTES_MAX + 1))[0], Bad)


def test_a_fence_is_passed_when_every_node_is_there_in_whatever_order() -> None:
    for first in ("b", "c"):
        machine = Pmi([0], 3, ["b", "c"], "space")
        say(machine, 0, "cmd=init")
        say(machine, 0, "cmd=put kvsname=space key=a value=0")
        other = "c" if first == "b" else "b"
        assert machine.fence(first, 0, {first: "1"}) == []
        assert machine.fence(first, 1, {"next": "1"}) == []  # a peer may be one ahead
        assert machine.handle(0, b"cmd=barrier_in") == [Fence(0, {"a": "0"})]
        assert machine.fence(other, 0, {other: "2"}) == [Reply(0, b"cmd=barrier_out rc=0\n")]
        assert say(machine, 0, f"cmd=get kvsname=space key={other}").endswith("value=2")
        assert "rc=-1" in say(machine, 0, "cmd=get kvsname=space key=next")
        assert machine.fence(other, 1, {}) == []
        assert machine.handle(0, b"cmd=barrier_in") == [Fence(1, {}), Reply(0, b"cmd=barrier_out rc=0\n")]
        assert say(machine, 0, "cmd=get kvsname=space key=next").endswith("value=1")


def test_a_fence_from_nowhere_or_of_another_time_is_bad() -> None:
    machine = Pmi([0], 2, ["b"], "space")
    for node, k, puts in (("x", 0, {}), ("b", 2, {}), ("b", -1, {}), ("b", 0, {"k": 1}), ("b", 0, {"k": "v" * 2000})):
        assert isinstance(machine.fence(node, k, puts)[0], Bad)  # type: ignore[arg-type]


def test_leaving_within_mpi_is_bad_and_leaving_after_finalize_or_without_mpi_is_not() -> None:
    machine = begun(0, 1, 2)
    assert say(machine, 0, "cmd=finalize") == "cmd=finalize_ack rc=0"
    assert machine.left(0) == []
    assert machine.left(1) == [Bad(1, "rank 1 ended between MPI_Init and MPI_Finalize")]
    assert lone(0, 1).left(0) == []


def test_a_barrier_that_nobody_can_complete_is_bad_and_not_a_hang() -> None:
    expected = [Bad(1, "rank 1 has left while other ranks wait for it in a PMI barrier")]
    machine = lone(0, 1)
    say(machine, 0, "cmd=init")
    machine.handle(0, b"cmd=barrier_in")
    assert machine.left(1) == expected
    machine = lone(0, 1)
    machine.left(1)
    say(machine, 0, "cmd=init")
    assert machine.handle(0, b"cmd=barrier_in") == expected
    machine = Pmi([1], 2, ["b"], "space")
    machine.left(1)
    assert machine.fence("b", 0, {}) == expected


def test_abort_carries_its_code_and_its_words() -> None:
    assert lone(0).handle(0, b"cmd=abort exitcode=7 message=it is over") == [Abort(0, 7, "it is over")]
    assert lone(0).handle(0, b"cmd=abort exitcode=263") == [Abort(0, 7, "")]
    assert lone(0).handle(0, b"cmd=abort exitcode=what") == [Abort(0, 1, "")]


def test_names_are_published_on_every_node_and_only_once() -> None:
    machine = Pmi([0], 2, ["b"], "space")
    effects = machine.handle(0, b"cmd=publish_name service=s port=tag#0$x")
    assert effects[1:] == [Publish("s", "tag#0$x")]
    assert "rc=-1" in say(machine, 0, "cmd=publish_name service=s port=other")
    machine.published("t", "there")
    assert " port=there " in say(machine, 0, "cmd=lookup_name service=t")
    assert machine.handle(0, b"cmd=unpublish_name service=s")[1:] == [Publish("s", None)]
    assert "rc=-1" in say(machine, 0, "cmd=lookup_name service=s")


def spawn(machine: Pmi, *blocks: list[str]) -> list[Effect]:
    """Say these blocks of a spawn; what comes of it."""
    lines = [line for block in blocks for line in ["mcmd=spawn", *block, "endcmd"]]
    return [effect for line in lines for effect in machine.handle(0, line.encode())]


def test_a_spawn_is_asked_for_once_all_its_blocks_are_there() -> None:
    first = ["nprocs=2", "execname=./a", "totspawns=2", "spawnssofar=1", "arg1=-x", "arg2=k=v w", "argcnt=2"]
    first += ["preput_num=1", "preput_key_0=PARENT_ROOT_PORT_NAME", "preput_val_0=tag#0$d=1$", "info_num=0"]
    second = ["nprocs=1", "execname=b", "totspawns=2", "spawnssofar=2", "argcnt=0", "preput_num=0"]
    second += ["info_num=1", "info_key_0=wdir", "info_val_0=/tmp"]
    machine = begun(0)
    assert spawn(machine, first, second) == [
        Spawn(
            0,
            [Spec(["./a", "-x", "k=v w"], 2, {}), Spec(["b"], 1, {"wdir": "/tmp"})],
            {"PARENT_ROOT_PORT_NAME": "tag#0$d=1$"},
        )
    ]
    assert machine.spawned(0, [0, 0, 0]) == [Reply(0, b"cmd=spawn_result rc=0 errcodes=0,0,0\n")]
    assert machine.spawned(0, trouble="no slots") == [Reply(0, b"cmd=spawn_result rc=-1 errmsg=no_slots\n")]
    assert "rc=0" in say(machine, 0, "cmd=get_appnum")


@pytest.mark.parametrize(
    "block",
    [
        ["nprocs=0", "execname=a"],
        ["nprocs=1"],
        ["nprocs=1", "execname=a", "argcnt=2", "arg1=x"],
        ["nprocs=1", "execname=a", "totspawns=1000000", "spawnssofar=1000000"],
        ["nprocs=1", "execname=a", "preput_num=1", "preput_key_0=k", "preput_val_0=" + "v" * 1025],
        ["nprocs=1", "execname=a", "info_num=1"],
    ],
)
def test_a_spawn_that_is_not_whole_is_an_error_at_the_caller(block: list[str]) -> None:
    machine = begun(0)
    (reply,) = spawn(machine, block)
    assert isinstance(reply, Reply) and reply.line.startswith(b"cmd=spawn_result rc=-1 ")
    assert "rc=0" in say(machine, 0, "cmd=get_appnum")


def test_a_spawn_without_end_ends_the_attempt() -> None:
    machine = begun(0)
    machine.handle(0, b"mcmd=spawn")
    line = b"arg1=" + b"x" * 60_000
    effects = [effect for _ in range(20) for effect in machine.handle(0, line)]
    assert isinstance(effects[0], Bad) and "MPI_Comm_spawn of more than" in effects[0].reason


def test_spawned_ranks_know_it_and_must_come_to_init() -> None:
    child = Pmi([0, 1], 2, [], "space", 4, {1: 1}, {"PARENT_ROOT_PORT_NAME": "tag#0$d=1$"}, awaited=True)
    assert say(child, 0, "cmd=init pmi_version=1 pmi_subversion=1").endswith("rc=0")
    assert say(child, 1, "cmd=get_appnum") == "cmd=appnum appnum=1 rc=0"
    assert say(child, 0, "cmd=get kvsname=space key=PARENT_ROOT_PORT_NAME").endswith(" value=tag#0$d=1$")
    assert child.left(1) == [Bad(1, "rank 1 was spawned and ended without MPI_Init")]
    say(child, 0, "cmd=finalize")
    assert child.left(0) == []


def test_worlds_of_one_attempt_share_their_published_names() -> None:
    services: dict[str, str] = {}
    one, other = (Pmi([0], 1, [], name, services=services, told=True) for name in ("a", "b"))
    assert one.handle(0, b"cmd=publish_name service=s port=p")[1:] == [Publish("s", "p")]
    assert say(other, 0, "cmd=lookup_name service=s") == "cmd=lookup_result port=p info=ok rc=0 msg=success"


VERBS = st.sampled_from([*sorted(pmi._VERBS), "initack"])
WORDS = st.lists(
    st.tuples(
        st.sampled_from(["kvsname", "key", "value", "exitcode", "service", "port", "message", ""]),
        st.sampled_from(["space", "k", "", "=", "7", "-1", "9" * 30, " ", "x" * 2000, "é"]),
    ),
    max_size=5,
)
LINES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"mcmd=spawn", b"endcmd", b"totspawns=x", b"spawnssofar=2", b"totspawns=2"]),
    st.builds(lambda verb, words: f"cmd={verb} {' '.join('='.join(w) for w in words)}".encode(), VERBS, WORDS),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("line"), st.integers(-1, 3), LINES),
        st.tuples(st.just("left"), st.integers(0, 2), st.just(b"")),
        st.tuples(st.just("fence"), st.integers(-1, 3), st.just(b"")),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_comes_it_never_raises_and_every_answer_is_one_line(steps: list[tuple[str, int, bytes]]) -> None:
    machine = Pmi([0, 1, 2], 4, ["b"], "space")
    for what, number, line in steps:
        if what == "line":
            effects = machine.handle(number, line)
        elif what == "left":
            effects = machine.left(number)
        else:
            effects = machine.fence("b", number, {"k": str(number)})
        for effect in effects:
            assert isinstance(effect, Effect)
            if isinstance(effect, Reply):
                assert effect.line.count(b"\n") == 1 and effect.line.endswith(b"\n")


@given(st.lists(st.integers(0, 5), max_size=200), st.integers(1, 3))
def test_nodes_agree_behind_every_barrier_however_the_fences_travel(schedule: list[int], barriers: int) -> None:
    names = ["a", "b", "c"]
    machines = {name: Pmi([rank], 3, [n for n in names if n != name], "s") for rank, name in enumerate(names)}
    travelling: dict[tuple[str, str], deque[Fence]] = {(x, y): deque() for x in names for y in names if x != y}
    done = dict.fromkeys(names, 0)

    def act(name: str, effects: list[Effect]) -> None:
        for effect in effects:
            assert not isinstance(effect, Bad)
            if isinstance(effect, Fence):
                for other in names:
                    if other != name:
                        travelling[name, other].append(effect)
            elif isinstance(effect, Reply) and b"barrier_out" in effect.line:
                done[name] += 1
                if done[name] < barriers:
                    enter(name)

    def enter(name: str) -> None:
        rank = names.index(name)
        say(machines[name], rank, f"cmd=put kvsname=s key={name}{done[name]} value={rank}")
        act(name, machines[name].handle(rank, b"cmd=barrier_in"))

    for rank, name in enumerate(names):
        say(machines[name], rank, "cmd=init")
        enter(name)
    ways = sorted(travelling)
    for choice in [*schedule, *list(range(6)) * barriers * 3]:
        source, target = ways[choice]
        if travelling[source, target]:
            fence = travelling[source, target].popleft()
            act(target, machines[target].fence(source, fence.k, fence.puts))
    assert set(done.values()) == {barriers}
    for rank, name in enumerate(names):
        for other in names:
            for k in range(barriers):
                assert "rc=0" in say(machines[name], rank, f"cmd=get kvsname=s key={other}{k}")


def test_ranks_that_come_back_from_elsewhere_meet_at_barriers_and_say_goodbye() -> None:
    machine = Pmi([0, 1], 2, (), "kvs")
    machine.resume()
    assert machine.handle(0, b"cmd=barrier_in") == []
    assert len(machine.handle(1, b"cmd=barrier_in")) == 2
    assert machine.handle(0, b"cmd=init pmi_version=1 pmi_subversion=1") == [Bad(0, "rank 0 called PMI init twice")]
    assert say(machine, 1, "cmd=finalize") == "cmd=finalize_ack rc=0"
