"""Draw many samples: in parts, which ranks or Ray workers share, and of which none is lost to a kill.

A part is a fixed range of samples, and its batches begin at its first sample, because a matrix product of another shape
may round differently. Its bytes depend on the plan alone. The plan, the scheduler and the sidecars are those of the
other jobs: a part is a shard of them.

Axes: N samples, B samples of a batch, H × W the code grid, T the codes of a sequence.
"""

import contextlib
import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from codeprior.any_order import drawn_in_own_order
from codeprior.checkpoint import WEIGHTS, load_prior, prior_folder
from codeprior.config import SequenceSpec
from codeprior.given import UNKNOWN
from codeprior.model import Prior
from codeprior.sample import condition_tokens, prepare, sample_codes
from codeprior.sample_config import SampleConfig
from codeshards.format import Plan, ShardDataset, ShardError, Sidecar, build_plan
from codeshards.format.files import atomic_write, file_record
from codeshards.format.manifest import sidecar_path
from codeshards.format.plan import PLAN_FILE, SAMPLES_FILE, PlannedShard
from codeshards.job.encode import fix_arithmetic
from codeshards.job.resume import close_job, open_job
from codeshards.job.scheduler import run_shards
from imagepriors.decode.draw import check_count, check_guidance, load_prior_tokenizer, select_conditions, uses_rows
from imagepriors.decode.outputs import COMMAND, Output, open_output
from imagepriors.decode.partial import Codes, Mask
from imagepriors.decode.samples import packed, stored_arrays
from imagepriors.reports.figures import colorize
from runkit.devices import Autocast, Device
from runkit.files import pretty_json, sha256_of
from runkit.folders import check_apart, held
from runkit.progress import hidden, tqdm
from runkit.ranks import barrier, from_rank_0, host_group, rank, world_size
from vqgan.tokenizer import Tokenizer

_SPLIT = "samples"
_PATIENCE = timedelta(days=7)
"""How long a rank waits for the parts of the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """What is drawn, how, and by whom. Its fields beside `out` and those of Ray determine the bytes of the samples."""

    prior_run: Path
    """Run folder of a trained prior."""
    sequence: SequenceSpec
    """Layout of its sequences."""
    shards: Path
    """Folder of token shards with its tokenizers, and the validation rows that conditions come from."""
    decoder: Path | None = None
    """Folder or name of the tokenizer that decodes; None: that of the prior or the shards."""
    decoder_device: Device | None = None
    """Where the tokenizer decodes; None: `device`."""
    decoder_precision: Autocast = "float32"
    """Precision of a tokenizer that `decoder` names."""
    out: Path
    """NAME.npz, NAME.tar or a folder; see :func:`.open_output`."""
    n: int
    """Number of samples."""
    config: SampleConfig
    """Sampling configuration."""
    given: str = "0"
    """What is given of validation pictures, for the metadata."""
    known_T: Mask
    """The same in the prior's order, see :func:`.known_codes`."""
    classes: Codes | None = None
    """Class [N] of each sample; None: classes take turns."""
    device: Device
    """`cpu` or `cuda`."""
    threads: int = 2
    """Torch threads of a process. On a CPU their number may change rounding."""
    part_samples: int = 500
    """Least number of samples of a full part, which has whole batches."""
    workers: int = 0
    """Processes on Ray; 0: this process, or the ranks of its group."""
    decode_threads: int = 0
    """Cores of a Ray worker with a GPU; 0: its share of the node's cores."""
    max_attempts: int = 3
    """How often a part may lose its Ray worker."""


def write_many(drawing: Drawing, prior: Prior | None = None, tokenizer: Tokenizer | None = None) -> Path:
    """Draw samples into a file or folder, or resume. All ranks of a process group call it, and share the parts.

    Args:
        drawing: What to draw.
        prior: The prior, if it is already loaded.
        tokenizer: The tokenizer, if it is already loaded.

    Returns:
        The path of the grid of the first samples.

    Raises:
        ShardError: Other samples are there or were begun there, or a worker failed.
        UserError: A file cannot be written, or another process draws the same samples.
    """
    check_drawing(drawing)
    output, tokenizer = open_output(drawing.out), tokenizer or load_decoder(drawing)
    plan = make_plan(drawing, tokenizer.fingerprint)
    metadata, hosts = metadata_of(drawing, plan), host_group(_PATIENCE)
    if not from_rank_0(lambda: output.is_finished(metadata), ShardError):
        with ExitStack() as stack:
            from_rank_0(lambda: stack.enter_context(held(output.parts, COMMAND)))
            missing = from_rank_0(lambda: [shard.index for shard in open_job(plan, output.parts)], ShardError)
            if rank() == 0:
                stack.callback(_remove_unbegun, output.parts)
            _draw(drawing, plan, [plan.shard(_SPLIT, index) for index in missing], prior, tokenizer)
            barrier(hosts)
            if rank() == 0:
                _join(output, plan, drawing.sequence, tokenizer.config.resolution, metadata)
    if rank() == 0:
        _remove_parts(output.parts)
    barrier(hosts)
    return output.grid_path


def check_drawing(drawing: Drawing) -> None:
    """Refuse what cannot be drawn.

    Raises:
        UserError: A number is out of range, the prior cannot draw this, or the place of the output does not fit.
    """
    check_count(drawing.n)
    if drawing.threads < 1 or drawing.workers < 0:
        raise ShardError(f"threads is {drawing.threads}, workers is {drawing.workers}: use at least 1, and 0 or more")
    if drawing.workers and world_size() > 1:
        raise ShardError(f"workers is {drawing.workers} in one of {world_size()} processes that draw together: use 0")
    check_apart(drawing.out, prior=drawing.prior_run, shards=drawing.shards)
    check_guidance(drawing.prior_run, drawing.config)
    if drawing.classes is not None:
        condition_tokens(drawing.sequence, drawing.n, {"class": torch.from_numpy(drawing.classes)})
    given_1T = torch.from_numpy(np.where(drawing.known_T, 0, UNKNOWN))[None]
    drawn_in_own_order(drawing.sequence, drawing.config, given_1T)


def load_decoder(drawing: Drawing) -> Tokenizer:
    """Load the tokenizer that decodes."""
    device = drawing.decoder_device or drawing.device
    if drawing.decoder is not None:
        return Tokenizer.load(drawing.decoder, device=device, precision=drawing.decoder_precision)
    return load_prior_tokenizer(drawing.prior_run, drawing.shards, drawing.sequence, device=device)


def make_plan(drawing: Drawing, tokenizer: str) -> Plan:
    """Return the plan of the parts; nothing is written.

    Args:
        drawing: What to draw.
        tokenizer: Fingerprint of the tokenizer that decodes.
    """
    classes, sequence, batch = drawing.classes, drawing.sequence, drawing.config.batch_size
    from_rows = uses_rows(sequence, drawing.known_T)
    if classes is None and not from_rows:
        conditions, _ = select_conditions(sequence, drawing.shards, drawing.n, range(drawing.n), drawing.known_T)
        classes = conditions.get("class")
    part_samples = -(-drawing.part_samples // batch) * batch
    hashed = hashlib.sha256(np.packbits(drawing.known_T).tobytes())
    hashed.update(b"" if classes is None else classes.tobytes())
    conditions_sha256 = hashed.hexdigest()
    settings = {
        "n": drawing.n, "sampling": asdict(drawing.config), "device": drawing.device, "threads": drawing.threads,
        "part_samples": part_samples, "given": drawing.given, "given_codes": int(drawing.known_T.sum()),
        "sequence": asdict(sequence), "tokenizer": tokenizer,
        "decoder": {
            "device": drawing.decoder_device or drawing.device, "precision": drawing.decoder_precision,
        },
        "conditions_sha256": conditions_sha256,
        "shards": ShardDataset.open(drawing.shards).fingerprint if from_rows else None,
        "samples_of_class": None if classes is None else _counts(classes, sequence.class_names),
        "prior_sha256": sha256_of(prior_folder(drawing.prior_run) / WEIGHTS),
    }  # fmt: skip
    return build_plan(
        samples={_SPLIT: [f"{index:06d}" for index in range(drawing.n)]}, source_hashes={_SPLIT: conditions_sha256},
        settings=settings, views=1, shard_rows=part_samples, shuffle_seed=None,
    )  # fmt: skip


def metadata_of(drawing: Drawing, plan: Plan) -> dict[str, Any]:
    """Return what is stored beside the samples: how they came to be."""
    return {"prior": str(drawing.prior_run), **plan.settings}


def _counts(classes: Codes, names: Sequence[str]) -> dict[str, int]:
    """Number of samples of each class that has any."""
    found = zip(*np.unique(classes, return_counts=True), strict=True)
    return {names[label] if label < len(names) else str(label): int(count) for label, count in found}


def _draw(
    drawing: Drawing, plan: Plan, shards: Sequence[PlannedShard], prior: Prior | None, tokenizer: Tokenizer
) -> None:
    """Draw parts: on Ray, or those of this rank in this process, whose torch settings are kept."""
    if drawing.workers and shards:
        run_shards(
            shards, lambda shard: shard, PartWorker, (drawing, plan.hash), name=COMMAND, device=drawing.device,
            settings=drawing, packages=("imagepriors", "codeprior"),
        )  # fmt: skip
    elif mine := shards[rank() :: world_size()]:
        worker = PartWorker(drawing, plan.hash, prior, tokenizer)
        total, threads, cudnn = sum(shard.samples for shard in mine), torch.get_num_threads(), torch.backends.cudnn
        with (
            cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
            tqdm(total=total, desc=COMMAND, unit="picture", disable=None if rank() == 0 else True) as bar,
        ):
            worker.on_batch = bar.update
            try:
                for shard in mine:
                    worker.run(shard)
            finally:
                torch.set_num_threads(threads)


class PartWorker:
    """Draws one part after another."""

    def __init__(
        self, drawing: Drawing, plan_hash: str, prior: Prior | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        self._drawing, self._plan_hash, self._output = drawing, plan_hash, open_output(drawing.out)
        # Once, because weights of another precision are a copy.
        self._prior = prepare(prior or load_prior(drawing.prior_run, device=drawing.device), drawing.config)
        self._tokenizer = tokenizer or load_decoder(drawing)
        self.samples_done = 0
        """Number of samples drawn."""
        self.on_batch: Callable[[int], Any] = lambda samples: None
        """Called with the number of samples of each batch."""

    def run(self, shard: PlannedShard) -> int:
        """Draw one part: its pictures, its codes with their conditions, then its sidecar. Returns their number."""
        fix_arithmetic(self._drawing.threads)  # in this thread, because OpenMP keeps the number per thread
        pictures, codes = (shard.path(self._output.parts, suffix) for suffix in (self._output.part_suffix, ".npz"))
        drawn = list[dict[str, npt.NDArray[Any]]]()
        with atomic_write(pictures) as file:
            for arrays, encoded in self.batches(shard):
                drawn.append(arrays)
                file.write(encoded)
                self.samples_done += len(arrays["codes"])
                self.on_batch(len(arrays["codes"]))
        codes.write_bytes(packed({name: np.concatenate([arrays[name] for arrays in drawn]) for name in drawn[0]}))
        Sidecar(
            plan_hash=self._plan_hash, split=shard.split, index=shard.index, rows=shard.samples, samples=shard.samples,
            files={path.name: file_record(path) for path in (pictures, codes)},
        ).save(sidecar_path(self._output.parts, shard))  # fmt: skip
        return shard.samples

    def _conditions(self, shard: PlannedShard) -> tuple[dict[str, Codes], Codes | None]:
        """Conditions by name, and given codes, -1 where codes are drawn."""
        one, samples = self._drawing, range(shard.start, shard.stop)
        if one.classes is not None:
            return {"class": one.classes[shard.start : shard.stop]}, None
        conditions, rows_NT = select_conditions(one.sequence, one.shards, one.n, samples, one.known_T)
        return conditions, None if rows_NT is None else np.where(one.known_T, rows_NT, UNKNOWN)

    def batches(self, shard: PlannedShard) -> Iterator[tuple[dict[str, npt.NDArray[Any]], bytes]]:
        """Draw a part; yields the codes and conditions, as they are stored, and the encoded pictures of each batch.

        On a GPU a thread decodes a batch while the next one is drawn. On a CPU both would wait for the same cores.
        """
        config, waiting = self._drawing.config, None
        conditions, given_NT = self._conditions(shard)
        with ThreadPoolExecutor(1, "decode", fix_arithmetic, (self._drawing.threads,)) as pool:
            for start in range(0, shard.samples, config.batch_size):
                rows = slice(start, min(start + config.batch_size, shard.samples))
                first = shard.start + start
                chosen = {name: tokens[rows] for name, tokens in conditions.items()}
                with hidden():
                    codes_BHW = sample_codes(
                        self._prior, rows.stop - start, config=config, first=first,
                        condition={name: torch.from_numpy(tokens) for name, tokens in chosen.items()} or None,
                        given_NT=None if given_NT is None else torch.from_numpy(given_NT[rows]),
                    ).numpy()  # fmt: skip
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                arrays = stored_arrays(self._drawing.sequence, codes_BHW, chosen)
                waiting = arrays, pool.submit(self._encode, codes_BHW, first, chosen.get("class"))
                if self._prior.device.type == "cpu":
                    waiting[1].exception()  # waits
            assert waiting is not None
            yield waiting[0], waiting[1].result()

    def _encode(self, codes_BHW: Codes, first: int, labels_B: Codes | None) -> bytes:
        return self._output.encode(colorize(self._tokenizer.decode(codes_BHW)), first, labels_B)


def _join(output: Output, plan: Plan, sequence: SequenceSpec, side: int, metadata: Mapping[str, Any]) -> None:
    """Write the output from all parts."""
    for _ in close_job(plan, output.parts, max_failure_rate=0):  # raises where a part is missing
        pass
    arrays: dict[str, list[npt.NDArray[Any]]] = {}
    for shard in plan.each_shard():
        with np.load(io.BytesIO(shard.path(output.parts, ".npz").read_bytes())) as part:
            for name in part.files:
                arrays.setdefault(name, []).append(part[name])
    codes = {name: np.concatenate(parts) for name, parts in arrays.items()}
    pictures = [output.parts / _SPLIT / f"{shard.name}{output.part_suffix}" for shard in plan.each_shard()]
    classes = next((part.vocabulary for part in sequence.conditions if part.name == "class"), 0)
    output.write(
        pictures, codes.get("condition_class"), side,
        {"codes": packed(codes), "grid": output.grid(pictures[0], side, classes), "metadata": pretty_json(metadata)},
    )  # fmt: skip


def _remove_unbegun(parts: Path) -> None:
    """Remove a plan of which no part is finished, such as one whose first part was refused: another may be begun."""
    if not any((parts / _SPLIT).glob("*.json")):
        _remove_parts(parts)


def _remove_parts(parts: Path) -> None:
    """Remove the parts; the plan last, so that the next call removes what a kill has left."""
    if (parts / PLAN_FILE).exists():
        shutil.rmtree(parts / _SPLIT, ignore_errors=True)
        for name in (f".{COMMAND}.lock", SAMPLES_FILE, PLAN_FILE):
            (parts / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is none, or a file of others
        parts.rmdir()
