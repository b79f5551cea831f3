"""A `start` message is whole and of the right types, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from beo.worker.order import Order


def _start(**words: Any) -> dict[str, Any]:
    """An order that is whole, but for `words`."""
    message = {"op": "start", "job": 1, "attempt": 1, "node": "node01", "nodes": ["node01"], "argv": ["true"]}
    return {**message, "cwd": "/", "env": {"A": "1"}, "ranks": [0], "size": 1, **words}


def test_an_order_that_is_whole_is_taken() -> None:
    order = Order(_start(env_of={"0": {"B": ""}}))
    assert (order.env, order.env_of, order.reusable) == ({"A": "1"}, {0: {"B": ""}}, True)


@pytest.mark.parametrize(
    "env", [None, [], ["A"], "A", {"A": 1}, {"A": None}, {"": "1"}, {"A=B": "1"}, {"A\0": "1"}, {"A": "1\0"}], ids=repr
)
def test_an_environment_that_cannot_be_is_refused(env: Any) -> None:
    with pytest.raises(ValueError, match="an environment"):
        Order(_start(env=env))


WRONG: list[dict[str, Any]] = [
    {"job": -1},
    {"job": True},
    {"attempt": 1.0},
    {"argv": []},
    {"argv": ["a\0"]},
    {"cwd": ""},
    {"ranks": [0, 0]},
    {"ranks": [1]},
    {"node": "node02"},
    {"grace_s": -1},
    {"grace_s": "1"},
    {"pmi": []},
    {"uid": "root"},
]


@pytest.mark.parametrize("words", WRONG, ids=repr)
def test_an_order_with_a_part_that_cannot_be_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Order(_start(**words))
