"""The one error class that stage 1 raises for bad input."""

from runkit.errors import UserError


class InputError(UserError):
    """Bad input from a person: says what is wrong, which value, and what to do. The CLI exits with code 2."""
