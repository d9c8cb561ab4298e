"""Self-contained HTML pages."""

import base64
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[dict[str, Any]]) -> bytes:
    """Render a self-contained page.

    Args:
        title: Title of the page.
        facts: Name and value of each line of the table at the top.
        sections: Each with title, text, files (name → PNG bytes) and optionally rows (a table).
    """
    environment = Environment(
        loader=PackageLoader("imagepriors.reports", "."), autoescape=True, undefined=StrictUndefined
    )
    pages = [
        {"rows": [], **section, "images": [base64.b64encode(png).decode() for png in section["files"].values()]}
        for section in sections
    ]
    return environment.get_template("page.html.jinja").render(title=title, facts=facts, sections=pages).encode()
