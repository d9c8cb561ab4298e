"""`evaluate-prior` for the unconditional and the class-conditional prior of the other experiments."""

from codeshards.format import ShardDataset
from imagepriors.config import EvaluatePriorConfig
from imagepriors.evaluate_prior import evaluate_prior
from imagepriors.experiments.lab import Lab
from imagepriors.experiments.orders import train_orders


def run(lab: Lab) -> None:
    """Likelihood, distance, precision, recall, and how far classes are followed."""
    shards = lab.shards()
    priors = {"unconditional": train_orders(lab, shards)["row_major"][0]}
    if len(ShardDataset.open(shards).class_names) > 1:
        home = Lab(lab.config, lab.run, lab.data, "conditional")
        priors["class"] = home.train({"class": home.prior(condition="class")}, shards)["class"]
    config = EvaluatePriorConfig(
        n=lab.config.n, reader_steps=lab.config.reader_steps, reference_limit=max(lab.config.n, 2)
    )
    reports = {
        name: evaluate_prior(
            folder, shards, lab.out / f"{name}.json", config, lab.sampling(batch_size=64),
            dataset=lab.config.dataset, data=lab.data,
        )
        for name, folder in priors.items()
    }  # fmt: skip
    told = (
        f"{name}: {', '.join(f'{key} {value:.3f}' for key, value in report['figures'].items())}"
        for name, report in reports.items()
    )
    first = next(iter(reports.values()))
    text = f"{first['samples']} samples; reference: {first['reference']}, {first['reference_pictures']} pictures. "
    lab.save("Evaluation", text + ". ".join(told) + ".", {"reports": reports}, {})
