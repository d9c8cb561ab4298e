"""Published sets of tokens become shards: made here in the layouts that their own programs write."""

import dataclasses
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codeprior.config import ModelConfig, TrainConfig
from codeprior.train import train_prior
from codeshards.config import ImportConfig
from codeshards.format import ShardDataset, ShardError
from codeshards.format.orders import defined_orders
from codeshards.tools.convert import convert
from codeshards.tools.import_tokens import import_tokens
from codeshards.tools.inspect import inspect
from codeshards.tools.verify import verify

IMAGES, SIDE, SIZE = 12, 4, 50
CONFIG = ImportConfig(codebook_size=SIZE, val_every=4, shard_rows=40)


def codes_of(views: int, size: int = SIZE) -> np.ndarray:
    codes = np.random.default_rng(0).integers(0, size, (IMAGES, views, SIDE * SIDE))
    codes[0, 0, 0] = size - 1
    return codes


def rar(folder: Path, codes: np.ndarray) -> Path:
    lines = [
        json.dumps({"class_id": image % 3, "tokens": view.tolist()})
        for image, views in enumerate(codes)
        for view in views
    ]
    (folder / "maskgitvq.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "maskgitvq.jsonl"


def llamagen(folder: Path, codes: np.ndarray) -> Path:
    for kind in ("codes", "labels"):
        (folder / f"set/imagenet256_{kind}").mkdir(parents=True)
    for image, views in enumerate(codes):
        np.save(folder / f"set/imagenet256_codes/{image}.npy", views[None])
        np.save(folder / f"set/imagenet256_labels/{image}.npy", np.array([image % 3]))
    return folder / "set"


def randar(folder: Path, codes: np.ndarray) -> Path:
    name = "imagenet-llamagen-adm-256_codes"
    for image, views in enumerate(codes):
        (folder / f"{name}/{image % 3}").mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}/{image % 3}/{image}.npy", views)
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        tar.add(folder / name, name)
    return folder / f"{name}.tar"


def rows_of(dataset: ShardDataset) -> dict[str, tuple[int, int, list[int]]]:
    """Key → view, label and row-major codes."""
    columns = ["key", "view", "label", "codes_row_major"]
    return {
        key: (int(view), int(label), codes.tolist())
        for split in dataset.splits
        for batch in dataset.batches(split, columns)
        for key, view, label, codes in zip(*(batch[name] for name in columns), strict=True)
    }


@pytest.mark.parametrize(
    ("make", "views", "key"),
    [
        (rar, 10, lambda image: f"{image:08d}"),
        (llamagen, 10, str),
        (llamagen, 2, str),
        (randar, 2, lambda image: f"{image % 3}/{image}"),
    ],
)
def test_every_code_label_and_view_is_that_of_the_source(
    make: Callable[[Path, np.ndarray], Path], views: int, key: Callable[[int], str], tmp_path: Path
) -> None:
    codes = codes_of(views)
    source = make(tmp_path, codes)
    import_tokens(source, tmp_path / "shards", CONFIG)
    dataset = ShardDataset.open(tmp_path / "shards")
    assert verify(tmp_path / "shards").problems == ()
    assert dataset.spec.orders == defined_orders(SIDE, SIDE)
    assert f"tokens of {source.name}" in dataset.spec.image.fingerprint
    rows = rows_of(dataset)
    assert len(rows) == IMAGES * views
    # A ten-crop is upper left, upper right, lower left, lower right, centre, then the same of the mirrored picture.
    places = [4, 9, 0, 6, 1, 5, 2, 8, 3, 7] if views == 10 else [0, 1]
    for image in range(IMAGES):
        for view, place in enumerate(places):
            name = key(image) + (f"-v{view}" if view else "")
            assert rows[name] == (view, image % 3, codes[image, place].tolist())
    held_out = {name.partition("-")[0] for batch in dataset.batches("val", ["key"]) for name in batch["key"]}
    trained = {name.partition("-")[0] for batch in dataset.batches("train", ["key"]) for name in batch["key"]}
    assert (len(held_out), len(trained), held_out & trained) == (3, 9, set())


def test_a_second_import_gives_the_same_bytes_and_the_first_one_resumes(tmp_path: Path) -> None:
    source = rar(tmp_path, codes_of(10))
    for name in "ab":
        import_tokens(source, tmp_path / name, CONFIG)
    files = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
    shard = tmp_path / "b/train/shard-000001"
    for ending in (".parquet", ".json"):
        shard.with_suffix(ending).unlink()
    (tmp_path / "b/dataset.json").unlink()
    import_tokens(source, tmp_path / "b", CONFIG)
    again = {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.*")}
    assert again == files


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 21 is not a line of tokens"),
        (json.dumps({"class_id": 2, "tokens": [SIZE] * 16}), "the codebook has 50"),
        (json.dumps({"class_id": 2, "tokens": [1.5] * 16}), "integer codes"),
        (json.dumps({"class_id": 1, "tokens": [1] * 16}), "several classes"),
        (json.dumps({"class_id": 2, "tokens": [1] * 15}), "same shape"),
    ],
)
def test_a_bad_line_costs_its_image_and_is_named(line: str, reason: str, tmp_path: Path) -> None:
    source = rar(tmp_path, codes_of(10))
    lines = source.read_text().splitlines()
    source.write_text("\n".join([*lines[:20], line, *lines[21:]]) + "\n")
    with pytest.raises(ShardError, match=f"1 of {IMAGES} samples failed"):
        import_tokens(source, tmp_path / "shards", CONFIG)
    import_tokens(source, tmp_path / "shards", dataclasses.replace(CONFIG, max_failure_rate=0.5))
    assert verify(tmp_path / "shards").problems == ()
    assert "00000002" not in rows_of(ShardDataset.open(tmp_path / "shards"))
    assert reason in "".join(path.read_text() for path in (tmp_path / "shards/train").glob("*.json"))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    source = rar(tmp_path, codes_of(10))
    for change, message in (
        ({"codebook_size": 0}, "codebook_size is 0"),
        ({"lines": 7}, "no multiple of lines = 7"),
        ({"val_every": 13}, "only 12 images"),
        ({"height": 3}, "not 3×3"),
        ({"kind": "llamagen"}, "no set of tokens of kind llamagen"),
    ):
        with pytest.raises(ShardError, match=message):
            import_tokens(source, tmp_path / "shards", dataclasses.replace(CONFIG, **change))
    assert not (tmp_path / "shards").exists()


def test_a_prior_of_262_144_codes_trains_on_an_import(tmp_path: Path) -> None:
    size = 1 << 18
    import_tokens(randar(tmp_path, codes_of(2, size)), tmp_path / "a", dataclasses.replace(CONFIG, codebook_size=size))
    convert(tmp_path / "a", tmp_path / "shards", ["webdataset"])
    assert verify(tmp_path / "shards").problems == ()
    found = inspect(tmp_path / "shards")
    assert found.codes["image"].to_json()["codes"] == IMAGES * 2 * SIDE * SIDE
    assert found.to_json()["schema"]["codes_zcurve"].startswith("fixed_size_list<element: uint32")
    for loader in ("memory_map", "stream"):
        config = TrainConfig(
            model=ModelConfig(n_layer=1, n_head=1, n_embd=8), condition="class", batch_size=4, steps=2, log_every=1,
            eval_every=2, checkpoint_every=2, device="cpu", loader=loader,
        )  # fmt: skip
        summary = train_prior(config, tmp_path / "shards", tmp_path / loader)
        assert summary["val_nll_nats"] == pytest.approx(np.log(size), rel=0.01)
