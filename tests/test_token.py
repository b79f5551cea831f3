"""A token is text that survives being copied, and says so where it didn't."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo import token, wire
from beo.errors import UsageError

HEAD = wire.new_keypair()[0]


def test_a_token_carries_the_heads_key_and_a_secret_of_its_own() -> None:
    seed = os.urandom(token.SEED_BYTES)
    text = token.write(HEAD, seed)
    read = token.read(f" {text}\n")
    assert read.head == HEAD
    assert wire.public_of(read.secret) == wire.public_of_bytes(token.secret_of(seed))
    assert re.fullmatch(r"beo_[A-Za-z0-9_-]{70}", text)


def test_two_seeds_are_two_secrets() -> None:
    assert token.secret_of(b"\0" * 16) != token.secret_of(b"\0" * 15 + b"\1")


@pytest.mark.parametrize("spoil", [lambda t: t[:-1], lambda t: t + "A", lambda t: t[4:], lambda t: t.swapcase()])
def test_a_token_that_was_mistyped_is_no_token(spoil: Callable[[str], str]) -> None:
    with pytest.raises(UsageError, match=r"no token.*mistyped"):
        token.read(spoil(token.write(HEAD, bytes(16))))


@given(st.text(max_size=100))
def test_no_text_makes_it_fail_otherwise(text: str) -> None:
    with pytest.raises(UsageError):
        token.read(text)
    with pytest.raises(UsageError):
        token.read("beo_" + text)


@given(st.integers(0, 69), st.sampled_from("AZaz09-_"))
def test_one_wrong_letter_is_noticed(at: int, letter: str) -> None:
    text = token.write(HEAD, bytes(range(16)))
    wrong = text[: 4 + at] + letter + text[5 + at :]
    if wrong != text:
        with pytest.raises(UsageError):
            token.read(wrong)
