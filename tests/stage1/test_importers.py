"""Released tokenizers of several projects: codes equal those of the published code, and every tensor is accounted for.

tests/data/released has the codes and pixels that the published code computed for a small network of each kind, with
the weights and pictures of the recipes below, and the names and shapes of its tensors.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from imagepriors.cli import main
from runkit.weights import load_weights
from vqgan.checkpoint import load_model, trained_against
from vqgan.compat.tokenizers import import_tokenizer
from vqgan.errors import InputError

RELEASED = Path(__file__).parents[1] / "data" / "released"
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
KINDS = ("cosmos-8", "cosmos-16", "ibq", "llamagen", "magvit2", "maskgit")


def golden(kind):
    return json.loads((RELEASED / f"{kind}.json").read_text())


def weights(shapes):
    """Draw the weights of a recipe: the names in order, one generator; matrices are scaled by their inputs."""
    rng, drawn = np.random.RandomState(0), {}
    for name in sorted(shapes):
        value = rng.standard_normal(shapes[name])
        if len(shapes[name]) == 1:
            value = 0.1 * value + name.endswith("weight")
        elif "embed" not in name:
            value = value / np.sqrt(np.prod(shapes[name][1:]))
        drawn[name] = torch.from_numpy(value.astype(np.float32))
    return drawn


def pictures(side=32):
    """Two pictures of coloured squares, in [-1, 1]."""
    squares = np.random.RandomState(1).rand(2, 3, side // 4, side // 4).repeat(4, 2).repeat(4, 3)
    return torch.from_numpy((squares * 2 - 1).astype(np.float32))


def write_scripted(tensors, path):
    """Write a TorchScript archive of modules with these tensors; those of constants are buffers."""
    root = nn.Module()
    for name, value in tensors.items():
        module, *parts = root, *name.split(".")
        for part in parts[:-1]:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        if value.is_floating_point() and "patcher" not in name:
            module.register_parameter(parts[-1], nn.Parameter(value))
        else:
            module.register_buffer(parts[-1], value)
    torch.jit.save(torch.jit.script(root), path)


def release(folder, kind, change=lambda state: None):
    """Write a checkpoint as its project publishes it."""
    state = weights(golden(kind)["shapes"])
    if kind.startswith("cosmos"):
        haar = torch.full((2,), 0.7071067811865476)
        state |= {"encoder.patcher.wavelets": haar, "decoder.unpatcher.wavelets": haar.clone()}
        state["quantizer._levels"] = torch.tensor([8, 8, 8, 5, 5, 5])
        change(state)
        write_scripted(state, folder / "released.pt")
        return folder / "released.pt"
    if kind in ("ibq", "magvit2"):  # the averages count; the weights beside them are of another step
        averages = {f"model_ema.{name.replace('.', '')}": value for name, value in state.items()}
        state = {name: value + 1 for name, value in state.items()} | averages
        state |= {"model_ema.decay": torch.tensor(0.999), "loss.discriminator.main.0.weight": torch.zeros(2)}
    change(state)
    nested = {"llamagen": {"ema": state, "model": {"encoder": torch.zeros(1)}}, "maskgit": state}
    torch.save(nested.get(kind, {"state_dict": state}), folder / "released.pt")
    return folder / "released.pt"


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_pixels_equal_those_of_the_published_code(tmp_path, kind):
    expected = golden(kind)
    path = release(tmp_path, kind)
    report = import_tokenizer(path, tmp_path / "out")
    assert report["kind"] == kind.split("-")[0]
    stored = load_weights(path)
    assert report["tensors"] + len(report["dropped"]) == len(stored)
    assert set(report["dropped"]) < stored.keys()
    _, model = load_model(tmp_path / "out")
    with torch.inference_mode():
        codes = model.encode(pictures())
        pixels = model.decode(codes)
    assert codes.flatten().tolist() == expected["codes"]
    shown = pixels[:, :, ::11, ::11].flatten()
    torch.testing.assert_close(shown, torch.tensor(expected["pixels"]), rtol=1e-4, atol=1e-4)


def test_an_imported_tokenizer_says_what_it_was_trained_against_where_that_is_public(tmp_path):
    losses = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        import_tokenizer(release(tmp_path / kind, kind), tmp_path / kind / "out")
        losses[kind] = trained_against(tmp_path / kind / "out")
    known = dict.fromkeys(("ibq", "llamagen", "magvit2"), "lpips-vgg")
    assert losses == {**known, **dict.fromkeys(("cosmos-8", "cosmos-16", "maskgit"))}


def test_a_tokenizer_can_be_imported_for_pictures_of_another_side(tmp_path):
    found = import_tokenizer(release(tmp_path, "ibq"), tmp_path / "out", resolution=64)["config"]
    assert (found.resolution, found.attn_resolutions, found.grid) == (64, (32,), (32, 32))
    expected = golden("cosmos-8")
    import_tokenizer(release(tmp_path, "cosmos-8"), tmp_path / "small", resolution=32)
    config, model = load_model(tmp_path / "small")
    assert (config.model.factor, config.model.grid) == (8, (4, 4))
    with torch.inference_mode():
        assert model.encode(pictures()).flatten().tolist() == expected["codes"]
    with pytest.raises(InputError, match="resolution is 100: choose a multiple of 8"):
        import_tokenizer(release(tmp_path, "cosmos-8"), tmp_path / "odd", resolution=100)


def test_pictures_become_shards_with_an_imported_tokenizer(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        pixels = np.random.RandomState(i).randint(0, 256, (300, 300, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    path, out, photos, shards = (str(tmp_path / name) for name in ("released.pt", "out", "photos", "shards"))
    release(tmp_path, "ibq")
    assert main(["import-tokenizer", path, out, "--kind", "ibq"]) == 0
    printed = capsys.readouterr().out
    assert "ibq, 256×256 rgb → 128×128 codes of 64" in printed
    assert "1 of loss" in printed
    release(tmp_path, "maskgit")
    assert main(["import-tokenizer", path, f"{out}2"]) == 0
    assert main(["tokenize", "--data", photos, "--tokenizer", f"{out}2", "--out", shards, "--views", "1"]) == 0
    assert main(["evaluate-tokenizer", "--tokenizer", f"{out}2", "--data", photos, "--frechet", "none"]) == 0
    assert "codes            128×128 of 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("llamagen", lambda state: state.pop("quant_conv.bias"), "quant_conv.bias is missing"),
        ("llamagen", lambda state: state.update(extra=torch.zeros(1)), "extra has no place"),
        ("llamagen", lambda state: state["quant_conv.bias"].fill_(float("nan")), "bias has values that are NaN"),
        ("maskgit", lambda state: state.update({"decoder.conv_out.bias": torch.zeros(4)}), r"is \(4,\), not \(3,\)"),
        ("maskgit", lambda state: state.pop("decoder.conv_out.bias"), "decoder.conv_out.bias is missing"),
        ("maskgit", lambda state: state.update({"encoder.conv_in.weight": torch.zeros(40, 3, 3, 3)}), "ch_mult is"),
        ("magvit2", lambda state: state.pop("model_ema.encoderconv_inweight"), "the moving average of encoder.conv_in"),
        ("cosmos-8", lambda state: state.pop("decoder.conv_in.weight"), "is missing: pass autoencoder.jit"),
        ("cosmos-8", lambda state: state["encoder.patcher.wavelets"].fill_(1.0), "not that of the Haar transform"),
        ("cosmos-8", lambda state: state.pop("quantizer._levels"), "quantizer._levels is missing"),
        ("cosmos-8", lambda state: state.pop("encoder.down.0.downsample.conv.bias"), "downsample.conv.bias is missing"),
        ("cosmos-8", lambda state: state.update({"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)}), "has 3 inputs"),
        ("ibq", lambda state: state.update({"model_ema.quantizeembeddingweight": torch.zeros(9)}), r"shape \(9,\)"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path, kind, change, words):
    with pytest.raises(InputError, match=words):
        import_tokenizer(release(tmp_path, kind, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kinds_are_told_apart(tmp_path):
    path = release(tmp_path, "llamagen")
    with pytest.raises(InputError, match="is no maskgit tokenizer, but a llamagen one"):
        import_tokenizer(path, tmp_path / "out", kind="maskgit")
    torch.save({"blocks.0.weight": torch.zeros(1), "head.bias": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"no known kind \(compvis, .*\): its tensors are blocks, head"):
        import_tokenizer(tmp_path / "other.pt", tmp_path / "out")
    torch.save(weights(golden("ibq")["shapes"]), tmp_path / "twins.pt")  # without averages
    with pytest.raises(InputError, match="may be of ibq or compvis, whose tensors have the same names"):
        import_tokenizer(tmp_path / "twins.pt", tmp_path / "out")
    found = {
        kind: import_tokenizer(tmp_path / "twins.pt", tmp_path / kind, kind=kind)["config"]
        for kind in ("ibq", "compvis")
    }
    assert {kind: config.quantizer for kind, config in found.items()} == {"ibq": "ibq", "compvis": "vq"}
    assert found["compvis"].norm_groups == 32


def test_a_cut_file_and_a_text_file_are_named(tmp_path):
    path = release(tmp_path, "maskgit")
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:-1000])
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    for name in ("cut.pt", "text.pt"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            import_tokenizer(tmp_path / name, tmp_path / "out")
