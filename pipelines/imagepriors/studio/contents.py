"""What the page shows: priors, tokenizers and token shards, by name. A request names one of these, never a path."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from codeprior.sample_config import SampleConfig
from codeshards.format import ShardDataset, open_store
from imagepriors.api.defaults import PathLike, as_path, model_folder, results_folder
from imagepriors.api.hub import kind_of
from imagepriors.api.priors import ImagePrior
from imagepriors.api.settings import stage_2_table
from imagepriors.api.shards import open_shards
from imagepriors.api.tokenizers import ImageTokenizer
from runkit.configs import from_dict
from runkit.errors import UserError
from runkit.hub import is_hub
from runkit.suggestions import choose_one_of

_T = TypeVar("_T")
_Part = ImagePrior | ImageTokenizer | ShardDataset


@dataclass(frozen=True)
class Contents:
    """The priors, tokenizers and shards of one or several places."""

    title: str
    """Names of the places."""
    priors: Mapping[str, ImagePrior]
    """Name → prior."""
    tokenizers: Mapping[str, ImageTokenizer]
    """Name → tokenizer of images or of a condition; those that are stored with shards and priors are among them."""
    shards: Mapping[str, ShardDataset]
    """Name → finished token shards."""
    typed: Mapping[str, str]
    """Name → path or address as the user wrote it, for commands to copy."""
    fingerprints: Mapping[str, str]
    """Fingerprint of codes → name of the tokenizer that makes them."""

    @classmethod
    def open(cls, places: Sequence[PathLike]) -> "Contents":
        """Find what run folders, single priors, tokenizers, shards and addresses on the Hub hold.

        Raises:
            UserError: A place holds none of these, or cannot be read.
        """
        if not places:
            raise UserError("no place is named: pass a run folder, a prior, a tokenizer, shards or hf://OWNER/NAME")
        parts: dict[str, tuple[_Part, str]] = {}
        fingerprints: dict[str, str] = {}
        for place in places:
            found = list(_look(place))
            prefix = f"{_short(place)}/" if len(places) > 1 and len(found) > 1 else ""
            for name, part, typed, fingerprint in found:
                if parts.setdefault(f"{prefix}{name}", (part, typed))[0] is part and fingerprint:
                    fingerprints.setdefault(fingerprint, f"{prefix}{name}")
        return cls(
            title=", ".join(dict.fromkeys(map(_short, places))),
            priors={name: part for name, (part, _) in parts.items() if isinstance(part, ImagePrior)},
            tokenizers={name: part for name, (part, _) in parts.items() if isinstance(part, ImageTokenizer)},
            shards={name: part for name, (part, _) in parts.items() if isinstance(part, ShardDataset)},
            typed={name: typed for name, (_, typed) in parts.items()},
            fingerprints=fingerprints,
        )

    def prior(self, name: str) -> ImagePrior:
        """Return the prior of this name.

        Raises:
            UserError: There is none.
        """
        return _named(self.priors, "prior", name)

    def tokenizer(self, name: str) -> ImageTokenizer:
        """Return the tokenizer of this name; errors as :meth:`prior`."""
        return _named(self.tokenizers, "tokenizer", name)

    def dataset(self, name: str) -> ShardDataset:
        """Return the shards of this name; errors as :meth:`prior`."""
        return _named(self.shards, "shards", name)

    def image_tokenizer(self, prior: str) -> ImageTokenizer:
        """Return the tokenizer of a prior's image codes.

        Raises:
            UserError: It is not among the tokenizers.
        """
        return self._of_codes(self.prior(prior).sequence.fingerprint, f"the image codes of {prior}")

    def condition_tokenizer(self, prior: str, condition: str) -> ImageTokenizer:
        """Return the tokenizer of a prior's segmentation, depth or pose.

        Raises:
            UserError: It is not among the tokenizers, or the prior has no such condition.
        """
        spec = self.prior(prior).sequence
        part = next((part for part in spec.conditions if part.name == condition), None)
        if part is None or not part.fingerprint:
            raise UserError(f"{prior} is not conditioned on {condition!r}, but on {spec.condition!r}")
        return self._of_codes(part.fingerprint, f"the {condition} codes of {prior}")

    def _of_codes(self, fingerprint: str, what: str) -> ImageTokenizer:
        if fingerprint not in self.fingerprints:
            raise UserError(f"the tokenizer of {what} is not on this page: open the studio with its folder, too")
        return self.tokenizers[self.fingerprints[fingerprint]]

    def shards_of(self, prior: str) -> str | None:
        """Return the name of shards with the codes and conditions of a prior; None if there are none."""
        spec = self.prior(prior).sequence
        wanted = {part.name: part.fingerprint for part in spec.conditions if part.fingerprint}
        for name, dataset in self.shards.items():
            stored = {part: grid.fingerprint for part, grid in dataset.spec.conditions.items()}
            if dataset.spec.image.fingerprint == spec.fingerprint and wanted.items() <= stored.items():
                return name
        return None

    def sampling(self, prior: str) -> SampleConfig:
        """Return the configuration that the command line would sample a prior with."""
        config: SampleConfig = from_dict(SampleConfig, stage_2_table("auto", "sample", self.prior(prior).shards))
        return config

    @functools.cached_property
    def described(self) -> dict[str, Any]:
        """All of it as JSON values, without weights."""
        return {
            "title": self.title,
            "priors": [self._prior_values(name) for name in self.priors],
            "tokenizers": [self._tokenizer_values(name) for name in self.tokenizers],
            "shards": [self._shards_values(name) for name in self.shards],
        }

    def _prior_values(self, name: str) -> dict[str, Any]:
        prior = self.priors[name]
        spec = prior.sequence
        return {
            "name": name,
            "typed": self.typed[name],
            "objective": spec.objective,
            "order": spec.order_text,
            "grid": [spec.height, spec.width],
            "permutation": [int(cell) for cell in spec.permutation(spec.height, spec.width)],
            "scales": [list(grid) for grid in spec.grids[:-1]],
            "codebook_size": spec.codebook_size,
            "class_names": list(spec.class_names),
            "conditions": [
                {
                    "name": part.name, "grid": [part.height, part.width], "vocabulary": part.vocabulary,
                    "tokenizer": self.fingerprints.get(part.fingerprint),
                }
                for part in spec.conditions
            ],
            "can_be_guided": prior.can_be_guided,
            "tokenizer": self.fingerprints.get(spec.fingerprint),
            "shards": self.shards_of(name),
            "sampling": asdict(self.sampling(name)),
        }  # fmt: skip

    def _tokenizer_values(self, name: str) -> dict[str, Any]:
        net = self.tokenizers[name].config
        return {
            "name": name, "typed": self.typed[name], "modality": net.modality, "resolution": net.resolution,
            "grid": list(net.grid), "codebook_size": net.codebook_size, "n_labels": net.n_labels,
        }  # fmt: skip

    def _shards_values(self, name: str) -> dict[str, Any]:
        dataset = self.shards[name]
        spec = dataset.spec
        return {
            "name": name,
            "typed": self.typed[name],
            "splits": {split: dataset.rows(split) for split in dataset.splits},
            "class_names": list(dataset.class_names),
            "label_names": list(dataset.label_names),
            "conditions": {
                part: self.fingerprints.get(grid.fingerprint) for part, grid in sorted(spec.conditions.items())
            },
            "scales": list(spec.scales),
            "grid": [spec.image.height, spec.image.width],
            "codebook_size": spec.image.codebook_size,
            "tokenizer": self.fingerprints.get(spec.image.fingerprint),
        }


def _named(table: Mapping[str, _T], kind: str, name: str) -> _T:
    if name not in table:
        remedy = choose_one_of(name, table) if table else "it shows none"
        raise UserError(f"{kind} {name!r} is not on this page: {remedy}")
    return table[name]


def _short(place: PathLike) -> str:
    """The last part of a path or address."""
    path = as_path(place)
    return results_folder(path).name if is_hub(path) else path.resolve().name


_Found = Iterator[tuple[str, _Part, str, str]]
"""Name, part, path as typed, and fingerprint of the codes that the part makes, if it is a tokenizer."""


def _look(place: PathLike) -> _Found:
    """What a place holds.

    Raises:
        UserError: Nothing that can be shown.
    """
    path, count = as_path(place), 0
    if kind := _kind(path):
        yield from _parts(path, kind, _short(place))
        if kind == "prior" and _kind(beside := ImagePrior(path).shards) == "shards":
            yield from _parts(beside, "shards", beside.name)
        return
    if not path.is_dir():
        raise UserError(f"{path} does not exist: pass a run folder such as runs/demo, or hf://OWNER/NAME")
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    kinds = {folder: kind for folder in folders if (kind := _kind(folder))}
    # Shards come first: their copy of a tokenizer has a recorded fingerprint, and hides that of the same name beside.
    for folder, kind in sorted(kinds.items(), key=lambda item: item[1] != "shards"):
        for found in _parts(folder, kind, folder.name):
            count += 1
            yield found
    if not count:
        raise UserError(f"{path} holds no finished prior, tokenizer or token shards: train or import one first")


def _kind(path: Path) -> str | None:
    """Kind of a finished part; None for anything else."""
    if str(path).startswith("hf:") and "datasets/" in str(path):
        return "shards"
    folder = model_folder(path)
    kind = kind_of(open_store(folder))
    if kind == "shards":
        return kind if (open_store(folder) / "dataset.json").size() is not None else None
    return kind if kind and (open_store(folder) / "model.safetensors").size() is not None else None


def _parts(path: Path, kind: str, name: str) -> _Found:
    if kind == "shards":
        dataset = open_shards(path)
        yield name, dataset, str(path), ""
        grids = {"tokenizer": dataset.spec.image}
        grids |= {f"tokenizer-{part}": grid for part, grid in dataset.spec.conditions.items()}
        for stored, grid in grids.items():
            if (dataset.path / stored / "config.json").size() is not None:
                yield stored, _stored_tokenizer(dataset, stored, grid.fingerprint), f"{path}/{stored}", grid.fingerprint
        return
    if kind == "tokenizer":
        tokenizer = ImageTokenizer(path)
        yield name, tokenizer, str(path), tokenizer.fingerprint
        return
    prior = ImagePrior(path)
    yield name, prior, str(path), ""
    if (prior.folder / "tokenizer/config.json").is_file():
        stored = f"{name}/tokenizer"
        yield stored, ImageTokenizer(prior.folder / "tokenizer"), f"{path}/tokenizer", prior.sequence.fingerprint


def _stored_tokenizer(dataset: ShardDataset, name: str, fingerprint: str) -> ImageTokenizer:
    place = dataset.path / name
    if place.local is not None:
        return ImageTokenizer(place.local)
    from imagepriors.decode.rows import load_shard_tokenizer

    return ImageTokenizer.of(load_shard_tokenizer(dataset.path, name, fingerprint), Path(str(place)))
