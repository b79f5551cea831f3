"""Doing a verb in this process, with click and all that it takes: what the front falls back on, and the resident does.

Whatever is loaded here is what a verb from a cold shell costs, so it is kept to what the verb needs.
"""

import gc
import os
import signal
import sys
from importlib import import_module
from types import ModuleType
from typing import NoReturn

EXIT_INTERRUPTED = 128 + signal.SIGINT

# Loading makes many objects and no garbage: looking for some over and over takes its time. Few verbs make so many more.
GARBAGE_LOOKED_FOR_AFTER = 100_000

# What click, msgspec, zmq and beo's words import and a verb makes no use of: a third of the time that loading takes.
# The list is about speed alone: each is loaded as soon as anything is asked of it but what stands here.
SELDOM_USED: dict[str, dict[str, object]] = {
    "hashlib": {},
    "inspect": {},
    "ipaddress": {},
    "json": {},
    "msgspec.inspect": {},
    "pickle": {"DEFAULT_PROTOCOL": 4},
    "platform": {"system": lambda: os.uname().sysname},
    "random": {},
    "textwrap": {},
    "tomllib": {},
}
# msgspec takes these names from typing where this is not installed.
SUPERFLUOUS = "typing_extensions"


class _Later(ModuleType):
    """A module in name only, until it is asked for something that it wasn't given."""

    def __init__(self, name: str, given: dict[str, object]) -> None:
        super().__init__(name)
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = import_module(self.__name__)
        self.__dict__.update(module.__dict__)
        return getattr(module, name)


def main(argv: list[str]) -> NoReturn:
    """Do the command line `argv` (without the program's name) and leave with its exit code."""
    open_what_is_closed()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `beo queue | head` ends as coreutils do: of the signal, silently
    # Nothing is left to do then, and taking a whole interpreter down in good order takes longer than many a verb.
    os._exit(run(argv))


def open_what_is_closed() -> None:
    """Open standard descriptors that the caller has closed, or the first socket would be taken for one of them.

    There is nothing to read from the input, the output refuses to be written, and complaints go nowhere.
    """
    for fd, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # the lowest that is free: this very one
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(fd, "w" if fd else "r", closefd=False, errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, stream)


def run(argv: list[str]) -> int:
    """Do the command line `argv` and return its exit code; all that it printed has been written."""
    prepare()
    from beo.cli.group import main as run_verb

    try:
        return run_verb(argv)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def prepare() -> None:
    """Make loading quick. To be called before anything but the standard library is imported."""
    gc.set_threshold(GARBAGE_LOOKED_FOR_AFTER)
    if sys.flags.no_site and "site" not in sys.modules:
        import site

        site.main()  # knows where click and the others are,
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        if root not in sys.path:  # unless they lie beside beo in a folder that -I leaves out
            sys.path.append(root)
    if "msgspec" in sys.modules:
        return
    for name, given in SELDOM_USED.items():
        sys.modules.setdefault(name, _Later(name, given))
    if SUPERFLUOUS not in sys.modules:
        sys.modules[SUPERFLUOUS] = None  # type: ignore[assignment]  # how import is told that there is none
        import_module("msgspec")
        del sys.modules[SUPERFLUOUS]
