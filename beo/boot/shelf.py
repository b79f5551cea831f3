"""The images of this head (images.py), as the server of boots asks for them."""

from __future__ import annotations

from beo.boot.book import Image
from beo.boot.images import Store
from beo.config import Home
from beo.errors import NotFound


class Folder:
    """A `Shelf` that is the head's own store."""

    def __init__(self, home: Home) -> None:
        """Take the cluster's folder."""
        self._store = Store(home)

    def image(self, name: str) -> Image:
        """Return an image by its SHA-256, or the "current" one; raises BeoError."""
        found = self._store.find(name)
        for kind, (sha256, _) in found.files().items():
            self.path(kind, sha256)
        return Image(found.sha256, found.size_bytes, found.kernel, found.initrd, found.words)

    def path(self, kind: str, sha256: str) -> str:
        """Return the file of a "kernel", "initrd" or "image"; raises NotFound."""
        path = self._store.path(kind, sha256)
        if not path.is_file():
            raise NotFound(f"no {kind} {sha256[:12]} on this head", "", "'beo image list' tells what there is")
        return str(path)
