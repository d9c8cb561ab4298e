"""`imagepriors tokenize`."""

from pathlib import Path
from typing import Annotated, Any

from codeshards.config import TokenizeConfig
from codeshards.format import ShardError
from imagepriors.api.defaults import DEMO_DATA
from imagepriors.cli.common import FLAT, shown


def tokenize(
    config: Annotated[TokenizeConfig, FLAT],
    *,
    dataset: str = "auto",
    data: Path = DEMO_DATA,
    tokenizer: Path | None = None,
    condition: tuple[Path, ...] = (),
    add_condition: tuple[Path, ...] = (),
    out: Path | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    dry_run: bool = False,
    preset: str = "auto",
) -> str:
    """Encode a dataset into token shards, on Ray (RAY_ADDRESS names a cluster).

    Args:
        config: Settings of the job.
        dataset: Layout of the data, as for train-vqgan.
        data: Folder or URL of the dataset.
        tokenizer: Run folder of the image tokenizer, its address on the Hub (hf://OWNER/NAME), or its name in
            another package (an entry point, or package.module:function); default:
            runs/NAME/tokenizer, where NAME is the name of the data's folder.
        condition: Run folders of tokenizers for conditions (masks, depth, poses) to encode beside the images.
        add_condition: Run folders of tokenizers for conditions to add to the finished shards in `out`. Image codes are
            not encoded again, and the settings that determine codes are those of the shards.
        out: Folder to write; an interrupted job resumes. Default: runs/NAME/shards.
        overwrite: First delete the dataset in `out`; refused if `out` holds anything else.
        retry_failed: Encode the shards with failures again.
        dry_run: Print the plan with sizes, memory and time, and write nothing.
        preset: Preset that sets the defaults of all flags below; auto chooses it by the size of the pictures.

    Example:
        imagepriors tokenize --data data/photos --views 2 --workers 4
    """
    import imagepriors as ip
    from imagepriors.reports.shards import summarize, write_tokenize_report

    if add_condition:
        if tokenizer or condition or overwrite or dry_run:
            raise ShardError(
                "--add-condition takes finished shards: leave out --tokenizer, --condition, --overwrite and --dry-run"
            )
        shards = ip.add_conditions(
            data, add_condition, shards=out, dataset=dataset, retry_failed=retry_failed, config=config
        )
        return f"token shards in {shown(str(shards.path))}\n{summarize(shards.path)}"
    arguments: dict[str, Any] = {
        "out": out, "conditions": condition, "dataset": dataset, "overwrite": overwrite, "retry_failed": retry_failed,
        "config": config,
    }  # fmt: skip
    if dry_run:
        return str(ip.plan_tokenize(data, tokenizer, **arguments))
    shards = ip.tokenize(data, tokenizer, **arguments)
    page = write_tokenize_report(shards.path)
    return f"token shards in {shown(str(shards.path))}\n{summarize(shards.path)}\n  look at          {shown(str(page))}"
