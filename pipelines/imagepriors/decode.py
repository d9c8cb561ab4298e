"""From a prior and a tokenizer to pictures: the only place where codes meet pixels again after stage 1."""

from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from codeprior.checkpoint import load_prior
from codeprior.config import SampleConfig, SequenceSpec
from codeprior.optim import resolve_device
from codeprior.sample import sample_codes
from codeshards.format import ShardDataset, ShardError, Where, atomic_write, atomic_write_json, inverse, open_store
from imagepriors.figures import colorize, picture_grid
from vqgan.tokenizer import Tokenizer

_MAX_COLUMNS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Pictures drawn from a prior, with what they were conditioned on."""

    pictures: npt.NDArray[Any]
    """[N, H, W, 3]."""
    codes_NHW: npt.NDArray[np.int64]
    """Raster order."""
    condition: npt.NDArray[np.int64] | None
    """Class ids [N], condition codes [N, C], or None."""
    condition_pictures: npt.NDArray[Any] | None
    """The conditions to look at, RGB [N, H, W, 3]."""
    originals: npt.NDArray[Any] | None
    """Decoded pictures whose conditions were used, [N, H, W, 3]."""
    sequence: SequenceSpec
    """What the prior's sequences mean."""


def load_shard_tokenizer(shards: Where, name: str, fingerprint: str) -> Tokenizer:
    """Load the tokenizer that lies with the shards, and make sure that it is the one whose codes they hold.

    Raises:
        ShardError: its fingerprint is another one.
    """
    place = open_store(shards) / name
    with place.as_folder() as folder:
        tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != fingerprint:
        raise ShardError(
            f"{place} has fingerprint {tokenizer.fingerprint}, the codes were made by {fingerprint}: "
            "decode with the tokenizer that made them"
        )
    return tokenizer


def _conditions(sequence: SequenceSpec, dataset: ShardDataset, n: int) -> tuple[Any, Any]:
    """(condition [n] or [n, C], image codes [n, T] of the same validation rows) or (classes, None) or (None, None)."""
    if sequence.condition == "none":
        return None, None
    if sequence.condition == "class":
        return np.arange(n) % sequence.condition_vocabulary, None
    columns = [f"cond_{sequence.condition}", f"codes_{dataset.spec.orders[0]}"]
    batch = next(dataset.batches("val", columns, batch_rows=max(n, 1)))
    rows = np.arange(n) % len(batch[columns[0]])
    return batch[columns[0]][rows].astype(np.int64), batch[columns[1]][rows]


def draw_samples(prior_run: Path, shards: Path, n: int, *, config: SampleConfig, per_condition: int = 1) -> Samples:
    """Draw `n` pictures; conditions come from the validation rows of the shards, classes in turn.

    Args:
        prior_run: Trained prior.
        shards: Folder of token shards with its tokenizers.
        n: Pictures.
        config: How to draw.
        per_condition: Pictures drawn for each condition before the next one's turn.

    Raises:
        ShardError: prior, shards and tokenizer do not belong together.
    """
    if n < 1:
        raise ShardError(f"n is {n}: draw at least one picture")
    device = resolve_device("auto")
    prior = load_prior(prior_run, device=device)
    sequence, dataset = prior.sequence, ShardDataset.open(shards)
    tokenizer = load_shard_tokenizer(shards, "tokenizer", sequence.fingerprint)
    condition, image_codes = _conditions(sequence, dataset, -(-n // per_condition))
    if condition is not None:
        condition = condition.repeat(per_condition, 0)[:n]
    drawn = sample_codes(prior, n, condition=None if condition is None else torch.from_numpy(condition), config=config)
    codes_NHW = drawn.cpu().numpy()
    condition_pictures = originals = None
    if image_codes is not None:
        grid = dataset.spec.conditions[sequence.condition]
        name = f"tokenizer-{sequence.condition}"
        encoder = load_shard_tokenizer(shards, name, sequence.condition_fingerprint)
        condition_pictures = colorize(encoder.decode(condition.reshape(-1, grid.height, grid.width)))
        raster = image_codes[:, inverse(dataset.spec.orders[0], sequence.height, sequence.width)]
        originals = tokenizer.decode(raster.repeat(per_condition, 0)[:n].reshape(codes_NHW.shape))
    return Samples(
        pictures=tokenizer.decode(codes_NHW),
        codes_NHW=codes_NHW,
        condition=condition,
        condition_pictures=condition_pictures,
        originals=originals,
        sequence=sequence,
    )


def sample_grid(samples: Samples, columns: int = 0, *, scale: int = 0) -> Image.Image:
    """Lay samples out; conditional ones as rows of condition, original, then `columns` samples of it.

    Args:
        samples: What to show.
        columns: Pictures a row; 0 gives each of a few classes a column, else chooses a near-square grid.
        scale: Enlargement; 0 makes every picture about 96 pixels wide.
    """
    scale = scale or max(1, round(96 / samples.pictures.shape[2]))
    classes = samples.sequence.condition_vocabulary if samples.sequence.condition == "class" else 0
    if not columns and 1 < classes <= min(_MAX_COLUMNS, len(samples.pictures)):
        columns = classes
    columns = columns or int(np.ceil(np.sqrt(len(samples.pictures))))
    if samples.condition_pictures is None or samples.originals is None:
        return picture_grid(samples.pictures, columns, scale=scale)
    tiles: list[Any] = []
    for first in range(0, len(samples.pictures), columns):
        chosen = samples.pictures[first : first + columns]
        tiles += [samples.condition_pictures[first], samples.originals[first], *chosen]
    return picture_grid(np.stack(tiles), columns + 2, scale=scale)


def write_samples(prior_run: Path, shards: Path, out: Path, n: int, *, config: SampleConfig) -> Path:
    """Write grid.png, samples/NNNN.png, codes.npz and metadata.json into `out`; returns the grid's path.

    Raises:
        ShardError: as `draw_samples`.
    """
    conditional = load_prior(prior_run).sequence.condition not in ("none", "class")
    per_condition = 4 if conditional else 1
    samples = draw_samples(prior_run, shards, n, config=config, per_condition=per_condition)
    (out / "samples").mkdir(parents=True, exist_ok=True)
    save_png(sample_grid(samples, per_condition if conditional else 0), out / "grid.png")
    for index, picture in enumerate(samples.pictures):
        save_png(Image.fromarray(picture), out / "samples" / f"{index:04d}.png")
    arrays: dict[str, npt.NDArray[Any]] = {"codes": samples.codes_NHW.astype(np.uint16)}
    if samples.condition is not None:
        arrays["condition"] = samples.condition
    with atomic_write(out / "codes.npz") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    metadata = {"prior": str(prior_run), "n": n, "sampling": asdict(config), "sequence": asdict(samples.sequence)}
    atomic_write_json(out / "metadata.json", metadata)
    return out / "grid.png"


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
