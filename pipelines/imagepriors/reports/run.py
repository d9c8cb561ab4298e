"""One self-contained HTML page about a run: data, reconstructions, codebook, orders, curves, samples."""

import math
import shlex
from pathlib import Path
from typing import Any

from codeprior.checkpoint import CONFIG, RunConfig
from codeshards.format.files import read_json
from imagepriors.reports import run_codes, run_priors
from imagepriors.reports.charts import Chart, curve, line_chart
from imagepriors.reports.page import embed, render
from imagepriors.reports.run_folder import RunFolder, summary
from runkit.folders import check_apart, check_publish, publish
from runkit.places import as_typed
from vqgan.data import sources_of

Command = dict[str, str]
"""What a command makes, and its line for a shell."""


def write_report(run: Path, data: Path, dataset: str, tokenizer: Path | None = None) -> Path:
    """Write RUN/report/report.html; sections without inputs are omitted.

    The tokenizer of the images is that of the shards, if none is given.

    Raises:
        UserError: The run has no finished tokenizer and no shards, or the dataset cannot be opened.
    """
    out = run / "report"
    parts = RunFolder.open(run, data, dataset, tokenizer)
    check_apart(out, data=sources_of(parts.splits, data))
    check_publish(out, ["report.html"], "report")
    publish(out, {"report.html": render("run", **_content(parts))}, "report", last="report.html")
    return out / "report.html"


def _content(run: RunFolder) -> dict[str, Any]:
    """The values of the page's template."""
    coded = run_codes.read_coded(run)
    priors = [run_priors.prior_part(run, folder) for folder in run.priors]
    shards, net = run.shards, run.tokenizer.config
    return {
        "title": run.path.resolve().name,
        "dataset": run.dataset, "path": str(run.path), "data": as_typed(run.data),
        "images": {name: len(split) for name, split in run.splits.items()},
        "conditions": run.splits["train"].conditions,
        "net": net, "grid": run.grid, "bits": math.log2(net.codebook_size),
        "rows": {} if shards is None else {name: shards.rows(name) for name in shards.splits},
        "orders": [] if shards is None else list(shards.spec.orders),
        "overview": _overview(run, coded, priors),
        "quality": _quality(run, coded),
        "durations": _durations(run),
        "evaluations": _evaluations(run),
        "tiles": run_codes.data_tiles(run),
        "pairs": run_codes.reconstruction_pairs(coded),
        "codebook": run_codes.codebook(run, coded),
        "loss": _loss_chart(run),
        "cards": run_codes.order_cards(run, coded), "path_grid": run_codes.path_grid(run),
        "example": embed(coded.decoded[coded.example], f"reconstruction: {coded.names[coded.example]}"),
        "priors": priors,
        "likelihood": run_priors.likelihood_chart(run),
        "commands": _commands(run), "next": _next_commands(run),
    }  # fmt: skip


def _overview(run: RunFolder, coded: run_codes.Coded, priors: list[dict[str, Any]]) -> dict[str, Any]:
    """Pictures of the steps: an image, its codes, its sequences, a sample."""
    name = coded.names[coded.example]
    return {
        "image": embed(coded.originals[coded.example], f"validation picture: {name}"),
        "codes": embed(coded.example_colours, "its codes, in the mean colour of each", crisp=True),
        "numbers": coded.codes_NHW[coded.example].tolist(),
        "sequences": embed(run_codes.sequences(run, coded), "its codes in each order", crisp=True)
        if run.shards is not None
        else None,
        "samples": run_priors.few_samples(priors[0]) if priors else [],
    }


def _quality(run: RunFolder, coded: run_codes.Coded) -> dict[str, Any]:
    """Figures of the tokenizer; those of its training are None for an imported one."""
    figures = summary(run.path / "tokenizer")
    blocks = run_codes.block_means(coded.originals, *run.grid)
    shown_db = run_codes.psnr_db(coded.originals, coded.decoded)
    psnr_db = figures.get("val_psnr_db", shown_db)
    return {
        "psnr_db": psnr_db, "error": 255 * 10 ** (-psnr_db / 20), "shown_db": shown_db, "count": len(coded.decoded),
        "blocks_db": run_codes.psnr_db(coded.originals, blocks),
        "usage": figures.get("val_usage"), "perplexity": figures.get("val_perplexity"),
    }  # fmt: skip


def _durations(run: RunFolder) -> list[dict[str, Any]]:
    """Name, time as text and share in per cent of each part."""
    found = run.durations_s()
    return [
        {"name": name, "text": _time_text(seconds), "share": 100 * seconds / sum(found.values())}
        for name, seconds in found.items()
    ]


def _time_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """The figures of evaluation.json files that have the same figure of real pictures beside them."""
    found = []
    for folder in [*run.tokenizers[:1], *run.priors]:
        path = folder / "evaluation.json"
        figures = read_json(path).get("figures", {}) if path.is_file() else {}
        for name, value in figures.items():
            real = figures.get(f"{name}, real")
            if isinstance(real, int | float) and isinstance(value, int | float) and math.isfinite(value):
                found.append({"of": folder.name, "name": name, "value": value, "real": real})
    return found


def _loss_chart(run: RunFolder) -> Chart | None:
    curves = {folder.name: curve(folder, "loss") for folder in run.tokenizers}
    return line_chart("loss", curves, from_zero=True)


def _commands(run: RunFolder) -> list[Command]:
    """Commands that make the parts of this run again, in their order."""
    data = ["--data", as_typed(run.data)] + ([] if run.dataset == "demo" else ["--dataset", run.dataset])
    found = []
    for folder in run.tokenizers:
        modality = folder.name.removeprefix("tokenizer").removeprefix("-")
        preset = [f"--preset={'demo-' + modality if run.dataset == 'demo' else modality + '-f16'}"] if modality else []
        found.append((folder.name, ["train-vqgan", *preset, *data, "--out", str(folder)]))
    if run.shards is not None:
        conditions = [str(run.path / f"tokenizer-{name}") for name in run.shards.spec.conditions]
        flags = ["--tokenizer", str(run.path / "tokenizer"), *(["--condition", *conditions] if conditions else [])]
        found.append(("shards", ["tokenize", *data, *flags, "--out", str(run.path / "shards")]))
    for folder in run.priors:
        sequence = RunConfig.load(folder / CONFIG).sequence
        flags = ["--order", sequence.order, *(["--condition", sequence.condition] if sequence.conditions else [])]
        flags += ["--objective", sequence.objective] if sequence.objective != "ordered" else []
        flags += ["--multiscale"] if sequence.scales else []
        blend = [f"{part['shards']}={part['weight']}" for part in summary(folder).get("blend", ())]
        shards = blend or [str(run.path / "shards")]
        found.append((folder.name, ["train-prior", "--shards", *shards, *flags, "--out", str(folder)]))
    found.append(("this page", ["report", str(run.path), *data]))
    return [{"name": name, "line": shlex.join(["imagepriors", *words])} for name, words in found]


def _next_commands(run: RunFolder) -> list[Command]:
    """Three commands that lead on from what is finished."""
    shards, data = str(run.path / "shards"), ["--data", as_typed(run.data)]
    own = ("Train on your own pictures", ["train-vqgan", "--data", "path/to/photos"])
    if run.shards is None:
        tokenizer = str(run.path / "tokenizer")
        found = [
            ("Measure the tokenizer", ["evaluate-tokenizer", "--tokenizer", tokenizer, *data]),
            ("Encode the dataset", ["tokenize", *data, "--tokenizer", tokenizer, "--out", shards]),
            own,
        ]
    elif not run.priors:
        conditions = ["--condition", "class"] if run.shards.class_names else []
        found = [
            ("Train a prior", ["train-prior", "--shards", shards, *conditions]),
            ("Look at the shards", ["shards", "inspect", shards]),
            own,
        ]
    else:
        prior = str(run.priors[0])
        found = [
            ("Draw more samples", ["sample", "--prior", prior, "--n", "64", "--temperature", "0.9", "--frames"]),
            ("Measure the prior against real pictures", ["evaluate-prior", "--prior", prior]),
            own,
        ]
    return [{"name": name, "line": shlex.join(["imagepriors", *words])} for name, words in found]
