"""A cluster's folder: settings are checked by name, keys are for their owner alone, files are replaced whole."""

import os
import re
from pathlib import Path

import pytest

from beo.config import ClusterFile, Home, Place, Who, home, write_durably
from beo.errors import BeoError, NoHead, Refused, UsageError

SECRET = "x" * 40


@pytest.fixture
def place(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_without_a_file_everything_has_its_default(place: Home) -> None:
    assert place.config().worker.lease_s == 15.0


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("[worker]\nlease_s = 'long'", r"\$\.worker\.lease_s"),
        ("[worker]\nlease_s = 0.1", r"\$\.worker\.lease_s"),
        ("[worker]\nlaese_s = 3", "laese_s"),
        ("[wroker]\nlease_s = 3", "wroker"),
        ("[head]\nqueued_max = 0", r"\$\.head\.queued_max"),
        ("[head\n", "line 1"),
        ("[head]\nlisten = 7420", r"\$\.head\.listen"),
        ("[ha]\nlease_s = 0.01", r"\$\.ha\.lease_s"),
        ("[ha]\nlevel = 'D'", r"\$\.ha\.level"),
        ("[ha]\nadress = '10.0.0.50/24'", "adress"),
        ("[ha]\naddress = '10.0.0.500'", r"`address` is '10.0.0.500': write .* at `\$\.ha`"),
        ("[ha]\naddress = '127.0.0.1/8'", "`address` is .* none a machine could be reached by"),
        ("[ha]\naddress = 'fd00::1/64'", "`address` .* ipv4"),
        ("[ha]\ninterface = 'a name that is too long'", "`interface`"),
        ("[ha]\nlinks = ['10.0.0.1:pair']", "`links` has '10.0.0.1:pair'"),
        (
            "[[ha.on_promote]]\nstart = 'true'\n[[ha.on_promote]]\nstop = 'true'",
            r"either `start`.* at `\$\.ha\.on_promote",
        ),
        ("[[ha.on_promote]]\nstart = 'true'\nrun = 'true'", "either `start`"),
        ('[[ha.on_promote]]\nstart = "echo \'open"', "`start` is no command: no closing quotation"),
        ("[[ha.on_promote]]\nrun = ['', 'x']", "`run` is no command"),
        ("[[ha.on_promote]]\nstart = '/a/x 1'\n[[ha.on_promote]]\nstart = '/b/x 2'", "`on_promote` has 'x' twice"),
        ("[[ha.on_promote]]\nstart = '   '", "`start` is no command"),
        ("[[ha.on_promote]]\nstart = 'true'\ntimeout_s = 0", r"\$\.ha\.on_promote\[.*\]\.timeout_s"),
    ],
)
def test_a_faulty_setting_is_named(place: Home, line: str, named: str) -> None:
    place.toml.write_text(line)
    with pytest.raises(UsageError, match=named):
        place.config()


def test_a_program_is_given_as_words_or_as_a_text(place: Home) -> None:
    place.toml.write_text(
        "[[ha.on_promote]]\nstart = \"/etc/init.d/httpd start 'two words'\"\nstop = ['/etc/init.d/httpd', 'stop']\n"
        "[[ha.on_promote]]\nrun = 'python3 -m http.server'\nname = 'pages'\n"
    )
    one, two = place.config().ha.on_promote
    assert one.words("start") == ("/etc/init.d/httpd", "start", "two words")
    assert one.words("stop") == ("/etc/init.d/httpd", "stop") and one.words("run") == ()
    assert (one.title, two.title, two.timeout_s) == ("httpd", "pages", 60.0)


def test_a_file_that_is_no_text_is_named(place: Home) -> None:
    place.toml.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"beo\.toml"):
        place.config()


def test_where_there_is_no_cluster_the_cure_is_named(place: Home) -> None:
    with pytest.raises(NoHead, match="beo up"):
        place.cluster()


def test_a_damaged_cluster_file_is_named(place: Home) -> None:
    place.cluster_file.write_text("{")
    with pytest.raises(BeoError, match=r"cluster\.json is damaged"):
        place.cluster()


def test_the_cluster_file_comes_back_as_it_was_written(place: Home) -> None:
    written = ClusterFile("c" * 32, ("127.0.0.1:7420",), "k" * 40, ("127.0.0.1:7421",))
    place.write_cluster(written)
    assert place.cluster() == written


def test_who_a_head_is_comes_back_as_it_was_written(place: Home) -> None:
    with pytest.raises(NoHead, match="beo head join"):
        place.who()
    other = Place("10.0.0.2:7420", "10.0.0.2:7421", ("10.0.0.2:7422",))
    who = Who("10.0.0.1:7420", "10.0.0.1:7421", ("10.0.0.1:7422", "192.168.7.1:7422"), "A", {"B": other})
    place.head.mkdir()
    place.write_who(who)
    assert place.who() == who
    assert list(place.who().heads.items()) == [("A", who.place), ("B", other)]


@pytest.mark.parametrize(
    "text", ["", "{", '{"name": "A", "control": "10.0.0.1:x", "bulk": "10.0.0.1:2", "links": []}', "[" * 10_000]
)
def test_a_damaged_file_of_who_a_head_is_is_named(place: Home, text: str) -> None:
    place.head.mkdir()
    place.who_file.write_text(text)
    with pytest.raises(BeoError, match=r"head/who\.json is damaged"):
        place.who()


def test_a_key_is_readable_by_its_owner_alone(place: Home) -> None:
    place.write_secret("admin", SECRET)
    path = place.keys / "admin.secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert place.secret("admin") == SECRET
    path.chmod(0o640)
    with pytest.raises(Refused, match="chmod 600"):
        place.secret("admin")


@pytest.mark.parametrize("content", ["", "short", "x" * 41, "x" * 4000])
def test_what_is_no_key_is_refused(place: Home, content: str) -> None:
    place.write_secret("admin", content)
    with pytest.raises(Refused, match="holds no key"):
        place.secret("admin")


def test_a_missing_key_is_refused_with_its_cure(place: Home) -> None:
    with pytest.raises(Refused, match="beo up"):
        place.secret("admin")


def test_a_write_replaces_a_file_whole_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old", 0o600)
    write_durably(path, b"new", 0o644)
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEO_DIR", str(tmp_path / "here"))
    assert home().path == tmp_path / "here"
    monkeypatch.setenv("BEO_DIR", "")
    monkeypatch.setenv("HOME", "/somewhere")
    assert home().path == Path("/somewhere/.beo")


def test_a_disk_that_takes_only_a_part_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cluster.json"
    write_durably(path, b"whole", 0o600)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"another", 0o600)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("cluster.json", b"whole")]


def test_the_limits_that_the_page_on_users_shows_are_read(place: Home) -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "users.md"
    (toml,) = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    place.path.mkdir(exist_ok=True)
    place.toml.write_text(toml)
    users = place.config().users
    assert (users.of("bob").slots_max, users.of("bob").running_max) == (32, 10)
    assert (users.of("ann").slots_max, users.of("ann").running_max, users.where("ann")) == (64, 10, "users.ann")
    place.toml.write_text("[users.ann]\nslots = 1\n")
    with pytest.raises(UsageError, match=r"users\.ann"):
        place.config()
