"""Report on a tokenize job: a summary to print and a self-contained HTML page beside the shards."""

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from codeshards.format import Failure, Manifest, ShardDataset, Sidecar, Store, Where, inverse, open_store
from codeshards.format.carried import CAPTION
from codeshards.format.contents import EVENTS_FILE, REPORT_FILE
from codeshards.format.plan import plan_settings
from codeshards.job.progress import kind_of, read_events
from imagepriors.decode.rows import load_shard_tokenizer
from imagepriors.reports.charts import line_chart
from imagepriors.reports.figures import colorize
from imagepriors.reports.page import embed, render_page
from imagepriors.reports.run_codes import usage_chart
from runkit.names import listed
from vqgan.data import spread

_SHOWN = 24
_COUNTED_ROWS = 200_000
"""Maximum number of rows whose codes are counted, so that a report on millions of rows takes seconds."""
_READERS = 32
"""Threads that read sidecars."""
_NAMED = 10
"""Maximum number of failed samples that are named per kind of failure, and of labels."""
Rates = dict[str, tuple[list[float], list[float]]]
"""Node → minutes since the start, and images per second."""


def summarize(where: Where) -> str:
    """Describe rows, failures, size and speed of a finished dataset in a few lines."""
    out = open_store(where)
    facts = _facts(out, Manifest.load(out).whole, read_events(out / EVENTS_FILE))
    return "\n".join(f"  {name:16} {value}" for name, value in facts)


def write_tokenize_report(where: Where) -> Store:
    """Write OUT/report.html: throughput, failures, code usage, decoded samples.

    Raises:
        ShardError: the dataset is not finished, or its tokenizer did not make the codes.
    """
    out = open_store(where)
    dataset, events = ShardDataset.open(out), read_events(out / EVENTS_FILE)
    sections = [
        *_throughput_sections(events),
        *_failure_sections(out, dataset.manifest),
        *_code_sections(dataset),
    ]
    html = render_page(f"Shards in {out.name}", _facts(out, dataset.manifest, events), sections)
    page = out / REPORT_FILE
    page.write_bytes(html)
    return page


def _facts(out: Store, manifest: Manifest, events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    spec = manifest.spec
    shards = manifest.entries.values()
    nbytes = sum(map(manifest.data_bytes, manifest.splits))
    failures = sum(split.failures for split in manifest.splits.values())
    samples = failures + sum(split.samples for split in manifest.splits.values())
    facts = [
        ("rows", " + ".join(f"{split.rows:,} {name}" for name, split in manifest.splits.items())),
        ("failures", f"{failures:,} of {samples:,} samples"),
        ("shards", f"{len(shards):,}, {nbytes / 1e6:,.1f} MB"),
        ("codes", f"{spec.image.height}×{spec.image.width} of {spec.image.codebook_size:,}, {', '.join(spec.orders)}"),
    ]
    if spec.scales:
        facts.append(("scales", ", ".join(map(str, spec.scales))))
    if spec.conditions:
        facts.append(("conditions", ", ".join(spec.conditions)))
    if manifest.label_names:
        facts.append(("labels of masks", listed(manifest.label_names, _NAMED)))
    if spec.carried:
        facts.append(("columns", ", ".join(sorted(spec.carried))))
    settings = plan_settings(out)
    if left_out := settings.get("left_out"):
        counts = " + ".join(f"{count:,} {name}" for name, count in left_out.items())
        facts.append(("left out", f"{counts} samples, by {settings.get('where')}"))
    seconds, images = 0.0, 0
    for run in _runs(events):
        seconds += run[-1][0] - run[0][0]
        images += sum(run[-1][1].values())
    if images:
        facts.append(("speed", f"{images / max(seconds, 1e-9):,.1f} images/s over {seconds:,.0f} s of work"))
    deaths = Counter("node" if event["node_lost"] else "worker" for event in events if event["event"] == "worker_died")
    if deaths:
        facts.append(("lost workers", f"{deaths['worker']} alone, {deaths['node']} with their node"))
    if put_off := sum(event["event"] == "shard_put_off" for event in events):
        facts.append(("postponed", f"{put_off} shards, because their input or output was unavailable"))
    return facts


def _runs(events: list[dict[str, Any]]) -> list[list[tuple[float, dict[str, int]]]]:
    """For each run of the job: (time in s, node → images so far), from its first ready worker on."""
    runs: list[list[tuple[float, dict[str, int]]]] = []
    for event in events:
        if event["event"] == "start":
            runs.append([])
        elif runs and event["event"] == "worker_ready" and not runs[-1]:
            runs[-1].append((event["time_s"], {}))
        elif runs and event["event"] == "progress" and runs[-1]:
            runs[-1].append((event["time_s"], event["nodes"]))
    return [run for run in runs if len(run) > 1]


def _rates(events: list[dict[str, Any]]) -> Rates:
    """Images per second of each node and of all nodes over the working time, without the pauses between runs."""
    rates: Rates = defaultdict(lambda: ([], []))
    offset_s = 0.0
    for run in _runs(events):
        for (start, before), (end, after) in pairwise(run):
            done = {node: max(0, count - before.get(node, 0)) for node, count in after.items()}
            minutes = [(offset_s + moment - run[0][0]) / 60 for moment in (start, end)]
            for node, count in {**done, "all": sum(done.values())}.items() if len(done) > 1 else done.items():
                rates[node][0].extend(minutes)  # two points per interval draw a step
                rates[node][1].extend([count / max(end - start, 1e-3)] * 2)
        offset_s += run[-1][0] - run[0][0]
    return dict(rates)


def _throughput_sections(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rates = _rates(events)
    if not rates:
        return []
    chart = line_chart("images/s", rates, x_label="minutes of work", from_zero=True)
    text = f"Images per second of each node, in {len(_runs(events))} run(s) of the job."
    return [{"title": "Throughput", "text": text, "chart": chart}]


def failures_by_kind(out: Store, manifest: Manifest, most: int) -> dict[str, tuple[int, list[tuple[str, Failure]]]]:
    """The failed samples of a dataset, from its sidecars and those of added columns.

    Args:
        out: The dataset.
        manifest: Its manifest.
        most: Maximum number of samples that are named per kind of failure.

    Returns:
        Kind of failure, the most frequent first → number of samples, and the first of them, each with its split.
    """
    found: dict[str, list[tuple[str, Failure]]] = defaultdict(list)
    counts: Counter[str] = Counter()
    folders = [out, *(out / column.spec.name for column in manifest.added)]
    for name, split in manifest.splits.items():
        if not split.failures:
            continue
        paths = [folder / f"{name}/{shard.name}.json" for folder in folders for shard in split.shards]
        with ThreadPoolExecutor(_READERS) as pool:  # one read of an object store takes tens of milliseconds
            for sidecar in pool.map(Sidecar.load, paths):
                for failure in sidecar.failures:
                    kind = kind_of(failure.reason)
                    counts[kind] += 1
                    if len(found[kind]) < most:
                        found[kind].append((name, failure))
    return {kind: (count, found[kind]) for kind, count in counts.most_common()}


def _failure_sections(out: Store, manifest: Manifest) -> list[dict[str, Any]]:
    kinds = failures_by_kind(out, manifest, _NAMED)
    if not kinds:
        return []
    rows = [
        (f"{count:,}× {kind}" if not index else "", failure.key, failure.reason)
        for kind, (count, failures) in kinds.items()
        for index, (_, failure) in enumerate(failures)
    ]
    text = f"Failed samples by kind, at most {_NAMED} of each kind; the sidecars name all."
    return [{"title": "Failures", "text": text, "rows": rows}]


def _code_sections(dataset: ShardDataset) -> list[dict[str, Any]]:
    grid, order = dataset.spec.image, dataset.spec.orders[0]
    split = max(dataset.splits, key=dataset.rows)
    column = f"codes_{order}"
    counts_K, rows = np.zeros(grid.codebook_size, np.int64), 0
    first, captions = np.empty((0, grid.length), grid.dtype), list[Any]()
    captioned = [CAPTION] if CAPTION in dataset.spec.carried else []
    for batch in dataset.batches(split, [column, *captioned]):
        codes_NT = batch[column]
        if len(first) < _SHOWN:
            first = np.concatenate([first, codes_NT])
            captions += batch[CAPTION].tolist() if captioned else [None] * len(codes_NT)
        counts_K += np.bincount(codes_NT.ravel(), minlength=grid.codebook_size)
        rows += len(codes_NT)
        if rows >= _COUNTED_ROWS:
            break
    if not rows:
        return []
    used = f"{(counts_K > 0).sum():,} of {grid.codebook_size:,} codes occur"
    usage = usage_chart(np.sort(100 * counts_K / counts_K.sum())[::-1].tolist())
    tokenizer = load_shard_tokenizer(dataset.path, "tokenizer", grid.fingerprint)
    rows_shown = spread(len(first), _SHOWN)
    chosen_NT = first[rows_shown][:, inverse(order, grid.height, grid.width)]
    decoded = np.concatenate(
        [tokenizer.decode(few) for few in np.array_split(chosen_NT.reshape(-1, grid.height, grid.width), 4)]
    )
    tiles = [
        embed(pixels, f"decoded row {number}", captions[row] or "")
        for number, (pixels, row) in enumerate(zip(colorize(decoded), rows_shown, strict=True), 1)
    ]
    return [
        {
            "title": "Code usage",
            "text": f"{used} in {rows:,} rows of {split}. The others are wasted.",
            "chart": usage,
        },
        {
            "title": "Decoded samples",
            "text": f"Rows of {split}, decoded by the tokenizer. They should look like the data.",
            "tiles": tiles,
        },
    ]
