"""Tables: what people read, what programs read, and that a value cannot break either."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo.errors import NotFound, UsageError
from beo.table import Column, cell, escape, render
from beo.units import approximate_size

COLUMNS = [Column("id"), Column("name"), Column("memory", lambda value: approximate_size(int(str(value))))]
ROWS: list[dict[str, object]] = [
    {"id": 9, "name": "pi", "memory": 4 << 30, "user": "ada"},
    {"id": 10, "name": "heat2d", "memory": 512 << 20, "user": "alan"},
]


def test_text_stands_left_and_numbers_stand_right() -> None:
    assert render(ROWS, COLUMNS).splitlines() == [
        "ID  NAME    MEMORY",
        " 9  pi        4GiB",
        "10  heat2d  512MiB",
    ]


def test_no_rows_leave_the_headings_and_nothing_for_programs() -> None:
    assert render([], COLUMNS) == "ID  NAME  MEMORY\n"
    assert render([], COLUMNS, quiet=True) == ""
    assert json.loads(render([], COLUMNS, json=True)) == []


def test_quiet_gives_the_ids_alone() -> None:
    assert render(ROWS, COLUMNS, quiet=True) == "9\n10\n"


def test_json_has_the_values_themselves() -> None:
    assert json.loads(render(ROWS, COLUMNS, json=True))[1] == {"id": 10, "name": "heat2d", "memory": 512 << 20}
    assert json.loads(render(ROWS, COLUMNS, json=True, fields="name"))[0] == {"name": "pi"}
    assert json.loads(render(ROWS, COLUMNS, json=True, fields="{name}!"))[0] == {"name": "pi"}


def test_columns_are_chosen_by_name() -> None:
    assert render(ROWS, COLUMNS, fields="name, ID").splitlines() == ["NAME    ID", "pi       9", "heat2d  10"]


def test_a_template_makes_each_line() -> None:
    assert render(ROWS, COLUMNS, fields="{id:>4}|{name:8}|{memory}") == "   9|pi      |4GiB\n  10|heat2d  |512MiB\n"


def test_an_unknown_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean name"):
        render(ROWS, COLUMNS, fields="id,nam")
    with pytest.raises(NotFound, match="choose from id,name,memory"):
        render(ROWS, COLUMNS, fields="{zzz}")


@pytest.mark.parametrize("template", ["{id", "{id}}", "{id:99999999}", "{id!r}", "{id.real:}{"])
def test_a_bad_template_is_refused(template: str) -> None:
    with pytest.raises((UsageError, NotFound)):
        render(ROWS, COLUMNS, fields=template)


def test_lines_are_cut_only_when_a_width_is_given() -> None:
    rows = [{"id": 1, "name": "x" * 300}]
    assert "x" * 300 in render(rows, COLUMNS[:2])
    assert render(rows, COLUMNS[:2], width=12).splitlines() == ["ID  NAME", " 1  xxxxxxx…"]


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_a_value_cannot_forge_a_row(values: list[str]) -> None:
    rows = [{"id": number, "name": value} for number, value in enumerate(values)]
    for text in (render(rows, COLUMNS[:2], fields="name,id"), "\n" + render(rows, COLUMNS[:2], fields="{name}")):
        assert len(text.splitlines()) == len(rows) + 1
        assert text.replace("\n", "").isprintable()


def test_control_characters_are_written_out() -> None:
    assert escape("a\nb\x1b[2J\u202ec é") == "a\\nb\\x1b[2J\\u202ec é"


def test_values_are_shown_as_words() -> None:
    assert [cell(v) for v in (None, "", True, False, [], ["a", 1], 0, 1.5)] == [
        "-", "-", "yes", "no", "-", "a,1", "0", "1.5",
    ]  # fmt: skip
