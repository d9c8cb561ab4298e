"""`imagepriors inspect`: counts, contact sheets, and names of bad files."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from imagepriors.cli import main


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "val"):
        for number in range(6):
            image = root / split / ("a" if number < 4 else "b") / f"{number}.png"
            mask = root / f"{split}_segmentation" / image.parent.name / image.name
            for path, picture in (
                (image, Image.new("RGB", (20 + number, 10), "red")),
                (mask, Image.new("L", (20 + number, 10), number)),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    (root / "train" / "a" / "1.png").write_bytes(b"")
    (root / "train_segmentation" / "a" / "2.png").unlink()
    Image.new("L", (4, 4)).save(root / "train_segmentation" / "a" / "stray.png")
    (root / "val" / "c").mkdir()
    return root


def test_all_defects_are_counted_and_named(data, tmp_path, capsys):
    out = tmp_path / "out"
    (data / "segmentation_labels.txt").write_text("\n".join(f"thing {label}" for label in range(22)))
    assert main(["inspect", "folder", "--data", str(data), "--out", str(out), "--size", "32", "--limit", "0"]) == 0
    text = capsys.readouterr().out
    assert re.search("labels of masks: thing 0, thing 1, .*, thing 19 and 2 more\n", text)
    for words in ("train: 6 samples, 6 decoded, 1 unreadable", "a/1: 1.png", "stray.png", "classes without an image"):
        assert words in text
    train = json.loads((out / "inspection.json").read_text())["splits"]["train"]
    assert train["labels"] == {"a": 4, "b": 2}
    assert train["empty_classes"] == ["c"]
    assert train["conditions"] == {"segmentation": 5}
    assert train["without_condition"] == {"segmentation": ["a/2"]}
    assert list(train["unreadable"]) == ["a/1"]
    assert train["sizes"] == {"width": [20, 23, 25], "height": [10, 10, 10]}


def test_the_contact_sheet_overlays_pictures_with_masks(data, tmp_path):
    out = tmp_path / "out"
    assert main(["inspect", "folder", "--data", str(data), "--out", str(out), "--size", "32"]) == 0
    sheet = np.asarray(Image.open(out / "val.png"))
    assert tuple(sheet[10, 10]) == (255, 0, 0)
    assert tuple(sheet[10, 10 + 34]) == (102, 0, 0)  # label 0 is black with an opacity of three fifths


def test_bad_numbers_and_names_are_refused(data, tmp_path, capsys):
    assert main(["inspect", "folder", "--data", str(data), "--limit", "-1", "--out", str(tmp_path / "o")]) == 2
    assert "limit is -1" in capsys.readouterr().err
    assert main(["inspect", "mnist", "--data", str(data), "--out", str(tmp_path / "o")]) == 2
    assert "choose one of" in capsys.readouterr().err
