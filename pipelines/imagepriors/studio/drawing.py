"""Drawing: pictures of a prior, sent while their codes are drawn.

Axes: N pictures, T codes of a sequence, C tokens of a condition, h × w the grid of codes.
"""

import dataclasses
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from codeprior.config import PriorError, SequenceSpec
from codeprior.given import UNKNOWN, given_region, given_scales
from codeprior.sample import sample_codes
from codeprior.sample_config import SampleConfig
from codeshards.format import Store, absolute
from imagepriors.api.conditions import condition_tokens
from imagepriors.decode.draw import select_conditions
from imagepriors.decode.partial import decode_partial
from imagepriors.reports.figures import colorize
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event, Report
from imagepriors.studio.pictures import uris
from imagepriors.studio.tokens import grids
from runkit.configs import check_fields, from_dict, require
from runkit.errors import UserError
from runkit.suggestions import choose_one_of
from vqgan.tokenizer import Tokenizer

Codes = npt.NDArray[np.int64]
MAX_PICTURES = 16
_PER_CONDITION = 4
"""Consecutive pictures per validation row, as the command line draws them."""
_CHOSEN = frozenset({
    "temperature", "temperature_end", "top_k", "top_p", "min_p", "guidance", "guidance_schedule", "guidance_power",
    "guidance_interval", "order", "steps", "schedule", "choice_temperature", "seed", "batch_size",
})  # fmt: skip
"""Fields of SampleConfig that a page may set; the others decide about memory and time."""
_SHOWING = 0.25
"""Fraction of the time in which unfinished pictures may be decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawRequest:
    """What to draw."""

    prior: str
    """Name of the prior."""
    n: int = 4
    """Number of pictures."""
    conditions: dict[str, int | list[int]] = field(default_factory=dict)
    """Name → class, or codes of a condition in raster order, for all pictures. Those that are missing are the classes
    in turn, or of validation rows."""
    codes: list[int] | None = None
    """Codes of a picture to complete, in raster order."""
    known: list[int] | None = None
    """Its cells that are kept, in raster order; the others are drawn."""
    scales: int | None = None
    """In place of cells, for a multiscale prior: its first scales that are kept."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Fields of SampleConfig that differ from the defaults of the command line."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(1 <= self.n <= MAX_PICTURES, "n", self.n, f"use 1 to {MAX_PICTURES} pictures")
        kept = [value for value in (self.known, self.scales) if value is not None]
        together = len(kept) == (self.codes is not None)
        require(together, "known", self.known, "send codes together with known, or with scales")
        if others := self.sampling.keys() - _CHOSEN:
            raise UserError(f"sampling has {min(others)!r}: {choose_one_of(min(others), sorted(_CHOSEN))}")


def draw(contents: Contents, request: DrawRequest, report: Report) -> Event:
    """Draw pictures, and report them while they are drawn.

    Args:
        contents: What the page shows.
        request: What to draw.
        report: Gets the codes that are drawn, all codes to draw, and from time to time the unfinished ``pictures``.

    Returns:
        ``pictures``, their ``codes`` [N][h·w] and ``classes`` (if the prior has them), ``hints`` (conditions that were
        taken from validation rows) with ``pictures_per_hint``, ``kept`` (a picture of the scales that are kept, if any
        are), and the ``command`` that draws the same, empty if there is none.

    Raises:
        UserError: A name, a condition, the known cells or a field of the sampling does not fit.
    """
    prior, tokenizer = contents.prior(request.prior), contents.image_tokenizer(request.prior).loaded
    sequence, config = prior.sequence, sampling_of(contents, request)
    conditions = conditions_of(contents, request)
    given_NT = _given(sequence, tokenizer, request)
    each = sequence.length if given_NT is None else int((given_NT[0] == UNKNOWN).sum())
    total = request.n * each
    shown_s, cost_s = time.monotonic(), 0.0

    def watch(first: int, codes_BT: torch.Tensor) -> None:
        nonlocal shown_s, cost_s
        done = (first + len(codes_BT)) * each - int((codes_BT == UNKNOWN).sum())
        if time.monotonic() - shown_s < cost_s / _SHOWING or first:
            return report(done, total)
        started = time.monotonic()
        pictures = decode_partial(tokenizer, sequence, codes_BT.cpu().numpy())
        report(done, total, pictures=uris(pictures))
        shown_s = time.monotonic()
        cost_s = shown_s - started
        return None

    codes_Nhw = sample_codes(
        prior.loaded,
        request.n,
        condition={name: torch.from_numpy(tokens) for name, tokens in conditions.items()} or None,
        config=config,
        given_NT=None if given_NT is None else torch.from_numpy(given_NT),
        watch=watch,
    ).numpy()
    return {
        "pictures": uris(tokenizer.decode(codes_Nhw)),
        "codes": codes_Nhw.reshape(request.n, -1).tolist(),
        "classes": conditions["class"].tolist() if "class" in conditions else [],
        "hints": _hints(contents, request, conditions),
        "pictures_per_hint": _PER_CONDITION,
        "kept": uris(decode_partial(tokenizer, sequence, given_NT[:1]))
        if request.scales and given_NT is not None
        else [],
        "command": command(contents, request),
    }


def sampling_of(contents: Contents, request: DrawRequest) -> SampleConfig:
    """Return the sampling configuration of a request: the command line's, with the fields that the request changes."""
    defaults = dataclasses.asdict(contents.sampling(request.prior))
    config: SampleConfig = from_dict(SampleConfig, defaults | request.sampling)
    if config.guidance != 1 and not contents.prior(request.prior).can_be_guided:
        raise PriorError(
            f"guidance is {config.guidance}: {request.prior} was trained without the null condition; use 1, or train "
            "with cond_dropout = 0.1"
        )
    return config


def _from_rows(sequence: SequenceSpec, request: DrawRequest) -> bool:
    """Whether conditions are taken from validation rows."""
    return any(part.name != "class" and part.name not in request.conditions for part in sequence.conditions)


def conditions_of(contents: Contents, request: DrawRequest) -> dict[str, Codes]:
    """Return the conditions of the pictures by name: class ids [N], or codes [N, C].

    Raises:
        UserError: A condition is not one of the prior's.
    """
    prior, n = contents.prior(request.prior), request.n
    sequence, found = prior.sequence, dict[str, Codes]()
    if unknown := set(request.conditions) - {part.name for part in sequence.conditions}:
        raise UserError(f"condition {min(unknown)!r}: {request.prior} is conditioned on {sequence.condition!r}")
    if not sequence.conditions:
        return {}
    from_rows = _from_rows(sequence, request)
    if from_rows and request.codes is not None:
        raise UserError(
            f"{request.prior} is conditioned on {sequence.condition!r}, which this picture does not have: choose a "
            "picture of the shards, or another prior"
        )
    chosen = {name: [value] * n for name, value in request.conditions.items()}
    if from_rows:
        count = -(-n // _PER_CONDITION)
        nothing = np.zeros(sequence.length, bool)
        rows, _ = select_conditions(sequence, _shards_of(contents, request.prior), count, range(count), nothing)
        found = {name: tokens.repeat(_PER_CONDITION, 0)[:n] for name, tokens in rows.items()}
    elif sequence.conditions[0].name == "class" and "class" not in chosen:
        chosen["class"] = [index % sequence.conditions[0].vocabulary for index in range(n)]
    return found | condition_tokens(sequence, chosen, n)


def _hints(contents: Contents, request: DrawRequest, conditions: dict[str, Codes]) -> list[str]:
    """The first condition that was taken from validation rows, a picture for each row; empty if none was."""
    sequence = contents.prior(request.prior).sequence
    if not _from_rows(sequence, request):
        return []
    part = next(part for part in sequence.conditions if part.name not in ("class", *request.conditions))
    tokenizer = contents.condition_tokenizer(request.prior, part.name).loaded
    codes_Ahw = conditions[part.name][::_PER_CONDITION].reshape(-1, part.height, part.width)
    return uris(colorize(tokenizer.decode(codes_Ahw)))


def _shards_of(contents: Contents, prior: str) -> Store:
    """The shards whose validation rows have the conditions of a prior.

    Raises:
        UserError: They are not among the shards.
    """
    if (name := contents.shards_of(prior)) is None:
        raise UserError(
            f"the conditions of {prior} come from token shards that are not on this page: open the studio with their "
            "folder, too"
        )
    return contents.shards[name].path


def shards_elsewhere(contents: Contents, prior: str) -> str:
    """Return the path or address of a prior's shards as the user wrote it; empty if they are beside the prior."""
    name = contents.shards_of(prior)
    if name is None or Path(str(absolute(contents.shards[name].path))) == contents.prior(prior).shards:
        return ""
    return contents.typed[name]


def _given(sequence: SequenceSpec, tokenizer: Tokenizer, request: DrawRequest) -> Codes | None:
    """The known codes [N, T] of a picture to complete, -1 where codes are drawn; None where nothing is known.

    Raises:
        UserError: Their number is wrong, one is not in the codebook, nothing is left to draw, or the prior does not
            begin with what is known.
    """
    if request.codes is None:
        return None
    cells = sequence.height * sequence.width
    known = request.known or []
    if not set(known) <= set(range(cells)):
        raise UserError(f"a known cell is not in the picture: send cells from 0 to {cells - 1}")
    codes_hw = grids(tokenizer.config, [request.codes])[0]
    if request.scales is not None:
        return _given_scales(sequence, tokenizer, codes_hw, request.scales).repeat(request.n, 0)
    if sequence.scales:
        raise PriorError(f"{request.prior} draws coarse scales first: keep the first scales, not cells of the picture")
    known_hw = np.zeros(cells, bool)
    known_hw[known] = True
    if known_hw.all():
        raise UserError("all cells are known: erase a part of the picture first")
    region_hw = torch.from_numpy(known_hw.reshape(codes_hw.shape))
    return given_region(sequence, torch.from_numpy(codes_hw[None]), region_hw).numpy().repeat(request.n, 0)


def _given_scales(sequence: SequenceSpec, tokenizer: Tokenizer, codes_hw: Codes, count: int) -> Codes:
    """The codes of the first scales of a picture, [1, T], -1 where codes are drawn."""
    if not 1 <= count <= len(sequence.scales):
        raise PriorError(f"{count} scales are kept: keep 1 to {len(sequence.scales)} of those before the full grid")
    grids = [tokenizer.rescale(codes_hw[None], side).astype(np.int64) for side, _ in sequence.grids[:count]]
    return given_scales(sequence, [torch.from_numpy(grid) for grid in grids]).numpy()


def command(contents: Contents, request: DrawRequest) -> str:
    """Return the command line that draws the same pictures; empty if there is none.

    It completes `picture.png`, a picture with the codes of the request, where `mask.png` is white. There is none with
    the codes of a condition from the page, or with scales of a picture.
    """
    if request.scales is not None or set(request.conditions) - {"class"}:
        return ""
    sequence = contents.prior(request.prior).sequence
    words = ["imagepriors", "sample", "--prior", contents.typed[request.prior], "--n", str(request.n)]
    if shards := shards_elsewhere(contents, request.prior):
        words += ["--shards", shards]
    names = dict(enumerate(sequence.class_names))
    label = request.conditions.get("class")
    classes = [label] if isinstance(label, int) else []
    if request.known:
        if sequence.conditions and not classes:  # the picture is completed once with each class
            classes = conditions_of(contents, request)["class"].tolist()
        words += ["--images", *["picture.png"] * max(1, len(classes)), "--given", "mask.png"]
    if classes:
        words += ["--condition", *(names.get(one, str(one)) for one in classes)]
    defaults, chosen = contents.sampling(request.prior), sampling_of(contents, request)
    for name, value in dataclasses.asdict(chosen).items():
        if value != getattr(defaults, name):
            values = value if isinstance(value, tuple | list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)
