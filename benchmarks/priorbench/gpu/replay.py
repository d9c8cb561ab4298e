"""Drawing by a step that is recorded as a CUDA graph and replayed, without a compiler: a candidate for the product.

Axes: B samples drawn together, R rows that enter the model (B, or 2 · B under guidance), C condition tokens, T image
codes, P tokens of a full cache.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable

import torch
from torch import Tensor

from codeprior.attention import KVCache
from codeprior.draw import draw, sample_keys
from codeprior.guidance import guide, with_null
from codeprior.model import Prior
from codeprior.sample_config import SampleConfig


@torch.inference_mode()
def replayed(prior: Prior, condition_BC: Tensor, config: SampleConfig, parts: int = 1) -> Callable[[], Tensor]:
    """Return a function that draws codes [B, T] as `sample_sequences` does; on a CPU it calls the step.

    Args:
        prior: The prior, as `prepare` returns it.
        condition_BC: The condition tokens.
        config: How to draw.
        parts: Number of graphs; each reads the cache as far as its codes need, the last one to its end.
    """
    T, device = prior.sequence.length, prior.device
    condition_RC = with_null(condition_BC, config).to(device)
    keys_B = sample_keys(config.seed, 0, len(condition_BC)).to(device)
    codes_BT = torch.zeros(len(condition_BC), T, dtype=torch.int64, device=device)
    cache, t_1 = KVCache(prior, len(condition_RC), static=True), torch.zeros(1, dtype=torch.int64, device=device)

    def draw_from(logits_RV: Tensor) -> None:
        codes_B = draw(guide(logits_RV, config, t_1 / T), config, keys_B, t_1, t_1 / T)
        codes_BT.index_copy_(1, t_1, codes_B[:, None])
        t_1.add_(1)

    def step_to(end: int) -> Callable[[], None]:
        part = copy.copy(cache)
        part.keys, part.values = ([one[:, :, :end] for one in kind] for kind in (cache.keys, cache.values))

        def step() -> None:
            codes_R = codes_BT.index_select(1, t_1 - 1)[:, 0].repeat(len(condition_RC) // len(condition_BC))
            logits_RV = prior.decode_static(codes_R, part)
            cache.place_1.add_(1)
            draw_from(logits_RV)

        t_1.fill_(1)  # recording runs the step
        cache.place_1.zero_()
        return _recorded(step) if device.type == "cuda" else step

    P = prior.max_tokens
    ends = [P * (part + 1) // parts for part in range(parts)]
    steps = [step_to(end) for end in ends]

    @torch.inference_mode()
    def draw_batch() -> Tensor:
        cache.length = 0
        t_1.zero_()
        draw_from(prior.prefill(condition_RC, cache))
        cache.place_1.fill_(cache.length)
        for place in range(cache.length, cache.length + T - 1):
            steps[bisect.bisect_right(ends, place)]()
        return codes_BT.cpu()

    return draw_batch


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """Return a function that replays a step, which must read and write the same tensors each time."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries allocate what they need
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
