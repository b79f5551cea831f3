"""Heartbeat's files become a beo.toml: those of a printed cluster word for word, older and newer forms, and garbage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beo.config import Home
from beo.errors import UsageError
from beo.ha import heartbeat, importing, sources
from beo.ha.heartbeat import Source
from beo.ha.importing import Imported, Note
from beo.settings import HaConfig
from tests.cluster import ROOT

DATA = ROOT / "tests" / "data" / "heartbeat"
NODES = "node one\nnode two\n"


def missing(_: str) -> tuple[str, ...]:
    return ()


def present(name: str) -> tuple[str, ...]:
    return (f"/etc/init.d/{name}",)


def of(find: importing.Finder = present, **texts: str) -> Imported:
    """What becomes of one node's files, by their kind; `ha_cf` is ha.cf."""
    kinds = {name: name.replace("_", ".") for name in texts}
    return importing.convert([[Source(kinds[name], kinds[name], text) for name, text in texts.items()]], find)


def told(imported: Imported, kind: str) -> list[str]:
    return [str(note) for note in imported.notes if note.kind == kind]


def beo(*words: str, cwd: Path = DATA) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "beo.front", "ha", "import", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


# ---- the printed cluster --------------------------------------------------------------------------------------------


def printed(*servers: str) -> Imported:
    nodes = sources.gather([str(DATA / server) for server in servers])
    here = f"{DATA}/"
    short = [[source._replace(path=source.path.removeprefix(here)) for source in node] for node in nodes]
    return importing.convert(short, present)


def test_the_printed_files_word_for_word_give_a_beo_toml_that_beo_reads(tmp_path: Path) -> None:
    done = beo("server1", "-o", str(tmp_path / "beo.toml"))
    assert (done.returncode, done.stdout) == (0, "")
    config = Home(tmp_path).config().ha
    assert (config.level, config.failback, config.lease_s, config.silence_s) == ("A", False, 3.0, 2.0)
    assert (config.address, config.interface) == ("10.1.1.1", "eth0")
    (httpd,) = config.on_promote
    assert (httpd.title, httpd.words("start")[-1], httpd.words("stop")[-1]) == ("httpd", "start", "stop")
    assert not config.links and config.takeover == "automatic"


def test_their_three_faults_are_told_each_with_its_file_and_line() -> None:
    assert told(printed("server1"), "warning") == [
        "warning server1/ha.cf:18: /var/log/ha-debug: a path without its keyword, debugfile is likely: "
        "the log of the head is log/head.log in its folder",
        "warning server1/haresources:5: # server2 10.1.1.2 httpd datadisk: server2 has other resources, "
        "but the file must be the same on both nodes: line 2 counts",
        "warning server1/authkeys:5: 3 md5 …: a key of 5 digits is guessed in no time: "
        "change it wherever else it is used",
    ]


def test_the_second_nodes_files_are_compared_with_the_firsts() -> None:
    alone, both = printed("server1"), printed("server1", "server2")
    assert both.config == alone.config
    assert [note for note in both.notes if note not in alone.notes] == [
        Note(
            "warning",
            "server2/haresources:2",
            "server2 10.1.1.2 httpd datadisk",
            "server1/haresources says otherwise, but the file must be the same on both nodes: line 2 counts",
        ),
        Note(
            "warning",
            "server1/haresources:2",
            "server1 10.1.1.1 httpd datadisk",
            "server2/haresources has no such line: this one counts",
        ),
    ]


def test_every_line_of_the_printed_files_is_accounted_for() -> None:
    imported = printed("server1")
    noted = {note.where for note in imported.notes}
    for path in sorted((DATA / "server1").iterdir()):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                assert f"server1/{path.name}:{number}" in noted, line


def test_no_key_is_ever_shown(tmp_path: Path) -> None:
    (tmp_path / "authkeys").write_text("auth 1\n1 sha1 Geheimnis\n2 Geheimnis\nGeheimnis\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "authkeys").write_text("auth 1\n1 sha1 Geheimniss\n")
    for words in ([".", "other"], ["--json", "."]):
        done = beo(*words, cwd=tmp_path)
        assert done.returncode == 0
        assert "Geheimnis" not in done.stdout + done.stderr
    assert "12345" not in (done := beo("server1")).stdout + done.stderr


# ---- ha.cf ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("deadtime 3", {"lease_s": 3.0, "silence_s": 2.0}),
        ("deadtime 900ms", {"lease_s": 0.9, "silence_s": 0.6}),
        ("deadtime 0.3", {"lease_s": 0.3, "silence_s": 0.2}),
        ("auto_failback on", {"failback": True}),
        ("auto_failback off", {"failback": False}),
        ("auto_failback legacy", {"failback": True}),
        ("nice_failback on", {"failback": False}),
        ("nice_failback off", {"failback": True}),
        ("AUTO_FAILBACK on # a remark", {"failback": True}),
    ],
)
def test_a_directive_becomes_a_setting(text: str, wanted: dict[str, object]) -> None:
    imported = of(ha_cf=text)
    assert {key: getattr(imported.config, key) for key in wanted} == wanted
    assert not imported.warnings and set(imported.origins) == set(wanted)


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("deadtime 0.01", "beo's limits are 0.1 and 60 s"),
        ("deadtime 3600", "beo's limits are 0.1 and 60 s"),
        ("deadtime soon", "'soon' is no time: beo's own setting stays"),
        ("deadtime", "deadtime says nothing"),
        ("auto_failback perhaps", "'perhaps' is neither on nor off"),
        ("kepalive 2", "not understood: did you mean keepalive"),
        ("flux_capacitor 88", "not understood: Heartbeat has no such word"),
        ("/var/log/ha-log", "a path without its keyword, logfile is likely"),
        ("bcast eth0 eth1", "a second network: name this machine's address on eth1 in [ha] links"),
        ("node one two three", "3 nodes: beo has two heads, so three can be workers"),
        ("deadtime 3\ndeadtime 5", "lease_s was 3.0 by ha.cf:1: this one counts"),
    ],
)
def test_what_can_not_be_taken_as_it_stands_is_warned_of(text: str, warned: str) -> None:
    assert any(warned in warning for warning in told(of(ha_cf=text), "warning")), of(ha_cf=text).notes


@pytest.mark.parametrize("word", importing.LEFT)
def test_a_directive_without_meaning_in_beo_is_named_with_the_reason(word: str) -> None:
    imported = of(ha_cf=f"{word} something 5")
    assert told(imported, "left") == [f"left    ha.cf:1: {word} something 5: {importing.LEFT[word]}"]
    assert imported.config == HaConfig() and not imported.warnings


# ---- haresources ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "address", "interface"),
    [
        ("10.0.0.50", "10.0.0.50", ""),
        ("10.0.0.50/24", "10.0.0.50/24", ""),
        ("10.0.0.50/24/eth1", "10.0.0.50/24", "eth1"),
        ("10.0.0.50/24/eth1/10.0.0.255", "10.0.0.50/24", "eth1"),
        ("10.0.0.50/24/10.0.0.255", "10.0.0.50/24", ""),
        ("IPaddr::10.0.0.50", "10.0.0.50", ""),
        ("IPaddr::10.0.0.50/255.255.255.0/eth0:0", "10.0.0.50/24", "eth0"),
        ("IPaddr2::10.0.0.50/16/bond0", "10.0.0.50/16", "bond0"),
    ],
)
def test_an_address_comes_in_all_of_heartbeats_forms(resource: str, address: str, interface: str) -> None:
    config = of(haresources=f"one {resource}\n").config
    assert (config.address, config.interface) == (address, interface)


def test_the_interface_of_ha_cf_is_the_addresss_unless_it_has_its_own() -> None:
    assert of(ha_cf=NODES + "bcast eth3", haresources="one 10.0.0.50").config.interface == "eth3"
    assert of(ha_cf=NODES + "ucast eth3 10.0.0.2", haresources="one 10.0.0.50/24/eth4").config.interface == "eth4"


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("one 10.0.0.500", "no service address"),
        ("one 127.0.0.1", "no service address"),
        ("one 10.0.0.50/99", "no service address"),
        ("one IPaddr", "no service address"),
        ("one 10.0.0.50 10.0.0.51", "10.0.0.51 is not carried over: beo has one service address"),
        ("one IPv6addr::fd00::1", "IPv6addr is not carried over"),
        ("three 10.0.0.50", "three is no node of ha.cf"),
        ("one", "no resources"),
        ("one 10.0.0.50\ntwo httpd", "resources of several nodes: in beo all of them are where the primary is"),
    ],
)
def test_resources_that_can_not_be_carried_over_are_warned_of(text: str, warned: str) -> None:
    assert any(warned in warning for warning in told(of(ha_cf=NODES, haresources=text), "warning"))


@pytest.mark.parametrize("name", ["datadisk", "drbddisk::r0", "Filesystem::/dev/drbd0::/html::ext3", "LVM::vg0"])
def test_a_disk_that_moves_is_told_to_be_no_longer_needed(name: str) -> None:
    imported = of(haresources=f"one {name}")
    assert importing.DISK_LEFT in told(imported, "left")[0] and not imported.config.on_promote


def test_scripts_are_started_in_their_order_with_their_arguments() -> None:
    text = "one 10.0.0.50 \\\n  apache::/etc/httpd.conf::x \\\n  MailTo::root\ntwo apache\n"
    programs = of(ha_cf=NODES, haresources=text).config.on_promote
    assert [program.title for program in programs] == ["apache", "MailTo", "apache#2"]
    assert programs[0].words("start") == ("/etc/init.d/apache", "/etc/httpd.conf", "x", "start")
    assert programs[1].words("stop") == ("/etc/init.d/MailTo", "root", "stop")


def test_a_line_that_goes_on_has_the_number_of_its_beginning() -> None:
    imported = of(haresources="# first\none 10.0.0.50 \\\n  apache\n\ntwo \\\n")
    assert {note.where for note in imported.notes} == {"haresources:2", "haresources:5"}


def test_a_script_is_looked_for_where_heartbeat_does_and_else_its_unit_is_used(tmp_path: Path) -> None:
    folder, units = tmp_path / "resource.d", tmp_path / "system"
    for one in (folder, units):
        one.mkdir()
    script, plain = folder / "httpd", folder / "plain"
    for one in (script, plain):
        one.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (units / "nginx.service").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SCRIPT_FOLDERS", (str(folder),))
        patch.setattr(sources, "UNIT_FOLDERS", (str(units),))
        assert sources.find_script("httpd") == (str(script),)
        assert sources.find_script("plain") == (), "not executable"
        assert sources.find_script("nginx") == ("systemctl", "nginx")
        assert sources.find_script(str(script)) == (str(script),)
        assert sources.find_script("../resource.d/httpd") == ()
        (program,) = of(sources.find_script, haresources="one nginx").config.on_promote
    assert program.words("start") == ("systemctl", "start", "nginx")


def test_a_script_that_is_nowhere_is_warned_of() -> None:
    imported = of(missing, haresources="one httpd")
    assert "there is no script httpd on this machine" in told(imported, "warning")[0]
    assert imported.config.on_promote[0].words("start") == ("/etc/init.d/httpd", "start")


# ---- authkeys, drbd -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("auth 1\n1 crc\n", "crc is no key at all"),
        ("auth 1\n1 md5 short\n", "a key of 5 characters"),
        ("auth 1\n1 md5 12345678901234567890\n", "a key of 20 digits"),
        ("auth 2\n1 sha1 aGoodKeyThatIsLongEnough\n", "there is no key 2"),
        ("auth 1\n1 sha1 aGoodKeyThatIsLongEnough\nnonsense\n", "not understood"),
    ],
)
def test_a_key_that_protects_nobody_is_warned_of(text: str, warned: str) -> None:
    (warning,) = told(of(authkeys=text), "warning")
    assert warned in warning


def test_a_good_key_is_left_without_a_warning() -> None:
    imported = of(authkeys="auth 1\n1 sha1 aGoodKeyThatIsLongEnough\n")
    assert len(told(imported, "left")) == 2 and not imported.warnings


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ('PROTOCOL="A"', "A"),
        ("PROTOCOL=b", "B"),
        ("export PROTOCOL='C' # the safe one", "C"),
        ("resource r0 {\n  protocol B;\n  on one {\n    device /dev/drbd0;\n  }\n}", "B"),
    ],
)
def test_drbds_protocol_is_the_level(text: str, level: str) -> None:
    imported = of(drbd=text)
    assert imported.config.level == level and not imported.warnings


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ('PROTOCOL="D"', "D is no protocol"),
        ('PROTOCOL=" "', "nothing is no protocol"),
        ('PROTOKOL="A"', "did you mean PROTOCOL?"),
        ('MASTER_NODE="three:7788"', "three is no node of ha.cf"),
    ],
)
def test_what_drbd_could_not_mean_is_warned_of(text: str, warned: str) -> None:
    assert any(warned in warning for warning in told(of(ha_cf=NODES, drbd=text), "warning"))


# ---- garbage --------------------------------------------------------------------------------------------------------


def no_text(place: Path) -> None:
    (place / "ha.cf").write_bytes(b"\x7fELF\x00\x01")


def huge(place: Path) -> None:
    (place / "ha.cf").write_bytes(b"#" * (sources.SIZE_MAX_BYTES + 1))


def long(place: Path) -> None:
    (place / "ha.cf").write_bytes(b"\n" * (sources.LINES_MAX + 1))


def pipe(place: Path) -> None:
    os.mkfifo(place / "ha.cf")


def dangling(place: Path) -> None:
    (place / "ha.cf").symlink_to("nowhere")


def empty(place: Path) -> None:
    (place / "passwd").write_text("")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (no_text, r"ha\.cf is no text \(it has control characters\)"),
        (huge, r"more than 1048576 bytes or 10000 lines"),
        (long, r"more than 1048576 bytes or 10000 lines"),
        (pipe, r"it is not a file"),
        (dangling, r"no such file"),
        (empty, r"no file of Heartbeat's in .*: they are called ha\.cf, haresources, authkeys, drbd0"),
    ],
)
def test_what_is_no_file_of_heartbeats_is_refused(tmp_path: Path, make: object, why: str) -> None:
    assert callable(make)
    make(tmp_path)
    with pytest.raises(UsageError, match=why):
        sources.gather([str(tmp_path)])


def test_names_that_heartbeat_does_not_know_are_refused(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0\n")
    for path, why in (
        (str(tmp_path / "passwd"), "passwd is no file of Heartbeat's: they are called"),
        (str(tmp_path / "nosuch" / "ha.cf"), "no such file"),
        (str(tmp_path / "nosuch"), "is no file of Heartbeat's"),
    ):
        with pytest.raises(UsageError, match=why):
            sources.gather([path])
    with pytest.raises(UsageError, match="the limit is 16"):
        sources.gather(["x"] * 17)


def test_files_of_one_folder_are_one_nodes_and_old_ones_need_not_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "ha.cf").write_bytes("#sa\xedda\nnode one\n".encode("latin-1"))
    (tmp_path / "haresources").write_text("one 10.0.0.50\r\n")
    (node,) = sources.gather([str(tmp_path / "ha.cf"), str(tmp_path / "haresources")])
    assert importing.convert([node], present).config.address == "10.0.0.50"


def test_an_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "beo.toml").write_text("[head]\n")
    done = beo("server1", "-q", "-o", str(tmp_path / "beo.toml"))
    assert done.returncode == 75 and "beo.toml is there already: move it aside" in done.stderr
    assert (tmp_path / "beo.toml").read_text() == "[head]\n"
    done = beo("server1", "-o", str(tmp_path / "nosuch" / "beo.toml"))
    assert done.returncode == 2 and "can't write" in done.stderr


def test_a_program_reads_it_as_json() -> None:
    answer = json.loads(beo("server1", "--json").stdout)
    assert tomllib.loads(answer["toml"])["ha"]["level"] == "A"
    assert {"kind", "where", "shown", "told"} == set(answer["notes"][0])


WORDS = st.sampled_from(
    [
        *importing.TAKEN,
        *importing.LEFT,
        "one",
        "two",
        "10.0.0.50/24/eth0",
        "IPaddr::",
        "::",
        "on",
        "3",
        "PROTOCOL=",
        '"',
    ]
)
LINES = st.lists(
    st.one_of(WORDS, st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)), max_size=6
)


@settings(max_examples=30)
@given(st.lists(LINES, max_size=8), st.sampled_from(heartbeat.KINDS))
def test_whatever_the_files_say_the_toml_is_good_and_each_line_is_named(rows: list[list[str]], kind: str) -> None:
    source = Source(kind, kind, "\n".join(" ".join(row) for row in rows))
    imported = importing.convert([[source]], missing)
    read = tomllib.loads(importing.toml(imported, ["x"]))["ha"]
    assert {key: read[key] for key in imported.origins} == {
        key: getattr(imported.config, key) for key in imported.origins
    }
    noted = {note.where for note in imported.notes}
    assert {line.where for line in heartbeat.lines(source)} <= noted
