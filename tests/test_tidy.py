"""The laws of the house, enforced: floors, rooms, pure files, circles, fences, docstrings and names.

The tables below are the house. A new file of `beo/` gets its floor in `FLOORS`; until it has one, the first test fails
and says so. Imports are counted wherever they stand: lazy ones in functions and those for type checkers too.
"""

import ast
import fnmatch
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# floor -> the files on it, without the leading "beo."; a file imports from its own floor and from those below.
FLOORS = {
    0: "version token proof account errors nodeset units spec settings results events entries records "
    "messages messages.* selector table votes bulk.words tree.words "
    "boot.request boot.book boot.dhcp boot.tftp boot.solicit boot.http",
    1: "ha.telling boot.answers boot.script boot.storm "
    "headnode.mirror headnode.readers "
    "headnode.heads headnode.replay "
    "headnode.model headnode.known headnode.folds.* headnode.state "
    "headnode.acts headnode.queue headnode.decide headnode.schedule headnode.explain "
    "headnode.again headnode.booting headnode.bundles headnode.joining headnode.moving headnode.vaults "
    "headnode.calendar headnode.reservations "
    "headnode.operate headnode.views headnode.waiters headnode.permissions headnode.tokens headnode.admit "
    "headnode.core worker.acts worker.core worker.told worker.launch worker.mpienv worker.pmi worker.frames "
    "worker.peers worker.steps headnode.inquiries headnode.ledger ha.register ha.acts "
    "ha.log ha.voters ha.sending ha.taking ha.proposer ha.leading ha.pair headnode.replica "
    "tree.changes tree.locks tree.state tree.decide tree.core tree.replay tree.copying tree.kernel tree.leases "
    "tree.memory tree.replies tree.writing tree.asking tree.naming tree.mounting tree.plans tree.paths "
    "bulk.chunks bulk.tickets bulk.choice bulk.wants "
    "checkpoints.plan checkpoints.manifest checkpoints.when checkpoints.shards "
    "ha.arp ha.standing ha.duties ha.heartbeat ha.importing ha.spof ha.verify",
    2: "question line child word "
    "boot.ether boot.web boot.clerk boot.switch boot.firmware boot.shelf boot.peer boot.giving boot.loading "
    "notice boot.images boot.assembly boot.modules boot.debian boot.oci boot.wheels boot.building "
    "bulk.holdings bulk.serving bulk.fetching bulk.held "
    "headnode.consoles headnode.copies "
    "address accounts door keyring config log wire journal mark lockfile birth worker.memory worker.process "
    "worker.probe worker.contain worker.loop worker.caller worker.names worker.order worker.ranks worker.spool "
    "worker.pipes worker.terminal worker.step worker.request worker.outflow worker.door headnode.output "
    "reader snapshots upgrade compaction headnode.clerk ha.keep ha.orphans "
    "tree.tie tree.store tree.segments tree.orphans tree.volume tree.fetching tree.wiped "
    "tree.session tree.files tree.mount "
    "worker.criu worker.carried worker.apart "
    "worker.processes worker.disk worker.bounds worker.remains worker.copier worker.errand worker.carrying "
    "bulk.snapshot bulk.unpacking bulk.results "
    "checkpoints.parity checkpoints.image checkpoints.alone checkpoints.slots checkpoints.combine checkpoints.store "
    "checkpoints.offline checkpoints.word checkpoints.agreement checkpoints.place checkpoints.state "
    "netlink ha.address ha.programs ha.resources ha.sources",
    3: "pairing ha.witness bulk.store bulk.vouched bulk.desk bulk.head "
    "compactor headnode.compactor tree.compactor headnode.tree headnode.sweeping tree.server tree.leading "
    "tree.following "
    "daemon headnode.server headnode.streams headnode.export worker.agent worker.attempt worker.conductor "
    "worker.warden worker.shipper worker.heads worker.health worker.vaults worker.copies worker.rsh "
    "local supervisor machines doctor "
    "worker.inspector worker.keeping worker.moving worker.holder headnode.boots "
    "headnode.link headnode.alive headnode.sight",
    4: "bulk.taking bulk.copies bulk.keeper bulk.porter bulk.sweeper bulk.node bulk.bringing "
    "boot.sharing boot.records boot.fitness boot.desk boot.runtime boot.console boot.join boot.pages boot.serve "
    "tree.locate tree.attach submission contact client diagnosis job follow checkpoints.api cli.* direct front "
    "resident",
}
PURE_FLOORS = {0, 1}
SHELLS = 3  # from this floor on, a room may import from another room
# A head is its state and its role; the log of the tree is copied from head to head as the journal is; who has a chunk
# is asked where the tree is.
DOORS = {("headnode.replica", "ha"), ("tree.copying", "ha"), ("tree.volume", "ha"), ("tree.words", "bulk")}

# Words that are too many for one file: the folder's own file shows all of them, and to everybody else it is that file.
FACES = {"messages"}

# What a pure file may import: nothing that reads a clock, rolls dice, or touches the world outside.
PURE_IMPORTS = (
    "__future__ abc bisect binascii base64 collections dataclasses difflib enum functools hashlib heapq hmac ipaddress "
    "itertools json math msgspec operator re shlex string struct textwrap types typing zlib "
    "errno stat xxhash"  # numbers alone
)
PURE_NAMES = {"pathlib": {"PurePath", "PurePosixPath"}}  # of a module that is not pure as a whole
PURE_BANNED_CALLS = {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}

# These run without site-packages (`python -I -S`), so they and all that they import from beo, however deep, import only
# the standard library.
STDLIB_ONLY = {"worker.carried", "worker.copier", "worker.warden", "worker.pmi", "worker.rsh"}

# One owner for each of these: everybody else goes through that file.
OWNERS = {"zmq": "wire"}

BANNED_WORDS = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """One import: the `target` in dots, the `name` taken from it ("" for all of it), and the line where it stands."""

    target: str
    name: str
    line: int

    @property
    def top(self) -> str:
        """The first word of the target: what is installed or built in under this name."""
        return self.target.partition(".")[0]


@dataclass(frozen=True)
class Module:
    """One parsed file of beo: its `name` without "beo." ("" for beo itself), its path and what it imports."""

    name: str
    path: Path
    tree: ast.Module
    imports: list[Import]

    @property
    def is_package(self) -> bool:
        """Whether this is the file of a folder."""
        return self.path.name == "__init__.py"

    @property
    def room(self) -> str:
        """The folder in which the file stands, or "" for beo itself."""
        return self.name.partition(".")[0] if "." in self.name or self.is_package else ""

    @property
    def floor(self) -> int | None:
        """The floor that `FLOORS` gives the file."""
        for floor, patterns in FLOORS.items():
            if any(fnmatch.fnmatchcase(self.name, pattern) for pattern in patterns.split()):
                return floor
        return None


class House:
    """All modules below one folder `beo/`, and who imports whom."""

    def __init__(self, root: Path) -> None:
        self.modules: dict[str, Module] = {}
        for path in sorted((root / "beo").rglob("*.py")):
            name = ".".join(path.relative_to(root / "beo").with_suffix("").parts).removesuffix("__init__").rstrip(".")
            tree = ast.parse(path.read_text(), str(path))
            self.modules[name] = Module(name, path, tree, list(_imports(tree)))

    def inside(self, module: Module) -> Iterator[tuple[Module, Import]]:
        """The modules of beo that `module` imports, each with the import that does it."""
        for found in module.imports:
            if found.top != "beo":
                continue
            target = found.target.removeprefix("beo").lstrip(".")
            below = f"{target}.{found.name}".lstrip(".")
            if found.name and below in self.modules:
                yield self.modules[below], found
            elif target in self.modules and (target, found.name) != ("", "__version__"):
                yield self.modules[target], found


def _imports(tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", node.lineno)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import("." * node.level + (node.module or ""), alias.name, node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            match node.args:
                case [ast.Constant(value=str(target)), *_]:
                    yield Import(target, "", node.lineno)


# Each rule looks at a house and yields a complaint for each break, with the place and the cure.


def floors(house: House) -> Iterator[str]:
    """Every file has a floor, and imports only from its own and those below."""
    for module in house.modules.values():
        if module.is_package and module.name not in FACES:
            continue
        if module.floor is None:
            yield f"{module.name} has no floor: add it to FLOORS in tests/test_tidy.py"
            continue
        for target, found in house.inside(module):
            if target.is_package and target.name and target.name not in FACES:
                continue
            above = 4 if not target.name else target.floor  # beo itself offers the doors
            if above is not None and above > module.floor:
                whom = target.name or "beo"
                yield f"{module.name}:{found.line} is on floor {module.floor} and imports {whom} above it"


def rooms(house: House) -> Iterator[str]:
    """Below the shells, a room imports nothing from another room; nobody looks behind a face."""
    for module in house.modules.values():
        for target, found in house.inside(module):
            if (module.name, target.room) in DOORS or target.name in FACES:
                continue
            if target.room in FACES and target.room != module.room:
                yield f"{module.name}:{found.line} takes from {target.name}: take it from {target.room}"
            if target.room and target.room != module.room and (module.floor or 0) < SHELLS:
                yield f"{module.name}:{found.line} reaches into the room {target.room} for {target.name}"


def circles(house: House) -> Iterator[str]:
    """No file imports itself through others."""
    following = {name: {t.name for t, _ in house.inside(m)} for name, m in house.modules.items() if name}
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> Iterator[str]:
        if name in path:
            yield "a circle: " + " -> ".join([*path[path.index(name) :], name])
        elif name in following and name not in done:
            for target in sorted(following[name]):
                yield from walk(target, [*path, name])
            done.add(name)

    for name in sorted(following):
        yield from walk(name, [])


def absolute_imports(house: House) -> Iterator[str]:
    """Imports say where things are; a dot in front would also hide them from the rules above."""
    for module in house.modules.values():
        for found in module.imports:
            if found.target.startswith("."):
                yield f"{module.name}:{found.line} imports from {found.target!r}: write it as beo.…"


def packages(house: House) -> Iterator[str]:
    """A folder's file imports nothing, so that importing one file of a room never loads another; but for faces."""
    for module in house.modules.values():
        if module.is_package and module.name and module.room not in {"cli", *FACES}:
            for found in module.imports:
                yield f"{module.name}/__init__.py:{found.line} imports {found.target}: import it where it is used"


def purity(house: House) -> Iterator[str]:
    """A pure file imports only what cannot touch the world, and calls nothing that does."""
    for module in house.modules.values():
        if module.floor not in PURE_FLOORS:
            continue
        for found in module.imports:
            allowed = PURE_NAMES.get(found.target, set())
            if found.top not in {*PURE_IMPORTS.split(), "beo"} and found.name not in allowed:
                yield f"{module.name}:{found.line} is pure and imports {found.target} {found.name}".rstrip()
        for target, found in house.inside(module):
            if target.name and not target.is_package and target.floor not in PURE_FLOORS:
                yield f"{module.name}:{found.line} is pure and imports {target.name}, which is not"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PURE_BANNED_CALLS:
                yield f"{module.name}:{node.lineno} is pure and calls {node.func.id}()"


def owners(house: House) -> Iterator[str]:
    """What has one owner is imported by nobody else."""
    for module in house.modules.values():
        for found in module.imports:
            if OWNERS.get(found.top, module.name) != module.name:
                yield f"{module.name}:{found.line} imports {found.top}, which is {OWNERS[found.top]}.py's alone"


def stdlib_only(house: House) -> Iterator[str]:
    """What runs without site-packages imports only the standard library, through other files too."""
    seen: set[str] = set()
    ahead = sorted(STDLIB_ONLY & house.modules.keys())
    while ahead:
        module = house.modules[ahead.pop()]
        if module.name in seen:
            continue
        seen.add(module.name)
        ahead += [target.name for target, _ in house.inside(module)]
        for found in module.imports:
            if found.top != "beo" and found.top not in sys.stdlib_module_names:
                yield f"{module.name}:{found.line} runs without site-packages and imports {found.target}"


def docstrings(house: House) -> Iterator[str]:
    """Every module and every public class, function and method says what it is for."""

    def look(node: ast.Module | ast.ClassDef, inside: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            decorators = {ast.unparse(d).split(".")[-1] for d in child.decorator_list}
            if child.name.startswith("_") or decorators & {"overload", "override", "setter", "deleter"}:
                continue
            if ast.get_docstring(child) is None:
                yield f"{inside}:{child.lineno} {child.name} has no docstring"
            if isinstance(child, ast.ClassDef):
                yield from look(child, inside)

    for module in house.modules.values():
        name = module.name or "beo"
        if ast.get_docstring(module.tree) is None:
            yield f"{name} has no docstring"
        yield from look(module.tree, name)


def names(house: House) -> Iterator[str]:
    """A file is named for what is in it, and never for being handy."""
    for module in house.modules.values():
        if bad := BANNED_WORDS & set(module.name.replace("_", ".").split(".")):
            yield f"{module.name} is named {'.'.join(sorted(bad))}: name it for what it holds"


Rule = Callable[[House], Iterator[str]]
RULES: list[Rule] = [
    floors,
    rooms,
    circles,
    absolute_imports,
    packages,
    purity,
    owners,
    stdlib_only,
    docstrings,
    names,
]


@pytest.fixture(scope="module")
def house() -> House:
    """The house as it stands."""
    return House(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_is_tidy(rule: Rule, house: House) -> None:
    assert len(house.modules) > 5, "the house was not found"
    assert not list(rule(house))


# The rules have teeth: each is shown a small bad house and must complain.

BAD: list[tuple[Rule, dict[str, str], str]] = [
    (floors, {"garage": ""}, "garage has no floor: add it to FLOORS"),
    (floors, {"errors": "import beo.log", "log": ""}, "errors:1 is on floor 0 and imports log above it"),
    (floors, {"errors": "def f():\n    from beo import log", "log": ""}, "errors:2 is on floor 0"),
    (floors, {"log": "from beo import submit"}, "log:1 is on floor 2 and imports beo above it"),
    (floors, {"log": "import_module('beo.client')", "client": ""}, "imports client above it"),
    (rooms, {"worker/core": "from beo.headnode import state", "headnode/state": ""}, "worker.core:1 reaches into"),
    (rooms, {"log": "from beo.worker.core import x", "worker/core": ""}, "log:1 reaches into the room worker"),
    (floors, {"messages/__init__": "import beo.log", "log": ""}, "messages:1 is on floor 0 and imports log above it"),
    (rooms, {"client": "from beo.messages.jobs import x", "messages/jobs": ""}, "take it from messages"),
    (rooms, {"worker/core": "from beo.messages import jobs", "messages/jobs": ""}, "take it from messages"),
    (rooms, {"messages/jobs": "import beo.worker.acts", "worker/acts": ""}, "messages.jobs:1 reaches into"),
    (circles, {"messages/__init__": "import beo.messages.a", "messages/a": "from beo import messages"}, "a circle: "),
    (circles, {"errors": "import beo.units", "units": "from beo import errors"}, "errors -> units -> errors"),
    (circles, {"errors": "import beo.units", "units": "def f():\n    import beo.errors"}, "errors -> units -> errors"),
    (circles, {"log": "import beo.log"}, "log -> log"),
    (absolute_imports, {"log": "from . import errors"}, "write it as beo."),
    (packages, {"worker/__init__": "import os"}, "worker/__init__.py:1 imports os"),
    (purity, {"units": "import os.path"}, "units:1 is pure and imports os.path"),
    (purity, {"worker/core": "def f():\n    from time import time"}, "worker.core:2 is pure and imports time time"),
    (purity, {"units": "from pathlib import PurePath, Path"}, "units:1 is pure and imports pathlib Path"),
    (purity, {"units": "def f():\n    print(1)"}, "units:2 is pure and calls print()"),
    (purity, {"headnode/state": "import beo.log", "log": ""}, "is pure and imports log, which is not"),
    (owners, {"worker/agent": "import zmq.utils"}, "worker.agent:1 imports zmq, which is wire.py's alone"),
    (stdlib_only, {"worker/warden": "import msgspec"}, "worker.warden:1 runs without site-packages"),
    (
        stdlib_only,
        {"worker/warden": "import beo.worker.pmi", "worker/pmi": "import click"},
        "worker.pmi:1 runs without",
    ),
    (docstrings, {"log": "x = 1"}, "log has no docstring"),
    (docstrings, {"log": '"""Log."""\nclass A:\n    """A."""\n    def f(self): ...'}, "log:4 f has no docstring"),
    (names, {"worker/process_utils": ""}, "worker.process_utils is named utils"),
]
GOOD: dict[str, str] = {
    "units": '"""Units."""\nimport re\nfrom pathlib import PurePath\nfrom beo.errors import X',
    "errors": '"""Errors."""\ndef _f(): ...',
    "wire": '"""Wire."""\nimport zmq, os\nfrom beo import __version__, units',
    "worker/warden": '"""Warden."""\nimport os\nfrom beo.worker import pmi',
    "worker/pmi": '"""PMI."""\nimport struct',
    "headnode/server": '"""Server."""\nfrom beo.worker.warden import x',
    "headnode/core": '"""Core."""\nfrom beo import messages',
    "messages/__init__": '"""Words."""\nfrom beo.messages.jobs import *',
    "messages/jobs": '"""Jobs."""\nfrom beo.units import x',
    "cli/jobs": '"""Verbs."""\nimport beo\nfrom beo import submit',
}


def _built(root: Path, files: dict[str, str]) -> House:
    for name, text in ({"__init__": '"""Beo."""'} | files).items():
        path = root / "beo" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        package = path.parent / "__init__.py"
        if not package.exists():
            package.write_text('"""A room."""')
    return House(root)


@pytest.mark.parametrize(("rule", "files", "complaint"), BAD)
def test_a_bad_house_is_complained_about(rule: Rule, files: dict[str, str], complaint: str, tmp_path: Path) -> None:
    assert complaint in "\n".join(rule(_built(tmp_path, files)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_house_is_left_in_peace(rule: Rule, tmp_path: Path) -> None:
    assert not list(rule(_built(tmp_path, GOOD)))
