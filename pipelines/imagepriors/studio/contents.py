"""What the page shows: priors, tokenizers and token shards, by name. A request names one of these, never a path."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from codeprior.config import PriorError, SequenceSpec
from codeprior.sample_config import SampleConfig
from codeshards.format import ShardDataset, ShardError
from imagepriors.api.defaults import PathLike, as_path
from imagepriors.api.priors import ImagePrior
from imagepriors.api.settings import stage_2_table
from imagepriors.api.tokenizers import ImageTokenizer
from imagepriors.decode.partial import REGIONS, known_codes
from imagepriors.studio.jobs import folders_above, plain
from imagepriors.studio.search import Part, Search, short_names
from runkit.configs import from_dict
from runkit.errors import UserError
from runkit.names import listed
from runkit.suggestions import choose_one_of

_T = TypeVar("_T")
_MISSING = "is not on this page: open the studio with its folder, too"


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
    """Name → path or address as the user wrote it, for commands to copy; for others without the folders above it."""
    fingerprints: Mapping[str, str]
    """Fingerprint of codes → name of the tokenizer that makes them."""
    problems: tuple[str, ...] = ()
    """What is damaged or not finished, in one sentence each."""

    @classmethod
    def open(cls, places: Sequence[PathLike], *, for_others: bool = False) -> "Contents":
        """Find what run folders, single priors, tokenizers, shards and addresses on the Hub hold.

        Args:
            places: Where to look.
            for_others: Whether the page is for other people, too, who see no folders of this machine.

        Raises:
            UserError: A place holds none of these, or cannot be read.
        """
        if not places:
            raise UserError("no place is named: pass a run folder, a prior, a tokenizer, shards or hf://OWNER/NAME")
        search, parts, fingerprints = Search(), dict[str, tuple[Part, str]](), dict[str, str]()
        shorts = short_names(places)
        for place, short in zip(places, shorts, strict=True):
            found = search.look(place)
            prefix = f"{short}/" if len(places) > 1 and len(found) > 1 else ""
            for one in found:
                name = f"{prefix}{one.name if prefix or len(places) == 1 else short}"
                typed = _below(one.typed, place) if for_others else one.typed
                if parts.setdefault(name, (one.part, typed))[0] is one.part and one.fingerprint:
                    fingerprints.setdefault(one.fingerprint, name)
        priors = {name: part for name, (part, _) in parts.items() if isinstance(part, ImagePrior)}
        if without := [name for name, prior in priors.items() if prior.sequence.fingerprint not in fingerprints]:
            search.problems.append(f"{listed(without)} cannot draw: the tokenizer {_MISSING}")
        return cls(
            title=", ".join(shorts),
            priors=priors,
            tokenizers={name: part for name, (part, _) in parts.items() if isinstance(part, ImageTokenizer)},
            shards={name: part for name, (part, _) in parts.items() if isinstance(part, ShardDataset)},
            typed={name: typed for name, (_, typed) in parts.items()},
            fingerprints=fingerprints,
            problems=tuple(search.problems),
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

    def picture_tokenizer(self, name: str) -> ImageTokenizer:
        """Return the tokenizer of this name.

        Raises:
            UserError: There is none, or it encodes a condition.
        """
        found = self.tokenizer(name)
        if found.config.modality != "rgb":
            raise UserError(f"{name} encodes {found.config.modality}: choose a tokenizer of pictures")
        return found

    def dataset(self, name: str) -> ShardDataset:
        """Return the shards of this name; errors as :meth:`prior`."""
        return _named(self.shards, "shards", name)

    def image_tokenizer(self, prior: str) -> ImageTokenizer:
        """Return the tokenizer of a prior's image codes.

        Raises:
            UserError: It is not among the tokenizers.
        """
        return self.codes_tokenizer(self.prior(prior).sequence.fingerprint, f"the image codes of {prior}")

    def condition_tokenizer(self, prior: str, condition: str) -> ImageTokenizer:
        """Return the tokenizer of a prior's segmentation, depth or pose.

        Raises:
            UserError: It is not among the tokenizers, or the prior has no such condition.
        """
        spec = self.prior(prior).sequence
        part = next((part for part in spec.conditions if part.name == condition), None)
        if part is None or not part.fingerprint:
            raise UserError(f"{prior} is not conditioned on {condition!r}, but on {spec.condition!r}")
        return self.codes_tokenizer(part.fingerprint, f"the {condition} codes of {prior}")

    def codes_tokenizer(self, fingerprint: str, what: str) -> ImageTokenizer:
        """Return the tokenizer of the codes with a fingerprint.

        Args:
            fingerprint: The tokenizer of the codes, as their shards or prior record it.
            what: The codes, for the message.

        Raises:
            UserError: It is not among the tokenizers.
        """
        if fingerprint not in self.fingerprints:
            raise UserError(f"the tokenizer of {what} {_MISSING}")
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

    @functools.cached_property
    def places(self) -> dict[str, str]:
        """Absolute path → what messages have in its place: the name of a part, and of other folders the last part."""
        models: dict[str, ImagePrior | ImageTokenizer] = {**self.priors, **self.tokenizers}
        found = {str(part.folder): name for name, part in models.items() if part.folder.is_absolute()}
        found |= {str(part.path.local): name for name, part in self.shards.items() if part.path.local}
        beside = [str(prior.shards) for prior in self.priors.values() if prior.shards.is_absolute()]
        above = folders_above([*found, *beside, str(Path.cwd()), os.environ.get("HOME", "")])
        return {path: name for path, name in above.items() if path.removesuffix("/") not in found} | found

    def sampling(self, prior: str) -> SampleConfig:
        """Return the configuration that the command line would sample a prior with; errors as :meth:`prior`."""
        return _named(self._samplings, "prior", prior)

    @functools.cached_property
    def _samplings(self) -> dict[str, SampleConfig]:
        tables = {name: stage_2_table("auto", "sample", prior.shards) for name, prior in self.priors.items()}
        return {name: from_dict(SampleConfig, table) for name, table in tables.items()}

    @functools.cached_property
    def described(self) -> dict[str, Any]:
        """All of it as JSON values, without weights."""
        return {
            "title": self.title,
            "problems": [plain(problem, self.places) for problem in self.problems],
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
            "regions": regions(spec),
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


def regions(sequence: SequenceSpec) -> dict[str, list[int]]:
    """Return the cells in raster order of each named region that a prior can keep."""
    found = {}
    for name in REGIONS:
        try:
            known_T = known_codes(sequence, name)
        except (PriorError, ShardError):  # the prior has another order, or scales, or its grid is too small
            continue
        found[name] = sorted(sequence.permutation(sequence.height, sequence.width)[known_T].tolist())
    return found


def _below(typed: str, place: PathLike) -> str:
    """A path without the folders above its place; of one that is elsewhere, the last part; others as they are."""
    path, above = Path(typed), as_path(place).absolute().parent
    if not path.is_absolute():
        return typed
    return str(path.relative_to(above)) if path.is_relative_to(above) else path.name


def _named(table: Mapping[str, _T], kind: str, name: str) -> _T:
    if name not in table:
        remedy = choose_one_of(name, table) if table else "it shows none"
        raise UserError(f"{kind} {name[:80]!r} is not on this page: {remedy}")
    return table[name]
