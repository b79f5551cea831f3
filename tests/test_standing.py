"""When a service address is renewed, announced and taken away; and the words of ARP in which others learn of it."""

import re
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import pairwise

import pytest

from beo.ha import arp
from beo.ha.address import ServiceAddress
from beo.ha.duties import ADDRESS_WAIT_S, FALL_S, RECOVER_S, Duties, Duty
from beo.ha.standing import ANNOUNCE_S, GRANT_S, PROBE_S, RETRY_S, VALID_S, Act, Standing
from beo.netlink import FOREVER_S, Found
from tests.cluster import wait_for

OURS, THEIRS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
ADDRESS = IPv4Address("10.0.0.50")


def played(standing: Standing, until_s: float, renewed_until_s: float, step_s: float = 0.05) -> list[tuple[float, Act]]:
    """What is done by a loop that renews at each turn, and a kernel that takes everything."""
    done = []
    for turn in range(round(until_s / step_s)):
        now_s = turn * step_s
        if now_s < renewed_until_s:
            standing.renew(now_s)
        while acts := standing.acts(now_s):
            done += [(now_s, act) for act in acts]
            if Act.PUT in acts:
                standing.put(now_s)
    return done


def times(done: list[tuple[float, Act]], act: Act) -> list[float]:
    return [now_s for now_s, what in done if what is act]


def test_the_address_is_renewed_long_before_the_kernel_takes_it_and_never_after_the_permission() -> None:
    puts = times(played(Standing(), until_s=10, renewed_until_s=5), Act.PUT)
    assert puts[0] == 0 and all(VALID_S / 5 < later - sooner < VALID_S / 3 for sooner, later in pairwise(puts))
    assert 5 - VALID_S / 3 < puts[-1] < 5 + GRANT_S


def test_it_is_announced_at_once_and_again_until_the_last_holder_has_lost_it_and_only_then_looked_for() -> None:
    done = played(Standing(), until_s=5, renewed_until_s=5)
    announced = times(done, Act.ANNOUNCE)
    assert announced[0] == 0 and announced[-1] > VALID_S + 0.1 and len(announced) == len(ANNOUNCE_S)
    assert times(done, Act.PROBE) == [pytest.approx(PROBE_S)]
    assert [act for _, act in done if act in (Act.PROBE, Act.LISTEN)] == [Act.PROBE, Act.LISTEN]


def test_renewing_again_and_again_announces_nothing_anew() -> None:
    done = played(Standing(), until_s=50, renewed_until_s=50)
    assert len(times(done, Act.ANNOUNCE)) == len(ANNOUNCE_S)


def test_a_pause_in_which_the_kernel_took_it_is_an_acquisition() -> None:
    standing = Standing()
    played(standing, until_s=2, renewed_until_s=2)
    standing.renew(9)
    assert standing.acts(9) == [Act.PUT]
    standing.put(9)
    assert standing.acts(9) == [Act.ANNOUNCE]


def test_what_is_released_is_removed_at_once_and_once() -> None:
    standing = Standing()
    played(standing, until_s=2, renewed_until_s=2)
    standing.release()
    assert standing.due_s(2) == 2 and standing.acts(2) == [Act.REMOVE] and standing.acts(2) == []
    assert not standing.is_held(2)
    standing.release()
    assert standing.acts(2) == []


def test_a_release_while_the_kernel_is_being_told_is_not_lost() -> None:
    standing = Standing()
    standing.renew(0)
    assert standing.acts(0) == [Act.PUT]
    standing.release()
    standing.put(0)
    assert standing.acts(0) == [Act.REMOVE]


def test_a_refusal_is_tried_again_after_a_while() -> None:
    standing = Standing()
    standing.renew(0)
    assert standing.acts(0) == [Act.PUT]
    standing.refused(0)
    standing.renew(RETRY_S / 2)
    assert standing.acts(RETRY_S / 2) == []
    standing.renew(RETRY_S)
    assert standing.acts(RETRY_S) == [Act.PUT]


def test_an_announcement_claims_the_address_and_a_probe_does_not() -> None:
    for frame in arp.announcements(OURS, ADDRESS):
        assert len(frame) == 42 and frame[:6] == b"\xff" * 6 and frame[6:12] == OURS
        assert arp.claimant(frame, THEIRS, ADDRESS) == "02:00:00:00:00:01"
        assert arp.claimant(frame, OURS, ADDRESS) == "", "one's own voice is no other's"
        assert arp.claimant(frame, THEIRS, IPv4Address("10.0.0.51")) == ""
    assert arp.claimant(arp.probe(OURS, ADDRESS), THEIRS, ADDRESS) == ""


def test_what_is_no_arp_claims_nothing() -> None:
    (frame, _) = arp.announcements(OURS, ADDRESS)
    for length in range(len(frame)):
        assert arp.claimant(frame[:length], THEIRS, ADDRESS) == ""
    assert arp.claimant(frame[:12] + b"\x08\x00" + frame[14:], THEIRS, ADDRESS) == ""  # an IP packet
    assert arp.claimant(frame[:14] + b"\x00\x06" + frame[16:], THEIRS, ADDRESS) == ""  # of token ring


class Kernel:
    """A kernel in the hands of a test: what it has, what it was told, and whether it takes it."""

    def __init__(self, *addresses: Found) -> None:
        self.found = list(addresses)
        self.told: list[str] = []
        self.error: OSError | None = None
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def put(self, index: int, address: IPv4Address, prefix: int, valid_s: int) -> None:
        self.entered.set()
        self.gate.wait(10)
        self.told.append(f"{index} {address}/{prefix} {valid_s}")
        if self.error:
            raise self.error

    def remove(self, index: int, address: IPv4Address, prefix: int) -> None:
        self.told.append(f"{index} {address}/{prefix} gone")

    def addresses(self) -> list[Found]:
        return self.found


LO = 1  # of every machine


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel(Found(LO, IPv4Address("10.0.0.2"), 24, FOREVER_S))
    yield kernel
    kernel.gate.set()


def test_a_service_address_takes_the_interface_and_the_prefix_of_its_network(kernel: Kernel) -> None:
    address = ServiceAddress("10.0.0.50", "", "10.0.0.2:7420", kernel)
    address.renew()
    wait_for(lambda: address.is_held, "the address")
    address.release()
    wait_for(lambda: f"{LO} 10.0.0.50/24 gone" in kernel.told, "its end")
    address.close()
    assert kernel.told == [f"{LO} 10.0.0.50/24 1", f"{LO} 10.0.0.50/24 gone"] and not address.is_held


def test_a_kernel_that_lets_one_wait_holds_up_nobody(kernel: Kernel) -> None:
    kernel.gate.clear()
    address = ServiceAddress("10.0.0.50", "lo", "10.0.0.2:7420", kernel)
    address.renew()
    assert kernel.entered.wait(10)
    for _ in range(100):
        address.renew()
        assert not address.is_held
    address.release()
    kernel.gate.set()
    wait_for(lambda: kernel.told[-1:] == [f"{LO} 10.0.0.50/24 gone"], "the release that came meanwhile")
    address.close()


@pytest.mark.parametrize(
    ("wanted", "interface", "error", "told"),
    [
        ("10.0.0.50", "nosuch0", None, "no interface 'nosuch0' here: set .* to one of .*lo"),
        ("10.9.9.9", "", None, "no interface is in the network of 10.9.9.9: set .*interface to one of"),
        ("10.0.0.2", "lo", None, r"10\.0\.0\.2 is an address of this machine itself \(on lo\): set \[ha\] address"),
        ("10.0.0.50", "lo", PermissionError(1, "Operation not permitted"), "operation not permitted.*as root"),
        ("10.0.0.50", "lo", OSError(19, "No such device"), r"on lo \(no such device\): see 'ip address'"),
    ],
)
def test_what_stands_in_the_way_of_an_address_is_told_with_its_cure(
    kernel: Kernel, wanted: str, interface: str, error: OSError | None, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.error = error
    address = ServiceAddress(wanted, interface, "127.0.0.1:7420", kernel)
    address.renew()
    wait_for(lambda: bool(address.troubles), "a trouble")
    for _ in range(5):
        address.renew()
        time.sleep(0.01)
    (trouble,) = address.troubles
    assert re.search(told, trouble), trouble
    assert not address.is_held and len(caplog.records) == 1, "told once"
    address.close()


def test_a_trouble_that_is_over_is_told_no_more(kernel: Kernel) -> None:
    kernel.error = OSError(19, "No such device")
    address = ServiceAddress("10.0.0.50", "lo", "127.0.0.1:7420", kernel)

    def renewed() -> bool:
        address.renew()
        return address.is_held

    address.renew()
    wait_for(lambda: bool(address.troubles), "a trouble")
    kernel.error = None
    wait_for(renewed, "the address")
    assert [trouble for trouble in address.troubles if "No such device" in trouble] == []
    address.close()


ROLES = {
    "primary": {"primary": True, "may_act": True, "follows": False},
    "primary without a lease": {"primary": True, "may_act": False, "follows": False},
    "standby": {"primary": False, "may_act": False, "follows": True},
    "idle": {"primary": False, "may_act": False, "follows": False},
}


def duty(has_address: bool = True, has_left: bool = False) -> Duty:
    return Duty(0, has_address=has_address, has_left=has_left, lease_s=0.6)


def test_programs_wait_for_the_address_but_not_for_ever() -> None:
    one = duty()
    assert one.decide(0, **ROLES["primary"], holds=False) == Duties(True, None)
    assert one.decide(1, **ROLES["primary"], holds=True) == Duties(True, True)
    other = duty()
    other.decide(0, **ROLES["primary"], holds=False)
    assert other.decide(ADDRESS_WAIT_S, **ROLES["primary"], holds=False) == Duties(True, True)
    assert duty(has_address=False).decide(0, **ROLES["primary"], holds=False) == Duties(True, True)


def test_a_head_that_is_the_primary_no_more_lets_go_of_everything_at_once() -> None:
    one = duty()
    one.decide(0, **ROLES["primary"], holds=True)
    assert one.decide(1, **ROLES["idle"], holds=True) == Duties(False, False)
    assert one.decide(1, **ROLES["standby"], holds=True) == Duties(False, False)


def test_a_lease_that_is_late_ends_no_program_and_one_that_is_lost_does() -> None:
    one = duty()
    one.decide(0, **ROLES["primary"], holds=True)
    assert one.decide(FALL_S / 2, **ROLES["primary without a lease"], holds=True) == Duties(None, True)
    assert one.decide(FALL_S, **ROLES["primary without a lease"], holds=False) == Duties(None, False)
    assert one.decide(FALL_S + 1, **ROLES["primary"], holds=True) == Duties(True, True)


def test_a_primary_starts_nothing_before_it_may_act() -> None:
    assert duty().decide(0, **ROLES["primary without a lease"], holds=False) == Duties(None, None)


def test_a_head_that_was_killed_as_the_primary_waits_until_it_knows_what_it_is() -> None:
    assert duty(has_left=True).decide(0, **ROLES["idle"], holds=False) == Duties(False, None)
    assert duty(has_left=True).decide(0, **ROLES["standby"], holds=False) == Duties(False, False)
    assert duty(has_left=True).decide(RECOVER_S, **ROLES["idle"], holds=False) == Duties(False, None)
    assert duty(has_left=True).decide(RECOVER_S + 2 * 0.6, **ROLES["idle"], holds=False) == Duties(False, False)
    assert duty(has_left=True).decide(0, **ROLES["primary"], holds=True) == Duties(True, True)
    assert duty().decide(0, **ROLES["idle"], holds=False) == Duties(False, False)
