"""What every test shares: marks that are honoured, and hypothesis kept repeatable."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.cluster import BEO, ROOT, running
from tests.net import hosts

# Verbs are done without a resident process, which would be left behind; test_resident.py has its own. Set here and not
# by a fixture, so that fixtures of a wider scope have it too.
os.environ["BEO_RESIDENT"] = "0"

# The same examples every time: a failure seen elsewhere is seen here, and nothing is written beside the code.
settings.register_profile("beo", derandomize=True, database=None, deadline=None, max_examples=100)
settings.load_profile("beo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `root` where this process is not root."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let fail, with the cure, what is marked `net` where root lacks a program to make hosts with: never skip it."""
    if item.get_closest_marker("net") and (what := hosts.missing()):
        pytest.fail(what, pytrace=False)


Launch = Callable[..., subprocess.CompletedProcess[str]]

KILL_AFTER_S = 5  # from SIGTERM, which `beo run` hands on to its job, to SIGKILL


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """`beo run` on a cluster of two nodes with two slots each: launch(ranks, argv of a Python script, stdin, ...)."""
    with running(tmp_path_factory.mktemp("launch") / "beo") as cluster:

        def run(
            ranks: int,
            argv: list[str],
            stdin: str = "",
            *,
            nodes: int = 0,
            directory: Path = ROOT / "jobs",
            timeout_s: int = 60,
        ) -> subprocess.CompletedProcess[str]:
            """Run a script to its end; what hangs is ended by timeout(1): exit 124."""
            limit = ["timeout", f"--kill-after={KILL_AFTER_S}", str(timeout_s)]
            words = [*limit, *BEO, "run", "-n", str(ranks), "-N", str(nodes), sys.executable, *argv]
            return subprocess.run(words, cwd=directory, env=cluster.env, input=stdin, capture_output=True, text=True)

        yield run
