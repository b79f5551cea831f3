"""Where a cluster lives (its folder, ``BEO_DIR``) and how it is set up (``beo.toml`` in it). Read once, then frozen.

The folder holds everything, so that several clusters live side by side:

    beo.toml        settings, all optional
    cluster.json    who the cluster is: id, addresses and public key of its heads
    keys/           CURVE secret keys, mode 0600: head, admin, worker
    head/           journal and output, of the head alone; who.json says which head this machine is
    nodes/NAME/     what a worker of this machine keeps
    log/            one file per daemon
    B/              the second head's own folder, where both run on this machine
"""

from __future__ import annotations

import errno
import os
import stat
import time
import tomllib
from contextlib import suppress

import msgspec

from beo import keyring
from beo.errors import BeoError, NoHead, Refused, UsageError, reason
from beo.settings import Config, Limits

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

SECRET_LENGTH = keyring.SECRET_LENGTH
SYSTEM = "/var/lib/beo"  # the cluster of a machine, for all of its users
CLUSTER_SIZE_MAX_BYTES = 1024 * 1024  # of cluster.json: a few hundred bytes per head
TOML_SIZE_MAX_BYTES = 1024 * 1024  # of beo.toml, which has a dozen lines


class ClusterFile(msgspec.Struct, frozen=True):
    """cluster.json: what a client or worker must know to reach the head. Nothing in it is secret."""

    cluster: str
    heads: tuple[str, ...]  # host:port of the control plane
    key: str  # the heads' CURVE public key
    bulk: tuple[str, ...] = ()  # host:port of the bulk plane, in the order of heads; the head fills it in


class Place(msgspec.Struct, frozen=True):
    """Where a head is reached: control and bulk plane, and the pair plane by one or more paths, each host:port."""

    control: str
    bulk: str
    links: tuple[str, ...]


class Who(Place, frozen=True):
    """head/who.json: which head this machine is, where it listens, and where the other heads do."""

    name: str  # A or B
    others: dict[str, Place] = {}

    @property
    def place(self) -> Place:
        """Where this head listens."""
        return Place(self.control, self.bulk, self.links)

    @property
    def heads(self) -> dict[str, Place]:
        """All heads by name, in that order: this one and the others."""
        return dict(sorted({**self.others, self.name: self.place}.items()))


class Home:
    """The paths of one cluster's folder, and its small files."""

    def __init__(self, path: Path | str) -> None:
        """Take the folder's path; nothing is read or made yet."""
        self._folder = os.fspath(path)

    @property
    def path(self) -> Path:
        """The folder itself."""
        from pathlib import Path  # not at the top: a client needs no more than two files, and Path takes its time

        return Path(self._folder)

    @property
    def toml(self) -> Path:
        """beo.toml"""
        return self.path / "beo.toml"

    @property
    def cluster_file(self) -> Path:
        """cluster.json"""
        return self.path / "cluster.json"

    @property
    def keys(self) -> Path:
        """keys/"""
        return self.path / "keys"

    @property
    def head(self) -> Path:
        """head/"""
        return self.path / "head"

    @property
    def who_file(self) -> Path:
        """head/who.json"""
        return self.head / "who.json"

    @property
    def nodes(self) -> Path:
        """nodes/"""
        return self.path / "nodes"

    @property
    def second(self) -> Home:
        """B/: what the second head has where both run on this machine, as if it were another one's BEO_DIR"""
        return Home(f"{self._folder}/B")

    @property
    def logs(self) -> Path:
        """log/"""
        return self.path / "log"

    def config(self) -> Config:
        """Read beo.toml; raises UsageError that names the faulty key, like ``$.worker.lease_s``."""
        try:
            if not stat.S_ISREG(os.stat(self.toml).st_mode):  # a pipe, say, would be waited for
                raise UsageError(f"can't read {self.toml}", "it is not a file", "make it a readable text")
            with self.toml.open("rb") as file:
                data = file.read(TOML_SIZE_MAX_BYTES + 1)
            if len(data) > TOML_SIZE_MAX_BYTES:
                why = f"it has more than {TOML_SIZE_MAX_BYTES} bytes"
                raise UsageError(f"{self.toml} is no settings file", why, "move it aside")
            text = data.decode()
        except FileNotFoundError:
            return Config()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"can't read {self.toml}", reason(error), "make it a readable text") from None
        try:
            return msgspec.convert(_with_overrides(tomllib.loads(text)), Config)
        except (ValueError, RecursionError) as error:  # of tomllib and of msgspec
            raise UsageError(f"{self.toml} is faulty", reason(error), "mend or remove that line") from None

    def cluster(self) -> ClusterFile:
        """Read cluster.json; raises NoHead where there is no cluster."""
        path = f"{self._folder}/cluster.json"
        try:
            with open(path, "rb") as file:
                found = msgspec.json.decode(file.read(CLUSTER_SIZE_MAX_BYTES), type=ClusterFile)
            if not found.heads or len(found.key) != SECRET_LENGTH or not all(map(is_address, found.heads)):
                raise ValueError("it names no head, or no key of one")
            return found
        except FileNotFoundError:
            raise NoHead(f"no cluster in {self._folder}", "", "make one with 'beo up', or set BEO_DIR") from None
        except PermissionError:
            from beo import door

            raise door.describe_shut(self._folder) from None
        except NotADirectoryError:
            raise NoHead(f"{self._folder} is not a folder", "", "set BEO_DIR to a cluster's folder") from None
        except (OSError, ValueError) as error:  # of msgspec
            raise BeoError(f"{path} is damaged", reason(error), "restore it, or 'beo up' anew") from None

    def learn(self, known: ClusterFile, heads: tuple[str, ...], bulk: tuple[str, ...]) -> ClusterFile:
        """Write into cluster.json which heads there are now, if that is news and we may; return what it should say.

        Where that fails it is no harm: whoever reads the old one asks the heads that it names, and is told.
        """
        if not heads or len(heads) != len(bulk) or not all(map(is_address, (*heads, *bulk))):
            return known
        if len(heads) == len(known.heads) == 1:
            heads, bulk = known.heads, known.bulk  # by these it is reached, whatever it calls itself
        found = msgspec.structs.replace(known, heads=heads, bulk=bulk)
        with suppress(OSError, BeoError):
            old = self.cluster()
            if old == found:
                os.utime(self.cluster_file)  # it is as true as if it had been written now
            elif (old.cluster, old.key) == (found.cluster, found.key):
                self.write_cluster(found)
        return found

    def is_due(self, age_s: float) -> bool:
        """Whether cluster.json is ours to write, and what it says was last heard longer than this ago."""
        path = f"{self._folder}/cluster.json"
        try:
            return time.time() - os.stat(path).st_mtime > age_s and os.access(self._folder, os.W_OK)
        except OSError:
            return False

    def write_cluster(self, cluster: ClusterFile) -> None:
        """Replace cluster.json in one step."""
        write_durably(self.cluster_file, msgspec.json.encode(cluster) + b"\n", 0o644)

    def who(self) -> Who:
        """Read head/who.json; raises NoHead where this machine has no head."""
        path = self.who_file
        try:
            with path.open("rb") as file:
                found = msgspec.json.decode(file.read(CLUSTER_SIZE_MAX_BYTES), type=Who)
            every = [found.place, *found.others.values()]
            if not all(is_address(text) for place in every for text in (place.control, place.bulk, *place.links)):
                raise ValueError("it names what is no address")
            return found
        except FileNotFoundError:
            cure = "make one with 'beo up' or 'beo head join', or set BEO_DIR"
            raise NoHead(f"no head belongs to {self._folder}", f"there is no {path}", cure) from None
        except (OSError, ValueError) as error:  # of msgspec
            raise BeoError(f"{path} is damaged", reason(error), "restore it from a copy") from None

    def write_who(self, who: Who) -> None:
        """Replace head/who.json in one step."""
        write_durably(self.who_file, msgspec.json.encode(who) + b"\n", 0o644)

    def secret(self, name: str) -> str:
        """Read a secret key ("head", "admin", "worker"); refused where others could read it."""
        path = f"{self._folder}/keys/{name}.secret"
        try:
            with open(path) as file:
                keyring.check_private(os.fstat(file.fileno()), path)
                keyring.check_folder(f"{self._folder}/keys")
                text = file.read(SECRET_LENGTH + 2).strip()
        except FileNotFoundError:
            raise Refused(
                f"no key {path}", "", "make the cluster with 'beo up', or ask its operator for a key"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"can't read the key {path}", reason(error), "ask the cluster's operator") from None
        if len(text) != SECRET_LENGTH:
            raise Refused(f"{path} holds no key", f"a key has {SECRET_LENGTH} characters", "restore it")
        return text

    @property
    def is_ours(self) -> bool:
        """Whether this process has the cluster's admin key: it is the cluster's owner, or root."""
        return os.access(f"{self._folder}/keys/admin.secret", os.R_OK)

    def write_secret(self, name: str, secret: str) -> None:
        """Write a secret key, mode 0600 from its first moment on."""
        self.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self.keys / f"{name}.secret", secret.encode() + b"\n", 0o600)


def is_address(text: str) -> bool:
    """Say whether a text is host:port."""
    host, _, port = text.rpartition(":")
    return bool(host) and " " not in host and port.isdecimal() and len(port) <= 5 and int(port) < 1 << 16


def _with_overrides(settings: dict[str, Any]) -> dict[str, Any]:
    """Move the tables [users.NAME] to where `UsersConfig` has them; each begins with what [users] says."""
    users = settings.get("users")
    if not isinstance(users, dict):
        return settings
    tables = {name: table for name, table in users.items() if isinstance(table, dict)}
    for_all = {key: value for key, value in users.items() if key not in tables}
    overrides = {}
    for name, table in tables.items():
        limits = {key: value for key, value in for_all.items() if key in Limits.__struct_fields__}
        try:
            overrides[name] = msgspec.convert({**limits, **table}, Limits)
        except msgspec.ValidationError as error:
            told, where = str(error), f"`$.users.{name}"
            told = told.replace("`$", where) if "`$" in told else f"{told} - at {where}`"
            raise msgspec.ValidationError(told) from None
    return {**settings, "users": {**for_all, **({"overrides": overrides} if overrides else {})}}


def home() -> Home:
    """Return this process's cluster: ``BEO_DIR``; else ``~/.beo`` if it is there, else the machine's (`SYSTEM`)."""
    chosen = os.environ.get("BEO_DIR")
    if not chosen:
        own = os.path.expanduser("~/.beo")
        chosen = SYSTEM if not os.path.isdir(own) and os.path.isdir(SYSTEM) else own
    return Home(os.path.abspath(chosen))


def write_durably(path: Path, data: bytes, mode: int) -> None:
    """Replace a file in one step, durably: it is the old or the new one, whatever happens."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        if os.write(fd, data) != len(data):  # a disk that fills takes a part first
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(fd)
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
