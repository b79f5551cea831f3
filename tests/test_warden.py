"""The warden: what it starts, it counts, feeds, limits, ends and cleans up, whoever dies meanwhile. Real processes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beo.worker import probe
from beo.worker.process import attach
from tests.wardens import Agent, alive, wait_for

KIND = probe.contain_kind()
PYTHON = sys.executable

pytestmark = pytest.mark.skipif(KIND == "subreaper", reason="no namespaces here: neither root nor user namespaces")

AgentMaker = Callable[..., Agent]


@pytest.fixture(scope="module", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Looks only for what these tests could have left: others work on this machine too."""
    yield
    base = str(tmp_path_factory.getbasetemp())
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if base in line]
    segments = [name for name in os.listdir("/dev/shm") if name == MARK]
    lines = subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines()
    processes = [line for line in lines if MARK in line or base in line]
    assert (mounts, segments, processes) == ([], [], [])


MARK = f"beo-mark-{os.getpid()}"
"""Stands in the arguments of every process that a test here leaves to be killed."""


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[AgentMaker]:
    agents: list[Agent] = []

    def make(kind: str = KIND) -> Agent:
        agents.append(Agent(tmp_path / f"warden{len(agents)}", kind))
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


@pytest.fixture
def agent(make_agent: AgentMaker) -> Agent:
    return make_agent()


def python(program: str) -> list[str]:
    return [PYTHON, "-I", "-S", "-c", program, MARK]


def shell(program: str) -> list[str]:
    return ["/bin/sh", "-c", program, MARK]


# -- what becomes of a rank ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("exit 0", 0, None),
        ("exit 3", 3, None),
        ("kill -9 $$", 137, "rank 0 was killed by SIGKILL"),
        ("kill -15 $$", 143, "rank 0 was killed by SIGTERM"),
    ],
)
def test_a_status_is_what_a_shell_would_say(agent: Agent, program: str, status: int, reason: str | None) -> None:
    result = agent.run(shell(program))
    assert [rank["status"] for rank in result["ranks"]] == [status]
    assert result["reason"] == reason


@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        ("no-such-program", 127, "is not in PATH"),
        ("./no/such/file", 127, "does not exist"),
        ("/etc/passwd", 126, "is not executable"),
        ("/etc", 126, "is a directory"),
    ],
)
def test_a_program_that_cannot_run_says_why_on_its_own_stderr(
    agent: Agent, program: str, status: int, words: str
) -> None:
    assert agent.run([program])["ranks"][0]["status"] == status
    complaint = agent.output(fd=2).decode()
    assert complaint.startswith("beo: node01: ") and words in complaint


def test_a_missing_interpreter_is_named_and_a_script_without_one_is_the_shells(agent: Agent, tmp_path: Path) -> None:
    for name, text in (("bad", "#!/no/such/interpreter\n"), ("plain", 'echo "$0 $1"\nexit 4\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    assert agent.run([str(tmp_path / "bad")], job=1)["ranks"][0]["status"] == 126
    assert "interpreter" in agent.output(1, fd=2).decode()
    agent.commit(1)
    assert agent.run(["./plain", "x"], job=2, cwd=str(tmp_path))["ranks"][0]["status"] == 4
    assert agent.output(2) == b"./plain x\n"


def test_a_missing_working_directory_is_an_error_of_every_rank(agent: Agent) -> None:
    result = agent.run(["true"], cwd="/no/such/folder", ranks=[0, 1], size=2)
    assert [rank["status"] for rank in result["ranks"]] == [126, 126]
    assert agent.output(fd=2).count(b"cannot enter '/no/such/folder'") == 2


def test_a_rank_gets_its_environment_its_folder_and_no_descriptor_of_ours(agent: Agent, tmp_path: Path) -> None:
    tmp = tmp_path / "tmp"
    result = agent.run(
        shell('pwd; echo "$A $B"; ls /proc/$$/fd; ps -o sid= -p $$; : > "$TMPDIR/x"; stat -c %a "$TMPDIR"'),
        cwd="/usr",
        env={"PATH": os.environ["PATH"], "A": "1", "B": "1", "TMPDIR": str(tmp)},
        env_of={"0": {"B": "\udcff2"}},
        tmp=str(tmp),
    )
    assert result["ranks"][0]["status"] == 0
    # 10 and above may be the shell's own.
    assert agent.output().split() == [b"/usr", b"1", b"\xff2", b"0", b"1", b"2", b"2", b"700"]
    assert not tmp.exists()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_ranks_of_other_users_are_theirs(agent: Agent, open_folder: Path) -> None:
    if os.getuid() != 0 or KIND != "pidns":
        pytest.skip("needs root")
    words: dict[str, Any] = {"uid": 1234, "gid": 2345, "groups": [3456]}
    words |= {"tmp": str(open_folder / "tmp"), "cwd": str(open_folder)}
    result = agent.run(shell('id -u; id -g; id -G; stat -c "%u %g" tmp; kill -9 1; exit 5'), **words)
    assert result["ranks"][0]["status"] == 5
    assert agent.output().split() == b"1234 2345 2345 3456 1234 2345".split()
    agent.commit()
    secret = open_folder / "secret"
    secret.mkdir(0o700)
    assert agent.run(["true"], job=2, **{**words, "cwd": str(secret)})["ranks"][0]["status"] == 126
    assert "cannot enter" in agent.output(2, fd=2).decode()


def test_cpu_time_and_peak_memory_of_a_rank_are_counted(agent: Agent) -> None:
    result = agent.run(python("import time\nx = b'x' * (64 << 20)\nwhile time.process_time() < 0.2: pass"))
    rank = result["ranks"][0]
    assert rank["user_s"] + rank["system_s"] >= 0.2
    assert 64 << 20 <= rank["peak_bytes"] < 256 << 20


def test_a_rank_that_fails_lets_the_others_go_on_and_one_that_is_killed_does_not(agent: Agent, tmp_path: Path) -> None:
    program = shell('[ "$R" = 0 ] && exit 3; : > "$R"; while [ ! -e go ]; do sleep 0.01; done')
    env_of = {str(rank): {"R": str(rank)} for rank in range(3)}
    agent.start(program, ranks=[0, 1, 2], size=3, env_of=env_of, cwd=str(tmp_path))
    wait_for(lambda: (tmp_path / "1").exists() and (tmp_path / "2").exists(), "ranks 1 and 2")
    wait_for(lambda: set(agent.pids()) == {"1", "2"}, "rank 0 has failed, the others go on")
    os.kill(agent.pids()["2"], signal.SIGKILL)
    result = agent.wait("ended")["result"]
    assert [rank["status"] for rank in result["ranks"]] == [3, 137, 137]
    assert (result["reason"], result["culprit"], result["status"]) == ("rank 2 was killed by SIGKILL", 2, 137)


# -- the end ---------------------------------------------------------------------------------------------------------


def test_strays_are_gone_when_the_attempt_has_ended(agent: Agent) -> None:
    program = """
import os, signal, sys, time
for i in range(200):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork():
            os._exit(0)
        for name in (0, 1, 2):
            os.close(name)
        time.sleep(1000)
os._exit(0)
"""
    agent.start(python(program))
    assert agent.wait("ended")["result"]["ranks"][0]["status"] == 0
    assert len(agent.processes()) == 2  # the keeper and PID 1


def test_a_fork_storm_does_not_outrun_the_end(agent: Agent, tmp_path: Path) -> None:
    program = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
open({str(tmp_path / "up")!r}, 'w').close()
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    try:
        if os.fork() and len(os.listdir('/proc')) > 300:
            os._exit(0)
    except OSError:
        pass
"""
    agent.start(python(program))
    wait_for((tmp_path / "up").exists, "the storm")
    agent.say("end", reason="enough", grace_s=0)
    assert agent.wait("ended")["result"]["reason"] == "enough"
    assert len(agent.processes()) == 2


def test_a_time_limit_asks_first_and_kills_then(agent: Agent) -> None:
    polite = shell("trap 'echo saved; exit 9' TERM; while :; do sleep 0.01; done")
    result = agent.run(polite, job=1, time_limit_s=0.2, grace_s=10)
    assert (result["reason"], result["ranks"][0]["status"]) == ("time limit", 9)
    assert agent.output(1) == b"saved\n"
    agent.commit(1)
    deaf = shell("trap '' TERM; while :; do sleep 0.01; done")
    result = agent.run(deaf, job=2, time_limit_s=0.1, grace_s=0.1)
    assert (result["reason"], result["ranks"][0]["status"]) == ("time limit", 137)


def test_an_end_may_be_repeated_and_a_shorter_grace_counts(agent: Agent) -> None:
    agent.start(shell("trap '' TERM; echo up; while :; do sleep 0.01; done"))
    wait_for(lambda: agent.output(), "the rank")
    agent.say("end", reason="cancelled", grace_s=1000)
    agent.say("end", reason="cancelled again", grace_s=1000)
    agent.say("end", reason="now", grace_s=0)
    assert agent.wait("ended")["result"]["reason"] == "cancelled"


def test_a_job_that_is_stopped_still_hears_its_end(agent: Agent) -> None:
    agent.start(shell("trap 'exit 7' TERM; echo up; while :; do read nothing; done"), stdin=True)
    pid = agent.pids()["0"]
    wait_for(lambda: agent.output(), "the rank")
    agent.say("signal", serial=1, signal=int(signal.SIGSTOP))
    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "T", "the stop")
    agent.say("end", reason="cancelled", grace_s=10)
    assert agent.wait("ended")["result"]["ranks"][0]["status"] == 7


def test_a_signal_is_delivered_once_however_often_it_is_told(agent: Agent) -> None:
    # Not print: the next signal may come while it writes.
    program = "import signal,os,time\nsignal.signal(10, lambda *_: os.write(1, b'got\\n'))\nprint('up', flush=True)\n"
    agent.start(python(program + "while True: time.sleep(1)"))
    wait_for(lambda: agent.output() == b"up\n", "the rank")
    for serial, count in ((1, 1), (1, 1), (2, 2), (1, 2)):
        agent.say("signal", serial=serial, signal=int(signal.SIGUSR1))
        while agent.output().count(b"got") < count:
            agent.wait("output")
    agent.say("end", reason="enough", grace_s=0)
    agent.wait("ended")
    assert agent.output().count(b"got") == 2


def test_the_folder_for_temporary_files_goes_with_all_in_it_and_nothing_beside_it(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    tmp = tmp_path / "tmp"
    program = shell(f"cd {tmp}; mkdir -p a/b/c; : > a/b/c/d; ln -s {tmp_path} a/link; ln -s /etc/passwd b; chmod 0 a/b")
    assert agent.run(program, tmp=str(tmp))["ranks"][0]["status"] == 0
    assert not tmp.exists()
    assert (tmp_path / "precious").read_text() == "x"


# -- limits ----------------------------------------------------------------------------------------------------------

GLUTTON = "import time\nx = []\nwhile True: x.append(b'x' * (4 << 20)); time.sleep(0.005)"


def test_a_memory_limit_without_a_cgroup_is_watched(agent: Agent) -> None:
    result = agent.run(python(GLUTTON), mem_bytes=100 << 20)
    assert (result["reason"], result["ranks"][0]["status"]) == ("out of memory", 137)


def test_a_memory_limit_by_cgroup_is_told_from_any_other_kill(agent: Agent) -> None:
    kind, parent = probe.memory_limit()
    if kind == "poll":
        pytest.skip("no cgroup of memory can be made here")
    cgroup = probe.make_cgroup(f"{parent}/beo-test-{os.getpid()}", 60 << 20)
    try:
        result = agent.run(python(GLUTTON), job=1, mem_bytes=60 << 20, cgroup=cgroup)
        assert (result["reason"], result["culprit"]) == ("out of memory", 0)
        assert result["ranks"][0]["status"] == 137
        agent.commit(1)
        result = agent.run(shell("kill -9 $$"), job=2, mem_bytes=60 << 20, cgroup=cgroup)
        assert result["reason"] == "rank 0 was killed by SIGKILL"
    finally:
        assert probe.remove_cgroup(cgroup)


# -- output and input ------------------------------------------------------------------------------------------------


def test_output_survives_any_number_of_agents_and_nothing_is_dropped_or_doubled(agent: Agent) -> None:
    lines = 200_000
    agent.start(python(f"for i in range({lines}): print(i)"))
    agents = 1
    while not any(m["op"] == "ended" or (m["op"] == "state" and m["phase"] == "ended") for m in agent.heard):
        agent.reattach()
        agent.wait("hello")
        state = agent.wait("state", job=1)
        assert state["spool_length"] <= (agent.folder / "1.1.spool").stat().st_size if state["spool_length"] else True
        agents += 1
        agent.poll(0.01)
    assert agents > 2
    assert agent.output() == b"".join(b"%d\n" % i for i in range(lines))


def test_a_job_that_prints_nothing_leaves_no_spool(agent: Agent) -> None:
    agent.run(["true"])
    assert not (agent.folder / "1.1.spool").exists()


def test_lines_of_several_ranks_are_not_mixed(agent: Agent) -> None:
    program = shell('for i in 1 2 3 4 5 6 7 8 9; do printf %s "$R$R"; printf \'%s\\n\' "$R$R"; done; printf end')
    env_of = {str(rank): {"R": "abcd"[rank] * 50} for rank in range(4)}
    agent.run(program, ranks=[0, 1, 2, 3], size=4, env_of=env_of)
    lines = agent.output().replace(b"end", b"").split()
    assert sorted(lines) == sorted(letter.encode() * 200 for letter in "abcd" for _ in range(9))


def test_the_beginning_of_a_line_is_not_held_for_long(agent: Agent) -> None:
    agent.start(shell("printf password:; while :; do sleep 0.01; done"), ranks=[0, 1], size=2)
    wait_for(lambda: agent.output() == b"password:" * 2, "the prompts")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)])
    yield folder
    subprocess.check_call(["umount", str(folder)])


def test_a_full_disk_makes_the_ranks_wait_and_drops_nothing(small_disk: Path) -> None:
    agent = Agent(small_disk / "warden", KIND)
    try:
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (128 << 10))
        agent.start(python("for i in range(30_000): print(i)"))
        assert agent.wait("output", stalled="No space left on device")
        agent.poll(0.5)
        assert not any(message["op"] == "ended" for message in agent.heard)
        ballast.unlink()
        agent.wait("ended")
        assert agent.output() == b"".join(b"%d\n" % i for i in range(30_000))
    finally:
        agent.close()


def test_an_attempt_that_is_killed_while_the_disk_is_full_ends_once_there_is_room(small_disk: Path) -> None:
    agent = Agent(small_disk / "warden", KIND)
    try:
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (128 << 10))
        agent.start(python("i = 0\nwhile True: print(i); i += 1"))
        agent.wait("output", stalled="No space left on device")
        agent.say("end", reason="enough", grace_s=0)
        agent.wait("output", stalled="No space left on device")  # all is dead, and the rest still waits
        ballast.unlink()
        assert agent.wait("ended")["result"]["reason"] == "enough"
        lines = agent.output().split(b"\n")[:-1]
        assert lines == [b"%d" % i for i in range(len(lines))]
        agent.commit()
        agent.wait("idle")
        assert sum(message["op"] == "ended" for message in agent.heard) == 1
    finally:
        agent.close()


def test_input_is_taken_once_however_it_is_cut_and_repeated(agent: Agent) -> None:
    agent.start(["cat"], stdin=True)
    agent.feed(0, b"hello ")
    agent.wait("stdin", have=6, closed=False)
    agent.feed(0, b"hello wo")  # told again, with more
    agent.wait("stdin", have=8)
    agent.feed(20, b"from the future")
    agent.wait("stdin", have=8)
    agent.reattach()
    assert agent.wait("state")["stdin_have"] == 8
    agent.feed(3, b"lo world\n", eof=True)
    agent.wait("ended")
    assert agent.output() == b"hello world\n"


def test_input_that_nobody_reads_is_not_taken_without_end(agent: Agent) -> None:
    data = os.urandom(1 << 20) * 3
    agent.start(shell("while [ ! -e go ]; do sleep 0.01; done; cat"), stdin=True, cwd=str(agent.folder))
    agent.feed(0, data, eof=True)
    have = agent.wait("stdin")["have"]
    assert have < len(data)
    (agent.folder / "go").touch()
    while have < len(data):
        have = agent.wait("stdin")["have"]
        agent.feed(have, data[have:], eof=True)
    agent.wait("ended")
    assert agent.output() == data


def test_only_rank_0_has_input_and_one_that_closed_it_says_so(agent: Agent) -> None:
    agent.start(
        shell('[ "$R" = 1 ] && exec cat; exec <&-; while [ ! -e go ]; do sleep 0.01; done'),
        stdin=True,
        ranks=[0, 1],
        size=2,
        env_of={"0": {"R": "0"}, "1": {"R": "1"}},
        cwd=str(agent.folder),
    )
    agent.wait("stdin", closed=True)
    agent.feed(0, b"nobody")
    agent.wait("stdin", have=0, closed=True)
    (agent.folder / "go").touch()
    assert [rank["status"] for rank in agent.wait("ended")["result"]["ranks"]] == [0, 0]


# -- agents, wardens and the leash -----------------------------------------------------------------------------------


def test_a_result_waits_for_whoever_comes_and_the_warden_takes_the_next_attempt(agent: Agent) -> None:
    assert agent.hello["fresh"]
    result = agent.run(shell("echo hi; : > /dev/shm/$0; ipcmk -Q >/dev/null"))
    agent.reattach()
    assert not agent.wait("hello")["fresh"]
    state = agent.wait("state")
    assert (state["phase"], state["job"], state["result"]) == ("ended", 1, result)
    assert state["spool_length"] == (agent.folder / "1.1.spool").stat().st_size
    agent.start(["false"], job=2)  # not before the first is committed
    assert agent.wait("state")["job"] == 1
    agent.commit()
    agent.wait("idle")
    assert not (agent.folder / "1.1.spool").exists()
    agent.start(["true"], job=1)  # never twice
    assert agent.wait("state")["phase"] == "idle"
    assert agent.run(shell("ls /dev/shm; ipcs -q | grep -c ^0x"), job=2)["ranks"][0]["status"] == 1
    assert agent.output(2) == b"0\n"


def test_the_next_attempt_may_come_with_the_news_that_the_last_is_safe(agent: Agent) -> None:
    for job in range(1, 101):
        agent.start(["/bin/sh", "-c", f"kill -{9 if job % 2 else 40} $$"], job=job)
        result = agent.wait("ended", job=job)["result"]
        assert result["reason"] == f"rank 0 was killed by {'SIGKILL' if job % 2 else 'signal 40'}"
        agent.commit(job)


def test_many_ranks_need_no_higher_limits_from_whoever_started_the_agent(make_agent: AgentMaker) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = max(map(int, os.listdir("/proc/self/fd"))) + 30  # for this process as it is, but not for the ranks' pipes
    ranks = list(range(enough))
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, limits[1]))
    try:
        agent = make_agent()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    result = agent.run(shell("echo $R"), ranks=ranks, size=len(ranks), env_of={str(r): {"R": str(r)} for r in ranks})
    assert {rank["status"] for rank in result["ranks"]} == {0}
    assert sorted(map(int, agent.output().split())) == ranks


def test_a_warden_of_several_ranks_goes_with_its_attempt(agent: Agent) -> None:
    agent.run(["true"], ranks=[0, 1], size=2)
    agent.commit()
    wait_for(agent.link.reaped, "the warden to go")
    assert not (agent.folder / "sock").exists() and attach(str(agent.folder)) is None


def test_what_is_no_message_closes_the_connection_and_nothing_else(agent: Agent) -> None:
    agent.start(shell("echo up; while :; do sleep 0.01; done"))
    wait_for(lambda: agent.output(), "the rank")
    for nonsense in (b"\xff" * 8, b"\0\0\0\2[]", b"\0\0\0\2{}", b'\0\0\0\x0e{"op":"dance"}', b"\0\0\0\4oops"):
        agent.link._connection.send(nonsense)
        wait_for(lambda: agent.link.receive() or agent.link.closed, "the warden to hang up")
        agent.reattach()
        assert agent.wait("state")["phase"] == "running"
    agent.say("end", reason="enough")
    agent.wait("ended")


def test_a_leash_that_runs_out_kills_everything_even_if_all_of_it_is_stopped(agent: Agent) -> None:
    # Put on with the start, which waits until the kernel holds it. A later one may find the keeper stopped already,
    # which is safe, since a leash is only ever made longer.
    until_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 2 * 10**9
    agent.start(shell("setsid sleep 1001 & echo up; sleep 1001"), leash_until_ns=until_ns)
    wait_for(lambda: agent.output(), "the rank")
    pids = wait_for(lambda: found if len(found := agent.processes()) == 5 else None, "all five processes")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: not alive(pids), "the leash")
    late_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - until_ns) / 1e9
    assert 0 <= late_s < 5
    wait_for(lambda: agent.poll(0.1) is not None and agent.link.closed, "the connection's end")


def test_a_leash_is_off_once_the_attempt_has_ended(agent: Agent) -> None:
    until_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 3 * 10**8
    agent.run(["true"], leash_until_ns=until_ns)
    wait_for(lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) > until_ns, "the moment")
    agent.commit()
    agent.wait("idle")


@pytest.mark.parametrize("kind", ["userns", "subreaper"])
def test_weaker_walls_hold_an_ordinary_job_too(make_agent: AgentMaker, kind: str) -> None:
    if subprocess.call([PYTHON, "-I", "-S", probe._WARDEN, "--try", kind], stderr=subprocess.DEVNULL):
        pytest.skip(f"{kind} does not work here")
    agent = make_agent(kind)
    assert agent.hello["contain"] == kind
    result = agent.run(shell("(setsid sleep 1001 &) ; echo hi; exit 3"))
    assert result["ranks"][0]["status"] == 3 and agent.output() == b"hi\n"
    assert len(agent.processes()) == 2
    agent.commit()
    until_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 3 * 10**8
    agent.start(shell("(setsid sleep 1001 &) ; echo up; sleep 1001"), job=2, leash_until_ns=until_ns)
    pids = agent.processes()
    wait_for(lambda: not alive(pids), "the leash")


@pytest.mark.root
def test_a_terminal_is_its_persons_and_tells_of_its_size(agent: Agent) -> None:
    program = "trap 'stty size; exit 9' WINCH; stat -c %u:%a $(tty); echo x > $(tty); stty size; while :; do :; done"
    person: dict[str, Any] = {"uid": 65_534, "gid": 65_534, "groups": []}
    agent.start(shell(program), stdin=True, terminal=[30, 100], **person)
    wait_for(lambda: (agent.poll(), agent.output())[1].endswith(b"30 100\r\n"), "its first words")
    assert agent.output() == b"65534:620\r\nx\r\n30 100\r\n"
    agent.say("stdin", offset=0, data="", eof=False, window=[40, 120])
    assert agent.wait("stdin")["window"] == [40, 120]
    assert agent.wait("ended")["result"]["ranks"][0]["status"] == 9
    assert agent.output() == b"65534:620\r\nx\r\n30 100\r\n40 120\r\n"


def test_a_terminal_that_hangs_up_is_a_shells_end_though_it_ignores_sigterm(agent: Agent) -> None:
    agent.start(shell("trap '' TERM; trap 'echo hung up; exit 3' HUP; echo go; while :; do :; done"), terminal=[24, 80])
    wait_for(lambda: (agent.poll(), agent.output())[1] == b"go\r\n", "its first words")
    agent.say("end", reason="ended: cancelled", grace_s=30.0)
    assert agent.wait("ended")["result"]["ranks"][0]["status"] == 3
    assert agent.output() == b"go\r\nhung up\r\n"
