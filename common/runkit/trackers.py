"""Trackers of experiments: the metrics of a run also in Weights & Biases or trackio.

A tracker never stops a run: after its first failure it warns and does no more. The metrics are in the run's folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from runkit.errors import UserError
from runkit.files import pretty_json, write_file
from runkit.jsonfiles import parse_json

log = logging.getLogger(__name__)

TrackerName = Literal["none", "wandb", "trackio"]
"""Where metrics go besides the run's folder."""
ID_FILE = ".tracker.json"
"""File in a run's folder with the run's id, so that a resumed run continues the same curves."""
_PROJECT = "imagepriors"
_FINISH_S = 120.0
"""Seconds that a tracker may take to send the last values; wandb keeps the others on the disk."""


def check_tracker(name: TrackerName, error: type[UserError] = UserError) -> None:
    """Refuse a tracker whose package is not installed. Call it before the work.

    Raises:
        UserError: The package is missing; the message names the command that installs it.
    """
    spec = None if name == "none" else importlib.util.find_spec(name)
    if name != "none" and (spec is None or spec.origin is None):  # wandb leaves folders of its name
        raise error(f"tracker is {name!r}, and the package {name} is not installed: pip install {name}, or use none")


class Tracker:
    """One run in a tracker.

    Args:
        name: The tracker.
        folder: The run's folder, which holds its id and wandb's own files.
        config: The run's settings, as JSON has them.
    """

    def __init__(self, name: TrackerName, folder: Path, config: Mapping[str, Any]) -> None:
        self._name, self._run = name, None
        with self._tolerated():
            start = {"wandb": _start_wandb, "trackio": _start_trackio}[name]
            with contextlib.redirect_stdout(sys.stderr):
                self._run = start(folder, _run_id(folder), dict(config))

    @contextlib.contextmanager
    def _tolerated(self) -> Any:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of another package and its network
            self._run = None
            log.warning("%s gets no more metrics of this run, which continues: %s", self._name, error or repr(error))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the values of a step."""
        if self._run is not None:
            with self._tolerated():
                _log(self._name, self._run, step, figures)

    def finish(self) -> None:
        """Send what is left."""
        run, self._run = self._run, None
        if run is not None:
            with self._tolerated(), contextlib.redirect_stdout(sys.stderr):
                run.finish()


def _run_id(folder: Path) -> str:
    """The id in the run's folder, which is created if it is missing."""
    path = folder / ID_FILE
    if path.exists():
        return str(parse_json(path.read_bytes(), path)["id"])
    made = secrets.token_hex(4)
    write_file(path, pretty_json({"id": made}))
    return made


def _start_wandb(folder: Path, run_id: str, config: dict[str, Any]) -> Any:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT), id=run_id, name=_title(folder), resume="allow",
        dir=str(folder), config=config, reinit="create_new",
        settings=wandb.Settings(console="off", finish_timeout=_FINISH_S),
    )  # fmt: skip
    run.define_metric("*", step_metric="step")  # a resumed run repeats steps, which wandb's own counter refuses
    return run


def _start_trackio(folder: Path, run_id: str, config: dict[str, Any]) -> Any:
    import trackio

    project, name = os.environ.get("TRACKIO_PROJECT", _PROJECT), f"{_title(folder)}-{run_id}"
    return trackio.init(project, name=name, resume="allow", config=config, embed=False, auto_log_cpu=False)


def _title(folder: Path) -> str:
    """The last two parts of a run's path, such as photos-prior-zcurve."""
    return "-".join(folder.absolute().parts[-2:])


def _log(name: TrackerName, run: Any, step: int, figures: Mapping[str, float]) -> None:
    if name == "wandb":
        run.log({**figures, "step": step})
    else:
        run.log(dict(figures), step=step)
