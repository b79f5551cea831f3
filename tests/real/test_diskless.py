"""A worker without a disk: its root is an empty tmpfs, and what its jobs are made of is in the tree alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import interpreter
from tests.cluster import BEO, PATIENCE_S, ROOT
from tests.net.hosts import Host, network
from tests.net.site import said, tokens_line
from tests.real.nodes import can_mount

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.net,
    pytest.mark.skipif(not can_mount(), reason="run it as root, after 'modprobe fuse': it mounts the tree"),
]

SETTINGS = '[files.mounts]\n"/beo" = "/"\n'
STATE = "/var/beo"  # the worker's BEO_DIR, in its memory
JOB = """
import json, os, sys, time
began = time.monotonic()
import numpy
took = time.monotonic() - began
matrix = numpy.arange(250_000.0).reshape(500, 500) / 250_000
found = {
    "trace": float(numpy.trace(matrix @ matrix.T)),
    "node": os.environ["BEO_NODE"],
    "prefix": sys.prefix,
    "numpy": numpy.__file__,
    "import_s": took,
    "loaded": sorted({line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line}),
    "root": sorted(os.listdir("/")),
    "mounts": [line.split()[1:3] for line in open("/proc/self/mounts")],
}
with open(sys.argv[1], "x") as file:
    json.dump(found, file)
print("written")
"""


class Machines(NamedTuple):
    """A head, and a worker without a disk."""

    head: Host
    worker: Host


def needs() -> list[str]:
    """What the agent is made of: beo, the venv with its packages, that venv's Python, and what these load besides."""
    folders = [ROOT / "beo", Path(sys.prefix), Path(sys.base_prefix)]
    packages, stdlib = Path(sysconfig.get_path("platlib")), Path(sysconfig.get_path("stdlib"))
    modules = [path for folder in (packages / "zmq", packages / "msgspec", stdlib) for path in folder.rglob("*.so")]
    programs = [Path(os.path.realpath(sys.executable)), *(path for path in modules if "tkinter" not in path.name)]
    files = interpreter.libraries(programs)
    loaded = {str(path) for path in files.values() if not any(path.is_relative_to(folder) for folder in folders)}
    return [*map(str, folders), *sorted(loaded)]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("diskless")
    with network(folder, 2) as net:
        head, worker = net.hosts
        head.beo_dir.mkdir(mode=0o700)
        said(head, "head", "init")
        line = tokens_line(head)
        bare = [sys.executable, str(ROOT / "tests" / "real" / "bareroot.py"), str(worker.inside / "root"), *needs()]
        words = [*BEO, *line, "--slots", "2"]
        worker.env["BEO_DIR"] = STATE
        made = f"import os; os.makedirs({STATE!r}, 0o700); open({STATE + '/beo.toml'!r}, 'w').write({SETTINGS!r})"
        begin = [sys.executable, "-c", f"{made}; os.execv({sys.executable!r}, {words!r})"]
        process = worker.start("unshare", "--mount", *bare, "--", *begin)
        out, err = process.communicate(timeout=2 * PATIENCE_S)
        assert process.returncode == 0, out + err
        yield Machines(head, worker)
        inside = ["nsenter", "--target", str(worker.daemons("supervisor")[0]), "--all", "--wdns=/tmp"]
        done = subprocess.run([*inside, *BEO, "down"], env=worker.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        said(head, "down")


def test_a_job_whose_interpreter_venv_and_program_lie_on_the_tree_imports_numpy_and_its_result_is_on_the_head(
    machines: Machines, tmp_path: Path
) -> None:
    head = machines.head
    interpreter.pack(tmp_path / "py", "numpy")
    said(head, "put", str(tmp_path / "py"), "/")
    on_tree = interpreter.words("/beo/py")
    run = ["run", "--chdir", "/", "--env", "PYTHONPATH=", "--env", "HOME=/beo"]
    said(head, *run, *on_tree, "-m", "venv", "--copies", "--without-pip", "/beo/venv")
    packages = f"/venv/lib/{interpreter.VERSION}/site-packages/"
    said(head, "put", *map(str, interpreter.site("numpy")), packages)
    (tmp_path / "job.py").write_text(JOB)
    said(head, "put", str(tmp_path / "job.py"), "/")
    took_s = []
    for name in ("first", "second"):
        words = [*interpreter.words("/beo/py", "/beo/venv/bin/python"), "/beo/job.py", f"/beo/{name}.json"]
        assert said(head, *run, *words) == "written\n"
        found: dict[str, Any] = json.loads(said(head, "cat", f"/{name}.json"))
        took_s.append(found["import_s"])
        assert found["trace"] == pytest.approx(sum((k / 250_000) ** 2 for k in range(250_000)))
        assert (found["node"], found["prefix"]) == (machines.worker.name, "/beo/venv")
        assert found["numpy"].startswith("/beo/venv/")
        assert [path for path in found["loaded"] if not path.startswith("/beo/")] == []
        assert ["/", "tmpfs"] in found["mounts"] and ["/beo", "fuse.beo"] in found["mounts"]
    print(f"import numpy took {' and '.join(f'{s:.2f} s' for s in took_s)}; at the root of the worker: {found['root']}")
