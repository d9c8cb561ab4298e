"""The files of a dataset of shards that are uploaded to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from codeshards.format.card import card, is_card
from codeshards.format.column import ADDABLE
from codeshards.format.contents import TOKENIZER_FOLDERS
from codeshards.format.dataset import ShardDataset
from codeshards.format.errors import ShardError
from codeshards.format.manifest import CARD_FILE, MANIFEST_FILE
from codeshards.format.plan import PLAN_FILE, SAMPLES_FILE
from codeshards.format.shardfile import SUFFIXES
from runkit.places import Store
from runkit.uploads import Upload

_OWNED = (
    MANIFEST_FILE,
    PLAN_FILE,
    SAMPLES_FILE,
    *(f"*/shard-*{suffix}" for suffix in (".json", *SUFFIXES.values())),
    *(f"{column}/*/shard-*{suffix}" for column in ADDABLE for suffix in (".json", SUFFIXES["parquet"])),
    *(f"{folder}/{name}" for folder in TOKENIZER_FOLDERS for name in ("config.json", "model.safetensors")),
)


def is_dataset(store: Store) -> bool:
    """Return whether a folder holds a dataset, finished or not."""
    return (store / PLAN_FILE).exists() or (store / MANIFEST_FILE).exists()


def upload_of(dataset: ShardDataset) -> Upload:
    """Return the upload of a dataset: the files of its manifest, its sidecars and its card.

    Raises:
        ShardError: It is not in a local folder, or a file is missing or has another size.
    """
    folder, manifest = dataset.path.local, dataset.manifest
    if folder is None:
        raise ShardError(f"{dataset.path} is not a local folder: copy it to one, and push that")
    recorded = dict(manifest.files)
    sidecars, columns = list[str](), [("", manifest.splits)]
    columns += [(f"{column.spec.name}/", column.splits) for column in manifest.added]
    for prefix, split, shard in ((p, name, s) for p, splits in columns for name in splits for s in splits[name].shards):
        sidecars.append(f"{prefix}{split}/{shard.name}.json")
        recorded |= {f"{prefix}{split}/{file}": record for file, record in shard.files.items()}
    for name, record in recorded.items():
        if name == CARD_FILE and (folder / name).is_file():  # a person may have edited it
            continue
        if not (folder / name).is_file() or (folder / name).stat().st_size != record.bytes:
            raise ShardError(f"{folder / name} is missing or has changed: verify the dataset before it is pushed")
    files: dict[str, Path | bytes] = {name: folder / name for name in (MANIFEST_FILE, *recorded, *sidecars)}
    return Upload(
        what="dataset of shards",
        repo_type="dataset",
        files={CARD_FILE: card(manifest).encode()} | files,
        last=MANIFEST_FILE,
        owned=_OWNED,
        is_same_kind=is_dataset,
        is_card=is_card,
    )
