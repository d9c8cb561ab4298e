"""Draw samples from a prior and decode them to pictures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from codeprior.checkpoint import CONFIG, RunConfig, load_prior, prior_folder
from codeprior.config import PriorError, SequenceSpec
from codeprior.data import check_shards
from codeprior.given import UNKNOWN
from codeprior.model import Prior
from codeprior.sample import sample_codes, to_grids
from codeprior.sample_config import SampleConfig
from codeprior.window import sample_larger
from codeshards.format import ShardDataset, ShardError, Where
from imagepriors.decode.partial import Codes, Mask, decode_partial
from imagepriors.decode.rows import load_shard_tokenizer, read_rows, select_rows
from imagepriors.reports.figures import colorize
from runkit.devices import Device, pick_device
from vqgan.tokenizer import Tokenizer

_MAX_SAMPLES = 1_000_000
_FRAMES = 32
"""Approximate number of frames in an animation."""

Pictures = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Pictures drawn from a prior, with their conditions."""

    pictures: Pictures
    """[N, H, W, 3]."""
    codes_NHW: Codes
    """Raster order."""
    conditions: dict[str, Codes]
    """Class ids [N] or condition codes [N, C], by name."""
    hints: Pictures | None
    """The first picture condition, or the given part of a picture, as RGB [N, H, W, 3]."""
    originals: Pictures | None
    """Decoded validation pictures that the conditions or given codes are from, [N, H, W, 3]."""
    sequence: SequenceSpec
    """Layout of the prior's sequences."""
    frames: list[Pictures]
    """Intermediate pictures [N, H, W, 3] if frames were requested, else empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnCodes:
    """Codes drawn from a prior, with the validation rows that their conditions are from."""

    codes_NHW: Codes
    """Raster order."""
    conditions: dict[str, Codes]
    """Class ids [N] or condition codes [N, C], by name."""
    row_conditions: dict[str, Codes]
    """The same of each distinct condition, [A] or [A, C]."""
    rows_AT: Codes | None
    """Whole code sequences of the validation rows, None if the conditions are classes."""
    given_AT: Codes | None
    """The known codes of these rows, -1 where codes are drawn; None if the conditions are classes."""
    steps: list[Codes]
    """The codes [N, T] after some steps, -1 where none is known, if frames were requested, else empty."""


def draw_codes(
    prior: Prior,
    prior_run: Path,
    shards: Path,
    n: int,
    *,
    config: SampleConfig,
    per_condition: int = 1,
    known_T: Mask | None = None,
    size: tuple[int, int] | None = None,
    classes: Codes | None = None,
    complete_AT: Codes | None = None,
    frames: bool = False,
) -> DrawnCodes:
    """Draw the codes of `n` pictures. Arguments and errors are those of :func:`draw_samples`, with a loaded prior."""
    check_count(n)
    sequence = prior.sequence
    known_T = np.zeros(sequence.length, bool) if known_T is None else known_T
    _check_arguments(prior_run, sequence, config, known_T, size)
    count, rows_AT = -(-n // per_condition), complete_AT
    if complete_AT is not None:
        selected = _classes_of(sequence, count, classes)
    elif classes is None:
        selected, rows_AT = select_conditions(sequence, shards, count, range(count), known_T)
    else:
        selected = {"class": classes}
    conditions = {name: tokens.repeat(per_condition, 0)[:n] for name, tokens in selected.items()}
    given_AT = None if rows_AT is None else np.where(known_T, rows_AT, UNKNOWN)
    given_NT = given_AT.repeat(per_condition, 0)[:n] if given_AT is not None and known_T.any() else None
    codes_NHW, steps = _sample(prior, n, conditions, given_NT, config, size, frames)
    return DrawnCodes(
        codes_NHW=codes_NHW, conditions=conditions, row_conditions=selected, rows_AT=rows_AT, given_AT=given_AT,
        steps=steps,
    )  # fmt: skip


def draw_samples(
    prior_run: Path,
    shards: Path,
    n: int,
    *,
    config: SampleConfig,
    per_condition: int = 1,
    known_T: Mask | None = None,
    size: tuple[int, int] | None = None,
    classes: Codes | None = None,
    complete_AT: Codes | None = None,
    frames: bool = False,
    sources: bool = True,
    prior: Prior | None = None,
    tokenizer: Tokenizer | None = None,
) -> Samples:
    """Draw `n` pictures. Conditions are those of evenly spaced validation rows; classes take turns.

    Args:
        prior_run: Run folder of a trained prior.
        shards: Folder of token shards with its tokenizers.
        n: Number of pictures.
        config: Sampling configuration.
        per_condition: Consecutive pictures per condition.
        known_T: The codes to take from validation pictures, bool [T] in the prior's order; see :func:`.known_codes`.
        size: Rows and columns of codes, for pictures larger than the training pictures.
        classes: Class [N] of each picture, for a prior whose condition is class; with nothing known and one picture
            per condition.
        complete_AT: Code sequences of pictures whose known codes are completed, in place of validation rows; with
            `classes` [A], if the condition is class.
        frames: Whether to keep intermediate pictures.
        sources: Whether to decode the given codes or conditions, and the pictures that they are from.
        prior: The prior, if it is already loaded.
        tokenizer: Its tokenizer, if it is already loaded.

    Raises:
        ShardError: prior, shards and tokenizer do not match, or an argument is out of range.
        PriorError: the prior does not support the arguments.
    """
    check_count(n)
    prior = prior or load_prior(prior_run, device=pick_device("auto"))
    sequence = prior.sequence
    tokenizer = tokenizer or load_prior_tokenizer(prior_run, shards, sequence)
    drawn = draw_codes(
        prior, prior_run, shards, n, config=config, per_condition=per_condition, known_T=known_T, size=size,
        classes=classes, complete_AT=complete_AT, frames=frames,
    )  # fmt: skip
    hints_A = originals_A = None
    if (rows_AT := drawn.rows_AT) is not None and drawn.given_AT is not None and sources:
        hints_A = (
            decode_partial(tokenizer, sequence, drawn.given_AT, rows_AT)
            if (drawn.given_AT != UNKNOWN).any()
            else decode_condition(sequence, shards, drawn.row_conditions)
        )
        originals_A = tokenizer.decode(to_grids(sequence, torch.from_numpy(rows_AT))[-1].numpy())
    hints, originals = (
        None if values is None else values.repeat(per_condition, 0)[:n] for values in (hints_A, originals_A)
    )
    return Samples(
        pictures=tokenizer.decode(drawn.codes_NHW), codes_NHW=drawn.codes_NHW, conditions=drawn.conditions,
        hints=hints, originals=originals, sequence=sequence,
        frames=[decode_partial(tokenizer, sequence, codes_NT) for codes_NT in drawn.steps],
    )  # fmt: skip


def check_count(n: int) -> None:
    """Refuse a number of pictures that is out of range.

    Raises:
        ShardError: it is.
    """
    if not 1 <= n <= _MAX_SAMPLES:
        raise ShardError(f"n is {n}: choose 1 to {_MAX_SAMPLES:,} pictures")


def check_guidance(prior_run: Path, config: SampleConfig) -> None:
    """Refuse guidance of a prior that was trained without the null condition.

    Raises:
        PriorError: it was.
    """
    if config.guidance != 1 and RunConfig.load(prior_folder(prior_run) / CONFIG).train.cond_dropout == 0:
        raise PriorError(
            f"guidance = {config.guidance}: {prior_run} was trained with cond_dropout = 0 and knows no null condition; "
            "use 1, or train with cond_dropout = 0.1"
        )


def _check_arguments(
    prior_run: Path, sequence: SequenceSpec, config: SampleConfig, known_T: Mask, size: tuple[int, int] | None
) -> None:
    check_guidance(prior_run, config)
    pictured = [part.name for part in sequence.conditions if part.name != "class"]
    if size is not None and pictured:
        raise ShardError(
            f"size = {size[0]}×{size[1]}: the condition {pictured[0]!r} of this prior comes from validation pictures, "
            "which are not larger; codeprior.window.sample_larger takes larger conditions"
        )


def _classes_of(sequence: SequenceSpec, count: int, classes: Codes | None) -> dict[str, Codes]:
    """The condition of `count` pictures that are completed: their classes, if the prior has that condition.

    Raises:
        PriorError: The prior has another condition, which such pictures do not have.
    """
    if sequence.condition not in ("none", "class"):
        raise PriorError(f"the condition {sequence.condition!r} of this prior is known of validation pictures only")
    if not sequence.conditions:
        return {}
    if classes is None:
        raise PriorError("this prior is conditioned on the class: name the class of each picture that it completes")
    return {"class": classes[:count]}


def uses_rows(sequence: SequenceSpec, known_T: Mask) -> bool:
    """Whether samples take known codes or conditions from validation rows, and not classes alone."""
    return bool(known_T.any()) or any(part.name != "class" for part in sequence.conditions)


def select_conditions(
    sequence: SequenceSpec, shards: Where, n: int, samples: range, known_T: Mask
) -> tuple[dict[str, Codes], Codes | None]:
    """Return the conditions of some of `n` samples.

    Args:
        sequence: Layout of the prior's sequences.
        shards: Folder of token shards.
        n: Number of samples.
        samples: Those of which the conditions are read.
        known_T: The known codes; see :func:`draw_samples`.

    Returns:
        Conditions by name, and the whole code sequences that they are from, None if they are classes.

    Raises:
        ShardError: the shards do not fit the prior, or have no validation rows.
    """
    indices = np.arange(samples.start, samples.stop)
    if uses_rows(sequence, known_T):
        return _validation_rows(sequence, shards, n, indices)
    if sequence.conditions:
        return {"class": indices % sequence.conditions[0].vocabulary}, None
    return {}, None


def _validation_rows(
    sequence: SequenceSpec, shards: Where, n: int, indices: npt.NDArray[np.int64]
) -> tuple[dict[str, Codes], Codes]:
    """Conditions and whole code sequences of validation rows, which repeat if there are fewer than `n`."""
    dataset = ShardDataset.open(shards)
    check_shards(dataset, sequence)
    if "val" not in dataset.splits or not dataset.rows("val"):
        raise ShardError(f"{shards} has no validation rows to take conditions from")
    columns = {part.name: part.column for part in sequence.conditions}
    chosen = select_rows(dataset, "val", n)
    rows, places = np.unique(chosen[indices % len(chosen)], return_inverse=True)
    found = read_rows(dataset, "val", [*columns.values(), *sequence.columns], rows)
    found = {name: values[places].astype(np.int64) for name, values in found.items()}
    grids = sequence.in_sequence([found[column] for column in sequence.columns])
    return {name: found[column] for name, column in columns.items()}, np.concatenate(grids, 1)


def _sample(
    prior: Prior,
    n: int,
    conditions: dict[str, Codes],
    given_NT: Codes | None,
    config: SampleConfig,
    size: tuple[int, int] | None,
    frames: bool,
) -> tuple[Codes, list[Codes]]:
    """Codes [N, H, W], and the codes [N, T] after some steps if frames are requested."""
    condition = {name: torch.from_numpy(tokens) for name, tokens in conditions.items()} or None
    if size is not None:
        if frames or given_NT is not None:
            raise PriorError("size: larger pictures are drawn without frames and from nothing given")
        return sample_larger(prior, n, *size, condition=condition, config=config).numpy(), []
    every = max(1, prior.sequence.length // _FRAMES)
    config = replace(config, drafts=0) if frames else config  # so that all batches have the same steps
    steps: dict[int, list[Codes]] = {}
    known: dict[int, int] = {}

    def watch(first: int, codes_BT: torch.Tensor) -> None:
        count = int((codes_BT[0] != UNKNOWN).sum())
        if count // every > known.get(first, 0) // every or count == prior.sequence.length:
            steps.setdefault(count, []).append(codes_BT.cpu().numpy().copy())
        known[first] = count

    given = None if given_NT is None else torch.from_numpy(given_NT)
    codes_NHW = sample_codes(
        prior, n, condition=condition, config=config, given_NT=given, watch=watch if frames else None
    )
    return codes_NHW.numpy(), [np.concatenate(batches) for _, batches in sorted(steps.items())]


def load_prior_tokenizer(
    prior_run: Path, shards: Path, sequence: SequenceSpec, *, device: Device = "auto"
) -> Tokenizer:
    """Load the tokenizer of a prior's codes: its own if it was imported, else that of the shards.

    Raises:
        ShardError: The tokenizer did not make the codes.
    """
    root = prior_run if (prior_run / "tokenizer").is_dir() else shards
    return load_shard_tokenizer(root, "tokenizer", sequence.fingerprint, device=device)


def decode_condition(sequence: SequenceSpec, shards: Path, conditions: dict[str, Codes]) -> Pictures:
    """The first picture condition as RGB pictures."""
    part = next(part for part in sequence.conditions if part.name != "class")
    tokenizer = load_shard_tokenizer(shards, f"tokenizer-{part.name}", part.fingerprint)
    return colorize(tokenizer.decode(conditions[part.name].reshape(-1, part.height, part.width)))
