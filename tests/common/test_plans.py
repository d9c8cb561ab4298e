"""The text of a plan."""

from dataclasses import dataclass, field

from runkit.plans import WorkPlan, changed_settings


@dataclass(frozen=True)
class Inner:
    width: int = 4


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    steps: int = 10


def test_figures_are_shown_with_their_units():
    figures = {"rows": {"train": 3000}, "images_per_s": 406.5, "time_s": 3725.0, "step_s": 0.25, "shards_bytes": 2.5e6}
    text = str(WorkPlan(work="make 2 shards", figures=figures, notes=("a trial",), settings={"steps": 7}))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "make 2 shards", "rows train 3,000", "images/s 406.5", "time 1 h 2 min", "step 0.25 s", "shards 2.5 MB",
        "settings that are not the default:", "steps 7", "note: a trial", "nothing was written",
    ]  # fmt: skip


def test_changed_settings_have_dotted_names():
    assert changed_settings(Outer(inner=Inner(width=8))) == {"inner.width": 8}
    assert changed_settings(Outer()) == {}
