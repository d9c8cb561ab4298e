"""The tab that shows rows of shards, their statistics and their failures."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny_shards import SPEC, make_dataset

from codeshards.format import ShardDataset
from imagepriors.studio.contents import Contents
from imagepriors.studio.finding import FindRequest, find
from imagepriors.studio.pictures import read_picture
from imagepriors.studio.rows import RowsRequest, row_pictures, rows
from imagepriors.studio.statistics import AboutRequest, StatisticsRequest, about, statistics
from runkit.errors import UserError


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Shards with captions, of which two samples failed, and their train rows in planned order."""
    folder = tmp_path_factory.mktemp("captioned") / "shards"
    spec = replace(SPEC, carried={"caption": "string"})
    content = make_dataset(folder, rows=30, shard_rows=8, fails=["sample1-0004", "sample1-0017"], spec=spec)
    return Contents.open([folder]), content["train"]


def run_job(function, contents, request):
    events = []
    last = function(contents, request, lambda done, total, **more: events.append((done, total, more)))
    return last, events


def test_rows_of_several_shards_have_all_columns(captioned):
    contents, content = captioned
    wanted = [1, 9, 20, 27]
    found = rows(contents, RowsRequest(shards="shards", split="train", indices=wanted, decoded=False, columns=True))
    assert found["total"] == len(content["keys"]) == 28
    assert [row["index"] for row in found["rows"]] == wanted
    for row in found["rows"]:
        index = row["index"]
        assert row["key"] == content["keys"][index]
        assert row["codes"] == content["codes_NHW"][index].reshape(-1).tolist()
        assert row["label"] == (label if (label := content["labels"][index]) >= 0 else None)
        assert row["carried"] == {"caption": f"caption of {row['key']}"}
        assert row["sequences"]["codes_row_major"] == row["codes"]
        assert sorted(row["sequences"]["codes_zcurve"]) == sorted(row["codes"])
        assert row["sequences"]["scale_2"] == content["scales"][2][index].reshape(-1).tolist()


def test_pictures_and_conditions_are_those_of_the_tokenizers(contents):
    _, events = run_job(row_pictures, contents, RowsRequest(shards="shards", split="val", first=1, count=5))
    pictures = [picture for *_, more in events for picture in more["pictures"]]
    assert [picture["index"] for picture in pictures] == [1, 2, 3, 4, 5]
    assert [done for done, *_ in events] == [4, 5]
    table = contents.dataset("shards").table("val", contents.dataset("shards").shards("val")[0])
    for name, column in (("tokenizer", "codes_row_major"), ("tokenizer-depth", "cond_depth")):
        codes = np.array(table[column].to_pylist())[1:6].reshape(5, *contents.tokenizer(name).config.grid)
        given = [one["picture"] if name == "tokenizer" else one["conditions"]["depth"] for one in pictures]
        for uri, expected in zip(given, contents.tokenizer(name).decode(codes), strict=True):
            difference = np.asarray(read_picture(uri), int) - np.asarray(expected)
            assert np.abs(difference).max() <= 3  # a network rounds otherwise in a batch of another size


@pytest.mark.parametrize(
    ("values", "matches"),
    [
        ({"label": 1}, lambda key, label: label == 1),
        ({"label": -1}, lambda key, label: label == -1),
        ({"text": "CAPTION of sample1-001"}, lambda key, label: key.startswith("sample1-001")),
        ({"text": "3", "label": 0}, lambda key, label: "3" in key and label == 0),
        ({"view": 1}, lambda key, label: False),
    ],
)
def test_a_filter_finds_what_a_look_at_all_rows_finds(captioned, values, matches):
    contents, content = captioned
    last, events = run_job(find, contents, FindRequest(shards="shards", split="train", **values))
    pairs = enumerate(zip(content["keys"], content["labels"], strict=True))
    assert last == {"indices": [index for index, pair in pairs if matches(*pair)], "complete": True}
    assert events[-1][:2] == (28, 28)
    assert len(events) == 4  # one shard after the other


def test_a_key_ends_the_search_and_many_rows_are_capped(captioned, monkeypatch):
    contents, content = captioned
    request = FindRequest(shards="shards", split="train", key=content["keys"][9])
    last, events = run_job(find, contents, request)
    assert last["indices"] == [9]
    assert len(events) == 2
    monkeypatch.setattr("imagepriors.studio.finding._MOST", 5)
    last, _ = run_job(find, contents, FindRequest(shards="shards", split="train"))
    assert last == {"indices": [0, 1, 2, 3, 4], "complete": False}


def test_a_filter_reads_its_columns_only(captioned, monkeypatch):
    contents, _ = captioned
    read, batches = [], ShardDataset.batches

    def noted(self, split, columns, *arguments, **options):
        read.extend(columns)
        return batches(self, split, columns, *arguments, **options)

    monkeypatch.setattr(ShardDataset, "batches", noted)
    run_job(find, contents, FindRequest(shards="shards", split="train", label=1))
    assert read == ["label"]
    run_job(find, contents, FindRequest(shards="shards", split="train", text="a"))
    assert set(read) == {"label", "key", "caption"}


def test_statistics_are_counted_once(captioned):
    contents, content = captioned
    request = StatisticsRequest(shards="shards", split="train")
    found, events = run_job(statistics, contents, request)
    assert events[-1][:2] == (28, 28)
    codes = {one["name"]: one for one in found["codes"]}
    assert codes["image"]["used"] == len(np.unique(content["codes_NHW"]))
    assert codes["image"]["curve"][0][1] == Counter(content["codes_NHW"].reshape(-1).tolist()).most_common(1)[0][1]
    assert sum(occurrences for _, occurrences in codes["image"]["curve"]) == 28 * 16
    third = Counter(content["codes_NHW"][:, 0, 2].tolist()).values()
    expected = math.log2(28) - sum(count * math.log2(count) for count in third) / 28
    assert codes["image"]["entropies"][2] == pytest.approx(expected, abs=1e-4)
    assert codes["cond_segmentation"]["grid"] == [2, 3]
    assert found["labels"] == sorted([label, count] for label, count in Counter(content["labels"].tolist()).items())
    assert run_job(statistics, contents, request) == (found, [])


def test_failures_are_named_with_their_reason(captioned, contents):
    found = about(captioned[0], AboutRequest(shards="shards"))
    (kind,) = found["failures"]
    assert (kind["reason"], kind["count"]) == ("a broken file", 2)
    assert {one["key"] for one in kind["samples"]} == {"sample1-0004", "sample1-0017"}
    assert [(split["rows"], split["failures"]) for split in found["splits"]] == [(28, 2), (3, 0)]
    assert ["caption", "string"] in found["columns"]
    assert about(contents, AboutRequest(shards="shards"))["failures"] == []


def test_what_does_not_fit_is_refused(captioned):
    with pytest.raises(UserError, match="no split '\\.\\./val'"):
        rows(captioned[0], RowsRequest(shards="shards", split="../val"))
    with pytest.raises(UserError, match="ascending"):
        RowsRequest(shards="shards", split="val", indices=[3, 1])


def test_a_person_filters_rows_and_reads_one(page, contents):
    dataset = contents.dataset("shards")
    labels = np.concatenate([batch["label"] for batch in dataset.batches("train", ["label"])])
    keys = np.concatenate([batch["key"] for batch in dataset.batches("train", ["key"])])
    label = int(labels[5])
    tab = page.locator("#shards")
    page.get_by_role("tab", name="Shards").click()
    tab.get_by_label("Split").select_option("train")
    tab.get_by_text("Index 0 to 23 of 24 rows").wait_for()
    tab.get_by_label("Class").first.select_option(str(label))
    tab.get_by_role("button", name="Filter", exact=True).click()
    count = int((labels == label).sum())
    tab.get_by_text(f"1 to {count} of {count} rows that match").wait_for()
    tab.locator(".row img").nth(4 * count - 1).wait_for()  # the picture and three conditions of the last row
    shown = tab.locator(".row").evaluate_all("all => all.map(one => Number(one.dataset.index))")
    assert shown == np.flatnonzero(labels == label).tolist()
    tab.get_by_label("Index or key of a row").fill(str(keys[7]))
    page.keyboard.press("Enter")
    tab.get_by_text("Index 0 to 23 of 24 rows").wait_for()
    tab.locator("[data-index='7']:focus").wait_for()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("heading", name=str(keys[8])).wait_for()
    assert dialog.get_by_text(contents.dataset("shards").class_names[labels[8]]).is_visible()
    assert dialog.locator("details").count() == 8  # five orders and three conditions
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    tab.get_by_label("Index or key of a row").fill("no such key")
    page.keyboard.press("Enter")
    tab.get_by_text("No row of train has the key no such key").wait_for()


def test_a_person_reads_statistics_and_failures(page):
    tab = page.locator("#shards")
    page.get_by_role("tab", name="Shards").click()
    tab.get_by_role("button", name="Statistics").click()
    tab.get_by_role("heading", name="Segmentation").wait_for()
    assert tab.get_by_text("in 6 rows").count() == 4
    heatmap = tab.get_by_role("img", name="Image: entropy").first
    heatmap.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert tab.get_by_text("Row 2, column 1:").is_visible()
    tab.get_by_role("button", name="Failures").click()
    tab.get_by_text("No failures: all 30 samples have rows.").wait_for()
    tab.get_by_role("button", name="Dataset").click()
    tab.get_by_text("row_major, spiral_out, zcurve, subsample, alternate").wait_for()
    assert tab.get_by_role("cell", name="cond_pose").is_visible()
