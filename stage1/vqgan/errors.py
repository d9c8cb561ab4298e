"""The error class of stage 1 for invalid input."""

from runkit.errors import UserError


class InputError(UserError):
    """Invalid input; the message says what is wrong, which value was found, and what to do."""
