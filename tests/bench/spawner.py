"""The bare thing below every job: posix_spawn of `true`, from a process of the standard library alone.

python -I -S spawner.py COUNT   starts per second of two threads that share COUNT starts
python -I -S spawner.py         a start for each byte from stdin, a byte to stdout for each end
"""

import os
import sys
import threading
import time

THREADS = 2
TRUE = "/bin/true"


def run() -> None:
    """Start one `true` and wait for its end."""
    os.waitpid(os.posix_spawn(TRUE, [TRUE], {}), 0)


def serve() -> None:
    """A start for each byte, until there are no more."""
    while os.read(0, 1):
        run()
        os.write(1, b".")


def floor(count: int) -> float:
    """Starts per second."""

    def several() -> None:
        for _ in range(count // THREADS):
            run()

    threads = [threading.Thread(target=several) for _ in range(THREADS)]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - began_s)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(floor(int(sys.argv[1])))
    else:
        serve()
