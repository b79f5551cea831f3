"""The simulation has teeth: each guard of the cores is switched off, and that is missed. mutants.py has the table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.clock import Violation
from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.world import Simulation

HERE = [mutant for mutant in MUTANTS if not mutant.by]
ELSEWHERE = [mutant for mutant in MUTANTS if mutant.by]
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mutant", HERE, ids=lambda mutant: mutant.mutate.__name__)
def test_a_guard_that_is_switched_off_is_missed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """By some seed, with which the production code then does well."""
    with monkeypatch.context() as inner:
        mutant.mutate(inner)
        for seed in (mutant.first, *range(mutant.seeds)):
            try:
                Simulation(seed, **mutant.words).run()
            except AssertionError:
                break
        else:
            pytest.fail(f"nobody misses the guard in {mutant.seeds} seeds")
    try:
        Simulation(seed, **mutant.words).run()
    except Violation as violation:
        pytest.fail(f"seed {seed} with all guards: {violation}")


@pytest.mark.parametrize("mutant", ELSEWHERE, ids=lambda mutant: mutant.mutate.__name__)
def test_a_guard_that_a_simulation_cannot_miss_has_a_test_that_does(mutant: Mutant) -> None:
    words = ["-q", "-p", "no:cacheprovider", "-p", "tests.sim.spoil", "--spoil", mutant.mutate.__name__, mutant.by]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED and "passed" not in done.stdout, done.stdout
    assert mutant.why
