"""The Python API: the ten lines of the example, the kinds of input a person tries, and errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_job import write_images, write_tokenizer

import imagepriors as ip
from imagepriors.api.images import to_codes
from imagepriors.api.memory import keep_freed_memory
from imagepriors.cli import main
from runkit.tensors import load_tensors, save_tensors

ROOT = Path(__file__).resolve().parents[2]
DATA = os.environ.get("IMAGEPRIORS_DATA")
NET = {
    "resolution": 32, "ch": 8, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "z_channels": 8,
    "embed_dim": 8, "codebook_size": 64,
}  # fmt: skip
TINY = {"steps": 2, "batch_size": 2, "eval_images": 2, "model": NET, "loss": {"perceptual": "none"}}
PRIOR = {"steps": 2, "batch_size": 4, "model": {"n_layer": 1, "n_head": 2, "n_embd": 16}}


@pytest.fixture(scope="module")
def work(local_ray_cores, tmp_path_factory):
    """Pictures in three classes, a tokenizer, shards and a class-conditional prior, all made by the API."""
    root = tmp_path_factory.mktemp("api")
    write_images(root / "photos", train=12)
    tokenizer = ip.train_tokenizer(str(root / "photos"), out=str(root / "run/tokenizer"), **TINY)
    shards = ip.tokenize(root / "photos", tokenizer, out=root / "run/shards", workers=1, threads=1, shard_rows=8)
    prior = ip.train_prior(shards, condition="class", cond_dropout=0.5, **PRIOR)
    assert prior.folder == root / "run/prior-row_major-class"
    assert keep_freed_memory.cache_info().misses == 1  # training sets the allocator, whoever calls it
    return root, tokenizer, shards, prior


@pytest.fixture(scope="module")
def tokenizer(work):
    return work[1]


def test_the_import_loads_no_heavy_library():
    code = (
        "import sys, imagepriors as ip; print([m for m in ('torch', 'ray', 'pyarrow', 'PIL', 'numpy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves_and_is_documented():
    for name in ip.__all__:
        assert getattr(ip, name).__doc__, name
        assert name in dir(ip)
    with pytest.raises(AttributeError, match="no attribute 'train_vqgan'"):
        _ = ip.train_vqgan


def test_the_ten_lines_of_the_example_run(local_ray_cores, tmp_path, monkeypatch):
    """On real photos where they are available, with settings of a second."""
    text = (ROOT / "examples/ten_lines.py").read_text()
    lines = [line for line in text.split('"""', 2)[2].splitlines() if line]
    assert len(lines) == 10
    assert "\n".join(lines) in (ROOT / "README.md").read_text().replace("\n\n", "\n")
    photos = tmp_path / "data/photos"
    photos.mkdir(parents=True)
    source = sorted(Path(DATA, "landscapes").rglob("*.jpg"))[:12] if DATA else []
    for number in range(12):
        picture = Image.open(source[number]) if source else Image.linear_gradient("L").rotate(30 * number)
        picture.convert("RGB").resize((48, 40)).save(photos / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    for old, new in {
        "(photos, steps=2000)": "(photos, **tiny)",
        "steps=2000": "**small",
        "(photos, tokenizer)": "(photos, tokenizer, workers=1, threads=1)",
    }.items():
        assert old in text
        text = text.replace(old, new)
    names = {"tiny": TINY, "small": PRIOR}
    exec(text, names)
    assert Image.open("samples.png").size[0] > 4 * 32
    assert names["quality"]["psnr_db"] > 0
    assert [image.size for image in names["reconstructions"]] == [(32, 32)] * len(names["codes"])
    assert {path.name for path in Path("runs/photos").iterdir()} == {"tokenizer", "shards", "prior-zcurve"}


def test_codes_of_an_image_are_those_in_the_shards(work):
    root, tokenizer, shards, _ = work
    columns = ["codes_row_major", "key", "view"]
    batches = list(shards.batches("val", columns))
    batch = {name: np.concatenate([part[name] for part in batches]) for name in columns}
    batch = {name: values[batch["view"] == 0] for name, values in batch.items()}
    photos = ip.open_dataset(root / "photos")["val"]
    files = [Image.fromarray(photos.read_whole(photos.keys.index(key))) for key in batch["key"]]
    codes = tokenizer.encode(files)
    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(codes.reshape(len(files), -1), batch["codes_row_major"])


def test_encode_takes_what_a_person_has(tokenizer, tmp_path, monkeypatch):
    array = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(one) for one in array]
    images[0].save(tmp_path / "0.png")
    expected = tokenizer.encode(images)
    assert expected.shape == (3, 8, 8)
    unit = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
    for several in (array, list(array), (image for image in images), torch.from_numpy(array), unit, array / 255):
        np.testing.assert_array_equal(tokenizer.encode(several), expected)
    for one in (images[0], array[0], unit[0], tmp_path / "0.png", str(tmp_path / "0.png"), images[0].convert("RGBA")):
        np.testing.assert_array_equal(tokenizer.encode(one), expected[0])
    assert tokenizer.encode(images[0].resize((80, 50))).shape == (8, 8)
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_array_equal(tokenizer.encode("~/0.png"), expected[0])
    clear = np.concatenate([array[0], np.zeros((32, 32, 1), np.uint8)], axis=2)  # transparency shows white
    white = np.full((32, 32, 3), 255, np.uint8)
    np.testing.assert_array_equal(tokenizer.encode(clear), tokenizer.encode(white))
    assert tokenizer.encode([]).shape == (0, 8, 8)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("nowhere.png", "nowhere.png does not exist: pass the path of an image"),
        (3, "images is a value of type int: pass a PIL image"),
        (np.zeros((32, 32), np.uint8), r"uint8 \[32, 32\] is no image of this tokenizer"),
        (np.zeros((32, 32, 3), np.int64), r"int64 \[32, 32, 3\] is no image"),
        (np.full((32, 32, 3), 255.0), "floats from 255 to 255: scale them to 0 … 1, or pass uint8"),
    ],
)
def test_what_is_no_image_is_refused(tokenizer, images, words):
    with pytest.raises(ip.UserError, match=words):
        tokenizer.encode(images)


def test_decode_takes_arrays_tensors_and_lists(tokenizer):
    codes = np.arange(128).reshape(2, 8, 8) % 64
    images = tokenizer.decode(codes)
    assert [image.size for image in images] == [(32, 32)] * 2
    for several in (torch.from_numpy(codes), codes.tolist(), list(codes)):
        assert [image.tobytes() for image in tokenizer.decode(several)] == [image.tobytes() for image in images]
    assert tokenizer.decode(codes[0]).tobytes() == images[0].tobytes()
    assert tokenizer.decode(codes.reshape(2, 64))[1].tobytes() == images[1].tobytes()  # rows of shards
    np.testing.assert_array_equal(tokenizer.decode_arrays(codes[1]), np.asarray(images[1])[None])
    assert tokenizer.decode(codes[0, :4]).size == (32, 16)
    for wrong, words in (
        (codes + 1, "code 64 is not in the codebook of 64"),
        (codes - 1, "pass integers from 0"),
        (codes / 2, "codes are float64"),
        ([], "pass integers from 0"),
        ([codes[0], codes[0, :4]], "cannot be read as an array"),
    ):
        with pytest.raises(ip.UserError, match=words):
            tokenizer.decode(wrong)


def test_samples_are_images_with_codes(work):
    _, tokenizer, shards, prior = work
    assert prior.summary["steps"] == 2
    assert tokenizer.summary["steps"] == 2
    drawn = prior.sample(4, seed=3, temperature=1)
    (work[0] / "mine.toml").write_text('base = "demo"\n[sample]\nseed = 3\n')
    np.testing.assert_array_equal(prior.sample(4, preset=work[0] / "mine.toml").codes, drawn.codes)
    assert drawn.codes.shape == (4, 8, 8)
    assert [image.size for image in drawn] == [(32, 32)] * len(drawn)
    alone = np.asarray(tokenizer.decode(drawn.codes[0]), np.int64)
    assert np.abs(np.asarray(drawn[0]) - alone).max() <= 1  # a batch of another size is rounded otherwise
    assert Image.open(BytesIO(drawn._repr_png_())).size == drawn.grid().size
    assert list(drawn.conditions["class"]) == [0, 1, 2, 0]
    for condition in ("class1", 1, [1] * 4, np.full(4, 1), {"class": torch.full((4,), 1)}):
        named = prior.sample(4, condition=condition, seed=3)
        assert list(named.conditions["class"]) == [1] * 4
        np.testing.assert_array_equal(named.codes[1], drawn.codes[1])
    given = prior.sample(3, given="upper", seed=3)
    rows = np.concatenate([part["codes_row_major"] for part in shards.batches("val", ["codes_row_major"])])
    halves = {row[:32].astype(np.int64).tobytes() for row in rows}
    assert {codes[:4].tobytes() for codes in given.codes} <= halves


def test_a_prior_without_a_tokenizer_gives_codes(work, tmp_path):
    _, tokenizer, _, prior = work
    alone = ip.load_prior(prior.folder, shards=tmp_path)
    drawn = alone.sample(2)
    np.testing.assert_array_equal(drawn.codes, prior.sample(2).codes)
    assert drawn._repr_png_() is None
    with pytest.raises(ip.UserError, match="pass tokenizer or shards to load_prior"):
        _ = drawn.images
    assert len(ip.load_prior(prior.folder, shards=tmp_path, tokenizer=tokenizer).sample(2).images) == 2
    write_tokenizer(tmp_path / "other")
    with pytest.raises(ip.UserError, match="decode with the tokenizer that made them"):
        ip.load_prior(prior.folder, tokenizer=tmp_path / "other").sample(2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"condition": "cat"}, "condition = 'cat': choose a class among class0, class1, class2"),
        ({"condition": [0]}, "condition has 1 classes for n = 2 samples"),
        ({"condition": 9}, "this prior's 'class' knows 0 … 2"),
        ({"condition": 0, "given": "upper"}, "leave one of them out"),
        ({"top_q": 0.5}, "unknown field top_q = 0.5: did you mean top_p"),
        ({"given": "lower"}, "use a number of codes, upper"),
        ({"n": "2"}, "n is '2': pass a whole number"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(work, options, words):
    with pytest.raises(ip.UserError, match=words):
        work[3].sample(**{"n": 2, **options})


def test_the_api_and_the_command_line_give_the_same(work, tmp_path, monkeypatch, capsys):
    root, tokenizer, shards, prior = work
    flags = [word for name, value in NET.items() for word in _flag(f"model.{name}", value)]
    data = ["--data", str(root / "photos")]
    short = ["--steps", "2", "--batch-size", "2", "--eval-images", "2", "--loss.perceptual", "none"]
    assert main(["train-vqgan", *data, "--out", str(tmp_path / "t"), *short, *flags]) == 0
    assert ip.load_tokenizer(tmp_path / "t").fingerprint == tokenizer.fingerprint
    again = ["--tokenizer", str(tmp_path / "t"), "--out", str(tmp_path / "shards"), "--workers", "1", "--threads", "1"]
    assert main(["tokenize", *data, *again, "--shard-rows", "8"]) == 0
    assert ip.open_shards(tmp_path / "shards").fingerprint == shards.fingerprint
    words = ["sample", "--prior", str(prior.folder), "--n", "3", "--seed", "5", "--out", str(tmp_path / "samples")]
    assert main(words) == 0
    drawn = prior.sample(3, seed=5)
    np.testing.assert_array_equal(np.load(tmp_path / "samples/codes.npz")["codes"], drawn.codes)
    assert Image.open(tmp_path / "samples/samples/0002.png").tobytes() == drawn[2].tobytes()
    capsys.readouterr()
    assert main([*words, "--condition", "2", "0"]) == 0  # by number, in turns
    drawn = prior.sample(3, condition=[2, 0, 2], seed=5)
    saved = np.load(tmp_path / "samples/codes.npz")
    np.testing.assert_array_equal(saved["codes"], drawn.codes)
    assert saved["condition_class"].tolist() == [2, 0, 2]
    assert main([*words, "--condition", "nothing"]) == 2
    assert f"choose a class among {', '.join(prior.sequence.class_names)}" in capsys.readouterr().err
    assert main([*words, "--condition", "0", "--given", "upper"]) == 2
    assert "only classes of a class-conditional prior" in capsys.readouterr().err
    assert main(["shards", "inspect", str(shards.path), "--out", str(tmp_path / "look")]) == 0
    assert json.loads((tmp_path / "look/inspect.json").read_text()) == ip.inspect(shards)


def _flag(name: str, value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [f"--{name.replace('_', '-')}", *map(str, values)] if values else []


def test_datasets_open_and_are_inspected(work, tmp_path):
    root = work[0]
    photos = ip.open_dataset(root / "photos")
    assert re.search(r"ImageDataset\('.*photos', layout folder: 12 train and 6 val images\)", repr(photos))
    assert [image.size for image in photos.images("val", 2)] == [(48, 40)] * 2
    with pytest.raises(ip.UserError, match="no split 'test': choose among"):
        photos.images("test")
    found = ip.inspect(photos, out=tmp_path, limit=4)
    assert found["splits"]["train"]["samples"] == 12
    assert ip.inspect(str(root / "run/shards"))["splits"]["val"]["samples"] == 6


def test_figures_are_returned(work, tmp_path):
    root, tokenizer, _, prior = work
    found = ip.evaluate_tokenizer(tokenizer, root / "photos", out=tmp_path / "t.json", frechet="none")
    assert found == json.loads((tmp_path / "t.json").read_text())
    found = ip.evaluate_prior(prior, out=tmp_path / "p.json", n=4, features="none", reader_steps=2)
    assert found["figures"]["nll_nats"] > 0
    assert found["sampling"]["guidance"] == 1
    palette = ip.train_palette(root / "photos", out=tmp_path / "palette", colours=4, resolution=8)
    assert palette.encode(np.zeros((8, 8, 3), np.uint8)).shape == (8, 8)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"step": 5}, "unknown field step = 5: did you mean steps"),
        ({"outt": "x"}, "unknown field outt = 'x': did you mean out"),
        ({"ch": 8}, "unknown field ch = 8: it is a field of model: pass model={'ch': 8}"),
        ({"model": {"chs": 8}}, "unknown field model.chs = 8: did you mean ch"),
        ({"steps": "many"}, "steps is 'many': choose a whole number"),
        ({"model": {"geometry": "fit"}}, "model.geometry is 'fit': choose one of crop, pad, stretch"),
        ({"model": 3}, "model is 3: pass a ModelConfig"),
        ({"steps": 0}, "steps is 0: choose 1 or more"),
        ({"config": 3}, "config is a int: pass a vqgan.config.TrainConfig"),
        ({"preset": "huge"}, "unknown preset 'huge': choose one of"),
    ],
)
def test_wrong_fields_are_named_before_any_work(work, tmp_path, fields, words):
    with pytest.raises(ip.UserError, match=re.escape(words)):
        ip.train_tokenizer(work[0] / "photos", out=tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()


def test_wrong_paths_are_user_errors(tmp_path):
    for call in (ip.open_dataset, ip.train_tokenizer, ip.load_tokenizer, ip.open_shards, ip.train_prior, ip.load_prior):
        with pytest.raises(ip.UserError, match="nowhere"):
            call(str(tmp_path / "nowhere"))


def test_a_config_object_takes_the_place_of_a_preset(work, tmp_path):
    config = ip.TokenizerConfig(steps=5, batch_size=2)
    photos = work[0] / "photos"
    made = ip.train_tokenizer(photos, out=tmp_path / "t", config=config, **{**TINY, "steps": np.int64(2)})
    assert made.config.ch == 8
    assert made.summary["steps"] == 2
    mine = tmp_path / "mine.toml"
    mine.write_text("[prior]\nsteps = 1\nbatch_size = 2\n[prior.model]\nn_layer = 1\nn_head = 1\nn_embd = 8\n")
    prior = ip.train_prior(work[2], out=tmp_path / "p", preset=mine)
    assert prior.summary["steps"] == 1
    assert prior.loaded.config.n_embd == 8


def test_objects_outlive_a_change_of_the_working_folder(work, monkeypatch, tmp_path):
    root, tokenizer, shards, prior = work
    monkeypatch.chdir(prior.folder.parent)
    fresh = ip.load_prior(prior.folder.name)
    encoder, dataset = ip.load_tokenizer(os.path.relpath(tokenizer.folder)), ip.open_shards("shards")
    pictures = ip.open_dataset(os.path.relpath(root / "photos"))
    monkeypatch.chdir(tmp_path)
    assert "order" in repr(fresh)
    assert len(fresh.sample(2, given="upper", seed=1)) == 2
    assert encoder.encode(pictures.images("val", 2)).shape == (2, 8, 8)
    assert dataset.rows("val") == shards.rows("val")


def test_a_given_tokenizer_is_the_one_that_decodes(work, tmp_path):
    _, tokenizer, _, prior = work
    alone = Path(shutil.copytree(prior.folder, tmp_path / "alone" / "prior"))
    apart = ip.load_prior(alone, tokenizer=tokenizer)
    assert len(apart.sample(2, size=(10, 10)).grid().getbands()) == 3
    assert apart.save_samples(tmp_path / "out", 2).is_file()
    other = Path(shutil.copytree(tokenizer.folder, tmp_path / "other"))
    weights = load_tensors(other / "model.safetensors")
    save_tensors(other / "model.safetensors", {name: tensor + 1 for name, tensor in weights.items()})
    with pytest.raises(ip.UserError, match="decode with the tokenizer that made them"):
        ip.load_prior(prior.folder, tokenizer=other).save_samples(tmp_path / "wrong", 2)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 2.5}, "n is 2.5: pass a whole number"),
        ({"size": 10}, "size is 10: pass the rows and columns"),
        ({"size": (9, 9, 9)}, "pass the rows and columns"),
        ({"condition": 2.7}, "pass names or whole numbers"),
        ({"condition": True}, "pass names or whole numbers"),
        ({"condition": [None, None]}, "pass names or whole numbers"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(work, arguments, words):
    with pytest.raises(ip.UserError, match=words):
        work[3].sample(**{"n": 2, **arguments})


def test_what_is_no_path_is_named(work):
    root, _, _, prior = work
    photos = ip.open_dataset(root / "photos")
    for call in (lambda: ip.train_prior(photos), lambda: ip.open_dataset(None), lambda: ip.tokenize(photos, prior)):
        with pytest.raises(ip.UserError, match="pass a path"):
            call()
    with pytest.raises(ip.UserError, match=r"nope\.toml does not exist"):
        ip.train_tokenizer(photos, preset="nope.toml")


def test_folders_of_the_other_kind_are_named(work):
    _, tokenizer, _, prior = work
    with pytest.raises(ip.UserError, match="describes a tokenizer: pass the run folder of a prior"):
        ip.load_prior(tokenizer.folder)
    with pytest.raises(ip.UserError, match="describes a prior: pass the folder of a tokenizer"):
        ip.load_tokenizer(prior.folder)


def test_what_is_no_image_is_named(work, tokenizer):
    for wrong in (Image.new("F", (40, 40)), torch.zeros(3, 40, 40).to_sparse(), torch.zeros(3, 40, 40, device="meta")):
        with pytest.raises(ip.UserError, match="cannot be"):
            tokenizer.encode(wrong)
    photos = ip.open_dataset(work[0] / "photos")
    for n in (-1, 2.5):
        with pytest.raises(ip.UserError, match="pass a whole number from 0"):
            photos.images("val", n)
    with pytest.raises(TypeError):
        photos["val"] = photos["train"]


def test_codes_of_one_row_are_a_grid_and_rows_of_them_are_many():
    """The grid of a 1-D tokenizer has one row, which looks like a row of shards."""
    codes_NT = np.arange(32).reshape(2, 16)
    many, is_one = to_codes(codes_NT, (1, 16))
    assert (many.tolist(), is_one) == ([[codes_NT[0].tolist()], [codes_NT[1].tolist()]], False)
    one, is_one = to_codes(codes_NT[:1], (1, 16))
    assert (one.tolist(), is_one) == ([[codes_NT[0].tolist()]], True)
    wide, is_one = to_codes(np.arange(8).reshape(1, 8), (2, 4))
    assert (wide.tolist(), is_one) == ([[[0, 1, 2, 3], [4, 5, 6, 7]]], False)
