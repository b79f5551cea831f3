"""Spoilt bytes at all that reads what machines that boot send: refused with a reason, or read; nothing else happens."""

from __future__ import annotations

from contextlib import suppress

import pytest

from beo.boot import answers, dhcp, http, solicit, tftp
from beo.boot.answers import FIRMWARE, Part, Site, Talks
from beo.boot.book import Machine
from beo.errors import BeoError
from tests.clients import samples
from tests.fuzz.bytes import dice, rounds, spoilt

PACKETS = 6_000
SITE = Site("10.77.0.1/24", "10.77.0.1:7425", {kind: names[0] for kind, names in FIRMWARE.items()})
PC = Machine("52:54:00:00:00:01", "pc01", "10.77.0.100")
REQUESTS = [
    b"\0\1undionly.kpxe\0octet\0tsize\x000\0blksize\x001456\0windowsize\x004\0",
    b"\0\1/snponly.efi\0netascii\0",
    b"\0\2x\0octet\0",
    b"\0\4\0\1",
    b"\0\5\0\0no\0",
]
HEADS = [
    b"GET /boot.ipxe?mac=52-54-00-00-00-01 HTTP/1.1\r\nHost: a:1\r\nRange: bytes=0-5\r\n\r\n",
    b"POST /join HTTP/1.0\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
    b"HEAD /image/ab.sqfs HTTP/1.1\r\nRange: bytes=-5\r\nConnection: close\r\n\r\n",
]


def test_dhcp_packets_are_read_or_refused_and_every_answer_can_be_read() -> None:
    talks, answered, reasons = Talks(), 0, set()
    for number, data in enumerate(spoilt("boot dhcp", samples(), PACKETS)):
        try:
            packet = dhcp.parse(data)
        except BeoError as error:
            reasons.add(error.why.split()[1])
            continue
        kind, _ = talks.hear(packet, number / 100)
        answers.is_other_server(packet, SITE.server)
        parts: tuple[Part, ...] = ("dhcp", "proxy")
        for part in parts:
            for port in (67, 4011):
                answers.wants_machine(packet, part, SITE.server)
                if reply := answers.answer(packet, part, SITE, kind, PC, port):
                    answered += 1
                    again = dhcp.parse(dhcp.encode(reply.packet))
                    assert again == reply.packet and again.op == dhcp.REPLY and again.xid == packet.xid
                    assert again.yiaddr in ("0.0.0.0", PC.address)
    assert reasons >= {"has", "op", "option"}
    assert answered > PACKETS / 10  # most of what was sent is sane enough to be answered


def test_requests_of_tftp_are_read_or_refused_and_acknowledgements_never_go_beyond_the_file() -> None:
    refusals = set()
    for data in spoilt("boot tftp", REQUESTS, PACKETS):
        try:
            wish = tftp.parse(data)
        except BeoError as error:
            refusals.add(tftp.error(error)[:4])
            continue
        with suppress(BeoError):
            name = tftp.plain_name(wish.name)
            assert "/" not in name and "\\" not in name and not name.startswith(".")
        transfer = tftp.Transfer(5_000, wish.options, 0.0)
        transfer.begin()
    assert refusals == {b"\0\5\0\2", b"\0\5\0\4"}
    random = dice("boot acks")
    for _ in range(rounds(200)):
        transfer = tftp.Transfer(random.randrange(3_000), {"blksize": "64", "windowsize": "4"}, 0.0)
        transfer.begin()
        now_s = 0.0
        for _ in range(60):
            now_s += random.random()
            op, block = random.choice((4, 4, 4, 4, 5, 3)), random.choice((0, 1, 2, 3, 4, 8, 40, 65_535))
            word = bytes((0, op)) + block.to_bytes(2, "big")
            for effect in (*transfer.hear(word[: random.choice((4, 4, 4, 3))], now_s), *transfer.tick(now_s)):
                if isinstance(effect, tftp.Data):
                    assert effect.offset >= 0 and effect.offset + effect.length <= transfer._size
                    assert 1 <= effect.block <= transfer._last


def test_heads_of_http_are_read_or_refused_and_a_part_lies_inside() -> None:
    statuses = set()
    for data in spoilt("boot http", HEADS, PACKETS):
        try:
            end = http.find_end(data)
            head = http.parse_head(data[:end]) if end else None
        except http.Bad as error:
            statuses.add(error.status)
            continue
        if head:
            assert head.method in http.METHODS and head.path.startswith("/") and head.length >= 0
            with suppress(http.Bad):
                part = http.find_range(head.headers.get("range", ""), 1_000)
                assert part is None or (part[0] >= 0 and part[1] > 0 and sum(part) <= 1_000)
    assert statuses >= {400, 411, 501} and statuses <= http.REASONS.keys()


@pytest.mark.parametrize("hops", [255, 64])
def test_solicitations_are_whole_or_ignored(hops: int) -> None:
    good = bytes.fromhex("85000000000000000101525400000001")
    for data in spoilt(f"boot solicit {hops}", [good, good[:8]], PACKETS // 4):
        if solicit.is_solicitation(data, hops):
            assert hops == 255 and data[0] == solicit.SOLICITATION and len(data) % 8 == 0
