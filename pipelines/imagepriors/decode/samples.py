"""From a prior and a tokenizer to pictures: the only place where codes meet pixels again after stage 1."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from codeprior.checkpoint import CONFIG, RunConfig, load_prior, prior_folder
from codeprior.config import PriorError, SampleConfig, SequenceSpec
from codeprior.data import check_shards
from codeprior.model import Prior
from codeprior.sample import prefix_of_region, sample_codes, to_grids
from codeprior.window import sample_larger
from codeshards.format import ShardDataset, ShardError, Where, inverse, open_store
from imagepriors.reports.figures import colorize, picture_grid, png_bytes
from runkit.devices import pick_device
from runkit.files import pretty_json
from runkit.folders import check_apart, check_publish, publish
from vqgan.data import spread
from vqgan.tokenizer import Tokenizer

_COMMAND = "sample"
_MOST_SAMPLES = 1_000_000
_MAX_COLUMNS = 16
_FRAMES = 32
"""Pictures of an animation, about."""

Pictures = npt.NDArray[Any]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Pictures drawn from a prior, with what they were conditioned on."""

    pictures: Pictures
    """[N, H, W, 3]."""
    codes_NHW: Codes
    """Raster order."""
    conditions: dict[str, Codes]
    """Class ids [N], condition codes [N, C], by name."""
    hints: Pictures | None
    """What was given to look at, RGB [N, H, W, 3]: the first picture condition, or the given part of a picture."""
    originals: Pictures | None
    """Decoded validation pictures whose conditions or codes were used, [N, H, W, 3]."""
    sequence: SequenceSpec
    """What the prior's sequences mean."""
    frames: list[Pictures]
    """The pictures while they were drawn, where that was asked for: each [N, H, W, 3]."""


def load_shard_tokenizer(shards: Where, name: str, fingerprint: str) -> Tokenizer:
    """Load the tokenizer that lies with the shards, and make sure that it is the one whose codes they hold.

    Raises:
        ShardError: its fingerprint is another one.
    """
    place = open_store(shards) / name
    with place.as_folder() as folder:
        tokenizer = Tokenizer.load(folder, known=fingerprint)
    if tokenizer.fingerprint != fingerprint:
        raise ShardError(
            f"{place} has fingerprint {tokenizer.fingerprint}, the codes were made by {fingerprint}: "
            "decode with the tokenizer that made them"
        )
    return tokenizer


def _tokenizer_folder(prior_run: Path, shards: Path) -> Path:
    """An imported prior brings its tokenizer; all others take the one beside the shards."""
    return prior_run if (prior_run / "tokenizer").is_dir() else shards


def some_rows(dataset: ShardDataset, split: str, n: int) -> npt.NDArray[np.int64]:
    """Numbers of `n` rows of a split, or of all where there are fewer or n is 0.

    Of train, which is shuffled, they are the first of some shards; of other splits, which are sorted by class, evenly
    spread.
    """
    total = dataset.rows(split)
    n = min(n or total, total)
    if split == "train" and n:
        return _first_of_some([shard.rows for shard in dataset.shards(split)], n)
    return np.array(spread(total, n), dtype=np.int64)


def read_rows(dataset: ShardDataset, split: str, columns: Sequence[str], n: int) -> dict[str, npt.NDArray[Any]]:
    """Columns of `n` rows of a split; :func:`some_rows` says which."""
    return rows_at(dataset, split, columns, some_rows(dataset, split, n))


def _first_of_some(shard_rows: Sequence[int], n: int) -> npt.NDArray[np.int64]:
    """The first rows of up to eight shards, `n` in all, evenly over a split: merged datasets lie behind each other."""
    chosen = spread(len(shard_rows), min(len(shard_rows), 8))
    starts = np.concatenate(([0], np.cumsum(shard_rows)))
    quota = -(-n // len(chosen))
    found = np.concatenate([starts[shard] + np.arange(min(quota, shard_rows[shard])) for shard in chosen])
    if len(found) < n:  # shards that are too small
        return np.array(spread(int(starts[-1]), n), dtype=np.int64)
    return found[np.array(spread(len(found), n), dtype=np.int64)]


def rows_at(
    dataset: ShardDataset, split: str, columns: Sequence[str], wanted: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """Columns of the rows with these numbers, which rise; shards without any of them are not read."""
    parts: dict[str, list[Any]] = {column: [] for column in columns}
    start = 0
    for number, shard in enumerate(dataset.shards(split)):
        rows = wanted[(wanted >= start) & (wanted < start + shard.rows)] - start
        start += shard.rows
        if len(rows):
            of_shard = list(dataset.batches(split, list(columns), shards=[number]))
            for column, values in parts.items():
                values.append(np.concatenate([batch[column] for batch in of_shard])[rows])
    return {column: np.concatenate(values) if values else np.empty(0) for column, values in parts.items()}


def decoded_at(
    dataset: ShardDataset, split: str, wanted: npt.NDArray[np.int64], columns: Sequence[str] = ()
) -> tuple[Pictures, dict[str, npt.NDArray[Any]]]:
    """Pictures [N, H, W, 3] that the tokenizer makes of the codes of these rows, and other columns of them.

    Raises:
        ShardError: the tokenizer beside the shards is not theirs.
    """
    name, grid = dataset.spec.orders[0], dataset.spec.image
    tokenizer = load_shard_tokenizer(dataset.path, "tokenizer", grid.fingerprint)
    found = rows_at(dataset, split, [*columns, f"codes_{name}"], wanted)
    codes_NT = found.pop(f"codes_{name}")[:, inverse(name, grid.height, grid.width)]
    return tokenizer.decode(codes_NT.reshape(-1, grid.height, grid.width)), found


def _validation_rows(sequence: SequenceSpec, shards: Path, n: int) -> tuple[dict[str, Codes], Codes]:
    """Conditions by name and whole code sequences [n, T] of validation rows, again and again if there are too few.

    Raises:
        ShardError: the shards are not what the prior reads, or have no validation rows.
    """
    dataset = ShardDataset.open(shards)
    check_shards(dataset, sequence)
    if "val" not in dataset.splits or not dataset.rows("val"):
        raise ShardError(f"{shards} has no validation rows to take conditions from")
    columns = {part.name: part.column for part in sequence.conditions}
    found = read_rows(dataset, "val", [*columns.values(), *sequence.columns], n)
    rows = np.arange(n) % len(found[sequence.columns[0]])
    grids = sequence.in_sequence([found[column][rows].astype(np.int64) for column in sequence.columns])
    return {name: found[column][rows].astype(np.int64) for name, column in columns.items()}, np.concatenate(grids, 1)


def _decode_grids(tokenizer: Tokenizer, sequence: SequenceSpec, codes_NT: Codes) -> Pictures:
    """Whole sequences as pictures of their full grid."""
    return tokenizer.decode(to_grids(sequence, torch.from_numpy(codes_NT))[-1].numpy())


def partial_pictures(
    tokenizer: Tokenizer, sequence: SequenceSpec, codes_NT: Codes, whole_NT: Codes | None = None
) -> Pictures:
    """The first T codes of sequences as pictures: cells without a code are grey, coarser scales are enlarged.

    A decoder sees all cells at once, so that wrong ones tint the others: where the whole sequences are known they are
    decoded, and covered.
    """
    full = tokenizer.config.resolution
    padded_NT = np.zeros((len(codes_NT), sequence.length), np.int64) if whole_NT is None else whole_NT.copy()
    padded_NT[:, : codes_NT.shape[1]] = codes_NT
    scale, known = 0, codes_NT.shape[1]
    while known > (size := math.prod(sequence.grids[scale])):
        scale, known = scale + 1, known - size
    height, width = sequence.grids[scale]
    pictures = colorize(tokenizer.decode(to_grids(sequence, torch.from_numpy(padded_NT))[scale].numpy()))
    known_HW = np.zeros(height * width, bool)
    known_HW[sequence.permutation(height, width)[:known]] = True
    pictures = pictures.repeat(full // pictures.shape[1], 1).repeat(full // pictures.shape[2], 2)
    mask = known_HW.reshape(height, width).repeat(full // height, 0).repeat(full // width, 1)
    return np.where(mask[None, :, :, None], pictures, np.uint8(128))


def given_codes(sequence: SequenceSpec, given: str) -> int:
    """How many first codes of a sequence are meant.

    Args:
        sequence: What the prior's sequences mean.
        given: A number of codes; `upper` half, upper left `corner` (a quarter), or `centre` (a quarter) of the picture;
            or `scales-K`, the first K scales of a multiscale prior.

    Raises:
        ShardError: no such region or scales, or the prior's order does not begin with it.
    """
    if given.isdecimal():
        return int(given)
    if given.startswith("scales-") and given[7:].isdecimal():
        if not 0 < int(given[7:]) <= len(sequence.scales):
            raise ShardError(f"given = {given!r}: this prior has {len(sequence.scales)} scales before the full grid")
        return sum(math.prod(grid) for grid in sequence.grids[: int(given[7:])])
    height, width = sequence.height, sequence.width
    regions = {
        "upper": np.s_[: height // 2, :],
        "corner": np.s_[: height // 2, : width // 2],
        "centre": np.s_[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2],
    }
    if given not in regions:
        raise ShardError(f"given = {given!r}: use a number of codes, {', '.join(regions)}, or scales-K")
    region_HW = torch.zeros(height, width, dtype=torch.bool)
    region_HW[regions[given]] = True
    return prefix_of_region(sequence, torch.zeros(1, height, width, dtype=torch.int64), region_HW).shape[1]


def draw_samples(
    prior_run: Path,
    shards: Path,
    n: int,
    *,
    config: SampleConfig,
    per_condition: int = 1,
    given: int = 0,
    size: tuple[int, int] | None = None,
    frames: bool = False,
    sources: bool = True,
) -> Samples:
    """Draw `n` pictures; conditions come from validation rows of the shards, spread evenly, and classes in turn.

    Args:
        prior_run: Trained prior.
        shards: Folder of token shards with its tokenizers.
        n: Pictures.
        config: How to draw.
        per_condition: Pictures drawn for each condition before the next one's turn.
        given: Codes of validation pictures that are given, the first ones of the prior's sequence; the rest is drawn.
        size: Rows and columns of codes, for pictures larger than the training pictures.
        frames: Also keep what the pictures look like while they are drawn.
        sources: Also decode what was given and the pictures that it is from, where there are such.

    Raises:
        ShardError: prior, shards and tokenizer do not belong together, or the prior cannot do what is asked for.
    """
    _check_count(n)
    prior = load_prior(prior_run, device=pick_device("auto"))
    sequence = prior.sequence
    if config.guidance != 1 and RunConfig.load(prior_folder(prior_run) / CONFIG).train.cond_dropout == 0:
        raise ShardError(
            f"guidance = {config.guidance}: {prior_run} was trained with cond_dropout = 0 and knows no null condition; "
            "use 1, or train with --cond-dropout 0.1"
        )
    pictured = [part.name for part in sequence.conditions if part.name != "class"]
    if size is not None and pictured:
        raise ShardError(
            f"size = {size[0]}×{size[1]}: the condition {pictured[0]!r} of this prior comes from validation pictures, "
            "which are not larger; codeprior.window.sample_larger takes larger conditions"
        )
    if not 0 <= given < sequence.length:
        raise ShardError(f"given = {given}: this prior's sequences have {sequence.length} codes; leave some to draw")
    tokenizer = load_shard_tokenizer(_tokenizer_folder(prior_run, shards), "tokenizer", sequence.fingerprint)
    rows: dict[str, Codes] = {}
    whole_AT: Codes | None = None
    asked = -(-n // per_condition)
    if given or pictured:
        rows, whole_AT = _validation_rows(sequence, shards, asked)
    elif sequence.conditions:
        rows = {"class": np.arange(asked) % sequence.conditions[0].vocabulary}

    def each(of_A: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return of_A.repeat(per_condition, 0)[:n]

    conditions = {name: each(tokens) for name, tokens in rows.items()}
    prefix_NP = None if whole_AT is None else each(whole_AT[:, :given])
    codes_NHW, seen = _draw(prior, n, conditions, prefix_NP, config, size, frames)
    hints = originals = None
    if whole_AT is not None and sources:
        hints = each(_hints(tokenizer, sequence, shards, rows, whole_AT[:, :given] if given else None, whole_AT))
        originals = each(_decode_grids(tokenizer, sequence, whole_AT))
    return Samples(
        pictures=tokenizer.decode(codes_NHW),
        codes_NHW=codes_NHW,
        conditions=conditions,
        hints=hints,
        originals=originals,
        sequence=sequence,
        frames=[partial_pictures(tokenizer, sequence, codes_NT) for codes_NT in seen],
    )


def _draw(
    prior: Prior,
    n: int,
    conditions: dict[str, Codes],
    prefix_NP: Codes | None,
    config: SampleConfig,
    size: tuple[int, int] | None,
    frames: bool,
) -> tuple[Codes, list[Codes]]:
    """Codes [N, H, W], and if asked for the codes so far [N, t] at some steps."""
    condition = {name: torch.from_numpy(tokens) for name, tokens in conditions.items()} or None
    if size is not None:
        if frames or (prefix_NP is not None and prefix_NP.shape[1]):
            raise PriorError("size: larger pictures are drawn without frames and from nothing given")
        return sample_larger(prior, n, *size, condition=condition, config=config).numpy(), []
    every = max(1, prior.sequence.length // _FRAMES)
    seen: dict[int, list[Codes]] = {}

    def watch(_: int, t: int, codes_BT: torch.Tensor) -> None:
        if (t + 1) % every == 0 or t + 1 == prior.sequence.length:
            seen.setdefault(t, []).append(codes_BT.cpu().numpy().copy())

    prefix = None if prefix_NP is None else torch.from_numpy(prefix_NP)
    codes_NHW = sample_codes(
        prior, n, condition=condition, config=config, prefix_NP=prefix, watch=watch if frames else None
    )
    return codes_NHW.numpy(), [np.concatenate(parts) for _, parts in sorted(seen.items())]


def _hints(
    tokenizer: Tokenizer,
    sequence: SequenceSpec,
    shards: Path,
    conditions: dict[str, Codes],
    prefix_NP: Codes | None,
    whole_NT: Codes,
) -> Pictures:
    """What the prior was given, as pictures."""
    if prefix_NP is not None:
        return partial_pictures(tokenizer, sequence, prefix_NP, whole_NT)
    part = next(part for part in sequence.conditions if part.name != "class")
    encoder = load_shard_tokenizer(shards, f"tokenizer-{part.name}", part.fingerprint)
    return colorize(encoder.decode(conditions[part.name].reshape(-1, part.height, part.width)))


def sample_grid(samples: Samples, columns: int = 0, *, scale: int = 0, frame: int | None = None) -> Image.Image:
    """Lay samples out; those with something given as rows of hint, original, then `columns` samples of it.

    Args:
        samples: What to show.
        columns: Pictures a row; 0 gives each of a few classes a column, else chooses a near-square grid.
        scale: Enlargement; 0 makes every picture about 96 pixels wide.
        frame: Show this frame instead of the finished pictures.
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


def _check_count(n: int) -> None:
    if not 1 <= n <= _MOST_SAMPLES:
        raise ShardError(f"n is {n}: choose 1 to {_MOST_SAMPLES:,} pictures, all of which are held in memory")


def write_samples(
    prior_run: Path,
    shards: Path,
    out: Path,
    n: int,
    *,
    config: SampleConfig,
    given: str = "0",
    size: tuple[int, int] | None = None,
    frames: bool = False,
) -> Path:
    """Write grid.png, samples/NNNN.png, codes.npz, metadata.json and perhaps frames.gif into `out`.

    They take the place of those of an earlier draw; what something else has made there is never touched.

    Returns:
        The grid's path. The arguments are those of `draw_samples`, but `given` is what `given_codes` takes.

    Raises:
        UserError: `out` is, holds or is in the prior or the shards, or has a file of such a name from elsewhere.
        ShardError: as `draw_samples`.
    """
    _check_count(n)
    check_apart(out, prior=prior_run, shards=shards)
    sequence = RunConfig.load(prior_folder(prior_run) / CONFIG).sequence
    known = given_codes(sequence, given)
    rows = known > 0 or any(part.name != "class" for part in sequence.conditions)
    per_condition = 4 if rows else 1
    names = [f"samples/{index:04d}.png" for index in range(n)]
    always = ["grid.png", *names, "codes.npz", "metadata.json"]
    check_publish(
        out, [*always, *["frames.gif"] * frames], _COMMAND
    )  # first: samples that nothing can take would be lost
    samples = draw_samples(
        prior_run, shards, n, config=config, per_condition=per_condition, given=known, size=size, frames=frames
    )
    columns = per_condition if rows else 0
    files = {"grid.png": png_bytes(sample_grid(samples, columns))}
    files |= {name: png_bytes(Image.fromarray(tile)) for name, tile in zip(names, samples.pictures, strict=True)}
    if frames:
        files["frames.gif"] = gif_bytes([sample_grid(samples, columns, frame=t) for t in range(len(samples.frames))])
    arrays: dict[str, npt.NDArray[Any]] = {"codes": samples.codes_NHW.astype(np.uint16)}
    arrays |= {f"condition_{name}": tokens for name, tokens in samples.conditions.items()}
    packed = BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    files["codes.npz"] = packed.getvalue()
    metadata = {
        "prior": str(prior_run),
        "n": n,
        "sampling": asdict(config),
        "samples": [{"file": name, "seed": [config.seed, i]} for i, name in enumerate(names)],
        "given_codes": known,
        "size": size,
        "sequence": asdict(samples.sequence),
    }
    files["metadata.json"] = pretty_json(metadata)
    publish(out, files, _COMMAND, last="metadata.json")
    return out / "grid.png"


def gif_bytes(pictures: list[Image.Image]) -> bytes:
    """An animation that holds its last picture for two seconds."""
    buffer = BytesIO()
    durations_ms = [80] * (len(pictures) - 1) + [2000]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations_ms, loop=0)
    return buffer.getvalue()
