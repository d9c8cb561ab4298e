"""Evaluate the unconditional and the class-conditional prior of the other experiments."""

from imagepriors.evaluate.prior import evaluate_prior
from imagepriors.experiments import conditional, orders
from imagepriors.experiments.workspace import PriorRuns, Workspace
from imagepriors.reports.figures import bars_figure

shards = orders.shards


def priors(workspace: Workspace) -> PriorRuns:
    """One prior of `orders`, and the class-conditional prior if the dataset has classes."""
    return orders.priors(workspace, ("row_major",), seeds=1) | conditional.priors(workspace, ("class",))


def run(workspace: Workspace) -> None:
    """Measure likelihood, distance, precision, recall, and agreement with the classes."""
    reports = {
        "class" if folder.name == "class" else "unconditional": evaluate_prior(
            folder, workspace.shards(), workspace.out("evaluation") / f"{folder.name}.json", workspace.evaluation(),
            workspace.sampling(batch_size=64), dataset=workspace.config.dataset, data=workspace.data,
        )
        for folder in priors(workspace)
    }  # fmt: skip
    sentences = (
        f"{name}: {', '.join(f'{key} {value:.3f}' for key, value in report['figures'].items())}"
        for name, report in reports.items()
    )
    first = next(iter(reports.values()))
    notes = "; ".join(f"{figure}: {note}" for figure, note in first["networks"].items())
    text = (
        f"{first['samples']} samples; reference: {first['reference']}, {first['reference_pictures']} pictures; "
        f'"real": as many other real pictures in the samples\' place. {notes}. '
    )
    shown = {
        name: {key: value for key, value in report["figures"].items() if key.startswith(("precision", "recall"))}
        | {key.replace("class ", ""): value for key, value in report["figures"].items() if key.startswith("class ")}
        for name, report in reports.items()
    }
    pictures = {"shares": bars_figure(shown, "share of samples")}
    workspace.save("evaluation", text + ". ".join(sentences) + ".", {"reports": reports}, pictures)
