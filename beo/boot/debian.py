"""Debian as the base of an image: its packages by mmdebstrap, its kernel by apt; from the mirror that apt here uses.

What was brought is kept, as bringing it takes longest. The kernel's package is only read: to configure it would make an
initrd that nobody boots.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from beo.errors import BeoError, Conflict, NotFound, UsageError, reason

SUITE = "trixie"
ARCHITECTURE = "amd64"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("python3", "iproute2", "kmod", "mount", "procps", "fuse3", "libfuse3-4", "criu", "netbase", "libstdc++6")
"""Besides the essential ones: what a worker's agent, its verbs and its programs take for given."""
KERNELS = {"vm": "linux-image-cloud-amd64", "lab": "linux-image-amd64"}
LEFT_OUT = (
    "doc",
    "man",
    "locale",
    "info",
    "lintian",
    "bash-completion",
    "doc-base",
)  # of usr/share: nobody reads there
AGE_MAX_S = 7 * 86_400.0  # of what is kept: Debian mends its packages meanwhile
BASE_S = 1_200.0  # for all the packages to be brought and set up, on a slow line
ASK_S = 300.0
NEEDS = {  # program -> the package that has it
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "zstd": "zstd",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
}


def check_programs(names: Sequence[str]) -> None:
    """Raise BeoError where programs are missing that a build needs, with the line that installs them."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in names if not shutil.which(name, path=path)]
    if missing:
        packages = " ".join(sorted({NEEDS[name] for name in missing}))
        raise NotFound(
            f"there is no {' nor '.join(missing)} here", "an image is built by it", f"apt-get install -y {packages}"
        )


def mirror() -> str:
    """The mirror of Debian that apt here uses; raises NotFound."""
    words = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    for line in run(words, "ask apt for its mirror", ASK_S).splitlines():
        origin, _, address = line.partition(" ")
        if origin == "Debian":
            return address
    raise NotFound("apt knows no mirror of Debian here", "it was never updated", "apt-get update")


class Debian:
    """Brings Debian's packages into a folder, where they stay."""

    def __init__(self, cache: Path, fresh: bool = False) -> None:
        """Take the folder. fresh: bring all anew."""
        self._cache = cache
        self._fresh = fresh
        cache.mkdir(parents=True, exist_ok=True)

    def base(self, added: Sequence[str]) -> Path:
        """Return a tar archive of a Debian with these packages, besides those that it always has."""
        packages = sorted({*PACKAGES, *added})
        words = [
            "mmdebstrap",
            f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
            "--variant=essential",
            f"--architectures={ARCHITECTURE}",
            "--format=tar",
            "--quiet",
            f"--include={','.join(packages)}",
            '--aptopt=Apt::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT),
        ]
        key = hashlib.sha256(json.dumps([SUITE, words[2:]]).encode()).hexdigest()[:16]
        kept = self._cache / f"base-{key}.tar"
        if self._is_fresh(kept):
            return kept
        # Firmware isn't free software in Debian's sense; a mirror may have none of it.
        parts = "main non-free-firmware" if added else "main"
        source = f"deb [signed-by={KEYRING}] {mirror()} {SUITE} {parts}\n"
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".base-") as scratch:
            os.chmod(scratch, 0o755)
            made, sources = Path(scratch, "base.tar"), Path(scratch, "sources.list")
            sources.write_text(source)
            environment = dict(os.environ, SOURCE_DATE_EPOCH="0", TMPDIR=scratch)
            run([*words, SUITE, str(made), str(sources)], "make the base", BASE_S, environment)
            os.replace(made, kept)
        return kept

    def packages(self, profile: str) -> dict[str, Path]:
        """Return the packages, as files, of the kernel ("kernel") and of the busybox that boots it ("busybox")."""
        name = KERNELS[profile]
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".apt-") as scratch:
            kept = self._cache / f"kernel-{profile}.deb"
            busybox = self._cache / "busybox.deb"
            if self._is_fresh(kept) and self._is_fresh(busybox):
                return {"kernel": kept, "busybox": busybox}
            apt = _Apt(Path(scratch))
            apt.update()
            os.replace(apt.download(apt.dependency(name)), kept)
            os.replace(apt.download("busybox-static"), busybox)
        return {"kernel": kept, "busybox": busybox}

    def _is_fresh(self, path: Path) -> bool:
        with suppress(FileNotFoundError):
            return not self._fresh and time.time() - path.stat().st_mtime < AGE_MAX_S
        return False


class _Apt:
    """An apt of its own, which knows nothing but one suite and changes nothing of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("lists/partial", "archives/partial", "none"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main\n")
        options = {
            "Dir::State": folder,
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": folder / "none",
            "Dir::Etc::preferencesparts": folder / "none",
            "APT::Architecture": ARCHITECTURE,
            "APT::Sandbox::User": "root",
        }
        self._options = ["-qq", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]

    def update(self) -> None:
        run(["apt-get", *self._options, "update"], "ask the mirror what it has", ASK_S)

    def dependency(self, name: str) -> str:
        """The kernel of which a package like linux-image-amd64 says that it is the newest."""
        told = run(["apt-cache", *self._options, "depends", "--important", name], f"find {name}", ASK_S)
        for line in told.splitlines():
            kind, _, package = line.strip().partition(": ")
            if kind == "Depends" and package.startswith("linux-image-"):
                return package
        raise NotFound(f"the mirror has no {name}", "", "see 'apt-get update' here, or use another mirror")

    def download(self, name: str) -> Path:
        run(["apt-get", *self._options, "download", name], f"bring {name}", ASK_S, folder=self._folder)
        return next(self._folder.glob(f"{name.partition('=')[0]}_*.deb"))


def run(
    words: Sequence[str],
    what: str,
    limit_s: float,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program and return what it has written; raises the BeoError that its words come to."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
            env=environment,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        raise Conflict(
            f"can't {what}", f"{words[0]} took more than {limit_s:.0f} s", "see the network, try again"
        ) from None
    except OSError as error:
        raise BeoError(f"can't {what}", reason(error), f"install {NEEDS.get(words[0], words[0])}") from None
    if done.returncode:
        raise understand(what, words[0], done.stderr + done.stdout)
    return done.stdout


def understand(what: str, program: str, told: str) -> BeoError:
    """The error that a program's words come to: which package is unknown, no space, no network, or its last line."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    for line in lines:
        if "Unable to locate package" in line:
            name = line.rpartition(" ")[2]
            return UsageError(f"Debian {SUITE} has no package {name}", "", "look for its name with 'apt-cache search'")
    for line in lines:
        if "No space left on device" in line or "enough free space" in line:
            return Conflict(f"can't {what}", "no space left on the disk", "free space, or set --cache to another disk")
    for line in lines:
        if any(
            word in line for word in ("Could not resolve", "Could not connect", "Failed to fetch", "Connection failed")
        ):
            return Conflict(f"can't {what}", line[:300], "see whether this machine reaches the mirror, and try again")
    said = next((line for line in lines if line.startswith("E: ")), lines[-1] if lines else "it says nothing")
    return BeoError(f"can't {what}", f"{program}: {said[:300]}", "see what it says, and try again")
