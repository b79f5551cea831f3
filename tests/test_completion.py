"""Completion: what Tab offers, in real shells, from the resident or without it."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import messages as m
from beo.cli.completion import SCRIPTS, candidates
from beo.cli.group import VERBS
from tests.cluster import ROOT
from tests.fake_head import FakeHead, view

PATIENCE_S = 20.0

# Gives the candidates for a line as bash's Tab does: the function that `complete` names, with the words divided as
# readline divides them.
ASK_BASH = """
source <(beo completion bash)
line=$1
COMP_LINE=$line COMP_POINT=${#line}
read -ra COMP_WORDS <<< "$(sed 's/=/ = /g' <<< "$line")"
[ "${line: -1}" = ' ' ] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { :; }
_beo
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHead]:
    head = FakeHead(tmp_path / "cluster")
    rows = (view(3, "running", user="bob"), view(12, "running"), view(17, "queued", name="fit"))
    node = m.NodeView("node01", "up", 2, 1, 1 << 34, (3, 4), "h:1", {}, 0.25, "i1")

    def jobs(message: object) -> object:
        assert isinstance(message, m.ListJobs)
        return m.JobsAre((view(2), *rows) if message.ended else rows)

    head.on(m.ListJobs, jobs)
    head.on(m.ListNodes, m.NodesAre((node,)))
    head.on(m.Info, m.InfoIs("c" * 32, "A", 3, "ada", "0.1.0", ""))
    monkeypatch.setenv("BEO_DIR", str(head.home.path))
    yield head
    head.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with some files, and `beo` on the PATH."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "beo"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m beo.front "$@"\n')
    script.chmod(0o755)
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "here" / "job one.sh").write_text("")
    return tmp_path / "here"


def offered(*words: str) -> list[str]:
    return [word for word, _ in candidates(words)]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}", "TERM": "dumb", "HOME": str(folder)}


def test_verbs_options_and_choices_are_offered() -> None:
    assert offered("") == list(VERBS)
    assert offered("su") == ["submit"]
    assert offered("--v") == ["--version"]
    assert offered("nonsense", "") == []
    assert offered("queue", "--j") == ["--json"]
    assert "--json" not in offered("queue", "--json", "--")
    assert "--env" in offered("submit", "--env", "A=1", "--e"), "it may be given again"
    assert offered("submit", "--requeue", "c") == ["confirm"]
    assert offered("submit", "--requeue=c") == ["--requeue=confirm"]
    assert [word for word, _ in candidates(["submit", "--requeue=c"], whole=False)] == ["confirm"]


def test_the_actions_of_a_verb_are_offered_and_their_options_and_values(head: FakeHead) -> None:
    assert "import" in offered("ha", "") and offered("ha", "imp") == ["import"]
    assert offered("ha", "--h") == ["--help"]
    assert {"--output", "--json"} <= set(offered("ha", "import", "--"))
    assert offered("ha", "import", "") == [":folders"] and offered("ha", "import", "-o", "") == [":files"]
    assert offered("ha", "nosuch", "") == []


def test_files_folders_and_programs_are_left_to_the_shell() -> None:
    assert offered("submit", "-o", "x") == [":files"]
    assert offered("submit", "--chdir=") == [":folders"]
    assert offered("run", "") == [":programs", ":files"]
    assert offered("run", "-n", "2", "python", "--v") == [":programs", ":files"], "what follows is the command's own"


def test_jobs_are_offered_with_their_names_our_own_first(head: FakeHead) -> None:
    assert list(candidates(["cancel", ""])) == [
        ("last", "the newest job"),
        ("all", "all jobs"),
        ("17", "fit, queued"),
        ("12", "pi, running"),
        ("3", "pi, running, of bob"),
    ]
    assert offered("show", "1", "") == ["last", "all", "17", "12", "3", "2"], "those that ended too, at the end"
    assert offered("events", "--job", "1") == ["17", "12"]
    assert offered("gone", "n") == ["node01"]
    assert offered("drain", "node09", "") == ["node01"]


def test_without_a_head_there_is_just_nothing_to_choose_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEO_DIR", str(tmp_path))
    assert offered("gone", "") == []
    assert offered("cancel", "") == ["last", "all"]


def test_every_parameter_is_completed_or_has_nothing_to_choose_from() -> None:
    for verb in VERBS:
        assert all("\n" not in word for word in offered(verb, "--"))
        assert "--help" in offered(verb, "--h"), verb


def bash(line: str, folder: Path) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", ASK_BASH, "bash", line], cwd=folder, env=environment(folder), capture_output=True, timeout=60
    )
    assert not done.stderr, done.stderr
    return done.stdout.decode().splitlines()


def test_bash_completes(head: FakeHead, folder: Path) -> None:
    assert bash("beo subm", folder) == ["submit"]
    assert bash("beo wait 1", folder) == ["17  fit, queued", "12  pi, running"]
    assert bash("beo wait 12", folder) == ["12"], "a single one without its description"
    assert bash("beo submit -o j", folder) == ["job one.sh"]
    assert bash("beo submit --chdir s", folder) == ["sub"]
    assert bash("beo submit --requeue=c", folder) == ["confirm"]
    assert bash("beo submit --requeue=", folder) == ["auto", "confirm", "never"]
    assert "bash" in bash("beo run bas", folder)


class Terminal:
    """A shell at a terminal, in which one can type."""

    def __init__(self, argv: list[str], folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environment(folder),
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = b""

    def type(self, text: str, until: str) -> None:
        """Type, and wait until something is shown."""
        os.write(self._ours, text.encode())
        deadline_s = time.monotonic() + PATIENCE_S
        while until.encode() not in self.shown:
            assert time.monotonic() < deadline_s, self.shown
            if select.select([self._ours], [], [], 0.1)[0]:
                self.shown += os.read(self._ours, 1 << 16)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


def test_bash_completes_at_a_terminal(head: FakeHead, folder: Path) -> None:
    terminal = Terminal(["bash", "--norc", "-i"], folder)
    try:
        terminal.type("PS1='$ '; source <(beo completion bash); echo read''y\n", "ready")
        terminal.type("beo canc\t", "beo cancel ")
        terminal.type("12\t\x01: got \x05;\n", ": got beo cancel 12 ;")
    finally:
        terminal.close()


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_completes_at_a_terminal(head: FakeHead, folder: Path) -> None:
    terminal = Terminal(["zsh", "-f", "-i"], folder)
    try:
        terminal.type("PS1='$ '; autoload -Uz compinit; compinit -u -d zdump; echo read''y\n", "ready")
        terminal.type("source <(beo completion zsh); echo next''y\n", "nexty")
        terminal.type("beo canc\t", "beo cancel ")
        terminal.type("12\t\x01: got \x05;\n", ": got beo cancel 12")
    finally:
        terminal.close()


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes(head: FakeHead, folder: Path) -> None:
    lines = ("beo cancel 1", "beo subm", "beo submit -o j")
    code = "; ".join(["beo completion fish | source", *(f"complete -C '{line}'" for line in lines)])
    done = subprocess.run(
        ["fish", "--no-config", "-c", code], cwd=folder, env=environment(folder), capture_output=True, timeout=60
    )
    assert done.stdout.decode().splitlines() == [
        "17\tfit, queued",
        "12\tpi, running",
        f"submit\t{VERBS['submit'][1]}",
        "job one.sh",
    ], done.stderr


@pytest.mark.parametrize("shell", SCRIPTS)
def test_each_script_is_printed_and_its_shell_can_read_it(shell: str, folder: Path) -> None:
    done = subprocess.run(["beo", "completion", shell], env=environment(folder), capture_output=True, timeout=60)
    assert done.stdout.decode() == SCRIPTS[shell]
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=done.stdout, capture_output=True, timeout=60)
        assert (checked.returncode, checked.stderr) == (0, b"")
