"""What docs/machines.md shows is run, on the machines that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster import ROOT
from tests.net.hosts import network
from tests.test_docs import _matches

pytestmark = [pytest.mark.root, pytest.mark.net]

PAGE = ROOT / "docs" / "machines.md"
TOKEN = re.compile(r"beo_[A-Za-z0-9_-]{70}")


def _steps() -> list[tuple[int, str, str]]:
    """The commands of the page as (number of the host, command, expected output)."""
    steps: list[tuple[int, str, str]] = []
    for block in re.findall(r"^```hosts\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if prompt := re.match(r"pc(\d)\$ (.*)", line):
                steps.append((int(prompt[1]), prompt[2], ""))
            else:
                number, command, expected = steps[-1]
                steps[-1] = number, command, f"{expected}{line}\n"
    return steps


@pytest.mark.slow
def test_the_machines_page_shows_what_happens(tmp_path: Path) -> None:
    steps = _steps()
    assert len(steps) > 10
    token = ""
    with network(tmp_path, 3) as net:
        net.hosts[0].beo_dir.mkdir(mode=0o700)
        (net.hosts[0].beo_dir / "beo.toml").write_text("[worker]\nlease_s = 3.0\n")
        for number, command, expected in steps:
            host = net.hosts[number - 1]
            done = host.run("bash", "-c", command.replace("beo_...", token))
            printed = done.stdout + done.stderr
            assert _matches(expected, printed), f"{host.name}$ {command}\nthe page shows:\n{expected}\nbut:\n{printed}"
            token = (TOKEN.findall(printed) or [token])[0]  # `beo head init` prints a worker's first
        for host in net.hosts:
            host.beo("down")
            assert host.pids == []
