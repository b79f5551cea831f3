"""The bulk plane beside nginx: the same files by the same client, in turn; and small files in packs beside one by one.

Everything lies in memory (/dev/shm), goes over the loopback, and shares this machine's cores. Without nginx only beo is
measured: ``apt-get install -y nginx-light``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from beo import birth
from beo.bulk import chunks, tickets, words
from beo.bulk.fetching import Line
from beo.bulk.holdings import Holdings
from beo.bulk.serving import listen
from beo.bulk.tickets import Request
from beo.bulk.unpacking import Unpacking
from beo.bulk.words import HEAD, Source, name_of
from beo.config import Home
from beo.tree.store import object_path
from tests.bench import stage
from tests.bench.table import Row

REPEATS = 5
CHUNKS = 64  # of 4 MiB each
ROUNDS = 12  # that each is fetched in one sample: 3.2 GB
LANES = 6
SMALL_FILES, SMALL_BYTES = 20_000, 1_000
EXPIRES_S = 1 << 40
CHILD_S = 300.0
PIECE_BYTES = 1 << 20
GB = 1e9

NGINX = """
daemon off; worker_processes 1; pid {0}/pid; error_log stderr crit;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 10000000;
  client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u;
  scgi_temp_path {0}/s;
  server {{ listen {1}; root {2}; }}
}}
"""


def bulk(_: Path) -> Iterator[Row]:
    """All of it."""
    program = shutil.which("nginx")
    if not program:
        print("nginx is not measured: apt-get install -y nginx-light", file=sys.stderr)
    with ExitStack() as stack:
        ram = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="beo-bench-")))
        made = {words.digest(data): data for data in (os.urandom(words.CHUNK_MAX_BYTES) for _ in range(CHUNKS))}
        small = ram / "small"
        packed = _pack(ram, small)
        beo = stack.enter_context(_beo(ram, {**made, **packed}))
        nginx = stack.enter_context(_nginx(ram, program, {**made, **packed}, small)) if program else None
        yield from _large(beo, nginx, list(made))
        yield from _small(ram, beo, nginx, list(packed))


# ---- servers


class _Served:
    def __init__(self, kind: str, address: str, pids: list[int], key: bytes, inos: dict[str, int]) -> None:
        self.kind, self.address, self.key, self.inos = kind, address, key, inos
        self._pids = pids

    def cpu_s(self) -> float:
        """What the server has used."""
        return sum(map(stage.cpu_s, self._pids))

    def run(self, what: str, names: list[str], *words: str) -> tuple[float, float]:
        """Let a client of its own fetch these; return the seconds and the CPU-seconds that it took."""
        task: dict[str, object] = {"kind": self.kind, "address": self.address, "key": self.key.hex(), "what": what}
        task |= {"names": names, "inos": [self.inos.get(name, 0) for name in names], "words": words}
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.bulk"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            cwd=stage.ROOT,
            timeout=CHILD_S,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        took_s, cpu_s = json.loads(done.stdout)
        return took_s, cpu_s


@contextmanager
def _beo(ram: Path, made: dict[str, bytes]) -> Iterator[_Served]:
    home = Home(ram / "beo")
    birth.make_folder(home)
    birth.make_cluster(home)
    inos = {name: number for number, name in enumerate(made, 2)}
    for name, ino in inos.items():
        path = object_path(home.head / "tree" / "objects", ino)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[name])
    listener = listen("127.0.0.1")
    listener.listen(64)
    words = [sys.executable, "-m", "beo.bulk.head", str(listener.fileno())]
    env = dict(os.environ, BEO_DIR=str(home.path))
    process = subprocess.Popen(words, env=env, cwd=stage.ROOT, pass_fds=[listener.fileno()])
    try:
        address = "{}:{}".format(*listener.getsockname())
        key = tickets.server_key(tickets.master_key(home.secret("head")), HEAD)
        yield _Served("beo", address, [process.pid], key, inos)
    finally:
        process.terminate()
        process.wait(10)
        listener.close()


@contextmanager
def _nginx(ram: Path, program: str, made: dict[str, bytes], small: Path) -> Iterator[_Served]:
    root = ram / "www"
    root.mkdir()
    for name, data in made.items():
        (root / name).write_bytes(data)
    (root / "small").symlink_to(small)
    with listen("127.0.0.1") as free:
        address = "{}:{}".format(*free.getsockname())
    config = ram / "nginx.conf"
    config.write_text(NGINX.format(ram, address, root))
    for folder in (ram, root, small):
        folder.chmod(0o755)  # its worker is nobody, where root has started it
    process = subprocess.Popen([program, "-c", str(config), "-p", str(ram)])
    try:
        deadline_s = time.monotonic() + 10
        while not (workers := _children(process.pid)) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        time.sleep(0.3)
        yield _Served("nginx", address, [process.pid, *workers], b"", {})
    finally:
        process.terminate()
        process.wait(10)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ---- what is measured


def _large(beo: _Served, nginx: _Served | None, names: list[str]) -> Iterator[Row]:
    server = Row("CPU of the server for 1 GB of chunks of 4 MiB", "s", "nginx", "1.5 ×")
    both = Row("the same, MB for each CPU-second of server and client together", "MB/s", "nginx")
    wall = Row(f"the same, over {LANES} connections", "MB/s", "nginx")
    kept = Row("CPU of a node for 1 GB that it verifies and keeps", "s")
    size = len(names) * words.CHUNK_MAX_BYTES * ROUNDS
    for _ in range(REPEATS):
        for served, samples in ((beo, "beo"), (nginx, "bare")):
            if served is None:
                continue
            before_s = served.cpu_s()
            took_s, client_s = served.run("drop", names * ROUNDS)
            server_s = served.cpu_s() - before_s
            getattr(server, samples).append(server_s / (size / GB))
            getattr(both, samples).append(size / 1e6 / (server_s + client_s))
            getattr(wall, samples).append(size / 1e6 / took_s)
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="beo-bench-") as folder:
            _, client_s = beo.run("keep", names, folder)
            kept.beo.append(client_s / (len(names) * words.CHUNK_MAX_BYTES / GB))
    yield from (server, both, wall, kept)


def _small(ram: Path, beo: _Served, nginx: _Served | None, names: list[str]) -> Iterator[Row]:
    row = Row(
        f"{SMALL_FILES:,} files of 1 kB brought and written, in packs", "files/s", "nginx, file by file", "25,000"
    )
    one = [f"small/{number}" for number in range(SMALL_FILES)]
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="beo-bench-") as folder:
            row.beo.append(SMALL_FILES / beo.run("unpack", names, folder)[0])
        if nginx:
            with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="beo-bench-") as folder:
                row.bare.append(SMALL_FILES / nginx.run("write", one, folder)[0])
    yield row


def _pack(ram: Path, small: Path) -> dict[str, bytes]:
    """Make small files; return the chunks that they are packed into, the bundle's first."""
    small.mkdir()
    cutter = chunks.Cutter()
    cuts: list[chunks.Cut] = []
    for number in range(SMALL_FILES):
        data = os.urandom(SMALL_BYTES)
        (small / str(number)).write_bytes(data)
        cuts += cutter.small(b"%d" % number, 0o644, 0, data)
    cuts += cutter.finish()
    return {cut.name: cut.data for cut in reversed(cuts)}


# ---- the client: a process of its own


def _client(task: dict[str, object]) -> tuple[float, float]:
    names, inos, words = task["names"], task["inos"], task["words"]
    assert isinstance(names, list) and isinstance(inos, list) and isinstance(words, list)
    address, key = str(task["address"]), bytes.fromhex(str(task["key"]))
    wishes = list(zip(names, inos, strict=True))
    work: Callable[[list[tuple[str, int]]], None]
    match task["what"]:
        case "drop" if task["kind"] == "beo":
            work = lambda mine: _drop_beo(address, key, mine)  # noqa: E731
        case "drop":
            work = lambda mine: _get_nginx(address, mine, None)  # noqa: E731
        case "write":
            work = lambda mine: _get_nginx(address, mine, str(words[0]))  # noqa: E731
        case "keep":
            held = Holdings(Path(str(words[0])), 1 << 40)
            work = lambda mine: _keep(held, address, key, mine)  # noqa: E731
        case _:
            began_s = time.perf_counter()
            _unpack(Path(str(words[0])), address, key, wishes)
            return time.perf_counter() - began_s, _cpu_s()
    before_s, began_s = _cpu_s(), time.perf_counter()
    threads = [threading.Thread(target=work, args=(wishes[number::LANES],)) for number in range(LANES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began_s, _cpu_s() - before_s


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    link = socket.create_connection((host, int(port)))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def _request(key: bytes, name: bytes, ino: int) -> bytes:
    return tickets.pack_request(Request(name, ino, 0, 0, EXPIRES_S, tickets.ticket(key, name, ino, EXPIRES_S)))


def _drop_beo(address: str, key: bytes, wishes: list[tuple[str, int]]) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    with _connect(address) as link:
        for name, ino in wishes:
            link.sendall(_request(key, name_of(0, name), ino))
            reply = tickets.read_reply(link.recv(tickets.REPLY_BYTES, socket.MSG_WAITALL))
            assert reply and reply[0] == tickets.OK, reply
            left = reply[1]
            while left:
                done = link.recv_into(buffer, min(left, PIECE_BYTES))
                assert done
                left -= done


def _get_nginx(address: str, wishes: list[tuple[str, int]], folder: str | None) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    with _connect(address) as link:
        for name, _ in wishes:
            link.sendall(f"GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                piece = link.recv(4_096)
                assert piece
                head += piece
            head, _, body = head.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            left = int(head.lower().partition(b"content-length:")[2].split(None, 1)[0]) - len(body)
            while left:
                done = link.recv_into(buffer, min(left, PIECE_BYTES))
                assert done
                left -= done
                if folder:
                    body += bytes(buffer[:done])
            if folder:
                fd = os.open(f"{folder}/{name.rpartition('/')[2]}", os.O_WRONLY | os.O_CREAT, 0o644)
                os.write(fd, body)
                os.close(fd)


def _source(address: str, key: bytes, name: str, ino: int, size: int) -> Source:
    whole = name_of(0, name)
    return Source(whole, HEAD, address, ino, size, EXPIRES_S, tickets.ticket(key, whole, ino, EXPIRES_S))


def _keep(held: Holdings, address: str, key: bytes, wishes: list[tuple[str, int]]) -> None:
    line = Line(held)
    for name, ino in wishes:
        line.fetch(_source(address, key, name, ino, words.CHUNK_MAX_BYTES))
    line.close()


def _unpack(folder: Path, address: str, key: bytes, wishes: list[tuple[str, int]]) -> None:
    """As a job's inputs come: into the node's holdings, verified, and from there into the job's folder."""
    inos = dict(wishes)
    held = Holdings(folder / "held", 1 << 40)
    line = Line(held)

    def get(name: str, size: int) -> bytes:
        line.fetch(_source(address, key, name, inos[name], size))
        return held.path(name_of(0, name)).read_bytes()

    first = get(wishes[0][0], _size(address, key, wishes[0]))
    manifest = chunks.read(first, [get(name, _size(address, key, (name, inos[name]))) for name in chunks.parts(first)])
    (folder / "job").mkdir()
    unpacking = Unpacking(manifest, str(folder / "job"))
    for chunk in manifest.chunks:
        unpacking.take(chunk.name.hex(), get(chunk.name.hex(), chunk.size))
    unpacking.finish()
    line.close()


def _size(address: str, key: bytes, wish: tuple[str, int]) -> int:
    """How large a chunk is, which a head would say."""
    with _connect(address) as link:
        link.sendall(_request(key, name_of(0, wish[0]), wish[1]))
        reply = tickets.read_reply(link.recv(tickets.REPLY_BYTES, socket.MSG_WAITALL))
        assert reply
        return reply[1]


if __name__ == "__main__":
    print(json.dumps(_client(json.load(sys.stdin))))
