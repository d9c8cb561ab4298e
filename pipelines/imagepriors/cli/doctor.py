"""`imagepriors doctor`."""

from dataclasses import asdict
from pathlib import Path


def doctor(*, out: Path = Path("runs"), json: bool = False, start_ray: bool = False) -> str:
    """Report what this machine has, what is missing, and what works on it.

    The exit code is 0 if all required parts are well, else 2.

    Args:
        out: Folder of the runs, whose disk is measured with a temporary file.
        json: Print JSON, for bug reports.
        start_ray: Also start a local Ray, or join the cluster at RAY_ADDRESS, and end the connection.

    Example:
        imagepriors doctor --json
    """
    from imagepriors.doctor import diagnose
    from runkit.errors import UserError
    from runkit.files import pretty_json

    found = diagnose(out, start_ray=start_ray)
    answer = pretty_json(asdict(found)).decode() if json else str(found)
    if found.missing:
        print(answer)
        parts = ", ".join(finding.name for finding in found.missing)
        raise UserError(f"required parts are missing or broken: {parts}; the report names the remedies")
    return answer
