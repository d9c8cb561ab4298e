"""How codes are drawn from a prior. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from codeprior.config import PriorError
from codeshards.format import OrderName
from runkit.configs import check_fields, require
from runkit.devices import Autocast

DrawingOrder = Literal["auto", OrderName, "random", "confidence"]
"""Order in which codes are drawn."""

_require = partial(require, error=PriorError)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """How codes are drawn from a trained prior. The default temperature and top-k are those of the paper."""

    temperature: float = 1.0
    """Divides the logits: below 1 gives less variety, above 1 more."""
    temperature_end: float | None = None
    """Temperature that a linear schedule reaches after the last code; None: constant."""
    top_k: int | None = 100
    """Draw from the k most probable codes; None: from all, 1: greedy."""
    top_p: float = 1.0
    """Of these, keep the fewest whose probabilities sum to this; 1: all."""
    min_p: float = 0.0
    """Of these, keep those at least this fraction as probable as the most probable one; 0: all."""
    guidance: float = 1.0
    """Classifier-free guidance: factor of the difference that the condition makes to the logits; 1: off."""
    guidance_schedule: Literal["constant", "linear", "power_cosine"] = "constant"
    """How guidance grows from 1 over the codes of a picture: not at all, linearly (Muse), or as in MDT and RAR."""
    guidance_power: float = 2.75
    """Exponent of power_cosine: the larger, the later guidance grows; the default is that of RAR-B."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Fractions of the known codes from and below which to guide; outside, the condition alone counts."""
    precision: Autocast = "float32"
    """Type of the weights and of the cache. bfloat16 halves the memory traffic per code; samples differ."""
    compile: bool = False
    """Compile the step of one code, on a GPU with CUDA graphs and again for every new setting and batch size; pays off
    for more than a few batches. A prior on a GPU keeps the cache of its last batch."""
    order: DrawingOrder = "auto"
    """Order in which codes are drawn. A prior of one order has that one: auto. Others draw in each of the five, in a
    random one for each sample (auto, as they were trained), or by confidence: in each step the surest codes."""
    steps: int = 0
    """Number of steps in which the codes are drawn, at most one per code; 0: one per code. Fewer steps draw several
    codes in each, which do not see each other; this requires a prior of any order."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Codes per step: few at first and many at the end (MaskGIT, arXiv 2202.04200), or equally many."""
    choice_temperature: float = 4.5
    """Randomness of the choice by confidence: the factor of Gumbel noise that is added to the log-probabilities and
    falls linearly to zero (MaskGIT); 0: the surest codes."""
    drafts: int | None = None
    """Codes that a copy with 8-bit weights draws ahead, for the prior to check all at once. The codes are those of the
    prior, up to rounding; 0: off. None: a few for a single sample of a large prior in float32 on a CPU, else off. Codes
    in another order than the prior's, several codes per step and larger grids have none."""
    seed: int = 0
    """Sample i is determined by (seed, i) and its condition, for any batch size and number of samples."""
    batch_size: int = 25
    """Samples per batch; bounds the memory of the key/value cache."""

    def __post_init__(self) -> None:
        check_fields(self, PriorError)
        _require(self.temperature > 0, "temperature", self.temperature, "use above 0 (top_k=1 is greedy)")
        ends = self.temperature_end is None or self.temperature_end > 0
        _require(ends, "temperature_end", self.temperature_end, "use above 0, or None for a constant temperature")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "use None or at least 1")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "use above 0 to 1 (off)")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "use 0 (off) to 1")
        _require(self.steps >= 0, "steps", self.steps, "use 0 (one per code) or more")
        ok = self.choice_temperature >= 0
        _require(ok, "choice_temperature", self.choice_temperature, "use 0 or more")
        _require(self.guidance >= 0, "guidance", self.guidance, "use 0 (no condition), 1 (off) or more")
        _require(self.guidance_power >= 0, "guidance_power", self.guidance_power, "use 0 (constant) or more")
        interval = self.guidance_interval
        _require(
            0 <= interval[0] < interval[1] <= 1, "guidance_interval", interval, "use two rising fractions in 0 … 1"
        )
        _require(self.drafts is None or self.drafts >= 0, "drafts", self.drafts, "use None, 0 (off) or more")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 to 2**63 - 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "use at least 1")
