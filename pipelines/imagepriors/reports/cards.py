"""The cards of tokenizers and priors on the Hugging Face Hub: ``README.md``, with the figures of their run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codeshards.format.card import sealed

_PROJECT = "imagepriors"


def model_card(
    *,
    title: str,
    task: str,
    tags: list[str],
    about: str,
    figures: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, str],
    use: str,
    license: str | None,
) -> bytes:
    """Make the card.

    Args:
        title: Its heading.
        task: Task by the names of the Hub, such as "image-to-image".
        tags: Tags beside that of the project.
        about: What the model is, in a sentence.
        figures: What figures were measured on → name of a figure → its value. What is not a number is left out.
        pictures: File name → caption.
        use: How to load the model, as Markdown.
        license: Identifier of the licence; None names none.

    Returns:
        The card as Markdown with YAML front matter.
    """
    from huggingface_hub import EvalResult, ModelCardData

    numbers = {where: _numbers(values) for where, values in figures.items()}
    results = [
        EvalResult(task_type=task, dataset_type=where, dataset_name=where, metric_type=name, metric_value=value)
        for where, values in numbers.items()
        for name, value in values.items()
    ]
    data = ModelCardData(
        library_name=_PROJECT,
        license=license,
        tags=[_PROJECT, "image-tokens", *tags],
        model_name=title,
        eval_results=results or None,
        pipeline_tag=task,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}", about]
    parts += [f"![{caption}]({name})" for name, caption in pictures.items()]
    parts += [_table(where, values) for where, values in numbers.items() if values]
    return sealed("\n\n".join([*parts, f"## Use\n\n{use}"])).encode()


def blend_text(summary: Mapping[str, Any]) -> str:
    """The datasets that a prior was trained on with their proportions; "" for a single one.

    Of local folders the last two names are given, because a card is read elsewhere.
    """
    return ", ".join(f"{part['proportion']:.2%} {_short(str(part['shards']))}" for part in summary.get("blend", ()))


def _short(place: str) -> str:
    return place if "://" in place else "/".join(Path(place).parts[-2:])


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _table(where: str, values: Mapping[str, float]) -> str:
    rows = [
        f"| {name} | {value:,.4g} |" if isinstance(value, float) else f"| {name} | {value:,} |"
        for name, value in values.items()
    ]
    return "\n".join([f"## Figures: {where}", "", "| figure | value |", "|---|---|", *rows])
