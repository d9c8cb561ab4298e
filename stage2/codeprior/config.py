"""Configuration of stage 2: the model, training, sampling, and the sequences. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

from numpy.typing import NDArray

from codeshards.format import CONDITION_NAMES, OrderName, ShardError, ShardSpec, order
from codeshards.format.orders import Permutation, inverse
from runkit.codes import MAX_CODEBOOK_SIZE
from runkit.configs import check_fields, require
from runkit.devices import Device, Precision
from runkit.suggestions import choose_one_of
from runkit.trackers import TrackerName

CONDITIONS = ("class", *CONDITION_NAMES)
"""Conditions that may precede the image codes, in the order in which combinations use them."""


class PriorError(ShardError):
    """An invalid config, checkpoint or request; the message says what to change."""


def condition_parts(condition: str) -> tuple[str, ...]:
    """Return the parts of a condition, in the order of `CONDITIONS`: "none" has 0, "class+segmentation" has 2.

    Raises:
        PriorError: A name is unknown or occurs twice.
    """
    names = () if condition == "none" else tuple(condition.split("+"))
    if len(set(names)) != len(names) or not set(names) <= set(CONDITIONS):
        wrong = next((name for name in names if name not in CONDITIONS), condition)
        remedy = choose_one_of(wrong, ["none", *CONDITIONS])
        raise PriorError(f"condition = {condition!r}: {remedy}, or several joined by '+'")
    return tuple(name for name in CONDITIONS if name in names)


_require = partial(require, error=PriorError)

Objective = Literal["ordered", "any_order", "masked"]
"""What a prior learns: each code from those before it, in one order or in any; or hidden codes from all others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The transformer; every option defaults to minGPT's. GPT-2 small is 12/12/768, medium 24/16/1024; the paper's
    appendices A.1 and A.4 contradict each other on which of the two it uses.
    """

    n_layer: int = 6
    """Transformer blocks."""
    n_head: int = 6
    """Attention heads per block; divides n_embd."""
    n_embd: int = 192
    """Width of the residual stream, in channels."""
    dropout: float = 0.0
    """Probability of zeroing a channel of the embedded input and of each residual branch, in training."""
    position: Literal["learned", "rotary", "grid"] = "grid"
    """How a token's position enters: an embedding of its place in the sequence (GPT-2, the paper), queries and keys
    that are rotated by it (RoPE), or embeddings of row and column, shared by condition and image, of its cell and of
    the cell it predicts."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before each branch, and at the end."""
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    """The exact GELU (minGPT), GPT-2's tanh approximation (four times as slow on CPUs), or a gated SiLU with as many
    weights."""
    qk_norm: bool = False
    """Normalise the queries and keys of every head, which bounds attention logits in long or low-precision runs."""
    tie_head: bool = False
    """Use the weights of the code embedding for the head."""
    attention: Literal["sdpa", "xformers", "math"] = "sdpa"
    """Attention in training: torch's fused kernels, xformers' (NVIDIA GPUs only), or plain matrix products."""
    target_positions: bool = False
    """Add an embedding of the position of the code that each token predicts (RAR). Random orders require it, unless
    position is "grid", which has the predicted cell already."""

    def __post_init__(self) -> None:
        check_fields(self, PriorError)
        for name, most in (("n_layer", 1024), ("n_head", 1024), ("n_embd", 65_536)):
            _require(1 <= getattr(self, name) <= most, name, getattr(self, name), f"use 1 to {most}")
        ok = self.n_embd % self.n_head == 0
        _require(ok, "n_embd", self.n_embd, f"use a positive multiple of n_head = {self.n_head}")
        _require(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "use a probability in [0, 1)")
        ok = self.position != "rotary" or self.n_embd // self.n_head % 2 == 0
        _require(ok, "n_embd", self.n_embd, f"position 'rotary' requires an even width of each of {self.n_head} heads")

    @property
    def knows_targets(self) -> bool:
        """Whether a token knows the position of the code that it predicts."""
        return self.target_positions or self.position == "grid"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run of a prior."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The transformer."""
    order: OrderName = "row_major"
    """The order in which image codes are generated, and in which a prior of any order is evaluated."""
    objective: Objective = "ordered"
    """ordered: predict each code from those before it in `order`. any_order: in a new permutation of every sequence, to
    the end of training, so that the prior completes any region, in any order, several codes at a time. masked: hidden
    codes from all others by bidirectional attention (MaskGIT, arXiv 2202.04200), so sampling has no cache."""
    condition: str = "none"
    """What precedes the image codes: none, class, segmentation, depth, pose, or several joined by "+"."""
    multiscale: bool = False
    """Generate the coarser scales of the shards before the full grid (the paper's section 3)."""
    views: Literal["all", "one"] = "all"
    """Rows of an epoch: all views of each sample, or one random view of each."""
    loader: Literal["memory_map", "stream"] = "memory_map"
    """memory_map decodes the split once to disk and shuffles exactly; stream reads the shards again every epoch."""
    shuffle_rows: int = 65_536
    """Rows that the stream shuffles together (whole shards, at least this many); determines its memory. The datasets of
    a blend share them."""
    batch_size: int = 64
    """Sequences per optimizer step, over all ranks and accumulated parts."""
    accumulate: int = 1
    """Parts of a rank's batch that are processed one after the other; bounds the memory."""
    cond_dropout: float = 0.0
    """Probability of replacing a sequence's condition by the null condition, which guidance requires, e.g. 0.1."""
    pkeep: float = 1.0
    """Probability of keeping an input code; others are replaced by random codes, but not the targets (taming)."""
    random_order: bool = False
    """Start with a fresh permutation for each sequence and anneal to `order` (RAR, arXiv 2411.00776)."""
    anneal_start: float = 0.5
    """Fraction of the steps up to which every sequence is permuted (random_order only)."""
    anneal_end: float = 0.75
    """Fraction of the steps from which no sequence is permuted; the probability decreases linearly in between."""
    steps: int = 2000
    """Optimizer steps of the whole run."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or for the matrices of the blocks Muon, which learns more per step; not with parallel = "fsdp"."""
    learning_rate: float = 1e-3
    """Peak learning rate. The paper's preset is batch 12 with 12 · 4.5e-6."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 0.1
    """AdamW's decay of the weight matrices; biases, norms and embeddings are not decayed."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape of the learning rate after the warmup."""
    final_fraction: float = 0.1
    """Learning rate of the last step as a fraction of the peak (cosine only)."""
    grad_clip: float = 1.0
    """Largest global norm of the gradient; 0 disables clipping."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is then evaluated and saved; 0: no average."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: copies of the model (DDP), or sharded weights and optimizer (FSDP2)."""
    compile: bool = False
    """Compile the forward and backward pass with torch.compile; the first step then takes about a minute."""
    checkpoint_activations: bool = False
    """Recompute each block's activations in the backward pass instead of storing them."""
    precision: Precision = "auto"
    """Type of matrix products. auto: bfloat16 if the GPU supports it or the CPU is faster in it, else float32."""
    device: Device = "auto"
    """Where to train. auto: a GPU if one is available."""
    seed: int = 0
    """Determines the initial weights, the dropout and the order of the data."""
    log_every: int = 10
    """Steps between lines of training metrics."""
    eval_every: int = 500
    """Steps between evaluations on the validation split; there is one at the end too."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is one at the end too."""
    keep_checkpoints: int = 2
    """Number of the latest checkpoints that are kept, besides the best weights."""
    tracker: TrackerName = "none"
    """Where metrics go besides the run's folder: Weights & Biases (wandb), trackio, or nowhere."""

    def __post_init__(self) -> None:
        check_fields(self, PriorError)
        counts = ("batch_size", "accumulate", "shuffle_rows", "steps")
        for name in (*counts, "log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "use at least 1")
        condition_parts(self.condition)
        ok = self.batch_size % self.accumulate == 0
        _require(ok, "accumulate", self.accumulate, f"use a divisor of batch_size = {self.batch_size}")
        for name in ("cond_dropout", "ema_decay"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "use a number in [0, 1)")
        ok = self.cond_dropout == 0 or self.condition != "none"
        remedy = "without a condition there is nothing to drop; use 0, or set condition"
        _require(ok, "cond_dropout", self.cond_dropout, remedy)
        _require(0 < self.pkeep <= 1, "pkeep", self.pkeep, "use a probability in (0, 1]")
        self._check_permutations()
        ok = self.optimizer == "adamw" or self.parallel == "ddp"
        _require(ok, "optimizer", self.optimizer, "Muon requires whole matrices; use adamw with parallel = 'fsdp'")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "use a positive number")
        ok = all(0 <= beta < 1 for beta in self.betas)
        _require(ok, "betas", self.betas, "use two numbers in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "use 0 or more")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "use 0 or more")
        _require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "use 0 to 1")
        _require(self.grad_clip >= 0, "grad_clip", self.grad_clip, "use 0 (off) or more")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 to 2**63 - 1")

    def _check_permutations(self) -> None:
        found = (self.anneal_start, self.anneal_end)
        ok = 0 <= self.anneal_start <= self.anneal_end <= 1
        _require(ok, "(anneal_start, anneal_end)", found, "use fractions with 0 ≤ start ≤ end ≤ 1")
        ok = not self.random_order or self.objective == "ordered"
        _require(ok, "random_order", True, "it is annealed to one order; objective 'any_order' permutes to the end")
        if self.random_order or self.objective != "ordered":
            why = "random_order" if self.random_order else f"objective {self.objective!r}"
            remedy = f"{why} requires them: set them to true, or model.position to 'grid'"
            _require(self.model.knows_targets or self.objective == "masked", "model.target_positions", False, remedy)
            remedy = f"scales go from coarse to fine: train them without {why}"
            _require(not self.multiscale, "multiscale", True, remedy)


def _check_grid(height: int, width: int) -> None:
    for name, side in (("height", height), ("width", width)):
        _require(1 <= side <= 4096, name, side, "use 1 to 4096")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionSpec:
    """One kind of condition tokens: 0 … vocabulary - 1, and -1 for "not given", which guidance requires."""

    name: str
    """One of `CONDITIONS`."""
    height: int
    """Rows of the condition's grid of codes; 1 for class."""
    width: int
    """Columns of the condition's grid of codes; 1 for class."""
    vocabulary: int
    """Number of classes, or size of the condition's codebook."""
    fingerprint: str
    """Fingerprint of the tokenizer of the condition codes; empty for class."""

    def __post_init__(self) -> None:
        check_fields(self, PriorError)
        _check_grid(self.height, self.width)
        _require(1 <= self.vocabulary <= 2**24, "vocabulary", self.vocabulary, "use 1 to 2**24")

    @property
    def length(self) -> int:
        """Number of tokens, in row-major order."""
        return self.height * self.width

    @property
    def column(self) -> str:
        """Column of the shards that holds these tokens."""
        return "label" if self.name == "class" else f"cond_{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceSpec:
    """The meaning of a prior's sequences, stored with its weights.

    A sequence is `condition_length` condition tokens, then `length` image codes: those of the coarser scales, if
    any, coarsest first, then those of the full grid, each grid in `order`. Without a condition the
    first token is a constant, 0.
    """

    height: int
    """Rows of the image's code grid."""
    width: int
    """Columns of the image's code grid."""
    codebook_size: int
    """Image codes are 0 … codebook_size - 1."""
    order: OrderName
    """Order of the image codes."""
    fingerprint: str
    """Fingerprint of the tokenizer of the image codes."""
    conditions: tuple[ConditionSpec, ...] = ()
    """Kinds of condition tokens, in their order in the sequence; empty for an unconditional prior."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, if class is a condition and the shards have names; else empty."""
    scales: tuple[int, ...] = ()
    """Sides of the coarser grids that come before the full one, ascending (multiscale prior, paper section 3)."""
    objective: Objective = "ordered"
    """Whether codes are predicted in `order` only, or in any order."""

    def __post_init__(self) -> None:
        check_fields(self, PriorError)
        _check_grid(self.height, self.width)
        ok = 1 <= self.codebook_size <= MAX_CODEBOOK_SIZE
        _require(ok, "codebook_size", self.codebook_size, f"use 1 to {MAX_CODEBOOK_SIZE}")

    @property
    def condition(self) -> str:
        """The conditions' names joined by "+"; "none" without any."""
        return "+".join(part.name for part in self.conditions) or "none"

    @property
    def order_text(self) -> str:
        """In which order codes are predicted, such as "order zcurve" or "any order"."""
        return f"order {self.order}" if self.objective == "ordered" else "any order"

    @property
    def condition_length(self) -> int:
        """Number of condition tokens before the image codes, at least 1."""
        return sum(part.length for part in self.conditions) or 1

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every grid of image codes in a sequence, from the coarsest to the full one."""
        return (*((side, side) for side in self.scales), (self.height, self.width))

    @property
    def columns(self) -> tuple[str, ...]:
        """The shards' columns that hold these grids: `scale_*` in row-major order, the last one in `order`."""
        return (*(f"scale_{side}" for side in self.scales), f"codes_{self.order}")

    @property
    def length(self) -> int:
        """Number of image codes per sequence, over all grids."""
        return sum(height * width for height, width in self.grids)

    def permutation(self, height: int, width: int) -> Permutation:
        """Return the order on a grid of this size: `sequence[t] = raster[permutation[t]]`."""
        # A grid of one cell has one order only, even if the order is not defined on it.
        return order("row_major" if height == width == 1 else self.order, height, width)

    def indices(self, name: OrderName) -> Permutation:
        """Return the indices, in this spec's order, of the codes of the full grid in the order `name`, [H · W].

        Raises:
            PriorError: The sequences have several grids.
            ShardError: The order is not defined on this grid.
        """
        if self.scales:
            raise PriorError(f"order {name!r}: sequences with scales {self.scales} have one order, {self.order!r}")
        found: Permutation = inverse(self.order, self.height, self.width)[order(name, self.height, self.width)]
        return found

    def in_sequence(self, grids_NT: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Return the content of :attr:`columns` in sequence order; the coarser scales are stored row by row."""
        coarse = (grid[:, self.permutation(side, side)] for side, grid in zip(self.scales, grids_NT, strict=False))
        return (*coarse, *grids_NT[len(self.scales) :])

    @classmethod
    def from_shards(
        cls,
        shards: ShardSpec,
        *,
        order: OrderName,
        condition: str = "none",
        class_count: int = 0,
        class_names: Sequence[str] = (),
        scales: bool = False,
        objective: Objective = "ordered",
    ) -> Self:
        """Return the spec of the sequences of shards.

        Args:
            shards: The spec of the shards.
            order: The order of the image codes.
            condition: "none", a condition, or several joined by "+".
            class_count: Number of classes of the dataset.
            class_names: Their names, if they have names.
            scales: Whether the coarser scales of the shards come first.
            objective: How codes are predicted.

        Raises:
            PriorError: The shards do not have the order, a condition or the scales; the message names what they have.
        """
        if order not in shards.orders:
            raise PriorError(f"order {order!r} is not in these shards; they have {', '.join(shards.orders)}")
        if scales and not shards.scales:
            raise PriorError("scales: these shards have none; tokenize with scales, or train without")
        names, parts = condition_parts(condition), []
        for name in names:
            if name == "class":
                if class_count < 1:
                    raise PriorError("condition 'class': these shards have no class labels; use condition 'none'")
                parts.append(ConditionSpec(name=name, height=1, width=1, vocabulary=class_count, fingerprint=""))
                continue
            grid = shards.conditions.get(name)
            if grid is None:
                have = ", ".join(["none", *sorted(shards.conditions)])
                raise PriorError(f"condition {name!r} is not in these shards; they have {have}")
            parts.append(
                ConditionSpec(
                    name=name,
                    height=grid.height,
                    width=grid.width,
                    vocabulary=grid.codebook_size,
                    fingerprint=grid.fingerprint,
                )
            )
        return cls(
            height=shards.image.height,
            width=shards.image.width,
            codebook_size=shards.image.codebook_size,
            order=order,
            fingerprint=shards.image.fingerprint,
            conditions=tuple(parts),
            class_names=tuple(class_names) if "class" in names else (),
            scales=shards.scales if scales else (),
            objective=objective,
        )
