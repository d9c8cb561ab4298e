"""The benchmarks run and compare like with like; tests do not check their figures."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codeshards.format import ShardDataset
from priorbench import decode, harness, loader, peers, processes, readme, scaling, scaling_parts, shards, tokenize
from priorbench.__main__ import main
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.errors import InputError
from vqgan.model import VQGAN

NAMES = ["torchvision ImageFolder", "imagepriors, folders", "imagepriors, ImageNet's tar of tars, in place"]
RANDOM_ROWS = loader.CONTENDERS["numpy memory map, random rows (the limit)"]


@pytest.mark.parametrize("place", ["class{}", ".", "deep/class{}"])
def test_decode_compares_the_same_photos(place, tmp_path, capsys):
    for number in range(12):
        path = tmp_path / "photos" / place.format(number % 3) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth = Image.linear_gradient("L").resize((400 + number, 300)).rotate(30 * number)
        Image.merge("RGB", (smooth, smooth.rotate(90), smooth)).save(path)
    argv = ["decode", "--data", str(tmp_path / "photos"), "--repeats", "1", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    table = capsys.readouterr().out
    found = json.loads(harness.result_path(tmp_path / "out", "decode", ".json").read_text())
    assert table.strip() == harness.markdown(found).strip()
    assert "12 photos of --data" in found["text"]
    assert set(NAMES) < set(found["figures"]["images_per_s"])
    assert all(name in table for name in NAMES)
    assert found["figures"]["grey_levels"] < 3  # half a pixel's shift at most: the same resize and crop


def test_decode_renders_scenes_without_photos(tmp_path):
    table = decode.run(1, out=tmp_path, images=6)
    assert "6 rendered scenes" in table
    assert "--data" not in table


def test_decode_requires_photos(tmp_path, capsys):
    for data in (tmp_path / "nowhere", tmp_path):
        assert main(["decode", "--data", str(data)]) == 2
        assert "--data" in capsys.readouterr().err


def test_photos_are_jpegs_in_class_folders(tmp_path):
    found = sorted(harness.photos(tmp_path, 3).glob("*/*.jpg"))
    assert len(found) == 3
    with Image.open(found[0]) as image:
        assert image.size == (500, 375)
    assert found[0].stat().st_size > 50_000  # a photo's bytes: grain is in it


def test_ratios_are_taken_within_rounds():
    assert harness.ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == "3 (2–4)"
    assert harness.ratio([3.2], [2.0]) == "1.6 (1 round)"
    assert harness.ratio([1.0, 9.0], [0.5]) == "2 (1 round)"  # one died after the first
    assert harness.median([3, 1, 2]) == 2.0


def save(out, name="things", headlines=None, **changes):
    table = harness.table_of(["", "× other"], [["ours", "2.5"], ["other", "1"]], headlines or {"things": "2.5"})
    report = {
        "command": "python -m priorbench things", "text": "What was measured.", "figures": {"seconds": [1.0, 2.5]},
    }  # fmt: skip
    return harness.save(out, name, table, **{**report, **changes})


def test_tables_are_generated_from_report_files(tmp_path):
    table = save(tmp_path / "new", packages=("numpy", "torch"))
    found = json.loads(harness.result_path(tmp_path / "new", "things", ".json").read_text())
    assert found["figures"] == {"seconds": [1.0, 2.5]}
    assert list(found["versions"]) == ["numpy", "torch"]
    assert harness.markdown(found) == table
    assert "| ours | 2.5 |" in table.splitlines()
    assert "`python -m priorbench things`" in table


def test_tables_and_claims_of_documents_are_those_of_the_results(tmp_path):
    table, device = save(tmp_path), harness.result_path(tmp_path, "things", "").name.removeprefix("things-")
    save(tmp_path, "others", headlines={"others, over a": "3 (2–4)", "others, over b": "5"})
    text = f"a\n<!-- table things-{device} -->\nold\n<!-- end -->\nb\n<!-- claims {device} -->\n<!-- end -->\nc\n"
    filled = readme.with_tables(text, tmp_path)
    assert filled.startswith(f"a\n<!-- table things-{device} -->\n{table.strip()}\n<!-- end -->\nb\n")
    here = harness.machine()
    assert filled.endswith(f"| things | 2.5 | `python -m priorbench things` | {here} |\n<!-- end -->\nc\n")
    assert f"| others | 3 (2–4) over a<br>5 over b | `python -m priorbench things` | {here} |" in filled
    assert "old" not in filled
    assert readme.with_tables(filled, tmp_path) == filled


@pytest.mark.parametrize("block", ["table unknown-cpu", "claims abacus"])
def test_a_report_that_does_not_exist_is_refused(block, tmp_path):
    with pytest.raises(FileNotFoundError):
        readme.with_tables(f"<!-- {block} -->\n<!-- end -->", tmp_path)


def test_missing_rivals_are_named_before_anything_runs(monkeypatch, tmp_path):
    peers.require("json")
    monkeypatch.setattr(loader, "RIVALS", ("json", "no_such_loader"))
    with pytest.raises(InputError, match=r"\(no_such_loader\).*make bench"):
        loader.run(1, out=tmp_path)


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_tables_and_headlines_are_those_of_the_figures(path):
    """A report that was edited by hand, or measured before a change of its table, is measured again."""
    assert readme.tabulated(path) == json.loads(path.read_text())


def test_all_rounds_are_kept_and_failures_are_named(tmp_path):
    reports = []

    def measure(name):
        if name == "weak" and reports:
            raise processes.ContenderError("killed by signal 9")
        if name == "stillborn":
            raise processes.ContenderError("no memory")
        return {"s": 2.0 if name == "ours" else 4.0, "floor": len(reports)}

    def report(found):
        reports.append({name: list(of_one) for name, of_one in found.items()})
        return f"{len(reports)} reports"

    result = harness.run_rounds(
        "bench", ["ours", "weak", "rare", "stillborn"], measure, report, 3, lambda one: 1 if one == "rare" else 3
    )
    assert result == "3 reports"
    assert [len(found["ours"]) for found in reports] == [1, 2, 3]
    assert reports[-1]["weak"] == [{"s": 4.0, "floor": 0}]  # what it finished counts
    assert reports[-1]["stillborn"] == [{"failed": "no memory"}]
    assert len(reports[-1]["rare"]) == 1
    assert harness.failure(reports[-1]["stillborn"]) == "failed: no memory"
    assert list(harness.finished(reports[-1])) == ["ours", "weak", "rare"]
    assert harness.best_floor(reports[-1].values()) == 2
    assert harness.table_of(["", "a", "b"], [["weak", "failed"]], {}).rows == [["weak", "failed", ""]]


def test_the_reason_of_a_failed_process_is_reported(tmp_path):
    with pytest.raises(processes.ContenderError, match="KeyError: 'no_such_part'"):
        processes.spawn("scaling_parts", "no_such_part", "{}")
    with pytest.raises(processes.ContenderError, match="exit code 1"):
        processes.spawn("no_such_suite")
    with processes.Server("no_such_suite") as server:
        for _ in range(2):
            with pytest.raises(processes.ContenderError, match="exit code 1"):
                server.ask(batch=1)


def test_servers_continue_after_a_failed_request(monkeypatch, capfd):
    monkeypatch.setattr(processes.sys, "stdin", iter(['{"x": 2}\n', '{"x": 0}\n', '{"x": 4}\n']))
    processes.serve(lambda x: 1 / x)
    result = capfd.readouterr()
    ready, first, failed, last = result.out.splitlines()
    assert (ready, processes._answer_in(first, 0), processes._answer_in(last, 0)) == ("ready", 0.5, 0.25)
    assert "Traceback" in result.err
    with pytest.raises(processes.ContenderError, match="ZeroDivisionError"):
        processes._answer_in(failed, 0)
    with pytest.raises(processes.ContenderError, match="signal 9"):
        processes._answer_in("", -9)


def test_the_tokenize_job_is_compared_with_the_loop_with_both_allocator_settings():
    def found(rate):
        return [{"images_per_s": rate, "images_per_s_with_start": rate / 2, "flops": 2.0, "floor": 12.0}]

    names = ["bare encoder, float32", "job, float32", f"bare encoder, float32{tokenize._AGAIN}", tokenize._LOOP]
    figures = dict(zip(names, map(found, (4.0, 3.0, 6.0, 2.0)), strict=True))
    figures[tokenize._LOOP + tokenize._AS_IS] = found(1.0)
    columns, rows, result = tokenize.table(figures)
    assert list(result.values()) == [
        "0.6 (1 round)",
        "3 (1 round)",
        "1.5 (1 round)",
    ]  # mean of both encoders
    assert len(rows) == len(figures) - 1
    assert rows[1][columns.index("of matmul speed")] == "50%"
    assert {len(row) for row in rows} == {len(columns)}
    failed = {**figures, tokenize._LOOP: [{"failed": "killed by signal 9"}]}
    assert len(tokenize.table(failed).headlines) == 2


def test_the_bare_encoder_and_the_loop_encode_the_photos(monkeypatch, tmp_path):
    config = ModelConfig(resolution=32, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), codebook_size=32)
    monkeypatch.setattr(tokenize, "_SIZE", 32)
    monkeypatch.setattr(tokenize, "_PICTURES", {"cpu": {"loop": 4, "bare": 8, "job": 10}})
    monkeypatch.setattr(tokenize, "_BATCH", {"cpu": 2})
    monkeypatch.setattr(tokenize, "random_weights", lambda: VQGAN(config))
    monkeypatch.setattr(tokenize, "TrainConfig", lambda: TrainConfig(model=config, loss=LossConfig(perceptual="none")))
    monkeypatch.setattr(harness, "device", lambda: "cpu")
    monkeypatch.setattr(tokenize.peers, "installed", lambda *_: False)
    photos = harness.photos(tmp_path / "photos", 8)
    assert tokenize._prepare(photos, tmp_path / "work") == "8 files of --data"
    for measure in (tokenize.bare, tokenize.loop):
        assert measure(tmp_path / "work", "float32")["images_per_s"] > 0


@pytest.mark.parametrize("name", [name for name, one in loader.CONTENDERS.items() if one.imports == "codeprior.data"])
def test_the_loader_returns_each_row_once_per_epoch_with_and_without_workers(name, tmp_path):
    contender, rows = loader.CONTENDERS[name], 2 * loader._BATCH
    codes = np.arange(rows, dtype=np.uint16)[:, None].repeat(loader._LENGTH, 1) % 1024
    contender.write(tmp_path / "codes", codes)
    for workers in (0, 2) if contender.workers else (0,):
        batches = contender.read(tmp_path / "codes", workers)
        epoch = torch.cat([next(batches), next(batches)])
        assert sorted(epoch[:, 0].tolist()) == list(range(rows))


def test_contenders_answer_from_separate_processes(tmp_path):
    """Whatever they print, and whatever memory this process has had."""
    here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    arguments = (RANDOM_ROWS.job, str(tmp_path / "codes"), "0", "1024", "0.05")
    assert processes.spawn("loader", "write", *arguments) is None
    found = processes.spawn("loader", "read", *arguments, env={"OMP_NUM_THREADS": "1"})
    assert set(found) == {"first_s", "cold", "warm", "mib"}
    assert min(found["first_s"], found["cold"], found["warm"]) > 0
    assert -1 < found["mib"] < 500
    assert here is None or sorted(os.sched_getaffinity(0)) == here


@pytest.mark.slow
def test_loader_suite_reports_all_contenders(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "ROWS", 2048)
    monkeypatch.setattr(loader, "SECONDS", 0.05)
    monkeypatch.setattr(loader, "RIVALS", ("webdataset",))
    kept = {name: one for name, one in loader.CONTENDERS.items() if one.imports in ("numpy", "webdataset")}
    ours = {name: one for name, one in loader.CONTENDERS.items() if one.imports == "codeprior.data"}
    monkeypatch.setattr(loader, "CONTENDERS", ours | kept)
    table = loader.run(1, out=tmp_path)
    found = json.loads(harness.result_path(tmp_path, "loader", ".json").read_text())
    assert [row[0] for row in found["rows"]] == [*ours, *kept]
    assert all(name in table for name in (*ours, *kept))
    assert list(found["headlines"]) == ["loading shuffled codes, over webdataset"]
    first, later = (found["figures"][name][0]["first_s"] for name in list(ours)[:2])
    assert first > later  # the first start decodes
    assert readme.tabulated(harness.result_path(tmp_path, "loader", ".json")) == found


def test_shards_suite_reports_every_form(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "ROWS", 256)
    shards.run(1, out=tmp_path)
    found = json.loads(harness.result_path(tmp_path, "shards", ".json").read_text())
    assert [row[0] for row in found["rows"]] == list(shards.CONTENDERS)
    assert all(size > 0 for size in found["figures"]["bytes"].values())


def test_growth_is_the_slope_over_logarithms():
    assert scaling.growth({10: 3.0, 100: 300.0, 1000: 30000.0}) == pytest.approx(2)
    assert scaling.growth({1: 5.0, 2: 5.0}) == pytest.approx(0)


def test_scaling_reads_rows_that_were_written_as_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling_parts, "_FILE_ROWS", 512)
    assert scaling_parts.make_rows(tmp_path, 1024)["decode_s"] > 0
    dataset = ShardDataset.open(tmp_path)
    assert [shard.rows for shard in dataset.shards("train")] == [512, 512]
    found = scaling._part("read_rows", folder=tmp_path, limit_s=0.05)
    assert set(found) == {"m_codes_per_s", "first_s", "mib", "copy"}


@pytest.mark.parametrize("length", [16, 32])
def test_scaling_trains_over_lengths(length):
    if (peak := Path("/proc/self/clear_refs")).exists():
        peak.write_text("5")  # forget the highest memory of the tests before: a benchmark has a process of its own
    found = scaling_parts.train(length, batch=1, steps=1)
    assert found["tokens_per_s"] == pytest.approx(length / found["step_s"])
    assert found["flops"] > 0
    assert found["floor"] > 0
    assert found["gib"] < 1  # what torch's libraries hold is not in it


@pytest.mark.slow
def test_scaling_suite_writes_four_reports_and_a_figure(monkeypatch, tmp_path):
    tiny = {
        "SAMPLES": 2000, "HANDED_OUT": 1000, "SHARDS": (4, 16), "IMAGES_PER_CORE": 24, "SHARD_ROWS": 1,
        "ROWS": (512, 1024), "READ_SECONDS": 0.05, "LENGTHS": (16, 64), "STEPS": 1, "BATCH": 1,
    }  # fmt: skip
    for name, value in tiny.items():
        monkeypatch.setattr(scaling, name, value)
    scaling.run(1, out=tmp_path)
    names = [f"scaling-{part}" for part in ("driver", "length", "loader", "workers")]
    paths = [harness.result_path(tmp_path, name, ".json") for name in names]
    assert sorted(tmp_path.glob("*.json")) == paths
    assert all(readme.tabulated(path) == json.loads(path.read_text()) for path in paths)
    assert harness.result_path(tmp_path, "scaling", ".png").stat().st_size < 150_000
