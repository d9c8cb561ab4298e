"""`evaluate-prior` for the unconditional and the class-conditional prior of the other experiments."""

from imagepriors.evaluate.prior import evaluate_prior
from imagepriors.experiments import conditional, orders
from imagepriors.experiments.lab import Lab, Plan
from imagepriors.reports.figures import bars_figure

shards = orders.shards


def priors(lab: Lab) -> Plan:
    """One of `orders`, and that of the classes where there are some."""
    return orders.priors(lab, ("row_major",), seeds=1) | conditional.priors(lab, ("class",))


def run(lab: Lab) -> None:
    """Likelihood, distance, precision, recall, and how far classes are followed."""
    reports = {
        "class" if folder.name == "class" else "unconditional": evaluate_prior(
            folder, lab.shards(), lab.out("evaluation") / f"{folder.name}.json", lab.measures(),
            lab.sampling(batch_size=64), dataset=lab.config.dataset, data=lab.data,
        )
        for folder in priors(lab)
    }  # fmt: skip
    sentences = (
        f"{name}: {', '.join(f'{key} {value:.3f}' for key, value in report['figures'].items())}"
        for name, report in reports.items()
    )
    first = next(iter(reports.values()))
    judge = "; ".join(f"{figure}: {network}" for figure, network in first["judges"].items())
    text = (
        f"{first['samples']} samples; reference: {first['reference']}, {first['reference_pictures']} pictures; "
        f'"real": as many other real pictures in the samples\' place. {judge}. '
    )
    shown = {
        name: {key: value for key, value in report["figures"].items() if key.startswith(("precision", "recall"))}
        | {key.replace("class ", ""): value for key, value in report["figures"].items() if key.startswith("class ")}
        for name, report in reports.items()
    }
    pictures = {"shares": bars_figure(shown, "share of samples")}
    lab.save("evaluation", text + ". ".join(sentences) + ".", {"reports": reports}, pictures)
