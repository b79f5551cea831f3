"""`beo-rsh HOST WORDS...`: run a command on another node of this job, as ssh would; for mpirun and mpiexec.

It takes part in a job's own allocation and in nothing else: no key, no password, no daemon that listens. The words are
joined and given to `sh -c` there; input, output and the exit code are passed on; what it started dies when it dies.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":  # started by path, without site: the package is two folders up
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from beo.worker.caller import STEPS, Caller, StepError, environment, exit_code, has_input, knock

EXIT_FAILED = 255
"""What ssh exits with where it is to blame itself."""
WITH_WORD = "BbcDEeFIiJLlmOopQRSWw"
"""Options of ssh that are followed by a word."""


def parse(words: list[str]) -> tuple[str, list[str], bool]:
    """Divide ssh's words into host, command, and whether input is passed on; StepError where one of them is missing."""
    host, takes_input = "", True
    ahead = list(words)
    while ahead and (not host or ahead[0].startswith("-")):
        word = ahead.pop(0)
        if word == "--":
            continue
        if not word.startswith("-"):
            host = word.rpartition("@")[2]
            continue
        if word[1:2] not in WITH_WORD:
            takes_input = takes_input and "n" not in word
        elif len(word) == len("-o") and ahead:
            del ahead[0]
    if not host or not ahead:
        raise StepError("nothing to do", "", "call it as beo-rsh NODE COMMAND...")
    return host, ahead, takes_input


def request(words: list[str]) -> dict[str, object]:
    """The step that these words ask for."""
    host, command, takes_input = parse(words)
    node = os.environ.get("BEO_NODE", host) if host == "localhost" else host
    return {
        "argv": ["/bin/sh", "-c", " ".join(command)],
        "cwd": "/",  # as each mpirun says itself where its ranks run, in words of its own
        "env": environment(os.environ),
        "ranks": 1,
        "nodes": 1,
        "cpus": 1,
        "on": [node],
        "mpi": False,
        "stdin": takes_input and has_input(),
        "overlap": True,  # mpirun's daemon takes no slot; its ranks take those that the host file names
    }


def main() -> int:
    """Do what `sys.argv` says; the exit code."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        wanted = request(sys.argv[1:])
        connection = knock(os.environ.get(STEPS, ""))
        if not connection:
            raise StepError("this process is in no job", "", "call it from a job's script")
        return exit_code(Caller(connection).call(wanted))
    except StepError as error:
        print(f"beo-rsh: {error}", file=sys.stderr, flush=True)
    except OSError as error:
        print(f"beo-rsh: {(error.strerror or str(error)).lower()}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
