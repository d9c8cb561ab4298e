"""Measured tables into a README: `python -m imagepriors.benchmarks.readme README.md`.

Between `<!-- table NAME -->` and `<!-- end -->` comes what the suite NAME has written into the results, so that no
figure there is typed.
"""

import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, results: Path = RESULTS) -> str:
    """The text with every block's table as it was measured last.

    Raises:
        FileNotFoundError: a block names a table that was never measured.
    """
    return _BLOCK.sub(lambda m: f"{m[1]}{(results / f'{m[2]}.md').read_text().strip()}\n{m[3]}", text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        readme = Path(name)
        readme.write_text(with_tables(readme.read_text()))
