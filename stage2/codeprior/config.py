"""What a prior is made of and how it is trained and sampled: plain values, no torch.

The command line builds its flags from these classes, so importing this module stays cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Self, cast, get_args

from codeshards.format import ORDER_NAMES, OrderName, ShardError, ShardSpec

ConditionName = Literal["none", "class", "segmentation", "depth", "pose"]


class PriorError(ShardError):
    """A config, checkpoint or request that cannot work; the message says what to change."""


def _require(ok: bool, field_name: str, found: object, remedy: str) -> None:
    if not ok:
        raise PriorError(f"{field_name} = {found!r}: {remedy}")


def condition_parts(condition: str) -> tuple[ConditionName, ...]:
    """The conditions that a name like "class+segmentation" joins, in sequence order; none at all for "none".

    Raises:
        PriorError: a part is unknown or repeated.
    """
    if condition == "none":
        return ()
    parts, known = condition.split("+"), get_args(ConditionName)
    ok = set(parts) <= set(known) - {"none"} and len(set(parts)) == len(parts)
    _require(ok, "condition", condition, f'use one of {", ".join(known)}, or several joined by "+"')
    return tuple(cast(ConditionName, part) for part in known if part in parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The size of the transformer. GPT-2 small is 12/12/768, medium (the paper's) 24/16/1024."""

    n_layer: int = 6
    """Transformer blocks."""
    n_head: int = 6
    """Attention heads in a block; divides n_embd."""
    n_embd: int = 192
    """Width of the residual stream, in channels."""
    dropout: float = 0.0
    """Probability of zeroing a channel of the embedded input and of each residual branch, in training."""

    def __post_init__(self) -> None:
        _require(self.n_layer >= 1, "n_layer", self.n_layer, "use at least 1")
        _require(self.n_head >= 1, "n_head", self.n_head, "use at least 1")
        ok = self.n_embd >= 1 and self.n_embd % self.n_head == 0
        _require(ok, "n_embd", self.n_embd, f"use a positive multiple of n_head = {self.n_head}")
        _require(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "use a probability in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run of a prior."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The transformer."""
    order: OrderName = "row_major"
    """The order in which the image codes are generated."""
    condition: str = "none"
    """What stands before the image codes: none, class, segmentation, depth, pose, or several joined by "+"."""
    multiscale: bool = False
    """Generate the coarser scales of the shards before the full grid (the paper's section 3)."""
    views: Literal["all", "one"] = "all"
    """Rows of an epoch: all views of a sample, or one view of each sample, drawn anew every epoch."""
    loader: Literal["memory_map", "stream"] = "memory_map"
    """memory_map decodes the split once to disk and shuffles exactly; stream reads the shards again each epoch."""
    shuffle_rows: int = 65_536
    """Rows in the shuffle buffer of the stream; the memory map shuffles the whole split."""
    batch_size: int = 64
    """Sequences in one optimizer step, over all ranks and accumulated parts together."""
    accumulate: int = 1
    """Parts of a rank's batch that go through the model one after the other; bounds the memory."""
    cond_dropout: float = 0.0
    """Probability of hiding a sequence's whole condition: the null condition that guidance needs, e.g. 0.1."""
    pkeep: float = 1.0
    """Probability of keeping an input code; others are replaced by random codes, the targets are not (taming)."""
    random_order: bool = False
    """Start with a fresh permutation for each sequence and anneal to `order` (RAR, arXiv 2411.00776)."""
    anneal_start: float = 0.5
    """Fraction of the steps up to which every sequence is permuted (random_order only)."""
    anneal_end: float = 0.75
    """Fraction of the steps from which none is; between the two the probability falls linearly."""
    steps: int = 2000
    """Optimizer steps of the whole run."""
    learning_rate: float = 1e-3
    """Peak learning rate. The paper's preset is batch 12 with 12 · 4.5e-6."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 0.1
    """AdamW's decay of the weight matrices; biases, LayerNorms and embeddings are never decayed."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape of the learning rate after the warmup."""
    final_fraction: float = 0.1
    """Learning rate of the last step as a fraction of the peak (cosine only)."""
    grad_clip: float = 1.0
    """Largest global norm of the gradient; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is then evaluated and published; 0 for none."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: copies of the model (DDP), or weights and optimizer shared out (FSDP2)."""
    compile: bool = False
    """Compile the forward and backward pass with torch.compile."""
    checkpoint_activations: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products' type. auto: bfloat16 where the GPU or CPU multiplies it natively, else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. auto: the first GPU if there is one."""
    seed: int = 0
    """Fixes the initial weights, the dropout and the order of the data."""
    log_every: int = 10
    """Steps between lines of training metrics."""
    eval_every: int = 500
    """Steps between passes over the validation split (there is always one at the end)."""
    checkpoint_every: int = 500
    """Steps between checkpoints (there is always one at the end)."""
    keep_checkpoints: int = 2
    """How many of the latest checkpoints stay on disk, beside the best one."""

    def __post_init__(self) -> None:
        counts = ("batch_size", "accumulate", "shuffle_rows", "steps")
        for name in (*counts, "log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "use at least 1")
        _require(self.order in ORDER_NAMES, "order", self.order, f"use one of {', '.join(ORDER_NAMES)}")
        condition_parts(self.condition)
        ok = self.batch_size % self.accumulate == 0
        _require(ok, "accumulate", self.accumulate, f"use a divisor of batch_size = {self.batch_size}")
        for name in ("cond_dropout", "ema_decay"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "use a number in [0, 1)")
        ok = self.cond_dropout == 0 or self.condition != "none"
        _require(ok, "cond_dropout", self.cond_dropout, "there is no condition to hide; use 0, or set condition")
        _require(0 < self.pkeep <= 1, "pkeep", self.pkeep, "use a probability in (0, 1]")
        ok = 0 <= self.anneal_start <= self.anneal_end <= 1
        found = (self.anneal_start, self.anneal_end)
        _require(ok, "anneal_start, anneal_end", found, "use fractions with 0 ≤ start ≤ end ≤ 1")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "use a positive number")
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "use numbers in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "use 0 or more")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "use 0 or more")
        _require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "use 0 to 1")
        _require(self.grad_clip >= 0, "grad_clip", self.grad_clip, "use 0 (off) or more")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 to 2**63 - 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """How codes are drawn from a trained prior. Defaults are the paper's."""

    temperature: float = 1.0
    """Divides the logits: below 1 sharper, above 1 more varied."""
    top_k: int | None = 100
    """Draw among the k most probable codes only; None for all of them, 1 for greedy."""
    seed: int = 0
    """Sample i is fixed by (seed, i) and its condition, whatever the batch size or the number drawn."""
    batch_size: int = 25
    """Samples drawn together; bounds the memory of the key/value cache."""

    def __post_init__(self) -> None:
        _require(self.temperature > 0, "temperature", self.temperature, "use above 0 (top_k=1 is greedy)")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "use None or at least 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 to 2**63 - 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "use at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceSpec:
    """What a prior's sequences mean: stored with the weights, so that a checkpoint explains itself.

    A sequence is `condition_length` condition tokens, then `length` image codes in `order`. Without a
    condition the first token is a constant: one token from a vocabulary of one.
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
    """Identity of the tokenizer that made the image codes."""
    condition: str
    """What the condition tokens are, as in TrainConfig.condition."""
    condition_length: int
    """Condition tokens before the image codes, at least 1."""
    condition_vocabulary: int
    """Condition tokens are 0 … condition_vocabulary - 1."""
    condition_fingerprint: str
    """Identity of the tokenizer that made the condition codes; empty for none and class."""
    class_names: tuple[str, ...]
    """Names of the classes, where condition is class and the shards have names; else empty."""

    @property
    def length(self) -> int:
        """Image codes in a sequence."""
        return self.height * self.width

    @classmethod
    def from_shards(
        cls,
        shards: ShardSpec,
        *,
        order: OrderName,
        condition: str,
        class_count: int = 0,
        class_names: tuple[str, ...] = (),
    ) -> Self:
        """The sequences that shards of this spec give.

        Raises:
            PriorError: the shards lack the order or the condition; the message names what they have.
        """
        if order not in shards.orders:
            raise PriorError(f"order {order!r} is not in these shards; they have {', '.join(shards.orders)}")
        length, vocabulary, fingerprint = 1, 1, ""
        if condition == "class":
            if class_count < 1:
                raise PriorError("condition 'class': these shards have no class labels; use condition 'none'")
            vocabulary = class_count
        elif condition != "none":
            grid = shards.conditions.get(condition)
            if grid is None:
                have = ", ".join(["none", *sorted(shards.conditions)])
                raise PriorError(f"condition {condition!r} is not in these shards; they have {have}")
            length, vocabulary = grid.height * grid.width, grid.codebook_size
            fingerprint = grid.fingerprint
        return cls(
            height=shards.image.height,
            width=shards.image.width,
            codebook_size=shards.image.codebook_size,
            order=order,
            fingerprint=shards.image.fingerprint,
            condition=condition,
            condition_length=length,
            condition_vocabulary=vocabulary,
            condition_fingerprint=fingerprint,
            class_names=class_names if condition == "class" else (),
        )
