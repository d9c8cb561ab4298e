"""`imagepriors tokenize` from end to end: its summary, its page, and the cluster files that use its flags."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from tiny_job import FLAGS, write_images, write_tokenizer

from codeshards.tools.verify import verify
from imagepriors.cli import main
from imagepriors.reports.shards import _rates
from vqgan.checkpoint import fingerprint

CLUSTER = Path(__file__).resolve().parents[2] / "docs" / "cluster"


def test_tokenize_prints_a_summary_and_writes_a_page(local_ray_cores, tmp_path, capsys):
    data, tokenizer = write_images(tmp_path / "data"), write_tokenizer(tmp_path / "tokenizer")
    (data / "train" / "class0" / "000.png").write_bytes(b"not a picture")
    out = tmp_path / "shards"
    argv = ["tokenize", "--dataset", "folder", "--data", str(data), "--tokenizer", str(tokenizer), "--out", str(out)]
    argv += [*FLAGS, "--max-failure-rate", "0.1", "--scales", "1", "2", "--formats", "parquet", "webdataset"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert re.search(r"rows +59 train \+ 6 val", printed)
    assert re.search(r"failures +1 of 66 samples", printed)
    assert "images/s" in printed
    page = (out / "report.html").read_text()
    for title in ("Throughput", "Failures", "Code usage", "Decoded samples"):
        assert f"<h2>{title}</h2>" in page
    assert page.count('class="plot"') == 2  # throughput and code usage
    assert page.count("decoded row") == 24
    assert "class0/000" in page
    assert "cannot identify image file" in page
    assert verify(out, fingerprint_of=fingerprint).problems == ()  # events and page are not part of the dataset
    assert main([*argv, "--overwrite"]) == 0


def test_rates_exclude_the_pauses_between_runs():
    events = [
        {"event": "start", "time_s": 0},
        {"event": "worker_ready", "time_s": 10},
        {"event": "progress", "time_s": 20, "nodes": {"a": 50}},
        {"event": "progress", "time_s": 30, "nodes": {"a": 100, "b": 40}},
        {"event": "start", "time_s": 1000},  # killed and started again
        {"event": "worker_ready", "time_s": 1010},
        {"event": "progress", "time_s": 1070, "nodes": {"a": 600}},
    ]
    rates = _rates(events)
    assert rates["a"] == ([0, 10 / 60, 10 / 60, 20 / 60, 20 / 60, 80 / 60], [5.0, 5.0, 5.0, 5.0, 10.0, 10.0])
    assert rates["b"] == ([10 / 60, 20 / 60], [4.0, 4.0])
    assert rates["all"] == ([10 / 60, 20 / 60], [9.0, 9.0])


def _commands() -> list[str]:
    text = (CLUSTER / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^ *(imagepriors tokenize .*)$", text, re.MULTILINE)
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    return [*found, job["spec"]["entrypoint"]]


@pytest.mark.parametrize("command", _commands())
def test_commands_for_clusters_parse(command, capsys, tmp_path, monkeypatch):
    """The command parses, and fails because the data are missing."""
    program, *argv = shlex.split(command)
    assert program == "imagepriors"
    assert main(argv) == 2
    assert "/mnt/data/imagenet does not exist" in capsys.readouterr().err


def test_cluster_files_fit_ray():
    cluster = yaml.safe_load((CLUSTER / "cluster.yaml").read_text())
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))
    assert cluster["available_node_types"]["head"]["resources"]["CPU"] == 0
    spec = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}
    assert group["minReplicas"] == 0 < group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
