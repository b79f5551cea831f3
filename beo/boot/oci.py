"""A container's image as the base of ours: an OCI layout, a folder with index.json and blobs named by their digests.

Its layers are taken one upon the other as they are, with what later ones take away ("whiteouts"). Whatever isn't what
its digest says is refused, and so is a path that leads out of the root.
"""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from beo.boot.assembly import Files, clean
from beo.errors import Conflict, NotFound, UsageError, reason

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
LAYERS_MAX = 512
LIST_MAX_BYTES = 4 << 20  # of an index or a manifest
NESTED_MAX = 4  # indexes of indexes
PLATFORM = ("linux", "amd64")
_KINDS = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CONTTYPE}
_CURE = "write the layout anew: 'skopeo copy docker://NAME oci:DIR' makes one"


class Layout:
    """An OCI layout."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; raises NotFound where there is none."""
        if not (folder / "index.json").is_file():
            raise NotFound(f"{folder} is no OCI layout", "it has no index.json", _CURE)
        self._folder = folder
        self.digest = ""

    def read(self, files: Files, scratch: Path) -> list[BinaryIO]:
        """Put all layers into `files`, which read from the returned archives until all is written."""
        with (self._folder / "index.json").open("rb") as file:
            found = _decode(file.read(LIST_MAX_BYTES), "index.json")
        for _ in range(NESTED_MAX):
            if "layers" in found:
                break
            chosen = _choose(found.get("manifests"))
            self.digest = chosen["digest"]
            found = _decode(self._small(chosen), self.digest)
        layers = found.get("layers")
        if not isinstance(layers, list) or not layers or len(layers) > LAYERS_MAX:
            raise UsageError(f"{self._folder} has no image with layers", "", _CURE)
        opened = []
        for layer in layers:
            archive = self._unpacked(layer, scratch)
            opened.append(archive)
            take_layer(files, archive)
        return opened

    def _path(self, descriptor: dict[str, Any]) -> tuple[Path, str]:
        digest = descriptor.get("digest")
        if not isinstance(digest, str):
            raise UsageError("the layout names something without a digest", "", _CURE)
        method, _, value = digest.partition(":")
        if (
            method not in ("sha256", "sha512")
            or not value.isalnum()
            or len(value) != (64 if method == "sha256" else 128)
        ):
            raise UsageError(f"{digest[:100]!r} is no digest that is known here", "sha256 and sha512 are", _CURE)
        return self._folder / "blobs" / method / value, digest

    def _small(self, descriptor: dict[str, Any]) -> bytes:
        path, digest = self._path(descriptor)
        try:
            with path.open("rb") as file:
                data = file.read(LIST_MAX_BYTES)
        except OSError as error:
            raise UsageError(f"the layout lacks {digest[:19]}", reason(error), _CURE) from None
        method, _, value = digest.partition(":")
        if hashlib.new(method, data).hexdigest() != value:
            raise _refused(digest)
        return data

    def _unpacked(self, descriptor: dict[str, Any], scratch: Path) -> BinaryIO:
        """A layer as an uncompressed archive; it is checked before anything of it is believed."""
        path, digest = self._path(descriptor)
        method, _, value = digest.partition(":")
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, method).hexdigest() != value:
                    raise _refused(digest)
                file.seek(0)
                start = file.read(4)
                file.seek(0)
                out = cast(BinaryIO, tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 - it is returned
                if start[:2] == b"\x1f\x8b":
                    with gzip.open(file) as packed:
                        shutil.copyfileobj(packed, out, 1 << 20)
                elif start == b"\x28\xb5\x2f\xfd":
                    subprocess.run(["zstd", "-dc"], stdin=file, stdout=out, check=True)
                else:
                    shutil.copyfileobj(file, out, 1 << 20)
        except FileNotFoundError:
            raise UsageError(f"the layout lacks the layer {digest[:19]}", "", _CURE) from None
        except (gzip.BadGzipFile, EOFError, subprocess.CalledProcessError) as error:
            raise UsageError(f"the layer {digest[:19]} can't be unpacked", str(error), _CURE) from None
        except OSError as error:
            raise Conflict(
                f"can't unpack the layer {digest[:19]}", reason(error), "free space, or set --cache"
            ) from None
        out.flush()
        out.seek(0)
        return out


def take_layer(files: Files, archive: BinaryIO) -> None:
    """Put a layer upon what is there: first what it takes away, then what it brings."""
    try:
        with tarfile.open(fileobj=archive, mode="r:") as read:
            members = read.getmembers()
    except tarfile.TarError as error:
        raise UsageError("a layer is no tar archive", str(error), _CURE) from None
    for info in members:
        name = clean(info.name)
        folder, last = posixpath.split(name)
        if last == OPAQUE:
            files.drop_inside(folder)
        elif last.startswith(WHITEOUT):
            gone = last.removeprefix(WHITEOUT)
            if gone in ("", ".", ".."):
                raise UsageError(f"a layer has the path {info.name[:200]!r}", "it takes away what isn't its", _CURE)
            files.drop(posixpath.join(folder, gone))
    for info in members:
        if not posixpath.basename(clean(info.name)).startswith(WHITEOUT) and info.type in _KINDS:
            files.take(info, archive)


def _choose(manifests: object) -> dict[str, Any]:
    if not isinstance(manifests, list) or not all(isinstance(one, dict) and "digest" in one for one in manifests):
        raise UsageError("the layout's index names no image", "", _CURE)
    for one in manifests:
        platform = one.get("platform") or {}
        if (platform.get("os"), platform.get("architecture")) == PLATFORM:
            return cast("dict[str, Any]", one)
    plain = [one for one in manifests if not one.get("platform")]
    if len(plain) != 1:
        raise UsageError("the layout has no image for linux/amd64", f"it has {len(manifests)} others", _CURE)
    return cast("dict[str, Any]", plain[0])


def _decode(data: bytes, name: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{name[:100]} of the layout can't be read", reason(error), _CURE) from None


def _refused(digest: str) -> UsageError:
    return UsageError(f"{digest[:19]} of the layout is not what its digest says", "it was changed or cut", _CURE)
