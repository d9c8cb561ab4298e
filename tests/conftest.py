"""What all tests share: nothing of a test run may reach the user's own cluster."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def local_ray():
    """Keep Ray on this machine and quiet."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
