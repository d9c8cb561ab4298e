"""The one error that people see."""

from runkit.errors import UserError


class ShardError(UserError):
    """Something about shards that a person can fix: a file, a setting or an argument.

    The message says what is wrong, which value was found and what to do. The CLI prints it alone and
    exits with code 2; every other exception is a bug and keeps its traceback.
    """


class WriteError(ShardError):
    """A file cannot be written: no space, no permission, no network. Nothing of it was left behind."""
