"""Addresses of this machine; the tests look at the machine in another way."""

from __future__ import annotations

from pathlib import Path

import pytest

from beo import address


def test_every_address_of_the_machine_has_its_interface_and_others_have_none() -> None:
    for name, one in [*address._addresses4(), *address._addresses6()]:
        assert Path("/sys/class/net", name).exists()
        assert address.interface_of(str(one)) is not None
    assert address.interface_of("127.1.2.3") in (None, "lo")
    assert address.interface_of("203.0.113.77") is None
    with pytest.raises(ValueError):
        address.interface_of("not-an-address")
