"""Write the demo scenes in the published layouts of ImageNet, ADE20K, ImageNet-depth and DeepFashion."""

import multiprocessing
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from codeshards.format import ShardError
from codeshards.format.files import atomic_write_json, read_json
from imagepriors.demo.scenes import CLASS_NAMES, SEGMENTATION_NAMES, render_scene
from runkit.folders import held
from runkit.progress import tqdm

VERSION = 2
# Split → folder name in ADE20K and DeepFashion; ImageNet uses the same names.
_ADE, _FASHION = {"train": "training", "val": "validation"}, {"train": "train", "val": "test"}

_MAX_PIXELS, _MAX_SCENES = 4096, 10_000_000


@dataclass(frozen=True, slots=True)
class _Job:
    out: Path
    split: str
    index: int
    size: int
    seed: int

    @property
    def stem(self) -> str:
        return f"DEMO_{self.split}_{self.index + 1:08d}"


def _write_scene(job: _Job) -> tuple[str, int, str, list[int]]:
    """Render one scene, write its files, and return its split, class, CSV row and pixels per label."""
    scene = render_scene(job.seed, job.index, job.size, split=("train", "val").index(job.split))
    name, stem = CLASS_NAMES[scene.label], job.stem
    ade = job.out / "ADEChallengeData2016"
    picture = job.out / "imagenet" / job.split / name / f"{stem}.JPEG"
    Image.fromarray(scene.image).save(picture, "JPEG", quality=95, subsampling=0)
    for copy in (
        ade / "images" / _ADE[job.split] / f"{stem}.jpg",
        job.out / "imagenet-depth" / job.split / name / f"{stem}.JPEG",
        job.out / "deepfashion" / _FASHION[job.split] / f"{stem}.jpg",
    ):
        _link(picture, copy)
    Image.fromarray(scene.segmentation).save(ade / "annotations" / _ADE[job.split] / f"{stem}.png")
    packed = np.ascontiguousarray(scene.depth.astype("<f4")).view(np.uint8).reshape(*scene.depth.shape, 4)
    Image.fromarray(packed, "RGBA").save(job.out / "imagenet-depth" / f"{job.split}_depth" / name / f"{stem}.png")
    joints = np.rint(scene.keypoints).astype(int).clip(max=job.size - 1)  # rounding may leave the picture
    row = f"{stem}.jpg: {joints[:, 1].tolist()}: {joints[:, 0].tolist()}"
    return job.split, scene.label, row, np.bincount(scene.segmentation.ravel(), minlength=8).tolist()


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or no support of hard links
        shutil.copyfile(source, target)


def _make_folders(out: Path) -> None:
    for split in ("train", "val"):
        for name in CLASS_NAMES:
            for folder in (f"imagenet/{split}", f"imagenet-depth/{split}", f"imagenet-depth/{split}_depth"):
                (out / folder / name).mkdir(parents=True, exist_ok=True)
        for kind in ("images", "annotations"):
            (out / "ADEChallengeData2016" / kind / _ADE[split]).mkdir(parents=True, exist_ok=True)
        (out / "deepfashion" / _FASHION[split]).mkdir(parents=True, exist_ok=True)


def write_demo_data(
    out: Path, *, n_train: int, n_val: int, size: int = 64, seed: int = 0, workers: int | None = None
) -> None:
    """Render scenes into imagenet/, ADEChallengeData2016/, imagenet-depth/ and deepfashion/ of `out`.

    `demo.json`, written last, marks the data as complete. A second call with equal settings returns immediately.

    Args:
        out: Folder to write.
        n_train: Number of training scenes.
        n_val: Number of validation scenes.
        size: Side in pixels, a multiple of 8 from 32 to 4096.
        seed: Seed of the scenes.
        workers: Number of processes; None: one per core. The files do not depend on it.

    Raises:
        ShardError: a setting is out of range, or the folder has data of other settings.
        UserError: the folder has other files of these names, or another process writes to it.
    """
    if not 32 <= size <= _MAX_PIXELS or size % 8:
        raise ShardError(f"size is {size}: choose a multiple of 8 from 32 to {_MAX_PIXELS}")
    if not (1 <= n_train <= _MAX_SCENES and 1 <= n_val <= _MAX_SCENES):
        raise ShardError(f"n_train is {n_train}, n_val is {n_val}: choose 1 to {_MAX_SCENES:,} of each")
    settings = {"n_train": n_train, "n_val": n_val, "seed": seed, "size": size, "version": VERSION}
    marker = out / "demo.json"
    if marker.exists():
        found = read_json(marker)
        changed = [f"{key} {found.get(key)} → {value}" for key, value in settings.items() if found.get(key) != value]
        if changed:
            raise ShardError(f"{out} holds other demo data ({', '.join(changed)}): remove it or choose another folder")
        return
    reserved = (marker.name, "imagenet", "imagenet-depth", "ADEChallengeData2016", "deepfashion")
    with held(out, "demo-data", reserved=reserved):
        _make_folders(out)
        jobs = [_Job(out, split, i, size, seed) for split, n in (("train", n_train), ("val", n_val)) for i in range(n)]
        # A fork server, because a plain fork is unsafe if the caller has threads.
        with multiprocessing.get_context("forkserver").Pool(workers or os.cpu_count()) as pool:
            results = pool.imap(_write_scene, jobs, chunksize=16)
            done = list(tqdm(results, total=len(jobs), desc="demo-data", disable=None))
        _write_lists(out, jobs, done)
        atomic_write_json(marker, settings)


def _write_lists(out: Path, jobs: list[_Job], done: list[tuple[str, int, str, list[int]]]) -> None:
    """The index files of DeepFashion (keypoints) and ADE20K (scene categories, label statistics)."""
    for split, folder in _FASHION.items():
        rows = ["name:keypoints_y:keypoints_x", *(row for at, _, row, _ in done if at == split)]
        (out / "deepfashion" / f"fasion-annotation-{folder}.csv").write_text("\n".join(rows) + "\n")
    ade = out / "ADEChallengeData2016"
    categories = (f"{job.stem} {CLASS_NAMES[label]}\n" for job, (_, label, _, _) in zip(jobs, done, strict=True))
    (ade / "sceneCategories.txt").write_text("".join(categories))
    pixels = np.sum([counts for *_, counts in done], axis=0)
    images: dict[str, Counter[int]] = {"train": Counter(), "val": Counter()}
    for split, _, _, counts in done:
        images[split].update(np.flatnonzero(counts).tolist())
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    for label, name in enumerate(SEGMENTATION_NAMES, start=1):
        ratio = pixels[label] / pixels.sum()
        lines.append(f"{label}\t{ratio:.4f}\t{images['train'][label]}\t{images['val'][label]}\t{name}")
    (ade / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
