"""Read rows of token shards and decode them with the tokenizer that is stored beside them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from codeshards.format import ShardDataset, ShardError, Where, inverse, open_store
from codeshards.format.schema import NO_TOKENIZER
from runkit.devices import Device
from vqgan.data import spread
from vqgan.tokenizer import Tokenizer

Array = npt.NDArray[Any]


def load_shard_tokenizer(shards: Where, name: str, fingerprint: str, *, device: Device = "auto") -> Tokenizer:
    """Load a tokenizer that is stored with the shards, and check that it made their codes.

    Raises:
        ShardError: the tokenizer has another fingerprint, or the codes were imported without theirs.
    """
    place = open_store(shards) / name
    if fingerprint.startswith(NO_TOKENIZER):
        raise ShardError(mismatch(f"there is no tokenizer in {place}", fingerprint))
    with place.as_folder() as folder:
        tokenizer = Tokenizer.load(folder, device=device, known=fingerprint)
    if tokenizer.fingerprint != fingerprint:
        raise ShardError(mismatch(f"{place} has fingerprint {tokenizer.fingerprint}", fingerprint))
    return tokenizer


def mismatch(found: str, fingerprint: str) -> str:
    """Return the message about a tokenizer that is not known to be that of the codes.

    Args:
        found: Which tokenizer was found.
        fingerprint: The tokenizer of the codes, as their shards record it.
    """
    if fingerprint.startswith(NO_TOKENIZER):
        tokens = fingerprint.removeprefix(NO_TOKENIZER)
        return f"{found}, the codes are {tokens}, imported without their tokenizer: import them again with it"
    return f"{found}, the codes were made by {fingerprint}: decode with the tokenizer that made them"


def select_rows(dataset: ShardDataset, split: str, n: int) -> npt.NDArray[np.int64]:
    """Indices of `n` rows of a split in ascending order; all rows if n is 0 or exceeds their number.

    The train split is shuffled, so its indices are the first ones of a few shards. Other splits are sorted by class, so
    their indices are evenly spaced.
    """
    total = dataset.rows(split)
    n = min(n or total, total)
    if split == "train" and n:
        return _first_rows_of_shards([shard.rows for shard in dataset.shards(split)], n)
    return np.array(spread(total, n), dtype=np.int64)


def _first_rows_of_shards(shard_rows: Sequence[int], n: int) -> npt.NDArray[np.int64]:
    """`n` indices in up to eight shards, evenly spaced because a merged dataset is a concatenation."""
    chosen = spread(len(shard_rows), min(len(shard_rows), 8))
    starts = np.concatenate(([0], np.cumsum(shard_rows)))
    quota = -(-n // len(chosen))
    found = np.concatenate([starts[shard] + np.arange(min(quota, shard_rows[shard])) for shard in chosen])
    if len(found) < n:  # the chosen shards are too small
        return np.array(spread(int(starts[-1]), n), dtype=np.int64)
    return found[np.array(spread(len(found), n), dtype=np.int64)]


def read_rows(
    dataset: ShardDataset, split: str, columns: Sequence[str], indices: npt.NDArray[np.int64] | int
) -> dict[str, Array]:
    """Read columns of the rows with these ascending indices; shards without such rows are not read.

    Args:
        dataset: The shards.
        split: Name of a split.
        columns: Names of columns.
        indices: Row indices, or a number of rows for :func:`select_rows`.
    """
    if isinstance(indices, int):
        indices = select_rows(dataset, split, indices)
    parts: dict[str, list[Any]] = {column: [] for column in columns}
    start = 0
    for number, shard in enumerate(dataset.shards(split)):
        rows = indices[(indices >= start) & (indices < start + shard.rows)] - start
        start += shard.rows
        begun = 0
        for batch in dataset.batches(split, list(columns), shards=[number]) if len(rows) else ():
            read = len(batch[columns[0]])
            wanted = rows[(rows >= begun) & (rows < begun + read)] - begun
            for column, values in parts.items():
                values.append(batch[column][wanted])
            begun += read
            if begun > rows[-1]:
                break
    return {column: np.concatenate(values) if values else np.empty(0) for column, values in parts.items()}


def read_codes(
    dataset: ShardDataset, split: str, indices: npt.NDArray[np.int64], columns: Sequence[str] = ()
) -> tuple[Array, dict[str, Array]]:
    """Codes [N, H, W] in raster order of the rows with these indices, and columns of the same rows."""
    name, grid = dataset.spec.orders[0], dataset.spec.image
    found = read_rows(dataset, split, list(dict.fromkeys([*columns, f"codes_{name}"])), indices)
    codes_NT = found[f"codes_{name}"].reshape(-1, grid.length)[:, inverse(name, grid.height, grid.width)]
    return codes_NT.reshape(-1, grid.height, grid.width), found


def decode_rows(
    dataset: ShardDataset, split: str, indices: npt.NDArray[np.int64], columns: Sequence[str] = ()
) -> tuple[Array, dict[str, Array]]:
    """Decoded pictures [N, H, W, 3] of the rows with these indices, and other columns of the same rows.

    Raises:
        ShardError: the tokenizer beside the shards is not the one that made the codes.
    """
    tokenizer = load_shard_tokenizer(dataset.path, "tokenizer", dataset.spec.image.fingerprint)
    codes_NHW, found = read_codes(dataset, split, indices, columns)
    return tokenizer.decode(codes_NHW), found
