"""How good a prior is: likelihood of validation codes, distance of its samples to pictures, faith to its conditions.

Fréchet distance, precision, recall and Inception score are torch-fidelity's. Over its Inception network they are FID,
precision, recall and IS; over EfficientNet-Lite0, which needs no download, they are called Fréchet distance, precision
and recall on those features, and never FID. Beside each stands that of as many real pictures in the samples' place
("…, real"): what a perfect prior would have. Whether a sample follows its condition is read by :mod:`.faithfulness`.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codeprior.checkpoint import CONFIG, RunConfig, load_prior, prior_folder
from codeprior.config import ConditionSpec, SampleConfig, SequenceSpec
from codeprior.data import CodeData, check_shards, pixel_dims
from codeprior.train import evaluate
from codeshards.format import ShardDataset, open_store
from imagepriors.decode.samples import decoded_at, draw_samples, load_shard_tokenizer, some_rows
from imagepriors.evaluate.conditions import MEASURES, TAUGHT, Reader, derangement
from imagepriors.evaluate.config import EvaluatePriorConfig
from imagepriors.evaluate.tokenizer import (
    LITE0,
    SHOWN,
    Lite0Features,
    frechet_distance,
    inception_weights,
    judges,
    lite0_features,
    unused,
)
from runkit.devices import make_autocast, pick_device
from runkit.files import pretty_json
from runkit.folders import check_apart, check_publish, publish_file
from runkit.jsonfiles import finite_or_none
from vqgan.checkpoint import trained_against
from vqgan.config import Geometry
from vqgan.data import Split, open_splits, resolve, sources_of, spread

Pictures = npt.NDArray[Any]
_BATCH = 64
_TAUGHT_ROWS = 5000
"""At most, since their pictures are held in memory."""


def evaluate_prior(
    prior_run: Path,
    shards: Path,
    out: Path,
    config: EvaluatePriorConfig,
    sampling: SampleConfig,
    *,
    dataset: str = "",
    data: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a prior and write the figures, with what they are of, to the JSON file `out`.

    Args:
        prior_run: Trained prior.
        shards: Folder of token shards with its tokenizers.
        out: JSON file to write.
        config: What to measure.
        sampling: How samples are drawn.
        dataset: Layout of `data`.
        data: Pictures to compare samples with; without it decoded validation codes take their place.

    Raises:
        ShardError: prior and shards do not belong together, or there is too little to measure.
        InputError: the pictures or a network's weights are not there.
    """
    check_apart(out, data=sources_of(open_splits(dataset, data), data) if data else None, shards=shards)
    check_publish(out.parent, [out.name], "evaluate-prior")
    check_features(config)  # before anything that takes long
    sequence = RunConfig.load(prior_folder(prior_run) / CONFIG).sequence
    dataset_of_codes = ShardDataset.open(shards)
    check_shards(dataset_of_codes, sequence)
    reference = _reference(dataset_of_codes, sequence, config, dataset, data)
    figures = _likelihood(prior_run, dataset_of_codes, sequence, config)
    samples = draw_samples(prior_run, shards, config.n, config=sampling, sources=False)
    figures |= reference.distances(samples.pictures, config)
    if sequence.conditions:
        judge = Judge(dataset_of_codes, sequence.conditions, config)
        for name, given in samples.conditions.items():
            figures |= judge.faith(name, samples.pictures, given)
    report = {
        "figures": figures,
        "judges": judges([*figures], trained_loss(dataset_of_codes)),
        "samples": config.n,
        "reference": reference.name,
        "reference_pictures": len(reference.pictures),
        "features": config.features,
        "sampling": {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "guidance", "seed")},
        "order": sequence.order,
        "condition": sequence.condition,
        "tokenizer": sequence.fingerprint,
    }
    publish_file(out, pretty_json(finite_or_none(report)), "evaluate-prior")
    return report


def _likelihood(
    prior_run: Path, dataset: ShardDataset, sequence: SequenceSpec, config: EvaluatePriorConfig
) -> dict[str, float]:
    """Mean over all validation rows."""
    if "val" not in dataset.splits:
        return {}
    prior = load_prior(prior_run, device=pick_device("auto"))
    autocast = make_autocast(prior.device, "float32")
    data = CodeData.open(dataset, "val", sequence)
    nll = float(evaluate(prior, data, batch_size=config.batch_size, autocast=autocast).mean())
    figures = {"nll_nats": nll, "bits_per_code": nll / math.log(2)}
    if dims := pixel_dims(dataset):
        figures["bits_per_dim"] = nll * sequence.length / (math.log(2) * dims)
    return figures


def trained_loss(codes: ShardDataset) -> str | None:
    """The perceptual loss that the image tokenizer beside shards was trained with; None where it is not known."""
    with (open_store(codes.path) / "tokenizer").as_folder() as folder:
        return trained_against(folder)


@dataclass(frozen=True, slots=True)
class Reference:
    """Pictures that samples are compared with: uint8 [N, H, W, 3]."""

    pictures: Pictures
    name: str
    """What they are."""
    others: "Pictures | Pixels | None"
    """As many other pictures of their kind as there are samples; None where there are fewer."""

    def distances(self, samples: Pictures, config: EvaluatePriorConfig) -> dict[str, float]:
        """Those of samples and, with the word "real", of as many other real pictures."""
        figures = distances(samples, self.pictures, config)
        if figures and self.others is not None:
            figures |= {f"{name}, real": value for name, value in distances(self.others, self.pictures, config).items()}
        return figures


def _reference(
    codes: ShardDataset, sequence: SequenceSpec, config: EvaluatePriorConfig, dataset: str, data: Path | None
) -> Reference:
    if data is None:
        rows = some_rows(codes, "val", config.reference_limit)
        rest = np.setdiff1d(np.arange(codes.rows("val")), rows)
        split, left = ("val", rest) if len(rest) >= config.n else ("train", np.arange(codes.rows("train")))
        others = left[spread(len(left), config.n)] if len(left) >= config.n else None
        return Reference(
            decoded_at(codes, "val", rows)[0],
            "validation pictures, encoded and decoded by the tokenizer",
            None if others is None else decoded_at(codes, split, others)[0],
        )
    tokenizer = load_shard_tokenizer(codes.path, "tokenizer", sequence.fingerprint)
    net = tokenizer.config
    return reference_of(dataset, data, net.resolution, config, net.geometry)


def reference_of(
    dataset: str, data: Path, size: int, config: EvaluatePriorConfig, geometry: Geometry = "crop"
) -> Reference:
    """Pictures of a dataset, evenly over the split that `config` names, and others for as many samples as it says."""
    splits = open_splits(dataset, data)
    found = splits[config.reference]
    used = spread(len(found), config.reference_limit or len(found))
    others = next((split for split in unused(splits, config.reference, used) if len(split) >= config.n), None)
    pictures = np.empty((len(used), size, size, 3), np.uint8)
    for row, index in enumerate(used):
        pictures[row] = found.read_good(index, size, geometry=geometry).image
    return Reference(
        pictures,
        f"{resolve(dataset, data)}, split {config.reference}, {SHOWN[geometry]} at {size}×{size}",
        Pixels(others.subset(spread(len(others), config.n)), size, geometry) if others else None,
    )


class Pixels:
    """Pictures of a split as an array of them, read when they are looked at."""

    def __init__(self, split: Split, size: int, geometry: Geometry) -> None:
        self._split, self._size, self._geometry = split, size, geometry

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        if not index < len(self):
            raise IndexError(index)  # which ends an iteration
        return self._split.read_good(index, self._size, geometry=self._geometry).image


def distances(samples: Pictures | Pixels, reference: Pictures, config: EvaluatePriorConfig) -> dict[str, float]:
    """Fréchet distance, precision and recall of samples uint8 [N, H, W, 3], and over Inception their score.

    Raises:
        InputError: the Inception weights are not where they should be.
    """
    if config.features == "none":
        return {}
    import torch_fidelity

    inception = config.features == "inception"
    network = "inception-v3-compat" if inception else lite0_features()
    neighbours = min(3, len(samples) - 1, len(reference) - 1)
    with inception_weights(config.inception) if inception else contextlib.nullcontext() as weights:
        found = torch_fidelity.calculate_metrics(
            input1=_Planes(samples), input2=_Planes(reference), fid=True, prc=True, isc=inception,
            prc_neighborhood=neighbours, save_cpu_ram=True, batch_size=_BATCH, cuda=torch.cuda.is_available(),
            cache=False, verbose=False, feature_extractor=network, feature_extractor_weights_path=weights,
        )  # fmt: skip
    frechet = "fid" if inception else LITE0
    names = {"frechet_inception_distance": frechet, "precision": "precision", "recall": "recall"}
    if inception:
        names["inception_score_mean"] = "inception_score"
    return {ours: float(found[theirs]) for theirs, ours in names.items()}


def check_features(config: EvaluatePriorConfig) -> None:
    """Load the weights that :func:`distances` will want, where they may be missing or other ones.

    Raises:
        InputError: Inception's are not there, or cannot be loaded.
    """
    if config.features == "inception":
        frechet_distance("inception", config.inception, torch.device("cpu"))


class _Planes(torch.utils.data.Dataset[Tensor]):
    """Pictures as torch-fidelity wants them: uint8 [3, H, W]."""

    def __init__(self, pictures: Pictures | Pixels) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self._pictures[index]).permute(2, 0, 1)


class Judge:
    """Tells how far samples follow their conditions: a network that reads them, and what it reads off real pictures.

    The network is taught on decoded training codes that it sees twice or more often.

    Args:
        codes: Shards with the tokenizers of all their parts.
        parts: Conditions to read.
        config: Steps of the reader; as many validation pictures as there are samples bound what samples can reach.
    """

    def __init__(self, codes: ShardDataset, parts: Sequence[ConditionSpec], config: EvaluatePriorConfig) -> None:
        self._is_imagenet = is_imagenet(codes.class_names)
        found = {part.name: _condition_pictures(codes, part) for part in parts}
        self._show = {name: show for name, (show, _) in found.items()}
        self._reader = self._taught(codes, parts, {name: size for name, (_, size) in found.items()}, config)
        self._real: dict[str, float] = {}
        if "val" in codes.splits:
            rows = some_rows(codes, "val", config.n)
            pictures, tokens = decoded_at(codes, "val", rows, [part.column for part in parts])
            self._real = {part.name: self._scores(part.name, pictures, tokens[part.column])[0] for part in parts}

    def _taught(
        self, codes: ShardDataset, parts: Sequence[ConditionSpec], sizes: dict[str, int], config: EvaluatePriorConfig
    ) -> Reader:
        rows = some_rows(codes, "train", min(_TAUGHT_ROWS, config.reader_steps * TAUGHT // 2))
        pictures, tokens = decoded_at(codes, "train", rows, [part.column for part in parts])
        conditions = {part.name: self._show[part.name](tokens[part.column]) for part in parts}
        return Reader.teach(pictures, conditions, sizes, steps=config.reader_steps)

    def faith(self, name: str, samples: Pictures, given: Any) -> dict[str, float]:
        """How far samples show the condition that they were given, beside the two bounds of that.

        Args:
            name: The condition.
            samples: uint8 [N, H, W, 3].
            given: Class ids [N], or condition codes [N, C].
        """
        others = np.asarray(given)[derangement(len(given))]
        own, shuffled = self._scores(name, samples, given, others)
        figures = {"samples": own, "shuffled": shuffled}
        if name in self._real:
            figures["real"] = self._real[name]
        named = {f"{name} {MEASURES[name]}, {of}": value for of, value in figures.items()}
        if name == "class" and self._is_imagenet:
            named |= imagenet_accuracy(samples, given)
        return named

    def _scores(self, name: str, pictures: Pictures, *tokens: Any) -> list[float]:
        """How far pictures show each of several conditions of one kind."""
        return self._reader.scores(name, _shown(pictures, tokens, self._show[name]))


def _shown(
    pictures: Pictures, tokens: Sequence[Any], show: Callable[[Any], Pictures]
) -> Iterator[tuple[Pictures, list[Pictures]]]:
    """Pictures with conditions of them to look at, part by part: all of them at once would not fit in memory."""
    for start in range(0, len(pictures), _BATCH):
        part = slice(start, start + _BATCH)
        yield pictures[part], [show(of_all[part]) for of_all in tokens]


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Whether classes are ImageNet's 1000 synsets in order, so that a label is a classifier's index."""
    synsets = all(re.fullmatch(r"n\d{8}", name) for name in class_names)
    return len(class_names) == 1000 and synsets and list(class_names) == sorted(class_names)


@torch.inference_mode()
def imagenet_accuracy(pictures: Pictures, labels: npt.NDArray[Any]) -> dict[str, float]:
    """Share of pictures uint8 [N, H, W, 3] whose label is EfficientNet-Lite0's first, or among its first five."""
    net = Lite0Features().eval()
    planes = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    best_N5 = torch.cat([net.classify(part).topk(5).indices for part in torch.split(planes, _BATCH)]).numpy()
    hits_N5 = best_N5 == np.asarray(labels).reshape(-1, 1)
    return {"imagenet top-1": float(hits_N5[:, 0].mean()), "imagenet top-5": float(hits_N5.any(1).mean())}


def _condition_pictures(codes: ShardDataset, part: ConditionSpec) -> tuple[Callable[[Any], Pictures], int]:
    """What turns condition tokens into what a reader reads, and the classes or labels there are."""
    if part.name == "class":
        return lambda tokens: np.asarray(tokens).reshape(-1), part.vocabulary
    tokenizer = load_shard_tokenizer(codes.path, f"tokenizer-{part.name}", part.fingerprint)

    def show(tokens: Any) -> Pictures:
        grids = np.asarray(tokens).reshape(-1, part.height, part.width)
        return tokenizer.decode(grids)

    return show, tokenizer.config.n_labels


def as_table(report: dict[str, Any]) -> str:
    """The figures as aligned lines under a heading that says what they are of."""
    lines = [f"{report['samples']} samples against {report['reference_pictures']} pictures: {report['reference']}"]
    lines += [f"  {name:36} {value:.4f}" for name, value in report["figures"].items()]
    return "\n".join([*lines, *(f"  {name}: {judge}" for name, judge in report["judges"].items())])
