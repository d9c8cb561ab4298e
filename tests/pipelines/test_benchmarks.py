"""The benchmarks run and compare like with like; their figures are no matter of a test."""

import json

import pytest
from PIL import Image

from imagepriors.cli import main

NAMES = ["torchvision ImageFolder", "imagepriors, folders", "imagepriors, ImageNet's tar of tars, in place"]


def test_decode_compares_the_same_photos(tmp_path, capsys):
    for number in range(12):
        path = tmp_path / "photos" / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth = Image.linear_gradient("L").resize((400 + number, 300)).rotate(30 * number)
        Image.merge("RGB", (smooth, smooth.rotate(90), smooth)).save(path)
    argv = ["bench", "decode", "--data", str(tmp_path / "photos"), "--repeats", "1", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    table = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "decode-cpu.json").read_text())
    assert found["images"] == 12
    assert list(found["images_per_s"])[:3] == NAMES
    assert all(name in table for name in NAMES)
    gap = float(table.partition("differ from the rival's by ")[2].split()[0])
    assert gap < 3  # half a pixel's shift at most: the same resize and crop


@pytest.mark.parametrize("argv", [["bench", "decode"], ["bench", "decode", "--data", "/nowhere/at/all"]])
def test_decode_wants_photos(argv, capsys):
    assert main(argv) == 2
    assert "--data" in capsys.readouterr().err
