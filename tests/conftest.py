"""What all tests share: nothing of a test run may reach the user's own cluster."""

import os

import pytest
from hypothesis import settings

# A test that takes longer on a busy machine is not wrong.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(autouse=True, scope="session")
def local_ray():
    """Keep Ray on this machine and quiet."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
