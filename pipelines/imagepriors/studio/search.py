"""Finding what folders and addresses hold: priors, tokenizers and token shards."""

import filecmp
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from codeprior.checkpoint import prior_folder
from codeshards.format import ShardDataset, Store, open_store
from imagepriors.api.defaults import PathLike, as_path, model_folder, results_folder
from imagepriors.api.hub import kind_of
from imagepriors.api.priors import ImagePrior
from imagepriors.api.shards import open_shards
from imagepriors.api.tokenizers import ImageTokenizer
from imagepriors.studio.networks import Networks, StudioPrior, StudioTokenizer
from runkit.errors import UserError
from runkit.hub import is_hub
from runkit.places import as_typed
from vqgan.checkpoint import fingerprint, load_config
from vqgan.plugin_tokenizer import plugin_name

if TYPE_CHECKING:
    from vqgan.tokenizer import Tokenizer

Part = ImagePrior | ImageTokenizer | ShardDataset
_KINDS = ("shards", "prior", "tokenizer")
"""Shards come first: their copy of a tokenizer has a recorded fingerprint, and hides an equal one beside."""

_PASS = "pass a run folder such as runs/demo, or hf://OWNER/NAME"


@dataclass(frozen=True, slots=True)
class Found:
    """A part of a place."""

    name: str
    """Name in its place."""
    part: Part
    """The part."""
    typed: str
    """Its path or address, from that of the place as the user wrote it."""
    fingerprint: str = ""
    """Fingerprint of the codes that a tokenizer makes; empty for other parts."""


def short_names(places: Sequence[PathLike]) -> list[str]:
    """Return the last parts of paths and addresses, with a number where one is repeated."""
    names = [_short_name(place) for place in places]
    return [f"{name}-{n}" if (n := names[: i + 1].count(name)) > 1 else name for i, name in enumerate(names)]


def _as_place(place: PathLike) -> Path:
    path = as_path(place)
    try:
        path.exists()
    except OSError as error:
        raise UserError(f"{str(path)[:80]} cannot be opened ({error.strerror}): {_PASS}") from error
    return path


def _short_name(place: PathLike) -> str:
    path = _as_place(place)
    if name := plugin_name(path):
        return name
    return results_folder(path).name if is_hub(path) else path.resolve().name


class Search:
    """Looks into places. Parts that are damaged or unfinished are noted in `problems`, and the rest is found."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """What is left out or unfinished, in one sentence each."""
        self._networks = Networks()

    def look(self, place: PathLike) -> list[Found]:
        """Return what a place holds.

        Raises:
            UserError: Nothing that can be shown.
        """
        path, before = _as_place(place), len(self.problems)
        if plugin_name(path):
            return [self._tokenizer(str(path), path, str(path))]
        if kind := _kind(path):
            found = list(self._parts(path, kind, _short_name(place)))
            if kind == "prior" and _kind(beside := ImagePrior(path).shards) == "shards":
                found += self._try(beside.name, partial(self._list, beside, "shards"))
            return found
        if not path.is_dir():
            raise UserError(f"{as_typed(path)} {'is a file' if path.exists() else 'does not exist'}: {_PASS}")
        found = self._folder(path)
        if not found:
            why = "; ".join(self.problems[before:]) or "train or import one first"
            raise UserError(f"{as_typed(path)} holds no prior, tokenizer or token shards that can be shown: {why}")
        return found

    def _folder(self, run: Path) -> list[Found]:
        kinds = {}
        for folder in sorted(path for path in run.iterdir() if path.is_dir() and not path.name.startswith(".")):
            kinds[folder] = _kind(folder)
            if kinds[folder] is None and (problem := _problem(folder)):
                self.problems.append(f"{folder.name} {problem}")
        parts: dict[str, Found] = {}
        for kind in _KINDS:
            for folder in (folder for folder, its in kinds.items() if its == kind):
                if (one := parts.get(folder.name)) and _same_files(folder, one.part):
                    continue
                for found in self._try(folder.name, partial(self._list, folder, kind)):
                    _add(parts, found)
        return list(parts.values())

    def _try(self, name: str, find: Callable[[], Iterable[Found]]) -> Iterable[Found]:
        try:
            return find()
        except (UserError, OSError) as error:
            self.problems.append(f"{name} cannot be shown: {error}")
            return ()

    def _list(self, path: Path, kind: str) -> list[Found]:
        return list(self._parts(path, kind, path.name))

    def _parts(self, path: Path, kind: str, name: str) -> Iterator[Found]:
        if kind == "shards":
            yield from self._shards(path, name)
        elif kind == "tokenizer":
            yield self._tokenizer(name, path, as_typed(path))
        else:
            prior = StudioPrior(path, self._networks)
            sequence = prior.sequence  # is read here, so that a damaged config is a problem of this prior alone
            yield Found(name, prior, as_typed(path))
            if (weights := prior_folder(prior.folder)) != prior.folder:
                step = int(weights.name.rpartition("-")[2])
                self.problems.append(f"{name} is not finished: its checkpoint after {step:,} steps is shown")
            home = open_store(prior.folder)
            yield from self._stored(f"{name}/tokenizer", home, "tokenizer", path, sequence.fingerprint)

    def _tokenizer(self, name: str, path: Path, typed: str) -> Found:
        tokenizer = StudioTokenizer(path, self._networks)
        return Found(name, tokenizer, typed, fingerprint(tokenizer.folder))

    def _shards(self, path: Path, name: str) -> Iterator[Found]:
        dataset = open_shards(path)
        yield Found(name, dataset, as_typed(path))
        grids = {"tokenizer": dataset.spec.image}
        grids |= {f"tokenizer-{part}": grid for part, grid in dataset.spec.conditions.items()}
        for stored, grid in grids.items():
            yield from self._stored(stored, dataset.path, stored, path, grid.fingerprint)

    def _stored(self, name: str, home: Store, part: str, path: Path, made: str) -> Iterable[Found]:
        """The tokenizer that is stored with codes, if there is one.

        Its config is read here, so that a damaged one is a problem of its own.
        """

        def find() -> list[Found]:
            tokenizer = _open_stored(home, part, made, self._networks)
            _ = tokenizer.config
            return [Found(name, tokenizer, f"{as_typed(path)}/{part}", made)]

        stored = (home / part / "config.json").size() is not None
        return self._try(f"{_short_name(path)}/{part}", find) if stored else ()


class StoredTokenizer(StudioTokenizer):
    """A tokenizer that is stored with codes. Loading it makes sure that it made them.

    Args:
        home: Folder of the shards or the prior.
        part: Name of the folder of the tokenizer there.
        made: Fingerprint of the tokenizer of the codes.
        networks: Networks in memory.
    """

    def __init__(self, home: Path, part: str, made: str, networks: Networks) -> None:
        super().__init__(home / part, networks)
        self._home, self._made = home, made

    @property
    def loaded(self) -> "Tokenizer":
        """The network with its weights.

        Raises:
            ShardError: It did not make the codes.
        """
        return self._networks.get(self, self._load)

    def _load(self) -> "Tokenizer":
        from imagepriors.decode.rows import load_shard_tokenizer

        if "loaded" not in self.__dict__:
            self.__dict__["loaded"] = load_shard_tokenizer(self._home, self.folder.name, self._made)
        loaded: Tokenizer = self.__dict__["loaded"]
        return loaded


def _open_stored(home: Store, part: str, made: str, networks: Networks) -> ImageTokenizer:
    if home.local is not None:
        return StoredTokenizer(home.local, part, made, networks)
    from imagepriors.decode.rows import load_shard_tokenizer

    return ImageTokenizer.of(load_shard_tokenizer(home, part, made), Path(str(home / part)))


def _add(parts: dict[str, Found], found: Found) -> None:
    """Add a part under its name.

    Of two tokenizers of a name, that of the run keeps it. That of the shards is named by their folder, too, and is left
    out if both make the same codes.
    """
    kept = taken if (taken := parts.get(found.name)) and isinstance(found.part, StoredTokenizer) else found
    parts[found.name] = kept
    if taken is not None:
        stored = found if kept is taken else taken
        if stored.fingerprint != kept.fingerprint:
            name = f"{Path(stored.typed).parent.name}/{found.name}"
            parts[name] = replace(stored, name=name)


def _same_files(folder: Path, part: Part) -> bool:
    """Whether a folder holds the same tokenizer as a part, by its files."""
    if not isinstance(part, ImageTokenizer):
        return False
    weights, others = folder / "model.safetensors", part.folder / "model.safetensors"
    same = weights.is_file() and others.is_file() and filecmp.cmp(weights, others)
    return same and (folder / "config.json").is_file() and load_config(folder).model == part.config


def _kind(path: Path) -> str | None:
    """Kind of a part that can be shown; None for anything else."""
    if str(path).startswith("hf:") and "datasets/" in str(path):
        return "shards"
    folder = model_folder(path)
    store = open_store(folder)
    kind = kind_of(store)
    if kind == "shards":
        return kind if (store / "dataset.json").exists() else None
    if kind is not None and (kind == "prior" or (store / "model.safetensors").exists() or _is_plugin(folder)):
        return kind
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    return "prior" if checkpoints and kind_of(open_store(checkpoints[-1])) == "prior" else None


def _is_plugin(folder: Path) -> bool:
    """Whether a folder describes a tokenizer of another package, which has its weights elsewhere."""
    try:
        return bool(load_config(folder).model.kind)
    except UserError:
        return False


def _problem(folder: Path) -> str:
    """Why a folder that looks like a part is none; empty if it does not look like one."""
    if (folder / "plan.json").is_file():
        return "is not finished: resume the job that writes these shards"
    if (folder / "checkpoints").is_dir():
        return "is not finished: its training has no checkpoint yet that can be shown"
    if (folder / "model.safetensors").is_file():
        return "cannot be shown: its config.json is missing or damaged"
    return ""
