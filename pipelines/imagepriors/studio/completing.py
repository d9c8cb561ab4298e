"""What the page needs to complete a picture: regions that a prior can keep, and conditions of a row of shards."""

from dataclasses import dataclass

from codeprior.config import PriorError
from codeshards.format import ShardError
from imagepriors.decode.partial import REGIONS, known_codes
from imagepriors.decode.rows import read_rows
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event
from imagepriors.studio.rows import row_of
from runkit.configs import check_fields
from runkit.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionsRequest:
    """Which regions a prior can keep."""

    prior: str
    """Name of the prior."""

    def __post_init__(self) -> None:
        check_fields(self)


def regions(contents: Contents, request: RegionsRequest) -> Event:
    """Return ``regions``, from the name to the cells in raster order, which are those that the prior can complete.

    Raises:
        UserError: There is no such prior.
    """
    sequence = contents.prior(request.prior).sequence
    found = {}
    for name in REGIONS:
        try:
            known_T = known_codes(sequence, name)
        except (PriorError, ShardError):  # the prior has another order, or scales, or its grid is too small
            continue
        found[name] = sorted(sequence.permutation(sequence.height, sequence.width)[known_T].tolist())
    return {"regions": found}


@dataclass(frozen=True, kw_only=True, slots=True)
class RowConditionsRequest:
    """A row of shards whose picture a prior completes."""

    prior: str
    """Name of the prior."""
    shards: str
    """Name of the shards."""
    split: str
    """Name of the split."""
    index: int
    """Index of the row."""

    def __post_init__(self) -> None:
        check_fields(self)


def row_conditions(contents: Contents, request: RowConditionsRequest) -> Event:
    """Return ``conditions``, from the name of each condition of the prior, but the class, to the codes of the row.

    Raises:
        UserError: There is no such prior, shards or row, or the shards do not hold a condition of the prior.
    """
    sequence, (dataset, indices) = contents.prior(request.prior).sequence, row_of(contents, request)
    parts = [part for part in sequence.conditions if part.name != "class"]
    for part in parts:
        stored = dataset.spec.conditions.get(part.name)
        if stored is None or stored.fingerprint != part.fingerprint:
            raise UserError(
                f"{request.shards} does not hold the {part.name} that {request.prior} is conditioned on: choose a "
                "picture of other shards, or another prior"
            )
    columns = [part.column for part in parts]
    found = read_rows(dataset, request.split, columns, indices) if parts else {}
    return {"conditions": {part.name: found[part.column][0].tolist() for part in parts}}
