"""Transformer priors over image codes: train, load, sample, evaluate, import.

Axes: N samples, h × w the grid of codes.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codeprior.config import PriorError, SequenceSpec
from codeprior.sample_config import SampleConfig
from codeshards.format import ShardDataset
from codeshards.format.files import read_json
from imagepriors.api.conditions import class_ids, classes_alone, condition_tokens
from imagepriors.api.defaults import PathLike, as_path, model_folder, pretrained, shards_folder
from imagepriors.api.samples import SampledImages, code_size, sample_count
from imagepriors.api.settings import build_config
from imagepriors.api.shards import location
from imagepriors.api.tokenizers import ImageTokenizer, as_tokenizer
from imagepriors.presets import load_preset
from runkit.devices import Autocast, Device
from runkit.places import absolute

if TYPE_CHECKING:
    from codeprior.checkpoint import RunConfig
    from codeprior.model import Prior
    from imagepriors.decode.many import Drawing
    from vqgan.tokenizer import Tokenizer


class ImagePrior:
    """A trained prior, with the tokenizer of its codes where that is known. Make one with :func:`load_prior`.

    Weights are loaded on first use.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shards: Path | None = None,
        tokenizer: ImageTokenizer | None = None,
        device: Device = "auto",
    ) -> None:
        self.folder = model_folder(folder).absolute()
        run = self.folder.parent.parent if self.folder.parent.name == "checkpoints" else self.folder
        self.shards = Path(str(absolute(shards_folder(shards or run.parent / "shards"))))
        """Folder of the token shards: with their tokenizers, and the rows that conditions come from."""
        self._given_tokenizer, self._device = tokenizer, device

    @classmethod
    def from_pretrained(
        cls,
        name: PathLike,
        *,
        revision: str | None = None,
        shards: "PathLike | ShardDataset | None" = None,
        device: Device = "auto",
    ) -> "ImagePrior":
        """Load a prior from the Hugging Face Hub or a folder.

        Args:
            name: OWNER/NAME of the repository, perhaps with a folder in it; an hf:// address; or a local folder.
            revision: Branch, tag or commit.
            shards: Token shards with the conditions of a conditional prior.
            device: See :func:`load_prior`.

        Raises:
            UserError: It cannot be downloaded, or is no prior.
        """
        return load_prior(pretrained(name, revision), shards=shards, device=device)

    def push_to_hub(
        self,
        name: PathLike,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the prior and its tokenizer to OWNER/NAME, and return the URL of the commit; see :func:`push`."""
        from imagepriors.api.hub import push

        return push(self, name, private=private, revision=revision, message=message, license=license)

    def __repr__(self) -> str:
        spec = self.sequence
        return (
            f"ImagePrior({str(self.folder)!r}: {spec.height}×{spec.width} codes of {spec.codebook_size:,} in "
            f"{spec.order_text}, condition {spec.condition})"
        )

    @functools.cached_property
    def loaded(self) -> "Prior":
        """The transformer with its weights, in evaluation mode."""
        from codeprior.checkpoint import load_prior as load
        from runkit.devices import pick_device

        return load(self.folder, device=pick_device(self._device))

    @functools.cached_property
    def _run(self) -> "RunConfig":
        from codeprior.checkpoint import CONFIG, RunConfig, prior_folder

        return RunConfig.load(prior_folder(self.folder) / CONFIG)

    @property
    def sequence(self) -> SequenceSpec:
        """What the prior's sequences mean: grid, codebook, order, conditions, names of classes."""
        return self._run.sequence

    @property
    def can_be_guided(self) -> bool:
        """Whether it has a condition and was trained with the null condition, which guidance requires."""
        return bool(self.sequence.conditions) and self._run.train.cond_dropout > 0

    @property
    def summary(self) -> dict[str, Any]:
        """Final figures of the training run; empty while it is not finished."""
        path = self.folder / "summary.json"
        return read_json(path) if path.is_file() else {}

    @functools.cached_property
    def tokenizer(self) -> ImageTokenizer | None:
        """The tokenizer of the codes: given, imported with the prior, or stored with the shards; else None.

        Raises:
            ShardError: It is not the tokenizer of the codes that the prior was trained on.
        """
        from codeshards.format import open_store
        from imagepriors.decode.rows import load_shard_tokenizer

        expected = self.sequence.fingerprint
        if self._given_tokenizer is not None:
            return self._given_tokenizer.of_codes(expected)

        home = self.folder if (self.folder / "tokenizer").is_dir() else self.shards
        if (open_store(home) / "tokenizer/config.json").size() is None:
            return None
        return ImageTokenizer.of(
            load_shard_tokenizer(home, "tokenizer", expected, device=self._device), home / "tokenizer"
        )

    @property
    def decoder(self) -> "Tokenizer | None":
        """The network of the tokenizer; None if it is unknown."""
        return None if self.tokenizer is None else self.tokenizer.loaded

    def sample(
        self,
        n: int = 16,
        *,
        condition: Any = None,
        given: Any = 0,
        images: Any = None,
        size: tuple[int, int] | None = None,
        preset: PathLike | None = None,
        config: SampleConfig | None = None,
        **fields: Any,
    ) -> SampledImages:
        """Sample `n` images.

        Args:
            n: Number of samples.
            condition: A class name or number, or one per sample; or the codes of a condition [N, h, w]; a mapping from
                name to such where there are several conditions. Default: classes in turn, other conditions of
                validation rows of the shards.
            given: Part of validation rows to complete: a number of first codes; "upper", "left", "corner", "centre" or
                "checkerboard"; a rectangle "LEFT,TOP,RIGHT,BOTTOM" in fractions of the image; the path of a PNG or an
                array [H, W] in which the known part is white or true; "not-" before a region or rectangle for all but
                it; or "scales-K", the first K scales. A prior of one order completes what its order begins with, one
                of objective "any_order" any part.
            images: Images whose given part is completed, in place of validation rows, equally often and `n` times at
                least: paths, PIL images, arrays or tensors; with `condition`, a class, or one per image, where the
                prior has this condition.
            size: Rows and columns of codes, for images larger than those of training (order row_major).
            preset: Name or TOML file of a preset, whose table [sample] sets the defaults.
            config: A complete config in place of the default one.
            **fields: Fields of :class:`SampleConfig` to override, such as ``temperature=0.9``, ``guidance=2`` or
                ``seed=1``.

        Raises:
            PriorError: The prior does not support the arguments; the message says what it supports.
        """
        n, size = sample_count(n), code_size(size)
        settings = sampling_config(fields, config, preset, ImagePrior.sample)
        spec = self.sequence
        if images is not None:
            from imagepriors.decode.draw import draw_codes
            from imagepriors.decode.partial import known_codes

            codes_AT, classes, each = self._to_complete(images, given, condition, n)
            drawn = draw_codes(
                self.loaded, self.folder, self.shards, each * len(codes_AT), config=settings, per_condition=each,
                known_T=known_codes(spec, given), size=size, classes=classes, complete_AT=codes_AT,
            )  # fmt: skip
            return SampledImages(drawn.codes_NHW, drawn.conditions, self.tokenizer)
        completes = str(given) != "0"
        needs_rows = completes or any(part.name != "class" for part in spec.conditions)
        if condition is None and (needs_rows or size):
            from imagepriors.decode.draw import draw_codes
            from imagepriors.decode.partial import known_codes

            known_T = known_codes(spec, given)
            drawn = draw_codes(self.loaded, self.folder, self.shards, n, config=settings, known_T=known_T, size=size)
            return SampledImages(drawn.codes_NHW, drawn.conditions, self.tokenizer)
        if completes or size:
            raise PriorError("condition: given and size take their conditions from the shards; leave one of them out")
        import torch

        from codeprior.sample import sample_codes
        from imagepriors.decode.draw import check_guidance

        check_guidance(self.folder, settings)

        tokens = condition_tokens(self.sequence, condition, n)
        tensors = {name: torch.from_numpy(values) for name, values in tokens.items()} or None
        codes_NHW = sample_codes(self.loaded, n, condition=tensors, config=settings).numpy()
        return SampledImages(codes_NHW, tokens, self.tokenizer)

    def save_samples(
        self,
        out: PathLike,
        n: int,
        *,
        condition: Any = None,
        given: Any = 0,
        images: Any = None,
        size: tuple[int, int] | None = None,
        frames: bool = False,
        workers: int = 0,
        threads: int = 2,
        preset: PathLike | None = None,
        config: SampleConfig | None = None,
        **fields: Any,
    ) -> Path:
        """Write samples into a folder: grid.png, the single images, codes.npz, metadata.json and perhaps frames.gif.

        More than 1,000 samples, and those in a file, are drawn in parts; the same call resumes after a kill. The ranks
        of torchrun and Ray workers share the parts, and give the same bytes.

        Args:
            out: The folder; at most 1,000 samples of an earlier call are replaced, more and other files never. Or a
                file, NAME.npz as ADM's evaluator reads it or NAME.tar for WebDataset; NAME.json, NAME.codes.npz and
                NAME.png are beside it.
            n: Number of samples.
            condition: A class name or number, or one per sample. Default: as for :meth:`sample`.
            given: See :meth:`sample`.
            images: See :meth:`sample`.
            size: See :meth:`sample`.
            frames: Also write frames.gif, the images while they are sampled.
            workers: Processes on Ray (RAY_ADDRESS names a cluster); 0 draws in this process.
            threads: Torch threads of a process that draws in parts. Another number may round differently.
            preset: Name or TOML file of a preset, whose table [sample] sets the defaults.
            config: A complete config in place of the default one.
            **fields: Fields of :class:`SampleConfig` to override.

        Returns:
            The path of grid.png, or of NAME.png.
        """
        from imagepriors.decode.many import write_many
        from imagepriors.decode.outputs import is_large
        from imagepriors.decode.samples import write_samples
        from runkit.ranks import process_group, world_size

        n, size, out = sample_count(n), code_size(size), as_path(out)
        settings = sampling_config(fields, config, preset, ImagePrior.save_samples)
        whole = {"frames": frames, "size": size is not None, "images": images is not None}
        alone = [name for name, is_set in whole.items() if is_set]
        with process_group():
            prior, tokenizer = None if workers else self.loaded, self.decoder
            if workers or world_size() > 1 or is_large(out, n, whole=bool(alone)):
                if alone:
                    raise PriorError(
                        f"{', '.join(alone)}: such samples are drawn by one process, into a folder, but out = {out}, "
                        f"workers = {workers}, and {world_size()} processes draw: pass a folder and workers = 0 in one "
                        "process"
                    )
                drawing = self._drawing(out, n, condition, given, workers, threads, settings)
                return write_many(drawing, prior, tokenizer)
        codes_AT, each = None, 1
        if images is not None:
            codes_AT, classes, each = self._to_complete(images, given, condition, n)
            n = each * len(codes_AT)
        else:
            classes = None if condition is None else classes_alone(self.sequence, condition, n, given)
        return write_samples(
            self.folder, self.shards, out, n, config=settings, given=given, size=size, classes=classes,
            complete_AT=codes_AT, frames=frames, prior=prior, tokenizer=tokenizer,
        )  # fmt: skip

    def _to_complete(
        self, images: Any, given: Any, condition: Any, n: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None, int]:
        """Code sequences [A, T] of images, their classes [A], and how often each is completed."""
        spec = self.sequence
        if str(given) == "0" or spec.scales:
            raise PriorError("images: name with given which part of them is known; a multiscale prior completes none")
        if self.tokenizer is None:
            raise PriorError("images: their codes require the tokenizer; pass tokenizer or shards to load_prior")
        found = self.tokenizer.encode(images)
        codes_AT = found.reshape(-1, spec.length)[:, spec.permutation(spec.height, spec.width)].astype(np.int64)
        if not len(codes_AT):
            raise PriorError("images is empty: pass at least one")
        classes = None if condition is None else class_ids(spec, condition, len(codes_AT))
        return codes_AT, classes, -(-n // len(codes_AT))

    def _drawing(
        self, out: Path, n: int, condition: Any, given: Any, workers: int, threads: int, config: SampleConfig
    ) -> "Drawing":
        from imagepriors.decode.many import Drawing
        from imagepriors.decode.partial import known_codes
        from runkit.devices import pick_device

        tokenizer = self._given_tokenizer
        decoder: tuple[Device | None, Autocast] = (None, "float32") if tokenizer is None else tokenizer.arithmetic
        return Drawing(
            prior_run=self.folder, sequence=self.sequence, shards=self.shards, out=out.absolute(), n=n, config=config,
            decoder=None if tokenizer is None else tokenizer.folder,
            decoder_device=decoder[0], decoder_precision=decoder[1],
            given=str(given) if isinstance(given, str | int | Path) else "mask",
            known_T=known_codes(self.sequence, given), device=pick_device(self._device).type,  # type: ignore[arg-type]
            classes=None if condition is None else classes_alone(self.sequence, condition, n, given),
            workers=workers, threads=threads,
        )  # fmt: skip


def sampling_config(
    fields: Mapping[str, Any], config: SampleConfig | None, preset: PathLike | None, function: Callable[..., Any]
) -> SampleConfig:
    """The config of samples: a complete one, or the fields over those of a preset; `function` is named in errors."""
    base = load_preset(str(preset), "sample") if preset is not None else {}
    return build_config(SampleConfig, fields, config=config, base=base, function=function)


def load_prior(
    folder: PathLike,
    *,
    shards: PathLike | ShardDataset | None = None,
    tokenizer: PathLike | ImageTokenizer | None = None,
    device: Device = "auto",
) -> ImagePrior:
    """Load a trained or imported prior.

    Args:
        folder: Its run folder, one checkpoint, or its address on the Hub (hf://OWNER/NAME).
        shards: Token shards with the tokenizer and the conditions; default: "shards" beside the prior.
        tokenizer: The tokenizer of the codes, in place of that of the shards.
        device: "auto" takes a GPU where this machine has one. A tokenizer object keeps its own device.

    Raises:
        PriorError: The folder holds no prior, or its files are damaged.
    """
    prior = ImagePrior(
        model_folder(folder),
        shards=location(shards) if shards is not None else None,
        tokenizer=None if tokenizer is None else as_tokenizer(tokenizer, device=device),
        device=device,
    )
    _ = prior.loaded  # errors are raised here, not at the first sample
    return prior


def import_prior(checkpoint: PathLike, project: PathLike, out: PathLike) -> ImagePrior:
    """Convert a released CompVis transformer to a prior with its tokenizer; nothing in the checkpoint is executed.

    Args:
        checkpoint: The checkpoint file, such as last.ckpt.
        project: The yaml that came with it.
        out: Folder to write.

    Raises:
        InputError: The files are of another kind of model; the message says what does not map.
    """
    from imagepriors.released import import_prior as convert

    convert(as_path(checkpoint), as_path(project), as_path(out))
    return ImagePrior(as_path(out))
