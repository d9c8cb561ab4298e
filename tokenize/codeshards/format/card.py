"""The dataset card: ``README.md`` of a dataset, made from its manifest alone, in the form of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json

from codeshards.format.manifest import Manifest
from codeshards.format.schema import ShardSpec
from codeshards.format.shardfile import SUFFIXES, ShardFormat

_SEAL = "<!-- sha256 of the text above, so that an edited card is never replaced: "
_SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
_HUB_SPLITS = {"val": "validation"}


def card(manifest: Manifest) -> str:
    """The card as Markdown with YAML front matter; equal manifests give equal texts."""
    spec, image = manifest.spec, manifest.spec.image
    sections = [
        _front_matter(manifest),
        "# Discrete image tokens",
        f"{sum(s.samples for s in manifest.splits.values()):,} pictures as codes of a VQGAN with "
        f"{image.codebook_size:,} entries: {image.height}×{image.width} = {image.length} codes a picture. "
        "Made by the tokenize job of `imagepriors`; `dataset.json` is the exact account, with every file's sha256.",
        _splits(manifest),
        "## Columns\n\n" + _columns(spec),
        _making(manifest),
        "## Reading\n\n`PATH` is the folder of this file. `imagepriors` reads `hf://datasets/OWNER/NAME` as well.\n\n"
        + "\n\n".join(_reading(manifest)),
        f"## Licence\n\n`{manifest.license}`. The codes decode to the pictures: what holds for those holds for these.",
    ]
    return sealed("\n\n".join(sections))


def sealed(text: str) -> str:
    """A card that :func:`is_card` recognises."""
    return f"{text}\n\n{_SEAL}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_card(content: bytes) -> bool:
    """Whether a file is a card that :func:`sealed` has made and that was not edited since."""
    text, mark, seal = content.decode(errors="replace").rpartition(f"\n\n{_SEAL}")
    return bool(mark) and seal == f"{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def _front_matter(manifest: Manifest) -> str:
    rows = sum(split.rows for split in manifest.splits.values())
    size = next((name for below, name in _SIZES.items() if rows < below), "n>10M")
    lines = [
        f"license: {json.dumps(manifest.license)}",  # a JSON string is a YAML string
        'pretty_name: "Discrete image tokens"',
        "library_name: imagepriors",
        "task_categories:",
        "- unconditional-image-generation",
        "tags:",
        "- imagepriors",
        "- vqgan",
        "- image-tokens",
        "size_categories:",
        f"- {size}",
    ]
    if manifest.formats:
        lines += ["configs:", "- config_name: default", "  data_files:"]
        for split in manifest.splits:
            pattern = f"{split}/*{SUFFIXES[manifest.formats[0]]}"
            lines += [f"  - split: {_HUB_SPLITS.get(split, split)}", f"    path: {json.dumps(pattern)}"]
    return "\n".join(["---", *lines, "---"])


def _splits(manifest: Manifest) -> str:
    lines = ["| split | rows | pictures | failed | shards | MB |", "|---|---|---|---|---|---|"]
    for name, split in manifest.splits.items():
        megabytes = sum(record.bytes for shard in split.shards for record in shard.files.values()) / 1e6
        lines.append(
            f"| {name} | {split.rows:,} | {split.samples:,} | {split.failures:,} | {len(split.shards):,} "
            f"| {megabytes:,.1f} |"
        )
    return "\n".join(lines)


def _columns(spec: ShardSpec) -> str:
    lines = [
        "| column | holds |",
        "|---|---|",
        "| `key` | name of the row, unique in its split |",
        "| `view` | 0: the picture as the tokenizer takes it, 1: its mirror, 2 and up: further crops |",
        "| `label` | class index, null where there is none |",
    ]
    for name, grid in spec.code_grids.items():
        kind, _, rest = name.partition("_")
        what = {
            "codes": f"the picture in the order `{rest}`",
            "scale": "the picture, coarser",
            "cond": f"its {rest}, row by row",
        }[kind]
        lines.append(
            f"| `{name}` | {what}: {grid.length} codes ({grid.height}×{grid.width}) below {grid.codebook_size:,} |"
        )
    for name, kind_of_value in sorted(spec.carried.items()):
        what = "caption of the picture, carried along" if name == "caption" else "carried along from the source"
        lines.append(f"| `{name}` | {what} ({kind_of_value}) |")
    return "\n".join(lines)


def _making(manifest: Manifest) -> str:
    lines = ["| | tokenizer | fingerprint |", "|---|---|---|"]
    about = {"image": manifest.tokenizer, **manifest.conditions}
    grids = {"image": manifest.spec.image, **manifest.spec.conditions}
    for name, grid in grids.items():
        folder = about.get(name, {}).get("folder")
        lines.append(f"| {name} | {f'`{folder}/`' if folder else 'not included'} | `{grid.fingerprint}` |")
    plan = f"Plan `{manifest.plan_hash}`: `plan.json` has every setting that decides a byte."
    return "## Making\n\n" + "\n".join(lines) + f"\n\n{plan}"


def _reading(manifest: Manifest) -> list[str]:
    split = next(iter(manifest.splits), "train")
    column = f"codes_{manifest.spec.orders[0]}"
    parts = [
        "```python\nfrom codeshards.format import ShardDataset\n\n"
        f'for batch in ShardDataset.open("PATH").batches("{split}", ["{column}", "label"]):\n'
        f'    batch["{column}"]  # {manifest.spec.image.dtype} [n, {manifest.spec.image.length}]\n```'
    ]
    names = {"split": split, "column": column, "dtype": manifest.spec.image.dtype}
    return parts + [text.format(**names) for f in manifest.formats for text in _EXAMPLES[f]]


_EXAMPLES: dict[ShardFormat, tuple[str, ...]] = {
    "parquet": (
        "```python\nimport duckdb\n\nduckdb.sql(\"select key, label, {column} from 'PATH/{split}/*.parquet'\")\n```",
        "```python\nimport datasets\n\n"
        'datasets.load_dataset("parquet", data_files="PATH/{split}/*.parquet", split="train")\n```',
    ),
    "webdataset": (
        "```python\nimport glob\n\nimport webdataset\n\n"
        'shards = sorted(glob.glob("PATH/{split}/*.tar"))\n'
        "for row in webdataset.WebDataset(shards, shardshuffle=False).decode():\n"
        '    row["__key__"], row["json"]["orders"], row["codes.npy"]  # {dtype} [orders, codes]\n```',
    ),
}
