"""The programs of on_promote: in order up, in reverse down, the last wish counts, and none is forgotten or lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from beo.config import Home
from beo.ha import programs as module
from beo.ha.programs import Fare, Programs, Record
from beo.ha.resources import Resources, missing_programs, output_path, record_path
from beo.settings import HaConfig, Program
from tests.cluster import ROOT, is_alive, wait_for

Make = Callable[..., Programs]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("run", "log"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def make(place: Path) -> Iterator[Make]:
    """Programs over one folder; what a test leaves running is ended with it."""
    made: list[Programs] = []

    def make(*programs: Program) -> Programs:
        made.append(Programs(record_path(Home(place)), output_path(Home(place)), programs, {"BEO_HEAD": "A"}))
        return made[-1]

    yield make
    for one in made:
        if one._thread.is_alive():
            assert one.close(30)


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def service(place: Path, name: str, start: str = "", stop: str = "", timeout_s: float = 20.0) -> Program:
    """A program that says what was asked of it, in `said`, and then does more."""
    said = f"echo $1 >> {place}/said;"
    return Program(
        name=name,
        start=sh(said.replace("$1", f"+{name}") + start),
        stop=sh(said.replace("$1", f"-{name}") + stop),
        timeout_s=timeout_s,
    )


def said(place: Path) -> list[str]:
    path = place / "said"
    return path.read_text().split() if path.exists() else []


def states(programs: Programs) -> list[str]:
    return [fare.state for fare in programs.fares()]


def await_states(programs: Programs, *wanted: str) -> None:
    wait_for(lambda: states(programs) == list(wanted), f"{wanted}")


def pids_in(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def test_they_are_started_in_order_and_stopped_in_reverse(make: Make, place: Path) -> None:
    programs = make(*(service(place, name) for name in ("one", "two", "three")))
    programs.promote(7)
    await_states(programs, "up", "up", "up")
    assert said(place) == ["+one", "+two", "+three"]
    programs.demote()
    await_states(programs, "down", "down", "down")
    assert said(place) == ["+one", "+two", "+three", "-three", "-two", "-one"]
    assert not record_path(Home(place)).exists() and not programs.troubles


def test_a_failing_start_is_told_and_the_next_is_started_and_all_are_stopped(make: Make, place: Path) -> None:
    programs = make(service(place, "bad", "echo because; exit 3"), service(place, "good"))
    programs.promote(7)
    await_states(programs, "failed", "up")
    assert programs.fares()[0].trouble == "didn't start: it exited with 3"
    assert "on_promote bad didn't start: it exited with 3: see " in programs.troubles[0]
    assert "because" in output_path(Home(place)).read_text()
    programs.demote()
    await_states(programs, "down", "down")
    assert said(place) == ["+bad", "+good", "-good", "-bad"], "half a start is a start"


def test_a_start_that_takes_too_long_is_ended_with_its_children(make: Make, place: Path) -> None:
    start = f"sleep 1000 & echo $! > {place}/child; trap '' TERM; while :; do sleep 0.05; done"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PROGRAM_KILL_S", 0.2)
        programs = make(service(place, "slow", start, timeout_s=0.3))
        programs.promote(7)
        await_states(programs, "failed")
        assert programs.fares()[0].trouble == "didn't start: it took longer than 0.3 s"
        wait_for(lambda: not any(map(is_alive, pids_in(place / "child"))), "the end of its child")


def test_a_stop_that_fails_keeps_nothing_up(make: Make, place: Path) -> None:
    programs = make(service(place, "one"), service(place, "two", stop="exit 1"))
    programs.promote(7)
    await_states(programs, "up", "up")
    programs.demote()
    await_states(programs, "down", "down")
    assert said(place)[-2:] == ["-two", "-one"]
    assert programs.fares()[1] == Fare("two", "down", "didn't stop: it exited with 1")


def test_whatever_is_wished_in_quick_succession_the_last_wish_counts(make: Make, place: Path) -> None:
    programs = make(service(place, "one", "sleep 0.05"), service(place, "two", "sleep 0.05"))
    for epoch in range(1, 20, 2):
        programs.promote(epoch)
        programs.demote()
        programs.promote(epoch + 1)
    await_states(programs, "up", "up")
    assert_paired(said(place), up=["one", "two"])
    for epoch in range(21, 40):
        programs.promote(epoch)
        programs.demote()
    await_states(programs, "down", "down")
    assert_paired(said(place), up=[])


def assert_paired(words: list[str], up: list[str]) -> None:
    """Starts and stops are those of a stack: nothing is started twice, or stopped while a later one is up."""
    stack: list[str] = []
    for word in words:
        if word[0] == "+":
            assert word[1:] not in stack, words
            stack.append(word[1:])
        else:
            assert stack and stack.pop() == word[1:], words
    assert stack == up, words


def test_a_start_under_way_is_cut_short_when_the_role_goes(make: Make, place: Path) -> None:
    programs = make(service(place, "long", "exec sleep 1000", timeout_s=500), service(place, "next"))
    programs.promote(7)
    wait_for(lambda: said(place) == ["+long"], "its start")
    programs.demote()
    await_states(programs, "down", "down")
    assert said(place) == ["+long", "-long"]


def test_the_environment_says_which_head_and_which_epoch(make: Make, place: Path) -> None:
    words = sh(f"echo $BEO_HEAD $BEO_EPOCH $PWD > {place}/env; cat > {place}/stdin")
    programs = make(Program(name="env", start=words))
    programs.promote(42)
    await_states(programs, "up")
    assert (place / "env").read_text() == "A 42 /\n" and (place / "stdin").read_text() == ""


def daemon(place: Path, name: str = "pages", script: str = "exec sleep 1000", timeout_s: float = 20.0) -> Program:
    return Program(name=name, run=sh(f"echo $$ >> {place}/{name}.pids; {script}"), timeout_s=timeout_s)


def test_a_daemon_is_kept_running_and_ended_on_the_way_down(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY_FIRST_S", 0.01)
    programs = make(daemon(place))
    programs.promote(7)
    (first,) = wait_for(lambda: pids_in(place / "pages.pids"), "its start")
    os.kill(first, signal.SIGKILL)
    _, second = wait_for(lambda: len(found := pids_in(place / "pages.pids")) > 1 and found, "its next start") or []
    assert programs.fares() == [Fare("pages", "failed", "was ended by SIGKILL")]
    programs.demote()
    await_states(programs, "down")
    assert not is_alive(second) and len(pids_in(place / "pages.pids")) == 2


def test_one_that_ends_again_and_again_is_started_ever_more_rarely(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY_FIRST_S", 0.01)
    programs = make(daemon(place, script="exit 5"))
    programs.promote(7)
    wait_for(lambda: programs.fares()[0].trouble == "exited with 5, 6 times in a row", "six ends")
    (course,) = programs._courses
    assert course.due_s - course.since_s > 0.01 * 2**5
    monkeypatch.setattr(module, "DELAY_MAX_S", 0.02)
    for _ in range(3000):
        course.fail(0.0)
    assert course.due_s == 0.02


def test_one_that_is_healthy_again_has_no_trouble_any_more(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY_FIRST_S", 0.01)
    monkeypatch.setattr(module, "HEALTHY_S", 0.2)
    programs = make(daemon(place, script=f"[ -e {place}/again ] && exec sleep 1000; touch {place}/again; exit 1"))
    programs.promote(7)
    wait_for(lambda: bool(programs.troubles), "its first end")
    wait_for(lambda: not programs.troubles, "its health")
    assert states(programs) == ["up"]


def test_a_daemon_deaf_to_sigterm_is_killed_with_all_that_it_started(make: Make, place: Path) -> None:
    script = f"trap '' TERM; sleep 1000 & echo $! >> {place}/child; while :; do sleep 0.05; done"
    programs = make(daemon(place, script=script, timeout_s=0.2))
    programs.promote(7)
    wait_for(lambda: pids_in(place / "child"), "its child")
    programs.demote()
    await_states(programs, "down")
    assert not any(map(is_alive, pids_in(place / "pages.pids")))
    wait_for(lambda: not any(map(is_alive, pids_in(place / "child"))), "its child's end")  # which nobody waits for


@pytest.mark.parametrize("program", [Program(start="nosuchprogram start"), Program(run="/etc/nosuch")])
def test_what_is_no_program_is_told(make: Make, place: Path, program: Program) -> None:
    programs = make(program, service(place, "next"))
    programs.promote(7)
    wait_for(lambda: said(place) == ["+next"], "the next one")
    assert "there is no program" in programs.fares()[0].trouble
    programs.demote()
    await_states(programs, "down", "down")


# A head is killed: the same folder, in another process.

HEAD = """
    import sys, msgspec, signal
    from pathlib import Path
    from beo.ha.programs import Programs
    from beo.settings import Program
    place = Path(sys.argv[1])
    wanted = msgspec.json.decode(sys.argv[2], type=tuple[Program, ...])
    programs = Programs(place / "run" / "promoted.json", place / "log" / "on_promote.log", wanted, {})
    programs.promote(5)
    print("promoted", flush=True)
    signal.pause()
"""


def killed_head(place: Path, *wanted: Program, when: Callable[[], object]) -> None:
    """Let a process promote them, and kill it with SIGKILL as soon as `when`."""
    words = [sys.executable, "-c", textwrap.dedent(HEAD), str(place), msgspec.json.encode(wanted).decode()]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as head:
        wait_for(when, "the moment to kill it")
        head.kill()


def test_a_head_killed_as_the_primary_runs_the_stops_when_it_comes_back_as_the_standby(make: Make, place: Path) -> None:
    wanted = service(place, "one"), daemon(place), service(place, "two")
    killed_head(place, *wanted, when=lambda: "+two" in said(place))
    (pid,) = pids_in(place / "pages.pids")
    assert is_alive(pid), "a killed head's programs go on until the next one knows its role"
    programs = make(*wanted)
    assert programs.left == ["one", "pages", "two"]
    programs.demote()
    await_states(programs, "down", "down", "down")
    assert said(place) == ["+one", "+two", "-two", "-one"] and not is_alive(pid)
    assert not record_path(Home(place)).exists()


def test_one_that_comes_back_as_the_primary_takes_them_up_and_starts_nothing_again(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY_FIRST_S", 0.01)
    wanted = service(place, "one"), daemon(place)
    killed_head(place, *wanted, when=lambda: pids_in(place / "pages.pids"))
    programs = make(*wanted)
    programs.promote(7)
    await_states(programs, "up", "up")
    (pid,) = pids_in(place / "pages.pids")
    wait_for(lambda: programs._courses[1].process, "the daemon that was found")
    assert said(place) == ["+one"] and is_alive(pid)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(pids_in(place / "pages.pids")) == 2, "one found is kept running, too")
    programs.demote()
    await_states(programs, "down", "down")
    assert said(place) == ["+one", "-one"] and not any(map(is_alive, pids_in(place / "pages.pids")))


def test_a_start_that_failed_is_told_by_the_next_head_too(make: Make, place: Path) -> None:
    wanted = service(place, "bad", "exit 3"), service(place, "good")
    killed_head(place, *wanted, when=lambda: text(place).count('"up"') == 2)
    programs = make(*wanted)
    programs.promote(7)
    assert programs.fares()[0] == Fare("bad", "failed", "didn't start: it exited with 3")
    programs.demote()
    await_states(programs, "down", "down")
    programs.promote(9)
    await_states(programs, "failed", "up")
    assert said(place) == ["+bad", "+good", "-good", "-bad", "+bad", "+good"]


def test_a_start_that_was_cut_by_the_heads_death_is_undone_and_done_again(make: Make, place: Path) -> None:
    hang = f"[ -e {place}/again ] && exit; touch {place}/again; echo $$ > {place}/hangs; exec sleep 1000"
    wanted = service(place, "one"), service(place, "two", hang)
    killed_head(place, *wanted, when=lambda: pids_in(place / "hangs"))
    programs = make(*wanted)
    programs.promote(7)
    await_states(programs, "up", "up")
    assert said(place) == ["+one", "+two", "-two", "+two"] and not any(map(is_alive, pids_in(place / "hangs")))


def test_after_other_settings_what_was_started_is_stopped_as_it_was_started(make: Make, place: Path) -> None:
    killed_head(place, service(place, "old"), when=lambda: '"up"' in text(place))
    programs = make(service(place, "new"))
    programs.promote(7)
    await_states(programs, "up")
    assert said(place) == ["+old", "-old", "+new"]


def test_after_a_reboot_nothing_of_it_runs_and_nothing_is_stopped(make: Make, place: Path) -> None:
    killed_head(place, service(place, "one"), when=lambda: '"up"' in text(place))
    path = record_path(Home(place))
    record = msgspec.json.decode(path.read_bytes(), type=Record)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, boot="another")))
    programs = make(service(place, "one"))
    assert programs.left == []
    programs.promote(7)
    await_states(programs, "up")
    assert said(place) == ["+one", "+one"]


def text(place: Path) -> str:
    path = record_path(Home(place))
    return path.read_text() if path.exists() else ""


def test_a_pid_that_is_another_process_by_now_is_left_alone(make: Make, place: Path) -> None:
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        wanted = daemon(place)
        record = Record(
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            5,
            (module.Begun(wanted, "up", stranger.pid, "1"),),
        )
        record_path(Home(place)).write_bytes(msgspec.json.encode(record))
        programs = make(wanted)
        programs.demote()
        await_states(programs, "down")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"boot": 5}', b"[]" * 2_000_000])
def test_a_damaged_record_is_told_and_nothing_else_suffers(make: Make, place: Path, damage: bytes) -> None:
    record_path(Home(place)).write_bytes(damage)
    programs = make(service(place, "one"))
    assert "is damaged" in programs.troubles[0] and "by hand" in programs.troubles[0]
    programs.promote(7)
    await_states(programs, "up")


def test_a_program_whose_record_can_not_be_written_is_not_started(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_durably", full)
    programs = make(daemon(place))
    programs.promote(7)
    wait_for(lambda: any("no space left" in trouble for trouble in programs.troubles), "the trouble")
    assert not pids_in(place / "pages.pids"), "a killed head could never end it"
    monkeypatch.undo()


def test_an_orderly_end_of_the_head_takes_them_down(place: Path) -> None:
    config = HaConfig(on_promote=(service(place, "one"), daemon(place)))
    resources = Resources(Home(place), "A", config, "127.0.0.1:7420")
    resources.follow(primary=True, may_act=True, epoch=3)
    wait_for(lambda: [fare.state for fare in resources.standings().programs] == ["up", "up"], "both")
    resources.close()
    assert said(place) == ["+one", "-one"] and not any(map(is_alive, pids_in(place / "pages.pids")))
    assert config.down_max_s >= 40


def test_a_head_without_any_of_it_has_no_threads_for_it(place: Path) -> None:
    resources = Resources(Home(place), "A", HaConfig(), "127.0.0.1:7420")
    resources.follow(primary=True, may_act=True, epoch=3)
    assert resources.standings() == type(resources.standings())("", False, (), ())
    resources.close()
    assert not record_path(Home(place)).exists()


def test_programs_that_a_machine_lacks_are_named(place: Path) -> None:
    wanted = (Program(start="nosuch start", stop="/bin/sh -c true"), Program(run="/nosuch/run"))
    assert missing_programs(HaConfig(on_promote=wanted)) == ("nosuch", "/nosuch/run")


@pytest.mark.parametrize(
    ("harm", "why"),
    [(lambda path: path.chmod(0o620), "others may write to"), (lambda path: path.chmod(0o602), "others may write to")],
)
def test_settings_that_others_may_write_run_no_program(place: Path, harm: Callable[[Path], None], why: str) -> None:
    toml = place / "beo.toml"
    toml.write_text("")
    harm(toml)
    resources = Resources(Home(place), "A", HaConfig(on_promote=(service(place, "one"),)), "127.0.0.1:7420")
    resources.follow(primary=True, may_act=True, epoch=3)
    (trouble,) = resources.standings().troubles
    assert why in trouble and "chmod 600" in trouble and resources.standings().programs == ()
    resources.close()
    assert said(place) == []


@pytest.mark.root
def test_settings_of_another_user_run_no_program(place: Path) -> None:
    toml = place / "beo.toml"
    toml.write_text("")
    os.chown(toml, 65_534, 65_534)
    resources = Resources(Home(place), "A", HaConfig(on_promote=(service(place, "one"),)), "127.0.0.1:7420")
    assert "beo.toml is another user's" in resources.standings().troubles[0]
    resources.close()
