"""`imagepriors report`."""

from pathlib import Path

import tyro

from imagepriors.api.defaults import DEMO_DATA


def report(
    run: tyro.conf.Positional[Path] = Path("runs/demo"),
    *,
    data: Path = DEMO_DATA,
    dataset: str = "auto",
    tokenizer: Path | None = None,
) -> str:
    """Write one self-contained HTML page about a run folder.

    Args:
        run: Folder with tokenizer/, shards/ and prior-*/.
        data: Folder or URL of the dataset.
        dataset: Layout of the data.
        tokenizer: Tokenizer of the images, if it is not stored with the shards, or is that of another package.

    Example:
        imagepriors report runs/photos --data data/photos
    """
    from imagepriors.reports.run import write_report

    return f"open {write_report(run, data, dataset, tokenizer)}"
