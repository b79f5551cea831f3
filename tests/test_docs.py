"""What README and docs show is true: sessions are run, settings are the defaults, links lead somewhere."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from beo.settings import Config
from tests.cluster import running

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "jobs" / "README.md"]
STEP_S_MAX = 60
LONG = ("checkpoint.md", "files.md", "operating.md")  # their sessions take more than a few seconds


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def _steps(session: str) -> list[tuple[str, str]]:
    """Divide a console block into (command, expected output)."""
    steps: list[tuple[str, str]] = []
    for line in session.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], ""))
        else:
            command, expected = steps[-1]
            steps[-1] = command, expected + line + "\n"
    return steps


def _matches(expected: str, printed: str) -> bool:
    """Whether what was printed is what the page shows; '...' stands for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.split("..."))
    return bool(re.fullmatch(pattern, printed, re.DOTALL))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in LONG else [])
        for page in PAGES
        if _blocks(page, "console")
    ],
)
def test_a_pages_console_session_prints_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    env = {
        **os.environ,
        "BEO_DIR": str(tmp_path / "beo"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    own = f"{tmp_path}/beo-"  # so that two runs don't meet
    try:
        for step in [step for block in _blocks(page, "console") for step in _steps(block)]:
            command, expected = (text.replace("/tmp/beo-", own) for text in step)
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=STEP_S_MAX,
                check=False,
            )
            printed = done.stdout + done.stderr
            assert _matches(expected, printed), f"$ {command}\nthe page shows:\n{expected}\nbut it prints:\n{printed}"
    finally:
        subprocess.run(["beo", "down"], env=env, capture_output=True, timeout=STEP_S_MAX, check=False)


def test_the_settings_page_shows_every_setting_with_its_default() -> None:
    shown = tomllib.loads(_blocks(ROOT / "docs" / "settings.md", "toml")[0])
    assert shown == msgspec.json.decode(msgspec.json.encode(Config()))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_test_that_a_page_names_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"`(tests/[\w/.]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_python_and_the_script_that_the_readme_shows_work(tmp_path: Path) -> None:
    readme, place = ROOT / "README.md", tmp_path / "place"
    place.mkdir()
    (place / "jobs").symlink_to(ROOT / "jobs")
    (script,) = [block for block in _blocks(readme, "sh") if block.startswith("#!")]
    (place / "job.sh").write_text(script)
    (program,) = _blocks(readme, "python")
    with running(tmp_path / "beo") as cluster:
        env = {**cluster.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for words in (
            [sys.executable, "-c", program],
            [sys.executable, "-m", "beo.front", "submit", "--wait", "job.sh"],
        ):
            done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True, timeout=STEP_S_MAX)
            assert done.returncode == 0, done.stderr
        assert "pi 3.14159265358" in (place / "pi.2.out").read_text()


def test_the_script_of_the_page_on_mpi_runs_all_of_its_programs(tmp_path: Path) -> None:
    (script,) = [block for block in _blocks(ROOT / "docs" / "mpi.md", "sh") if block.startswith("#!")]
    (tmp_path / "job.sh").write_text(script)
    with running(tmp_path / "beo") as cluster:
        env = {**cluster.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        words = [sys.executable, "-m", "beo.front", "run", str(tmp_path / "job.sh")]
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=STEP_S_MAX)
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"hello from rank (\d) of 4 on (\w+)", done.stdout)) == [
        ("0", "node01"),
        ("1", "node01"),
        ("2", "node02"),
        ("3", "node02"),
    ]
    assert "pi 3.14159265358" in done.stdout and "of 2 ranks" in done.stdout
