"""The log: short lines for people, JSON for programs, never two lines where one was meant."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from beo import log


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_a_terminal_gets_short_lines() -> None:
    stream = Terminal()
    log.setup("agent", stream=stream).warning("lost %s", "the head", extra={"address": "10.0.0.1"})
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning agent: lost the head address=10\.0\.0\.1\n", stream.getvalue())


def test_anything_else_gets_one_json_object_a_line() -> None:
    stream = io.StringIO()
    logger = log.setup("head", stream=stream)
    logger.info("job %d\ndone", 7, extra={"job": 7, "time": "forged"})
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("it broke")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {"level": "info", "name": "head", "message": "job 7\ndone", "job": 7}
    assert "ValueError: boom" in second["trace"]


def test_a_message_cannot_forge_a_line_on_a_terminal() -> None:
    stream = Terminal()
    log.setup("agent", stream=stream).info("job\n12:00:00 error: all is lost\x1b[2J", extra={"name_of_job": "a\nb"})
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_setting_up_twice_doubles_no_line() -> None:
    first, second = io.StringIO(), io.StringIO()
    log.setup("a", stream=first)
    log.setup("a", stream=second).info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


def test_the_level_decides_what_is_said() -> None:
    stream = io.StringIO()
    logger = log.setup("a", stream=stream, level="warning")
    logger.info("not said")
    logger.warning("said")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["said"]


def test_a_long_message_is_cut() -> None:
    stream = io.StringIO()
    log.setup("a", stream=stream).info("x" * 10**6)
    assert len(stream.getvalue()) < log.MESSAGE_LIMIT_CHARS + 200
