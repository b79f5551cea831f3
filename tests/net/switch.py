"""The switches between hosts, one a network, and what goes wrong on them: frames between two hosts that get lost.

A kernel may have no netem; what is lost is dropped by rules of nftables where a frame passes a bridge. A host sees
nothing of it: its link stays up. A "frame" between hosts of one machine may be a burst of one connection, up to 64 KiB,
as the kernel cuts it into packets only where it has to.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from tests.net.space import Space, do

_TABLE = """table bridge faults {
  chain forward { type filter hook forward priority 0; policy accept; }
}
"""
EVERY = ""
NOT_ARP = "ether type != arp"  # without ARP's answers nothing would go the other way, either, after half a minute

Way = tuple[str, str, int]  # from a host to another, "" for any, on a link, ANY for any
ANY = -1


def some(percent: int) -> str:
    """So many of 100 frames, at random."""
    return f"numgen random mod 100 < {percent}"


class Switch:
    """So many switches, named by numbers from 0. A host's cable to number k is its interface `eth{k}`."""

    def __init__(self, links: int) -> None:
        """Make them, in a namespace of their own; `space` also has the disks that outlive a host."""
        self._links = range(links)
        self._lossy: dict[Way, str] = {}  # which of the frames get lost, in words of nftables
        self.space = Space(("net", "mount"), "mount --make-rprivate /\n", {})
        for link in self._links:
            self._ip(f"link add switch{link} type bridge", f"link set switch{link} up")
        self._nft(_TABLE)

    def _ip(self, *lines: str) -> None:
        do([*self.space.enter("net"), "ip", "-batch", "-"], "\n".join(lines) + "\n")

    def _nft(self, text: str) -> None:
        do([*self.space.enter("net"), "nft", "-f", "-"], text)

    def plug(self, name: str, pid: int, macs: dict[int, str]) -> None:
        """Connect the namespace of a process, the host `name`, by an interface per entry of `macs`."""
        for link, mac in macs.items():
            port = _port(name, link)
            with suppress(AssertionError):  # the other end of a cable went with its host, a moment ago or just now
                self._ip(f"link del {port}")
            self._ip(
                f"link add {port} type veth peer name eth{link} address {mac} netns {pid}",
                f"link set {port} master switch{link} up",
            )

    def make_disk(self, path: Path, size_bytes: int) -> Path:
        """A file system of that size at `path` for hosts whose space is made below this one's.

        Returns where this process sees it; it is empty, and stays when such a host ends.
        """
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "disk", str(path)]
        do([*self.space.enter("mount"), *mount])
        return Path(f"/proc/{self.space.pid}/root{path}")

    # ---- faults

    def lose(self, ways: list[Way], which: str = EVERY) -> None:
        """From now on lose frames that go these ways, every one or those that fit an expression of nftables."""
        self._lossy |= dict.fromkeys(ways, which)
        self._apply()

    def mend(self, name: str) -> None:
        """Lose nothing of what goes from and to a host, as far as that was said of that host; "" means all hosts."""
        self._lossy = {way: which for way, which in self._lossy.items() if name and name not in way[:2]}
        self._apply()

    def _apply(self) -> None:
        """All rules at once: there is no moment with half of them."""
        rules = [
            "add rule bridge faults forward "
            + self._match("iifname", source, link)
            + self._match("oifname", target, link)
            + f"{which} drop"
            for (source, target, link), which in self._lossy.items()
        ]
        self._nft("\n".join(["flush chain bridge faults forward", *rules, ""]))

    def _match(self, key: str, name: str, link: int) -> str:
        if not name:
            return ""  # a frame stays on its switch: the other end says which
        links = self._links if link == ANY else [link]
        return f"{key} {{ {', '.join(json.dumps(_port(name, each)) for each in links)} }} "


def _port(name: str, link: int) -> str:
    return f"{name}-{link}"
