"""The images of this head, as they lie in the cluster's folder: `images/<sha256>.sqfs`, beside each its `.json` (an
`Image`), and the kernels and initrds that these name. `images/current.json` leads to the one that machines get.
"""

from __future__ import annotations

import msgspec

from beo.boot.book import Image
from beo.config import Home
from beo.errors import BeoError, NotFound, reason
from beo.proof import HEX

SUFFIXES = {"image": ".sqfs", "kernel": ".kernel", "initrd": ".initrd"}
RECORD_MAX_BYTES = 64 * 1024
_DIGITS = 64


class Folder:
    """A `Shelf` that is a folder."""

    def __init__(self, home: Home) -> None:
        """Take the cluster's folder."""
        self._folder = home.path / "images"

    def image(self, name: str) -> Image:
        """Return an image by its SHA-256, or the "current" one; raises BeoError."""
        if name != "current":
            _check(name)
        path = self._folder / f"{name}.json"
        try:
            with path.open("rb") as file:
                found = msgspec.json.decode(file.read(RECORD_MAX_BYTES), type=Image)
        except FileNotFoundError:
            raise NotFound(f"no image {name[:12]} on this head", "", "'beo image build' makes one") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise BeoError(f"{path} can't be read", reason(error), "make the image anew") from None
        for kind, sha256 in (("image", found.sha256), ("kernel", found.kernel), ("initrd", found.initrd)):
            self.path(kind, sha256)
        return found

    def path(self, kind: str, sha256: str) -> str:
        """Return the file of a "kernel", "initrd" or "image"; raises NotFound."""
        _check(sha256)
        path = self._folder / f"{sha256}{SUFFIXES[kind]}"
        if not path.is_file():
            raise NotFound(f"no {kind} {sha256[:12]} on this head", "", "'beo image list' tells what there is")
        return str(path)


def _check(sha256: str) -> None:
    if len(sha256) != _DIGITS or not HEX.issuperset(sha256):
        raise NotFound(f"{sha256[:80]!r} is no image", "it is named by 64 hex digits", "'beo image list' lists them")
