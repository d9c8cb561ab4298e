"""Errors of the shard format."""

from runkit.errors import UserError


class ShardError(UserError):
    """An error about shards that a person can fix: a file, a setting or an argument.

    The message says what is wrong, which value was found and what to do.
    """


class WriteError(ShardError):
    """A file cannot be written: no space, no permission, no network. No partial file is left."""
