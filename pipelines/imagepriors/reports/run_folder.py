"""The parts of a run folder that a report is about."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from codeshards.format import ShardDataset
from codeshards.format.contents import EVENTS_FILE
from codeshards.format.files import read_json
from codeshards.job.progress import read_events
from imagepriors.api.tokenizers import as_tokenizer
from imagepriors.decode.rows import load_shard_tokenizer
from runkit.errors import UserError
from vqgan.data import Split, open_splits, resolve
from vqgan.tokenizer import Tokenizer


@dataclass(frozen=True)
class RunFolder:
    """A run folder, its dataset, and what is finished in it."""

    path: Path
    """The run folder."""
    data: Path
    """Folder of the dataset."""
    dataset: str
    """Layout of the dataset."""
    splits: dict[str, Split]
    """Splits of the dataset."""
    shards: ShardDataset | None
    """Finished shards, if there are any."""
    tokenizers: list[Path]
    """Folders of finished tokenizers, that of the images first."""
    priors: list[Path]
    """Folders of finished priors."""
    given: Path | None = None
    """The tokenizer of the images, in place of that of the shards."""

    @classmethod
    def open(cls, path: Path, data: Path, dataset: str, tokenizer: Path | None = None) -> "RunFolder":
        """Find the parts of a run.

        Raises:
            UserError: The run has no finished tokenizer and no shards, or the dataset cannot be opened.
        """
        shards = ShardDataset.open(path / "shards") if (path / "shards" / "dataset.json").is_file() else None
        tokenizers = sorted(found.parent for found in path.glob("tokenizer*/model.safetensors"))
        if shards is None and path / "tokenizer" not in tokenizers:
            raise UserError(f"{path} has no finished tokenizer and no shards: a report requires one of them")
        priors = sorted(found.parent for found in path.glob("prior-*/summary.json")) if shards else []
        splits = open_splits(dataset, data)
        return cls(path, data, resolve(dataset, data), splits, shards, tokenizers, priors, tokenizer)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the images: that given, or of the shards, if there are any."""
        if self.shards is None:
            return Tokenizer.load(self.given or self.path / "tokenizer")
        expected = self.shards.spec.image.fingerprint
        if self.given:
            return as_tokenizer(self.given).of_codes(expected).loaded
        return load_shard_tokenizer(self.shards.path, "tokenizer", expected)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the code grid."""
        if self.shards is not None:
            return self.shards.spec.image.height, self.shards.spec.image.width
        return self.tokenizer.config.grid

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty without names."""
        return tuple(self.shards.class_names if self.shards is not None else self.splits["train"].class_names)

    def durations_s(self) -> dict[str, float]:
        """Name of a part → seconds that it took, as far as they are recorded."""
        found = {folder.name: summary(folder).get("wall_s") for folder in self.tokenizers}
        if self.shards is not None:
            found["shards"] = _work_s(read_events(self.shards.path / EVENTS_FILE))
        found |= {folder.name: summary(folder).get("train_seconds") for folder in self.priors}
        return {name: seconds for name, seconds in found.items() if seconds}


def summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished training; empty for an imported network."""
    path = folder / "summary.json"
    return read_json(path) if path.is_file() else {}


def _work_s(events: list[dict[str, Any]]) -> float:
    """Seconds from the start of each run of the tokenize job to its last event."""
    total = start = last = 0.0
    for event in events:
        if event["event"] == "start":
            total, start = total + last - start, event["time_s"]
        last = event["time_s"]
    return total + last - start if start else 0.0
