"""How an image is made: a base (Debian's or a container's), a kernel, beo and its libraries, as one squashfs.

All is read from archives into one list of files and written as one stream of tar: nothing of the new system runs here
but its Python, to compile, and nothing needs root. The same packages make the same image, bit for bit. What goes wrong
leaves nothing but what was kept for the next try.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from beo import __version__
from beo.boot import debian, modules, wheels
from beo.boot.assembly import Files
from beo.boot.images import Manifest, Store
from beo.boot.modules import words
from beo.boot.oci import Layout
from beo.errors import BeoError, Conflict, NotFound, UsageError, reason

TOP = Path(__file__).resolve().parent.parent  # beo itself
EPOCH_S = 1_735_689_600  # 2025-01-01: of all files that have no older date, unless SOURCE_DATE_EPOCH says another
SIZE_AIM_BYTES = 100_000_000  # more is told: 200 machines fetch it at once
LEVEL = 9  # of zstd
PACK_S = 900.0
COMPILE_S = 600.0
BOOT = "usr/lib/beo/boot"  # where the machine finds what it starts with
PROFILES = tuple(debian.KERNELS)
WORDS = {"vm": "console=ttyS0 quiet", "lab": "console=tty0 console=ttyS0,115200 quiet"}
APPLETS = words(
    "sh awk cat chmod cut echo dmesg find grep head ip ls mkdir mknod modprobe mount nc od printf ps rm sed sha256sum "
    "sleep sort switch_root tail timeout tr udhcpc umount uname wc wget xargs losetup"
)
# Of a base, what machines have no use for, or what says where it was made.
DROPPED = words(
    "boot dev proc sys run tmp var/cache var/log var/lib/apt var/lib/dpkg/info var/tmp usr/share/doc usr/share/man "
    "usr/share/locale usr/share/info usr/share/zoneinfo/right usr/share/zoneinfo/posix usr/share/lintian "
    "usr/share/bash-completion etc/apt/sources.list.d etc/apt/apt.conf.d etc/apt/trusted.gpg.d etc/apt/auth.conf.d"
)
REMOVED = words(
    "etc/apt/sources.list etc/apt/auth.conf etc/machine-id etc/hostname etc/resolv.conf etc/.pwd.lock "
    "var/lib/dpkg/status-old .dockerenv"
)
FOLDERS = ["boot", "dev", "proc", "sys", "run", "tmp", "var/cache", "var/log", "var/tmp", "var/lib/beo", "root", "home"]
FIRMWARE = "usr/lib/firmware"
_PYTHON = re.compile(r"python3\.(\d+)")
_PROGRAMS = ("mksquashfs", "zstd", "depmod", "dpkg-deb", "apt-get")


class Wish(NamedTuple):
    """What image is to be made. oci: the folder of a layout, "" for Debian."""

    profile: str = "lab"
    added: tuple[str, ...] = ()
    oci: str = ""
    fresh: bool = False


class Interpreter(NamedTuple):
    """The Python of a base: its version like 3.13, its program, and where its modules and a wheel's data go."""

    version: str
    program: str
    site: str
    prefix: str


def build(store: Store, wish: Wish, cache: Path, tell: Callable[[str], object]) -> Manifest:
    """Make an image, put it into the store and return its manifest; `current` stays what it is. Raises BeoError."""
    check(wish)
    programs = _PROGRAMS if wish.oci else ("mmdebstrap", *_PROGRAMS)
    debian.check_programs(programs)
    begun_s = time.monotonic()

    def step(text: str) -> None:
        tell(f"{time.monotonic() - begun_s:5.1f} s  {text}")

    try:
        store.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        cache.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=store.folder, prefix=".build-")))
            os.chmod(scratch, 0o755)
            return _Build(store, wish, cache, scratch, stack, step).run()
    except OSError as error:
        raise Conflict("can't make an image", reason(error), f"free space in {store.folder} and {cache}") from None


def check(wish: Wish) -> None:
    """Raise UsageError where a wish can't be meant."""
    if wish.profile not in PROFILES:
        raise UsageError(f"no profile {wish.profile[:40]!r}", f"there are {' and '.join(PROFILES)}", "see --help")
    for name in wish.added:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.\-]{1,120}", name):
            raise UsageError(f"{name[:80]!r} is no package of Debian", "", "look for it with 'apt-cache search'")
    if wish.added and wish.oci:
        raise UsageError(
            "--add goes with Debian's packages only", "--from-oci has its own", "add them to the container"
        )


class _Build:
    def __init__(
        self, store: Store, wish: Wish, cache: Path, scratch: Path, stack: ExitStack, step: Callable[[str], None]
    ) -> None:
        self._store, self._wish, self._cache, self._scratch = store, wish, cache, scratch
        self._stack, self._step = stack, step
        self._epoch_s = int(os.environ.get("SOURCE_DATE_EPOCH") or EPOCH_S)
        self._files = Files(self._epoch_s)

    def run(self) -> Manifest:
        source = debian.Debian(self._cache, self._wish.fresh)
        suite = self._base(source)
        python = find_python(self._files)
        packages = read_status(self._files)
        strip(self._files)
        self._step(f"the base is there: {suite}, {len(packages)} packages, Python {python.version}")
        debs = source.packages(self._wish.profile)
        kernel = self._kernel(debs["kernel"])
        busybox = self._unpack(debs["busybox"], "busybox") / "usr/bin/busybox"
        self._step(f"the kernel {kernel.version} with {len(kernel.root)} modules")
        firmware = self._firmware(kernel)
        initrd = self._initrd(kernel, busybox, firmware)
        self._step(f"the initrd: {initrd.stat().st_size / 1e6:.1f} MB with {len(kernel.initrd)} modules")
        libraries = dict(
            wheels.add(self._files, wheel, python.site, python.prefix)
            for wheel in wheels.bring(self._cache, python.version)
        )
        self._own(python, busybox)
        self._modules(kernel)
        _compile(self._files, python, self._scratch)
        self._step(f"beo {__version__} and {len(libraries)} libraries, compiled")
        image = self._pack()
        vmlinuz = self._scratch / "kernel.out"
        vmlinuz.write_bytes(kernel.image.read_bytes())
        made = {"image": image, "kernel": vmlinuz, "initrd": initrd}
        sums = {kind: sha256_of(path) for kind, path in made.items()}
        sizes = {kind: path.stat().st_size for kind, path in made.items()}
        manifest = Manifest(
            sha256=sums["image"],
            size_bytes=sizes["image"],
            kernel=sums["kernel"],
            initrd=sums["initrd"],
            kernel_size_bytes=sizes["kernel"],
            initrd_size_bytes=sizes["initrd"],
            suite=suite,
            profile=self._wish.profile,
            kernel_version=kernel.version,
            python=python.version,
            beo=__version__,
            made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            packages=packages,
            wheels=libraries,
            words=WORDS[self._wish.profile],
        )
        self._store.add(manifest, made)
        self._step(f"the image: {sizes['image'] / 1e6:.1f} MB")
        return manifest

    def _base(self, source: debian.Debian) -> str:
        if self._wish.oci:
            layout = Layout(Path(self._wish.oci))
            for layer in layout.read(self._files, self._scratch):
                self._stack.callback(layer.close)
            return f"oci:{layout.digest}"
        base = self._stack.enter_context(source.base(self._wish.added).open("rb"))
        self._files.take_archive(base)
        return debian.SUITE

    def _unpack(self, package: Path, name: str) -> Path:
        folder = self._scratch / name
        debian.run(["dpkg-deb", "-x", str(package), str(folder)], f"unpack {package.name}", debian.ASK_S)
        return folder

    def _kernel(self, package: Path) -> Kernel:
        folder = self._unpack(package, "kernel")
        top = folder / "usr/lib/modules"
        if not top.is_dir():
            top = folder / "lib/modules"
        names = sorted(path.name for path in top.iterdir()) if top.is_dir() else []
        if len(names) != 1:
            raise BeoError(f"{package.name} has no modules", "its layout is another than Debian 13's", "report this")
        version = names[0]
        every = [str(path.relative_to(top / version)) for path in (top / version / "kernel").rglob("*.ko*")]
        needs = modules.read_needs(_depmod(top / version, self._scratch / "all", version, sorted(every)))
        builtin = (top / version / "modules.builtin").read_text()
        root = modules.with_needs(modules.for_root(every), needs)
        initrd = modules.for_initrd(every, needs)
        modules.check_drivers(self._wish.profile, initrd, builtin)
        return Kernel(version, folder / f"boot/vmlinuz-{version}", top / version, root, initrd)

    def _firmware(self, kernel: Kernel) -> dict[str, bytes]:
        """Keep of Debian's firmware that for which a module asks, and return what those of the initrd ask for.

        A package has the firmware of many devices, most of them radio, for which an image has no drivers.
        """
        files, inside = self._files, f"{FIRMWARE}/"
        every = [name.removeprefix(inside) for name in files.names() if name.startswith(inside)]
        names = [name for name in every if files.is_file(inside + name)]
        if not names:
            return {}

        def kept(paths: Sequence[str]) -> list[str]:
            return modules.wanted(names, set().union(*(modules.firmware_of(kernel.read(path)) for path in paths)))

        early = {name: files.read(inside + name) for name in kept(kernel.initrd)}
        if not self._wish.oci:
            chosen = kept(kernel.root)
            stay = {*chosen, *(files.resolve(inside + name).removeprefix(inside) for name in chosen)}
            stay |= {str(folder) for name in stay for folder in PurePosixPath(name).parents}
            for name in every:
                if name not in stay:
                    files.drop(inside + name)
            self._step(f"firmware: {len(chosen)} of {len(names)} files, {len(early)} of them in the initrd")
        return early

    def _modules(self, kernel: Kernel) -> None:
        where = f"usr/lib/modules/{kernel.version}"
        _depmod(kernel.folder, self._scratch / "root", kernel.version, kernel.root)
        made = self._scratch / "root/lib/modules" / kernel.version
        for path in made.rglob("*"):
            if path.is_file():
                self._files.add_path(f"{where}/{path.relative_to(made)}", path)

    def _initrd(self, kernel: Kernel, busybox: Path, firmware: dict[str, bytes]) -> Path:
        files = Files(self._epoch_s)
        for name in ("bin", "dev", "proc", "sys", "run", "root", "tmp"):
            files.folder(name)
        files.node("dev/console", 5, 1)
        files.node("dev/null", 1, 3, 0o666)
        files.add("bin/busybox", busybox.read_bytes(), 0o755)
        for applet in APPLETS:
            files.link(f"bin/{applet}", "busybox")
        files.link("sbin", "bin")
        files.add("init", own("init"), 0o755)
        files.add("bin/lease", own("lease"), 0o755)
        plain = self._scratch / "plain"
        for name in kernel.initrd:
            target = plain / name.removesuffix(".xz")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(kernel.read(name))
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            (plain / name).write_bytes((kernel.folder / name).read_bytes())
        chosen = [name.removesuffix(".xz") for name in kernel.initrd]
        _depmod(plain, self._scratch / "initrd", kernel.version, chosen)
        made = self._scratch / "initrd/lib/modules" / kernel.version
        for path in sorted(made.rglob("*")):
            if path.is_file() and not path.name.endswith(".bin"):  # busybox reads the texts
                files.add_path(f"lib/modules/{kernel.version}/{path.relative_to(made)}", path)
        for name, data in firmware.items():
            files.add(f"lib/firmware/{name}", data)
        raw, packed = self._scratch / "initrd.cpio", self._scratch / "initrd.out"
        with raw.open("wb") as out:
            files.write_cpio(out)
        debian.run(["zstd", "-q", "-15", "-T1", "-f", str(raw), "-o", str(packed)], "pack the initrd", PACK_S)
        return packed

    def _own(self, python: Interpreter, busybox: Path) -> None:
        """Beo itself, and what a machine starts with."""
        files = self._files
        top = TOP
        for where, folders, names in os.walk(top):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                path = Path(where, name)
                mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
                files.add(f"{python.site}/beo/{path.relative_to(top)}", path.read_bytes(), mode)
        front = top.parent / "bin" / "beo"
        if front.exists():
            files.add("usr/bin/beo", front.read_bytes(), 0o755)
        for name in FOLDERS:
            files.folder(name, 0o1777 if name.endswith("tmp") else 0o700 if name in ("root", "var/lib/beo") else 0o755)
        files.add(f"{BOOT}/busybox", busybox.read_bytes(), 0o755)
        for name in ("start", "worker", "peer", "renew"):
            files.add(f"{BOOT}/{name}", own(name), 0o755)
        files.add("etc/inittab", own("inittab"))
        files.add("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")
        files.add("etc/hostname", b"worker\n")
        if "usr/bin/python3" not in files:
            files.link("usr/bin/python3", f"/{python.program}")

    def _pack(self) -> Path:
        packed = self._scratch / "image.out"
        words = ["mksquashfs", "-", str(packed), "-tar", "-comp", "zstd", "-Xcompression-level", str(LEVEL)]
        words += ["-noappend", "-quiet", "-no-progress", "-processors", str(min(2, os.cpu_count() or 1))]
        environment = dict(
            os.environ, SOURCE_DATE_EPOCH=str(self._epoch_s), PATH=f"{os.environ.get('PATH', '')}:/usr/sbin"
        )
        with tempfile.TemporaryFile(dir=self._scratch) as said:
            packer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment)
            assert packer.stdin
            broken = False
            try:
                self._files.write_tar(packer.stdin)  # type: ignore[arg-type]
                packer.stdin.close()
            except BrokenPipeError:
                broken = True
            except BaseException:
                packer.kill()
                packer.wait()
                raise
            status = packer.wait(PACK_S)
            said.seek(0)
            told = said.read().decode(errors="replace")
        if status or broken:
            raise debian.understand("pack the image", "mksquashfs", told)
        return packed


class Kernel(NamedTuple):
    """A kernel that was unpacked: its version, its image, the folder of its modules, and which of them go where."""

    version: str
    image: Path
    folder: Path
    root: list[str]
    initrd: list[str]

    def read(self, name: str) -> bytes:
        """A module, unpacked."""
        data = (self.folder / name).read_bytes()
        return lzma.decompress(data) if name.endswith(".xz") else data


def own(name: str) -> bytes:
    """What a machine starts with, from the folder worker/boot."""
    return (TOP / "worker" / "boot" / name).read_bytes()


def _depmod(source: Path, base: Path, version: str, chosen: Sequence[str]) -> str:
    """Put the chosen modules into a folder of their own, as links, let depmod describe them; return modules.dep."""
    target = base / "lib/modules" / version
    for name in chosen:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(source / name, target / name)
    target.mkdir(parents=True, exist_ok=True)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        (target / name).write_bytes((source / name).read_bytes())
    environment = dict(os.environ, PATH=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    debian.run(["depmod", "-b", str(base), version], "describe the kernel's modules", debian.ASK_S, environment)
    return (target / "modules.dep").read_text()


def find_python(files: Files) -> Interpreter:
    """The Python of a base; raises NotFound where there is none that beo runs on."""
    for name, prefix in (("usr/bin/python3", "usr"), ("usr/local/bin/python3", "usr/local")):
        try:
            program = files.resolve(name)
        except KeyError:
            continue
        match = _PYTHON.search(program)
        if match and int(match[1]) >= 11:
            debians = "usr/lib/python3/dist-packages"
            site = debians if prefix == "usr" and debians in files else f"{prefix}/lib/python3.{match[1]}/site-packages"
            return Interpreter(f"3.{match[1]}", program, site, prefix)
    raise NotFound("the base has no Python that beo runs on", "3.11 or later is needed", "add python3 to it")


def read_status(files: Files) -> dict[str, str]:
    """The packages of a Debian, and their versions; none for another base."""
    try:
        text = files.read("var/lib/dpkg/status").decode(errors="replace")
    except KeyError:
        return {}
    found = {}
    for entry in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and line[0] != " ")
        if "Package" in fields and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields.get("Version", "")
    return found


def strip(files: Files) -> None:
    """Take away what machines have no use for, and all that tells where the base was made."""
    for name in DROPPED:
        files.drop_inside(name)
    for name in REMOVED:
        files.drop(name)


def _compile(files: Files, python: Interpreter, scratch: Path) -> None:
    """Compile what was added, by the image's own Python, which runs here by its own loader."""
    root = scratch / "python"
    try:
        loader = files.resolve("lib64/ld-linux-x86-64.so.2")
    except KeyError:
        raise NotFound("the base has no C library of GNU", "the libraries of beo need it", "use another base") from None
    library = "usr/lib/x86_64-linux-gnu"
    wanted = (f"{python.prefix}/lib/python3", python.site, library)
    names = [name for name in files.names() if name.startswith(wanted) or name in (python.program, loader)]
    for name in names:
        info = files.member(name)
        if (info.isreg() or info.islnk()) and (not name.startswith(library) or ".so" in name):
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files.read(name))
        elif info.issym() and name.startswith(library) and ".so" in name:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                (root / name).write_bytes(files.read(name))
            except KeyError:
                continue
    os.chmod(root / loader, 0o755)
    code = "import compileall,sys; from py_compile import PycInvalidationMode as M; " + (
        "sys.exit(not compileall.compile_dir(sys.argv[1], quiet=2, stripdir=sys.argv[2], prependdir='/', "
        "invalidation_mode=M.UNCHECKED_HASH, force=True))"
    )
    words = [str(root / loader), "--library-path", f"{root / library}:{root}/{python.prefix}/lib"]
    words += [str(root / python.program), "-P", "-B", "-c", code, str(root / python.site), str(root)]
    environment = {"PYTHONHOME": str(root / python.prefix), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    debian.run(words, "compile what is added", COMPILE_S, environment)
    for path in sorted((root / python.site).rglob("*.pyc")):
        files.add_path(str(path.relative_to(root)), path)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
