"""How beo's processes log: short lines on a terminal, one JSON object a line anywhere else.

Only the format is decided here. Where the lines go, and how much of them is kept, is the business of whoever started
the process: a daemon writes to its standard error and its supervisor bounds the file behind it.
"""

import json
import logging
import sys
import time
from typing import TextIO

from beo.table import escape

__all__ = ["setup"]

MESSAGE_LIMIT_CHARS = 16_384  # a message that quotes its input cannot flood the log

# What logging itself puts on a record; anything beyond came in through `extra=` and is a field of the line.
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(name: str, *, stream: TextIO | None = None, level: int | str = "INFO") -> logging.Logger:
    """Send this process's log to `stream` (standard error by default) and return the logger called `name`.

    Calling it again replaces the stream, so lines are never doubled. Fields given as `extra={...}` appear as
    `key=value` on a terminal and as keys in JSON.
    """
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.set_name("beo")
    handler.setFormatter(TerminalFormatter() if stream.isatty() else JsonFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if h.get_name() == "beo"]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper() if isinstance(level, str) else level)
    return logging.getLogger(name)


class TerminalFormatter(logging.Formatter):
    """`12:30:59 warning agent: lost the head address=10.0.0.1`, in local time; control characters are written out."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, with the traceback on the lines after it."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={escape(str(value))}" for key, value in _fields(record).items())
        level = record.levelname.lower()
        line = f"{clock} {level:7} {record.name}: {escape(_message(record))}{fields}"
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """`{"time": "2026-01-31T12:30:59.123Z", "level": "warning", "name": "agent", "message": ...}`, in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON object on one line; a traceback is its field `trace`."""
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{clock}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "name": record.name,
            "message": _message(record),
        }
        line = _fields(record) | line  # an extra field cannot pass for the time or the level
        if trace := _trace(self, record):
            line["trace"] = trace
        return json.dumps(line, default=str)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    return message if len(message) <= MESSAGE_LIMIT_CHARS else message[:MESSAGE_LIMIT_CHARS] + "…"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS}


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
