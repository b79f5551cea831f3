"""Durations and sizes: every form that is understood, and every one that is refused with a cure."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo.errors import UsageError
from beo.units import (
    DURATION_LIMIT_S,
    SIZE_LIMIT_BYTES,
    approximate_size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("1.5", 1.5),
        ("30s", 30),
        ("500ms", 0.5),
        ("3s1ms", 3.001),
        ("1h30m", 5400),
        (" 1h 30m ", 5400),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("1:30", 90),
        ("01:30:00", 5400),
        ("2-12", 216_000),
        ("2-12:30", 217_800),
        ("2-12:00:00", 216_000),
    ],
)
def test_durations_are_understood(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "h", "1x", "-1", "1m1h", "1h1h", "nan", "inf", "1e3", "1:2:3:4", "١s", "1h\n30m x"]
)
def test_what_is_no_duration_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration: write it as 90") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


def test_a_duration_has_bounds() -> None:
    assert parse_duration("3650d") == DURATION_LIMIT_S
    with pytest.raises(UsageError, match="limit is 3650d"):
        parse_duration("3651d")
    with pytest.raises(UsageError, match="limit is 64"):
        parse_duration("1" * 10_000)


@given(st.integers(0, int(DURATION_LIMIT_S) * 1000))
def test_a_printed_duration_is_read_back_exactly(total_ms: int) -> None:
    assert parse_duration(format_duration(total_ms / 1000)) == total_ms / 1000


def test_durations_are_printed_as_people_say_them() -> None:
    spans = [0, 0.0004, 0.25, 59, 5400, 216_000, -90]
    assert [format_duration(s) for s in spans] == ["0s", "0s", "250ms", "59s", "1h30m", "2d12h", "-1m30s"]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0B", 0),
        ("100B", 100),
        ("512M", 512 << 20),
        ("4G", 4 << 30),
        ("4GB", 4 << 30),
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        ("1.5TiB", 3 << 39),
        ("1E", 1 << 60),
        ("9007199254740993B", 9_007_199_254_740_993),  # one more than a float could tell apart
    ],
)
def test_sizes_are_understood(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "4X", "4iB", "4GiBs", "1e3B", "nan", "inf"])
def test_what_is_no_size_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(UsageError, match="is no size: write it as 100B") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_a_bare_number_is_no_size_since_two_readers_would_differ_by_a_million() -> None:
    with pytest.raises(UsageError, match="could mean bytes or MiB"):
        parse_size("512")


def test_a_size_has_bounds() -> None:
    assert parse_size("1024P") == SIZE_LIMIT_BYTES
    with pytest.raises(UsageError, match="limit is 1EiB"):
        parse_size("1.1E")
    with pytest.raises(UsageError, match="limit is 64"):
        parse_size("1" * 10_000 + "B")


@given(st.integers(0, SIZE_LIMIT_BYTES))
def test_a_printed_size_is_read_back_exactly(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.integers(0, SIZE_LIMIT_BYTES))
def test_a_size_for_reading_is_short_and_near(size_bytes: int) -> None:
    text = approximate_size(size_bytes)
    assert len(text) <= len("999.9GiB")
    assert math.isclose(parse_size(text), size_bytes, rel_tol=0.06)


def test_sizes_are_printed_with_their_unit() -> None:
    assert [format_size(n) for n in (0, 100, 1536, 3 << 39)] == ["0B", "100B", "1536B", "1536GiB"]
    assert [approximate_size(n) for n in (0, 100, 1536, 16_777_000_000)] == ["0B", "100B", "1.5KiB", "15.6GiB"]
