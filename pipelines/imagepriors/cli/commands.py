"""The table of all commands."""

from collections.abc import Callable

from imagepriors.cli.annotate import annotate
from imagepriors.cli.demo_data import demo_data
from imagepriors.cli.evaluate_prior import evaluate_prior
from imagepriors.cli.evaluate_tokenizer import evaluate_tokenizer
from imagepriors.cli.inspect_data import inspect_data
from imagepriors.cli.released import export_diffusers, import_diffusers, import_prior, import_tokenizer
from imagepriors.cli.report import report
from imagepriors.cli.sample import sample
from imagepriors.cli.shards import shards
from imagepriors.cli.tokenize import tokenize
from imagepriors.cli.train_palette import train_palette
from imagepriors.cli.train_prior import train_prior
from imagepriors.cli.train_vqgan import train_vqgan
from imagepriors.experiments.command import experiment

COMMANDS: dict[str, Callable[..., str]] = {
    "demo-data": demo_data,
    "inspect": inspect_data,
    "annotate": annotate,
    "train-vqgan": train_vqgan,
    "train-palette": train_palette,
    "evaluate-tokenizer": evaluate_tokenizer,
    "import-tokenizer": import_tokenizer,
    "import-prior": import_prior,
    "import-diffusers": import_diffusers,
    "export-diffusers": export_diffusers,
    "tokenize": tokenize,
    "train-prior": train_prior,
    "sample": sample,
    "evaluate-prior": evaluate_prior,
    "experiment": experiment,
    "report": report,
    "shards": shards,
}
"""Command → typed function, whose signature is its flags and whose docstring is its help."""
