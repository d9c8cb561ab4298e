"""The token-shard format, the contract between pixels and priors: orders, schema, plan, manifest, files, reader.

Requires only numpy and pyarrow, so that training from shards imports nothing of what made them.
"""

from codeshards.format.dataset import ShardDataset
from codeshards.format.errors import ShardError, WriteError
from codeshards.format.manifest import Failure, Manifest, Sidecar
from codeshards.format.orders import ORDER_NAMES, OrderName, defined_orders, inverse, order
from codeshards.format.plan import Plan, build_plan, load_plan
from codeshards.format.schema import CONDITION_NAMES, GridSpec, ShardSpec
from runkit.places import Store, Where, absolute, open_store

__all__ = [
    "CONDITION_NAMES",
    "ORDER_NAMES",
    "Failure",
    "GridSpec",
    "Manifest",
    "OrderName",
    "Plan",
    "ShardDataset",
    "ShardError",
    "ShardSpec",
    "Sidecar",
    "Store",
    "Where",
    "WriteError",
    "absolute",
    "build_plan",
    "defined_orders",
    "inverse",
    "load_plan",
    "open_store",
    "order",
]
