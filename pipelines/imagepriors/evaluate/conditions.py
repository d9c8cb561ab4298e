"""Measure how well samples follow their conditions.

A small network is trained on decoded training codes to predict their conditions, so it is used to the decoder's blur.
Its agreement with the conditions of samples is compared with two bounds: the agreement on decoded validation codes
("real", which a perfect prior reaches), and that of the same samples with the conditions of other samples ("shuffled",
which a prior that ignores its condition reaches).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from codeprior.config import ConditionSpec
from codeshards.format import ShardDataset
from imagepriors.decode.rows import decode_rows, load_shard_tokenizer, select_rows
from imagepriors.evaluate.config import EvaluatePriorConfig
from imagepriors.evaluate.networks import imagenet_accuracy, is_imagenet
from imagepriors.evaluate.predictor import BATCH_SIZE, LIMB, ConditionPredictor
from vqgan.metrics import TokenizerMetrics

Pictures = npt.NDArray[Any]
METRICS = {"class": "accuracy", "segmentation": "mIoU", "depth": "correlation", "pose": "IoU of limbs"}
_BATCH = 64
_MAX_TRAINING_ROWS = 5000
"""Bound of the decoded training pictures, which are held in memory."""


class ConditionScore:
    """Agreement of predictions with conditions: accuracy, mIoU, mean correlation or IoU of limbs.

    Args:
        name: The condition.
        n: Number of labels of a mask.
    """

    def __init__(self, name: str, n: int = 0) -> None:
        self._name, self._sum, self._total = name, 0.0, 0.0
        self._masks = TokenizerMetrics("segmentation", 1, n) if name == "segmentation" else None

    def add(self, predictions: Pictures, conditions: Pictures) -> None:
        """Add a batch."""
        if self._masks is not None:
            self._masks.add(predictions, conditions, np.zeros(1, np.int64))
        elif self._name == "class":
            self._sum += float((predictions == conditions).sum())
            self._total += len(predictions)
        elif self._name == "pose":
            predicted, drawn = (pictures.max(-1) > LIMB for pictures in (predictions, conditions))
            self._sum += float((predicted & drawn).sum())
            self._total += float((predicted | drawn).sum())
        else:
            self._sum += float(_correlations(predictions, conditions).sum())
            self._total += len(predictions)

    def value(self) -> float:
        """The score over all batches."""
        return self._masks.result()["val_miou"] if self._masks is not None else self._sum / max(1.0, self._total)


def _correlations(a_NHW: Pictures, b_NHW: Pictures) -> npt.NDArray[Any]:
    """Pearson correlation [N] over the pixels of each pair."""
    a, b = (x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(1, keepdims=True) for x in (a_NHW, b_NHW))
    norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.asarray((a * b).sum(1) / np.maximum(norms, 1e-12))


def derangement(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """A random cycle: a permutation of range(n) without fixed points (n > 1)."""
    cycle = np.random.default_rng(seed).permutation(n)
    result = np.empty(n, np.int64)
    result[cycle] = np.roll(cycle, 1)
    return result


class ConditionEvaluator:
    """Measures how well samples follow their conditions; the predictor is trained when the evaluator is built.

    Args:
        codes: Shards with the tokenizers of all conditions.
        parts: Conditions to predict.
        config: Number of training steps, and of validation pictures for the upper bound.
    """

    def __init__(self, codes: ShardDataset, parts: Sequence[ConditionSpec], config: EvaluatePriorConfig) -> None:
        self._is_imagenet = is_imagenet(codes.class_names)
        self._decode: dict[str, Callable[[Any], Pictures]] = {}
        self._sizes: dict[str, int] = {}
        for part in parts:
            self._decode[part.name], self._sizes[part.name] = _condition_decoder(codes, part)
        columns = {part.name: part.column for part in parts}
        # Each training picture is seen twice or more.
        n = min(_MAX_TRAINING_ROWS, config.reader_steps * BATCH_SIZE // 2)
        pictures, tokens = decode_rows(codes, "train", select_rows(codes, "train", n), [*columns.values()])
        targets = {name: self._decode[name](tokens[column]) for name, column in columns.items()}
        self._predictor = ConditionPredictor.fit(pictures, targets, self._sizes, steps=config.reader_steps)
        self._real: dict[str, float] = {}
        if "val" in codes.splits:
            rows = select_rows(codes, "val", config.n)
            pictures, tokens = decode_rows(codes, "val", rows, [*columns.values()])
            self._real = {name: self._scores(name, pictures, tokens[column])[0] for name, column in columns.items()}

    def evaluate(self, name: str, samples: Pictures, given: Any) -> dict[str, float]:
        """Agreement of samples with the condition that they were given, and its two bounds.

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
        named = {f"{name} {METRICS[name]}, {kind}": value for kind, value in figures.items()}
        if name == "class" and self._is_imagenet:
            named |= imagenet_accuracy(samples, given)
        return named

    def _scores(self, name: str, pictures: Pictures, *tokens: Any) -> list[float]:
        """Agreement of pictures with each of several conditions of one kind, in batches that fit in memory."""
        scores = [ConditionScore(name, self._sizes[name]) for _ in tokens]
        for start in range(0, len(pictures), _BATCH):
            batch = slice(start, start + _BATCH)
            predictions = self._predictor.predict(name, pictures[batch])
            for score, of_score in zip(scores, tokens, strict=True):
                score.add(predictions, self._decode[name](of_score[batch]))
        return [score.value() for score in scores]


def _condition_decoder(codes: ShardDataset, part: ConditionSpec) -> tuple[Callable[[Any], Pictures], int]:
    """A function that turns condition tokens into the predictor's targets, and the number of classes or labels."""
    if part.name == "class":
        return lambda tokens: np.asarray(tokens).reshape(-1), part.vocabulary
    tokenizer = load_shard_tokenizer(codes.path, f"tokenizer-{part.name}", part.fingerprint)
    return (
        lambda tokens: tokenizer.decode(np.asarray(tokens).reshape(-1, part.height, part.width)),
        tokenizer.config.n_labels,
    )
