"""What attempts leave in /tmp goes with the cluster, files as well as folders, and nothing that a link leads to."""

from pathlib import Path

import pytest

from beo.worker import remains


def test_scripts_folders_and_links_go_and_what_a_link_leads_to_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, treasure = tmp_path / "tmp", tmp_path / "treasure"
    place.mkdir()
    treasure.mkdir()
    (treasure / "coin").touch()
    monkeypatch.setattr(remains, "TMP", str(place))
    (place / "beo-cccccccc-n1-1.1-aa").mkdir()
    (place / "beo-cccccccc-n1-1.1-aa" / "file").touch()
    (place / "beo-cccccccc-n1-1.1-aa.script").touch()
    (place / "beo-cccccccc-n1-evil").symlink_to(treasure)
    (place / "beo-cccccccc-n2-1.1-aa").mkdir()
    remains.remove("c" * 32, ["n1"])
    assert [path.name for path in place.iterdir()] == ["beo-cccccccc-n2-1.1-aa"]
    assert (treasure / "coin").exists()
