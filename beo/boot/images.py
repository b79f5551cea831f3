"""The images from which machines boot, as a head keeps them: files named by their SHA-256 in `images/` of its folder.

    SHA.sqfs SHA.kernel SHA.initrd    what machines fetch
    SHA.json                          of an image: its manifest, which names the kernel and initrd that go with it
    current.json previous.json        links to the manifests of what machines get, and got before

A file has its name only when all of it is there and is what its name says. `current` is changed in one step, so that a
build that fails, or a machine that is switched off, leaves what was. As everything is named by what it is, the other
head's copy is a matter of fetching the names that it lacks (`Store.take`).
"""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from beo.config import Home, write_durably
from beo.errors import BeoError, Conflict, NotFound, UsageError, reason

KINDS = ("image", "kernel", "initrd")
SUFFIXES = {"image": ".sqfs", "kernel": ".kernel", "initrd": ".initrd"}
KEPT = 3  # images besides the current and the previous one that `prune` leaves
MANIFEST_MAX_BYTES = 1 << 20  # of an image with ten thousand packages
DIGITS = 64
FETCH_S = 20.0  # for the other head to send a piece
PIECE_BYTES = 1 << 20
_HEX = frozenset("0123456789abcdef")


class Manifest(msgspec.Struct, frozen=True):
    """What an image is. kernel, initrd: the SHA-256 of each; words: what the kernel's command line has besides."""

    sha256: str
    size_bytes: int
    kernel: str
    initrd: str
    kernel_size_bytes: int
    initrd_size_bytes: int
    suite: str  # of Debian, or oci:DIGEST
    profile: str
    kernel_version: str
    python: str
    beo: str
    made: str  # when, as 2026-11-26T20:15:00Z
    packages: dict[str, str]  # of Debian: name -> version
    wheels: dict[str, str]  # of Python: name -> version
    words: str = ""

    def files(self) -> dict[str, tuple[str, int]]:
        """The SHA-256 and size of each kind of file."""
        return {
            "image": (self.sha256, self.size_bytes),
            "kernel": (self.kernel, self.kernel_size_bytes),
            "initrd": (self.initrd, self.initrd_size_bytes),
        }


Fetch = Callable[[str, str], Iterable[bytes]]
"""Brings the file of a kind and SHA-256, piece by piece."""


class Store:
    """The images of one head."""

    def __init__(self, home: Home) -> None:
        """Take the cluster's folder; nothing is made yet."""
        self.folder = home.path / "images"

    def path(self, kind: str, sha256: str) -> Path:
        """Where the file of that kind and SHA-256 is, or would be; raises NotFound where that's no SHA-256."""
        return self.folder / f"{_checked(sha256)}{SUFFIXES[kind]}"

    def every(self) -> list[Manifest]:
        """All images, the newest first."""
        names = [path.stem for path in self.folder.glob("*.json") if _is_sha256(path.stem)]
        found = []
        for name in names:
            with suppress(NotFound):  # taken away just now
                found.append(self._read(name))
        return sorted(found, key=lambda image: (image.made, image.sha256), reverse=True)

    def marked(self, mark: str) -> str:
        """The SHA-256 of what is `current` or `previous`; "" where nothing is."""
        try:
            name = os.readlink(self.folder / f"{mark}.json").removesuffix(".json")
        except OSError:
            return ""
        return name if _is_sha256(name) else ""

    def find(self, word: str) -> Manifest:
        """Return an image by `current`, `previous`, its SHA-256 or the beginning of that; raises NotFound."""
        name = self.marked(word) if word in ("current", "previous") else word
        if not _is_sha256(name):
            names = [image.sha256 for image in self.every()]
            if not name and word in ("current", "previous"):
                raise NotFound(f"there is no {word} image", "", "'beo image build' makes one")
            fitting = [sha256 for sha256 in names if name and sha256.startswith(name)]
            if len(fitting) != 1:
                why = f"{len(fitting)} begin with that" if fitting else "none here begins with that"
                raise NotFound(f"no image {word[:DIGITS]}", why, "'beo image list' tells what there is")
            name = fitting[0]
        return self._read(name)

    def check(self, manifest: Manifest) -> None:
        """Read all of an image's files; raises BeoError where one isn't what its name says."""
        for kind, (sha256, _) in manifest.files().items():
            path = self.path(kind, sha256)
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                raise NotFound(f"the {kind} {sha256[:12]} isn't there", "", "'beo image build' makes it anew") from None
            except OSError as error:
                raise BeoError(f"can't read {path}", reason(error), "see the disk's health") from None
            if found != sha256:
                why = f"it is {found[:12]} by now"
                raise BeoError(f"the {kind} {sha256[:12]} is damaged", why, "'beo image build' makes it anew")

    # ---- changes

    def add(self, manifest: Manifest, files: dict[str, Path]) -> None:
        """Take a new image's files, which are moved from beside the store's folder; the manifest comes last."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for kind, (sha256, _) in manifest.files().items():
            os.chmod(files[kind], 0o644)
            _sync(files[kind])
            os.replace(files[kind], self.path(kind, sha256))
        self._write(manifest)

    def take(self, manifest: Manifest, fetch: Fetch) -> int:
        """Bring an image here, of which another head has told; return how many bytes were missing.

        The manifest must be from whom one believes: what `fetch` brings is checked against it, and nothing else is.
        """
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        brought = 0
        for kind, (sha256, size_bytes) in manifest.files().items():
            path = self.path(kind, sha256)
            if path.exists() and path.stat().st_size == size_bytes:
                continue
            self._bring(path, sha256, size_bytes, fetch(kind, sha256))
            brought += size_bytes
        self._write(manifest)
        return brought

    def _bring(self, path: Path, sha256: str, size_bytes: int, pieces: Iterable[bytes]) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        digest, taken = hashlib.sha256(), 0
        try:
            with temporary.open("wb") as file:
                for piece in pieces:
                    taken += len(piece)
                    if taken > size_bytes:
                        break
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            if taken != size_bytes or digest.hexdigest() != sha256:
                why = f"{taken} of {size_bytes} bytes came" if taken < size_bytes else "its SHA-256 is another"
                raise Conflict(f"{path.name[:12]} wasn't brought", why, "try again, or look at the other head's disk")
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError as error:
            raise Conflict(f"can't write {path}", reason(error), "free space there") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, manifest: Manifest) -> None:
        data = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"
        write_durably(self.folder / f"{manifest.sha256}.json", data, 0o644)

    def _read(self, sha256: str) -> Manifest:
        path = self.folder / f"{_checked(sha256)}.json"
        try:
            with path.open("rb") as file:
                found = msgspec.json.decode(file.read(MANIFEST_MAX_BYTES), type=Manifest)
        except FileNotFoundError:
            raise NotFound(f"no image {sha256[:12]}", "", "'beo image list' tells what there is") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise BeoError(f"{path} can't be read", reason(error), "make the image anew") from None
        if found.sha256 != sha256:
            raise BeoError(f"{path} is of another image", f"it says {found.sha256[:12]}", "make the image anew")
        return found

    def use(self, sha256: str) -> None:
        """Make an image the current one; what was current is the previous one from then on."""
        manifest = self.find(sha256)
        for kind, (name, _) in manifest.files().items():
            if not self.path(kind, name).is_file():
                raise NotFound(f"the {kind} {name[:12]} isn't there", "", "'beo image build' makes it anew")
        current = self.marked("current")
        if manifest.sha256 == current:
            return
        if current:
            self._mark("previous", current)
        self._mark("current", manifest.sha256)

    def revert(self) -> Manifest:
        """Make the previous image the current one, and the other way round."""
        previous = self.find("previous")
        self.use(previous.sha256)
        return previous

    def remove(self, word: str, chosen: Collection[str] = ()) -> Manifest:
        """Take an image away, but neither the current nor the previous one, nor one of `chosen`, of single machines."""
        manifest = self.find(word)
        if manifest.sha256 in chosen:
            why = "'beo node list' tells which"
            raise Conflict(f"a machine boots {manifest.sha256[:12]}", why, "'beo node set MACHINE --image' another one")
        for mark in ("current", "previous"):
            if manifest.sha256 == self.marked(mark):
                raise Conflict(f"{manifest.sha256[:12]} is the {mark} image", "", "'beo image use' another one first")
        (self.folder / f"{manifest.sha256}.json").unlink(missing_ok=True)
        self._sweep()
        return manifest

    def prune(self, kept: int = KEPT, chosen: Collection[str] = ()) -> list[Manifest]:
        """Take old images away but so many, the current, the previous one and `chosen`; return what was taken."""
        marked = {self.marked("current"), self.marked("previous"), *chosen}
        old = [image for image in self.every() if image.sha256 not in marked][kept:]
        return [self.remove(image.sha256) for image in old]

    def _sweep(self) -> None:
        """Take away the files that no manifest names any more."""
        named = {
            path for image in self.every() for kind, (sha, _) in image.files().items() if (path := self.path(kind, sha))
        }
        for suffix in SUFFIXES.values():
            for path in self.folder.glob(f"*{suffix}"):
                if path not in named and _is_sha256(path.stem):
                    path.unlink(missing_ok=True)

    def _mark(self, mark: str, sha256: str) -> None:
        temporary = self.folder / f".{mark}.json.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        os.symlink(f"{sha256}.json", temporary)
        os.replace(temporary, self.folder / f"{mark}.json")
        _sync(self.folder)


def from_head(address: str) -> Fetch:
    """Fetch from another head's server of boots, at host:port."""

    def fetch(kind: str, sha256: str) -> Iterator[bytes]:
        host, _, port = address.rpartition(":")
        name = f"{sha256}.sqfs" if kind == "image" else sha256
        connection = http.client.HTTPConnection(host, int(port), timeout=FETCH_S)
        try:
            connection.request("GET", f"/{kind}/{name}")
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise NotFound(f"{address} has no {kind} {sha256[:12]}", f"it says {response.status}", "look there")
            while piece := response.read(PIECE_BYTES):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise Conflict(f"{address} sends no {kind}", reason(error), "see 'beo boot serve' there") from None
        finally:
            connection.close()

    return fetch


def digest(text: str) -> str:
    """Check that a text is a SHA-256 in hex; raises UsageError."""
    if not _is_sha256(text):
        raise UsageError(f"{text[:80]!r} is no SHA-256", f"it has {DIGITS} hex digits", "copy it as it was printed")
    return text


def _is_sha256(text: str) -> bool:
    return len(text) == DIGITS and _HEX.issuperset(text)


def _checked(sha256: str) -> str:
    if not _is_sha256(sha256):
        raise NotFound(f"{sha256[:80]!r} is no image", "it is named by 64 hex digits", "'beo image list' lists them")
    return sha256


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
