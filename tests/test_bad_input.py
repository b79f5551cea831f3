"""Bad input, as a table: what somebody gives beo, and word for word what he is told. To be read as documentation.

Every line of the tables is a command that is really run, or a message that is really sent to a running head. `{home}`
is the cluster's folder and `{here}` the folder in which the command runs. An answer has the house's form
(`what (why): cure`), its exit code says whose fault it was, nothing is printed on stdout, and the head lives on.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import zmq

from beo import messages as ms
from beo import spec, wire
from beo.config import ClusterFile, Home
from beo.errors import EXIT_REFUSED, from_dict
from beo.messages import MESSAGE_SIZE_MAX_BYTES
from beo.version import GREETING
from tests.cluster import BEO, ROOT, Cluster, running, send
from tests.test_full_disk import fill, small_disk
from tests.world import World

LIMIT_S = 30  # for one command: those that give a head time to come back take 2 s of it
NOBODY = 65534
ME = pwd.getpwuid(os.geteuid()).pw_name

FORMS = "write it as 100B, 512M, 4GiB or 1.5TiB (each prefix is a power of 1024)"
TIMES = "write it as 90 (seconds), 500ms, 30s, 1h30m, 2d, 01:30:00 or 2-12:00:00"
JOBS = "use an id, 'last', a range like 1-3, or 'all'"
MEND = "mend or remove that line"
SCRIPT_HELP = "see 'beo submit --help'"


@dataclass(frozen=True)
class Case:
    """One line: the words of a command, its exit code and what it says; files are made in its folder first."""

    words: str | list[str]
    error: str
    code: int = 2
    files: dict[str, bytes] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def argv(self) -> list[str]:
        """The words one by one."""
        return self.words.split() if isinstance(self.words, str) else self.words

    def __str__(self) -> str:
        """A name for the test."""
        return " ".join(self.argv).encode("ascii", "backslashreplace").decode()[:60]


def script(text: bytes, error: str) -> Case:
    """A script `job.sh` that is submitted."""
    return Case("submit job.sh", error, files={"job.sh": text})


def in_script(lines: bytes, error: str) -> Case:
    """A script with these #BEO lines, which are at fault."""
    return script(b"#!/bin/sh\n" + lines + b"\necho\n", f"the #BEO lines of job.sh: {error}")


# ---- submissions ----------------------------------------------------------------------------------------------------

SUBMISSIONS = [
    Case("submit", "no command (a job needs a program to run): put it last: beo submit CMD ..."),
    Case(
        ["submit", ""],
        "no command (a job needs a program to run): put it last: beo submit [options] CMD ...",
    ),
    Case("run -n 2", "no command (a job needs a program to run): put it last: beo run CMD ..."),
    # numbers
    Case("submit -n 0 true", "the number of ranks is 0 (it must be from 1 to 16384): change -n"),
    Case("submit -n -1 true", "the number of ranks is -1 (it must be from 1 to 16384): change -n"),
    Case(
        f"submit -n {10**30} true",
        f"the number of ranks is {10**30} (it must be from 1 to 16384): change -n",
    ),
    Case("submit -n two true", f"invalid value for '-n' / '--ranks': 'two' is not a valid integer: {SCRIPT_HELP}"),
    Case("submit --ranks= true", f"invalid value for '-n' / '--ranks': '' is not a valid integer: {SCRIPT_HELP}"),
    Case("submit -n", f"option '-n' requires an argument: {SCRIPT_HELP}"),
    Case("submit -c 0 true", "cpus per rank is 0 (it must be from 1 to 4096): change -c"),
    Case("submit -N 5000 true", "the number of nodes is 5000 (it must be from 0 to 4096): change -N"),
    Case(
        "submit -N 3 -n 2 true",
        "3 nodes for 2 ranks (every node of a job runs one rank at least): lower -N or raise -n",
    ),
    Case("submit --priority 1001 true", "the priority is 1001 (it must be from -1000 to 1000): change --priority"),
    # sizes and times
    Case("submit --mem 4 true", f"'4' is no size (a bare number could mean bytes or MiB): {FORMS}"),
    Case("submit --mem -1G true", f"'-1G' is no size: {FORMS}"),
    Case("submit --mem lots true", f"'lots' is no size: {FORMS}"),
    Case("submit --mem 9999999999G true", "'9999999999G' is too large (the limit is 1EiB): ask for less"),
    Case(
        "submit --mem 1025T true",
        f"memory per rank is {1025 << 40} (it must be from 0 to {1 << 50}): change --mem",
    ),
    Case("submit -t soon true", f"'soon' is no duration: {TIMES}"),
    Case("submit -t -5 true", f"'-5' is no duration: {TIMES}"),
    Case("submit -t nan true", f"'nan' is no duration: {TIMES}"),
    Case("submit -t 9999d true", "'9999d' is too long (the limit is 3650d): ask for less"),
    Case("submit -t 400d true", "the time limit in seconds is 34560000 (it must be from 0 to 31622400): change -t"),
    Case(
        "submit --requeue maybe true",
        f"invalid value for '--requeue': 'maybe' is not one of 'auto', 'confirm', 'never': {SCRIPT_HELP}",
    ),
    # words
    Case(
        ["submit", "-J", "two\nlines", "true"],
        "the job's name is not usable (at most 128 printable characters): change -J",
    ),
    Case(
        ["submit", "-J", "\x1b[31mred", "true"],
        "the job's name is not usable (at most 128 printable characters): change -J",
    ),
    Case(
        ["submit", "-J", "x" * 129, "true"],
        "the job's name is not usable (at most 128 printable characters): change -J",
    ),
    Case(["submit", "a\udcffb"], r"a word of the command is not UTF-8: 'a\udcffb': name the file otherwise"),
    Case(
        ["submit", "true", "x" * 100_000, "y" * 40_000],
        "the command has 140007 bytes (the limit is 131072): pass a file instead",
    ),
    Case("submit --env X true", "--env 'X' sets nothing: write it as NAME=VALUE"),
    Case("submit --env =x true", "--env '=x' sets nothing: write it as NAME=VALUE"),
    Case(
        ["submit", "--env", "A=\udcff", "true"],
        "the variable A is not UTF-8 (beo keeps text only): rename it, or name it in a script",
    ),
    Case(
        ["submit", "--key", "a\nb", "true"],
        "the submission has no usable key (1 to 128 printable characters): use a new UUID",
    ),
    Case(["submit", "--key", "\udcff", "true"], r"'\udcff' is not UTF-8 (beo keeps text only): write it as text"),
    Case("submit --priorty 2 true", "no option '--priorty': did you mean --priority or --error?"),
    # folders
    Case("submit --chdir gone true", "no folder {here}/gone (the job would run there): make it, or change --chdir"),
    Case(
        "submit --chdir file true",
        "no folder {here}/file (the job would run there): make it, or change --chdir",
        files={"file": b""},
    ),
    Case(
        ["submit", "--chdir", "/\x1b[31mred", "true"],
        r"no folder /\x1b[31mred (the job would run there): make it, or change --chdir",
    ),
    Case(
        ["submit", "--chdir", "/" + "x" * 5_000, "true"],
        "the working directory is not a path (over 4096 bytes or a NUL in it): change --chdir",
    ),
    Case(
        ["submit", "-o", "/" + "x" * 5_000, "true"],
        "the output file is not a path (over 4096 bytes or a NUL in it): change -o",
    ),
]

# ---- scripts --------------------------------------------------------------------------------------------------------

SCRIPTS = [
    in_script(b'#BEO -J "x', "line 2 of the script: '#BEO -J \"x' (no closing quotation): close the quote"),
    in_script(
        b"#BEO -n 4\n\n#BEO -J a\\", r"line 4 of the script: '#BEO -J a\\' (no escaped character): close the quote"
    ),
    in_script(b"#BEO --rnks 4", "no option '--rnks': did you mean --ranks or --nodes?"),
    in_script(b"#BEO -n four", f"invalid value for '-n' / '--ranks': 'four' is not a valid integer: {SCRIPT_HELP}"),
    in_script(b"#BEO -n 1\n" * 101, "over 100 #BEO lines: put several options on one line"),
    in_script(b"#BEO python pi.py", "'python' is no option: the command comes below, in the script"),
    in_script(b"#BEO \x1b[31m", r"'\x1b[31m' is no option: the command comes below, in the script"),
    in_script(b"#BEO --key x", "--key belongs on the command line"),
    in_script(b"#BEO --help", "--help asks for help: leave it out"),
    script(b"#BEO -n 4\necho\n", "job.sh has #BEO lines but no '#!' line: begin it with the line '#!/bin/sh'"),
    script(
        b"\xef\xbb\xbf#!/bin/sh\n#BEO -n 4\n",
        "job.sh begins with a byte order mark (no kernel takes it for a script): save it without",
    ),
    script(
        b"#!/bin/sh\r\n#BEO -n 4\r\necho\r\n",
        r"job.sh has the line ends of Windows (no interpreter is named so): sed -i 's/\r$//' job.sh",
    ),
    script(
        b"#!/bin/sh\n#BEO -n 4\necho gr\xfcn\n",
        "job.sh has #BEO lines but is not UTF-8 (byte 27 is none): save it as UTF-8",
    ),
    script(b"#!/bin/sh\n#BEO -n 4\n\0\n", "the script has a NUL in it (it is not a text): submit the program itself"),
    script(
        b"#!/bin/sh\n#BEO -n 4\n" + b"#" * 300_000,
        "job.sh is too long for a script with #BEO lines (it has over 262144 bytes): call a program from it",
    ),
]

# ---- which job, which node, which columns ---------------------------------------------------------------------------

SELECTORS = [
    Case("show", "no job named: name one: an id, 'last', '1-3' or 'all'"),
    Case("show 0", f"'0' names no job: {JOBS}"),
    Case("show 3-1", f"'3-1' names no job: {JOBS}"),
    Case("wait 1,x", f"'x' names no job: {JOBS}"),
    Case(f"cancel {10**30}", f"'{10**30}' names no job: {JOBS}"),
    Case(["queue", "1\n2"], rf"'1\n2' names no job: {JOBS}"),
    Case(["queue", "\udcff"], rf"'\udcff' names no job: {JOBS}"),
    Case("cancel last all", "'all' stands alone (got 'last all'): name it without others"),
    Case("show 99", "no job 99 (the last one is 1): see 'beo queue --all'"),
    Case("wait 99", "no job 99 (the last one is 1): see 'beo queue --all'"),
    Case("cancel 7-9", "no job in 7-9: see 'beo queue --all'"),
    Case("logs 99", "no job 99 (the last one is 1): see 'beo queue --all'"),
    Case("logs 1 --attempt 9", "no attempt 9 of job 1 (the last one is 1): name another"),
    Case("wait 1 -t nan", f"'nan' is no duration: {TIMES}"),
    Case("gone", "missing argument 'NODE': see 'beo gone --help'"),
    Case("gone node99", "no node 'node99': did you mean node01?"),
    Case("gone node[01-02]", "no node 'node[01-02]': did you mean node01?"),
    Case("hold x", f"'x' names no job: {JOBS}"),
    Case(
        "set 1 --priority 1001",
        "invalid value for '--priority': 1001 is not in the range -1000<=x<=1000: see 'beo set --help'",
    ),
    Case("drain node9", "no node 'node9': did you mean node01?"),
    Case(
        "drain node[",
        "'node[' is no node set ('[' at character 5 cannot stand in a name): write it as head,node[01-08,11]",
    ),
    Case("forget node01", "node01 is up (only a lost node can be forgotten): stop it first", 75),
    Case("kill 1/node01", "'1/node01' names no process: write JOB/NODE/PID as 'beo ps' shows it, JOB.RANK, or JOB"),
    Case("ps --node node9", "no node 'node9': did you mean node01?"),
    Case("history --state running", "no job ends as 'running': choose from cancelled, done, failed, lost"),
    Case(
        "history --since soon",
        "'soon' is no moment: write it as 2026-11-25, '2026-11-25 17:30', today, or 2h for two hours ago",
    ),
    Case("top -d 1ms", "a delay of 1ms (it must be 200ms at least): change -d"),
    Case(["gone", "a\nb"], r"no node 'a\nb': see 'beo nodes'"),
    Case(["gone", "\udcff"], r"'\udcff' is not UTF-8 (beo keeps text only): write it as text"),
    Case("gone node01", "node01 is up (only a node that is lost can be declared off): see 'beo nodes'", 75),
    Case("queue --format nam", "no column 'nam': did you mean name?"),
    Case(["queue", "--format", "{id!r}"], "no column 'id!r': did you mean id?"),
    Case("queue --format {", "'{{' is no template: write it as '{{id}} {{name}}' or '{{id:>8}} {{name}}'"),
    Case("queue --limit 0", "invalid value for '--limit': 0 is not in the range 1<=x<=10000: see 'beo queue --help'"),
    Case("events -n 0", "invalid value for '-n': 0 is not in the range 1<=x<=1000: see 'beo events --help'"),
    Case("quue", "no command 'quue': did you mean queue or requeue?"),
    Case("--verbos", "no option '--verbos': did you mean --version?"),
    Case("info again", "got unexpected extra argument (again): see 'beo info --help'"),
    Case(
        "up --workers 9",
        "already up, with 1 worker of 2 slots: 'beo down' first, then start it as you like it",
        75,
    ),
    Case("up --workers 999", "999 workers (a machine has 1 to 200): change --workers"),
]


NO_JOB = "no job 99 (the last one is 1): see 'beo queue --all'"
NO_NODE = "no node 'node99': did you mean node01?"

OPERATING = [
    Case("hold", "no job named: name one: an id, 'last', '1-3' or 'all'"),
    Case("hold 99", NO_JOB),
    Case("hold 1", "job 1 is done (it has ended): 'beo requeue --hold' ends what runs and holds it", 75),
    Case("release 1", "job 1 is done (it has ended): 'beo requeue' queues it again", 75),
    Case("release x", f"'x' names no job: {JOBS}"),
    Case("requeue 99", NO_JOB),
    Case("set 99 --priority 5", NO_JOB),
    Case("set 1", "missing option '--priority': see 'beo set --help'"),
    Case("set 1 --priority 5", "job 1 is done (it has ended)", 75),
    Case("drain", "missing argument 'NODE...': see 'beo drain --help'"),
    Case("drain node99", NO_NODE),
    Case(
        "drain node[",
        "'node[' is no node set ('[' at character 5 cannot stand in a name): write it as head,node[01-08,11]",
    ),
    Case("resume node99", NO_NODE),
    Case("forget node99", NO_NODE),
    Case("forget node01", "node01 is up (only a lost node can be forgotten): stop it first", 75),
    Case("ps 99", NO_JOB),
    Case("ps x", f"'x' names no job: {JOBS}"),
    Case("kill", "missing argument 'ID...': see 'beo kill --help'"),
    Case("kill 99", NO_JOB),
    Case("kill -s NOPE 1", "no signal 'NOPE': see 'kill -l'"),
    Case("kill -s 99 1", "no signal 99 (signals are 1 to 64)"),
    Case(
        "history --since soon",
        "'soon' is no moment: write it as 2026-11-25, '2026-11-25 17:30', today, or 2h for two hours ago",
    ),
    Case("events -f -n 0", "invalid value for '-n': 0 is not in the range 1<=x<=1000: see 'beo events --help'"),
    Case("doctor again", "got unexpected extra argument (again): see 'beo doctor --help'"),
    Case(
        "head",
        "missing argument '{{init|join|token|leave}}'. Choose from: init, join, token, leave: see 'beo head --help'",
    ),
    Case("head token pc1", "beo head token pc1 (only 'join' and 'leave' take a head): leave it out"),
    Case("head leave --token T", "beo head leave --token (only 'join' takes one): leave it out"),
    Case("token make", "no action 'make': see 'beo token --help'"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("bad") / "beo", workers=1) as made:
        made.wait(made.submit(["true"]))
        head = made.pid("head")
        yield made
        assert made.pid("head") == head, "bad input ended the head"
        for log in made.home.logs.glob("*.log"):
            assert "Traceback" not in log.read_text(), log


def beo(*words: str, home: Path, here: Path = ROOT, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run one command; what it exits with and says."""
    own = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "BEO_DIR": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*map(os.fsencode, (*BEO, *words))],
        env={**own, **(env or {})},
        cwd=here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_S,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("case", [*SUBMISSIONS, *SCRIPTS, *SELECTORS, *OPERATING], ids=str)
def test_a_wrong_command_is_told_what_is_wrong_and_what_cures_it(cluster: Cluster, tmp_path: Path, case: Case) -> None:
    for name, content in case.files.items():
        (tmp_path / name).write_bytes(content)
    expected = case.error.format(home=cluster.home.path, here=tmp_path)
    found = beo(*case.argv, home=cluster.home.path, here=tmp_path, env=case.env)
    assert found == (case.code, "", f"beo: {expected}\n")
    assert [job.id for job in cluster.client().jobs(ended=True).jobs] == [1], "it became a job all the same"


# ---- the cluster's folder -------------------------------------------------------------------------------------------

SETTINGS = [
    (b"[worker]\nlease_s = 'x'\n", "expected `float`, got `str` - at `$.worker.lease_s`"),
    (b"[worker]\nlease_s = true\n", "expected `float`, got `bool` - at `$.worker.lease_s`"),
    (b"[worker]\nlease_s = 0\n", "expected `float` >= 0.5 - at `$.worker.lease_s`"),
    (b"[worker]\nlease_s = nan\n", "expected `float` >= 0.5 - at `$.worker.lease_s`"),
    (b"[worker]\ngrace_s = inf\n", "expected `float` <= 86400.0 - at `$.worker.grace_s`"),
    (b"[worker]\nleas_s = 1\n", "object contains unknown field `leas_s` - at `$.worker`"),
    (b"[workers]\n", "object contains unknown field `workers`"),
    (b"worker = 3\n", "expected `object`, got `int` - at `$.worker`"),
    (b"[head]\nlisten = 5\n", "expected `str`, got `int` - at `$.head.listen`"),
    (b"[head]\nqueued_max = 1.5\n", "expected `int`, got `float` - at `$.head.queued_max`"),
    (b"[head]\nqueued_max = 99999999999999999999\n", "expected `int` <= 1000000 - at `$.head.queued_max`"),
    (b"[head]\nfinished_keep_s = -1\n", "expected `float` >= 0.0 - at `$.head.finished_keep_s`"),
    (b"[head\n", "expected ']' at the end of a table declaration (at line 1, column 6)"),
    (b"[head]\n[head]\n", "cannot declare ('head',) twice (at line 2, column 6)"),
    (b"a = " + b"[" * 5_000, "maximum recursion depth exceeded"),
    (b"\0", "invalid statement (at line 1, column 1)"),
]


@pytest.mark.parametrize(("text", "why"), SETTINGS, ids=lambda value: repr(value)[:40])
def test_a_faulty_beo_toml_is_refused_by_the_name_of_its_key(tmp_path: Path, text: bytes, why: str) -> None:
    home = tmp_path / "beo"
    home.mkdir(mode=0o700)
    (home / "beo.toml").write_bytes(text)
    assert beo("up", home=home) == (2, "", f"beo: {home}/beo.toml is faulty ({why}): {MEND}\n")
    assert not (home / "cluster.json").exists()


def no_file(home: Path) -> None:
    (home / "beo.toml").mkdir()


def pipe(home: Path) -> None:
    os.mkfifo(home / "beo.toml")


def binary(home: Path) -> None:
    (home / "beo.toml").write_bytes(b"\xff\xfe")


def endless(home: Path) -> None:
    (home / "beo.toml").write_bytes(b"#" * (2 << 20))


def listens(text: str) -> Callable[[Path], None]:
    def write(home: Path) -> None:
        (home / "beo.toml").write_text(f'[head]\nlisten = "{text}"\n')

    return write


def open_to_all(home: Path) -> None:
    home.chmod(0o777)


def of_another(home: Path) -> None:
    os.chown(home, NOBODY, NOBODY)


def a_file(home: Path) -> None:
    home.rmdir()
    home.touch()


def unmakeable(home: Path) -> None:
    home.rmdir()
    home.symlink_to("/proc/nowhere/beo")  # as a folder on a disk that isn't mounted


NEWBORN: list[tuple[Callable[[Path], None], int, str]] = [
    (no_file, 2, "can't read {home}/beo.toml (it is not a file): make it a readable text"),
    (pipe, 2, "can't read {home}/beo.toml (it is not a file): make it a readable text"),
    (
        binary,
        2,
        "can't read {home}/beo.toml ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte): "
        "make it a readable text",
    ),
    (endless, 2, "{home}/beo.toml is no settings file (it has more than 1048576 bytes): move it aside"),
    (
        listens("nowhere"),
        2,
        "[head] listen is 'nowhere' (it must be HOST:PORT): write \"127.0.0.1:0\" for any port",
    ),
    (
        listens("127.0.0.1:99999"),
        2,
        "[head] listen is '127.0.0.1:99999' (it must be HOST:PORT): write \"127.0.0.1:0\" for any port",
    ),
    (open_to_all, 77, "others may write to {home} (they could replace its keys): chmod 700 {home}"),
    (of_another, 77, "{home} is another user's: set BEO_DIR to a folder of your own"),
    (a_file, 77, "can't make {home} (file exists): set BEO_DIR to a folder of your own"),
    (unmakeable, 77, "can't make {home} (file exists): set BEO_DIR to a folder of your own"),
]


@pytest.mark.root
@pytest.mark.parametrize(("spoil", "code", "error"), NEWBORN)
def test_no_cluster_is_made_in_a_folder_that_is_not_fit_for_it(
    tmp_path: Path, spoil: Callable[[Path], None], code: int, error: str
) -> None:
    home = tmp_path / "beo"
    home.mkdir(mode=0o700)
    spoil(home)
    assert beo("up", home=home) == (code, "", f"beo: {error.format(home=home)}\n")


@pytest.mark.root
def test_no_cluster_is_made_on_a_file_system_that_is_read_only_or_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 16):
        fill(disk)
        code, out, err = beo("up", home=disk / "beo")
        assert (code, out) == (1, "")
        cure = "free space there, or mend that disk"
        assert err == f"beo: can't write in {disk}/beo (no space left on device): {cure}\n"
        shutil.rmtree(disk / "beo")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, out, err = beo("up", home=disk / "beo")
        assert (code, out) == (77, "")
        assert err == f"beo: can't make {disk}/beo (read-only file system): set BEO_DIR to a folder of your own\n"


# ---- keys and cluster.json ------------------------------------------------------------------------------------------


@pytest.fixture
def copy(cluster: Cluster, tmp_path: Path) -> Home:
    """What a client needs of the cluster's folder, in another one: to be spoilt."""
    home = Home(tmp_path / "copy")
    shutil.copytree(cluster.home.keys, home.keys)
    shutil.copy(cluster.home.cluster_file, home.cluster_file)
    return home


ADMIN = "{home}/keys/admin.secret"
ASK = "ask the cluster's operator"
RESTORE = "restore it, or 'beo up' anew"

KEYS: list[tuple[str, bytes | None, int, int, str]] = [
    ("open to others", b"", 0o644, 77, f"the key {ADMIN} is open to others (mode 0644): chmod 600 {ADMIN}"),
    ("too short", b"short", 0o600, 77, f"{ADMIN} holds no key (a key has 40 characters): restore it"),
    ("empty", b"\n", 0o600, 77, f"{ADMIN} holds no key (a key has 40 characters): restore it"),
    (
        "not Z85",
        b"~" * 40,
        0o600,
        1,
        "a key is no key (it must be 40 characters of Z85): restore cluster.json and keys/ of the cluster's folder",
    ),
    (
        "not text",
        b"\xff" * 40,
        0o600,
        77,
        f"can't read the key {ADMIN} ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte): {ASK}",
    ),
    (
        "missing",
        None,
        0,
        77,
        f"the cluster in {{home}} has no door for you: ask its owner {ME}, or 'beo up' your own with another BEO_DIR",
    ),
    (
        "of another cluster",
        wire.new_keypair()[1].encode(),
        0o600,
        77,
        f"the head at {{address}} does not know this key ({ADMIN}): "
        "set BEO_DIR to the cluster that you mean, or ask its operator for a key",
    ),
]


@pytest.mark.parametrize(("content", "mode", "code", "error"), [row[1:] for row in KEYS], ids=[row[0] for row in KEYS])
def test_a_key_that_is_none_is_refused(
    cluster: Cluster, copy: Home, content: bytes | None, mode: int, code: int, error: str
) -> None:
    secret = copy.keys / "admin.secret"
    if content is None:
        secret.unlink()
    else:
        secret.write_bytes(content or secret.read_bytes())
        secret.chmod(mode)
    text = error.format(home=copy.path, address=copy.cluster().heads[0])
    assert beo("queue", home=copy.path) == (code, "", f"beo: {text}\n")


def test_a_workers_key_is_no_users(copy: Home) -> None:
    shutil.copy(copy.keys / "worker.secret", copy.keys / "admin.secret")
    for words in ("queue", "submit true", "cancel 1", "logs 1", "events", "info"):
        expected = (77, "", "beo: a worker's key can't ask for this: use a user's key\n")
        assert beo(*words.split(), home=copy.path) == expected, words


CLUSTER_FILES = [
    (b"", "input data was truncated"),
    (b"hello", "json is malformed: invalid character (byte 0)"),
    (b"[]", "expected `object`, got `array`"),
    (b"{}", "object missing required field `cluster`"),
    (b'{"cluster": 1}', "expected `str`, got `int` - at `$.cluster`"),
    (b'{"cluster": "c", "heads": [], "key": "k"}', "it names no head, or no key of one"),
    (b'{"cluster": "c", "heads": ["h:99999"], "key": "' + b"0" * 40 + b'"}', "it names no head, or no key of one"),
    (b'{"cluster": ' + b"[" * 10_000, "expected `str`, got `array` - at `$.cluster`"),
]


@pytest.mark.parametrize(("content", "why"), CLUSTER_FILES, ids=lambda value: repr(value)[:40])
def test_a_damaged_cluster_json_is_named(copy: Home, content: bytes, why: str) -> None:
    copy.cluster_file.write_bytes(content)
    assert beo("queue", home=copy.path) == (1, "", f"beo: {copy.cluster_file} is damaged ({why}): {RESTORE}\n")


# ---- a head that isn't there ----------------------------------------------------------------------------------------

CURE = "start one with 'beo up', or set BEO_DIR to the cluster that you mean"


def test_without_a_cluster_or_a_head_a_command_says_so_and_exits_69(copy: Home, tmp_path: Path) -> None:
    home = tmp_path / "none"
    error = f"beo: no cluster in {home}: make one with 'beo up', or set BEO_DIR\n"
    assert beo("queue", home=home) == (69, "", error)
    (tmp_path / "file").touch()
    error = f"beo: {tmp_path}/file is not a folder: set BEO_DIR to a cluster's folder\n"
    assert beo("queue", home=tmp_path / "file") == (69, "", error)
    copy.write_cluster(ClusterFile("c", ("127.0.0.1:1",), copy.cluster().key))
    assert beo("queue", home=copy.path) == (69, "", f"beo: no head answers at 127.0.0.1:1 (tried for 2s): {CURE}\n")


def test_a_stopped_head_is_no_head_and_what_was_submitted_to_it_may_exist(cluster: Cluster) -> None:
    head, address = cluster.pid("head"), cluster.home.cluster().heads[0]
    send([head], signal.SIGSTOP)
    try:
        found = beo("queue", home=cluster.home.path)
        assert found == (69, "", f"beo: no head answers at {address} (tried for 2s): {CURE}\n")
    finally:
        send([head], signal.SIGCONT)
    cluster.wait_for_head()


# ---- descriptors and folders of the caller --------------------------------------------------------------------------


def shell(cluster: Cluster, line: str, here: Path = ROOT) -> tuple[int, str]:
    """Run a line of shell in which $beo is beo; its exit code and all that it said on either descriptor."""
    words = f'beo="{sys.executable} -m beo.front"; {line}'
    env = {**cluster.env, "HOME": str(cluster.home.path.parent)}
    run = subprocess.run(
        ["sh", "-c", words],
        env=env,
        cwd=here,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        stdin=subprocess.DEVNULL,
    )
    return run.returncode, run.stdout + run.stderr


def test_closed_and_full_descriptors_are_borne(cluster: Cluster) -> None:
    assert shell(cluster, "$beo queue -q <&-") == (0, "")
    assert shell(cluster, "$beo queue >&-") == (1, "beo: bad file descriptor\n")
    assert shell(cluster, "$beo queue >/dev/full") == (1, "beo: no space left on device\n")
    assert shell(cluster, "$beo quue 2>&-") == (2, "")
    assert shell(cluster, "$beo quue 2>/dev/full") == (2, "")
    assert shell(cluster, "$beo quue <&- >&- 2>&-") == (2, "")


def test_a_folder_that_is_gone_is_told_before_anything_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    for verb in ("submit", "run"):
        found = shell(cluster, f'cd "{tmp_path}" && mkdir -p gone && cd gone && rmdir ../gone && $beo {verb} true')
        error = "this folder is gone (the job would run in it): go to one that is there, or use --chdir"
        assert found == (2, f"beo: {error}\n")


def test_an_environment_beyond_the_limit_is_refused_with_its_size(cluster: Cluster) -> None:
    count, size_bytes = 15, 100_000  # the kernel itself gives a process 2 MB of words and variables at most
    env = {f"V{number:02}": "x" * size_bytes for number in range(count)}
    code, out, err = beo("submit", "true", home=cluster.home.path, env=env)
    assert (code, out) == (2, "")
    what, _, rest = err.removeprefix("beo: the environment has ").partition(" bytes ")
    assert int(what) > count * size_bytes
    assert rest == "(the limit is 262144): unset what the job does not need, or start it through 'env -i'\n"


STARTS = [  # what only the node can tell: the exit code and the reason in the job's output
    ("nosuch", 127, "'nosuch' is not in PATH (/bin): install it on this node, or give its full path"),
    ("./nosuch", 127, "'./nosuch' does not exist on this node: is its folder shared?"),
    ("./folder", 126, "'./folder' is a directory"),
    ("./text", 126, "'./text' is not executable: chmod +x it, or give its interpreter"),
    ("./lost", 126, "cannot run './lost': the interpreter it names does not exist on this node"),
]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose jobs may be counted by nobody."""
    with running(tmp_path_factory.mktemp("starts") / "beo", workers=1) as made:
        yield made


@pytest.mark.parametrize(("program", "code", "error"), STARTS)
def test_a_program_that_cannot_start_says_why_in_its_output(
    second: Cluster, tmp_path: Path, program: str, code: int, error: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").touch()
    (tmp_path / "lost").write_text("#!/no/such/interpreter\n")
    (tmp_path / "lost").chmod(0o755)
    found = beo("run", "--env", "PATH=/bin", program, home=second.home.path, here=tmp_path)
    assert found == (code, "", f"beo: node01: {error}\n")


# ---- messages -------------------------------------------------------------------------------------------------------

JOB = spec.JobSpec(argv=("true",), cwd="/")


def submission(uid: int = 0, gid: int = 0, groups: tuple[int, ...] = (), key: str = "k", **words: object) -> bytes:
    """A submission that no client of ours would send."""
    return ms.encode(ms.Submit(key, msgspec.structs.replace(JOB, **words), uid, gid, groups))


def unreadable(why: str) -> str:
    """What the head says of a message that is none."""
    return f"the head can't read this message ({why}): use the head's version of beo"


NO_WORKER = f"only a worker's key can speak for a node (this key is {ME}'s): use the worker's key"
IDS = f"they are 0 to {2**32 - 2}"
ENV_CURE = "unset what the job does not need, or start it through 'env -i'"

CONTROL = [
    ("nothing", b"", unreadable("input data was truncated")),
    ("cut short", ms.encode(ms.Info())[:-1], unreadable("input data was truncated")),
    ("garbage", b"\xc1\xc1", unreadable("messagepack data is malformed: invalid opcode '\\xc1' (byte 0)")),
    (
        "more behind it",
        ms.encode(ms.Info()) + b"x",
        unreadable("messagepack data is malformed: trailing characters (byte 6)"),
    ),
    ("an unknown kind", b"\x91\xa5Hello", unreadable("invalid value 'hello' - at `$[0]`")),
    ("the other plane's", ms.encode(ms.Fetch(1, 1, 0, 0.0)), unreadable("invalid value 'fetch' - at `$[0]`")),
    ("too few words", b"\x91\xa6Signal", unreadable("expected `array` of at least length 4, got 1")),
    ("a word of the wrong type", ms.encode(ms.DeclareGone(7)), unreadable("expected `str`, got `int` - at `$[1]`")),  # type: ignore[arg-type]
    (
        "no UTF-8",
        b"\x92\xabDeclareGone\xa1\xff",
        unreadable("a text is not utf-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ),
    ("nested without end", b"\x91" * 100_000, unreadable("expected `str`, got `array` - at `$[0]`")),
    ("a worker's word", ms.encode(ms.Ping("node01", "i", 0, (), ())), NO_WORKER),
    ("no command", submission(argv=()), SUBMISSIONS[1].error),
    (
        "a NUL",
        submission(argv=("a\0b",)),
        "a word of the command has a NUL in it (no program can take one): pass a file instead",
    ),
    ("a relative folder", submission(cwd="tmp"), "the working directory 'tmp' is not an absolute path: change --chdir"),
    (
        "too many ranks",
        submission(ranks=2**62),
        f"the number of ranks is {2**62} (it must be from 1 to 16384): change -n",
    ),
    (
        "a time that is none",
        submission(time_limit_s=float("nan")),
        "the time limit in seconds is nan (it must be from 0 to 31622400): change -t",
    ),
    (
        "an impossible user",
        submission(uid=2**32),
        f"the submission has an impossible uid or gid ({IDS}): update this beo",
    ),
    (
        "an impossible group",
        submission(groups=(-1,)),
        f"the submission has an impossible uid or gid ({IDS}): update this beo",
    ),
    ("too many groups", submission(groups=(7,) * 65_537), "65537 groups (the limit is 65536): leave some of them"),
    (
        "no key",
        submission(key=""),
        "the submission has no usable key (1 to 128 printable characters): use a new UUID",
    ),
    (
        "a variable that is none",
        submission(env={"A=B": ""}),
        "'A=B' is no environment variable (a name has no '=' and no NUL): change --env",
    ),
    (
        "an environment of 1 MB",
        submission(env={"A": "x" * 1_000_000}),
        f"the environment has 1000003 bytes (the limit is 262144): {ENV_CURE}",
    ),
    (
        "a name that forges rows",
        submission(name="a\nb"),
        "the job's name is not usable (at most 128 printable characters): change -J",
    ),
    ("signal 0", ms.encode(ms.Signal(1, 0, "k")), "no signal 0 (signals are 1 to 64)"),
    ("a signal to no job", ms.encode(ms.Signal(-5, 9, "k")), "no job -5 (the last one is 1): see 'beo queue --all'"),
    ("too many jobs", ms.encode(ms.WaitJobs(tuple(range(10_001)), 0.0)), "10001 jobs at once (the limit is 10000)"),
    ("no jobs", ms.encode(ms.Cancel(())), "no job named: name one: an id, 'last', '1-3' or 'all'"),
    ("no node", ms.encode(ms.DeclareGone("\0")), r"no node '\x00': see 'beo nodes'"),
]


def no_bulk(why: str) -> str:
    """What the bulk plane says of a message that is none."""
    return f"a message that is none of the bulk plane ({why}): use the same version"


BULK = [
    ("garbage", b"\xc1", no_bulk("messagepack data is malformed: invalid opcode '\\xc1' (byte 0)")),
    ("the other plane's", ms.encode(ms.Info()), no_bulk("invalid value 'info' - at `$[0]`")),
    (
        "no job",
        ms.encode(ms.Fetch(99, 1, 0, 0.0)),
        "no job 99 (it never was, or was forgotten long after its end): see 'beo queue'",
    ),
    (
        "no cursor",
        ms.encode(ms.Fetch(1, 1, 2**62, 0.0)),
        f"no output begins at cursor {2**62} (it ends at 0): begin at cursor 0",
    ),
    (
        "before the beginning",
        ms.encode(ms.Fetch(1, 1, -1, 0.0)),
        "no output begins at cursor -1 (it ends at 0): begin at cursor 0",
    ),
    (
        "input for who reads none",
        ms.encode(ms.Stdin(1, 1, 0, b"x", False)),
        "job 1 reads no stdin: submit it with 'beo run'",
    ),
    (
        "a worker's word",
        ms.encode(ms.Chunk("node01", "i", 1, 1, 0, b"x")),
        NO_WORKER,
    ),
    (
        "a worker's hello",
        ms.encode(ms.BulkHello("node01", "i")),
        NO_WORKER,
    ),
]


@pytest.fixture(scope="module")
def planes(cluster: Cluster) -> Iterator[dict[str, wire.Connection]]:
    """A user's connection to each plane of the head."""
    context = wire.new_context()
    found = cluster.home.cluster()
    secret = cluster.home.secret("admin")
    addresses = {"control": found.heads[0], "bulk": found.bulk[0]}
    yield {name: wire.Connection(address, found.key, secret, context) for name, address in addresses.items()}
    context.destroy(linger=0)


def answer(connection: wire.Connection, body: bytes) -> str:
    """Send one message, and return the error that answers it."""
    global asked
    asked += 1
    assert connection.send(asked, body, LIMIT_S)
    while found := connection.receive(LIMIT_S):
        if found[0] == asked:
            told = msgspec.msgpack.decode(found[1])
            assert told[0] == "Failed", told
            return str(from_dict(told[1]))
    raise AssertionError("no answer")


asked = 0


@pytest.mark.parametrize(
    ("plane", "body", "error"),
    [(plane, *row[1:]) for plane, rows in (("control", CONTROL), ("bulk", BULK)) for row in rows],
    ids=[f"{plane}: {row[0]}" for plane, rows in (("control", CONTROL), ("bulk", BULK)) for row in rows],
)
def test_a_message_that_is_none_is_answered_with_what_is_wrong(
    planes: dict[str, wire.Connection], plane: str, body: bytes, error: str
) -> None:
    assert answer(planes[plane], body) == error


FRAMES = [
    ("one frame", [b"GET / HTTP/1.1"]),
    ("no body", [GREETING, bytes(8)]),
    ("a frame too many", [GREETING, bytes(8), ms.encode(ms.Info()), b""]),
    ("a request of 7 bytes", [GREETING, bytes(7), ms.encode(ms.Info())]),
    ("another program's protocol", [b"AMQP", bytes(8), ms.encode(ms.Info())]),
    ("a body beyond the limit", [GREETING, bytes(8), bytes(MESSAGE_SIZE_MAX_BYTES + 1)]),
    ("a million frames", [b""] * 100_000),
]


@pytest.mark.parametrize("plane", ["control", "bulk"])
@pytest.mark.parametrize("frames", [row[1] for row in FRAMES], ids=[row[0] for row in FRAMES])
def test_frames_that_are_none_are_dropped_and_the_next_message_is_heard(
    cluster: Cluster, plane: str, frames: list[bytes]
) -> None:
    found = cluster.home.cluster()
    with raw_socket(found, cluster.home.secret("admin"), plane) as socket:
        socket.send_multipart(frames)
        deadline_s = time.monotonic() + LIMIT_S
        socket.send_multipart([GREETING, (7).to_bytes(8), b"\xc1"])  # after it, by the same key
        while not socket.poll(200):  # again: a peer that went beyond the limit was hung up on, and connects anew
            assert time.monotonic() < deadline_s, "no answer"
            socket.send_multipart([GREETING, (7).to_bytes(8), b"\xc1"])
        told = socket.recv_multipart()
        assert told[:2] == [GREETING, (7).to_bytes(8)] and msgspec.msgpack.decode(told[2])[0] == "Failed"


def test_another_version_of_the_protocol_is_told_ours(cluster: Cluster) -> None:
    with raw_socket(cluster.home.cluster(), cluster.home.secret("admin"), "control") as socket:
        socket.send_multipart([b"beo999", bytes(8), b"\x91\xa4Info"])
        assert socket.poll(LIMIT_S * 1000) and socket.recv_multipart() == [GREETING, bytes(8), b""]


def test_a_head_of_another_version_is_named(cluster: Cluster, copy: Home) -> None:
    public, secret = wire.new_keypair()
    server = zmq.Context[zmq.Socket[bytes]]().socket(zmq.ROUTER)
    server.curve_server, server.curve_secretkey = True, secret.encode()
    port = server.bind_to_random_port("tcp://127.0.0.1")
    copy.write_cluster(ClusterFile("c", (f"127.0.0.1:{port}",), public))
    answering = threading.Thread(
        target=lambda: server.send_multipart([server.recv_multipart()[0], b"beo999", b"", b""])
    )
    answering.start()
    error = "the head speaks an unknown protocol (this is protocol 1, beo 0.1.0): install the same beo on both"
    assert beo("queue", home=copy.path) == (70, "", f"beo: {error}\n")
    answering.join()
    server.context.destroy(linger=0)


@contextmanager
def raw_socket(found: ClusterFile, secret: str, plane: str) -> Iterator[zmq.Socket[bytes]]:
    """A connection with the right key, for frames that are not ours."""
    context = zmq.Context[zmq.Socket[bytes]]()
    socket = context.socket(zmq.DEALER)
    socket.curve_serverkey = found.key.encode()
    socket.curve_publickey, socket.curve_secretkey = wire.public_of(secret).encode(), secret.encode()
    socket.connect(f"tcp://{(found.heads if plane == 'control' else found.bulk)[0]}")
    yield socket
    context.destroy(linger=0)


def test_a_message_that_is_replayed_does_nothing_twice(planes: dict[str, wire.Connection], cluster: Cluster) -> None:
    with cluster.client() as own:
        before = own.request(ms.Submit("replayed", JOB, 0, 0, ()))
        assert own.request(ms.Submit("replayed", JOB, 0, 0, ())) == before
        own.wait([before.job])  # type: ignore[attr-defined]
        assert own.request(ms.Submit("replayed", JOB, 0, 0, ())) == before, "even after it has ended"
        assert own.request(ms.Signal(1, 9, "k")) == own.request(ms.Signal(1, 9, "k")) == ms.Done()


# ---- what belongs to somebody else ----------------------------------------------------------------------------------

FOREIGN: list[tuple[ms.ClientRequest, str]] = [
    (ms.Cancel(("1",)), "job 1 belongs to ann (you are bob): ask ann, or an admin"),
    (ms.Signal(1, 9, "k"), "job 1 belongs to ann (you are bob): ask ann, or an admin"),
    (ms.Submit("of ann", JOB, 1000, 1000, ()), "this submission key is in use by another user: use a new one"),
    (ms.DeclareGone("n1"), "only an admin can do that (you are bob): ask the cluster's operator"),
]


@pytest.mark.parametrize(("message", "error"), FOREIGN, ids=lambda value: type(value).__name__)
def test_another_users_job_is_refused_by_its_owner(message: ms.ClientRequest, error: str) -> None:
    world = World()
    world.node("n1")
    world.submit("ann", "of ann")
    before = world.state.encode()
    told = world.answer(message, "bob")
    assert isinstance(told, ms.Failed)
    assert str(from_dict(told.error)) == error
    assert from_dict(told.error).exit_code == EXIT_REFUSED
    assert world.state.encode() == before


@pytest.mark.parametrize("who", ["ann", "root", "nobody"])
def test_a_node_is_spoken_for_by_a_workers_key_only(who: str) -> None:
    world = World()
    world.node("n1")
    before = world.state.encode()
    told = world.answer(ms.Ping("n1", "n1-1", 0, (), ()), who)  # type: ignore[arg-type]
    assert isinstance(told, ms.Failed) and told.error["kind"] == "Refused"
    assert world.state.encode() == before


NODES: list[tuple[dict[str, object], str]] = [
    ({"node": "a,b"}, "'a,b' is no name for a node (it stands for several): rename the node"),
    ({"node": "node[1-3]"}, "'node[1-3]' is no name for a node (it stands for several): rename the node"),
    ({"node": ""}, "'' is no name for a node (it stands for several): rename the node"),
    (
        {"node": "a b"},
        "'a b' is no node set ('b' at character 3 cannot stand in a name): write it as head,node[01-08,11]",
    ),
    (
        {"node": "x" * 254},
        f"{'x' * 80 + '…'!r} is no node name (letters, digits, '.', '_' and '-', up to 253 of them): rename the node",
    ),
    ({"slots": -1}, "n2 says impossible things of itself (over the limits): update its beo"),
    ({"slots": 2**40}, "n2 says impossible things of itself (over the limits): update its beo"),
    ({"mem_bytes": 2**60}, "n2 says impossible things of itself (over the limits): update its beo"),
    ({"incarnation": ""}, "n2 says impossible things of itself (over the limits): update its beo"),
    ({"boot": "x" * 257}, "n2 says impossible things of itself (over the limits): update its beo"),
    (
        {"facts": {str(k): "" for k in range(65)}},
        "n2 says impossible things of itself (over the limits): update its beo",
    ),
]


@pytest.mark.parametrize(("words", "error"), NODES, ids=lambda value: str(value)[:40])
def test_a_node_that_says_impossible_things_does_not_join(words: dict[str, object], error: str) -> None:
    world = World()
    join = ms.Join("n2", "i", "b", "a:1", "k", 1, 1, {}, ())
    before = world.state.encode()
    told = world.answer(msgspec.structs.replace(join, **words), "worker")  # type: ignore[arg-type]
    assert isinstance(told, ms.Failed)
    assert str(from_dict(told.error)) == error
    assert world.state.encode() == before
