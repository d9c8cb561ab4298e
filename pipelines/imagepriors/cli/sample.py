"""`imagepriors sample`."""

from pathlib import Path
from typing import Annotated, Any

from codeprior.sample_config import SampleConfig
from imagepriors.cli.common import FLAT, shown
from runkit.errors import UserError


def sample(
    config: Annotated[SampleConfig, FLAT],
    *,
    prior: Path = Path("runs/demo/prior-row_major"),
    shards: Path | None = None,
    tokenizer: Path | None = None,
    out: Path | None = None,
    n: int = 25,
    condition: tuple[str, ...] = (),
    given: str = "0",
    images: tuple[Path, ...] = (),
    size: tuple[int, int] | None = None,
    frames: bool = False,
    workers: int = 0,
    threads: int = 2,
    dry_run: bool = False,
    preset: str = "auto",
) -> str:
    """Sample codes from a prior and decode them to pictures (also under torchrun).

    Args:
        config: How to sample.
        prior: Run folder of the trained prior, or its address on the Hub (hf://OWNER/NAME).
        shards: Folder of token shards, with the tokenizer and the conditions of a conditional prior. Default: shards
            beside the prior.
        tokenizer: Tokenizer that decodes, such as one whose decoder was fine-tuned (train-vqgan --freeze encoder), or
            package.module:function of another package, which is never found by itself. Default: that of
            the prior or the shards.
        out: Folder for grid.png, the single pictures, the codes and their metadata; or NAME.npz (as guided-diffusion's
            evaluator reads it) or NAME.tar (WebDataset), with NAME.json, NAME.codes.npz and NAME.png beside it.
            Default: samples-PRIOR beside the prior.
        n: Number of pictures. More than 1,000, and those in a file, are drawn in parts, which the ranks of torchrun
            or Ray workers share; the same command resumes after a kill.
        condition: Classes to draw, by name or number, which take turns. Default: all classes.
        given: Part of pictures to complete: a number of first codes of the prior's sequence; `upper`,
            `left`, `corner`, `centre` or `checkerboard`; a rectangle LEFT,TOP,RIGHT,BOTTOM in fractions of the picture;
            a PNG in which it is white; `not-` before a region or rectangle for all but it; or `scales-K`, the first K
            scales. A prior of one order completes what its order begins with, one of objective any_order any part.
        images: Pictures whose given part is completed, in place of validation pictures, equally often and N times at
            least; with one --condition for all, or one for each, if the prior is conditioned on classes.
        size: Rows and columns of codes, for pictures that are larger than the training pictures (order row_major).
        frames: Also write frames.gif, the pictures while they are sampled.
        workers: Processes on a Ray cluster (RAY_ADDRESS names it); 0 draws in this process.
        threads: Torch threads of a process that draws parts on a CPU. Another number may round differently.
        dry_run: Print the plan of drawing in parts, with sizes, memory and time, and write nothing.
        preset: Preset that sets the defaults of all flags below; auto chooses it by the pictures of the shards.

    Example:
        imagepriors sample --prior runs/photos/prior-zcurve-class --n 16 --temperature 0.9
    """
    from imagepriors.api.defaults import results_folder
    from imagepriors.api.plans import plan_samples
    from imagepriors.api.priors import ImagePrior
    from imagepriors.api.tokenizers import as_tokenizer
    from imagepriors.decode.draw import check_count

    check_count(n)
    trained = ImagePrior(prior, shards=shards, tokenizer=as_tokenizer(tokenizer) if tokenizer else None)
    names = trained.sequence.class_names if condition else ()
    classes = [int(value) if value.isdecimal() and value not in names else value for value in condition]
    if images:  # one for all, or one for each
        chosen: Any = classes[0] if len(classes) == 1 else classes or None
    else:
        chosen = [classes[index % len(classes)] for index in range(n)] if classes else None
    home = results_folder(prior)
    arguments: dict[str, Any] = {
        "condition": chosen, "given": given, "workers": workers, "threads": threads, "config": config,
    }  # fmt: skip
    out = out or home.parent / f"samples-{home.name}"
    at_once = [flag for flag, value in {"--size": size, "--frames": frames, "--images": images}.items() if value]
    if dry_run and at_once:
        raise UserError(f"--dry-run plans samples that are drawn in parts: leave it out, or {', '.join(at_once)}")
    if dry_run:
        return str(plan_samples(trained, out, n, **arguments))
    grid = trained.save_samples(out, n, size=size, frames=frames, images=images or None, **arguments)
    drawn = -(-n // len(images)) * len(images) if images else n
    return f"{drawn} samples in {shown(out)}; look at {shown(grid)}"
