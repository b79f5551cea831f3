"""What a copy of a checkpoint that is made in the background leaves to the job."""

import subprocess
import sys

import pytest

from beo.bulk.keeper import NICE

NICENESS = """
import os
from beo.bulk.keeper import give_way
from beo.worker.copies import Copying
give_way(Copying("/nowhere", 0, 0, (), {bytes_s}))
print(os.nice(0))
"""


@pytest.mark.parametrize(("bytes_s", "more"), [(50_000_000, NICE), (0, 0)])
def test_a_copy_now_and_then_leaves_the_cores_to_the_job_and_one_that_is_waited_for_does_not(
    bytes_s: int, more: int
) -> None:
    def niceness(program: str) -> int:
        return int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout)

    assert niceness(NICENESS.format(bytes_s=bytes_s)) == min(19, niceness("import os; print(os.nice(0))") + more)
