"""Errors of the shard format.

A shard that cannot be read and one that does not fit are handled alike, so both errors are those of the storage.
"""

from runkit.places import StoreError, WriteError

ShardError = StoreError
"""An error about shards that a person can fix: a file, a setting or an argument.

The message says what is wrong, which value was found and what to do.
"""

__all__ = ["ShardError", "WriteError"]
