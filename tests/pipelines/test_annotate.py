"""The annotate job: each image gets its map, and failures do not affect the maps of other images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from codeshards.format.files import sha256_file
from imagepriors.cli import main
from vqgan.data import open_splits
from vqgan.data.conditions import read_depth

transformers = pytest.importorskip("transformers")
FAST = ["--threads", "1", "--workers", "1", "--batch-size", "2", "--shard-samples", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def annotated(local_ray_cores, dpt, tmp_path_factory, write_images):
    data = write_images(tmp_path_factory.mktemp("data") / "d", {"train": 10, "val": 3})
    assert main(["annotate", "depth", "--data", str(data), "--model", str(dpt), *FAST]) == 0
    return data


def map_hashes(data: Path) -> dict[str, str]:
    return {
        path.relative_to(data).as_posix(): sha256_file(path)
        for path in sorted(data.glob("*_depth/**/*"))
        if path.is_file()
    }


def test_each_image_gets_the_depth_of_transformers(annotated, dpt):
    splits = open_splits("folder", annotated)
    assert {name: (len(split), split.conditions) for name, split in splits.items()} == {
        "train": (10, ("depth",)),
        "val": (3, ("depth",)),
    }
    assert open_splits("imagenet-depth", annotated)["val"].conditions == ("depth",)
    model = transformers.AutoModelForDepthEstimation.from_pretrained(dpt).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(dpt)
    for item in splits["train"].items:
        with item.image.open() as file, Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
        with torch.inference_mode():
            output = model(**processor(images=upright, return_tensors="pt"))
        size = (upright.height, upright.width)
        expected = processor.post_process_depth_estimation(output, target_sizes=[size])[0]["predicted_depth"]
        found = read_depth(item.conditions["depth"], upright.size)
        spread = float(expected.max() - expected.min())
        assert spread > 0.5
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5 * spread, rtol=1e-5)


def test_finished_job_runs_nothing_and_other_settings_are_refused(annotated, dpt, capsys):
    before = map_hashes(annotated)
    again = ["annotate", "depth", "--data", str(annotated), "--model", str(dpt), *FAST]
    assert main(again) == 0
    assert "13 depth maps" in capsys.readouterr().out
    assert main([*again, "--format", "npy"]) == 2
    assert 'settings.format: "rgba" → "npy"' in capsys.readouterr().err
    assert map_hashes(annotated) == before


@pytest.mark.slow
def test_maps_are_identical_after_a_killed_worker_driver_and_a_lost_map(annotated, dpt, tmp_path, write_images):
    data = write_images(tmp_path / "d", {"train": 10, "val": 3})
    script = tmp_path / "job.py"
    script.write_text(
        "import os, pathlib, time\nimport imagepriors.annotate.job as job\n"
        "from imagepriors.annotate.config import AnnotateConfig\n"
        f"marker = pathlib.Path({str(tmp_path / 'died')!r})\n"
        "class Mortal(job._Worker):\n"
        "    def run(self, task):\n"
        "        if task.shard.index == 1 and not marker.exists():\n"
        "            marker.touch()\n"
        "            os.kill(os.getpid(), 9)\n"
        "        if task.shard.index == 3:\n"
        "            time.sleep(60)  # here the driver is killed\n"
        "        return super().run(task)\n"
        "job._Worker = Mortal\n"
        "c = AnnotateConfig(threads=1, workers=1, batch_size=2, shard_samples=3, device='cpu', "
        f"model={str(dpt)!r})\njob.annotate(c, kind='depth', dataset='folder', data=pathlib.Path({str(data)!r}))\n"
    )
    job = subprocess.Popen([sys.executable, script], start_new_session=True, stderr=subprocess.DEVNULL)
    third = data / ".annotate-depth" / "train" / "shard-000002.json"
    deadline = time.monotonic() + 200
    while job.poll() is None and not third.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert third.exists()
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert (tmp_path / "died").exists()
    assert 0 < len(map_hashes(data)) < 13
    lost = data / "train_depth" / "class0" / "photo.2.png"
    lost.unlink()
    (lost.parent / f".{lost.name}.tmp-1-abc").write_bytes(b"torn")  # as left by a killed worker
    assert main(["annotate", "depth", "--data", str(data), "--model", str(dpt), *FAST]) == 0
    assert map_hashes(data) == map_hashes(annotated)


def test_a_broken_image_has_no_map_and_overwrite_starts_again(annotated, dpt, tmp_path, capsys):
    data = tmp_path / "d"
    shutil.copytree(annotated, data)
    command = ["annotate", "depth", "--data", str(data), "--model", str(dpt), *FAST, "--format", "npy"]
    assert main(command) == 2
    assert "another plan" in capsys.readouterr().err
    broken = data / "train" / "class1" / "photo.3.png"
    broken.write_bytes(broken.read_bytes()[:80])
    assert main([*command, "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "1 of 13 samples failed" in error
    assert "photo.3.png" in error
    assert main([*command, "--max-failure-rate", "0.1"]) == 0
    assert "12 depth maps" in (said := capsys.readouterr().out)
    assert "1 images left out" in said
    assert not list(data.glob("*_depth/**/*.png"))
    train = open_splits("folder", data)["train"]
    assert [item.key for item in train.items if "depth" not in item.conditions] == ["class1/photo%2E3"]
    assert train.read(0, 16, conditions=("depth",)).conditions["depth"].shape == (16, 16)
    sidecars = [json.loads(path.read_text()) for path in (data / ".annotate-depth" / "train").glob("*.json")]
    assert [failure["key"] for sidecar in sidecars for failure in sidecar["failures"]] == ["class1/photo%2E3"]


def test_other_maps_are_never_deleted_or_replaced(annotated, dpt, tmp_path, capsys):
    """Maps without a record, maps that were edited, and maps that were added by hand."""
    data = tmp_path / "d"
    shutil.copytree(annotated, data)
    job_dir, kept = data / ".annotate-depth", tmp_path / "kept"
    command = ["annotate", "depth", "--data", str(data), "--model", str(dpt), *FAST]
    job_dir.rename(kept)
    before = map_hashes(data)
    for flags in ([], ["--overwrite"]):
        assert main([*command, *flags]) == 2
        assert "has no record that this command made it" in capsys.readouterr().err
        assert map_hashes(data) == before
    kept.rename(job_dir)
    edited = data / "train_depth" / "class0" / "photo.0.png"
    edited.write_bytes(edited.read_bytes() + b"touched up")
    added = data / "train_depth" / "class0" / "mine.png"
    added.write_bytes(b"by hand")
    before = map_hashes(data)
    assert main([*command, "--overwrite"]) == 2
    assert "Nothing was deleted" in capsys.readouterr().err
    assert map_hashes(data) == before
    assert main([*command, "--max-failure-rate", "0.2"]) == 0  # the shard's file has another size: it is made again
    assert "1 images left out" in capsys.readouterr().out
    assert map_hashes(data) == before


@pytest.mark.slow
def test_images_in_tars_become_a_folder_dataset_in_out(tmp_path, capsys, write_images):
    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=7)
    torch.save({"model": model.state_dict()}, tmp_path / "seg.pth")
    files = write_images(tmp_path / "files", {"train": 3, "val": 1})
    (tmp_path / "tars").mkdir()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / "tars" / f"{split}-000.tar", "w") as archive:
            for number, path in enumerate(sorted((files / split).rglob("*.png"))):
                archive.add(path, f"s{number}.png")
                (tmp_path / "label").write_text(str(number))
                archive.add(tmp_path / "label", f"s{number}.cls")
    command = ["annotate", "segmentation", "--dataset", "webdataset", "--data", str(tmp_path / "tars"), *FAST]
    command += ["--model", str(tmp_path / "seg.pth")]
    assert main(command) == 2
    assert "pass --out DIR" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "o")]) == 0
    assert f"--dataset folder --data {tmp_path / 'o'}" in capsys.readouterr().out
    made, original = open_splits("folder", tmp_path / "o"), open_splits("webdataset", tmp_path / "tars")
    for split in ("train", "val"):
        assert made[split].keys == original[split].keys
        assert made[split].conditions == ("segmentation",)
        assert [item.label for item in made[split].items] == [item.label for item in original[split].items]
        for index in range(len(made[split])):
            np.testing.assert_array_equal(made[split].read_whole(index), original[split].read_whole(index))
            assert made[split].read(index, 16, conditions=("segmentation",)).conditions["segmentation"].max() < 7
    assert main(["annotate", "depth", *command[2:], "--out", str(tmp_path / "o")]) == 2
    assert "holds segmentation maps already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["depth", "--model", "./nowhere/dpt"], "model ./nowhere/dpt does not exist"),
        (["segmentation", "--model", "deeplab.pth"], "model deeplab.pth does not exist"),
        (["depth", "--model", "no-such-owner/no-such-model"], "pass as --model the folder of a copy"),
        (["depth", "--model", "empty"], "does not hold a depth model"),
        (["segmentation", "--model", "junk.pth"], "cannot be read as plain weights"),
        (["segmentation", "--model", "other.pth"], "of none of torchvision's segmentation models"),
        (["depth", "--model", "junk.pth"], "a depth model is a folder"),
        (["depth", "--dataset", "ade20k"], "pass --out DIR"),
        (["depth", "--out", "data"], "the input data"),
        (["depth", "--batch-size", "0"], "batch_size is 0"),
    ],
)
def test_user_errors_are_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys, argv, words, write_images):
    monkeypatch.chdir(tmp_path)
    ade = "images" if "ade20k" in argv else "."
    write_images(tmp_path / "data" / ade, {"training" if "ade20k" in argv else "train": 2, "val": 1})
    Path("empty").mkdir()
    Path("junk.pth").write_bytes(b"junk")
    torch.save({"a": torch.zeros(1)}, "other.pth")
    assert _main_or_exit(["annotate", *argv, "--data", "data"]) == 2
    error = capsys.readouterr().err
    assert words in " ".join(error.split())
    assert "Traceback" not in error
    assert not list(Path("data").rglob(".annotate-*"))


def _main_or_exit(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_missing_transformers_names_the_pip_command(dpt, tmp_path, monkeypatch, capsys, write_images):
    monkeypatch.setitem(sys.modules, "transformers", None)
    data = write_images(tmp_path / "data", {"train": 2, "val": 1})
    assert main(["annotate", "depth", "--data", str(data), "--model", str(dpt)]) == 2
    assert "pip install 'imagepriors[annotate]'" in capsys.readouterr().err
