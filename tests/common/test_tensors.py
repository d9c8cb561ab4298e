"""Tensors that carry the sha256 of their content."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runkit.errors import UserError
from runkit.tensors import check_finite, first_non_finite, load_tensors, pack_tensors, save_tensors

TENSORS = {
    "b": torch.arange(12.0).view(3, 4).T,  # not contiguous
    "a": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "used": torch.tensor([True, False]),
    **{
        str(dtype): torch.arange(3).to(dtype)
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16, torch.float64)
    },
}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_saved_is_read_by_us_and_by_safetensors(tmp_path):
    save_tensors(tmp_path / "x", TENSORS)
    assert same(load_tensors(tmp_path / "x"), TENSORS)
    assert same(load_file(tmp_path / "x"), TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    save_tensors(tmp_path / "x", TENSORS)
    save_tensors(tmp_path / "y", dict(reversed(TENSORS.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes() == pack_tensors(TENSORS)
    packed = {pack_tensors(TENSORS, {"format": "pt", "other": "ü"}) for _ in range(20)}
    assert len(packed) == 1
    (tmp_path / "z").write_bytes(packed.pop())
    assert same(load_tensors(tmp_path / "z"), TENSORS)
    assert same(load_file(tmp_path / "z"), TENSORS)


def test_no_flipped_bit_changes_a_tensor_unnoticed(tmp_path):
    save_tensors(tmp_path / "x", TENSORS)
    whole = (tmp_path / "x").read_bytes()
    refused = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        (tmp_path / "x").write_bytes(content)
        try:
            assert same(load_tensors(tmp_path / "x"), TENSORS), place  # in the key of the sha256, or in a space
        except UserError:
            refused += 1
    assert refused > 0.8 * len(whole)
    size = int.from_bytes(whole[:8], "little")
    (tmp_path / "x").write_bytes(whole[: 8 + size] + bytes(len(whole) - 8 - size))
    with pytest.raises(UserError, match="its content and its sha256 differ"):
        load_tensors(tmp_path / "x")


def test_files_without_a_sha256_are_read(tmp_path):
    plain = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(plain, tmp_path / "x", metadata={"format": "pt"})
    assert same(load_tensors(tmp_path / "x"), TENSORS)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 100, b"{}"])
def test_what_is_no_safetensors_file_is_named(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="x cannot be read"):
        load_tensors(tmp_path / "x")
    with pytest.raises(UserError, match="y is missing"):
        load_tensors(tmp_path / "y")


def test_a_place_that_cannot_be_written_is_named_and_left_as_it_was(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="x cannot be written"):
        save_tensors(tmp_path / "x", TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(tmp_path, value):
    large = torch.full((100,), 3e38)  # whose sum overflows
    assert first_non_finite({**TENSORS, "large": large}) is None
    bad = {"good": large, "bad": torch.tensor([1.0, value])}
    assert first_non_finite(bad) == "bad"
    with pytest.raises(UserError, match="weights: bad has values that are NaN or infinite"):
        check_finite(bad, tmp_path / "weights")
