"""Write measured tables into a document: `python -m priorbench.readme docs/benchmarks.md`.

The text between `<!-- table NAME -->` and `<!-- end -->` is replaced by the report NAME, and that after
`<!-- claims DEVICE -->` by the headlines of all reports of the device.
"""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from priorbench import SUITES
from priorbench.gpu.report import table as gpu_table
from priorbench.harness import RESULTS
from priorbench.markdown import markdown

_BLOCK = re.compile(r"(<!-- (table|claims) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, results: Path = RESULTS) -> str:
    """Replace each block of a text by its latest measurement.

    Raises:
        FileNotFoundError: a block names a report that does not exist.
    """

    def block(found: re.Match[str]) -> str:
        if found[2] == "claims":
            content = claims(found[3], results)
        else:
            content = markdown(json.loads((results / f"{found[3]}.json").read_text()))
        return f"{found[1]}{content.strip()}\n{found[4]}"

    return _BLOCK.sub(block, text)


def claims(device: str, results: Path = RESULTS) -> str:
    """The headlines of all reports of `device` as a Markdown table.

    Raises:
        FileNotFoundError: no report exists.
    """
    lines = ["| | × | measured by | on |", "|---|---|---|---|"]
    for path in sorted(results.glob(f"*-{device}.json")):
        report = json.loads(path.read_text())
        values: dict[str, list[str]] = {}  # comparisons with several rivals share a row
        for headline, value in report["headlines"].items():
            what, over, rival = headline.partition(", over ")
            values.setdefault(what, []).append(f"{value}{over and f' over {rival}'}")
        ending = f"`{report['command']}` | {report['machine']} |"
        lines += [f"| {what} | {'<br>'.join(found)} | {ending}" for what, found in values.items()]
    if len(lines) == 2:
        raise FileNotFoundError(f"no report of {device} in {results}")
    return "\n".join(lines)


def tabulated(path: Path) -> dict[str, Any]:
    """The report in `path`, with columns, rows and headlines recomputed from its figures.

    Raises:
        KeyError: its figures are in the format of an earlier version.
    """
    report: dict[str, Any] = json.loads(path.read_text())
    if path.name.startswith("gpu-check-"):
        return {**report, **gpu_table(report["figures"])}
    suite = next(name for name in SUITES if path.name.startswith(f"{name}-"))
    module = importlib.import_module(f"priorbench.{suite.replace('-', '_')}")
    if suite == "scaling":
        table = module.TABLES[path.name.split("-")[1]](report["figures"])
    elif suite == "train-prior":
        table = module.table(report["figures"], "cpu" if path.stem.endswith("-cpu") else "cuda")
    else:
        table = module.table(report["figures"])
    return {**report, **table._asdict()}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        document = Path(name)
        document.write_text(with_tables(document.read_text()))
