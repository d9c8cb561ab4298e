"""`imagepriors import-tokenizer`, `import-prior`, `import-diffusers`, `export-diffusers`: models of other projects."""

from collections import Counter
from pathlib import Path

import tyro

from runkit.errors import UserError
from vqgan.compat.kinds import Kind, Part


def import_tokenizer(
    files: tyro.conf.Positional[tuple[Path, ...]],
    *,
    kind: Kind = "auto",
    part: Part | None = None,
    resolution: int | None = None,
) -> str:
    """Convert a released tokenizer to a tokenizer folder.

    Args:
        files: The checkpoint file, of which nothing is executed, for CompVis the yaml that came with it, and the folder
            to write.
        kind: Project that published it. auto: recognised by the names of the tensors.
        part: Tokenizer of a CompVis transformer's checkpoint to convert; default: that of the images.
        resolution: Side of the pictures that it will encode; default: that on which it was trained, or 256.

    Example:
        imagepriors import-tokenizer vq_ds16_c2i.pt runs/imagenet/tokenizer
    """
    from vqgan.compat.tokenizers import import_tokenizer as run

    checkpoint, project, out = _files(files)
    found = run(checkpoint, out, project=project, kind=kind, part=part, resolution=resolution)
    net, dropped = found["config"], found["dropped"]
    counts = Counter(name.split(".")[0] for name in dropped)
    groups = [f"{counts[start]} of {start}" for start in counts] if len(dropped) > 3 else dropped
    return (
        f"tokenizer in {out}: {found['kind']}, {net.resolution}×{net.resolution} {net.modality} → "
        f"{net.grid[0]}×{net.grid[1]} codes of {net.codebook_size}; {found['tensors']} tensors used, "
        f"{len(dropped)} dropped" + (f" ({', '.join(groups)})" if groups else "")
    )


def import_prior(files: tyro.conf.Positional[tuple[Path, ...]]) -> str:
    """Convert a released CompVis transformer to a prior with its tokenizer.

    Args:
        files: The checkpoint file, of which nothing is executed, the yaml that came with it, and the folder to write.
            Class-conditional and unconditional models are supported.

    Example:
        imagepriors import-prior last.ckpt project.yaml runs/imagenet/prior
    """
    from imagepriors.released import import_prior as run

    checkpoint, project, out = _files(files)
    sequence = run(checkpoint, project, out)
    return (
        f"prior in {out}: {sequence.height}×{sequence.width} codes of {sequence.codebook_size} in order "
        f"{sequence.order}, condition {sequence.condition}; it has no null condition, so guidance is refused"
    )


def _files(files: tuple[Path, ...]) -> tuple[Path, Path | None, Path]:
    """Return the checkpoint, its yaml or None, and the folder to write."""
    if len(files) not in (2, 3):
        raise UserError(f"{len(files)} paths were given: pass CHECKPOINT OUT, or CHECKPOINT YAML OUT for CompVis")
    return files[0], files[1] if len(files) == 3 else None, files[-1]


def import_diffusers(folder: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> str:
    """Convert a saved diffusers VQModel to a tokenizer folder.

    Args:
        folder: Folder that `VQModel.save_pretrained` wrote.
        out: Folder to write.

    Example:
        imagepriors import-diffusers vqmodel runs/photos/tokenizer
    """
    from vqgan.compat.diffusers import import_diffusers as run

    return f"tokenizer in {run(folder, out)}"


def export_diffusers(tokenizer: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> str:
    """Write a tokenizer as a folder that diffusers' VQModel.from_pretrained loads.

    Args:
        tokenizer: Folder of the tokenizer, or its address on the Hub (hf://OWNER/NAME).
        out: Folder to write.

    Example:
        imagepriors export-diffusers runs/photos/tokenizer vqmodel
    """
    from imagepriors.api.defaults import model_folder
    from vqgan.compat.diffusers import export_diffusers as run

    return f"diffusers VQModel in {run(model_folder(tokenizer), out)}"
