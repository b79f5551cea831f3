"""Two heads with two networks between them: a cut of one, even of the one that everybody else uses, moves nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from beo.messages import PairIs
from tests.cluster import wait_for
from tests.net.hosts import Host, network
from tests.net.site import SETTINGS, Site

pytestmark = [pytest.mark.root, pytest.mark.net]

LONG_S = 1.5  # more than twice what a silence of all paths would take to have a consequence


def settings(host: Host) -> str:
    return f"{SETTINGS}\n[ha]\nlinks = ['{host.addresses[1]}']\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("paths")
    with network(folder, 0, links=2) as net:
        site = Site(net, folder, heads=2, workers=1, settings=settings)
        site.await_step()
        yield site


@pytest.fixture(autouse=True)
def whole(site: Site) -> Iterator[None]:
    yield
    site.net.mend()
    site.await_up()


def views(site: Site) -> list[PairIs]:
    found = site.pair()
    assert None not in found
    return [view for view in found if view]


def test_a_cut_of_the_data_link_between_the_heads_changes_nothing(site: Site) -> None:
    before = views(site)
    one, other = site.heads
    site.net.part(one, other, link=0)
    time.sleep(LONG_S)  # the time itself is what is tested
    assert [(v.role, v.epoch, v.in_step) for v in views(site)] == [(v.role, v.epoch, v.in_step) for v in before]


@pytest.mark.slow
def test_a_primary_that_only_its_standby_reaches_is_left_alone(site: Site) -> None:
    primary = site.primary
    [epoch] = {view.epoch for view in views(site)}
    site.net.cut(primary, link=0)
    time.sleep(LONG_S)
    [standby] = [view for view in site.pair() if view]
    assert (standby.role, standby.epoch) == ("standby", epoch)
    site.net.mend()
    assert site.primary == primary


@pytest.mark.slow
def test_a_cut_of_all_paths_leaves_the_primary_that_the_voters_see_alone_and_in_office(site: Site) -> None:
    primary = site.primary
    [epoch] = {view.epoch for view in views(site)}
    one, other = site.heads
    site.net.part(one, other)
    wait_for(lambda: not any(view.in_step for view in views(site) if view.role == "primary"), "it goes on alone")
    time.sleep(LONG_S)
    [acting] = [view for view in views(site) if view.role == "primary"]
    assert site.primary == primary and acting.epoch == epoch
    assert site.said("submit", "--wait", "-q", "true").strip().isdigit()
