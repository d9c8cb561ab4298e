"""What all tests share: nothing of a test run may reach the user's own cluster."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Chromium
from hub_server import HubServer
from hypothesis import settings
from s3_server import S3Server

from runkit.machine import usable_cores

# A test that takes longer on a busy machine is not wrong.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_xdist_auto_num_workers() -> int:
    """Processes of ``pytest -n auto``: one per core, within limits, because each may start a Ray of three workers."""
    return min(max(usable_cores(), 2), 4)


@pytest.fixture(autouse=True, scope="session")
def local_ray():
    """Keep Ray on this machine and quiet."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with an empty bucket named ``bucket``, to which the AWS variables of the environment point."""
    import boto3

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket("bucket")
    bucket.create()
    yield s3_server
    s3_server.fails, s3_server.status = lambda environ: False, "403 Forbidden"
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server of the Hugging Face Hub with an empty dataset repository, to which HF_ENDPOINT points."""
    from huggingface_hub.utils import disable_progress_bars

    from runkit import objects, retries

    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(retries, "PAUSES_S", (0.0,))
    objects._hugging_face.cache_clear()  # its client has another endpoint
    with disable_progress_bars():
        yield server
    objects._hugging_face.cache_clear()
    server.close()


@pytest.fixture(scope="session")
def local_ray_cores(s3_server: S3Server) -> Iterator[Any]:
    """A Ray in this process, so that not every job starts its own; its workers know the S3 server."""
    import ray

    from runkit.ray_session import any_agent_port

    with any_agent_port(ray):
        ray.init(
            address="local",
            num_cpus=3,  # two workers, and the controller of Ray Train
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            runtime_env={"env_vars": s3_server.environment},
        )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def demo_run(local_ray_cores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with all conditions and a prior of any order, of 24 scenes and three steps each."""
    import imagepriors as ip
    from imagepriors.demo.layouts import write_demo_data

    root = tmp_path_factory.mktemp("demo")
    data, run = root / "data", root / "runs/demo"
    write_demo_data(data, n_train=24, n_val=6, size=32, seed=0)
    short: dict[str, Any] = {"steps": 3, "batch_size": 4, "model": {"resolution": 32}}
    tokenizer = ip.train_tokenizer(data, out=run / "tokenizer", **short)
    conditions = ("segmentation", "depth", "pose")
    maps = [
        ip.train_tokenizer(data, out=run / f"tokenizer-{name}", preset=f"demo-{name}", **short) for name in conditions
    ]
    shards = ip.tokenize(data, tokenizer, out=run / "shards", conditions=maps)
    tiny: dict[str, Any] = {"steps": 3, "batch_size": 4, "model": {"n_layer": 1}}
    for condition in ("class", *conditions):
        ip.train_prior(shards, out=run / f"prior-row_major-{condition}", condition=condition, **tiny)
    ip.train_prior(
        shards, out=run / "prior-any-class", condition="class", objective="any_order", cond_dropout=0.1, **tiny
    )
    return run


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The browser of all tests of a process."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: Debian has it in the package chromium")
    with Chromium() as running:
        yield running


@pytest.fixture
def open_page(chromium: Chromium) -> Iterator[Callable[..., Any]]:
    """A function that opens a URL in a page of its own; errors of the pages fail the test. See `Chromium.pages`."""
    with chromium.pages() as open_one:
        yield open_one


@pytest.fixture
def default_handlers() -> Iterator[None]:
    """Python's own handlers, whatever earlier tests have left, or a shell that started the tests in the background,
    which has them ignore Ctrl-C."""
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
