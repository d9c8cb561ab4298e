"""A tokenizer's fingerprint: a function of architecture and tensors, that stored ones outlive."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqgan.checkpoint import architecture_of, fingerprint, save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.model import VQGAN
from vqgan.tokenizer import Tokenizer

MODEL = ModelConfig(
    resolution=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), z_channels=4, embed_dim=4,
    codebook_size=16,
)  # fmt: skip
GOLDEN = "7c8f394fa8963807"
"""Of this tokenizer by the code of 28 November, whose files had no metadata."""
WITH_METADATA = "cfdf2e194ffe5aa3"
"""Of the same tokenizer by the code of 29 November, which hashed the sha256 in the file's metadata too."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = VQGAN(MODEL)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel(), dtype=torch.float32).reshape(tensor.shape) / 64)
    save_model(tmp_path / "tokenizer", TrainConfig(model=MODEL, loss=LossConfig(perceptual="none")), model)
    return tmp_path / "tokenizer"


def test_it_is_that_of_earlier_versions_however_the_weights_were_saved(folder: Path) -> None:
    assert fingerprint(folder) == GOLDEN
    weights = load_file(folder / "model.safetensors")
    for metadata in (None, {"format": "pt"}, {"made": "elsewhere"}):
        save_file(dict(reversed(weights.items())), folder / "model.safetensors", metadata=metadata)
        assert fingerprint(folder) == GOLDEN


def test_a_stored_one_of_an_earlier_rule_is_kept(folder: Path) -> None:
    assert fingerprint(folder, WITH_METADATA) == WITH_METADATA
    assert fingerprint(folder, GOLDEN) == fingerprint(folder, "0123456789abcdef") == GOLDEN
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    assert fingerprint(folder, WITH_METADATA) == WITH_METADATA
    loaded = Tokenizer.load(folder, device="cpu", known=WITH_METADATA)
    assert (loaded.fingerprint, Tokenizer.load(folder, device="cpu").fingerprint) == (WITH_METADATA, GOLDEN)


def test_other_weights_and_other_names_of_them_have_another(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "quantize.embedding.weight"
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors")
    assert fingerprint(folder, GOLDEN) != GOLDEN
    save_file({"x": weights.pop(name), **weights}, folder / "model.safetensors")
    assert fingerprint(folder, WITH_METADATA) not in (GOLDEN, WITH_METADATA)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Later(ModelConfig):
    """The config of a later version."""

    shape: str = "square"
    """A new field."""
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    """Another."""


def test_a_new_field_counts_only_where_it_is_not_the_default() -> None:
    given = dataclasses.asdict(MODEL)
    assert architecture_of(Later(**given)) == architecture_of(MODEL)
    assert architecture_of(Later(**given, shape="round")) != architecture_of(MODEL)
    assert architecture_of(Later(**given, table={"a": 1})) != architecture_of(MODEL)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
def test_every_field_of_today_counts(field: str) -> None:
    other = {
        "modality": "pose", "resolution": 16, "ch": 16, "ch_mult": (1, 4), "num_res_blocks": 2,
        "attn_resolutions": (), "z_channels": 8, "embed_dim": 8, "quantizer": "l2", "codebook_size": 17,
        "geometry": "pad",
    }  # fmt: skip
    if field in ("kind", "plugin_grid", "plugin_fingerprint"):
        pytest.skip("of a tokenizer of another package, which gives its fingerprint")
    changes = {"modality": "segmentation", "n_labels": 2} if field == "n_labels" else {field: other.get(field)}
    if changes.get(field) is None:
        pytest.skip("a later field: it counts where it is not the default")
    assert architecture_of(dataclasses.replace(MODEL, **changes)) != architecture_of(MODEL)
