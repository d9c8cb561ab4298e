"""The table of all commands."""

from collections.abc import Callable

from imagepriors.cli.annotate import annotate
from imagepriors.cli.common import Subcommands
from imagepriors.cli.completion import completion
from imagepriors.cli.demo_data import demo_data
from imagepriors.cli.doctor import doctor
from imagepriors.cli.evaluate_prior import evaluate_prior
from imagepriors.cli.evaluate_tokenizer import evaluate_tokenizer
from imagepriors.cli.inspect_data import inspect_data
from imagepriors.cli.push import push
from imagepriors.cli.released import export_diffusers, import_diffusers, import_prior, import_tokenizer
from imagepriors.cli.report import report
from imagepriors.cli.sample import sample
from imagepriors.cli.shards import SHARDS
from imagepriors.cli.studio import studio
from imagepriors.cli.tokenize import tokenize
from imagepriors.cli.train_palette import train_palette
from imagepriors.cli.train_prior import train_prior
from imagepriors.cli.train_vqgan import train_vqgan
from imagepriors.experiments.command import experiment

GROUPS: dict[str, dict[str, Callable[..., str] | Subcommands]] = {
    "data": {"demo-data": demo_data, "inspect": inspect_data, "annotate": annotate},
    "tokenizer": {
        "train-vqgan": train_vqgan,
        "train-palette": train_palette,
        "evaluate-tokenizer": evaluate_tokenizer,
        "import-tokenizer": import_tokenizer,
        "import-diffusers": import_diffusers,
        "export-diffusers": export_diffusers,
    },
    "shards": {"tokenize": tokenize, "shards": SHARDS},
    "prior": {
        "train-prior": train_prior,
        "sample": sample,
        "evaluate-prior": evaluate_prior,
        "import-prior": import_prior,
    },
    "results": {"studio": studio, "report": report, "experiment": experiment, "push": push},
    "this machine": {"doctor": doctor, "completion": completion},
}
"""Title → commands, in the order in which the usage lists them."""
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
"""Command → typed function, whose signature is its flags and whose docstring is its help and an example."""
