"""The command line: one table from command to typed function; the signatures are the flags.

Heavy imports stay inside the functions, so that `--help` answers in well under a second.
"""

import argparse
import ctypes
import functools
import inspect
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from codeprior.config import SampleConfig
from codeprior.config import TrainConfig as PriorConfig
from codeshards.config import TokenizeConfig
from codeshards.format import ShardError
from imagepriors.cli.defaults import DEMO_DATA, beside, preset_for_data, preset_for_shards, run_folder
from imagepriors.cli.shards import shards
from imagepriors.config import AnnotateConfig, EvaluateConfig, EvaluatePriorConfig, Kind
from imagepriors.experiments.command import experiment
from imagepriors.presets import load_preset, preset_names
from runkit.errors import UserError, user_message
from runkit.folders import check_apart
from vqgan.config import Geometry, dataset_geometry, from_dict
from vqgan.config import TrainConfig as VqganConfig

_LEAST_COLUMNS = 40
_Flat = tyro.conf.arg(name="")
_EVALUATE = EvaluateConfig()
_EVALUATE_PRIOR = EvaluatePriorConfig()
_SAMPLE = SampleConfig()
_ANNOTATE = AnnotateConfig()


def demo_data(
    out: tyro.conf.Positional[Path] = DEMO_DATA,
    *,
    n_train: int = 3000,
    n_val: int = 300,
    size: int = 64,
    seed: int = 0,
) -> str:
    """Generate the demo scenes: images, masks, depth, keypoints and classes, in the real datasets' layouts.

    Args:
        out: Folder to write.
        n_train: Training scenes.
        n_val: Validation scenes.
        size: Side of the square pictures, in pixels.
        seed: Other seeds give other scenes.
    """
    from imagepriors.demo.layouts import write_demo_data

    write_demo_data(out, n_train=n_train, n_val=n_val, size=size, seed=seed)
    return f"demo data in {out}"


def annotate(
    kind: tyro.conf.Positional[Kind],
    config: Annotated[AnnotateConfig, _Flat] = _ANNOTATE,
    *,
    dataset: str = "auto",
    data: Path,
    out: Path | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> str:
    """Give a dataset's images depth maps or masks from a pretrained network, in parallel on Ray.

    Args:
        kind: What to make.
        config: Model and settings.
        dataset: Layout of the data, as for train-vqgan.
        data: Folder in which the dataset is.
        out: Folder for the maps, which archives and tables need; default: beside the images, train_depth/ by train/.
        overwrite: Delete the maps that this command made there first, and nothing else.
        retry_failed: Make again what holds failures, e.g. after mending images.
    """
    from imagepriors.annotate.job import annotate as run

    made = run(config, kind=kind, dataset=dataset, data=data, out=out, overwrite=overwrite, retry_failed=retry_failed)
    left_out = f", {made.failures} images left out (named in {made.book})" if made.failures else ""
    return (
        f"{made.maps} {kind} maps in {', '.join(map(str, made.folders))}{left_out}; "
        f"read them with --dataset {made.reader} --data {made.root}"
    )


def train_vqgan(
    config: Annotated[VqganConfig, _Flat],
    *,
    dataset: str = "auto",
    data: Path = DEMO_DATA,
    out: Path | None = None,
    workers: int = 0,
    preset: str = "auto",
) -> str:
    """Stage 1: train a VQGAN tokenizer on pictures (also under torchrun).

    Args:
        config: The run.
        dataset: Layout of the data: ade20k, cifar10, deepfashion, demo, folder, huggingface, imagenet, imagenet-depth,
            landscapes, restricted-imagenet, webdataset; auto recognises it.
        data: Folder in which the dataset is.
        out: Run folder; a run that was interrupted continues. Default: runs/NAME/tokenizer, where NAME is the name of
            the data's folder.
        workers: Processes on a Ray cluster (RAY_ADDRESS names it); 0 trains in this process.
        preset: Preset that sets the defaults of all flags below; auto chooses it by the size of the pictures.
    """
    from vqgan.data import open_splits, sources_of
    from vqgan.train import train

    out = out or run_folder(data) / "tokenizer"
    splits = open_splits(dataset, data)
    check_apart(out, data=sources_of(splits, data))
    _keep_freed_memory()
    if workers:
        from imagepriors.cluster import train_vqgan_on_ray

        summary = train_vqgan_on_ray(config, dataset, data, out, workers)
    else:
        summary = train(config, splits, out)
    return f"tokenizer in {out}: " + _figures(summary)


def train_palette(
    *,
    dataset: str = "auto",
    data: Path = DEMO_DATA,
    out: Path | None = None,
    colours: int = 512,
    resolution: int = 32,
    geometry: Geometry | None = None,
    images: int = 2_000,
    seed: int = 0,
) -> str:
    """Fit a palette tokenizer: a dictionary of colours, one code a pixel (the paper's pixel baseline).

    Args:
        dataset: Layout of the data, as for train-vqgan.
        data: Folder in which the dataset is.
        out: Folder to write; default: runs/NAME/palette, where NAME is the name of the data's folder.
        colours: Colours of the dictionary.
        resolution: Side of the pictures, in pixels and in codes.
        geometry: How pictures that are not square become so; default: as suits the dataset (deepfashion: pad).
        images: Pictures to take pixels from, at most.
        seed: Seed of the draw and of k-means.
    """
    from vqgan.data import open_splits, resolve, sources_of
    from vqgan.palette import fit_palette

    out = out or run_folder(data) / "palette"
    splits = open_splits(dataset, data)
    check_apart(out, data=sources_of(splits, data))
    made = fit_palette(
        splits["train"],
        out,
        colours=colours,
        resolution=resolution,
        geometry=geometry or dataset_geometry(resolve(dataset, data)),
        images=images,
        seed=seed,
    )
    return f"palette in {made}"


def evaluate_tokenizer(
    config: Annotated[EvaluateConfig, _Flat] = _EVALUATE,
    *,
    tokenizer: Path | None = None,
    dataset: str = "auto",
    data: Path = DEMO_DATA,
    out: Path | None = None,
) -> str:
    """Reconstruction metrics of a tokenizer: PSNR, SSIM, LPIPS, Fréchet distance, codebook usage.

    Args:
        config: Which figures, over which images.
        tokenizer: Folder of the tokenizer; default: runs/NAME/tokenizer, where NAME is the name of the data's folder.
        dataset: Layout of the data, as for train-vqgan.
        data: Folder in which the dataset is.
        out: JSON file to write; default: evaluation.json in the tokenizer's folder.
    """
    from imagepriors.evaluate.tokenizer import as_table
    from imagepriors.evaluate.tokenizer import evaluate_tokenizer as run

    tokenizer = tokenizer or run_folder(data) / "tokenizer"
    path = out or tokenizer / "evaluation.json"
    return f"{as_table(run(tokenizer, dataset, data, path, config))}\nwritten to {path}"


def import_tokenizer(
    checkpoint: tyro.conf.Positional[Path],
    project: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    *,
    part: Literal["first_stage", "cond_stage"] | None = None,
) -> str:
    """Turn a released CompVis VQGAN (last.ckpt and project.yaml) into a tokenizer folder.

    Args:
        checkpoint: The checkpoint file; nothing in it is executed.
        project: The yaml that came with it.
        out: Folder to write.
        part: Which tokenizer of a transformer's checkpoint; default: the image's.
    """
    from vqgan.compat.compvis import import_tokenizer as run

    found = run(checkpoint, project, out, part)
    net = found["config"]
    return (
        f"tokenizer in {out}: {net.resolution}×{net.resolution} {net.modality} → {net.grid}×{net.grid} codes of "
        f"{net.codebook_size}; {found['tensors']} tensors used, {len(found['dropped'])} of the loss dropped"
    )


def import_prior(
    checkpoint: tyro.conf.Positional[Path], project: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]
) -> str:
    """Turn a released CompVis transformer (last.ckpt and project.yaml) into a prior with its tokenizer.

    Args:
        checkpoint: The checkpoint file; nothing in it is executed.
        project: The yaml that came with it; class-conditional and unconditional models map.
        out: Folder to write.
    """
    from imagepriors.released import import_prior as run

    sequence = run(checkpoint, project, out)
    return (
        f"prior in {out}: {sequence.height}×{sequence.width} codes of {sequence.codebook_size} in order "
        f"{sequence.order}, condition {sequence.condition}; it has no null condition, so guidance is refused"
    )


def import_diffusers(folder: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> str:
    """Turn a saved diffusers VQModel into a tokenizer folder.

    Args:
        folder: What `VQModel.save_pretrained` wrote.
        out: Folder to write.
    """
    from vqgan.compat.diffusers import import_diffusers as run

    return f"tokenizer in {run(folder, out)}"


def export_diffusers(tokenizer: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> str:
    """Write a tokenizer as a folder that diffusers' VQModel.from_pretrained loads.

    Args:
        tokenizer: Folder of the tokenizer.
        out: Folder to write.
    """
    from vqgan.compat.diffusers import export_diffusers as run

    return f"diffusers VQModel in {run(tokenizer, out)}"


def tokenize(
    config: Annotated[TokenizeConfig, _Flat],
    *,
    dataset: str = "auto",
    data: Path = DEMO_DATA,
    tokenizer: Path | None = None,
    condition: tuple[Path, ...] = (),
    out: Path | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    preset: str = "auto",
) -> str:
    """Encode a whole dataset into token shards, in parallel on Ray (RAY_ADDRESS names a cluster).

    Args:
        config: The job.
        dataset: Layout of the data, as for train-vqgan.
        data: Folder in which the dataset is.
        tokenizer: Run folder of the trained image tokenizer; default: runs/NAME/tokenizer, where NAME is the name of
            the data's folder.
        condition: Run folders of tokenizers for conditions (masks, depth, poses) to encode beside the images.
        out: Folder to write; an interrupted job continues. Default: runs/NAME/shards.
        overwrite: Delete the dataset in `out` first, by its records; anything else there refuses it.
        retry_failed: Make the shards with failures again.
        preset: Preset that sets the defaults of all flags below; auto chooses it by the size of the pictures.
    """
    from codeshards.job.tokenize import tokenize as run_job
    from imagepriors.reports.shards import summarize, write_tokenize_report
    from vqgan.checkpoint import load_config

    tokenizer, out = tokenizer or run_folder(data) / "tokenizer", out or run_folder(data) / "shards"
    conditions: dict[str, Path] = {load_config(folder).model.modality: folder for folder in condition}
    if len(conditions) < len(condition):
        raise ShardError(f"--condition names two tokenizers of one modality: {', '.join(map(str, condition))}")
    run_job(
        config,
        dataset=dataset,
        data=data,
        tokenizers={"image": tokenizer, **conditions},
        out=out,
        overwrite=overwrite,
        retry_failed=retry_failed,
    )
    return f"token shards in {out}\n{summarize(out)}\n  look at          {write_tokenize_report(out)}"


def train_prior(
    config: Annotated[PriorConfig, _Flat],
    *,
    shards: Path = Path("runs/demo/shards"),
    out: Path | None = None,
    workers: int = 0,
    preset: str = "auto",
) -> str:
    """Stage 2: train a transformer on token shards; no pixels are read (also under torchrun).

    Args:
        config: The run.
        shards: Folder that tokenize wrote.
        out: Run folder; a run that was interrupted continues. Default: prior-ORDER, or prior-ORDER-CONDITION, beside
            the shards.
        workers: Processes on a Ray cluster (RAY_ADDRESS names it); 0 trains in this process.
        preset: Preset that sets the defaults of all flags below; auto chooses it by the pictures of the shards.
    """
    from codeprior.train import train_prior as run

    condition = "" if config.condition == "none" else f"-{config.condition}"
    out = out or beside(shards) / f"prior-{config.order}{condition}"
    _keep_freed_memory()
    if workers:
        from imagepriors.cluster import train_prior_on_ray

        summary = train_prior_on_ray(config, shards, out, workers)
    else:
        summary = run(config, shards, out)
    return f"prior in {out}: " + _figures(summary)


def sample(
    config: Annotated[SampleConfig, _Flat],
    *,
    prior: Path = Path("runs/demo/prior-row_major"),
    shards: Path | None = None,
    out: Path | None = None,
    n: int = 25,
    given: str = "0",
    size: tuple[int, int] | None = None,
    frames: bool = False,
    preset: str = "auto",
) -> str:
    """Draw code sequences from a prior and decode them to pictures.

    Args:
        config: How to draw.
        prior: Run folder of the trained prior.
        shards: Folder of token shards: holds the tokenizer, and the conditions of a conditional prior. Default: shards
            beside the prior.
        out: Folder for grid.png, the single pictures, the codes and their metadata. Default: samples-PRIOR beside it.
        n: Number of pictures.
        given: Complete validation pictures from this many first codes of the prior's sequence, or from their `upper`
            half, upper left `corner`, `centre` (spiral_out), or from `scales-K`, the first K scales.
        size: Rows and columns of codes, for pictures larger than the training pictures (order row_major).
        frames: Also write frames.gif, the pictures while they are drawn.
        preset: Preset that sets the defaults of all flags below; auto chooses it by the pictures of the shards.
    """
    from imagepriors.decode.samples import write_samples

    shards, out = shards or prior.parent / "shards", out or prior.parent / f"samples-{prior.name}"
    grid = write_samples(prior, shards, out, n, config=config, given=given, size=size, frames=frames)
    return f"{n} samples in {out}; look at {grid}"


def evaluate_prior(
    config: Annotated[EvaluatePriorConfig, _Flat] = _EVALUATE_PRIOR,
    *,
    prior: Path = Path("runs/demo/prior-row_major"),
    shards: Path | None = None,
    dataset: str = "auto",
    data: Path | None = None,
    out: Path | None = None,
    sampling: SampleConfig = _SAMPLE,
) -> str:
    """Measure a prior: likelihood, distance of its samples to pictures, precision, recall, faith to its condition.

    Args:
        config: What to measure.
        prior: Run folder of the trained prior.
        shards: Folder of token shards: holds the tokenizer, and the conditions of a conditional prior. Default: shards
            beside the prior.
        dataset: Layout of the data.
        data: Folder of pictures to compare samples with; without it decoded validation codes take their place.
        out: JSON file; default: PRIOR/evaluation.json.
        sampling: How samples are drawn.
    """
    from imagepriors.evaluate.prior import as_table
    from imagepriors.evaluate.prior import evaluate_prior as run

    place = out or prior / "evaluation.json"
    found = run(prior, shards or prior.parent / "shards", place, config, sampling, dataset=dataset, data=data)
    return f"{as_table(found)}\nwritten to {place}"


def report(
    run: tyro.conf.Positional[Path] = Path("runs/demo"), *, data: Path = DEMO_DATA, dataset: str = "auto"
) -> str:
    """Write one self-contained HTML page about a run folder.

    Args:
        run: Folder with tokenizer/, shards/ and prior-*/.
        data: Folder in which the dataset is.
        dataset: Layout of the data.
    """
    from imagepriors.reports.run import write_report

    return f"open {write_report(run, data, dataset)}"


def inspect_data(
    dataset: tyro.conf.Positional[str] = "auto",
    *,
    data: Path,
    out: Path | None = None,
    limit: int = 2_000,
    shown: int = 24,
    size: int = 128,
    geometry: Geometry | None = None,
) -> str:
    """Look at a dataset: counts, sizes, labels, conditions, bad files, a contact sheet.

    Args:
        dataset: Layout of the data, as for train-vqgan.
        data: Folder in which the dataset is.
        out: Folder for inspection.json and the contact sheets; default: runs/NAME/inspect, where NAME
            is the name of the data's folder.
        limit: Samples of each split to decode, evenly over it; 0: all.
        shown: Samples on a contact sheet.
        size: Side of its pictures, in pixels.
        geometry: How pictures that are not square become so; default: as suits the dataset (deepfashion: pad).
    """
    from imagepriors.reports.dataset import inspect_dataset

    where = out or run_folder(data) / "inspect"
    return inspect_dataset(dataset, data, where, limit=limit, shown=shown, size=size, geometry=geometry)


COMMANDS: dict[str, Callable[..., str]] = {
    "demo-data": demo_data,
    "inspect": inspect_data,
    "annotate": annotate,
    "train-vqgan": train_vqgan,
    "train-palette": train_palette,
    "evaluate-tokenizer": evaluate_tokenizer,
    "import-tokenizer": import_tokenizer,
    "import-prior": import_prior,
    "import-diffusers": import_diffusers,
    "export-diffusers": export_diffusers,
    "tokenize": tokenize,
    "train-prior": train_prior,
    "sample": sample,
    "evaluate-prior": evaluate_prior,
    "experiment": experiment,
    "report": report,
    "shards": shards,
}
# Command → (config class, preset table): what `--preset` fills.
CONFIGS: dict[str, tuple[type[Any], str]] = {
    "train-vqgan": (VqganConfig, "vqgan"),
    "tokenize": (TokenizeConfig, "tokenize"),
    "train-prior": (PriorConfig, "prior"),
    "sample": (SampleConfig, "sample"),
}


def _figures(summary: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in summary.items() if isinstance(value, int | float))


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: otherwise each large activation faults its pages in anew (up to 1.7× slower)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-4, 0)  # M_MMAP_MAX
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-8, 1)  # M_ARENA_MAX: the arenas of other threads would map large blocks all the same


def _given(argv: Sequence[str]) -> argparse.Namespace:
    """What decides the parser's defaults, read ahead of the parser."""
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--dataset", "--data", "--shards", "--prior"):
        ahead.add_argument(flag, nargs="?")
    ahead.add_argument("--help", "-h", action="store_true")
    return ahead.parse_known_args(argv)[0]


def _preset_of(command: str, given: argparse.Namespace) -> str:
    """The preset that --preset names, or that follows from the data."""
    if given.preset not in (None, "auto"):
        return str(given.preset)
    if given.help:
        return "demo"
    if command in ("train-vqgan", "tokenize"):
        return preset_for_data(given.dataset or "auto", Path(given.data or DEMO_DATA))
    if command == "sample" and not given.shards:
        return preset_for_shards(Path(given.prior or "runs/demo/prior").parent / "shards")
    return preset_for_shards(Path(given.shards or "runs/demo/shards"))


def _defaults(command: str, argv: Sequence[str]) -> Any:
    """The config that a command has where no flag changes it."""
    cls, table = CONFIGS[command]
    given = _given(argv)
    preset = load_preset(_preset_of(command, given), table)
    if command == "train-vqgan" and not given.help and isinstance(preset.get("model", {}), dict):
        from vqgan.data import resolve

        geometry = dataset_geometry(resolve(given.dataset or "auto", Path(given.data or DEMO_DATA)))
        preset["model"] = {"geometry": geometry, **preset.get("model", {})}
    return from_dict(cls, preset)


def _run(argv: Sequence[str]) -> str:
    name = argv[0]
    function = COMMANDS[name]
    if function is shards:  # it has commands of its own
        return shards(argv[1:])
    if name in CONFIGS:
        function = functools.partial(function, config=_defaults(name, argv[1:]))
    description = inspect.getdoc(COMMANDS[name])
    prog = f"imagepriors {name}"
    return str(tyro.cli(function, prog=prog, description=(description or "").partition("\n\n")[0], args=list(argv[1:])))


def _usage() -> str:
    docs = {name: (function.__doc__ or "").strip().partition("\n")[0] for name, function in COMMANDS.items()}
    return "\n".join(
        [
            "usage: imagepriors COMMAND [FLAGS]; every command explains itself with --help",
            "",
            *(f"  {name:18} {doc}" for name, doc in docs.items()),
            "",
            f"presets: {', '.join(preset_names())}",
        ]
    )


def _prepare_streams() -> None:
    """Make the three streams such that nothing written to them raises, hangs or ends in another file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would become this stream
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - for the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - for the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    if shutil.get_terminal_size().columns < _LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(_LEAST_COLUMNS)  # the formatter of help never ends in a narrow terminal


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working folder is deleted: change into another") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    wants_help = not argv or argv[0] in ("-h", "--help")
    name = f" {argv[0]}" if argv and argv[0] in COMMANDS else ""
    try:
        if not wants_help and argv[0] not in COMMANDS:
            raise UserError(f"unknown command {argv[0]!r}: choose one of {', '.join(COMMANDS)}")
        if not wants_help:
            _check_working_folder()
        print(_usage() if wants_help else _run(argv), flush=True)
    except BrokenPipeError:  # whoever read the answer has left: nothing to say, and nobody to hear it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as error:
        print(f"imagepriors{name}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"imagepriors{name}: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
