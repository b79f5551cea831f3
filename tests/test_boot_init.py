"""The scripts with which a machine without a disk starts, run by busybox: what they do where something is wrong."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from beo.boot.images import Store
from beo.config import Home
from tests.machine import Server
from tests.test_images import make

SCRIPTS = Path(__file__).resolve().parent.parent / "beo" / "worker" / "boot"
BUSYBOX = shutil.which("busybox")
needs_busybox = pytest.mark.skipif(not BUSYBOX, reason="no busybox here: apt-get install -y busybox-static")


# A static busybox's wget and nc may crash on a system whose C library is another: here Python does what they do. The
# machines of test_boot_image.py run busybox's own.
WGET = """
import os, signal, sys, http.client, urllib.error, urllib.request
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
path, url = sys.argv[7], sys.argv[8]
at = os.path.getsize(path)
request = urllib.request.Request(url, headers={"Range": f"bytes={at}-"} if at else {})
try:
    with urllib.request.urlopen(request, timeout=5) as answer, open(path, "ab", buffering=0) as file:
        if answer.url != url:
            print(f"  Location: {answer.url}", file=sys.stderr, flush=True)
        while piece := answer.read1(65536):
            file.write(piece)
        if answer.length:
            sys.exit("wget: connection closed prematurely")
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"wget: {error}")
"""
NC = """
import socket, sys
with socket.create_connection((sys.argv[3], int(sys.argv[4])), 2) as link:
    link.sendall(sys.stdin.buffer.read())
    print(link.recv(4096).decode())
"""


def run(tmp_path: Path, words: str, limit_s: float = 20) -> str:
    """Run words of shell after the init script was read, without its main; return all that is said."""
    script = (SCRIPTS / "init").read_text().replace('  sleep "$pause"', '  echo "slept"')
    for name, text in (("wget", WGET), ("nc", NC)):
        (tmp_path / name).write_text(f"#!{sys.executable} -IS\n{text}")
        (tmp_path / name).chmod(0o755)
    script += f'\nnc() {{ {tmp_path}/nc "$@"; }}\n'
    (tmp_path / "init").write_text(script)
    text = f"BEO_TEST=1 BEO_LOG={tmp_path}/log BEO_WGET={tmp_path}/wget; . {tmp_path}/init\nPATH=\n{words}"
    done = subprocess.run(
        [str(BUSYBOX), "sh", "-c", text], capture_output=True, text=True, timeout=limit_s, check=False, cwd=tmp_path
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["init", "lease", "start", "worker", "peer", "renew"])
def test_the_scripts_are_clean(name: str) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck here: apt-get install -y shellcheck")
    done = subprocess.run(["shellcheck", "-s", "sh", str(SCRIPTS / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["init", "lease", "start", "worker", "peer", "renew"])
def test_a_posix_shell_understands_the_scripts(name: str) -> None:
    done = subprocess.run(["sh", "-n", str(SCRIPTS / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_busybox
def test_the_words_of_the_command_line_are_read(tmp_path: Path) -> None:
    said = run(tmp_path, 'CMDLINE="quiet beo.mac=aa:bb beo.ip=10.0.0.9/24 beo.gateway= xbeo.name=no"; '
               'echo "[$(word mac)][$(word ip)][$(word gateway)][$(word name)]"')  # fmt: skip
    assert said == "[aa:bb][10.0.0.9/24][][]\n"


@needs_busybox
def test_the_card_is_found_by_its_address(tmp_path: Path) -> None:
    for name, mac in (("lo", "00:00:00:00:00:00"), ("eth0", "52:54:00:00:00:01"), ("eth1", "52:54:00:00:00:02")):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "address").write_text(f"{mac}\n")
    said = run(tmp_path, f"BEO_NET={tmp_path}/net; card 52:54:00:00:00:02; card 52:54:00:00:00:09 || cards")
    assert said == "eth1\neth0=52:54:00:00:00:01 eth1=52:54:00:00:00:02 "


@needs_busybox
def test_a_card_that_lacks_its_firmware_is_told(tmp_path: Path) -> None:
    lines = [
        "[ 9.46] e100 0000:00:02.0: firmware: failed to load e100/d101s_ucode.bin (-2)",
        "[ 9.46] e100 0000:00:02.0: Direct firmware load for e100/d101s_ucode.bin failed with error -2",
        "[ 9.47] bnx2 0000:00:03.0: firmware: failed to load bnx2/bnx2-mips-09-6.2.1b.fw (-2)",
    ]
    (tmp_path / "messages").write_text("\n".join(lines) + "\n")
    said = run(tmp_path, f"dmesg() {{ cat {tmp_path}/messages; }}; lacking; : >{tmp_path}/messages; lacking")
    wanted = "bnx2/bnx2-mips-09-6.2.1b.fw e100/d101s_ucode.bin; 'beo image build --add' Debian's package with it"
    assert said == f"beo: a driver lacks its firmware: {wanted}\n"


@needs_busybox
def test_a_pause_is_never_shorter_and_at_most_twice_as_long(tmp_path: Path) -> None:
    said = [int(word) for word in run(tmp_path, "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do jitter 100; done").split()]
    assert min(said) >= 100 and max(said) <= 200 and len(set(said)) > 3


@needs_busybox
def test_too_little_memory_is_told(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 200000 kB\nMemAvailable: 150000 kB\n")
    said = run(tmp_path, f"BEO_MEMINFO={tmp_path}/meminfo; size=100000000; room; echo $?; size=1000; room; echo $?")
    assert said == "beo: too little memory: 146 MiB are free, and the image needs 191 MiB\n1\n0\n"


def brought(tmp_path: Path, servers: list[Server], first: str = "") -> tuple[str, bytes]:
    """Let the script bring an image from these servers; return what it says, and the image. first: other words."""
    store = servers[0].store
    manifest = store.every()[0]
    boots = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    words = f"boots={boots} image={manifest.sha256} size={manifest.size_bytes} mac=52:54:00:00:00:01; {first}"
    words += f"mkdir() {{ :; }}; room() {{ :; }}; image {tmp_path}/image"
    said = run(tmp_path, words)
    return said, (tmp_path / "image").read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one small image."""
    store = Store(Home(tmp_path / "home"))
    make(store, "one " * 50_000)
    return store


def is_whole(store: Store, data: bytes) -> bool:
    """Whether that is the image."""
    return hashlib.sha256(data).hexdigest() == store.every()[0].sha256


@needs_busybox
def test_an_image_is_brought(tmp_path: Path, store: Store) -> None:
    with Server(store) as server:
        said, data = brought(tmp_path, [server])
    assert is_whole(store, data) and server.asked == [""]
    assert f"beo: image: {store.every()[0].sha256[:12]} from 127.0.0.1" in said and "slept" not in said


@needs_busybox
def test_a_cut_download_goes_on_where_it_was_cut(tmp_path: Path, store: Store) -> None:
    with Server(store) as server:
        server.cut_after = [70_000, 30_000]
        said, data = brought(tmp_path, [server])
    assert is_whole(store, data)
    assert server.asked == ["", "bytes=70000-", "bytes=100000-"]
    assert "sent 70000 of" in said and "beo: again in" in said
    assert b"sent 70000 of" in server.consoles["52:54:00:00:00:01"]


@needs_busybox
def test_a_wrong_image_is_refused_and_brought_from_the_other_head(tmp_path: Path, store: Store) -> None:
    with Server(store) as bad, Server(store) as good:
        bad.spoil = 9
        said, data = brought(tmp_path, [bad, good])
    assert is_whole(store, data)
    assert f"beo: WRONG IMAGE from 127.0.0.1:{bad.port}" in said and "refused" in said
    assert good.asked == [""], "what was refused must not be gone on with"


@needs_busybox
def test_a_machine_that_is_sent_elsewhere_goes_there(tmp_path: Path, store: Store) -> None:
    with Server(store) as head, Server(store) as peer:
        head.redirect = f"127.0.0.1:{peer.port}"
        said, data = brought(tmp_path, [head])
    assert is_whole(store, data) and peer.asked == [""]
    assert f"from 127.0.0.1:{peer.port}, " in said, "it says who has sent it"


@needs_busybox
def test_a_machine_to_which_another_has_sent_something_else_asks_the_heads_alone(tmp_path: Path, store: Store) -> None:
    with Server(store) as head, Server(store) as liar:
        head.redirect, liar.spoil = f"127.0.0.1:{liar.port}", 99
        said, data = brought(tmp_path, [head])
    assert is_whole(store, data) and liar.asked == [""], "it is asked once"
    assert f"WRONG IMAGE from 127.0.0.1:{liar.port}: " in said and "only a head may send it now" in said


@needs_busybox
def test_of_a_wrong_image_that_came_from_two_both_are_named(tmp_path: Path, store: Store) -> None:
    with Server(store) as one, Server(store) as two:
        one.cut_after, two.spoil = [70_000], 1
        said, data = brought(tmp_path, [one, two])
    assert is_whole(store, data)
    assert f"WRONG IMAGE from 127.0.0.1:{two.port}, 127.0.0.1:{one.port}: " in said


@needs_busybox
def test_a_sender_that_crawls_is_not_waited_for_and_what_it_has_sent_is_kept(tmp_path: Path, store: Store) -> None:
    with Server(store) as head, Server(store) as slow, Server(store) as other:
        head.redirect, slow.crawl_after = f"127.0.0.1:{slow.port}", 70_000
        said, data = brought(tmp_path, [head, other], "FETCH_S=1; ")
    assert is_whole(store, data)
    assert f"127.0.0.1:{slow.port} sent 700" in said and "it is too slow" in said
    assert other.asked[0].startswith("bytes=700")


@needs_busybox
def test_a_sender_that_has_no_end_fills_no_memory(tmp_path: Path, store: Store) -> None:
    with Server(store) as head, Server(store) as flood:
        flood.excess = 50 << 20
        said, data = brought(tmp_path, [flood, head])
    assert is_whole(store, data)
    sent = re.search(rf"127.0.0.1:{flood.port} sent (\d+) of .* it has sent more than the image", said)
    assert sent and int(sent[1]) <= len(data) + 512, said
    assert head.asked == [""], "what is too long is no part of the image"


@needs_busybox
def test_a_head_that_is_gone_costs_nothing_but_the_other_ones_turn(tmp_path: Path, store: Store) -> None:
    with Server(store) as dead:
        pass
    dead.store = store
    with Server(store) as good:
        said, data = brought(tmp_path, [dead, good])
    assert is_whole(store, data)
    assert f"127.0.0.1:{dead.port} sent 0 of" in said


@needs_busybox
@pytest.mark.parametrize(
    ("address", "server", "told"),
    [
        ("10.0.0.9/24", "10.0.0.254", "on lease"),  # a router's
        ("10.0.0.9/24", "10.0.0.2", "for ever"),  # the other head's, which has given it by a take-over
        ("10.0.0.9/24", "10.0.0.22", "on lease"),
        ("10.0.0.9/24", "", "for ever"),  # chosen by whoever wrote the command line
        ("", "", "on lease"),  # asked for by init itself
    ],
)
def test_an_address_is_on_lease_where_no_head_gave_it(tmp_path: Path, address: str, server: str, told: str) -> None:
    words = f"address={address} server={server} boots=10.0.0.1:7425,10.0.0.2:7425"
    assert run(tmp_path, f"{words}; on_lease && echo on lease || echo for ever") == f"{told}\n"


class Client:
    """What `renew` does about what a client of DHCP calls it with, on a machine that has an address."""

    def __init__(self, folder: Path, address: str = "10.0.0.9") -> None:
        self.folder = folder
        self._held, self._did = folder / "held", folder / "did"
        self._held.write_text(f"{address}\n")
        text = (
            (SCRIPTS / "renew").read_text().replace("/run/beo", str(folder)).replace("/dev/kmsg", f"{folder}/console")
        )
        self._script = (
            "ip() {\n  case $* in\n"
            f"    '-4 -o addr show dev eth0') sed 's|.*|2: eth0 inet &/24 brd|' {self._held} ;;\n"
            f"    '-4 addr flush dev eth0') : >{self._held}; echo \"$*\" >>{self._did} ;;\n"
            f'    \'addr add \'*) echo "${{3%/*}}" >>{self._held}; echo "$*" >>{self._did} ;;\n'
            f'    *) echo "$*" >>{self._did} ;;\n  esac\n}}\n'
            f'kill() {{ echo "kill $*" >>{self._did}; }}\n'
            + text.replace("/usr/bin/beo down", f"echo down >>{self._did}")
        )
        (folder / "worker.pid").write_text("77\n")

    def hears(self, event: str, **words: str) -> None:
        """It is called with that."""
        argv = [str(BUSYBOX), "sh", "-c", self._script, "renew", event]
        subprocess.run(argv, env={"interface": "eth0", **words}, timeout=20, check=True)

    @property
    def did(self) -> list[str]:
        """What was done since the last look."""
        lines = self._did.read_text().splitlines() if self._did.exists() else []
        self._did.unlink(missing_ok=True)
        return lines

    @property
    def said(self) -> list[str]:
        """What the console said since the last look."""
        path = self.folder / "console"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.removeprefix("<3>beo: ") for line in lines]

    @property
    def is_held_up(self) -> bool:
        """Whether the worker waits for an address."""
        return (self.folder / "lease.lost").exists()


@needs_busybox
def test_a_renewal_changes_nothing(tmp_path: Path) -> None:
    client = Client(tmp_path)
    client.hears("deconfig")
    for event in ("bound", "renew", "renew"):
        client.hears(event, ip="10.0.0.9", mask="24", router="10.0.0.254 10.0.0.253")
        assert client.did == ["route replace default via 10.0.0.254 dev eth0"]
    assert client.said == [] and not client.is_held_up


@needs_busybox
def test_an_address_is_kept_while_no_server_answers_and_that_is_told_once(tmp_path: Path) -> None:
    client = Client(tmp_path)
    client.hears("bound", ip="10.0.0.9", mask="24")
    for event in ("deconfig", "leasefail", "leasefail"):
        client.hears(event)
    assert client.said == ["no DHCP server renews the lease of 10.0.0.9: it is kept until one answers"]
    client.hears("bound", ip="10.0.0.9", mask="24")
    assert client.said == ["the lease of 10.0.0.9 is renewed again"]
    assert client.did == [] and not client.is_held_up


@needs_busybox
def test_another_address_is_told_and_the_worker_ends_before_it_changes(tmp_path: Path) -> None:
    client = Client(tmp_path)
    client.hears("bound", ip="10.0.0.77", mask="16")
    assert client.did == ["kill 77", "down", "-4 addr flush dev eth0", "addr add 10.0.0.77/16 dev eth0"]
    assert client.said == ["this machine's address is 10.0.0.77 now, it was 10.0.0.9: its worker begins anew"]
    assert not client.is_held_up, "it has an address"


@needs_busybox
def test_a_machine_whose_address_is_taken_back_has_no_worker_until_it_has_one(tmp_path: Path) -> None:
    client = Client(tmp_path)
    client.hears("bound", ip="10.0.0.9", mask="24")
    client.hears("nak", message="wrong network")
    assert client.did == ["kill 77", "down"] and client.is_held_up
    assert client.said == [
        "the DHCP server takes 10.0.0.9 back (wrong network): the worker ends, and waits for an address"
    ]
    client.hears("deconfig")
    client.hears("leasefail")
    assert client.is_held_up and client.said == [], "nothing is kept"
    client.hears("bound", ip="10.0.0.77", mask="24")
    assert client.did == ["-4 addr flush dev eth0", "addr add 10.0.0.77/24 dev eth0"], "it was ended once"
    assert not client.is_held_up
