"""Machines that boot are told what to boot: DHCP as bytes, and which answer each kind of client gets."""

from __future__ import annotations

import msgspec
import pytest

from beo.boot import answers, dhcp
from beo.boot.answers import FIRMWARE, Part, Reply, Site, Talks, answer
from beo.boot.book import Machine
from beo.boot.dhcp import Packet
from beo.errors import UsageError
from tests.clients import Client, samples

MAC = "52:54:00:00:00:01"
SITE = Site(
    "10.77.0.1/24",
    "10.77.0.1:7425",
    {kind: names[0] for kind, names in FIRMWARE.items()},
    "10.77.0.254",
    ("10.77.0.53",),
    "lab",
)
PC = Machine(MAC, "pc01", "10.77.0.100")
SCRIPT = b"http://10.77.0.1:7425/boot.ipxe"
BOOTS = {
    "bios": b"undionly.kpxe",
    "uefi": b"snponly.efi",
    "arm64": b"snponly-arm64.efi",
    "http": b"http://10.77.0.1:7425/firmware/snponly.efi",
    "ipxe": SCRIPT,
}


def reply_to(packet: Packet, part: Part = "dhcp", machine: Machine | None = PC, port: int = 67) -> Reply | None:
    """What a client gets that has just been heard for the first time; over the wire, as bytes."""
    packet = dhcp.parse(dhcp.encode(packet))
    found = answer(packet, part, SITE, answers.client_kind(packet), machine, port)
    return found and msgspec.structs.replace(found, packet=dhcp.parse(dhcp.encode(found.packet)))


def told(packet: Packet, part: Part = "dhcp", machine: Machine | None = PC, port: int = 67) -> Packet:
    """The packet that it gets."""
    found = reply_to(packet, part, machine, port)
    assert found
    return found.packet


# ---- bytes


def test_a_packet_is_read_as_it_was_written() -> None:
    for data in samples():
        packet = dhcp.parse(data)
        again = dhcp.parse(dhcp.encode(packet))
        assert {k: v for k, v in packet.options.items() if k != dhcp.OVERLOAD} == {
            k: v for k, v in again.options.items() if k != dhcp.OVERLOAD
        }
        assert (packet.mac, packet.xid, packet.ciaddr) == (again.mac, again.xid, again.ciaddr)


def test_a_long_option_comes_in_parts() -> None:
    packet = Packet(op=1, mac=MAC, xid=1, options={dhcp.KIND: b"\1", 224: bytes(range(256)) * 3})
    assert dhcp.parse(dhcp.encode(packet)).options[224] == bytes(range(256)) * 3


def test_options_go_on_in_the_fields_of_names_that_option_52_says() -> None:
    plain = bytearray(dhcp.encode(Client("bios").packet(dhcp.DISCOVER, options={dhcp.OVERLOAD: b"\3"})))
    plain[44 : 44 + 6] = bytes((12, 2)) + b"hi" + b"\xff\0"  # sname
    plain[108 : 108 + 6] = bytes((15, 3)) + b"lab\xff"  # file
    packet = dhcp.parse(bytes(plain))
    assert (packet.text(dhcp.HOSTNAME), packet.text(dhcp.DOMAIN)) == ("hi", "lab")
    assert (packet.file, packet.sname) == (b"", b"")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: data[:100], "it has 100 bytes"),
        (lambda data: data[:236] + b"abcd" + data[240:], "no magic number"),
        (lambda data: bytes((7,)) + data[1:], "its op is 7"),
        (lambda data: data[:1] + b"\x20\x14" + data[3:], "only Ethernet"),
        (lambda data: data[:240] + b"\x35\x01", "option 53 is cut off"),
        (lambda data: data[:240] + b"\x35", "option 53 is cut off"),
        (lambda data: data[:240] + b"\x3d\xff" + b"x" * 254, "option 61 is cut off"),
        (lambda data: data[:240] + b"\x34\x01\x09\xff", "option 52"),
        (lambda data: data + b"\0" * 5000, "not 240 to 4096"),
    ],
)
def test_what_cannot_be_read_whole_is_refused_by_what_is_wrong(spoil, why: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=why):
        dhcp.parse(spoil(samples()[0]))


# ---- who gets what


@pytest.mark.parametrize("kind", BOOTS)
def test_each_kind_of_client_is_offered_what_it_can_run_and_its_own_address(kind: str) -> None:
    client = Client(kind)
    offer = told(client.discover())
    assert (offer.kind, offer.yiaddr, offer.xid, offer.mac) == (dhcp.OFFER, "10.77.0.100", client.xid, MAC)
    assert offer.file == offer.options[dhcp.BOOT_FILE] == BOOTS[kind]
    assert offer.siaddr == offer.address(dhcp.SERVER) == "10.77.0.1"
    assert (offer.address(dhcp.MASK), offer.address(dhcp.ROUTER)) == ("255.255.255.0", "10.77.0.254")
    assert (offer.text(dhcp.HOSTNAME), offer.text(dhcp.DOMAIN)) == ("pc01", "lab")
    ack = told(client.request(offer))
    same = {code: value for code, value in ack.options.items() if code != dhcp.KIND}
    assert same == {code: value for code, value in offer.options.items() if code != dhcp.KIND}
    assert (ack.kind, ack.yiaddr, ack.file) == (dhcp.ACK, offer.yiaddr, offer.file)


def test_firmware_is_told_to_ask_no_boot_server_and_only_ipxe_to_wait_for_no_proxy() -> None:
    for kind in ("bios", "uefi", "arm64"):
        offer = told(Client(kind).discover())
        assert offer.text(dhcp.CLASS) == "PXEClient" and offer.options[dhcp.VENDOR] == bytes((6, 1, 8, 255))
        assert dhcp.IPXE not in offer.options
    assert told(Client("http").discover()).text(dhcp.CLASS) == "HTTPClient"
    assert told(Client("ipxe").discover()).options[dhcp.IPXE] == bytes((176, 1, 1))
    assert dhcp.IPXE not in told(Client("ipxe").discover(), "proxy").options


def test_who_does_not_boot_gets_an_address_and_nothing_to_boot() -> None:
    offer = told(Client("plain").discover())
    assert offer.yiaddr == "10.77.0.100" and not offer.file and dhcp.BOOT_FILE not in offer.options
    assert reply_to(Client("plain").discover(), "proxy") is None


@pytest.mark.parametrize("kind", BOOTS)
def test_a_proxy_gives_no_address_and_answers_only_what_is_meant_for_it(kind: str) -> None:
    client = Client(kind)
    offer = told(client.discover(), "proxy", None)
    assert (offer.yiaddr, offer.kind, offer.file) == ("0.0.0.0", dhcp.OFFER, BOOTS[kind])
    assert dhcp.LEASE not in offer.options and dhcp.MASK not in offer.options
    other = Packet(op=2, mac=MAC, xid=1, yiaddr="10.77.0.7", options={dhcp.SERVER: bytes((10, 77, 0, 254))})
    assert reply_to(client.request(other), "proxy", None) is None
    ask = client.packet(dhcp.ASK, ciaddr="10.77.0.7")
    found = reply_to(ask, "proxy", None, dhcp.PXE_PORT)
    assert found and (found.packet.kind, found.packet.file, found.host) == (dhcp.ACK, BOOTS[kind], "10.77.0.7")


def test_a_request_gets_what_its_discover_got_whatever_it_says_of_itself() -> None:
    talks, client = Talks(), Client("uefi")
    assert talks.hear(client.discover(), 0.0) == ("uefi", "")
    bare = Packet(op=1, mac=MAC, xid=client.xid, options={dhcp.KIND: bytes((dhcp.ASK,))})
    assert talks.hear(bare, 1.0) == ("uefi", "")
    assert talks.hear(msgspec.structs.replace(bare, xid=9), 2.0) == ("", "")
    assert talks.hear(msgspec.structs.replace(bare, xid=9), 500.0) == ("", "")


def test_the_script_of_an_architecture_that_nothing_is_here_for_is_not_promised() -> None:
    bare = msgspec.structs.replace(SITE, firmware={})
    packet = Client("bios").discover()
    assert answer(packet, "proxy", bare, "bios", None, 67) is None
    offer = answer(packet, "dhcp", bare, "bios", PC, 67)
    assert offer and not offer.packet.file and offer.packet.yiaddr == "10.77.0.100"
    strange = packet.options | {dhcp.ARCH: b"\0\6"}
    assert answers.client_kind(msgspec.structs.replace(packet, options=strange)) == ""


def test_an_address_that_is_not_the_machines_own_is_denied_and_another_servers_client_left_alone() -> None:
    client = Client("bios")
    foreign = Packet(op=2, mac=MAC, xid=1, yiaddr="10.77.0.55", options={dhcp.SERVER: bytes((10, 77, 0, 1))})
    found = reply_to(client.request(foreign))
    assert found and found.packet.kind == dhcp.NAK and found.host == "255.255.255.255"
    reboot = client.packet(dhcp.ASK, options={dhcp.WANTED_ADDRESS: bytes((192, 168, 1, 5))})
    assert told(reboot).kind == dhcp.NAK
    elsewhere = Packet(op=2, mac=MAC, xid=1, yiaddr="10.77.0.55", options={dhcp.SERVER: bytes((10, 77, 0, 9))})
    assert reply_to(client.request(elsewhere)) is None
    assert not answers.wants_machine(client.request(elsewhere), "dhcp", "10.77.0.1")


def test_a_lease_is_renewed_at_the_address_itself() -> None:
    found = reply_to(Client("plain").packet(dhcp.ASK, ciaddr="10.77.0.100"))
    assert found and (found.packet.kind, found.host, found.port) == (dhcp.ACK, "10.77.0.100", 68)
    relayed = reply_to(Client("plain").packet(dhcp.DISCOVER, giaddr="10.77.5.1"))
    assert relayed and (relayed.host, relayed.port) == ("10.77.5.1", 67)


def test_release_and_decline_get_no_answer_and_inform_no_address() -> None:
    client = Client("plain")
    assert reply_to(client.packet(dhcp.RELEASE, ciaddr="10.77.0.100")) is None
    assert reply_to(client.packet(dhcp.DECLINE)) is None
    inform = told(client.packet(dhcp.INFORM, ciaddr="10.77.0.100"))
    assert (inform.kind, inform.yiaddr) == (dhcp.ACK, "0.0.0.0") and dhcp.LEASE not in inform.options


def test_two_machines_with_one_mac_address_are_told_of_once() -> None:
    talks = Talks()
    one, other = Client("bios").discover(), Client("bios", guid=b"\0" + b"z" * 16).discover()
    assert talks.hear(one, 0.0)[1] == ""
    assert talks.hear(one, 1.0)[1] == ""
    assert MAC in talks.hear(other, 2.0)[1]
    assert talks.hear(one, 3.0)[1] == ""


def test_another_server_is_seen_by_its_offers_and_by_whom_clients_choose() -> None:
    options = {dhcp.KIND: bytes((dhcp.OFFER,)), dhcp.SERVER: bytes((10, 77, 0, 254))}
    offer = Packet(op=2, mac=MAC, xid=1, yiaddr="10.77.0.7", options=options)
    assert answers.is_other_server(offer, "10.77.0.1") == "10.77.0.254"
    assert answers.is_other_server(msgspec.structs.replace(offer, yiaddr="0.0.0.0"), "10.77.0.1") == ""  # a proxy
    assert answers.is_other_server(Client("plain").request(offer), "10.77.0.1") == "10.77.0.254"
    assert answers.is_other_server(offer, "10.77.0.254") == ""


def test_memory_of_talks_has_an_end() -> None:
    talks = Talks()
    for number in range(answers.TALKS_MAX + 50):
        talks.hear(Client("bios", mac=f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}").discover(), 0.0)
    assert len(talks._talks) == answers.TALKS_MAX
