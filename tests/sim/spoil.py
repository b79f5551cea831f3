"""A plugin of pytest: `pytest -p tests.sim.spoil --spoil MUTANT TEST ...` runs tests with one guard switched off."""

from __future__ import annotations

import pytest

from tests.sim import mutants


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which guard."""
    parser.addoption("--spoil", required=True, metavar="MUTANT")


@pytest.fixture(autouse=True)
def _spoilt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    getattr(mutants, request.config.getoption("--spoil"))(monkeypatch)
