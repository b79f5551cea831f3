"""The words of the wire: each has one place, is shown where everybody looks for it, and travels under its own name."""

import inspect
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, get_args

import msgspec
import pytest

from beo import messages as ms

ROOMS = [import_module(f"beo.messages.{found.name}") for found in iter_modules(ms.__path__)]
READERS: dict[str, tuple[Any, Any]] = {
    "to_head": (ms.to_head, ms.ToHead),
    "to_client": (ms.to_client, ms.HeadAnswer),
    "to_agent": (ms.to_agent, ms.ToAgent),
    "bulk_to_head": (ms.bulk_to_head, ms.BulkRequest),
    "bulk_from_head": (ms.bulk_from_head, ms.BulkAnswer),
}


def _structs() -> list[type]:
    """Every struct of every room, where it was written."""
    return [
        kind
        for room in ROOMS
        for _, kind in inspect.getmembers(room, inspect.isclass)
        if kind.__module__ == room.__name__ and issubclass(kind, msgspec.Struct)
    ]


MESSAGES = [kind for kind in _structs() if issubclass(kind, ms.Message) and kind is not ms.Message]


def test_every_struct_is_shown_under_its_name_and_no_name_stands_for_two() -> None:
    kinds = _structs()
    assert len(kinds) > 100
    assert [kind.__name__ for kind in kinds if getattr(ms, kind.__name__, None) is not kind] == []


def test_every_message_may_be_said_to_somebody_under_the_name_of_its_class() -> None:
    said = {kind for _, kinds in READERS.values() for kind in get_args(kinds)}
    assert {kind.__name__ for kind in MESSAGES} == {kind.__name__ for kind in said if kind in set(MESSAGES)}
    for kind in MESSAGES:
        assert msgspec.inspect.type_info(kind).tag == kind.__name__  # type: ignore[attr-defined]


def _hears(reader: Any, kind: type) -> bool:
    """Whether a reader knows such messages: one without its fields is refused by its name, or looked into."""
    try:
        return type(reader.decode(ms.encode([kind.__name__]))) is kind
    except msgspec.ValidationError as error:
        return "Invalid value" not in str(error)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_hears_what_may_be_said_in_its_direction_and_nothing_else(name: str) -> None:
    reader, kinds = READERS[name]
    assert {kind for kind in MESSAGES if _hears(reader, kind)} == set(get_args(kinds)) & set(MESSAGES)


def test_readers_are_whole_before_any_thread_can_use_one() -> None:
    """Of two threads that make theirs at once, one may find a struct's type half made, and die of it (decision 48)."""
    code = "from beo import messages as ms; print([name for name in {} if '_decoder' not in vars(getattr(ms, name))])"
    done = subprocess.run(
        [sys.executable, "-c", code.format(sorted(READERS))], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
