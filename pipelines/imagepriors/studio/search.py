"""Finding what folders and addresses hold: priors, tokenizers and token shards."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from vqgan.checkpoint import fingerprint
from vqgan.plugin_tokenizer import plugin_name

Part = ImagePrior | ImageTokenizer | ShardDataset
_KINDS = ("shards", "prior", "tokenizer")
"""Shards come first: their copy of a tokenizer has a recorded fingerprint, and hides that of the same name beside."""


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


def _short_name(place: PathLike) -> str:
    path = as_path(place)
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
        path, before = as_path(place), len(self.problems)
        if plugin_name(path):
            return [self._tokenizer(str(path), path, str(path))]
        if kind := _kind(path):
            found = list(self._parts(path, kind, _short_name(place)))
            if kind == "prior" and _kind(beside := ImagePrior(path).shards) == "shards":
                found += self._try(beside.name, lambda: list(self._parts(beside, "shards", beside.name)))
            return found
        if not path.is_dir():
            raise UserError(f"{as_typed(path)} does not exist: pass a run folder such as runs/demo, or hf://OWNER/NAME")
        found = list(self._folder(path))
        if not found:
            why = "; ".join(self.problems[before:]) or "train or import one first"
            raise UserError(f"{as_typed(path)} holds no prior, tokenizer or token shards that can be shown: {why}")
        return found

    def _folder(self, run: Path) -> Iterator[Found]:
        kinds = {}
        for folder in sorted(path for path in run.iterdir() if path.is_dir() and not path.name.startswith(".")):
            kinds[folder] = _kind(folder)
            if kinds[folder] is None and (problem := _problem(folder)):
                self.problems.append(f"{folder.name} {problem}")
        seen = set()
        for kind in _KINDS:
            for folder in (folder for folder, its in kinds.items() if its == kind and folder.name not in seen):
                for found in self._try(folder.name, lambda f=folder, k=kind: list(self._parts(f, k, f.name))):  # type: ignore[misc]
                    seen.add(found.name)
                    yield found

    def _try(self, name: str, find: Callable[[], Iterable[Found]]) -> Iterable[Found]:
        try:
            return find()
        except (UserError, OSError) as error:
            self.problems.append(f"{name} cannot be shown: {error}")
            return ()

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
            own = f"{name}/tokenizer"
            if (prior.folder / "tokenizer/config.json").is_file():
                store = open_store(prior.folder) / "tokenizer"
                yield from self._try(
                    own, lambda: [self._stored(own, store, f"{as_typed(path)}/tokenizer", sequence.fingerprint)]
                )

    def _tokenizer(self, name: str, path: Path, typed: str) -> Found:
        tokenizer = StudioTokenizer(path, self._networks)
        return Found(name, tokenizer, typed, fingerprint(tokenizer.folder))

    def _shards(self, path: Path, name: str) -> Iterator[Found]:
        dataset = open_shards(path)
        yield Found(name, dataset, as_typed(path))
        grids = {"tokenizer": dataset.spec.image}
        grids |= {f"tokenizer-{part}": grid for part, grid in dataset.spec.conditions.items()}
        for stored, grid in grids.items():
            find = partial(self._stored, stored, dataset.path / stored, f"{as_typed(path)}/{stored}", grid.fingerprint)
            if (dataset.path / stored / "config.json").size() is not None:
                yield from self._try(f"{name}/{stored}", lambda f=find: [f()])  # type: ignore[misc]

    def _stored(self, name: str, place: Store, typed: str, made: str) -> Found:
        """A tokenizer that is stored with codes. Its config is read here, so that a damaged one is a problem alone."""
        if place.local is not None:
            tokenizer: ImageTokenizer = StudioTokenizer(place.local, self._networks)
        else:
            from imagepriors.decode.rows import load_shard_tokenizer

            loaded = load_shard_tokenizer(str(place).rpartition("/")[0], place.name, made)
            tokenizer = ImageTokenizer.of(loaded, Path(str(place)))
        _ = tokenizer.config
        return Found(name, tokenizer, typed, made)


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
    from vqgan.checkpoint import load_config

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
