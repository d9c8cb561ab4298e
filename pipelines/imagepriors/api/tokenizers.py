"""Image tokenizers: train, load, encode, decode, evaluate, import.

Axes: N images, B a batch, h × w the grid of codes, H × W pixels, C channels.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from codeshards.format import ShardError
from codeshards.format.files import read_json
from imagepriors.api.datasets import ImageDataset, dataset_of
from imagepriors.api.defaults import PathLike, as_path, model_folder, pretrained, results_folder, run_folder
from imagepriors.api.memory import keep_freed_memory
from imagepriors.api.settings import build_config, stage_1_table
from imagepriors.evaluate.config import EvaluateConfig
from runkit.codes import Codes, code_dtype
from runkit.devices import Autocast, Device, Precision
from runkit.folders import check_apart
from runkit.places import absolute
from vqgan.compat.kinds import Kind, Part
from vqgan.config import Geometry, ModelConfig, dataset_geometry
from vqgan.config import TrainConfig as TokenizerConfig
from vqgan.plugin_tokenizer import plugin_name

if TYPE_CHECKING:
    from PIL import Image

    from vqgan.data import Split
    from vqgan.tokenizer import Tokenizer

_ENCODE_BATCH = 32
"""Images that are encoded together."""


class ImageTokenizer:
    """A tokenizer, trained or of another package: images to codes and back. Make one with :func:`load_tokenizer`.

    Weights are loaded on first use.
    """

    def __init__(self, folder: Path, *, device: Device = "auto", precision: Precision = "float32") -> None:
        self.folder = folder if plugin_name(folder) else Path(str(absolute(model_folder(folder))))
        self._device, self._precision = device, precision

    @classmethod
    def of(cls, tokenizer: "Tokenizer", folder: Path) -> "ImageTokenizer":
        """Wrap a tokenizer that is already loaded."""
        made = cls(folder)
        made.__dict__["loaded"] = tokenizer
        return made

    @classmethod
    def from_pretrained(
        cls, name: PathLike, *, revision: str | None = None, device: Device = "auto", precision: Precision = "float32"
    ) -> "ImageTokenizer":
        """Load a tokenizer from the Hugging Face Hub or a folder.

        Args:
            name: OWNER/NAME of the repository, perhaps with a folder in it; an hf:// address; or a local folder.
            revision: Branch, tag or commit.
            device: See :func:`load_tokenizer`.
            precision: See :func:`load_tokenizer`.

        Raises:
            UserError: It cannot be downloaded, or is no tokenizer.
        """
        return load_tokenizer(pretrained(name, revision), device=device, precision=precision)

    def push_to_hub(
        self,
        name: PathLike,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the tokenizer to OWNER/NAME, and return the URL of the commit; see :func:`push`."""
        from imagepriors.api.hub import push

        return push(self, name, private=private, revision=revision, message=message, license=license)

    def __repr__(self) -> str:
        net = self.config
        return (
            f"ImageTokenizer({str(self.folder)!r}: {net.resolution}×{net.resolution} {net.modality} → "
            f"{net.grid[0]}×{net.grid[1]} codes of {net.codebook_size:,})"
        )

    @functools.cached_property
    def loaded(self) -> "Tokenizer":
        """The network with its weights."""
        from vqgan.tokenizer import Tokenizer

        return Tokenizer.load(self.folder, device=self._device, precision=self._precision)

    @functools.cached_property
    def config(self) -> ModelConfig:
        """The architecture: resolution, grid, codebook size, modality."""
        if "loaded" in self.__dict__:
            return self.loaded.config
        from vqgan.checkpoint import load_config

        return load_config(self.folder).model

    @property
    def summary(self) -> dict[str, Any]:
        """Final figures of the training run; empty for a tokenizer that was imported."""
        path = self.folder / "summary.json"
        return read_json(path) if path.is_file() else {}

    @property
    def arithmetic(self) -> "tuple[Device, Autocast]":
        """Device and precision that it computes with, decided."""
        from runkit.devices import pick_device
        from vqgan.cpu_kernels import resolve_precision

        place = pick_device(self._device)
        return place.type, resolve_precision(self._precision, place)  # type: ignore[return-value]

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, which names the codes in shards and priors."""
        return self.loaded.fingerprint

    @property
    def code_fingerprints(self) -> set[str]:
        """Fingerprints of the tokenizers that give the same codes: its own, and that whose encoder it has kept."""
        from vqgan.checkpoint import load_config

        return {self.fingerprint, load_config(self.folder).codes_of} - {""}

    def of_codes(self, fingerprint: str) -> Self:
        """Return this tokenizer.

        Raises:
            ShardError: It is not that of codes with this fingerprint.
        """
        if fingerprint not in self.code_fingerprints:
            from imagepriors.decode.rows import mismatch

            raise ShardError(mismatch(f"{self.folder} has fingerprint {self.fingerprint}", fingerprint))
        return self

    def encode(self, images: Any) -> Codes:
        """Encode one image or several.

        Images of any size are resized as the tokenizer's geometry says, which is how datasets are read.

        Args:
            images: A PIL image or a path; an array or tensor: uint8 or, in [0, 1], float, [H, W, 3] or [N, H, W, 3],
                or as torch has it [3, H, W] or [N, 3, H, W]; or a sequence of any of these. Label maps and depth
                have no channels.

        Returns:
            Codes [h, w] of one image, [N, h, w] of several, in raster order.

        Raises:
            InputError: The values are not images of this tokenizer's modality.
        """
        from imagepriors.api.images import to_arrays

        arrays, single = to_arrays(images, self.config)
        batches = [
            self.loaded.encode(arrays[start : start + _ENCODE_BATCH]) for start in range(0, len(arrays), _ENCODE_BATCH)
        ]
        codes_NHW = np.concatenate([np.empty((0, *self.config.grid), code_dtype(self.config.codebook_size)), *batches])
        return codes_NHW[0] if single else codes_NHW

    def decode(self, codes: Any) -> "Image.Image | list[Image.Image]":
        """Decode a grid of codes [h, w] to a PIL image, or several [N, h, w] to a list of them.

        Rows [N, h · w] of a shard's row_major column are several as well. Label maps and depth are shown in colours;
        :meth:`decode_arrays` returns their values.

        Raises:
            InputError: A code is not in the codebook, or the shape is not that of grids.
        """
        from PIL import Image

        from imagepriors.api.images import to_codes
        from imagepriors.reports.figures import colorize

        codes_NHW, single = to_codes(codes, self.config.grid)
        images = [Image.fromarray(picture) for picture in colorize(self.loaded.decode(codes_NHW))]
        return images[0] if single else images

    def decode_arrays(self, codes: Any) -> npt.NDArray[Any]:
        """Decode grids of codes [N, h, w] to arrays: RGB uint8 [N, H, W, 3], labels [N, H, W] or depth in [0, 1]."""
        from imagepriors.api.images import to_codes

        return self.loaded.decode(to_codes(codes, self.config.grid)[0])


def as_tokenizer(tokenizer: "PathLike | ImageTokenizer", *, device: Device = "auto") -> ImageTokenizer:
    """A tokenizer of itself, of its folder or of its hf:// address; from the latter two on a device."""
    return tokenizer if isinstance(tokenizer, ImageTokenizer) else ImageTokenizer(as_path(tokenizer), device=device)


def load_tokenizer(folder: PathLike, *, device: Device = "auto", precision: Precision = "float32") -> ImageTokenizer:
    """Load a trained or imported tokenizer.

    Args:
        folder: Folder that :func:`train_tokenizer` or :func:`import_tokenizer` wrote; name of a tokenizer of another
            package (an entry point of imagepriors.tokenizers, or package.module:function); or address of one on the Hub
            (hf://OWNER/NAME, hf://OWNER/NAME@REVISION/FOLDER).
        device: "auto" takes a GPU where this machine has one.
        precision: bfloat16 changes a few per cent of the codes.

    Raises:
        InputError: The folder holds no tokenizer, or its files are damaged.
        UserError: It cannot be downloaded.
    """
    tokenizer = ImageTokenizer(as_path(folder), device=device, precision=precision)
    _ = tokenizer.loaded  # errors are raised here, not at the first image
    return tokenizer


def train_tokenizer(
    data: PathLike | ImageDataset,
    *,
    out: PathLike | None = None,
    dataset: str = "auto",
    preset: PathLike = "auto",
    workers: int = 0,
    config: TokenizerConfig | None = None,
    **fields: Any,
) -> ImageTokenizer:
    """Train a VQGAN on pictures; an interrupted run resumes, and a finished one is not repeated.

    Args:
        data: Folder or URL of the pictures, or an open dataset.
        out: Run folder; default: runs/NAME/tokenizer, where NAME is the name of the data's folder.
        dataset: Layout of the data; "auto" recognises it.
        preset: Name or TOML file of the preset; "auto" chooses it by the size of the pictures.
        workers: Processes on a Ray cluster (RAY_ADDRESS names it); 0 trains in this process.
        config: A complete config in place of a preset.
        **fields: Fields of :class:`TokenizerConfig` to override, such as ``steps=200`` or ``model={"ch": 32}``.

    Raises:
        InputError: The data cannot be opened, a field is not allowed, or `out` holds another run.
    """
    settings, splits, folder = tokenizer_training(data, out, dataset, preset, config, fields)
    keep_freed_memory()
    from vqgan.train import train_tokenizer as train

    if workers:
        path, layout = dataset_of(data, dataset)
        from imagepriors.cluster import train_vqgan_on_ray

        train_vqgan_on_ray(settings, layout, path, folder, workers)
    else:
        train(settings, splits, folder)
    return ImageTokenizer(folder)


def tokenizer_training(
    data: PathLike | ImageDataset,
    out: PathLike | None,
    dataset: str,
    preset: PathLike,
    config: TokenizerConfig | None,
    fields: Mapping[str, Any],
) -> tuple[TokenizerConfig, "dict[str, Split]", Path]:
    """The settings, the pictures and the run folder of a training."""
    path, layout = dataset_of(data, dataset)
    start = {name: fields[name] for name in ("init", "freeze") if name in fields}
    base = {} if config else stage_1_table(str(preset), "vqgan", layout, path, **start)
    settings = build_config(TokenizerConfig, fields, config=config, base=base, function=train_tokenizer)
    if settings.init:  # absolute, because workers on a cluster have another working folder
        settings = dataclasses.replace(settings, init=str(as_tokenizer(settings.init).folder))
    from vqgan.data import open_splits, sources_of

    folder = as_path(out) if out else run_folder(path) / "tokenizer"
    splits = dict(data) if isinstance(data, ImageDataset) else open_splits(layout, path)
    check_apart(folder, data=sources_of(splits, path))
    return settings, splits, folder


def train_palette(
    data: PathLike | ImageDataset,
    *,
    out: PathLike | None = None,
    dataset: str = "auto",
    colours: int = 512,
    resolution: int = 32,
    geometry: Geometry | None = None,
    images: int = 2_000,
    seed: int = 0,
) -> ImageTokenizer:
    """Fit a palette tokenizer: a dictionary of colours, one code per pixel (the paper's pixel baseline).

    Args:
        data: Folder or URL of the pictures, or an open dataset.
        out: Folder to write; default: runs/NAME/palette, where NAME is the name of the data's folder.
        dataset: Layout of the data; "auto" recognises it.
        colours: Colours of the dictionary.
        resolution: Side of the pictures, in pixels and in codes.
        geometry: How pictures that are not square become square; default: as suits the dataset.
        images: Maximum number of pictures to take pixels from.
        seed: Seed of the draw and of k-means.

    Raises:
        InputError: The data cannot be opened, or a number is out of range.
    """
    from vqgan.data import open_splits, resolve, sources_of
    from vqgan.palette import fit_palette

    path, layout = dataset_of(data, dataset)
    folder = as_path(out) if out else run_folder(path) / "palette"
    splits = open_splits(layout, path)
    check_apart(folder, data=sources_of(splits, path))
    how = geometry or dataset_geometry(resolve(layout, path))
    fit_palette(splits["train"], folder, colours=colours, resolution=resolution, geometry=how, images=images, seed=seed)
    return ImageTokenizer(folder)


def evaluate_tokenizer(
    tokenizer: PathLike | ImageTokenizer,
    data: PathLike | ImageDataset,
    *,
    out: PathLike | None = None,
    dataset: str = "auto",
    config: EvaluateConfig | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Measure the reconstructions of a tokenizer: PSNR, SSIM, LPIPS, Fréchet distance, codebook usage.

    Args:
        tokenizer: The tokenizer or its folder.
        data: Folder or URL of the pictures, or an open dataset.
        out: JSON file to write; default: evaluation.json in the tokenizer's folder.
        dataset: Layout of the data; "auto" recognises it.
        config: A complete config in place of the default one.
        **fields: Fields of EvaluateConfig to override, such as ``split="train"`` or ``limit=500``.

    Returns:
        The content of the JSON file; "figures" has the metrics.
    """
    settings = build_config(EvaluateConfig, fields, config=config, function=evaluate_tokenizer)
    from imagepriors.evaluate.tokenizer import evaluate_tokenizer as evaluate

    folder, (path, layout) = as_tokenizer(tokenizer).folder, dataset_of(data, dataset)
    return evaluate(folder, layout, path, as_path(out) if out else results_folder(folder) / "evaluation.json", settings)


def import_tokenizer(
    checkpoint: PathLike,
    out: PathLike,
    *,
    project: PathLike | None = None,
    kind: Kind = "auto",
    part: Part | None = None,
    resolution: int | None = None,
) -> ImageTokenizer:
    """Convert a released tokenizer to a tokenizer folder; nothing in the checkpoint is executed.

    Args:
        checkpoint: The checkpoint file, such as vq_ds16_c2i.pt.
        out: Folder to write.
        project: The yaml that came with a CompVis checkpoint.
        kind: Project that published it; auto: recognised by the names of the tensors.
        part: Tokenizer of a CompVis transformer's checkpoint to convert; default: that of the images.
        resolution: Side of the pictures that it will encode; default: that on which it was trained, or 256.

    Raises:
        InputError: The file is of another kind of model; the message says what does not map.
    """
    from vqgan.compat.tokenizers import import_tokenizer as convert

    yaml = None if project is None else as_path(project)
    convert(as_path(checkpoint), as_path(out), project=yaml, kind=kind, part=part, resolution=resolution)
    return ImageTokenizer(as_path(out))
