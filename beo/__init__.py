"""beo: a cluster of plain computers, used as one.

The public names are loaded when they are first used (PEP 562), so importing `beo` costs nothing: the command line, the
warden and every rank import something below this package and shall not pay for what they never touch.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is, without importing typing
if TYPE_CHECKING:
    from typing import Any

_HOMES = {
    "BeoError": "beo.errors",
    "Cluster": "beo.client",
    "Job": "beo.job",
    "checkpoint": "beo.checkpoints.api",
    "run": "beo.job",
    "submit": "beo.job",
}

__all__ = ["BeoError", "Cluster", "Job", "__version__", "checkpoint", "run", "submit"]


def __getattr__(name: str) -> "Any":
    """Load the public name `name` from its home and keep it here; AttributeError where there is no such name."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'beo' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *_HOMES})
