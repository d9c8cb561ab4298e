"""Conditions of a row of shards, for a prior that completes its picture."""

from dataclasses import dataclass

from imagepriors.decode.rows import read_rows
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event
from imagepriors.studio.rows import row_of
from runkit.configs import check_fields
from runkit.errors import UserError


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
