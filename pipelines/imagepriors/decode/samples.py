"""Write samples of a prior to a folder: pictures, a grid of them, codes and metadata."""

from collections.abc import Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeprior.checkpoint import CONFIG, RunConfig, prior_folder
from codeprior.config import SequenceSpec
from codeprior.model import Prior
from codeprior.sample_config import SampleConfig
from imagepriors.decode.draw import Samples, check_count, draw_samples, uses_rows
from imagepriors.decode.outputs import COMMAND, check_few
from imagepriors.decode.partial import Codes, known_codes
from imagepriors.reports.figures import picture_grid, png_bytes
from runkit.codes import code_dtype
from runkit.files import pretty_json
from runkit.folders import check_apart, check_publish, publish
from vqgan.tokenizer import Tokenizer

_MAX_COLUMNS = 16


def write_samples(
    prior_run: Path,
    shards: Path,
    out: Path,
    n: int,
    *,
    config: SampleConfig,
    given: Any = 0,
    size: tuple[int, int] | None = None,
    classes: npt.NDArray[np.int64] | None = None,
    complete_AT: npt.NDArray[np.int64] | None = None,
    frames: bool = False,
    prior: Prior | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write grid.png, samples/NNNN.png, codes.npz, metadata.json and optionally frames.gif to `out`.

    These files replace those of an earlier call, unless that has drawn samples in parts. Other files in `out` are not
    changed.

    Args:
        prior_run: Run folder of a trained prior.
        shards: Folder of token shards with its tokenizers.
        out: Folder to write.
        n: Number of pictures.
        config: Sampling configuration.
        given: Codes to take from pictures, as :func:`.known_codes` describes them.
        size: Rows and columns of codes, for pictures larger than the training pictures.
        classes: Class of each picture, as for :func:`.draw_samples`; None: classes take turns.
        complete_AT: Pictures that are completed, as for :func:`.draw_samples`; None: validation pictures.
        frames: Whether to write frames.gif.
        prior: The prior, if it is already loaded.
        tokenizer: Its tokenizer, if it is already loaded.

    Returns:
        The path of grid.png.

    Raises:
        UserError: `out` is, contains or is in the prior or the shards, or has a file of such a name from elsewhere.
        ShardError: `out` has samples that were drawn in parts, or as :func:`.draw_samples`.
        PriorError: as :func:`.draw_samples`.
    """
    check_count(n)
    check_apart(out, prior=prior_run, shards=shards)
    sequence = RunConfig.load(prior_folder(prior_run) / CONFIG).sequence
    known_T = known_codes(sequence, given)
    from_rows = uses_rows(sequence, known_T)
    per_condition = 1 if not from_rows else 4 if complete_AT is None else -(-n // len(complete_AT))
    names = [f"samples/{index:04d}.png" for index in range(n)]
    planned = ["grid.png", *names, "codes.npz", "metadata.json", *["frames.gif"] * frames]
    check_few(out)
    check_publish(out, planned, COMMAND)  # before drawing, because samples that cannot be written are lost
    samples = draw_samples(
        prior_run, shards, n, config=config, per_condition=per_condition, known_T=known_T, size=size, classes=classes,
        complete_AT=complete_AT, frames=frames, prior=prior, tokenizer=tokenizer,
    )  # fmt: skip
    columns = per_condition if from_rows else 0
    stored = stored_arrays(sequence, samples.codes_NHW, samples.conditions)
    files = {"grid.png": png_bytes(sample_grid(samples, columns)), "codes.npz": packed(stored)}
    files |= {name: png_bytes(Image.fromarray(tile)) for name, tile in zip(names, samples.pictures, strict=True)}
    if frames:
        files["frames.gif"] = _gif_bytes([sample_grid(samples, columns, frame=t) for t in range(len(samples.frames))])
    files["metadata.json"] = pretty_json({
        "prior": str(prior_run), "n": n, "sampling": asdict(config),
        "samples": [{"file": name, "seed": [config.seed, i]} for i, name in enumerate(names)],
        "given": given if isinstance(given, str | int) else "mask", "given_codes": int(known_T.sum()), "size": size,
        "sequence": asdict(samples.sequence),
    })  # fmt: skip
    publish(out, files, COMMAND, last="metadata.json")
    return out / "grid.png"


def sample_grid(samples: Samples, columns: int = 0, *, scale: int = 0, frame: int | None = None) -> Image.Image:
    """Lay samples out in a grid. With hints, each row is a hint, its original, and `columns` samples.

    Args:
        samples: Samples to show.
        columns: Pictures per row; 0 gives one column per class if there are few, else a near-square grid.
        scale: Enlargement factor; 0 makes each picture about 96 pixels wide.
        frame: Index of a frame to show instead of the final pictures.
    """
    pictures = samples.pictures if frame is None else samples.frames[frame]
    scale = scale or max(1, round(96 / pictures.shape[2]))
    classes = samples.sequence.conditions[0].vocabulary if samples.sequence.condition == "class" else 0
    if not columns and 1 < classes <= min(_MAX_COLUMNS, len(pictures)):
        columns = classes
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    if samples.hints is None or samples.originals is None:
        return picture_grid(pictures, columns, scale=scale)
    tiles: list[Any] = []
    for first in range(0, len(pictures), columns):
        tiles += [samples.hints[first], samples.originals[first], *pictures[first : first + columns]]
    return picture_grid(np.stack(tiles), columns + 2, scale=scale)


def stored_arrays(
    sequence: SequenceSpec, codes_NHW: Codes, conditions: Mapping[str, Codes]
) -> dict[str, npt.NDArray[Any]]:
    """Codes and conditions as they are stored."""
    stored = {f"condition_{name}": tokens for name, tokens in conditions.items()}
    return {"codes": codes_NHW.astype(code_dtype(sequence.codebook_size)), **stored}


def packed(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return arrays as the bytes of an .npz file."""
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _gif_bytes(pictures: list[Image.Image]) -> bytes:
    """An animation that shows its last picture for two seconds."""
    buffer = BytesIO()
    durations_ms = [80] * (len(pictures) - 1) + [2000]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations_ms, loop=0)
    return buffer.getvalue()
