"""What drawing many samples would do: its parts, its sizes, its memory and its time. Nothing is written."""

from typing import Any

import torch

from codeprior.model import Prior
from codeshards.format.contents import has_plan
from codeshards.format.plan import PlannedShard
from codeshards.job.resume import missing_shards
from imagepriors.decode.many import Drawing, PartWorker, check_drawing, load_decoder, make_plan, metadata_of
from imagepriors.decode.outputs import NpzOutput, open_output
from runkit.places import open_store
from runkit.plans import WorkPlan, changed_settings, try_step
from vqgan.tokenizer import Tokenizer


def plan_drawing(drawing: Drawing, prior: Prior, tokenizer: Tokenizer | None = None) -> WorkPlan:
    """Return what :func:`.write_many` would do; arguments and errors are the same.

    Sizes, memory and time are those of a part of the first batch.
    """
    check_drawing(drawing)
    output, tokenizer = open_output(drawing.out), tokenizer or load_decoder(drawing)
    plan, store = make_plan(drawing, tokenizer.fingerprint), open_store(output.parts)
    if output.is_finished(metadata_of(drawing, plan)):
        return WorkPlan(work=f"{drawing.out} is complete: nothing to do", figures={})
    missing = list(missing_shards(plan, store) if has_plan(plan, store) else plan.each_shard())
    samples, processes = sum(shard.samples for shard in missing), max(1, drawing.workers)
    figures: dict[str, Any] = {
        "pictures": drawing.n, "pictures_to_draw": samples, "parts": plan.shard_count("samples"),
        "parts_to_draw": len(missing), "processes": processes, "device": drawing.device,
    }  # fmt: skip
    if missing:
        threads, worker, tried = torch.get_num_threads(), PartWorker(drawing, plan.hash, prior, tokenizer), list[int]()

        def step(rows: int) -> None:
            first = missing[0].start
            trial = PlannedShard(split="samples", index=0, start=first, stop=min(first + rows, drawing.n))
            tried[:] = [trial.samples, sum(len(encoded) for _, encoded in worker.batches(trial))]

        batch = min(drawing.config.batch_size, samples)
        try:
            trial = try_step(step, batch, batch, prior.device)
        finally:
            torch.set_num_threads(threads)
        picture_s = trial.seconds / batch
        per_picture = tokenizer.config.resolution**2 * 3 if isinstance(output, NpzOutput) else tried[1] / tried[0]
        figures |= {
            "memory_per_process_bytes": trial.memory_bytes, "picture_s": picture_s,
            "time_s": picture_s * samples / processes, "pictures_bytes": round(per_picture * drawing.n),
            "parts_bytes": round(per_picture * drawing.n),
        }  # fmt: skip
    return WorkPlan(
        work=f"draw {samples:,} pictures into {drawing.out}",
        figures=figures,
        settings=changed_settings(drawing.config),
        notes=(
            "time is that of a trial in this process, divided among the workers, without joining the parts",
            "the parts are beside the output until it is complete",
        ),
    )  # fmt: skip
