"""Many users of one cluster: they come in by the door, their jobs run as theirs, and nobody gets at another's."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import keyring
from tests.cluster import BEO, Cluster, running, wait_for
from tests.people import Person, open_place

pytestmark = pytest.mark.root

ANN, BOB = 54_321, 54_322  # uids that no account has
GROUP = 54_400  # a further group of ann's


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with open_place() as folder:
        yield folder


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Cluster]:
    with running(place / "beo", workers=1, slots=4) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ann(place: Path) -> Person:
    return Person(ANN, (ANN, GROUP), place)


@pytest.fixture(scope="module")
def bob(place: Path) -> Person:
    return Person(BOB, (BOB,), place)


@pytest.fixture
def secret_job(cluster: Cluster, ann: Person) -> Iterator[int]:
    """A job of ann's that runs, with a secret in its environment, on its command line and in its output."""
    words = ("--env", "TOKEN=hidden-word", "-o", f"{ann.home}/%j.out", "sh", "-c", "echo hidden-word; exec sleep 300")
    job = ann.submit(cluster.home.path, *words)
    cluster.wait_for_state(job, "running")
    wait_for(lambda: cluster.output(job), "the job's first word")
    yield job
    cluster.beo("cancel", str(job))
    cluster.wait(job)


# ---- the door


def test_a_local_user_needs_no_set_up(cluster: Cluster, ann: Person) -> None:
    done = ann.beo(cluster.home.path, "run", "-n", "2", "sh", "-c", "id -u")
    assert (done.stdout, done.returncode) == (f"{ANN}\n{ANN}\n", 0), done.stderr
    key = ann.home / ".config" / "beo" / f"{cluster.home.cluster().cluster}.secret"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and key.stat().st_uid == ANN
    facts = ann.beo(cluster.home.path, "info").stdout
    assert f"uid{ANN}" in facts and "user" in facts


def test_others_may_pass_through_the_folder_and_see_nothing_of_it(cluster: Cluster, ann: Person) -> None:
    home = cluster.home.path
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir() if path.is_dir()}
    assert stat.S_IMODE(home.stat().st_mode) == 0o711
    assert set(modes.values()) == {0o700}, modes
    for path in (home, home / "keys", home / "head", home / "nodes", home / "log"):
        assert ann.run("ls", str(path)).returncode != 0
    for path in (home / "keys" / "admin.secret", home / "local.json", home / "head" / "journal.db"):
        assert ann.run("cat", str(path)).returncode != 0


def test_a_key_that_others_could_read_is_refused(cluster: Cluster, place: Path) -> None:
    eve = Person(54_323, (54_323,), place)
    assert eve.beo(cluster.home.path, "info").returncode == 0
    key = eve.home / ".config" / "beo" / f"{cluster.home.cluster().cluster}.secret"
    key.chmod(0o644)
    done = eve.beo(cluster.home.path, "info")
    assert done.returncode == 77 and f"chmod 600 {key}" in done.stderr
    key.chmod(0o600)
    key.parent.chmod(0o777)
    done = eve.beo(cluster.home.path, "info")
    assert done.returncode == 77 and "others may write" in done.stderr
    key.parent.chmod(0o700)
    os.chown(key, BOB, BOB)
    assert eve.beo(cluster.home.path, "info").returncode == 77


# ---- jobs as their owner


def test_a_job_runs_as_its_owner_with_the_owners_groups(cluster: Cluster, ann: Person) -> None:
    done = ann.beo(cluster.home.path, "run", "sh", "-c", "id -u; id -g; id -G; umask; echo $HOME")
    uid, gid, groups, umask, home = done.stdout.split("\n")[:-1]
    assert (uid, gid, set(groups.split())) == (str(ANN), str(ANN), {str(ANN), str(GROUP)}), done.stderr
    assert (umask, home) == ("0022", str(ann.home))


def test_an_account_gives_a_job_its_names(cluster: Cluster, place: Path) -> None:
    nobody = Person(65_534, (65_534,), place)
    done = nobody.beo(cluster.home.path, "run", "sh", "-c", "echo $USER $LOGNAME ${SHELL:-none} $HOME")
    assert done.stdout.split() == ["nobody", "nobody", "/usr/sbin/nologin", str(nobody.home)], done.stderr


def test_a_group_that_is_not_the_users_is_refused_or_left_out(cluster: Cluster, place: Path) -> None:
    nobody = Person(65_534, (65_534, 0), place)
    done = nobody.beo(cluster.home.path, "run", "id", "-G")
    assert done.stdout.split() == ["65534"] and "group 0 left out" in done.stderr, done.stderr
    wheel = Person(65_534, (0,), place)
    done = wheel.beo(cluster.home.path, "run", "id", "-G")
    assert done.returncode == 77 and "group 0 is not one of yours" in done.stderr


def test_a_script_is_its_owners_to_read_and_leaves_nothing(cluster: Cluster, ann: Person, bob: Person) -> None:
    script = ann.home / "job.sh"
    script.write_text('#!/bin/sh\n#BEO -n 1\nstat -c "%u %a" "$0" "$TMPDIR"; echo "$0"\n')
    done = ann.beo(cluster.home.path, "submit", "--wait", "-q", str(script))
    assert done.returncode == 0, done.stderr
    lines = cluster.output(int(done.stdout.split()[0])).split("\n")
    assert lines[:2] == [f"{ANN} 500", f"{ANN} 700"]
    assert not Path(lines[2]).exists()


def test_output_files_are_written_as_the_owner_and_follow_no_link_out(
    cluster: Cluster, ann: Person, place: Path
) -> None:
    path = cluster.home.path
    treasure = place / "treasure"
    treasure.write_text("root's")
    treasure.chmod(0o600)
    (ann.home / "link").symlink_to(treasure)
    good = ann.submit(path, "-o", str(ann.home / "out"), "echo", "mine")
    bad = [ann.submit(path, "-o", name, "echo", "mine") for name in (str(ann.home / "link"), "/proc/self/fd/2")]
    cluster.wait(good, *bad)
    wait_for(lambda: (ann.home / "out").exists() and (ann.home / "out").read_text() == "mine\n", "the output file")
    assert (ann.home / "out").stat().st_uid == ANN
    wait_for(lambda: all("permission denied" in ann.beo(path, "show", str(job)).stdout for job in bad), "complaints")
    assert treasure.read_text() == "root's"


# ---- nobody gets at another's


def test_another_users_job_can_neither_be_ended_nor_read(cluster: Cluster, bob: Person, secret_job: int) -> None:
    path, job = cluster.home.path, str(secret_job)
    for verb in ("cancel", "logs"):
        done = bob.beo(path, verb, job)
        assert done.returncode == 77, done.stdout
        assert f"job {job} belongs to uid{ANN}" in done.stderr and "or an admin" in done.stderr
    program = f"from beo.client import Cluster; Cluster().signal({job}, 9)"
    assert "Refused" in bob.python(program, BEO_DIR=str(path)).stderr
    for words in ("show %s", "show --json %s", "queue --json", "events -n 500"):
        done = bob.beo(path, *words.replace("%s", job).split())
        assert done.returncode == 0 and "hidden-word" not in done.stdout, done.stdout
    assert job in bob.beo(path, "queue", "-q").stdout.split(), "the row is there"
    assert cluster.job(secret_job).state == "running"


def test_another_users_processes_and_files_are_shut(cluster: Cluster, bob: Person, secret_job: int) -> None:
    (pid,) = cluster.ranks(secret_job).values()
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    tmp = dict(word.split(b"=", 1) for word in environ.split(b"\0") if b"=" in word)[b"TMPDIR"].decode()
    assert b"hidden-word" in environ
    for name in ("environ", "fd/1", "maps"):
        assert bob.run("cat", f"/proc/{pid}/{name}").returncode != 0
    assert bob.run("ls", f"/proc/{pid}/root/").returncode != 0
    assert bob.run("ls", tmp).returncode != 0 and stat.S_IMODE(os.stat(tmp).st_mode) == 0o700
    assert bob.run("kill", "-9", str(pid)).returncode != 0
    spools = list(cluster.home.nodes.glob(f"*/wardens/*/{secret_job}.*.spool"))
    assert spools
    for path in (*spools, *cluster.home.head.glob("output/*")):
        assert bob.run("cat", str(path)).returncode != 0
    for socket in cluster.home.nodes.glob("*/wardens/*/sock"):
        program = f"import socket; socket.socket(socket.AF_UNIX).connect({str(socket)!r})"
        assert "PermissionError" in bob.python(program).stderr


def test_shared_memory_is_each_jobs_own(cluster: Cluster, ann: Person, bob: Person) -> None:
    assert ann.beo(cluster.home.path, "run", "sh", "-c", "echo x > /dev/shm/mine; ls /dev/shm").stdout == "mine\n"
    assert bob.beo(cluster.home.path, "run", "ls", "/dev/shm").stdout == ""


def test_an_admin_may_all(cluster: Cluster, ann: Person) -> None:
    job = ann.submit(cluster.home.path, "sh", "-c", "echo word; exec sleep 300")
    cluster.wait_for_state(job, "running")
    wait_for(lambda: cluster.output(job) == "word\n", "the job's word")
    assert cluster.beo("cancel", str(job)).returncode == 0
    cluster.wait(job)


def test_root_inside_a_users_job_is_out_of_reach(cluster: Cluster, ann: Person) -> None:
    done = ann.beo(cluster.home.path, "run", "sh", "-c", "grep CapEff /proc/self/status")
    assert int(done.stdout.split()[1], 16) == 0


# ---- who is known


def test_users_are_listed_revoked_and_allowed_again(cluster: Cluster, place: Path) -> None:
    path, dan = cluster.home.path, Person(54_340, (54_340,), place)
    assert dan.beo(path, "info", "-q").returncode == 0
    assert "uid54340" in cluster.beo("users", "-q").stdout.split()
    assert dan.beo(path, "users").returncode == 77, "that is for admins"
    assert cluster.beo("users", "revoke", "uid54340").returncode == 0
    done = dan.beo(path, "queue")
    assert done.returncode == 77 and "barred" in done.stderr, done.stderr
    shutil.rmtree(dan.home / ".config")  # another key doesn't help
    assert dan.beo(path, "queue").returncode == 77
    assert cluster.beo("users", "allow", "uid54340").returncode == 0
    assert dan.beo(path, "queue").returncode == 0
    key = next(view.keys[0] for view in cluster.client().users() if view.name == "uid54340")
    assert cluster.beo("users", "revoke", key[:12]).returncode == 0
    done = dan.beo(path, "queue")
    assert done.returncode == 77 and "revoked" in done.stderr, done.stderr


# ---- the door of a worker


def test_a_workers_door_lets_its_users_in(cluster: Cluster, place: Path) -> None:
    fay, folder = Person(54_350, (54_350,), place), place / "worker"
    folder.mkdir(mode=0o700)
    env = {**cluster.env, "BEO_DIR": str(folder)}
    token = json.loads(cluster.beo("token", "--json").stdout)["token"]
    head = cluster.home.cluster().heads[0]

    def beo(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*BEO, *words], env=env, capture_output=True, text=True, timeout=60, cwd="/")

    try:
        done = beo("worker", "--head", head, "--token", token, "--name", "elsewhere", "--slots", "1")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: (folder / "door").exists(), "the worker's door")
        done = fay.beo(folder, "run", "id", "-u")
        assert (done.stdout, done.returncode) == ("54350\n", 0), done.stderr
    finally:
        beo("down")
        cluster.wait_for_node("elsewhere", "lost")
        cluster.beo("forget", "elsewhere")


# ---- a cluster that isn't root's


def test_a_cluster_of_one_user_works_and_refuses_others(place: Path, bob: Person) -> None:
    owner = Person(54_330, (54_330,), place)
    folder = owner.home / "beo"
    try:
        done = owner.beo(folder, "up", "--workers", "1", "--slots", "2")
        assert done.returncode == 0, done.stderr
        assert not (folder / "door").exists() and stat.S_IMODE(folder.stat().st_mode) == 0o700
        done = owner.beo(folder, "run", "-n", "2", "id", "-u")
        assert (done.stdout, done.returncode) == ("54330\n54330\n", 0), done.stderr
        owner.home.chmod(0o711)
        done = bob.beo(folder, "run", "true")
        assert done.returncode == 77 and "is its owner's alone" in done.stderr, done.stderr
        assert not (
            bob.home / ".config" / "beo" / f"{json.loads((folder / 'cluster.json').read_text())['cluster']}.secret"
        ).exists()
        by_root = subprocess.run(
            [owner.interpreter, "-m", "beo.front", "submit", "-q", "true"],
            env={**owner.env, "BEO_DIR": str(folder)},
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert by_root.returncode == 0, by_root.stderr
        done = owner.beo(folder, "show", by_root.stdout.strip())
        assert "node01 can't run jobs of" in done.stdout or "as root" in done.stdout, done.stdout
    finally:
        owner.beo(folder, "down")


def test_keyring_names_its_file_by_the_cluster() -> None:
    assert keyring.path_of("c" * 32).endswith(f"/beo/{'c' * 32}.secret")


# ---- the tree of files


def test_files_of_the_tree_are_their_owners_and_modes_say_who_else_may(
    cluster: Cluster, ann: Person, bob: Person
) -> None:
    path = cluster.home.path
    (ann.home / "note").write_text("of ann\n")
    os.chown(ann.home / "note", ANN, ANN)

    def done(person: Person, *words: str) -> str:
        did = person.beo(path, *words)
        assert did.returncode == 0, did.stderr
        return did.stdout

    def refused(person: Person, *words: str) -> str:
        did = person.beo(path, *words)
        assert did.returncode in (1, 77), did
        return did.stderr

    done(ann, "mkdir", "ann")
    done(ann, "put", "note", "ann")
    assert done(bob, "cat", "ann/note") == "of ann\n"
    assert f"{ANN}" in done(bob, "ls", "-l", "ann")
    assert "permission denied" in refused(bob, "put", "/etc/hostname", "ann")
    assert "permission denied" in refused(bob, "rm", "ann/note")
    assert "not permitted" in refused(bob, "mv", "ann", "bobs"), "the tree's top is like /tmp: each has his own"
    assert done(ann, "cat", "ann/note") == "of ann\n"

    (ann.home / "secret").write_text("hidden-word")
    (ann.home / "secret").chmod(0o600)
    os.chown(ann.home / "secret", ANN, ANN)
    done(ann, "put", "secret", "ann")
    assert "permission denied" in refused(bob, "cat", "ann/secret")
    done(ann, "rm", "-r", "ann")
