"""Datasets of token shards: write, open, inspect."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codeshards.config import ImportConfig, TokenizeConfig
from codeshards.format import ShardDataset, ShardError, Where, open_store
from codeshards.format.files import read_json
from codeshards.format.manifest import MANIFEST_FILE
from codeshards.format.orders import OrderName
from imagepriors.api.datasets import ImageDataset, dataset_of
from imagepriors.api.defaults import PathLike, as_path, run_folder, shards_folder
from imagepriors.api.settings import build_config, stage_1_table
from imagepriors.api.tokenizers import ImageTokenizer, as_tokenizer
from runkit.places import absolute, url_of
from vqgan.config import Geometry


def tokenize(
    data: PathLike | ImageDataset,
    tokenizer: PathLike | ImageTokenizer | None = None,
    *,
    out: PathLike | None = None,
    conditions: PathLike | ImageTokenizer | Sequence[PathLike | ImageTokenizer] = (),
    dataset: str = "auto",
    preset: PathLike = "auto",
    overwrite: bool = False,
    retry_failed: bool = False,
    config: TokenizeConfig | None = None,
    **fields: Any,
) -> ShardDataset:
    """Encode a whole dataset into token shards, in parallel on Ray; an interrupted job resumes.

    Args:
        data: Folder or URL of the pictures, or an open dataset.
        tokenizer: The image tokenizer or its folder; default: runs/NAME/tokenizer, where NAME is the name of the
            data's folder.
        out: Folder or URL to write; default: runs/NAME/shards.
        conditions: Tokenizers of conditions (masks, depth, poses) that are encoded beside the images.
        dataset: Layout of the data; "auto" recognises it.
        preset: Name or TOML file of the preset; "auto" chooses it by the size of the pictures.
        overwrite: Delete the dataset in `out` first.
        retry_failed: Encode the shards with failures again.
        config: A complete config in place of a preset.
        **fields: Fields of :class:`TokenizeConfig` to override, such as ``views=2`` or ``workers=1``.

    Returns:
        The finished dataset.

    Raises:
        InputError: The data or a tokenizer cannot be opened.
        ShardError: They do not fit, a field is not allowed, or `out` holds something else.
    """
    settings, job = tokenize_job(data, tokenizer, out, conditions, dataset, preset, config, fields)
    from codeshards.job.tokenize import tokenize as run_job

    run_job(settings, **job, overwrite=overwrite, retry_failed=retry_failed)
    return ShardDataset.open(absolute(job["out"]))


def tokenize_job(
    data: PathLike | ImageDataset,
    tokenizer: PathLike | ImageTokenizer | None,
    out: PathLike | None,
    conditions: PathLike | ImageTokenizer | Sequence[PathLike | ImageTokenizer],
    dataset: str,
    preset: PathLike,
    config: TokenizeConfig | None,
    fields: Mapping[str, Any],
) -> tuple[TokenizeConfig, dict[str, Any]]:
    """The settings of a job, and its arguments."""
    path, layout = dataset_of(data, dataset)
    base = {} if config else stage_1_table(str(preset), "tokenize", layout, path)
    settings = build_config(TokenizeConfig, fields, config=config, base=base, function=tokenize)
    place: Where = as_path(out) if out is not None else run_folder(path) / "shards"
    folders = {"image": as_tokenizer(tokenizer).folder if tokenizer is not None else run_folder(path) / "tokenizer"}
    return settings, {
        "dataset": layout,
        "data": path
        if url_of(path)
        else path.absolute(),  # a Ray session that runs already may have another working folder
        "tokenizers": folders | _by_modality(conditions),
        "out": place,
    }


def _by_modality(conditions: PathLike | ImageTokenizer | Sequence[PathLike | ImageTokenizer]) -> dict[str, Path]:
    from vqgan.checkpoint import load_config

    if isinstance(conditions, str | os.PathLike | ImageTokenizer):
        conditions = (conditions,)
    folders = [as_tokenizer(tokenizer).folder for tokenizer in conditions]
    found: dict[str, Path] = {load_config(folder).model.modality: folder for folder in folders}
    if len(found) < len(folders):
        raise ShardError(f"two tokenizers of conditions have one modality: {', '.join(map(str, folders))}")
    return found


def add_conditions(
    data: PathLike | ImageDataset,
    conditions: PathLike | ImageTokenizer | Sequence[PathLike | ImageTokenizer],
    *,
    shards: PathLike | ShardDataset | None = None,
    dataset: str = "auto",
    retry_failed: bool = False,
    config: TokenizeConfig | None = None,
    **fields: Any,
) -> ShardDataset:
    """Add conditions to finished shards, in parallel on Ray, and leave image codes as they are; resumes.

    Args:
        data: Folder of the pictures that the shards were made from, with the maps, or an open dataset.
        conditions: Tokenizers of the conditions (masks, depth, poses).
        shards: The dataset of shards, its folder or URL; default: runs/NAME/shards.
        dataset: Layout of the data; "auto" recognises it.
        retry_failed: Encode the side-car shards with failures again.
        config: A complete config in place of the default one. What determines codes is that of the shards' plan.
        **fields: Fields of :class:`TokenizeConfig` to override, such as ``workers=1``.

    Returns:
        The dataset, with the conditions in its spec.

    Raises:
        InputError: The data or a tokenizer cannot be opened.
        ShardError: They do not fit the shards, or too many maps failed.
    """
    path, layout = dataset_of(data, dataset)
    settings = build_config(TokenizeConfig, fields, config=config, function=add_conditions)
    place = absolute(run_folder(path) / "shards" if shards is None else location(shards))
    from codeshards.job.add import add_conditions as run_job

    tokenizers = _by_modality(conditions)
    run_job(settings, dataset=layout, data=path.absolute(), tokenizers=tokenizers, out=place, retry_failed=retry_failed)
    return ShardDataset.open(place)


def add_codes(
    shards: PathLike | ShardDataset, *, orders: Sequence[OrderName] = (), scales: Sequence[int] = ()
) -> ShardDataset:
    """Add orders and coarser scales to finished shards, from their codes and the codebook. Requires no pixels.

    Args:
        shards: The dataset of shards, its folder or URL.
        orders: Sequence orders to add.
        scales: Sides of coarser grids of codes to add.

    Returns:
        The dataset, with them in its spec.

    Raises:
        ShardError: They do not fit the shards, or there is no tokenizer.
    """
    from codeshards.tools.add_codes import add_codes as run

    place = absolute(location(shards))
    run(place, orders=orders, scales=scales)
    return ShardDataset.open(place)


def import_shards(
    source: PathLike,
    out: PathLike,
    *,
    tokenizer: PathLike | ImageTokenizer | None = None,
    config: ImportConfig | None = None,
    **fields: Any,
) -> ShardDataset:
    """Make a dataset of a published set of tokens: RAR's lines, LlamaGen's folders, RandAR's tar. Requires no pixels.

    Args:
        source: The file or folder.
        out: Folder or URL to write; an interrupted import resumes.
        tokenizer: The tokenizer that made the codes; it gives grid and codebook, and is copied into the dataset.
        config: A complete config in place of the default one.
        **fields: Fields of :class:`codeshards.config.ImportConfig` to override, such as ``codebook_size=1024``.

    Raises:
        ShardError: The source is no set of tokens, does not fit, or too many of its images are broken.
    """
    settings = build_config(ImportConfig, fields, config=config, function=import_shards)
    from codeshards.tools.import_tokens import import_tokens

    folder = as_tokenizer(tokenizer).folder if tokenizer is not None else None
    import_tokens(as_path(source), absolute(as_path(out)), settings, tokenizer=folder)
    return open_shards(out)


def open_shards(shards: PathLike) -> ShardDataset:
    """Open a finished dataset of token shards.

    Args:
        shards: Its folder or URL (s3://…, gs://…, hf://datasets/OWNER/NAME).

    Raises:
        ShardError: There is no dataset, or its job did not finish.
    """
    return ShardDataset.open(absolute(shards_folder(shards)))


def location(shards: PathLike | ShardDataset) -> Path:
    """The folder of a dataset of token shards; URLs survive as paths."""
    return Path(str(shards.path)) if isinstance(shards, ShardDataset) else shards_folder(shards)


def inspect(
    data: PathLike | ImageDataset | ShardDataset,
    *,
    out: PathLike | None = None,
    dataset: str = "auto",
    limit: int = 2_000,
    shown: int = 24,
    size: int = 128,
    geometry: Geometry | None = None,
) -> dict[str, Any]:
    """Count what a dataset of pictures or of token shards holds.

    Args:
        data: Folder of pictures, or an open dataset; or token shards.
        out: Folder for inspection.json and contact sheets of pictures; default: runs/NAME/inspect, where NAME is the
            name of the data's folder. Nothing is written about shards.
        dataset: Layout of the pictures; "auto" recognises it.
        limit: Pictures to decode per split, evenly spread over it; 0: all.
        shown: Pictures on a contact sheet.
        size: Side of these pictures, in pixels.
        geometry: How pictures that are not square become square; default: as suits the dataset.

    Returns:
        Of pictures counts, sizes, labels, conditions and unreadable files of each split; of shards schema, counts,
        code usage, entropy and labels.

    Raises:
        UserError: It is no dataset, or it is damaged.
    """
    data = data if isinstance(data, ShardDataset | ImageDataset) else as_path(data)
    if isinstance(data, ShardDataset) or (
        not isinstance(data, ImageDataset) and (open_store(data) / MANIFEST_FILE).size() is not None
    ):
        from codeshards.tools.inspect import inspect as inspect_shards

        return inspect_shards(data.path if isinstance(data, ShardDataset) else data).to_json()
    from imagepriors.reports.dataset import inspect_dataset

    path, layout = dataset_of(data, dataset)
    folder = as_path(out) if out else run_folder(path) / "inspect"
    inspect_dataset(layout, path, folder, limit=limit, shown=shown, size=size, geometry=geometry)
    return read_json(folder / "inspection.json")
