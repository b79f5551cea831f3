"""TFTP, as ROMs speak it, over a network that loses and doubles; and the answer to who looks for an IPv6 router."""

from __future__ import annotations

import struct
from random import Random

import pytest

from beo.boot import solicit, tftp
from beo.boot.tftp import Data, Raw, Transfer
from beo.errors import BeoError, Refused


def request(name: str, *options: str, mode: str = "octet", op: int = tftp.READ) -> bytes:
    """A request as it is on the wire."""
    return struct.pack("!H", op) + b"".join(word.encode() + b"\0" for word in (name, mode, *options))


def ack(block: int) -> bytes:
    """An acknowledgement."""
    return struct.pack("!HH", tftp.ACK, block & 0xFFFF)


def test_what_a_rom_asks_for_is_read() -> None:
    wish = tftp.parse(request("undionly.kpxe", "tsize", "0", "BLKSIZE", "1456"))
    assert (wish.name, wish.options) == ("undionly.kpxe", {"tsize": "0", "blksize": "1456"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\1",
        b"\0\1a\0octet",
        request("a", op=tftp.WRITE),
        request("a", mode="mail"),
        request("a", "tsize"),
        request("x" * 600),
        request("x" * 300),
        b"\0\1\xff\xfe\0octet\0",
        b"\0\4\0\1",
    ],
)
def test_what_is_no_wish_to_read_is_refused(data: bytes) -> None:
    with pytest.raises(BeoError):
        tftp.parse(data)


@pytest.mark.parametrize("name", ["../etc/passwd", "/etc/passwd", "a/b", "..", ".", "", "\\..\\x", ".hidden", "a\nb"])
def test_nothing_outside_of_the_folder_is_served(name: str) -> None:
    with pytest.raises(Refused):
        tftp.plain_name(name)
    assert tftp.plain_name("/undionly.kpxe") == tftp.plain_name("\\undionly.kpxe") == "undionly.kpxe"


class Rom:
    """A client with a small memory and a network that loses, doubles and reorders nothing."""

    def __init__(self, size: int, options: dict[str, str], loss: float, seed: int = 1) -> None:
        self.data = bytes(Random(seed).randbytes(size))
        self.transfer = Transfer(size, options, 0.0)
        self.window = int(self.transfer.agreed.get("windowsize", "1"))
        self.block_bytes = int(self.transfer.agreed.get("blksize", "512"))
        self.random, self.loss = Random(seed), loss
        self.got = bytearray()
        self.expected = 1
        self.packets = 0

    def run(self, limit_s: float = 2_000.0) -> float:
        """Fetch all of it; return how long that took."""
        now_s = 0.0
        ahead = list(self.transfer.begin())
        while not self.transfer.done and not self.transfer.failed and now_s < limit_s:
            replies: list[bytes] = []
            in_window = 0
            for effect in ahead:
                self.packets += 1
                if self.random.random() < self.loss:
                    continue
                if isinstance(effect, Raw):
                    replies.append(ack(0))
                    continue
                if effect.block == self.expected:
                    piece = self.data[effect.offset : effect.offset + effect.length]
                    self.got += piece
                    self.expected += 1
                    in_window += 1
                    if in_window == self.window or len(piece) < self.block_bytes:
                        replies.append(ack(effect.block))
                        in_window = 0
                else:
                    replies.append(ack(self.expected - 1))
            ahead = []
            for reply in replies:
                for _ in range(2 if self.random.random() < self.loss else 1):
                    if self.random.random() >= self.loss:
                        ahead += self.transfer.hear(reply, now_s)
            if not ahead and not self.transfer.done:
                now_s += 0.5
                ahead = self.transfer.tick(now_s)
        return now_s


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1468 * 16, 80_000])
@pytest.mark.parametrize(
    "options", [{}, {"tsize": "0"}, {"blksize": "1456", "tsize": "0"}, {"blksize": "1468", "windowsize": "8"}]
)
def test_a_file_arrives_whole(size: int, options: dict[str, str]) -> None:
    rom = Rom(size, options, 0.0)
    assert rom.run() == 0.0 and rom.transfer.done
    assert bytes(rom.got) == rom.data
    assert rom.packets <= size // rom.block_bytes + 2


@pytest.mark.parametrize("window", ["1", "8"])
def test_a_file_arrives_whole_over_a_network_that_loses_and_doubles(window: str) -> None:
    for seed in range(5):
        rom = Rom(60_000, {"blksize": "1024", "windowsize": window}, 0.1, seed)
        rom.run()
        assert rom.transfer.done and bytes(rom.got) == rom.data
        assert rom.packets < 60 * 8  # and isn't sent many times over, as by a doubled acknowledgement


def test_a_file_of_more_than_65535_blocks_goes_on_from_zero() -> None:
    rom = Rom(512 * 65_540, {}, 0.0)
    rom.run()
    assert rom.transfer.done and rom.got == rom.data


def test_absurd_options_are_not_agreed_on() -> None:
    for options in ({"blksize": "7"}, {"blksize": "-1"}, {"blksize": "x"}, {"windowsize": "0"}, {"odd": "1"}):
        assert Transfer(10, options, 0.0).agreed == {}
    assert Transfer(10, {"blksize": "65464", "windowsize": "9999"}, 0.0).agreed == {
        "blksize": "1468",
        "windowsize": "16",
    }


def test_a_client_that_only_wanted_the_size_ends_its_transfer() -> None:
    transfer = Transfer(900, {"tsize": "0"}, 0.0)
    (first,) = transfer.begin()
    assert isinstance(first, Raw) and first.data == b"\0\6tsize\x00900\0"
    assert transfer.hear(b"\0\5\0\x08User aborted\0", 0.1) == [] and "User aborted" in transfer.failed


def test_a_client_that_says_nothing_more_is_given_up() -> None:
    transfer = Transfer(900, {}, 0.0)
    assert transfer.begin() == [Data(1, 0, 512)]
    tries = [transfer.tick(at / 2) for at in range(100)]
    assert sum(bool(sent) for sent in tries) == tftp.TRIES_MAX - 1
    assert "says nothing" in transfer.failed and transfer.hear(ack(1), 60.0) == []


def test_foreign_and_cut_packets_move_nothing() -> None:
    transfer = Transfer(5_000, {}, 0.0)
    transfer.begin()
    for data in (b"", b"\0", b"\0\4\0", ack(9), ack(65_535), b"\0\3\0\1xx", b"\0\7\0\1"):
        assert transfer.hear(data, 0.1) == []
    assert transfer.hear(ack(1), 0.2) == [Data(2, 512, 512)]


# ---- who looks for a router

SOLICITATION = bytes.fromhex("8500000000000000")


def test_who_looks_for_a_router_is_known_and_nothing_else_is() -> None:
    option = b"\1\1" + bytes(6)
    assert solicit.is_solicitation(SOLICITATION, 255) and solicit.is_solicitation(SOLICITATION + option, 255)
    for data, hops in (
        (SOLICITATION, 64),
        (SOLICITATION[:7], 255),
        (SOLICITATION + option[:4], 255),
        (SOLICITATION + b"\1\0" + bytes(6), 255),
        (SOLICITATION + b"\1", 255),
        (b"\x86" + SOLICITATION[1:], 255),
        (SOLICITATION + option * 400, 255),
    ):
        assert not solicit.is_solicitation(data, hops)


def test_the_advertisement_makes_nobody_a_router() -> None:
    word = solicit.advertisement("52:54:00:00:00:01")
    kind, code, _, hops, flags, lifetime_s, reachable, again = struct.unpack("!BBHBBHII", word[:16])
    assert (kind, code, hops, flags, lifetime_s, reachable, again) == (134, 0, 0, 0, 0, 0, 0)
    assert word[16:] == bytes.fromhex("0101525400000001")
