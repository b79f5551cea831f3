"""Say hello from every rank: which one, of how many, on which host, in which job.

beo run -n 4 python jobs/hello.py
"""

import os

from mpi4py import MPI

world = MPI.COMM_WORLD
job = os.environ.get("BEO_JOB_ID")
place = f"{MPI.Get_processor_name()}, job {job}" if job else MPI.Get_processor_name()
# The line goes out with its end in one write, so that the lines of the ranks never mix, buffered or not.
print(f"hello from rank {world.rank} of {world.size} on {place}\n", end="", flush=True)
