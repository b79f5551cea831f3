"""Rows for people and for programs: aligned text, chosen columns, a template, JSON, or the bare ids.

A row is a mapping from column keys to plain values. One call, `render`, serves every verb that lists something, so that
`--format`, `--json` and `--quiet` mean the same everywhere.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from beo.errors import NotFound, UsageError

__all__ = ["Column", "cell", "escape", "render"]

GAP = "  "  # two spaces between columns: a single one may stand in a value

_FIELD = r"\{([^{}:]*)(?::([<>^]?[0-9]{1,3}))?\}"  # {name}, or {name:>8} to align

Row = Mapping[str, object]


def cell(value: object) -> str:
    """Return `value` as the text of one cell: `-` for nothing, `yes` and `no`, and lists joined by commas."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(map(cell, value)) or "-"
    return escape(str(value))


class Column:
    """One column: the `key` of its values in a row, and how people see them (JSON has the values themselves)."""

    def __init__(self, key: str, show: Callable[[object], str] = cell) -> None:
        """Take both; a plain class, since every verb that lists something waits for this file to load."""
        self.key = key
        self.show = show

    @property
    def title(self) -> str:
        """The column's heading: the word that `--format` knows it by, in capitals."""
        return self.key.upper()


def render(
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    fields: str = "",
    json: bool = False,
    quiet: bool = False,
    width: int | None = None,
) -> str:
    """Return `rows` as text that ends in a newline, unless it is empty.

    `columns` are those shown by default, the first of them being the row's id. `fields` is what `--format` was given:
    the keys wanted (`id,name`), or a template for each line (`{id} {name:>20}`). `quiet` gives the ids alone, a line
    each, and `json` a list of objects. `width` (characters) cuts longer lines of a table. Raises `UsageError` for a bad
    template and `NotFound` for an unknown key.
    """
    if quiet:
        return _lines(columns[0].show(row.get(columns[0].key)) for row in rows)
    if "{" in fields and not json:
        _check(fields, columns)  # here, since a mistake is one where there are no rows, too
        return _lines([_fill(fields, row, columns) for row in rows])
    chosen = _chosen(fields, columns)
    if json:
        return _json(rows, chosen)
    return _aligned(rows, chosen, width)


def escape(text: str) -> str:
    """Return `text` with its control characters written out, so that a job's name can neither forge a row nor
    drive the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _chosen(fields: str, columns: Sequence[Column]) -> Sequence[Column]:
    if not fields:
        return columns
    if "{" in fields:  # with --json a template only says which columns are wanted
        return [_column(match[1], columns) for match in re.finditer(_FIELD, fields)]
    return [_column(name.strip(), columns) for name in fields.split(",")]


def _column(name: str, columns: Sequence[Column]) -> Column:
    for column in columns:
        if column.key == name.lower():
            return column
    known = [column.key for column in columns]
    raise NotFound.among("column", name, known, cure=f"choose from {','.join(known)}")


def _check(template: str, columns: Sequence[Column]) -> None:
    if re.search(r"[{}]", re.sub(_FIELD, "", template)):
        raise UsageError(f"{template!r} is no template", cure="write it as '{id} {name}' or '{id:>8} {name}'")
    for match in re.finditer(_FIELD, template):
        _column(match[1], columns)


def _fill(template: str, row: Row, columns: Sequence[Column]) -> str:
    def value(match: re.Match[str]) -> str:
        column = _column(match[1], columns)
        return format(column.show(row.get(column.key)), match[2] or "")

    return re.sub(_FIELD, value, template)


def _aligned(rows: Sequence[Row], columns: Sequence[Column], width: int | None) -> str:
    texts = [[column.title for column in columns]]
    texts += [[column.show(row.get(column.key)) for column in columns] for row in rows]
    widths = [max(map(len, texts_of_column)) for texts_of_column in zip(*texts, strict=True)]
    rights = [_is_numeric([row.get(column.key) for row in rows]) for column in columns]
    lines = []
    for line_texts in texts:
        padded = [
            text.rjust(size) if right else text.ljust(size)
            for text, size, right in zip(line_texts, widths, rights, strict=True)
        ]
        line = GAP.join(padded).rstrip()
        lines.append(line if width is None or len(line) <= width else line[: max(width - 1, 0)] + "…")
    return _lines(lines)


def _is_numeric(values: Sequence[object]) -> bool:
    """Tell whether a column holds numbers, with gaps perhaps."""
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present)


def _json(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """One object a line, so that grep and diff are of use too."""
    from json import dumps  # here, because a plain listing does without

    objects = [dumps({column.key: row.get(column.key) for column in columns}, default=str) for row in rows]
    return "[\n" + ",\n".join(objects) + "\n]\n" if objects else "[]\n"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
