"""What docs/machines.md and docs/heads.md show is run, on the machines that they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster import ROOT
from tests.net.hosts import network
from tests.test_docs import _matches

pytestmark = [pytest.mark.root, pytest.mark.net]

PAGES = [ROOT / "docs" / "machines.md", ROOT / "docs" / "heads.md"]
TOKEN = re.compile(r"beo_[A-Za-z0-9_-]{70}")


def _steps(page: Path) -> list[tuple[int, str, str]]:
    """The commands of the page as (number of the host, command, expected output)."""
    steps: list[tuple[int, str, str]] = []
    for block in re.findall(r"^```hosts\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if prompt := re.match(r"pc(\d)\$ (.*)", line):
                steps.append((int(prompt[1]), prompt[2], ""))
            else:
                number, command, expected = steps[-1]
                steps[-1] = number, command, f"{expected}{line}\n"
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_shows_what_happens(page: Path, tmp_path: Path) -> None:
    own = f"{tmp_path}/beo-"  # so that two runs don't meet
    steps = [(n, line.replace("/tmp/beo-", own), shown.replace("/tmp/beo-", own)) for n, line, shown in _steps(page)]
    assert len(steps) > 10
    token = ""
    with network(tmp_path, 3) as net:
        for host in net.hosts[:2]:
            host.beo_dir.mkdir(mode=0o700)
            (host.beo_dir / "beo.toml").write_text("[worker]\nlease_s = 3.0\n")
        for number, command, expected in steps:
            host = net.hosts[number - 1]
            done = host.run("bash", "-c", command.replace("beo_...", token))
            printed = done.stdout + done.stderr
            assert _matches(expected, printed), f"{host.name}$ {command}\nthe page shows:\n{expected}\nbut:\n{printed}"
            token = (TOKEN.findall(printed) or [token])[0]  # `beo head init` prints a worker's first
        for host in net.hosts:
            host.beo("down")
            assert host.pids == []
