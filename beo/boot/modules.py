"""Which of a kernel's modules go into an image, and which into its initrd. Pure but for depmod's own words.

The full kernel has drivers for everything, which are four fifths of it: sound, cameras, screens, radio. A worker needs
the network, disks, and what programs may ask for. The initrd needs what brings the image here and mounts it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from beo.errors import BeoError


def words(text: str) -> list[str]:
    """The words of a text, where a list of them reads better so."""
    return text.split()


SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
ROOT_OUT = words(
    "kernel/sound/ kernel/drivers/gpu/ kernel/drivers/media/ kernel/drivers/staging/ kernel/drivers/net/wireless/ "
    "kernel/net/wireless/ kernel/net/mac80211/ kernel/net/bluetooth/ kernel/drivers/bluetooth/ kernel/drivers/iio/ "
    "kernel/drivers/infiniband/ kernel/drivers/scsi/ kernel/drivers/isdn/ kernel/drivers/input/ "
    "kernel/drivers/video/ kernel/drivers/accel/ kernel/drivers/hid/ kernel/drivers/usb/gadget/ "
    "kernel/drivers/usb/serial/ kernel/net/can/ kernel/drivers/net/can/ kernel/drivers/target/ "
    "kernel/drivers/comedi/ kernel/drivers/power/ kernel/drivers/leds/ kernel/drivers/platform/ kernel/drivers/mtd/ "
    "kernel/drivers/misc/ kernel/drivers/message/ kernel/drivers/pcmcia/ kernel/drivers/parport/ "
    "kernel/drivers/firewire/ kernel/drivers/ssb/ kernel/drivers/bcma/ kernel/net/nfc/ kernel/drivers/nfc/ "
    "kernel/drivers/mmc/ kernel/drivers/memstick/ kernel/drivers/rtc/ kernel/drivers/regulator/ kernel/drivers/mfd/ "
    "kernel/drivers/gpio/ kernel/drivers/soundwire/ kernel/drivers/thunderbolt/ kernel/drivers/w1/ kernel/fs/ocfs2/ "
    "kernel/fs/gfs2/ kernel/fs/jfs/ kernel/fs/reiserfs/ kernel/fs/afs/ kernel/fs/coda/ kernel/fs/orangefs/ "
    "kernel/fs/ubifs/ kernel/fs/jffs2/ kernel/fs/nilfs2/ kernel/fs/ufs/ kernel/fs/hfs/ kernel/fs/hfsplus/ "
    "kernel/fs/bcachefs/ kernel/fs/smb/server/ kernel/net/batman-adv/ kernel/net/tipc/ kernel/net/dccp/ "
    "kernel/net/ax25/ kernel/net/rds/ kernel/net/atm/ kernel/drivers/atm/ kernel/drivers/net/hamradio/ "
    "kernel/drivers/net/wan/ kernel/drivers/net/arcnet/ kernel/drivers/net/ieee802154/ kernel/net/ieee802154/ "
    "kernel/drivers/md/ kernel/drivers/hwmon/ kernel/drivers/i2c/ kernel/drivers/edac/ kernel/arch/x86/kvm/ "
    "kernel/fs/btrfs/ kernel/fs/f2fs/ kernel/fs/nfsd/ kernel/net/netfilter/ipset/"
)
# Cards of large servers and switches, which no PC has.
SERVERS = tuple(
    f"kernel/drivers/net/ethernet/{vendor}/"
    for vendor in words(
        "chelsio netronome pensando cavium huawei fungible qlogic sfc emulex brocade cisco mellanox/mlxsw"
    )
)
INITRD_IN = words(
    "kernel/drivers/net/ethernet/ kernel/drivers/net/phy/ kernel/drivers/net/mdio/ kernel/drivers/net/pcs/"
)
INITRD_NAMES = words("virtio_net virtio_pci virtio_mmio vmxnet3 hv_netvsc xen-netfront loop squashfs overlay af_packet")
# Of a PC's on-board network, and of a virtual machine's; a profile without one of these isn't what its name says.
EXPECTED = {
    "lab": "e1000 e1000e igb igc r8169 8139too tg3 bnx2 forcedeth atlantic alx sky2 virtio_net loop squashfs overlay",
    "vm": "virtio_net loop squashfs overlay",
}
_FIRMWARE = re.compile(rb"(?<![!-~])firmware=([!-~]+)\0")  # in a module's .modinfo


def name_of(path: str) -> str:
    """The name of the module in a file, as modprobe knows it, with _ where - may stand."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def is_module(path: str) -> bool:
    """Whether a file is a module."""
    return path.endswith(SUFFIXES)


def for_root(paths: Iterable[str]) -> list[str]:
    """Those of the modules (kernel/…/NAME.ko.xz) that an image has."""
    return [path for path in paths if is_module(path) and not path.startswith((*ROOT_OUT, *SERVERS))]


def for_initrd(paths: Iterable[str], needs: dict[str, list[str]]) -> list[str]:
    """Those that its initrd has, with all that they need; `needs` is what modules.dep says."""
    names = {name.replace("-", "_") for name in INITRD_NAMES}
    cards = [path for path in paths if path.startswith(tuple(INITRD_IN)) and not path.startswith(SERVERS)]
    return with_needs([*cards, *(path for path in paths if name_of(path) in names)], needs)


def with_needs(paths: Iterable[str], needs: dict[str, list[str]]) -> list[str]:
    """These modules and all that they need, in order."""
    ahead = list(paths)
    found: set[str] = set()
    while ahead:
        path = ahead.pop()
        if path not in found:
            found.add(path)
            ahead += needs.get(path, [])
    return sorted(found)


def read_needs(text: str) -> dict[str, list[str]]:
    """Read modules.dep: path -> the paths that it needs."""
    lines = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {path: rest.split() for path, _, rest in lines}


def firmware_of(module: bytes) -> set[str]:
    """For what firmware a module, unpacked, may ask: paths below lib/firmware, in which * may stand."""
    return {found.decode() for found in _FIRMWARE.findall(module)}


def wanted(names: Iterable[str], asked: Collection[str]) -> list[str]:
    """Those of the firmware's files that are asked for; they may be packed, as the kernel unpacks them."""
    plain, patterns = set(asked), [name for name in asked if "*" in name]
    found = []
    for name in names:
        bare = name.removesuffix(".xz").removesuffix(".zst")
        if bare in plain or any(fnmatchcase(bare, pattern) for pattern in patterns):
            found.append(name)
    return found


def check_drivers(profile: str, paths: Iterable[str], builtin: str) -> None:
    """Raise BeoError where a driver is missing that a profile promises. builtin: what modules.builtin says."""
    have = {name_of(path) for path in paths} | {name_of(path) for path in builtin.split()}
    missing = [name for name in EXPECTED[profile].split() if name not in have]
    if missing:
        why = "a machine that needs one would find no network" if profile == "lab" else "no machine would boot"
        raise BeoError(f"the initrd lacks the drivers {' '.join(missing)}", why, "report this: the kernel has changed")
