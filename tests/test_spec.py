"""What a job may be, and what a script may say about it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from beo import spec as sp
from beo.errors import UsageError
from tests.world import spec


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ({"ranks": 0}, "-n"),
        ({"ranks": sp.RANKS_MAX + 1}, "-n"),
        ({"nodes": -1}, "-N"),
        ({"ranks": 2, "nodes": 3}, "-N"),
        ({"cpus": 0}, "-c"),
        ({"slots": -1}, "--slots"),
        ({"ranks": 2, "cpus": 2, "slots": 3}, "--slots"),
        ({"slots": sp.SLOTS_MAX + 1}, "--slots"),
        ({"mem_bytes": -1}, "--mem"),
        ({"mem_bytes": sp.MEM_MAX_BYTES + 1}, "--mem"),
        ({"time_limit_s": -1.0}, "-t"),
        ({"time_limit_s": math.nan}, "-t"),
        ({"time_limit_s": math.inf}, "-t"),
        ({"priority": sp.PRIORITY_MAX + 1}, "--priority"),
        ({"name": "a\x1b[2J"}, "-J"),
        ({"name": "\x9b2J"}, "-J"),
        ({"name": "n" * (sp.NAME_LENGTH_MAX + 1)}, "-J"),
        ({"cwd": "here"}, "--chdir"),
        ({"cwd": ""}, "--chdir"),
        ({"output": "out"}, "-o"),
        ({"errors": "/" + "e" * sp.PATH_LENGTH_MAX}, "-e"),
        ({"argv": ()}, "CMD"),
        ({"argv": ("",)}, "CMD"),
        ({"env": {"": "x"}}, "--env"),
        ({"env": {"A=B": "x"}}, "--env"),
        ({"env": {"A": "\0"}}, "--env"),
    ],
)
def test_a_wish_that_is_out_of_bounds_names_the_option_at_fault(words: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError) as caught:
        sp.check(spec(**words))
    assert option in caught.value.cure


@pytest.mark.parametrize(
    "words",
    [
        {"argv": ("echo", "a" * sp.ARGV_SIZE_MAX_BYTES)},
        {"argv": ("echo", "a\0b")},
        {"env": {"A": "x" * sp.ENV_SIZE_MAX_BYTES}},
        {"script": "#!/bin/sh\n" + "#" * sp.SCRIPT_SIZE_MAX_BYTES},
        {"script": "\0"},
        {"cwd": "/a\0b"},
    ],
)
def test_what_no_machine_could_run_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        sp.check(spec(**words))
    assert caught.value.cure


@pytest.mark.parametrize("field", ["argv", "env", "script"])
def test_sizes_are_counted_in_bytes_not_in_characters(field: str) -> None:
    text = "ä" * (sp.ENV_SIZE_MAX_BYTES // 2 + 1)
    words: dict[str, Any] = {"argv": {"argv": ("echo", text)}, "env": {"env": {"A": text}}, "script": {"script": text}}
    with pytest.raises(UsageError, match="bytes"):
        sp.check(spec(**words[field]))


@pytest.mark.parametrize(
    "words", [{"argv": ("cat", "\udcff")}, {"env": {"A": "\udcff"}}, {"script": "\udcff"}, {"cwd": "/\udcff"}]
)
def test_a_word_that_is_not_utf8_is_refused_before_it_is_sent(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        sp.check(spec(**words))


def test_a_limit_is_printed_in_full() -> None:
    with pytest.raises(UsageError, match=str(sp.MEM_MAX_BYTES)):
        sp.check(spec(mem_bytes=sp.MEM_MAX_BYTES + 1))


def test_the_largest_job_is_taken() -> None:
    large = spec(
        argv=("true", "a" * (sp.ARGV_SIZE_MAX_BYTES - 6)),
        ranks=sp.RANKS_MAX,
        nodes=sp.NODES_MAX,
        cpus=sp.CPUS_MAX,
        time_limit_s=sp.TIME_LIMIT_MAX_S,
        name="ä" * sp.NAME_LENGTH_MAX,
    )
    assert sp.check(large) is large
    assert sp.JobSpec(argv=("x",), cwd="/", ranks=2, cpus=2, slots=7).places == 4
    assert large.slots_in_all == sp.RANKS_MAX * sp.CPUS_MAX


def test_only_directives_above_the_first_command_count() -> None:
    text = "#!/bin/sh\n#BEO -n 4 -t 1h\n\n# a remark\n#BEO -J 'my job' # why not\n#BEOX -n 9\ndate\n#BEO -n 8\n"
    assert sp.script_directives(text) == ["-n", "4", "-t", "1h", "-J", "my job"]
    assert sp.script_directives("date\n") == []


def test_a_directive_with_an_open_quote_names_its_line() -> None:
    with pytest.raises(UsageError, match="line 2"):
        sp.script_directives("#!/bin/sh\n#BEO -J 'my job\n")


def test_directives_are_limited_and_never_cut_in_the_middle() -> None:
    with pytest.raises(UsageError, match="over 100"):
        sp.script_directives("#BEO -n 1\n" * (sp.DIRECTIVES_MAX + 1))
    pad = "#" * (sp.DIRECTIVES_HEAD_BYTES - len("#BEO -n 1") - 1) + "\n"
    assert sp.script_directives(pad + "#BEO -n 16\n") == []


@pytest.mark.parametrize(
    ("line", "shell"),
    [
        ("#!/bin/sh", True),
        ("#! /bin/bash -e", True),
        ("#!/usr/bin/env bash", True),
        ("#!/usr/bin/env -S zsh -f", True),
        ("#!/bin/bash\r", True),
        ("#!/usr/bin/env python3", False),
        ("#!/usr/bin/python3", False),
        ("#!/opt/notsh", False),
        ("echo /bin/sh", False),
        ("", False),
    ],
)
def test_a_shell_script_is_told_from_a_program_by_its_first_line(line: str, shell: bool) -> None:
    assert sp.is_shell(line + "\ndate\n") is shell


def test_a_key_tells_when_it_was_made() -> None:
    made_s = sp.key_made_s(sp.submission_key(1_800_000_000.25, "nonce"))
    assert made_s == 1_800_000_000.25
    assert sp.key_made_s("my own key") is None
