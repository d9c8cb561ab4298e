"""`imagepriors import-tokenizer`, `import-prior`, `import-diffusers`, `export-diffusers`: models of other projects."""

from pathlib import Path
from typing import Literal

import tyro


def import_tokenizer(
    checkpoint: tyro.conf.Positional[Path],
    project: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    *,
    part: Literal["first_stage", "cond_stage"] | None = None,
) -> str:
    """Convert a released CompVis VQGAN to a tokenizer folder.

    Args:
        checkpoint: The checkpoint file; nothing in it is executed.
        project: The yaml that came with it.
        out: Folder to write.
        part: Tokenizer of a transformer's checkpoint to convert; default: that of the images.

    Example:
        imagepriors import-tokenizer last.ckpt project.yaml runs/imagenet/tokenizer
    """
    from vqgan.compat.compvis import import_tokenizer as run

    found = run(checkpoint, project, out, part)
    net = found["config"]
    return (
        f"tokenizer in {out}: {net.resolution}×{net.resolution} {net.modality} → {net.grid}×{net.grid} codes of "
        f"{net.codebook_size}; {found['tensors']} tensors used, {len(found['dropped'])} of the loss dropped"
    )


def import_prior(
    checkpoint: tyro.conf.Positional[Path], project: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]
) -> str:
    """Convert a released CompVis transformer to a prior with its tokenizer.

    Args:
        checkpoint: The checkpoint file; nothing in it is executed.
        project: The yaml that came with it; class-conditional and unconditional models are supported.
        out: Folder to write.

    Example:
        imagepriors import-prior last.ckpt project.yaml runs/imagenet/prior
    """
    from imagepriors.released import import_prior as run

    sequence = run(checkpoint, project, out)
    return (
        f"prior in {out}: {sequence.height}×{sequence.width} codes of {sequence.codebook_size} in order "
        f"{sequence.order}, condition {sequence.condition}; it has no null condition, so guidance is refused"
    )


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
