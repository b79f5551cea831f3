"""Steps under real wardens: what a job's own processes start, on one node and on two with a toy relay between them."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beo.worker import launch, probe
from tests.test_warden_mpi import Cluster, statuses
from tests.wardens import PATIENCE_S, alive, wait_for

KIND = probe.contain_kind()
pytestmark = pytest.mark.skipif(KIND == "subreaper", reason="no namespaces here: neither root nor user namespaces")
PYTHON = sys.executable
ROOT = str(Path(__file__).resolve().parent.parent)

CLIENT = """
import json, os, sys
from beo.worker.caller import Caller, StepError, environment, exit_code, knock
request = {"cwd": "/", "env": environment(os.environ), "ranks": 1, "nodes": 0, "cpus": 1, "on": None, "mpi": False,
           "stdin": False, "overlap": False, **json.loads(sys.argv[1])}
try:
    ended = Caller(knock(os.environ["BEO_STEPS"])).call(request)
except StepError as error:
    print("refused:", error, flush=True)
    sys.exit(99)
if ended["reason"]:
    print("reason:", ended["reason"], flush=True)
sys.exit(exit_code(ended))
"""


class Allocation(Cluster):
    """A batch job over some nodes, each with so many slots: its script is a shell's, with STEP as a client of steps."""

    def batch(self, folder: Path, script: str, slots: int = 2, **words: Any) -> None:
        """Order the job: one process on the first node, a warden on every node."""
        names = list(self.agents)
        (folder / "client.py").write_text(CLIENT)
        env = {**os.environ, "PYTHONPATH": ROOT, "STEP": f"{PYTHON} {folder}/client.py", "SHELL_TRACE": ""}
        parts = [launch.Part(name, () if n else (0,), slots, "127.0.0.1") for n, name in enumerate(names)]
        attempt = launch.Attempt(1, 1, ["sh", "-c", script], "/", env, 1, parts, ",".join(names), batch=True)
        nonce = secrets.token_hex(8)
        for name, agent in self.agents.items():
            tmp = folder / f"tmp-{name}"
            shutil.rmtree(tmp, ignore_errors=True)
            message = launch.start_message(attempt, launch.Facts("test", name, "lo", tmp=str(tmp)), nonce)
            agent.link.send({**message, "grace_s": 0.2, **words})


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Allocation]:
    yield from _allocation(tmp_path, 1)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Allocation]:
    yield from _allocation(tmp_path, 2)


def _allocation(folder: Path, nodes: int) -> Iterator[Allocation]:
    allocation = Allocation(folder, nodes)
    yield allocation
    for agent in allocation.agents.values():
        agent.close()


def run(argv: list[str], **words: Any) -> str:
    """The script's words for running a step."""
    return f"$STEP '{json.dumps({'argv': argv, **words})}'"


def test_a_step_runs_on_the_slots_of_the_job_and_its_output_and_code_come_back(one: Allocation, tmp_path: Path) -> None:
    one.batch(tmp_path, run(["sh", "-c", "echo rank $BEO_RANK of $BEO_SIZE; exit 3"], ranks=2) + "; echo code $?")
    (result,) = one.results()
    lines = one.output().decode().splitlines()
    assert sorted(lines) == ["code 3", "rank 0 of 2", "rank 1 of 2"] and lines[-1] == "code 3"
    assert statuses([result]) == [0]
    assert [(rank["step"], rank["rank"], rank["status"]) for rank in result["steps"]] == [(1, 1, 3), (1, 2, 3)]


def test_a_step_spreads_over_the_nodes_of_the_job(two: Allocation, tmp_path: Path) -> None:
    two.batch(tmp_path, run(["sh", "-c", "echo $BEO_RANK $BEO_LOCAL_RANK $BEO_NODE"], ranks=4) + "; echo code $?")
    results = two.results()
    lines = two.output().decode().splitlines()
    assert sorted(lines[:-1]) == ["0 0 node01", "1 1 node01", "2 0 node02", "3 1 node02"] and lines[-1] == "code 0"
    assert [len(result["ranks"]) for result in results] == [1, 0]
    assert [[rank["rank"] for rank in result["steps"]] for result in results] == [[1, 2], [3, 4]]
    assert not any(result["reason"] for result in results)


def test_several_steps_share_the_slots_and_who_finds_none_free_waits(two: Allocation, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    step = run(["sh", "-c", f"echo + >> {trace}; sleep 0.2; echo - >> {trace}"], ranks=2)
    two.batch(tmp_path, f"for i in 1 2 3 4; do {step} & done; wait; echo all", slots=1)
    results = two.results()
    assert two.output() == b"all\n"
    alive_at_once, most = 0, 0
    for line in trace.read_text().split():
        alive_at_once += 1 if line == "+" else -1
        most = max(most, alive_at_once)
    assert most == 2, "never more ranks than slots, and no slot idle for ever"
    numbers = sorted(rank["rank"] for result in results for rank in result["steps"])
    assert numbers == list(range(1, 9))
    assert {rank["step"] for result in results for rank in result["steps"]} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"ranks": 5}, "refused: the step needs 5 slots (the job has 4 slots on 2 nodes): ask for less"),
        ({"on": ["nodeX"]}, "refused: nodeX is no node of this job: it has node01, node02"),
        ({"ranks": 0}, "refused: ranks must be a whole number from 1 to 16384"),
        ({"argv": []}, "refused: no command (a step needs a program to run)"),
        ({"argv": ["a\0b"]}, "refused: argv is no list of text"),
        ({"argv": ["x" * 200_000]}, "refused: argv is too long (the limit is 131072 bytes)"),
        ({"cwd": "here"}, "refused: the working directory is no absolute path"),
        ({"env": {"A=B": "c"}}, "refused: the environment has what can't be in one"),
        ({"ranks": 1, "nodes": 2}, "refused: 2 nodes for 1 ranks (each runs one at least): lower -N"),
    ],
)
def test_what_can_not_be_is_refused_with_the_cure(
    two: Allocation, tmp_path: Path, words: dict[str, Any], text: str
) -> None:
    (tmp_path / "request").write_text(json.dumps({"argv": ["true"], **words}))
    (tmp_path / "large.py").write_text(CLIENT.replace("sys.argv[1]", f"open('{tmp_path}/request').read()"))
    two.batch(tmp_path, f"{PYTHON} {tmp_path}/large.py; echo code $?; {run(['echo', 'fine'])}")
    two.results()
    output = two.output().decode()
    assert output.startswith(text), output
    assert output.endswith("code 99\nfine\n"), "and the next step is none the worse for it"


def test_a_step_gets_its_input_and_the_job_its_own(one: Allocation, tmp_path: Path) -> None:
    text = "".join(f"line {n}\n" for n in range(40_000))
    (tmp_path / "text").write_text(text)
    one.batch(tmp_path, run(["cat"], stdin=True) + f" < {tmp_path}/text | cmp - {tmp_path}/text && echo same")
    one.results()
    assert one.output() == b"same\n", one.output()


def test_input_finds_the_rank_on_another_node(two: Allocation, tmp_path: Path) -> None:
    two.batch(tmp_path, "echo hello | " + run(["sh", "-c", "cat; echo $BEO_NODE"], on=["node02"], stdin=True))
    two.results()
    assert two.output() == b"hello\nnode02\n"


@pytest.mark.parametrize("seed", range(3))
def test_no_line_of_a_step_is_lost_or_doubled_over_agents_that_forget_and_repeat(tmp_path: Path, seed: int) -> None:
    allocation = Allocation(tmp_path, 2, random.Random(seed))
    try:
        lines = ["sh", "-c", "i=0; while [ $i -lt 300 ]; do echo $BEO_RANK $i; i=$((i+1)); done; exit $BEO_RANK"]
        allocation.batch(tmp_path, run(lines, ranks=2, nodes=2) + "; echo code $?", slots=1)
        results = allocation.results()
        found = allocation.output().decode().splitlines()
        for rank in "01":
            assert [line for line in found if line.startswith(f"{rank} ")] == [f"{rank} {n}" for n in range(300)]
        assert found[-1] == "code 1"
        assert [rank["status"] for result in results for rank in result["steps"]] == [0, 1]
    finally:
        for agent in allocation.agents.values():
            agent.close()


def test_agents_that_come_and_go_lose_no_line_of_a_step(two: Allocation, tmp_path: Path) -> None:
    lines = ["sh", "-c", "i=0; while [ $i -lt 100 ]; do echo $BEO_NODE $i; i=$((i+1)); sleep 0.01; done"]
    two.batch(tmp_path, run(lines, ranks=2, nodes=2) + "; echo code $?", slots=1)
    two.until_printed(b"node02 5\n", 1)
    for name in ("node02", "node01", "node02"):
        two.agents[name].reattach()
        for _ in range(20):
            two.relay()
    two.results()
    found = two.output().decode().splitlines()
    for name in ("node01", "node02"):
        assert [line for line in found if line.startswith(name)] == [f"{name} {n}" for n in range(100)]
    assert found[-1] == "code 0"


def test_a_slow_reader_slows_the_ranks_down_and_memory_stays_small(two: Allocation, tmp_path: Path) -> None:
    """64 MiB of a rank on another node go to a client that reads one MiB, waits, and then reads the rest."""
    client = """
import os, sys, time
from beo.worker.caller import knock
from beo.worker.frames import Frames, frame
from binascii import a2b_base64
door = knock(os.environ["BEO_STEPS"])
door.sendall(frame({"op": "run", "argv": ["sh", "-c", "yes 0123456789abcdef | head -c 67108864"], "cwd": "/",
    "env": dict(os.environ), "ranks": 1, "on": ["node02"], "mpi": False}))
frames, size, waited, ended = Frames(), 0, False, None
while not ended:
    for message in frames.feed(door.recv(65536)):
        if message["op"] == "output":
            size += len(a2b_base64(message["data"]))
        if message["op"] == "ended":
            ended = message
    if size > 1 << 20 and not waited:
        waited = True
        print("waits", flush=True)
        time.sleep(1)
print("size", size, [rank["status"] for rank in ended["ranks"]], flush=True)
"""
    (tmp_path / "slow.py").write_text(client)
    two.batch(tmp_path, f"{PYTHON} {tmp_path}/slow.py")
    two.until_printed(b"waits", 1)
    peak_kb = 0
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        two.relay()
        for agent in two.agents.values():
            status = Path(f"/proc/{agent.hello['pid']}/status").read_text()
            peak_kb = max(peak_kb, int(status.partition("VmRSS:")[2].split()[0]))
            agent.heard = [message for message in agent.heard if message["op"] != "peer"] or agent.heard
            two._carried[agent.node] = len(agent.heard)
    assert peak_kb < 40_000, "some windows of 256 KiB, and not 64 MiB"
    two.results()
    assert two.output().decode().splitlines()[-1] == "size 67108864 [0]"
    assert peak_kb > 0


def test_a_client_that_hangs_up_takes_its_step_along(two: Allocation, tmp_path: Path) -> None:
    stray = f"(setsid sleep 1002.{os.getpid()} &) ; exec sleep 1001.{os.getpid()}"
    step = run(["sh", "-c", f"echo up; {stray}"], ranks=4)
    os.mkfifo(tmp_path / "fifo")
    two.batch(tmp_path, f"{step} & client=$!; read word < {tmp_path}/fifo; kill -9 $client; echo killed; sleep 1000")
    two.until_printed(b"up\n", 4)
    sleepers = wait_for(lambda: found if len(found := _named(f".{os.getpid()}")) == 8 else None, "ranks and strays")
    (tmp_path / "fifo").write_text("go\n")

    def gone() -> bool:
        two.relay()
        return not alive(sleepers)

    wait_for(gone, f"{sleepers} to be gone")
    assert two.output().endswith(b"killed\n")

    def told() -> bool:
        two.relay()
        return [bool(agent.pids()) for agent in two.agents.values()] == [True, False]

    wait_for(told, "the script alone is told to run")
    for agent in two.agents.values():
        agent.say("end", reason="enough", grace_s=0)
    results = two.results()
    assert [rank["status"] for result in results for rank in result["steps"]] == [137] * 4


def _named(word: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[-2].endswith(word.encode()):
                found.append(int(path.parent.name))
        except (OSError, IndexError):
            continue
    return found


def test_a_signal_goes_to_every_rank_of_the_step(two: Allocation, tmp_path: Path) -> None:
    program = "trap 'echo got $BEO_RANK; exit 7' USR1; echo up; while :; do sleep 0.01; done"
    client = CLIENT.replace("try:", "import signal\ntry:", 1).replace(
        'ended = Caller(knock(os.environ["BEO_STEPS"])).call(request)',
        'caller = Caller(knock(os.environ["BEO_STEPS"])); caller.take_over([signal.SIGUSR1]); '
        "ended = caller.call(request)",
    )
    (tmp_path / "signals.py").write_text(client)
    request = json.dumps({"argv": ["sh", "-c", program], "ranks": 2, "nodes": 2})
    (tmp_path / "request").write_text(request)
    script = (
        f'{PYTHON} {tmp_path}/signals.py "$(cat {tmp_path}/request)" & read w < {tmp_path}/fifo; kill -USR1 $!; wait $!'
    )
    os.mkfifo(tmp_path / "fifo")
    two.batch(tmp_path, script + "; echo code $?")
    two.until_printed(b"up\n", 2)
    (tmp_path / "fifo").write_text("go\n")
    two.results()
    assert sorted(two.output().decode().splitlines()[2:]) == ["code 7", "got 0", "got 1"]


def test_a_killed_rank_ends_its_step_on_every_node_and_the_job_goes_on(two: Allocation, tmp_path: Path) -> None:
    program = ["sh", "-c", "[ $BEO_RANK = 3 ] && kill -9 $$; sleep 1000"]
    two.batch(tmp_path, run(program, ranks=4) + "; echo code $?")
    results = two.results()
    assert two.output() == b"reason: rank 3 was killed by SIGKILL\ncode 137\n"
    assert [rank["status"] for result in results for rank in result["steps"]] == [137] * 4
    assert [(result["reason"], statuses([result])) for result in results] == [(None, [0]), (None, [])]


def test_the_end_of_the_script_ends_the_job_with_all_its_steps(two: Allocation, tmp_path: Path) -> None:
    step = run(["sh", "-c", f"echo up; exec sleep 1003.{os.getpid()}"], ranks=4)
    os.mkfifo(tmp_path / "fifo")
    two.batch(tmp_path, f"{step} & read word < {tmp_path}/fifo; exit 5")
    two.until_printed(b"up\n", 4)
    assert len(_named(f"1003.{os.getpid()}")) == 4
    (tmp_path / "fifo").write_text("go\n")
    results = two.results()
    assert not _named(f"1003.{os.getpid()}")
    assert [(result["reason"], statuses([result])) for result in results] == [(None, [5]), (None, [])]
    assert not (tmp_path / "tmp-node01").exists() and not (tmp_path / "tmp-node02").exists()


def test_the_loss_of_one_node_is_the_end_on_the_others(two: Allocation, tmp_path: Path) -> None:
    two.batch(tmp_path, "echo up; sleep 1000")
    two.until_printed(b"up\n", 1)
    two.agents["node02"].say("end", reason="silence: node01 is silent", grace_s=0)
    results = two.results()
    assert [result["reason"] for result in results] == ["silence: node01 is silent"] * 2
    assert statuses(results) == [137]


def test_a_program_that_is_not_there_is_told_and_is_the_steps_own_failure(one: Allocation, tmp_path: Path) -> None:
    one.batch(tmp_path, run(["/no/such"]) + "; echo code $?; " + run(["true"]) + "; echo code $?")
    one.results()
    assert b"'/no/such' does not exist on this node" in one.agents["node01"].output(fd=2)
    assert one.output() == b"code 127\ncode 0\n"


def test_what_is_outside_of_the_job_gets_no_step(one: Allocation, tmp_path: Path) -> None:
    one.batch(tmp_path, "echo up; sleep 1000")
    one.until_printed(b"up\n", 1)
    env = {**os.environ, "PYTHONPATH": ROOT, "BEO_STEPS": str(tmp_path / "tmp-node01" / ".beo-steps")}
    done = subprocess.Popen(
        [PYTHON, str(tmp_path / "client.py"), json.dumps({"argv": ["true"]})],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = done.communicate(timeout=4 * PATIENCE_S)
    assert done.returncode == 99
    assert output.startswith("refused: this process is no part of the job (it runs outside of the job's walls)")


def test_a_job_of_one_rank_and_one_slot_has_no_door_and_one_with_room_has(one: Allocation, tmp_path: Path) -> None:
    agent = one.agents["node01"]
    for job, more, expected in ((1, 0, b"none\n"), (2, 1, b"door\n")):
        part = launch.Part("node01", (0,), more)
        argv = ["sh", "-c", '[ -S "$BEO_STEPS" ] && echo door || echo none']
        attempt = launch.Attempt(job, 1, argv, "/", dict(os.environ), 1, [part], "node01")
        tmp = str(tmp_path / "tmp")
        agent.link.send(launch.start_message(attempt, launch.Facts("test", "node01", "lo", tmp=tmp), str(job)))
        agent.wait("ended", job=job)
        assert agent.output(job) == expected
        agent.commit(job)


HOSTILE = """
import json, os, random, socket, sys, time
from beo.worker.frames import frame
chance = random.Random(int(sys.argv[1]))
def knock():
    door = socket.socket(socket.AF_UNIX)
    door.connect(os.environ["BEO_STEPS"])
    door.settimeout(0.1)
    return door
run = {"op": "run", "argv": ["sleep", "0.01"], "cwd": "/", "env": {}, "ranks": 1, "mpi": False}
odd = [None, -1, 0, 1 << 70, 1.5, "", "x" * 70_000, [], [None], {}, {"a": 1}, True, "\\0", "\\ud800", ["\\ud800"],
       [["a"]], "node01", ["node01"], 3, float("inf")]
def thing():
    kind = chance.randrange(8)
    if kind == 0:
        return chance.randbytes(chance.randrange(200))
    if kind == 1:
        return (chance.choice([1 << 31, 1 << 24, 5, 0])).to_bytes(4, "big") + b"{}" * chance.randrange(5)
    if kind == 2:
        return frame(chance.choice([{}, {"op": "run"}, {"op": 7}, {"op": ["run"]}, {"step": "ask"}, {"op": "ended"}]))
    if kind == 3:
        return frame(run)[: chance.randrange(40)]
    words = {**run, **{chance.choice(sorted(run) + ["on", "nodes", "cpus", "stdin", "overlap"]): chance.choice(odd)}}
    first = frame(words if chance.random() < 0.8 else run)
    later = {"op": chance.choice(["stdin", "signal", "run", "output", None]), "offset": chance.choice(odd),
             "data": chance.choice(odd), "signal": chance.choice(odd), "eof": chance.choice(odd)}
    return first + (frame(later) if kind > 5 else b"")
doors = []
for turn in range(150):
    try:
        door = knock()
        door.sendall(thing())
        if chance.random() < 0.3:
            door.recv(65536)
        doors.append(door) if chance.random() < 0.3 else door.close()
    except OSError:
        pass
    if len(doors) > 40:
        doors.pop(chance.randrange(len(doors))).close()
for door in doors:
    door.close()
print("done", flush=True)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_hostile_client_harms_nobody_but_its_own_steps(two: Allocation, tmp_path: Path, seed: int) -> None:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    after = run(["sh", "-c", "echo fine $BEO_NODE"], ranks=4)
    two.batch(tmp_path, f"{PYTHON} {tmp_path}/hostile.py {seed}; {after}; echo code $?")
    results = two.results()
    lines = two.output().decode().splitlines()
    assert lines[0] == "done" and lines[-1] == "code 0"
    assert sorted(lines[1:-1]) == ["fine node01"] * 2 + ["fine node02"] * 2
    assert [result["reason"] for result in results] == [None, None]
    for agent in two.agents.values():
        assert "Traceback" not in agent.log() and "no message" not in agent.log(), agent.log()


def test_more_clients_than_the_door_takes_are_told_so(one: Allocation, tmp_path: Path) -> None:
    client = """
import os, socket
from beo.worker.door import CLIENTS_MAX
from beo.worker.frames import Frames
doors = [socket.socket(socket.AF_UNIX) for _ in range(CLIENTS_MAX + 1)]
for door in doors:
    door.connect(os.environ["BEO_STEPS"])
[message] = Frames().feed(doors[-1].recv(65536))
print(message["op"], message["what"], flush=True)
"""
    (tmp_path / "many.py").write_text(client)
    two_steps = run(["echo", "fine"])
    one.batch(tmp_path, f"ulimit -n 2000; {PYTHON} {tmp_path}/many.py; {two_steps}")
    one.results()
    assert one.output() == b"refused too many steps at once\nfine\n", one.agents["node01"].output(fd=2)


def test_the_leash_ends_the_steps_too(two: Allocation, tmp_path: Path) -> None:
    mark = f"1004.{os.getpid()}"
    two.batch(tmp_path, run(["sh", "-c", f"echo up; exec sleep {mark}"], ranks=4) + "; echo over")
    two.until_printed(b"up\n", 4)
    agent = two.agents["node02"]
    agent.say("leash", until_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 100_000_000)
    wait_for(lambda: not alive([agent.keeper, agent.hello["pid"]]), "the leash to end node02's part")
    wait_for(lambda: len(_named(mark)) == 2, "only node01's ranks are left")
    two.agents["node01"].say("end", reason="silence: node02 is silent", grace_s=0)
    two.agents["node01"].wait("ended")
    assert not _named(mark)


def test_the_lead_does_not_wait_for_the_word_of_a_node_that_has_ended_and_gone(two: Allocation, tmp_path: Path) -> None:
    two.batch(tmp_path, "true")
    lead, other = two.agents["node01"], two.agents["node02"]

    def other_ended() -> bool:
        two.relay()
        return any(message["op"] == "ended" for message in other.heard)

    carry = two._carry
    two._carry = lambda to, message: None if message["op"] == "peer_ack" and to == "node01" else carry(to, message)  # type: ignore[method-assign]
    wait_for(other_ended, "the other node to end")
    lead.say("end", reason="silence: node02 is silent", grace_s=0)
    result = lead.wait("ended")["result"]
    assert (result["reason"], statuses([result])) == (None, [0]), "the job had ended well"


SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.mark.skipif(KIND != "pidns" or not os.path.exists(SYSTEM_PYTHON), reason="needs root and a python for all")
def test_the_steps_of_another_users_job_are_his() -> None:
    folder = Path(tempfile.mkdtemp(prefix="beo-steps-", dir="/tmp"))  # pytest's own is closed to others
    folder.chmod(0o755)
    shutil.copytree(Path(ROOT) / "beo", folder / "beo", ignore=shutil.ignore_patterns("__pycache__"))
    allocation = Allocation(folder / "nodes", 2)
    try:
        (folder / "nodes").chmod(0o755)
        env_root = f"PYTHONPATH={folder} {SYSTEM_PYTHON} {folder}/nodes/client.py"
        script = run(["sh", "-c", "id -u; id -g"], ranks=2, nodes=2).replace("$STEP", env_root)
        allocation.batch(folder / "nodes", script + "; echo code $?", uid=65534, gid=65534)
        allocation.results()
        assert allocation.output() == b"65534\n" * 4 + b"code 0\n", allocation.agents["node01"].output(fd=2)
    finally:
        for agent in allocation.agents.values():
            agent.close()
        shutil.rmtree(folder)
