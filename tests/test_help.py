"""Help and manual: every verb is explained, every example is a command line that its verb takes, and roff is roff."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from beo.cli import man
from beo.cli.group import FAMILIES, VERBS, Actions, Verb, exit_rows, families, group
from tests.cluster import ROOT

SUMMARY_LENGTH_MAX = 60
SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"]


def verbs() -> Iterator[tuple[str, Verb]]:
    for name in VERBS:
        command = group.get_command(click.Context(group), name)
        assert isinstance(command, Verb), name
        yield name, command


def beo(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "beo.front", *words],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_explained(name: str) -> None:
    command = dict(verbs())[name]
    summary = VERBS[name][1]
    assert 0 < len(summary) <= SUMMARY_LENGTH_MAX and summary[0].islower() and summary[-1] != "."
    assert command.help and command.help.strip()[0].isupper() and command.help.strip().endswith((".", ":"))
    assert command.examples, "an example says more than a description"
    codes = [code for code, _ in exit_rows(command.exits)]
    assert {"0", "2"} <= set(codes)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert (
                parameter.help and parameter.help[0].isupper()
            ) or parameter.help == "worker, user:NAME[:UID], admin[:NAME], head or witness."
            assert parameter.help.rstrip().endswith((".", ")")), parameter.opts


def test_every_verb_has_its_family() -> None:
    assert "Others" not in dict(families()), "add the verb to FAMILIES in beo/cli/group.py"
    listed = " ".join(FAMILIES.values()).split()
    assert len(listed) == len(set(listed))


def commands(line: str) -> Iterator[list[str]]:
    """The command lines of beo in a line of shell, as words behind `beo`."""
    line = re.sub(r"\$\((beo [^)]*)\)", r"1 ; \1", line)
    line = re.sub(r"<\((beo [^)]*)\)", r"; \1", line)
    line = re.sub(r"\s[0-2]>", " >", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set(";|&<>"):
            words.append(word)
            continue
        while words and "=" in words[0]:
            del words[0]
        if words[:1] == ["beo"]:
            yield words[1:]
        words = []


@pytest.mark.parametrize("name", VERBS)
def test_every_example_is_a_command_line_that_its_verb_takes(name: str) -> None:
    command = dict(verbs())[name]
    assert any(words[0] == name for example, _ in command.examples for words in commands(example))
    for example, what in command.examples:
        found = list(commands(example))
        assert found, example
        assert what and what[-1] != ".", "no sentence, but what it does"
        for words in found:
            verb = dict(verbs())[words[0]]
            verb.make_context(words[0], words[1:], parent=click.Context(group, info_name="beo"))


def test_help_is_divided_by_what_verbs_are_for() -> None:
    said = beo("--help").stdout
    assert re.findall(r"^(\S.*):$", said, re.MULTILINE)[1:-1] == [title for title, _ in families()]


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_help_fits_the_terminal(columns: str) -> None:
    for words in ([], *([name] for name in ("submit", "queue"))):
        lines = beo(*words, "--help", COLUMNS=columns).stdout.splitlines()
        assert max(map(len, lines)) <= min(max(int(columns), 50), 100)
        assert not any("\x1b" in line for line in lines)


def test_a_number_is_called_n_and_its_range_said_in_words() -> None:
    assert "RANGE" not in "".join(beo(name, "--help").stdout for name in ("events", "up", "queue"))
    assert "<=" not in beo("set", "--help").stdout


# ---- the manual -----------------------------------------------------------------------------------------------------


def test_the_manual_has_a_page_per_verb_and_says_all_that_the_help_says(tmp_path: Path) -> None:
    done = beo("man", "--write", str(tmp_path / "man1"))
    assert done.stdout == f"{len(VERBS) + 1} pages in {tmp_path / 'man1'}\n", done.stderr
    pages = {path.name: path.read_text() for path in (tmp_path / "man1").iterdir()}
    assert set(pages) == {"beo.1", *(f"beo-{name}.1" for name in VERBS)}
    for name, command in verbs():
        text = plain(pages[f"beo-{name}.1"])
        for section in (
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXAMPLES",
            "EXIT STATUS",
            "ENVIRONMENT",
            "FILES",
        ):
            assert f"\n{section}\n" in f"\n{text}", f"{name}: {section}"
        assert "\nSEE ALSO\n" in text and "beo(1)" in text
        words = " ".join(text.split())
        for example, what in command.examples:
            assert " ".join(f"{example} {what}".split()) in words
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[-1] in words and " ".join((parameter.help or "").split()) in words


def plain(page: str) -> str:
    """The text of a page, without the marks of roff."""
    page = re.sub(r'^\.SH "?(.*?)"?$', r"\1", page, flags=re.MULTILINE)
    page = re.sub(r"^\.BR (\S+) (\S+)$", r"\1\2", page, flags=re.MULTILINE)
    page = re.sub(r"^\.[A-Z]+.*\n", "", page, flags=re.MULTILINE)
    for mark, text in ((r"\&", ""), (r"\fB", ""), (r"\fI", ""), (r"\fR", ""), (r"\-", "-")):
        page = page.replace(mark, text)
    for mark, text in ((r"\(aq", "'"), (r"\(ga", "`"), (r"\(ti", "~"), (r"\(ha", "^"), (r"\(dq", '"'), (r"\e", "\\")):
        page = page.replace(mark, text)
    return page


def test_the_actions_of_a_verb_are_in_its_help_and_its_page_and_each_is_explained() -> None:
    command = group.get_command(click.Context(group), "ha")
    assert isinstance(command, Actions)
    text = " ".join(plain(man.page("ha")).split())
    for name, (_, _, summary) in command.actions.items():
        assert f"beo ha {name} {summary}" in text and f"{name} " in beo("ha", "--help").stdout
        action = command.get_command(click.Context(command, info_name="ha"), name)
        assert isinstance(action, Verb) and action.help and action.examples
        for example, _ in action.examples:
            for words in commands(example):
                action.make_context(name, words[2:], parent=click.Context(command, info_name="ha"))
    assert beo("ha", "imprt").stderr == "beo: no action 'imprt': did you mean import?\n"


@pytest.mark.parametrize(
    "check", [["mandoc", "-Tlint"], ["groff", "-ww", "-man", "-Kutf8", "-Tutf8", "-z"]], ids=lambda check: check[0]
)
def test_every_page_is_good_roff(check: list[str], tmp_path: Path) -> None:
    if not shutil.which(check[0]):
        pytest.skip(f"{check[0]} is not installed")
    for name in ("", *VERBS):
        path = tmp_path / f"{name}.1"
        path.write_text(man.page(name))
        done = subprocess.run([*check, str(path)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), name


def test_man_shows_a_page_by_man_or_without_it(tmp_path: Path) -> None:
    assert "Hand in a job" in beo("man", "submit", PATH=str(tmp_path)).stdout
    if shutil.which("man"):
        shown = re.sub(".\b", "", beo("man", "submit").stdout)
        assert "BEO-SUBMIT(1)" in shown and "hand in a job and return at once" in shown
    assert beo("man", "sumbit").stderr == "beo: no command 'sumbit': did you mean submit?\n"
    assert beo("man", "--write", "/dev/null/x").stderr.startswith("beo: can't write into /dev/null/x (not a directory)")
    both = beo("man", "--write", str(tmp_path), "submit")
    assert (both.returncode, both.stderr[:29]) == (2, "beo: --write writes all pages")


def test_what_roff_would_take_for_its_own_is_escaped() -> None:
    assert list(man._prose("'quoted' .dot a-b \\x")) == ["\\(aqquoted\\(aq .dot a\\-b \\ex"]
    assert list(man._prose(".first")) == ["\\&.first"]
