"""Upload tokenizers, priors and token shards to the Hugging Face Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from codeshards.format import ShardDataset
from codeshards.format.card import is_card
from codeshards.format.hub import is_dataset, upload_of
from imagepriors.api.defaults import MODEL_FILES, TOKENIZER_OF_PRIOR, PathLike, model_folder
from imagepriors.api.priors import ImagePrior
from imagepriors.api.tokenizers import ImageTokenizer
from runkit.errors import UserError
from runkit.hub import HubAddress
from runkit.jsonfiles import parse_json
from runkit.places import Store, open_store
from runkit.uploads import CARD, Upload, upload

CONFIG, WEIGHTS, *FIGURE_FILES = MODEL_FILES
_SETTINGS = frozenset({"steps", "epochs", "parameters", "train_rows", "val_rows", "processes"})
"""Numbers of a summary that are no figures of quality."""
_RUN_TIMES = frozenset({"wall_s", "train_seconds", "tokens_per_s", "step"})


def push(
    what: PathLike | ImageTokenizer | ImagePrior | ShardDataset,
    to: PathLike,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Upload a tokenizer, a prior with its tokenizer, or a dataset of shards to the Hugging Face Hub, with a card.

    The repository is created if it does not exist. Checkpoints, states of optimizers and logs are not uploaded. The
    client sends only what the Hub does not have, so that a repeated call continues an interrupted one.

    Args:
        what: The object or its folder.
        to: OWNER/NAME or hf://OWNER/NAME, perhaps with a folder in the repository. The repository of shards is one of
            the type dataset.
        private: Create a private repository.
        revision: The branch to write.
        message: Message of the commit.
        license: Licence of a model as a Hugging Face identifier, for its card. That of shards is in their manifest.

    Returns:
        The URL of the commit.

    Raises:
        UserError: The folder is of another kind or holds an unfinished run, the repository holds something else, or the
            Hub refuses.
    """
    address = HubAddress.parse(to, revision=revision)
    return upload(_upload_of(what, address, license), address, private=private, message=message)[1]


def kind_of(store: Store) -> Literal["tokenizer", "prior", "shards"] | None:
    """What a folder or a repository holds; None if it is none of these."""
    if is_dataset(store):
        return "shards"
    try:
        config = parse_json((store / CONFIG).read_bytes(), store / CONFIG)
    except (FileNotFoundError, UserError):
        return None
    if not isinstance(config, dict) or "format_version" not in config:
        return None
    return "prior" if "sequence" in config else "tokenizer" if "model" in config else None


def _upload_of(what: Any, address: HubAddress, license: str | None) -> Upload:
    if isinstance(what, str | Path):
        folder = model_folder(what)
        kind = kind_of(open_store(folder))
        _check_finished(folder, kind)
        made: Any = {"tokenizer": ImageTokenizer, "prior": ImagePrior, "shards": ShardDataset.open}
        what = made[kind](folder)
    if isinstance(what, ShardDataset):
        if license is not None:
            raise UserError(f"license is {license!r}: the licence of shards is that which they were made with")
        return upload_of(what)
    _check_finished(what.folder, kind_of(open_store(what.folder)))
    return _prior(what, address, license) if isinstance(what, ImagePrior) else _tokenizer(what, address, license)


def _check_finished(folder: Path, kind: str | None) -> None:
    """Refuse what is no finished model or dataset."""
    is_run = (folder / "checkpoints").is_dir()
    if is_run and (kind is None or not (folder / "summary.json").is_file()):
        raise UserError(f"{folder} holds a run that is not finished: resume it, or push one of its checkpoints")
    if kind is None:
        raise UserError(f"{folder} holds no tokenizer, prior or token shards: choose a folder that does")


def _tokenizer(tokenizer: ImageTokenizer, address: HubAddress, license: str | None) -> Upload:
    net, folder = tokenizer.config, tokenizer.folder
    _ = tokenizer.fingerprint  # refuses damaged files
    extra = _newest(folder / "reconstructions", "reconstructions.png")
    about = (
        f"A tokenizer of {net.modality} pictures: {net.resolution}×{net.resolution} pixels to {net.grid}×{net.grid} "
        f"codes of {net.codebook_size:,}. Its fingerprint, which shards and priors record, is "
        f"`{tokenizer.fingerprint}`."
    )
    use = _use(
        f'tokenizer = ip.ImageTokenizer.from_pretrained("{_name(address)}")\n'
        "codes = tokenizer.encode(pictures)\npictures = tokenizer.decode(codes)",
        f"imagepriors tokenize --data PICTURES --tokenizer {address}",
    )
    from imagepriors.reports.cards import model_card

    card = model_card(
        title=_title(address), task="image-to-image", tags=["vqgan", "image-tokenizer"], about=about, use=use,
        figures=_figures(folder), license=license, pictures=dict.fromkeys(extra, "Originals above reconstructions"),
    )  # fmt: skip
    return _model("tokenizer", folder, {CARD: card} | extra)


def _prior(prior: ImagePrior, address: HubAddress, license: str | None) -> Upload:
    from imagepriors.reports.cards import blend_text, model_card

    spec, folder, tokenizer = prior.sequence, prior.folder, prior.tokenizer
    samples = folder.parent / f"samples-{folder.name}/grid.png"
    extra: dict[str, Path | bytes] = {"samples.png": samples} if samples.is_file() else {}
    pictures = dict.fromkeys(extra, "Samples")
    if tokenizer is not None:
        home = open_store(tokenizer.folder)
        extra |= {name: (home / Path(name).name).read_bytes() for name in TOKENIZER_OF_PRIOR}
    about = (
        f"A transformer prior over {spec.height}×{spec.width} image codes of {spec.codebook_size:,} in "
        f"{spec.order_text}, condition {spec.condition}. "
        + ("The tokenizer is in `tokenizer/`." if tokenizer else "The tokenizer is not included.")
        + f" Its fingerprint is `{spec.fingerprint}`."
        + (f" It was trained on a blend of {blend}." if (blend := blend_text(prior.summary)) else "")
    )
    use = _use(
        f'prior = ip.ImagePrior.from_pretrained("{_name(address)}")\nprior.sample(16).grid().save("samples.png")',
        f"imagepriors sample --prior {address} --n 16",
    )
    task = "unconditional-image-generation"
    card = model_card(
        title=_title(address), task=task, tags=["autoregressive", "image-prior"], about=about, use=use,
        figures=_figures(folder), license=license, pictures=pictures,
    )  # fmt: skip
    return _model("prior", folder, {CARD: card} | extra)


def _model(kind: str, folder: Path, extra: Mapping[str, Path | bytes]) -> Upload:
    names = [name for name in MODEL_FILES if (folder / name).is_file()]
    return Upload(
        what=kind,
        repo_type="model",
        files={name: folder / name for name in names} | dict(extra),
        last=CONFIG,
        owned=(*MODEL_FILES, *TOKENIZER_OF_PRIOR, "reconstructions.png", "samples.png"),
        is_same_kind=lambda store: kind_of(store) == kind,
        is_card=is_card,
    )


def _figures(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured → name → value, from the files of the run."""
    found: dict[str, dict[str, Any]] = {}
    for name in FIGURE_FILES:
        if not (folder / name).is_file():
            continue
        values = parse_json((folder / name).read_bytes(), folder / name)
        if "figures" in values:
            found[f"{values.get('dataset') or 'shards'}, {values.get('split', 'val')}"] = values["figures"]
        else:
            kept = {key: value for key, value in values.items() if key not in _SETTINGS | _RUN_TIMES}
            found["validation during training"] = kept
    return found


def _newest(folder: Path, name: str) -> dict[str, Path | bytes]:
    """The newest picture of a folder under another name; empty if there is none."""
    found = sorted(folder.glob("step-*.png"))
    return {name: found[-1]} if found else {}


def _title(address: HubAddress) -> str:
    return (address.path or address.repo_id).rpartition("/")[2]


def _name(address: HubAddress) -> str:
    return str(address).removeprefix("hf://")


def _use(python: str, command: str) -> str:
    return f"```python\nimport imagepriors as ip\n\n{python}\n```\n\n```\n{command}\n```"
