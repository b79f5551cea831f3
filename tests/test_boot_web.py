"""What machines that boot fetch over HTTP: scripts, files, images also when many ask at once, and what slow ones do."""

from __future__ import annotations

import hashlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from beo.boot import ether, script, storm, web
from beo.boot.answers import Site
from beo.boot.book import Image, Machine
from beo.boot.clerk import Clerk
from beo.boot.http import Bad, find_range, parse_head
from beo.boot.pages import Pages
from beo.boot.peer import Peer, tell
from beo.boot.shelf import Folder
from beo.boot.storm import Here, Later, Storm, There
from beo.boot.web import Web
from beo.config import Home
from beo.errors import BeoError, Conflict, UsageError
from tests.boot_site import Book, Desk, ask, fill, get, read_answer
from tests.cluster import wait_for

MAC = "52:54:00:00:00:01"
PIN = "ab" * 32


class Running:
    """The web part of the server of boots, in a thread, on loopback."""

    def __init__(self, folder: Path) -> None:
        self.image = fill(folder)
        self.book, self.shelf = Book(), Folder(Home(folder))
        self.storm = Storm(lambda low, high: high)
        self._selector = selectors.DefaultSelector()
        clerks = Clerk("boots"), Clerk("others")
        for clerk in clerks:
            self._selector.register(clerk, selectors.EVENT_READ, clerk.hear)
        listener = ether.listener("", "127.0.0.1", 0)
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        firmware = folder / "snponly.efi"
        firmware.write_bytes(b"MZ" * 500)
        files = {"snponly.efi": str(firmware)}
        pages = Pages(clerks, self.book, self.shelf, Desk(), self.storm, files, self.address, self._write)
        self.web = Web(self._selector, [listener], pages.route)
        self._clerks, self._ends = clerks, False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _write(self, machine: Machine) -> str:
        image = self.shelf.image(machine.image)
        return script.boot(machine, image, ("10.0.0.1:7420",), (self.address, "10.0.0.2:7425"), PIN, 24)

    def _run(self) -> None:
        while not self._ends:
            self.web.tick(time.monotonic())
            for key, mask in self._selector.select(0.05):
                key.data(mask)

    def close(self) -> None:
        """End it."""
        self._ends = True
        self._thread.join(10)
        self.web.close()
        for clerk in self._clerks:
            clerk.close()
        self._selector.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    one = Running(tmp_path)
    yield one
    one.close()


# ---- what is fetched


def test_a_machine_gets_its_script_and_all_that_it_names(running: Running) -> None:
    status, _, entry = get(running.address, "/boot.ipxe")
    assert status == 200 and entry.startswith(b"#!ipxe\n")
    assert f"http://{running.address}/boot.ipxe?mac=${{netX/mac:hexhyp}}" in entry.decode()
    status, _, body = get(running.address, "/boot.ipxe?mac=52-54-00-00-00-01")
    text, image = body.decode(), running.image
    assert status == 200 and running.book.opened == [MAC]
    for word in (
        f"beo.image={image.sha256}",
        f"beo.size={image.size_bytes}",
        "beo.heads=10.0.0.1:7420",
        f"beo.boot={running.address},10.0.0.2:7425",
        f"beo.pin={PIN}",
        f"beo.mac={MAC}",
        "beo.ip=${netX/ip}/24",
        "beo.dhcp=${netX/dhcp-server}",
        "beo.name=pc01",
        "console=ttyS0,115200",
    ):
        assert f" {word}" in text, word
    assert "reboot" not in text and text.rstrip().endswith("goto head0")
    for kind, sha256 in (("kernel", image.kernel), ("initrd", image.initrd)):
        assert f"http://10.0.0.2:7425/{kind}/{sha256} " in text.replace("\n", " ")
        status, _, data = get(running.address, f"/{kind}/{sha256}")
        assert status == 200 and hashlib.sha256(data).hexdigest() == sha256
    status, _, data = get(running.address, f"/image/{image.sha256}.sqfs")
    assert status == 200 and hashlib.sha256(data).hexdigest() == image.sha256
    assert get(running.address, "/firmware/snponly.efi")[2] == b"MZ" * 500


def test_a_machine_that_cannot_boot_now_is_told_why_and_asks_again(running: Running) -> None:
    running.book.trouble = Conflict('no head "acts"; $(reboot)')
    status, _, body = get(running.address, f"/boot.ipxe?mac={MAC}")
    assert status == 200 and body.startswith(b"#!ipxe\necho beo: no head ?acts??") and b"exit 1" in body
    assert get(running.address, "/boot.ipxe?mac=zz")[0] == 400
    running.book.trouble = None
    (running.shelf._store.folder / "current.json").unlink()
    assert b"no current image" in get(running.address, f"/boot.ipxe?mac={MAC}")[2]


def test_what_could_be_understood_otherwise_never_stands_in_a_script() -> None:
    image = Image("a" * 64, 5, "b" * 64, "c" * 64)
    heads, boots = ("10.0.0.1:7420",), ("10.0.0.1:7425",)
    for machine in (Machine(MAC, "a b"), Machine(MAC, "a\nboot"), Machine(MAC, "${net0/ip}"), Machine(MAC, "a|b")):
        with pytest.raises(UsageError):
            script.boot(machine, image, heads, boots, PIN, 24)
    for bad in (Image("a" * 63, 5, "b" * 64, "c" * 64), Image("a" * 64, 5, "b" * 64, "c" * 64, "x; reboot")):
        with pytest.raises(UsageError):
            script.boot(Machine(MAC, "pc01"), bad, heads, boots, PIN, 24)
    with pytest.raises(UsageError):
        script.boot(Machine(MAC, "pc01"), image, heads, boots, "Z85 key with $ and #", 24)


def test_each_head_is_tried_before_a_machine_sleeps() -> None:
    image = Image("a" * 64, 5, "b" * 64, "c" * 64)
    text = script.boot(Machine(MAC, "pc01"), image, ("h:1",), ("10.0.0.1:7425", "10.0.0.2:7425"), PIN, 24)
    lines = text.splitlines()
    labels = [line for line in lines if line.startswith(":")]
    assert labels == [":head0", ":head1", ":retry"]
    targets = {line.rpartition("goto ")[2] for line in lines if "goto" in line}
    assert targets == {"head0", "head1", "retry"}
    assert max(map(len, lines)) < 1_024  # what a line of iPXE's and the kernel's may have


def test_lines_for_a_dnsmasq_name_each_architecture() -> None:
    site = Site("10.77.0.1/24", "10.77.0.1:7425", {"bios": "undionly.kpxe", "uefi": "snponly.efi"})
    text = script.dnsmasq(site, "10.77.0.100-10.77.0.199")
    assert "dhcp-range=10.77.0.100,10.77.0.199,1h" in text
    assert "dhcp-boot=tag:ipxe,http://10.77.0.1:7425/boot.ipxe" in text
    assert "dhcp-boot=tag:!ipxe,tag:arch0,undionly.kpxe,,10.77.0.1" in text
    assert "dhcp-range" not in script.dnsmasq(site, "")


def test_what_others_know_is_asked_of_them_and_unknown_paths_lead_nowhere(running: Running) -> None:
    status, _, body = ask(running.address, "POST /echo HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")
    assert status == 200 and body.startswith(b"hello127.0.0.1:")
    for path in (
        "/",
        "/nothing",
        "/kernel/../../etc/passwd",
        f"/kernel/{'0' * 64}",
        "/image/x.sqfs",
        "/firmware/..%2fx",
    ):
        assert get(running.address, path)[0] == 404, path
    assert ask(running.address, "POST /refuse HTTP/1.1\r\nContent-Length: 0\r\n\r\n")[0] == 503


# ---- HTTP


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", None),
        ("bytes=0-0", (0, 1)),
        ("bytes=10-", (10, 90)),
        ("bytes=-10", (90, 10)),
        ("bytes=-1000", (0, 100)),
        ("bytes=50-5000", (50, 50)),
        ("bytes=5-4", None),
        ("bytes=0-1,5-6", None),
        ("lines=1-2", None),
        ("bytes=x-", None),
        ("bytes=-", None),
    ],
)
def test_a_range_is_a_part_or_ignored(said: str, expected: tuple[int, int] | None) -> None:
    assert find_range(said, 100) == expected


@pytest.mark.parametrize("said", ["bytes=100-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(said: str) -> None:
    with pytest.raises(Bad):
        find_range(said, 100)


def test_files_are_served_in_parts_and_by_head_alone(running: Running) -> None:
    path = f"/kernel/{running.image.kernel}"
    whole = get(running.address, path)[2]
    status, headers, part = get(running.address, path, "Range: bytes=1000-1999")
    assert (status, part) == (206, whole[1000:2000])
    assert headers["content-range"] == f"bytes 1000-1999/{len(whole)}"
    status, headers, part = get(running.address, path, f"Range: bytes={len(whole)}-")
    assert (status, headers["content-range"], part) == (416, f"bytes */{len(whole)}", b"")
    status, headers, part = get(running.address, path, method="HEAD")
    assert (status, int(headers["content-length"]), part) == (200, len(whole), b"")
    image = f"/image/{running.image.sha256}.sqfs"
    for _ in range(2 * storm.SLOTS):  # which takes none of the head's few slots
        assert get(running.address, image, method="HEAD")[0] == 200
    assert running.storm.busy == 0


def test_one_connection_serves_several_questions_also_when_they_come_at_once(running: Running) -> None:
    host, _, port = running.address.rpartition(":")
    question = f"GET /kernel/{running.image.kernel} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), 10) as link:
        link.sendall(question)
        first = read_answer(link)
        link.sendall(question)
        assert read_answer(link) == first and first[0] == 200
        link.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_answer(link)[0] == 404
        assert link.recv(10) == b""


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("nonsense\r\n\r\n", 400),
        ("GET http://x/ HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/2\r\n\r\n", 400),
        ("BREW / HTTP/1.1\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        ("POST /echo HTTP/1.1\r\n\r\n", 411),
        ("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        ("POST /echo HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        ("POST /echo HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n" + "A: b\r\n" * 100 + "\r\n", 431),
        ("GET /" + "x" * 20_000 + " HTTP/1.1\r\n\r\n", 431),
        ("GET /\x01 HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_ended(running: Running, text: str, status: int) -> None:
    # Where more was sent than was read, the kernel may end the connection before its answer is read.
    assert ask(running.address, text)[0] in (status, 0 if len(text) > 8_192 else status)
    assert get(running.address, "/boot.ipxe")[0] == 200


def test_headers_are_read_whatever_their_case_and_spaces() -> None:
    head = parse_head(b"GET /a?b=c&d HTTP/1.1\r\nRANGE:  bytes=1-2 \r\nHost: x\r\n\r\n")
    assert (head.path, head.query, head.headers["range"]) == ("/a", {"b": "c", "d": ""}, "bytes=1-2")


# ---- slow, dead and many


def test_slow_and_dead_clients_hold_up_nobody_and_are_ended(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HEAD_S", 0.4), ("BODY_S", 0.4), ("PACE_S", 0.4), ("OF_HOST_MAX", 100)):
        monkeypatch.setattr(web, name, value)
    host, _, port = running.address.rpartition(":")
    links = [socket.create_connection((host, int(port)), 10) for _ in range(12)]
    links[0].sendall(b"GET /bo")
    links[1].sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 50\r\n\r\nhello")
    for link in links[2 : 2 + storm.SLOTS]:  # they take all slots, and read nothing
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        link.sendall(f"GET /image/{running.image.sha256}.sqfs HTTP/1.1\r\n\r\n".encode())
    began_s = time.monotonic()
    assert get(running.address, "/boot.ipxe")[0] == 200
    assert time.monotonic() - began_s < 0.3
    wait_for(lambda: len(running.web) == 0 and running.storm.busy == 0, "the slow ones to be ended")
    assert read_answer(links[0])[0] == read_answer(links[1])[0] == 408
    for link in links:
        link.close()


def test_who_ends_his_half_with_what_he_posts_is_answered(running: Running) -> None:
    host, _, port = running.address.rpartition(":")
    for path in ("/echo", "/slow"):
        with socket.create_connection((host, int(port)), 10) as link:
            link.sendall(f"POST {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi".encode())
            link.shutdown(socket.SHUT_WR)
            status, _, body = read_answer(link)
            assert (status, body[:2]) == (200, b"hi") and not link.recv(1), "and it is ended"
    wait_for(lambda: not len(running.web), "no connection")


def test_one_host_cannot_take_all_connections(running: Running) -> None:
    host, _, port = running.address.rpartition(":")
    links = [socket.create_connection((host, int(port)), 10) for _ in range(web.OF_HOST_MAX)]
    wait_for(lambda: len(running.web) == web.OF_HOST_MAX, "all to be taken")
    assert get(running.address, "/boot.ipxe")[0] in (503, 0)
    for link in links:
        link.close()
    wait_for(lambda: len(running.web) == 0, "all to be gone")
    assert get(running.address, "/boot.ipxe")[0] == 200


def test_a_slow_answer_of_another_holds_up_no_boot(running: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(get, running.address, "/slow")
        began_s = time.monotonic()
        assert get(running.address, f"/boot.ipxe?mac={MAC}")[0] == 200
        assert time.monotonic() - began_s < 0.4
        assert slow.result()[0] == 200


def test_two_hundred_at_once_all_get_their_script_and_their_kernel(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "OF_HOST_MAX", 1_000)
    links = []
    host, _, port = running.address.rpartition(":")
    for number in range(200):
        link = socket.create_connection((host, int(port)), 20)
        link.sendall(f"GET /boot.ipxe?mac=52-54-00-00-00-{number:02x} HTTP/1.1\r\n\r\n".encode())
        links.append(link)
    for link in links:
        status, _, body = read_answer(link)
        assert status == 200 and b"beo.name=pc" in body
        link.sendall(f"GET /kernel/{running.image.kernel} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    for link in links:
        status, _, body = read_answer(link)
        assert status == 200 and hashlib.sha256(body).hexdigest() == running.image.kernel
        link.close()
    assert len(running.book.machines) == 200


# ---- who sends an image to whom


def test_a_few_get_it_from_the_head_and_the_others_from_those_who_have_it() -> None:
    choice = Storm(lambda low, high: high, slots=2, peer_slots=1)
    assert [choice.choose(f"n{n}", "sha", 0.0) for n in range(3)] == [Here(), Here(), Later(round(storm.WAIT_MAX_S))]
    choice.have("n0", "n0:80", "sha", 1.0)
    assert choice.choose("n2", "other", 1.0) == Later(4)  # another image
    assert choice.choose("n2", "sha", 1.0) == There("n0:80")
    assert choice.choose("n3", "sha", 1.0) == Later(4)
    choice.have("n2", "n2:80", "sha", 2.0)  # n0's place is free with it
    assert {choice.choose("n3", "sha", 2.0), choice.choose("n4", "sha", 2.0)} == {There("n0:80"), There("n2:80")}
    choice.over()
    assert choice.choose("n5", "sha", 2.0) == Here()
    assert choice.choose("n6", "sha", 2.0, direct=True) == Later(4)
    assert (choice.givers(2.0), choice.givers(2.0 + storm.HELD_S + 1)) == (2, 0)


def test_a_sender_with_which_somebody_had_no_luck_is_left_alone() -> None:
    choice = Storm(lambda low, high: high, slots=0, peer_slots=4)
    choice.have("bad", "bad:80", "sha", 0.0)
    assert choice.choose("n1", "sha", 0.0) == There("bad:80")
    choice.have("good", "good:80", "sha", 1.0)
    assert choice.choose("n1", "sha", 2.0) == There("good:80")
    assert all(choice.choose(f"n{n}", "sha", 2.0) != There("bad:80") for n in range(2, 9))
    assert choice.choose("n9", "sha", 2.0 + storm.LUCKLESS_S + 1) is not None
    choice.gone("good")
    assert choice.choose("n10", "sha", 3.0) == Later(4)


def test_a_sender_that_is_silent_for_long_is_taken_for_gone() -> None:
    choice = Storm(lambda low, high: high, slots=0)
    choice.have("n0", "n0:80", "sha", 0.0)
    assert choice.choose("n1", "sha", storm.HELD_S + 1) == Later(4)
    assert choice.holders("sha") == 0


def test_memory_of_the_storm_has_an_end() -> None:
    choice = Storm(lambda low, high: high, slots=0, peer_slots=10**9)
    for number in range(storm.HOLDERS_MAX + 10):
        choice.have(f"n{number}", f"n{number}:80", f"sha{number % 3}", 0.0)
    assert sum(choice.holders(f"sha{number}") for number in range(3)) == storm.HOLDERS_MAX
    for number in range(storm.HOLDERS_MAX + 10):
        choice.choose(f"m{number}", "sha0", 0.0)
    assert len(choice._sent) <= storm.HOLDERS_MAX


def test_when_the_head_is_busy_a_worker_that_has_it_gives_it(running: Running) -> None:
    path = f"/image/{running.image.sha256}.sqfs"
    for number in range(storm.SLOTS):
        assert running.storm.choose(f"10.9.9.{number}", running.image.sha256, time.monotonic()) == Here()
    status, headers, _ = get(running.address, path)
    assert status == 503 and int(headers["retry-after"]) >= 1
    peer = Peer(running.image.sha256, running.shelf.path("image", running.image.sha256), "127.0.0.1")
    ends = threading.Event()

    def serve() -> None:
        while not ends.is_set():
            peer.turn(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert tell(("127.0.0.1:1", running.address), running.image.sha256, peer.port)
        # Who asks is at the same address here, and nobody is sent to himself; so as another machine would be told:
        there = running.storm.choose("10.9.9.99", running.image.sha256, time.monotonic())
        assert there == There(f"127.0.0.1:{peer.port}")
        status, _, data = get(f"127.0.0.1:{peer.port}", path)
        assert status == 200 and hashlib.sha256(data).hexdigest() == running.image.sha256
        assert get(f"127.0.0.1:{peer.port}", "/image/other.sqfs")[0] == 404
        assert get(f"127.0.0.1:{peer.port}", path, "Range: bytes=5-9")[2] == data[5:10]
    finally:
        ends.set()
        thread.join(5)
        peer.close()
    assert not tell(("127.0.0.1:1",), running.image.sha256, 80)
    for bad in (f"/have/{'0' * 64}?port=80", f"/have/{running.image.sha256}?port=99999", "/have/x?port=80"):
        assert ask(running.address, f"POST {bad} HTTP/1.1\r\nContent-Length: 0\r\n\r\n")[0] == 404


def test_a_head_that_fails_or_is_overrun_fails_only_who_asks(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    done = threading.Event()
    clerk = Clerk("test")

    def fail() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("beo.boot.clerk.WAITING_MAX", 1)
    clerk.ask(lambda: done.wait(5), heard.append)
    wait_for(lambda: clerk._work.qsize() == 0, "it to begin")
    clerk.ask(fail, heard.append)
    clerk.ask(fail, heard.append)
    assert isinstance(heard[0], Conflict) and "too many" in str(heard[0])
    done.set()

    def both() -> bool:
        clerk.hear()
        return len(heard) == 3

    wait_for(both, "both to be done")
    assert heard[1] is True and isinstance(heard[2], BeoError) and "RuntimeError" in str(heard[2])
    clerk.close()
