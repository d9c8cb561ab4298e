"""The errors of token shards.

A shard that cannot be read and one that does not fit are handled alike, so both errors are those of the storage.
"""

from runkit.places import StoreError, WriteError

ShardError = StoreError
"""Something about shards that a user can fix: a file, a setting or an argument."""

__all__ = ["ShardError", "WriteError"]
