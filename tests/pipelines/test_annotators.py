"""Networks for annotation: their maps are aligned with the images and equal those of the libraries."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model_weights
from torchvision.models.segmentation import deeplabv3_resnet50

from codeshards.format import Sidecar
from codeshards.format.plan import PlannedShard
from codeshards.job.encode import ShardTask
from imagepriors.annotate.config import AnnotateConfig
from imagepriors.annotate.job import annotate_shard
from imagepriors.annotate.maptree import MapTree, encode_map
from imagepriors.annotate.networks import Annotator, find_model, upsampled_argmax
from imagepriors.demo.layouts import write_demo_data
from imagepriors.demo.scenes import SEGMENTATION_NAMES
from runkit.errors import UserError
from vqgan.data import open_splits
from vqgan.data.conditions import read_depth, read_map
from vqgan.data.sources import Memory
from vqgan.errors import InputError

transformers = pytest.importorskip("transformers")


def only_shard(root: Path, kind, annotator, out=None, **flags) -> tuple[Sidecar, MapTree]:
    """Annotate the train split as one shard, without Ray."""
    samples = open_splits("folder", root)["train"]
    tree = MapTree(kind=kind, suffix=".png", data=root, out=out)
    shard = PlannedShard(split="train", index=0, start=0, stop=len(samples))
    task = ShardTask(shard=shard, plan_hash="p", samples=samples)
    return annotate_shard(task, annotator=annotator, tree=tree, config=AnnotateConfig(**flags)), tree


def bright_deeplab() -> nn.Module:
    """A DeepLabv3 that labels red above the mean 2, all else 0: each layer passes its first channel on."""
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                middle = module.kernel_size[0] // 2
                module.weight.zero_()
                module.weight[0, 0, middle, middle] = 1
            if name.endswith("bn3"):
                module.weight.zero_()  # only the shortcut of a residual block remains
        head = model.classifier[4]
        head.weight.zero_()
        head.weight[2, 0] = 1
        head.bias.copy_(torch.tensor([0.3, -9.0, 0.0]))
    return model.eval()


def edges(shape_HW: np.ndarray) -> list[int]:
    """Top, bottom, left and right of the set pixels."""
    rows, columns = np.flatnonzero(shape_HW.any(1)), np.flatnonzero(shape_HW.any(0))
    return [rows[0], rows[-1], columns[0], columns[-1]]


@pytest.mark.slow
def test_a_deeplab_mask_is_aligned_with_its_image(tmp_path):
    """The mask is 2 in a white rectangle in a corner, with and without rotation by EXIF."""
    root = tmp_path / "data"
    for orientation in (1, 6):
        pixels = np.zeros((240, 270, 3), np.uint8)
        pixels[20:90, 40:200] = 255
        exif = Image.Exif()
        exif[0x0112] = orientation
        for split in ("train", "val"):
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / f"{orientation}.png", exif=exif)
    model = bright_deeplab()
    torch.save(model.state_dict(), tmp_path / "bright.pth")
    transform = get_model_weights("deeplabv3_resnet50").DEFAULT.transforms()
    annotator = Annotator.load("segmentation", tmp_path / "bright.pth", device="cpu")
    sidecar, tree = only_shard(root, "segmentation", annotator, batch_size=1)
    assert (sidecar.rows, sidecar.failures) == (2, ())
    samples = open_splits("folder", root)["train"]
    for index, item in enumerate(samples.items):
        expected = samples.read_whole(index)[..., 0] > 128
        found = np.asarray(Image.open(tree.map_path("train", item)))
        assert found.shape == expected.shape
        assert set(np.unique(found)) == {0, 2}
        # torchvision's network itself, on a picture that nobody resized, moves edges by -3 … 12 of its 520 pixels: its
        # grid is 8 wide, its cells' middles lie 3.5 off what the upsampling takes them for, and it pools maxima.
        np.testing.assert_allclose(edges(found == 2), edges(expected), atol=12 * 240 / 520)
        if index:
            continue  # the network is slow
        with torch.inference_mode():
            logits = model(transform(Image.fromarray(samples.read_whole(index)))[None])["out"]
            logits = F.interpolate(logits, expected.shape, mode="bilinear", align_corners=False)
        np.testing.assert_array_equal(found, logits[0].argmax(0).numpy())


class ColourConfig(transformers.PretrainedConfig):
    model_type = "imagepriors-test-colour"


class Colour(transformers.PreTrainedModel):
    """Depth is a 1×1 convolution of the colours."""

    config_class = ColourConfig

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(3, 1, 1)
        self.post_init()

    def forward(self, pixel_values):
        depth = self.conv(pixel_values)[:, 0]
        return transformers.modeling_outputs.DepthEstimatorOutput(predicted_depth=depth)


def test_depth_is_the_known_function_of_the_pixels(tmp_path, write_images):
    transformers.AutoConfig.register(ColourConfig.model_type, ColourConfig)
    transformers.AutoModelForDepthEstimation.register(ColourConfig, Colour)
    model = Colour(ColourConfig())
    with torch.no_grad():
        model.conv.weight.copy_(torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1))
        model.conv.bias.fill_(3.0)
    model.save_pretrained(tmp_path / "model")
    processor = transformers.DPTImageProcessor(do_resize=False, do_normalize=False, do_rescale=True)
    processor.save_pretrained(tmp_path / "model")
    root = write_images(tmp_path / "data", {"train": 6, "val": 1})
    annotator = Annotator.load("depth", tmp_path / "model", device="cpu")
    sidecar, _ = only_shard(root, "depth", annotator, batch_size=2)
    assert (sidecar.rows, sidecar.failures) == (6, ())
    samples = open_splits("folder", root)["train"]
    for index, item in enumerate(samples.items):
        whole = samples.read_whole(index)
        expected = whole.astype(np.float64) / 255 @ [1.0, -2.0, 0.5] + 3
        found = read_depth(item.conditions["depth"], whole.shape[1::-1])
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_segformer_masks_are_those_of_transformers(tmp_path, write_images):
    torch.manual_seed(1)
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        num_labels=20,
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path / "model")
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path / "model")
    root = write_images(tmp_path / "data", {"train": 4, "val": 1})
    annotator = Annotator.load("segmentation", tmp_path / "model", device="cpu")
    assert len(annotator.label_names) == 20
    _, tree = only_shard(root, "segmentation", annotator, batch_size=1)
    tree.write_lists(open_splits("folder", root), [], annotator.label_names)
    samples = open_splits("folder", root)["train"]
    assert samples.label_names == annotator.label_names
    for index, item in enumerate(samples.items):
        whole = samples.read_whole(index)
        with torch.inference_mode():
            output = model(**processor(images=Image.fromarray(whole), return_tensors="pt"))
        expected = processor.post_process_semantic_segmentation(output, target_sizes=[whole.shape[:2]])[0]
        np.testing.assert_array_equal(np.asarray(Image.open(item.conditions["segmentation"].path)), expected)


@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_argmax_in_chunks_equals_argmax_of_all(classes, side, seed):
    logits = torch.randn(classes, side, side, generator=torch.Generator().manual_seed(seed))
    size = (3 * side - 1, 2 * side + 3)
    whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
    torch.testing.assert_close(upsampled_argmax(logits, size).long(), whole)


@given(
    arrays(np.float32, (3, 5), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    st.sampled_from(["rgba", "npy", "png16"]),
)
@settings(deadline=None)
def test_encoded_maps_are_read_back(depth, depth_format):
    # png16 cannot represent a smaller range.
    assume(depth_format != "png16" or not 0 < float(depth.max()) - float(depth.min()) < 1e-12)
    source = Memory("x.npy" if depth_format == "npy" else "x.png", encode_map(depth, depth_format))
    if depth.min() == depth.max():
        with pytest.raises(ValueError, match="constant"):
            read_map("depth", source, (5, 3), 256)
        return
    found = read_depth(source, (5, 3))
    if depth_format == "png16":
        low, high = float(depth.min()), float(depth.max())
        found = found / 65535 * (high - low) + low
        np.testing.assert_allclose(found, depth, atol=(high - low) / 65535)
    else:
        np.testing.assert_array_equal(found.astype(np.float32), depth)


def test_images_in_the_root_folder_have_their_maps_beside_it(dpt, tmp_path, write_images):
    root = write_images(tmp_path / "photos", {"flowers": 6})
    before = open_splits("folder", root)
    annotator = Annotator.load("depth", dpt, device="cpu")
    sidecar, tree = only_shard(root, "depth", annotator)
    assert all((root / ".annotate-depth" / "train" / name).is_file() for name in sidecar.files)
    assert tree.reader("imagenet", before) == ("folder", root)
    after = open_splits("folder", root)
    assert (tmp_path / "photos_depth" / "flowers" / "class0" / "photo.0.png").is_file()
    for name, split in after.items():
        assert (split.keys, split.class_names) == (before[name].keys, ("flowers",))
        assert split.source_hash() == before[name].source_hash()
    assert after["train"].conditions == ("depth",)


def test_constant_depth_is_a_failure_of_its_image(dpt, tmp_path, write_images):
    from safetensors.torch import load_file, save_file

    shutil.copytree(dpt, tmp_path / "flat")
    weights = load_file(tmp_path / "flat" / "model.safetensors")
    weights["head.head.4.weight"] *= 0
    save_file(weights, tmp_path / "flat" / "model.safetensors", {"format": "pt"})
    root = write_images(tmp_path / "data", {"train": 2, "val": 1})
    sidecar, _ = only_shard(root, "depth", Annotator.load("depth", tmp_path / "flat", device="cpu"))
    assert sidecar.rows == 0
    assert "depth is constant (5 everywhere)" in sidecar.failures[0].reason
    assert not (root / "train_depth").exists()


def test_missing_weights_are_refused_only_if_the_output_depends_on_them(dpt, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(dpt, tmp_path / "m")
    whole = load_file(dpt / "model.safetensors")
    unused = "neck.fusion_stage.layers.0.residual_layer1."  # also missing in the published DPT
    save_file(
        {k: v for k, v in whole.items() if not k.startswith(unused)},
        tmp_path / "m" / "model.safetensors",
        {"format": "pt"},
    )
    picture_HW3 = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    full, partial = (Annotator.load("depth", folder, device="cpu") for folder in (dpt, tmp_path / "m"))
    torch.testing.assert_close(partial.infer([partial.prepare(picture_HW3)]), full.infer([full.prepare(picture_HW3)]))
    save_file(
        {k: v for k, v in whole.items() if k != "head.head.4.weight"},
        tmp_path / "m" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match=r"lacks weights that the network needs.*head\.head\.4\.weight"):
        Annotator.load("depth", tmp_path / "m", device="cpu")


def test_bfloat16_is_nearly_float32(dpt):
    exact, fast = (Annotator.load("depth", dpt, device="cpu", precision=name) for name in ("float32", "bfloat16"))
    picture_HW3 = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    wanted, found = (net.to_map(net.infer([net.prepare(picture_HW3)])[0], (30, 40)) for net in (exact, fast))
    error = np.abs(wanted - found).mean() / wanted.std()
    assert 0 < error < 0.1


def test_elongated_picture_is_refused_before_the_network_sees_it(tmp_path):
    torch.save(deeplabv3_resnet50(weights=None, weights_backbone=None).state_dict(), tmp_path / "d.pth")
    annotator = Annotator.load("segmentation", tmp_path / "d.pth", device="cpu")
    with pytest.raises(InputError, match="too elongated"):
        annotator.prepare(np.zeros((10, 400, 3), np.uint8))


def test_the_list_in_out_keeps_conditions_that_are_files(dpt, tmp_path):
    write_demo_data(tmp_path / "demo", n_train=3, n_val=2, size=32)
    root, out = tmp_path / "demo" / "ADEChallengeData2016", tmp_path / "o"
    splits = open_splits("ade20k", root)
    tree = MapTree(kind="depth", suffix=".png", data=root, out=out)
    with pytest.raises(InputError, match="pass --out DIR"):
        MapTree(kind="depth", suffix=".png", data=root).check_place("ade20k", splits)
    annotator = Annotator.load("depth", dpt, device="cpu")
    sidecars = []
    for name, split in splits.items():
        shard = PlannedShard(split=name, index=0, start=0, stop=len(split))
        task = ShardTask(shard=shard, plan_hash="p", samples=split)
        sidecars.append(annotate_shard(task, annotator=annotator, tree=tree, config=AnnotateConfig()))
    tree.write_lists(splits, sidecars, splits["train"].label_names)
    for name, split in open_splits("folder", out).items():
        assert split.keys == splits[name].keys
        assert split.conditions == ("segmentation", "depth")
        assert split.label_names == ("unlabelled", *SEGMENTATION_NAMES)
        mine, theirs = (s.read(0, 16, conditions=("segmentation",)) for s in (split, splits[name]))
        np.testing.assert_array_equal(mine.conditions["segmentation"], theirs.conditions["segmentation"])
        assert mine.label == theirs.label


class Marker:
    """Creates a file in the current folder when it is unpickled."""

    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_no_named_or_cached_weights_are_executed(dpt, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    cached = (
        tmp_path / "cache" / "hub" / "checkpoints" / Path(get_model_weights("deeplabv3_resnet101").DEFAULT.url).name
    )
    folder = tmp_path / "folder"
    shutil.copytree(dpt, folder)
    (folder / "model.safetensors").unlink()
    cached.parent.mkdir(parents=True)
    for path in (tmp_path / "w.pth", cached, folder / "pytorch_model.bin"):
        torch.save({"model": {"a": torch.ones(1)}, "b": Marker()}, path, _use_new_zipfile_serialization=form == "zip")
    for kind, path in (
        ("segmentation", tmp_path / "w.pth"),
        ("segmentation", find_model("segmentation", "deeplabv3_resnet101")),
        ("depth", folder),
    ):
        with pytest.raises(InputError, match=r"it names \w+\.system, which no weights need"):
            Annotator.load(kind, path, device="cpu")
    assert not (tmp_path / "executed").exists()


def test_plain_weights_in_a_pickle_are_loaded(dpt, tmp_path):
    from safetensors.torch import load_file

    shutil.copytree(dpt, tmp_path / "m")
    torch.save(load_file(dpt / "model.safetensors"), tmp_path / "m" / "pytorch_model.bin")
    (tmp_path / "m" / "model.safetensors").unlink()
    picture_HW3 = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    one, two = (Annotator.load("depth", folder, device="cpu") for folder in (dpt, tmp_path / "m"))
    assert torch.equal(one.infer([one.prepare(picture_HW3)]), two.infer([two.prepare(picture_HW3)]))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_model_with_code_is_refused_without_a_prompt(dpt, tmp_path, monkeypatch, file):
    """transformers asks on the terminal whether to run it, which `yes |` answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda _: "y")
    shutil.copytree(dpt, tmp_path / "m")
    about = json.loads((tmp_path / "m" / file).read_text())
    own = {"AutoConfig": "own.Own", "AutoModelForDepthEstimation": "own.Own", "AutoImageProcessor": "own.Own"}
    (tmp_path / "m" / file).write_text(json.dumps({**about, "model_type": "own", "auto_map": own}))
    (tmp_path / "m" / "own.py").write_text("open('executed', 'w')")
    with pytest.raises(InputError, match=rf"{file} names code of its own \(auto_map\), which is never run"):
        Annotator.load("depth", tmp_path / "m", device="cpu")
    (tmp_path / "m" / file).write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deep"):
        Annotator.load("depth", tmp_path / "m", device="cpu")
    assert not (tmp_path / "executed").exists()


def test_names_of_labels_replace_their_own_file_alone(tmp_path, write_images):
    splits = open_splits("folder", write_images(tmp_path / "d", {"train": 2, "val": 1}))
    tree, file = (
        MapTree(kind="segmentation", suffix=".png", data=tmp_path / "d"),
        tmp_path / "d/segmentation_labels.txt",
    )
    tree.write_lists(splits, [], ("sky\u2028above", "", "wall"))
    assert open_splits("folder", tmp_path / "d")["val"].label_names == ("sky above", "label 1", "wall")
    tree.write_lists(splits, [], ("sea",))
    assert file.read_text() == "sea\n"
    tree.write_lists(splits, [], ())
    assert not file.exists()
    file.write_text("mine\n")
    with pytest.raises(UserError, match=r"segmentation_labels\.txt is there"):
        tree.check_empty(splits, ("sea",))
    assert file.read_text() == "mine\n"
