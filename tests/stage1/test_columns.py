"""Columns beside the images: captions and numbers of every layout, their types, and filters by them."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vqgan.data import Filter, column_types, open_splits, parse_columns
from vqgan.data.columns import infer_type, typed
from vqgan.errors import InputError

ROWS = [
    {"caption": "a cat, asleep", "width": 640, "score": 5.5, "checked": True},
    {"caption": "", "width": 320, "score": None, "checked": False},
    {"caption": "Füchse\nim Schnee", "width": 100, "score": 7.0, "checked": True},
    {"caption": "a dog", "width": 800, "score": 3.25, "checked": None},
]
TYPES = {"caption": "string", "width": "int64", "score": "float64", "checked": "bool"}


def picture(shade):
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


def as_webdataset(root):
    with tarfile.open(root / "train-000000.tar", "w") as tar:
        for i, row in enumerate(ROWS):
            about = {name: value for name, value in row.items() if name != "caption"}
            members = {"png": picture(i), "txt": row["caption"].encode(), "json": json.dumps(about).encode()}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{i:03d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def as_huggingface(root):
    images = [{"bytes": picture(i), "path": None} for i in range(len(ROWS))]
    table = pa.table({"image": images, **{name: [row[name] for row in ROWS] for name in TYPES}})
    pq.write_table(table, root / "train-00000-of-00001.parquet", row_group_size=2)


def as_folder(root):
    for i, row in enumerate(ROWS):
        (root / f"{i}.png").write_bytes(picture(i))
        (root / f"{i}.txt").write_text(f"{row['caption']}\n", encoding="utf-8")
        about = {name: value for name, value in row.items() if name != "caption"}
        (root / f"{i}.json").write_text(json.dumps(about))


def as_list(root):
    for i in range(len(ROWS)):
        (root / f"{i}.png").write_bytes(picture(i))
    columns = {"image": [f"{i}.png" for i in range(len(ROWS))]}
    pq.write_table(pa.table(columns | {name: [row[name] for row in ROWS] for name in TYPES}), root / "images.parquet")


def as_text_list(root):
    as_list(root)
    table = pq.read_table(root / "images.parquet")
    (root / "images.parquet").unlink()
    lines = [",".join(table.column_names)]
    for row in table.to_pylist():
        values = ("" if value is None else str(value) for value in row.values())
        lines.append(",".join(f'"{value}"' if value else "" for value in values))
    (root / "images.csv").write_text("\n".join(lines), encoding="utf-8")


LAYOUTS = {
    "webdataset": as_webdataset, "huggingface": as_huggingface, "folder": as_folder, "list": as_list,
    "csv": as_text_list,
}  # fmt: skip


def opened(root, layout):
    LAYOUTS[layout](root)
    return open_splits(layout if layout in ("webdataset", "huggingface") else "folder", root)


def shade(sample):
    return int(sample.image[0, 0, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_come_with_their_picture_and_their_types(tmp_path, layout):
    splits = opened(tmp_path, layout)
    types = column_types(splits, dict.fromkeys(TYPES))
    assert types == TYPES
    seen = {}
    for split in splits.values():
        for i in range(len(split)):
            sample = split.read(i, 8, columns=types)
            seen[shade(sample)] = dict(sample.columns)
    expected = {i: dict(row) for i, row in enumerate(ROWS)}
    if layout == "csv":
        expected[1]["caption"] = None  # a list without quotes does not tell an empty text from a missing one
    assert seen == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_filter_keeps_the_samples_that_satisfy_it(tmp_path, layout):
    splits = opened(tmp_path, layout)
    kept = Filter.parse("width >= 320 and (score > 5 or not checked)")
    types = column_types(splits, dict.fromkeys(kept.names))
    found = [split.where(kept, types) for split in splits.values()]
    assert sorted(shade(split.read(i, 8)) for split in found for i in range(len(split))) == [0, 1]


@pytest.mark.parametrize("layout", ["webdataset", "folder", "list"])
def test_the_source_hash_covers_carried_columns(tmp_path, layout):
    splits = opened(tmp_path, layout)
    plain, carried = splits["train"].source_hash(), splits["train"].source_hash(("caption",))
    assert plain != carried
    ROWS[0]["caption"], before = "another, longer caption", ROWS[0]["caption"]
    ROWS[3]["caption"], other = "changed", ROWS[3]["caption"]
    try:
        again = opened(tmp_path, layout)
    finally:
        ROWS[0]["caption"], ROWS[3]["caption"] = before, other
    assert again["train"].source_hash(("caption",)) != carried
    assert again["train"].source_hash() == plain


def test_a_misspelt_or_mistyped_column_is_named(tmp_path):
    splits = opened(tmp_path, "webdataset")
    with pytest.raises(InputError, match=r"column 'captoin' has no value in 4 samples \(available: .*caption"):
        column_types(splits, {"captoin": None})
    assert column_types(splits, {"captoin": "string"}) == {"captoin": "string"}
    assert splits["train"].read(0, 8, columns={"captoin": "string"}).columns == {"captoin": None}
    with pytest.raises(InputError, match=r"column caption: '.*' is no int64: choose another type, as in caption:str"):
        splits["train"].read(splits["train"].keys.index("003"), 8, columns={"caption": "int64"})
    (tmp_path / "images.csv").write_text("image,lable\na.png,1\n")
    with pytest.raises(InputError, match="unknown column 'lable', did you mean label"):
        open_splits("folder", tmp_path)


def test_a_broken_text_costs_its_sample_alone(tmp_path):
    as_folder(tmp_path)
    (tmp_path / "0.txt").write_bytes(b"\xff\xfe broken")
    (tmp_path / "1.txt").write_bytes(b"x" * 2_000_000)
    (tmp_path / "2.json").write_text("{broken")
    items = [(split, i) for split in open_splits("folder", tmp_path).values() for i in range(len(split))]
    reasons = {}
    for split, i in items:
        try:
            split.read(i, 8, columns={"caption": "string"})
        except InputError as error:
            reasons[split.keys[i]] = str(error)
        split.read(i, 8)
    assert reasons.keys() == {"0", "1", "2"}
    assert "utf-8" in reasons["0"]
    assert "1,048,576 bytes" in reasons["1"]
    assert "cannot be read as JSON" in reasons["2"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, None], "int64"), ([1, 2.5], "float64"), (["1", "22"], "int64"), (["007", "1"], "string"),
        (["1.5", "2"], "float64"), ([True, False], "bool"), (["true", "false"], "bool"), ([True, 1], "string"),
        (["a", 1], "string"), ([["a"], ["b"]], "string"), ([None, ""], None), ([2**70], "float64"),
        (["0.5", "0"], "float64"), (["-3"], "int64"), (["1e400"], "string"),
    ],
)  # fmt: skip
def test_types_are_inferred_from_values(values, kind):
    assert infer_type(values) == kind
    assert kind is None or all(typed(value, kind) is not None for value in values if value is not None)


def test_values_keep_their_content():
    assert [typed(value, "string") for value in ("  x ", "", 5, [1, "ü"], {"a": None}, None)] == [
        "  x ", "", "5", '[1, "ü"]', '{"a": null}', None
    ]  # fmt: skip
    assert [typed(value, "float64") for value in (1, "2.5", float("nan"), "")] == [1.0, 2.5, None, None]
    for value, kind in ((1.5, "int64"), (True, "int64"), ("x", "float64"), (float("inf"), "float64"), ("yes", "bool")):
        with pytest.raises(ValueError, match="is no"):
            typed(value, kind)


def test_columns_are_written_as_names_with_or_without_types():
    assert parse_columns(["caption, width:int64", "url"]) == {"caption": None, "width": "int64", "url": None}
    for texts, words in ((["a,a"], "each column once"), (["a,,b"], "each column once"), (["a:integer"], "type 'inte")):
        with pytest.raises(InputError, match=words):
            parse_columns(texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width > 200", [True, True, False, True]),
        ("100 < width <= 640", [True, True, False, False]),
        ("score > 5", [True, False, True, False]),
        ("not score > 5", [False, False, False, True]),
        ("score is None or score < 4", [False, True, False, True]),
        ("score is not None", [True, False, True, True]),
        ("'cat' in caption", [True, False, False, False]),
        ("'cat' not in caption", [False, True, True, True]),
        ("width in (640, 100)", [True, False, True, False]),
        ("score not in (5.5, 7.0)", [False, False, False, True]),
        ("width / 3 > 213", [True, False, False, True]),
        ("width * 2 - 40 == 600 or checked", [True, True, True, False]),
        ("caption == ''", [False, True, False, False]),
        ("width > -1", [True] * 4),
    ],
)
def test_filters(text, expected):
    columns = {name: pa.array([row[name] for row in ROWS], kind) for name, kind in TYPES.items()}
    assert Filter.parse(text).mask(columns).to_pylist() == expected


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=20), st.integers(-9, 9))
def test_filters_agree_with_python(rows, bound):
    text = f"a < b and not a == {bound} or b * 2 > a - 3 and a != b"
    columns = {"a": pa.array([a for a, _ in rows]), "b": pa.array([b for _, b in rows])}
    expected = [(a < b and a != bound) or (b * 2 > a - 3 and a != b) for a, b in rows]
    assert Filter.parse(text).mask(columns).to_pylist() == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "width >", "__import__('os').system('x')", "width.real > 1", "[x for x in y]", "lambda: width", "1 < 2",
        "width if width else 1", "width[0] > 1", "f'{width}'", "width ** 9 > 1", "width is 3", "a := 3", "x" * 5000,
        "not " * 1500 + "width", "width in 'abc'", "width & 1", "width > b'x'",
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused(text):
    with pytest.raises(InputError, match="where is"):
        Filter.parse(text)


@pytest.mark.parametrize("text", ["caption > 3", "width + 1", "caption and checked", "width in ('a', 'b')"])
def test_a_filter_of_the_wrong_type_names_the_types(text):
    columns = {name: pa.array([row[name] for row in ROWS], kind) for name, kind in TYPES.items()}
    with pytest.raises(InputError, match=r"cannot be evaluated .* is (string|int64)"):
        Filter.parse(text).mask(columns)
