"""The start message: the same from every node's point of view, and with the environment that a rank may count on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from beo.worker.launch import Attempt, Facts, Part, start_message
from beo.worker.order import Order
from beo.worker.pmi import process_mapping

ATTEMPT = Attempt(
    job=7,
    attempt=2,
    argv=["./heat", "100"],
    cwd="/work",
    env={"PATH": "/bin", "LANG": "C"},
    size=3,
    parts=[Part("node1", (0, 1)), Part("node2", (2,))],
    nodes_folded="node[1-2]",
    name="heat",
    cpus=4,
)
FACTS = Facts("blue", "node2", "eth1", tmp="/tmp/beo-7.2")


def test_the_warden_understands_what_the_agent_says() -> None:
    order = Order(start_message(replace(ATTEMPT, mem_bytes=1 << 30, time_limit_s=60), FACTS, "abcd", 123))
    assert (order.job, order.attempt, order.node, order.nodes) == (7, 2, "node2", ["node1", "node2"])
    assert (order.ranks, order.size, order.argv) == ([2], 3, ["./heat", "100"])
    assert (order.time_limit_s, order.mem_bytes, order.leash_until_ns) == (60.0, 1 << 30, 123)
    assert not order.reusable


def test_a_rank_finds_itself_in_its_environment() -> None:
    message = start_message(ATTEMPT, FACTS, "abcd")
    env = {**message["env"], **message["env_of"]["2"]}
    assert {key: env[key] for key in env if key.startswith("BEO_")} == {
        "BEO_CLUSTER": "blue",
        "BEO_JOB_ID": "7",
        "BEO_JOB_NAME": "heat",
        "BEO_ATTEMPT": "2",
        "BEO_RANK": "2",
        "BEO_LOCAL_RANK": "0",
        "BEO_SIZE": "3",
        "BEO_NODES": "node[1-2]",
        "BEO_NODE": "node2",
        "BEO_INTERFACE": "eth1",
    }
    assert (env["TMPDIR"], env["OMP_NUM_THREADS"], env["PATH"]) == ("/tmp/beo-7.2", "4", "/bin")
    assert env["UCX_NET_DEVICES"] == env["FI_TCP_IFACE"] == "eth1"


def test_the_jobs_own_settings_win_and_leftovers_of_another_mpi_do_not_come_along() -> None:
    own = {"OMP_NUM_THREADS": "1", "UCX_NET_DEVICES": "mlx5_0:1", "PMI_RANK": "5", "PMI_FD": "9", "TMPDIR": "/var"}
    env = start_message(replace(ATTEMPT, env=own), FACTS, "abcd")["env"]
    assert (env["OMP_NUM_THREADS"], env["UCX_NET_DEVICES"], env["TMPDIR"]) == ("1", "mlx5_0:1", "/tmp/beo-7.2")
    assert not any(key.startswith("PMI_") for key in env)


def test_the_loopback_is_not_forced_upon_mpi() -> None:
    on_one_machine = start_message(ATTEMPT, replace(FACTS, interface="lo"), "abcd")["env"]
    assert (on_one_machine["MPIR_CVAR_CH4_NETMOD"], on_one_machine["FI_TCP_IFACE"]) == ("ofi", "lo")
    assert "UCX_NET_DEVICES" not in on_one_machine  # it would say "Destination is unreachable"


def test_every_node_of_an_attempt_has_the_same_pmi_and_every_attempt_another() -> None:
    names = set()
    for attempt, nonce in ((1, "a"), (2, "a"), (2, "b")):
        told = [
            start_message(replace(ATTEMPT, attempt=attempt), replace(FACTS, node=node), nonce)["pmi"]
            for node in ("node1", "node2")
        ]
        assert told[0] == told[1]
        names.add(told[0]["kvsname"])
    assert len(names) == 3


def test_one_rank_alone_needs_no_pmi_and_may_reuse_a_warden() -> None:
    alone = replace(ATTEMPT, size=1, parts=[Part("node2", (0,))])
    message = start_message(alone, FACTS, "abcd")
    assert message["pmi"] is None and Order(message).reusable


@pytest.mark.parametrize(
    ("counts", "mapping"),
    [
        ([4], "(vector,(0,1,4))"),
        ([2, 2, 2], "(vector,(0,3,2))"),
        ([2, 2, 1, 4, 4], "(vector,(0,2,2),(2,1,1),(3,2,4))"),
    ],
)
def test_the_process_mapping_has_a_block_for_each_run_of_equal_nodes(counts: list[int], mapping: str) -> None:
    assert process_mapping(list(enumerate(counts))) == mapping


def test_a_node_without_a_part_is_an_error_that_names_the_nodes() -> None:
    with pytest.raises(ValueError, match="node3 has no part of job 7: it runs on node1, node2"):
        start_message(ATTEMPT, replace(FACTS, node="node3"), "abcd")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("job", "7"),
        ("argv", []),
        ("argv", ["a\0b"]),
        ("ranks", [3]),
        ("ranks", [0, 0]),
        ("ranks", list(range(5000))),
        ("env", {"A=B": "c"}),
        ("env", {"A": 1}),
        ("nodes", ["node1"]),
        ("grace_s", "soon"),
        ("time_limit_s", float("nan")),
        ("mem_bytes", -1),
        ("pmi", {}),
        ("cwd", ""),
    ],
)
def test_an_order_that_is_not_whole_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError):
        Order({**start_message(ATTEMPT, FACTS, "abcd"), key: value})


def test_the_names_of_all_nodes_are_told_to_each_with_the_addresses_that_they_stand_for() -> None:
    parts = [Part("node1", (0,), host="10.0.0.1"), Part("node2", (1,), host="10.0.0.1"), Part("n3", (2,), host="")]
    order = Order(start_message(replace(ATTEMPT, parts=parts), FACTS, "abcd"))
    assert order.names == {"node1": "10.0.0.1", "node2": "10.0.0.1", "n3": ""}


def test_a_batch_job_has_all_slots_for_its_steps_and_an_mpi_job_what_its_ranks_leave() -> None:
    parts = [Part("node1", (0, 1), 1), Part("node2", (), 2)]
    message = start_message(replace(ATTEMPT, size=2, parts=parts), FACTS, "abcd")
    order = Order(message)
    assert (order.ranks, order.slots, order.taken) == ([], {"node1": 12, "node2": 8}, {"node1": 8, "node2": 0})
    assert (order.places, message["pmi"]["universe"]) == (5, 5)
    batch = replace(ATTEMPT, size=1, parts=[Part("node1", (0,), 2), Part("node2", (), 1)], batch=True)
    order = Order(start_message(batch, FACTS, "abcd"))
    assert (order.slots, order.taken, order.pmi) == ({"node1": 8, "node2": 4}, {"node1": 0, "node2": 0}, None)
    assert order.may_have_steps and not order.reusable
