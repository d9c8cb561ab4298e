"""`imagepriors shards …`: inspect, verify, convert, merge, extend, import and preview datasets of token shards."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from codeshards.config import ImportConfig
from codeshards.format import OrderName, ShardDataset, ShardError, inverse
from codeshards.format.carried import CAPTION
from codeshards.format.schema import NO_LABEL
from codeshards.format.shardfile import ShardFormat
from imagepriors.cli.common import FLAT, Subcommands
from runkit.files import pretty_json
from runkit.folders import check_apart, check_publish, publish, publish_file
from runkit.names import listed

if TYPE_CHECKING:
    from codeshards.tools.inspect import Inspection

_INSPECTED = ("inspect.json", "entropy.png", "labels.png")
_Dataset = Annotated[str, tyro.conf.Positional]


def inspect(dataset: _Dataset, *, out: Path | None = None) -> str:
    """Schema, counts, code usage, entropy per position and labels.

    Args:
        dataset: Folder or URL of the dataset.
        out: Folder for inspect.json, entropy.png (a heat map of the positions) and labels.png.

    Example:
        imagepriors shards inspect runs/photos/shards --out look
    """
    from codeshards.tools.inspect import inspect as run

    if out is not None:
        check_apart(out, dataset=dataset)
        check_publish(out, _INSPECTED, "shards-inspect")
    found = run(dataset)
    lines = _describe(found)
    if out is not None:
        from imagepriors.reports.figures import entropy_figure, labels_figure, png_bytes

        grids = {"image": found.manifest.spec.image, **found.manifest.spec.code_grids}
        entropies = {
            name: codes.entropy_bits_L.reshape(grids[name].height, grids[name].width)
            for name, codes in found.codes.items()
        }
        figures = (png_bytes(entropy_figure(entropies)), png_bytes(labels_figure(_labels(found))))
        files = dict(zip(_INSPECTED, (pretty_json(found.to_json()), *figures), strict=True))
        publish(out, files, "shards-inspect")
        lines.append(f"written to {out}: {', '.join(_INSPECTED)}")
    return "\n".join(lines)


def verify(
    folder: _Dataset,
    *,
    workers: int = 1,
    again: bool = False,
    reencode: int = 0,
    dataset: str = "auto",
    data: Path | None = None,
    least: float = 0.95,
) -> str:
    """Read every byte; with --reencode also encode samples again and compare. An interrupted run resumes.

    Args:
        folder: Folder or URL of the dataset.
        workers: Processes, on this machine or the Ray cluster RAY_ADDRESS; 0: one per core. One requires no Ray.
        again: Also read the shards that an interrupted run, or one that found problems, has found intact.
        reencode: Samples to encode again from their pixels; requires `data`.
        dataset: Layout of the pictures from which the shards were made, as for tokenize.
        data: Folder of those pictures.
        least: Share of codes that must be equal when encoded again.

    Example:
        imagepriors shards verify runs/photos/shards --reencode 100 --data data/photos
    """
    from codeshards.tools.verify import verify as run
    from vqgan.checkpoint import fingerprint

    if reencode and data is None:
        raise ShardError("--reencode requires the pictures: pass the --data of tokenize")
    found = run(folder, fingerprint_of=fingerprint, workers=workers, resume=not again)
    if found.problems:
        count = len(found.problems)
        problems = "\n".join(f"  {problem}" for problem in found.problems)
        raise ShardError(f"{folder} has {count} problem{'s' * (count > 1)}:\n{problems}")
    answer = f"{folder} is whole: {found.files:,} files, {found.rows:,} rows, every byte as it was written"
    if found.earlier:
        answer += f"\n{found.earlier:,} shards were read by an earlier run; --again reads them too"
    if found.uncovered:
        answer += f"\nnot covered, because no file has their hashes: {', '.join(found.uncovered)}"
    if data is None or not reencode:
        return answer
    return f"{answer}\n{_reencode(folder, dataset, data, reencode, least)}"


def _reencode(folder: str, dataset: str, data: Path, samples: int, least: float) -> str:
    from codeshards.tools.reencode import reencode

    found = reencode(folder, source=dataset, data=data, samples=samples)
    other = "bfloat16" if found.precision == "float32" else "float32"
    lines = []
    for precision, rates in ((found.precision, found.same), (other, found.other)):
        shares = ", ".join(f"{name} {rate:.2%}" for name, rate in rates.items())
        lines.append(f"{found.samples} samples encoded again in {precision}, share of equal codes: {shares}")
    low = [name for name, rate in found.same.items() if rate < least]
    if low:
        lines.append(f"under {least:.0%} of {', '.join(low)} are equal: are the pixels, weights or device others?")
        raise ShardError("\n".join(lines))
    return "\n".join(lines)


def convert(dataset: _Dataset, *, out: str, to: tuple[ShardFormat, ...]) -> str:
    """Write a dataset again as Parquet, WebDataset or both; a conversion and its inverse give the same bytes.

    Args:
        dataset: Folder or URL of the dataset.
        out: Folder or URL to write; an interrupted conversion resumes.
        to: Formats of the new dataset.

    Example:
        imagepriors shards convert runs/photos/shards --out tars --to webdataset
    """
    from codeshards.tools.convert import convert as run

    run(dataset, out, to)
    return f"{' and '.join(to)} shards in {out}"


def merge(datasets: tyro.conf.Positional[tuple[str, ...]], *, out: str, to: tuple[ShardFormat, ...] = ()) -> str:
    """Put several datasets of one tokenizer and the same settings into one.

    Args:
        datasets: Folders or URLs, two or more; rows keep this order.
        out: Folder or URL to write.
        to: Formats of the new dataset; default: those of the first one.

    Example:
        imagepriors shards merge runs/photos/shards runs/more/shards --out both
    """
    from codeshards.tools.merge import merge as run

    manifest = run(datasets, out, formats=to)
    rows = ", ".join(f"{split.rows:,} rows of {name}" for name, split in manifest.splits.items())
    return f"{rows} in {out}"


def add(dataset: _Dataset, *, orders: tuple[OrderName, ...] = (), scales: tuple[Literal[1, 2, 4, 8], ...] = ()) -> str:
    """Add orders and coarser scales to finished shards, from their codes and the codebook.

    Args:
        dataset: Folder or URL of the dataset; its shards stay as they are.
        orders: Sequence orders to add.
        scales: Sides of coarser grids of codes to add, for the multiscale prior.

    Example:
        imagepriors shards add runs/photos/shards --scales 1 2 4 8
    """
    import imagepriors as ip

    if not orders and not scales:
        raise ShardError("nothing to add: give --orders, --scales, or both; conditions are added by tokenize")
    spec = ip.add_codes(dataset, orders=orders, scales=scales).spec
    return f"orders {', '.join(spec.orders)} and scales {', '.join(map(str, spec.scales)) or 'none'} in {dataset}"


def import_(
    source: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[str],
    config: Annotated[ImportConfig, FLAT],
    *,
    tokenizer: Path | None = None,
) -> str:
    """Make a dataset of a published set of tokens: RAR's, LlamaGen's or RandAR's.

    Args:
        source: The file of JSON lines, the folder, or the tar.
        out: Folder or URL to write; an interrupted import resumes.
        config: How the set is read and divided.
        tokenizer: Folder of the tokenizer that made the codes, or its address on the Hub (hf://OWNER/NAME); it gives
            grid and codebook, and is copied.

    Example:
        imagepriors shards import maskgitvq.jsonl runs/imagenet/shards --codebook-size 1024
    """
    import imagepriors as ip

    manifest = ip.import_shards(source, out, tokenizer=tokenizer, config=config).manifest
    rows = ", ".join(f"{split.rows:,} rows of {name}" for name, split in manifest.splits.items())
    failed = sum(split.failures for split in manifest.splits.values())
    return f"{rows} in {out}" + (f"; {failed:,} images failed, named in the sidecars" if failed else "")


def preview(
    dataset: _Dataset,
    *,
    out: Path = Path("preview.png"),
    split: str = "val",
    n: int = 16,
    tokenizer: Path | None = None,
) -> str:
    """Decode rows to a PNG, each picture followed by its conditions.

    Args:
        dataset: Folder or URL of the dataset.
        out: The PNG to write.
        split: Split to show.
        n: Number of rows, evenly spread over the split.
        tokenizer: Tokenizer of the images, if it is not stored with the dataset, or is that of another package.

    Example:
        imagepriors shards preview runs/photos/shards --n 16 --out preview.png
    """
    from imagepriors.reports.figures import picture_grid, png_bytes

    check_apart(out, dataset=dataset)
    check_publish(out.parent, [out.name], "shards-preview")
    shards = ShardDataset.open(dataset)
    pictures, kinds = _decode_rows(shards, split, n, tokenizer)
    columns = max(1, round(len(pictures) ** 0.5 / kinds)) * kinds
    grid = picture_grid(pictures, columns, scale=max(1, round(96 / pictures.shape[2])))
    publish_file(out, png_bytes(grid), "shards-preview")
    return "\n".join([f"{len(pictures) // kinds} rows of {split} in {out}", *_captions(shards, split, n)])


SHARDS = Subcommands(
    "Inspect, verify, convert, merge, extend, import or preview token shards.",
    {
        "inspect": inspect,
        "verify": verify,
        "convert": convert,
        "merge": merge,
        "add": add,
        "import": import_,
        "preview": preview,
    },
)


def _decode_rows(dataset: ShardDataset, split: str, n: int, given: Path | None) -> tuple[Any, int]:
    """Pictures [n · kinds, H, W, 3], of each row the image and then each condition; and the number of kinds."""
    import numpy as np

    from imagepriors.api.tokenizers import as_tokenizer
    from imagepriors.decode.rows import load_shard_tokenizer, mismatch, read_rows
    from imagepriors.reports.figures import colorize
    from vqgan.data import spread

    spec, total = dataset.spec, dataset.rows(split)
    if n < 1 or total == 0:
        raise ShardError(f"n is {n} and split {split!r} of {dataset.path} has {total} rows: nothing can be shown")
    image = f"codes_{spec.orders[0]}"
    sources = {image: (dataset.manifest.tokenizer, spec.image)}
    sources |= {f"cond_{name}": (dataset.manifest.conditions[name], grid) for name, grid in spec.conditions.items()}
    rows = read_rows(dataset, split, list(sources), np.array(spread(total, n), np.int64))
    rows[image] = rows[image][:, inverse(spec.orders[0], spec.image.height, spec.image.width)]
    shown = []
    for column, (tokenizer, grid) in sources.items():
        if given and column == image:
            decoder = as_tokenizer(given).of_codes(grid.fingerprint).loaded
        elif "folder" in tokenizer:
            decoder = load_shard_tokenizer(dataset.path, tokenizer["folder"], grid.fingerprint)
        else:
            raise ShardError(mismatch(f"{dataset.path} does not hold the tokenizer of {column}", grid.fingerprint))
        shown.append(colorize(decoder.decode(rows[column].reshape(-1, grid.height, grid.width))))
    pictures = np.stack(shown, axis=1)
    return pictures.reshape(-1, *pictures.shape[2:]), len(shown)


def _captions(dataset: ShardDataset, split: str, n: int) -> list[str]:
    """Lines with the captions of the rows that a preview shows; none where the dataset has no captions."""
    import numpy as np

    from imagepriors.decode.rows import read_rows
    from vqgan.data import spread

    if CAPTION not in dataset.spec.carried:
        return []
    rows = read_rows(dataset, split, [CAPTION], np.array(spread(dataset.rows(split), n), np.int64))
    return [f"{number:>4}  {caption or ''}" for number, caption in enumerate(rows[CAPTION], start=1)]


def _describe(found: "Inspection") -> list[str]:
    value = found.to_json()
    lines = [f"{name:>20}  {kind}" for name, kind in value["schema"].items()]
    formats = ", ".join(value["formats"])
    lines += [f"formats: {formats}   licence: {value['license']}   plan: {value['plan_hash'][:12]}…"]
    for name, split in value["splits"].items():
        lines.append(
            f"{name}: {split['rows']:,} rows of {split['samples']:,} samples, {split['failures']:,} failed, "
            f"{split['shards']:,} shards, {split['bytes'] / 1e6:,.1f} MB"
        )
    for name, codes in value["codes"].items():
        bits = codes["entropy_bits_per_position"]
        lines.append(
            f"{name}: {codes['used']:,} of {codes['codebook_size']:,} codes used, "
            f"perplexity {codes['perplexity']:,.1f}, entropy {codes['entropy_bits']:.2f} bits, "
            f"{min(bits):.2f} … {max(bits):.2f} per position"
        )
    for name, carried in value["carried"].items():
        lines.append(f"{name}: {carried['nulls']:,} rows without a value, the first is {carried['first']!r:.80}")
    if value["label_names"]:
        lines.append(f"labels of masks: {listed(value['label_names'], 20)}")
    labels = _labels(found)
    most = max(labels.values(), default=1)
    lines += [f"{name:>20} {n:>10,} {'█' * max(1, round(40 * n / most))}" for name, n in list(labels.items())[:20]]
    return lines + ([f"{'…':>20} and {len(labels) - 20} more labels"] if len(labels) > 20 else [])


def _labels(found: "Inspection") -> dict[str, int]:
    """Name of each label → its rows in all splits, the most common first."""
    total: Counter[int] = sum(found.labels.values(), Counter())
    names = dict(enumerate(found.manifest.class_names)) | {NO_LABEL: "no label"}
    return {names.get(label, str(label)): count for label, count in total.most_common()}
