"""The verb image: what machines without a disk boot, made and kept on a head."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import click
import msgspec

from beo import config, table, units
from beo.boot.images import Manifest, Store
from beo.cli.group import Actions, Verb, option
from beo.cli.tables import listing, show
from beo.errors import BeoError

COLUMNS = (
    table.Column("image", lambda value: str(value)[:12]),
    table.Column("is"),
    table.Column("made"),
    table.Column("size", lambda value: units.approximate_size(value) if isinstance(value, int) else "-"),
    table.Column("base"),
    table.Column("profile"),
    table.Column("kernel"),
    table.Column("beo"),
)
ACTIONS = {
    "build": ("image", "build", "make one, and let machines get it"),
    "list": ("image", "list_images", "list them"),
    "show": ("image", "show_image", "tell what is in one"),
    "check": ("image", "check", "read one again, and compare it with its name"),
    "use": ("image", "use", "let machines get another one"),
    "revert": ("image", "revert", "let machines get the one before"),
    "remove": ("image", "remove", "take old ones away"),
}


@click.command(
    cls=Actions,
    actions=ACTIONS,
    examples=[
        ("beo image build", "from Debian, for the PCs of a lab"),
        ("beo image build --add r-base", "with software of Debian's"),
        ("beo image revert", "the new one was no good"),
    ],
)
def image() -> None:
    """Look after the images that machines without a disk boot from this head.

    An image is named by its SHA-256, and IMAGE is the beginning of that, or 'current' or 'previous'. A machine gets the
    current one at its next boot, unless 'beo node set --image' says another.
    """


@click.command(
    cls=Verb,
    examples=[
        ("beo image build", "for PCs"),
        ("beo image build --profile vm", "for virtual machines: less to fetch"),
        ("beo image build --add gromacs --add r-base", "with these packages of Debian"),
        ("beo image build --from-oci ./layout", "from a container's image"),
    ],
)
@option(
    "--profile",
    type=click.Choice(["lab", "vm"]),
    default="lab",
    show_default=True,
    help="With the drivers of PCs, or of virtual machines only.",
)
@option("--add", "added", multiple=True, metavar="PACKAGE", help="Debian's package, besides what a worker needs.")
@option("--from-oci", "oci", default="", metavar="DIR", help="Take this OCI layout in Debian's place.")
@option("--fresh", is_flag=True, help="Bring all packages anew, not only after a week.")
@option("--cache", default="", metavar="DIR", help="Keep what is brought there, not in the cluster's folder.")
@option("--keep-current", is_flag=True, help="Don't let machines get it yet; 'beo image use' does.")
def build(profile: str, added: tuple[str, ...], oci: str, fresh: bool, cache: str, keep_current: bool) -> None:
    """Make an image of Debian 13, or of a container, with a kernel, beo and its libraries, and make it the current one.

    Packages come from the mirror that apt uses here. Nothing secret is in an image. Where something goes wrong, the
    current image stays. Old ones are taken away, but the last few and those that single machines boot.
    """
    from beo.boot import building

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what is half made is removed
    store = Store(config.home())
    wish = building.Wish(profile, added, str(Path(oci).absolute()) if oci else "", fresh)
    kept = Path(cache).absolute() if cache else store.folder / ".cache"
    made = building.build(store, wish, kept, lambda text: print(text, file=sys.stderr, flush=True))
    if made.size_bytes > building.SIZE_AIM_BYTES:
        print(f"beo: the image is large: 200 machines take {made.size_bytes * 200 / 110e6:.0f} s", file=sys.stderr)
    if not keep_current:
        store.use(made.sha256)
        _share(store, prune=True)
    print(made.sha256)


def _share(store: Store, prune: bool = False) -> None:
    """Have the other head's machines get the current image as well, and take away what none gets any more."""
    from beo.boot import sharing

    try:
        if prune:
            store.prune(chosen=sharing.chosen(config.home()))
        sharing.share(config.home(), store)
    except BeoError as error:
        print(
            f"beo: only this head has the image so far: {error}; 'beo image use current' tries again", file=sys.stderr
        )


def _row(store: Store, made: Manifest) -> dict[str, object]:
    marks = [mark for mark in ("current", "previous") if store.marked(mark) == made.sha256]
    return {
        "image": made.sha256,
        "is": ",".join(marks) or None,
        "made": made.made,
        "size": made.size_bytes,
        "base": made.suite,
        "profile": made.profile,
        "kernel": made.kernel_version,
        "beo": made.beo,
    }


@click.command(cls=Verb, examples=[("beo image list", "the newest first"), ("beo image list --json", "for programs")])
@listing
def list_images(fields: str, as_json: bool, quiet: bool) -> None:
    """List the images of this head, the newest first."""
    store = Store(config.home())
    show([_row(store, made) for made in store.every()], COLUMNS, fields, as_json, quiet)


@click.command(cls=Verb, examples=[("beo image show", "the current one"), ("beo image show 3f9a --json", "as JSON")])
@click.argument("image", default="current", metavar="IMAGE")
@option("--json", "as_json", is_flag=True, help="Print the manifest as it is.")
def show_image(image: str, as_json: bool) -> None:
    """Tell what is in an image: its files, its kernel, its packages and libraries."""
    made = Store(config.home()).find(image)
    if as_json:
        print(json.dumps(msgspec.to_builtins(made), indent=1))
        return
    for kind, (sha256, size_bytes) in made.files().items():
        print(f"{kind:9}{sha256}  {units.approximate_size(size_bytes)}")
    for name in ("made", "suite", "profile", "kernel_version", "python", "beo", "words"):
        print(f"{name.replace('_version', ' is'):9} {getattr(made, name)}")
    for what, every in (("libraries", made.wheels), ("packages", made.packages)):
        print(f"{what}: {' '.join(f'{name}={version}' for name, version in sorted(every.items())) or '-'}")


@click.command(cls=Verb, examples=[("beo image check", "the current one")])
@click.argument("image", default="current", metavar="IMAGE")
def check(image: str) -> None:
    """Read an image's files again, and compare each with its name."""
    store = Store(config.home())
    made = store.find(image)
    store.check(made)
    print(f"{made.sha256[:12]} is whole")


@click.command(cls=Verb, examples=[("beo image use 3f9a", "from now on")])
@click.argument("image", metavar="IMAGE")
def use(image: str) -> None:
    """Let machines get this image from now on; the current one becomes the previous one."""
    store = Store(config.home())
    made = store.find(image)
    store.use(made.sha256)
    _share(store)
    print(f"{made.sha256[:12]} is the current image")


@click.command(cls=Verb, examples=[("beo image revert", "and once more, to undo it")])
def revert() -> None:
    """Let machines get the previous image from their next boot on."""
    store = Store(config.home())
    made = store.revert()
    _share(store)
    print(f"{made.sha256[:12]} is the current image")


@click.command(cls=Verb, examples=[("beo image remove 3f9a", "this one"), ("beo image remove", "all old ones")])
@click.argument("images", nargs=-1, metavar="IMAGE")
def remove(images: tuple[str, ...]) -> None:
    """Take images away, or all but the current, the previous one, and those that single machines boot."""
    from beo.boot import sharing

    store, chosen = Store(config.home()), sharing.chosen(config.home())
    gone = [store.remove(word, chosen) for word in images] if images else store.prune(0, chosen)
    for made in gone:
        print(f"{made.sha256[:12]} is gone")
