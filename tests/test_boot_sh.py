"""A box with nothing but a shell becomes a worker by one line, and the line believes nobody but the head."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from beo import machines
from beo import messages as m
from beo.boot import desk as desks
from beo.boot import runtime
from beo.boot.request import Request
from beo.config import Home
from beo.spec import JobSpec
from tests.booted import serving
from tests.cluster import Cluster, kill, running, wait_for

BUSYBOX = shutil.which("busybox") or "/bin/busybox"
NOBODY = 65_534
IN_A_BOX = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child")


def _is_static(path: str) -> bool:
    try:
        return not runtime._interpreter(Path(path))
    except Exception:
        return False


HAS_BOX = pytest.mark.skipif(
    not _is_static(BUSYBOX) or not shutil.which("unshare"),
    reason="no static busybox, or no unshare: apt-get install -y busybox-static util-linux",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("box") / "beo", workers=1, slots=1) as own:
        yield own


@pytest.fixture(scope="module")
def made(cluster: Cluster) -> runtime.Runtime:
    return runtime.current(cluster.home)


@pytest.fixture(scope="module")
def desk(cluster: Cluster) -> Iterator[str]:
    with serving(cluster.home) as address:
        yield address


def token(cluster: Cluster) -> str:
    return machines.new_token(cluster.home, "worker", 1, 600.0)[0]


def run(desk: str, words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The one line, in this very box."""
    line = f"curl -fsS http://{desk}/boot.sh | sh -s -- {words}"
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(
        ["sh", "-c", line], env=clean, capture_output=True, text=True, timeout=60, check=False, **options
    )


# ---- the runtime


@pytest.mark.slow
def test_the_same_beo_makes_the_same_archive_and_it_is_made_once(tmp_path: Path, made: runtime.Runtime) -> None:
    again = runtime.current(Home(tmp_path / "other"))
    assert again.sha256 == made.sha256, "both heads serve the same"
    path = runtime.path_of(Home(tmp_path / "other"), again.sha256)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == again.sha256
    stamp = path.stat().st_mtime_ns
    assert runtime.current(Home(tmp_path / "other")) == again and path.stat().st_mtime_ns == stamp
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, 0)}
    assert not [member.name for member in members if member.name.startswith("/") or ".." in member.name]
    path.unlink()
    assert runtime.current(Home(tmp_path / "other")).sha256 == again.sha256, "it is made anew where it is gone"


def test_the_runtime_needs_nothing_of_the_box(tmp_path: Path, cluster: Cluster, made: runtime.Runtime) -> None:
    with tarfile.open(runtime.path_of(cluster.home, made.sha256)) as archive:
        archive.extractall(tmp_path, filter="data")
    code = "import sys, zmq, msgspec, xxhash, sqlite3, ssl, ctypes, beo.worker.agent; print(sys.executable, sys.prefix)"
    done = subprocess.run([f"{tmp_path}/bin/python3", "-c", code], env={}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [f"{tmp_path}/bin/python3", str(tmp_path)], done.stderr
    maps = "print(*{line.split()[-1] for line in open('/proc/self/maps') if '.so' in line}, sep='\\n')"
    done = subprocess.run(
        [f"{tmp_path}/bin/python3", "-c", f"import zmq, ssl; {maps}"],
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    foreign = [path for path in done.stdout.split() if not path.startswith(str(tmp_path))]
    assert done.stdout and not foreign, "it uses a library of the box"


# ---- the script


@pytest.mark.parametrize("shell", ["dash -n", "bash --posix -n", f"{BUSYBOX} sh -n", "shellcheck -s sh"])
def test_the_script_is_for_every_shell(shell: str) -> None:
    program, *words = shell.split()
    beside = Path(desks.__file__).parents[2] / ".venv" / "bin" / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if not found:
        pytest.skip(f"no {program} here: apt-get install -y {Path(program).name}")
    done = subprocess.run([found, *words, str(desks.SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "usage:"),
        ("--pin", "--pin needs a value"),
        ("--pin x --token t", "--pin is no SHA-256"),
        (f"--pin {'a' * 63} --token t", "--pin is no SHA-256"),
        ("--nonsense", "'--nonsense' is no option"),
        (f"--pin {'a' * 64} --token t --dir FOLDER", "no runtime aaaa"),
        (f"--pin {'a' * 64} --token t --dir /proc/nowhere", "can't write to /proc/nowhere"),
        (f"--pin {'a' * 64} --token t --dir FOLDER --boot http://127.0.0.1:1", "no runtime aaaa"),
    ],
)
def test_each_mistake_gets_a_clear_word(desk: str, tmp_path: Path, words: str, said: str) -> None:
    done = run(desk, words.replace("FOLDER", f"{tmp_path}/w"))
    assert done.returncode and said in done.stderr, done
    assert not list((tmp_path / "w").rglob("*.gz")), "nothing half is left"


def test_a_token_that_is_none_is_told_by_the_head(desk: str, tmp_path: Path, made: runtime.Runtime) -> None:
    done = run(desk, f"--pin {made.sha256} --token beo_x --dir {tmp_path}/w")
    assert done.returncode == 2 and "this is no token" in done.stderr
    assert not (tmp_path / "w" / "cluster.json").exists()


def test_an_archive_that_is_another_is_not_unpacked(cluster: Cluster, made: runtime.Runtime, tmp_path: Path) -> None:
    """Who sits in between can send what he likes: the line names what is taken."""
    other = Home(tmp_path / "rogue")
    runtime.folder(other).mkdir(parents=True)
    shutil.copy(cluster.home.cluster_file, other.cluster_file)
    shutil.copy(runtime.path_of(cluster.home, made.sha256), runtime.path_of(other, made.sha256))
    archive = runtime.path_of(other, made.sha256)
    archive.write_bytes(archive.read_bytes()[:-1] + b"!")
    with serving(other) as rogue:
        done = run(rogue, f"--pin {made.sha256} --token t --dir {tmp_path}/w")
    assert done.returncode == 1 and "somebody is in between" in done.stderr, done
    assert not list((tmp_path / "w" / "runtime").iterdir())


@pytest.mark.parametrize("program", ["curl", "wget"])
def test_a_head_that_dies_while_it_sends_is_not_waited_for(desk: str, tmp_path: Path, program: str) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "uname", "mkdir", "rm", "sha256sum", "tar", "gzip", program):
        (tools / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name}"))
    text = urlopen(f"http://{desk}/boot.sh", timeout=10).read().decode()
    with socket.create_server(("127.0.0.1", 0)) as dying:
        dying.settimeout(20)

        def send() -> None:
            link, _ = dying.accept()
            link.recv(4_096)
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegins")
            links.append(link)  # and then nothing more is heard of it, not even that it is gone

        links: list[socket.socket] = []
        sender = threading.Thread(target=send)
        sender.start()
        words = ["--pin", "a" * 64, "--token", "t", "--dir", f"{tmp_path}/w"]
        words += ["--boot", f"http://127.0.0.1:{dying.getsockname()[1]}"]
        env = {"PATH": str(tools), "HOME": "/nonexistent", "BEO_STALL_S": "2"}
        argv = [f"{tools}/sh", "-s", "--", *words]
        done = subprocess.run(argv, input=text, env=env, capture_output=True, text=True, timeout=30, check=False)
        sender.join()
        for link in links:
            link.close()
    assert done.returncode == 1 and "is that head up" in done.stderr, done
    assert not list((tmp_path / "w" / "runtime").iterdir())


def test_the_checked_line_takes_no_other_script(cluster: Cluster, desk: str, tmp_path: Path) -> None:
    script = desks.script(cluster.home, f"http://{desk}").encode()
    cluster.home.toml.write_text(cluster.home.toml.read_text() + f"\n[boot]\nport = {desk.rpartition(':')[2]}\n")
    _, checked = machines.boot_lines(cluster.home, "t", "a" * 64, script)
    words = f" --dir {tmp_path}/w"
    done = subprocess.run(["sh", "-c", checked + words], capture_output=True, text=True, check=False)
    assert "no runtime aaaa" in done.stderr, "the script itself was taken"
    _, checked = machines.boot_lines(cluster.home, "t", "a" * 64, script.replace(b"set -eu", b"set -e"))
    done = subprocess.run(["sh", "-c", checked + words], capture_output=True, text=True, check=False)
    assert done.returncode and not done.stderr, "and another one is not even read"


def test_a_head_that_has_not_made_the_archive_yet_makes_the_same_one(
    cluster: Cluster, made: runtime.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Home(tmp_path / "other")
    calls: list[Home] = []

    def make(home: Home) -> None:
        calls.append(home)
        runtime.folder(home).mkdir(parents=True, exist_ok=True)
        shutil.copy(runtime.path_of(cluster.home, made.sha256), runtime.path_of(home, made.sha256))

    monkeypatch.setattr(runtime, "current", make)
    own = desks.Desk(other)
    for sha256, status in (("a" * 64, 404), ("b" * 64, 404), (made.sha256, 200)):
        answer = own.handle(Request("GET", f"/runtime/{sha256}", host="h"))
        assert answer and answer.status == status
    assert calls == [other], "whoever asks for nonsense makes it work once"


@pytest.mark.slow
def test_another_head_is_asked_where_one_is_away(
    cluster: Cluster, desk: str, made: runtime.Runtime, tmp_path: Path
) -> None:
    heads = f"127.0.0.1:1 {cluster.home.cluster().heads[0]}"
    done = run(desk, f"--pin {made.sha256} --token beo_x --dir {tmp_path}/w --head '{heads}'")
    assert done.returncode == 2 and "this is no token" in done.stderr
    text = token(cluster)
    done = run(desk, f"--pin {made.sha256} --token {text} --dir {tmp_path}/w --head 127.0.0.1:1")
    assert done.returncode == 69 and "nobody answers at 127.0.0.1:1" in done.stderr
    done = run(desk, f"--pin {made.sha256} --token {text} --dir {tmp_path}/w --name second --slots 1 --head '{heads}'")
    assert done.returncode == 0 and "up: second" in done.stdout, done
    subprocess.run([tmp_path / "w" / "beo", "down"], check=True, capture_output=True)
    cluster.wait_for_node("second", "lost")  # until then it is given jobs of the tests that follow


def test_beo_token_prints_the_line_and_the_one_that_checks(cluster: Cluster, made: runtime.Runtime) -> None:
    host = cluster.home.cluster().heads[0].rpartition(":")[0]
    plain, _, checked = cluster.beo("token", "--boot").stdout.splitlines()
    port = cluster.home.config().boot.port
    assert plain.startswith(f"curl -fsS http://{host}:{port}/boot.sh | sh -s -- --pin {made.sha256} --token beo_")
    digest = hashlib.sha256(desks.script(cluster.home, f"http://{host}:{port}").encode()).hexdigest()
    assert f'"{digest}  -"' in checked and plain.partition("sh -s")[2] in checked
    assert "that is for workers" in cluster.beo("token", "--boot", "--role", "admin").stderr


@pytest.mark.parametrize("host", ["", "a b", "x;reboot", "x'", "$(reboot)", "a" * 200])
def test_what_a_request_calls_the_server_is_never_a_shells_word(cluster: Cluster, host: str) -> None:
    own = desks.Desk(cluster.home)
    answer = own.handle(Request("GET", "/boot.sh", host=host))
    assert answer and answer.status == 400
    for path in ("/runtime/", "/runtime/../../keys/admin.secret", f"/runtime/{'A' * 64}", "/boot.sh/x", "/join"):
        found = own.handle(Request("GET", path, host="h"))
        assert found is None or found.status in (400, 404), path
    own.close()


# ---- boxes


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else: run it as root")
def test_a_user_without_root_becomes_a_worker_for_his_own_jobs_and_says_what_it_lacks(
    cluster: Cluster, desk: str, made: runtime.Runtime
) -> None:
    with tempfile.TemporaryDirectory(prefix="beo-box-") as folder:  # not below tmp_path, which is root's
        os.chown(folder, NOBODY, NOBODY)
        words = f"--pin {made.sha256} --token {token(cluster)} --dir {folder}/w --name plain --slots 1"
        began_s = time.monotonic()
        done = run(desk, words, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")
        print(f"one line took {time.monotonic() - began_s:.1f} s without root")
        assert done.returncode == 0, done
        assert "up: plain, 1 slot" in done.stdout and "it lacks the tree as a folder, other users, criu" in done.stdout
        assert {"tree", "users"} <= set(cluster.node("plain").facts["lacks"].split())
        argv = (
            f"{folder}/w/runtime/{made.sha256}/bin/python3",
            "-c",
            "import os; print(os.getuid(), os.environ['BEO_NODE'])",
        )
        spec = JobSpec(argv=argv, cwd="/", ranks=1)
        with cluster.client() as own:
            own.drain("node01", "")
            answer = own.request(m.Submit("of nobody", spec, NOBODY, NOBODY, ()))
            others = own.request(m.Submit("of root", spec, 0, 0, ()))
            assert isinstance(answer, m.SubmittedIs) and isinstance(others, m.SubmittedIs)
            assert cluster.wait(answer.job)[0].state == "done"
            assert cluster.output(answer.job).split() == [str(NOBODY), "plain"]
            told = "plain can't run jobs of root: its daemon doesn't run as root there"
            wait_for(lambda: told in own.show([str(others.job)])[0].why, "it is told why root's job waits")
            own.cancel([str(others.job)])
            own.resume("node01")
        down = subprocess.run(
            [f"{folder}/w/beo", "down"], user=NOBODY, capture_output=True, text=True, cwd="/", check=False
        )
        assert down.returncode == 0 and "plain is down" in down.stdout, down


@HAS_BOX
def test_an_empty_namespace_with_busybox_alone_becomes_a_worker(
    cluster: Cluster, desk: str, tmp_path: Path, made: runtime.Runtime
) -> None:
    box = tmp_path / "box"
    for name in ("bin", "dev", "proc", "tmp"):
        (box / name).mkdir(parents=True)
    (box / "dev" / "null").touch()
    shutil.copy(BUSYBOX, box / "bin" / "busybox")
    (box / "bin" / "sh").symlink_to("busybox")
    line = f"busybox wget -q -O - http://{desk}/boot.sh | sh -s -- --pin {made.sha256} --token {token(cluster)}"
    line += " --dir /tmp/w --name box --slots 1"
    inside = f"mount --bind /dev/null {box}/dev/null && mount -t proc proc {box}/proc && exec chroot {box} /bin/sh -c"
    began_s = time.monotonic()
    words = [*IN_A_BOX, "sh", "-c", f'{inside} "$0"', f"{line}; cat"]
    env = {"PATH": "/bin:/usr/bin:/sbin:/usr/sbin"}
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:

        def up() -> bool:
            assert process.poll() is None, "the box has ended"
            with cluster.client() as own:
                return any(node.name == "box" and node.state == "up" for node in own.nodes())

        wait_for(up, "the box is a worker")
        took_s = time.monotonic() - began_s
        job = cluster.submit(["/bin/busybox", "echo", "from the box"], cwd="/", ranks=2, nodes=2)
        print(cluster.wait(job)[0], f"the one line took {took_s:.1f} s in an empty box")
        assert cluster.output(job).count("from the box") == 2
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            kill([process.pid])
        for pipe in (process.stdout, process.stderr):
            assert pipe
            print(pipe.read())
            pipe.close()
