"""What every test shares: marks that are honoured, and hypothesis kept repeatable."""

import os

import pytest
from hypothesis import settings

# The same examples every time: a failure seen elsewhere is seen here, and nothing is written beside the code.
settings.register_profile("beo", derandomize=True, database=None, deadline=None, max_examples=100)
settings.load_profile("beo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `root` where this process is not root."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
