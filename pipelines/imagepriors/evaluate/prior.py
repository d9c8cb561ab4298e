"""Evaluate a prior: likelihood of validation codes, distance of samples to pictures, agreement with conditions.

Each distance is accompanied by that of as many real pictures ("…, real"), which is what a perfect prior would reach.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codeprior.checkpoint import CONFIG, RunConfig, load_prior, prior_folder
from codeprior.config import SequenceSpec
from codeprior.data import CodeData, check_shards, pixel_dims
from codeprior.sample_config import SampleConfig
from codeprior.train import evaluate
from codeshards.format import OrderName, ShardDataset, defined_orders, open_store
from imagepriors.decode.draw import Samples, draw_samples
from imagepriors.decode.rows import load_shard_tokenizer
from imagepriors.evaluate.conditions import ConditionEvaluator
from imagepriors.evaluate.config import SPLITS, EvaluatePriorConfig
from imagepriors.evaluate.distances import Judge
from imagepriors.evaluate.networks import figure_lines, load_network, network_notes
from imagepriors.evaluate.pictures import HeldPictures, SampleSet, open_samples
from imagepriors.evaluate.reference import Reference, dataset_reference, decoded_reference, file_reference
from runkit.devices import make_autocast, pick_device
from runkit.files import pretty_json
from runkit.folders import check_apart, check_publish, publish_file
from runkit.jsonfiles import finite_or_none
from vqgan.checkpoint import trained_against
from vqgan.data import open_splits, sources_of
from vqgan.errors import InputError

_COMMAND = "evaluate-prior"


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
    """Evaluate a prior and write the figures and how they were obtained to the JSON file `out`.

    Args:
        prior_run: Run folder of a trained prior.
        shards: Folder of token shards with its tokenizers.
        out: JSON file to write.
        config: Evaluation configuration.
        sampling: Sampling configuration.
        dataset: Layout of `data`.
        data: Pictures to compare samples with, unless `config.reference` is a path; None uses decoded codes.

    Raises:
        ShardError: prior and shards do not match, or there are too few rows.
        InputError: the pictures or the weights of a network are missing, or a resize is chosen where none is applied.
    """
    check_apart(out, data=sources_of(open_splits(dataset, data), data) if data else None, shards=shards)
    check_publish(out.parent, [out.name], _COMMAND)
    network = load_network(config.features, config.inception, pick_device("auto"))  # before anything that takes long
    sequence = RunConfig.load(prior_folder(prior_run) / CONFIG).sequence
    codes = ShardDataset.open(shards)
    check_shards(codes, sequence)
    samples = open_samples(Path(config.samples)) if config.samples else None
    reference = _reference(codes, sequence, config, dataset, data, samples)
    if reference.resize is None and config.resize != "training":
        raise InputError(
            f"resize is {config.resize!r}, but nothing is resized: the reference is {reference.name}; use training, or "
            "compare with a dataset, a folder or a tar"
        )
    judge = Judge(reference, network) if network else None
    figures, agreement = _likelihood(prior_run, codes, sequence, config), {}
    notes = [f"the conditions of {config.samples} are not known: agreement with them is not measured"]
    if samples is None:
        drawn = draw_samples(prior_run, shards, config.n, config=sampling, sources=False)
        samples, notes = SampleSet(HeldPictures(drawn.pictures), asdict(sampling)), []
        agreement = _agreement(codes, sequence, drawn, config)
    if judge:
        figures |= judge.figures(samples.pictures)
    report = {
        "figures": figures | agreement,
        "networks": network_notes(figures, training_loss(codes)),
        "notes": [*(judge.notes(samples.pictures.shape) if judge else ()), *notes * bool(sequence.conditions)],
        **_sources(samples, reference),
        "features": config.features,
        "weights_sha256": network.weights_sha256 if network else "",
        **{name: getattr(sequence, name) for name in ("order", "objective", "condition")},
        "tokenizer": sequence.fingerprint,
    }
    publish_file(out, pretty_json(finite_or_none(report)), _COMMAND)
    return report


def _sources(samples: SampleSet, reference: Reference) -> dict[str, Any]:
    """What is compared, for the report."""
    return {
        "samples": samples.pictures.shape[0],
        "size": list(samples.pictures.shape[1:3]),
        "sampling": samples.sampling,
        "samples_origin": asdict(samples.origin) if samples.origin else None,
        "reference": reference.name,
        "reference_pictures": reference.origin.pictures,
        "reference_origin": asdict(reference.origin),
        "resize": reference.resize,
    }


def _reference(
    codes: ShardDataset,
    sequence: SequenceSpec,
    config: EvaluatePriorConfig,
    dataset: str,
    data: Path | None,
    given: SampleSet | None,
) -> Reference:
    """The reference of given samples, or of `config.n` samples that will be drawn."""
    n = given.pictures.shape[0] if given else config.n
    in_splits = config.reference in ("", *SPLITS)
    if data is None and in_splits:
        return decoded_reference(codes, n, config)
    net = load_shard_tokenizer(codes.path, "tokenizer", sequence.fingerprint).config
    height, width = given.pictures.shape[1:3] if given else (net.resolution, net.resolution)
    if height != width:
        raise InputError(f"samples are {width}×{height}: pictures of a reference are squares, so samples must be, too")
    if data is not None and in_splits:
        return dataset_reference(dataset, data, height, n, config, net.geometry)
    return file_reference(Path(config.reference), height, config)


def _agreement(
    codes: ShardDataset, sequence: SequenceSpec, samples: Samples, config: EvaluatePriorConfig
) -> dict[str, float]:
    """Agreement of samples with their conditions; empty for an unconditional prior."""
    if not sequence.conditions:
        return {}
    evaluator = ConditionEvaluator(codes, sequence.conditions, config)
    found: dict[str, float] = {}
    for name, given in samples.conditions.items():
        found |= evaluator.evaluate(name, samples.pictures, given)
    return found


def _likelihood(
    prior_run: Path, codes: ShardDataset, sequence: SequenceSpec, config: EvaluatePriorConfig
) -> dict[str, float]:
    """Mean negative log-likelihood of all validation rows; empty without a validation split.

    That of a prior of any order is also given for each order that is defined on its grid.
    """
    if "val" not in codes.splits:
        return {}
    prior = load_prior(prior_run, device=pick_device("auto"))
    data, autocast = CodeData.open(codes, "val", sequence), make_autocast(prior.device, "float32")

    def nll_nats(order: OrderName | None) -> float:
        return float(evaluate(prior, data, batch_size=config.batch_size, autocast=autocast, order=order).mean())

    nll = nll_nats(None)
    figures = {"nll_nats": nll, "bits_per_code": nll / math.log(2)}
    if dims := pixel_dims(codes):
        figures["bits_per_dim"] = nll * sequence.length / (math.log(2) * dims)
    orders = defined_orders(sequence.height, sequence.width) if sequence.objective == "any_order" else ()
    return figures | {f"nll_nats_{name}": nll if name == sequence.order else nll_nats(name) for name in orders}


def training_loss(codes: ShardDataset) -> str | None:
    """The perceptual training loss of the image tokenizer beside shards; None if it is unknown."""
    with (open_store(codes.path) / "tokenizer").as_folder() as folder:
        return trained_against(folder)


def as_table(report: dict[str, Any]) -> str:
    """The figures as aligned lines under a heading."""
    count = report["reference_pictures"]
    pictures = f"{count} pictures: " if count else ""  # none if the reference has statistics alone
    return figure_lines(f"{report['samples']} samples against {pictures}{report['reference']}", report)
