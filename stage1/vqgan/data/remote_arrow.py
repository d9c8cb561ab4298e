"""Arrow files in stores: one pass finds the record batches, and each is then read by itself.

The stream format, which `save_to_disk` writes, has no index. The file format is a stream between a magic word and an
index.
"""

import functools
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from runkit.ranges import RangedFile, RemoteFile

_MAGIC = b"ARROW1\0\0"


def read_batches(file: RemoteFile) -> tuple[Any, dict[int, Any]]:
    """Read through a file, and return its schema and, by the place where each begins, its batches without bytes.

    Raises:
        pyarrow.ArrowException: it is not an Arrow file, is truncated, or has columns of dictionaries.
    """
    with file.open_ahead() as source:
        schema, messages = _begin(source)
        names = [column.name for column in schema if not _has_bytes(column.type)]
        found: dict[int, Any] = {}
        place = source.tell()
        while (message := _next(messages)) is not None:
            batch = _decoded(message, schema)
            # A copy, because a slice of the message would keep its images in memory.
            found[place] = _copy(batch.select(names))
            place = source.tell()
        return schema, found


def read_batch(file: RemoteFile, place: int) -> Any:
    """Read the batch that begins at a place; errors as `read_batches`."""
    with file.open_ahead() as source:
        source.seek(place)
        return _decoded(ipc.read_message(pa.PythonFile(source, mode="r")), read_schema(file))


@functools.lru_cache(maxsize=64)
def read_schema(file: RemoteFile) -> Any:
    """Return the schema of a file; errors as `read_batches`."""
    with file.open_ahead() as source:
        return _begin(source)[0]


def _begin(source: RangedFile) -> tuple[Any, Any]:
    source.seek(len(_MAGIC) if source.read(len(_MAGIC)) == _MAGIC else 0)
    messages = ipc.MessageReader.open_stream(pa.PythonFile(source, mode="r"))
    return ipc.read_schema(messages.read_next_message()), messages


def _next(messages: Any) -> Any:
    try:
        return messages.read_next_message()
    except StopIteration:
        return None


def _decoded(message: Any, schema: Any) -> Any:
    if message.type != "record batch":
        raise pa.ArrowInvalid(f"it has a {message.type} message: save the table as Parquet")
    return ipc.read_record_batch(message, schema)


def _copy(batch: Any) -> Any:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return ipc.open_stream(sink.getvalue()).read_next_batch()


def _has_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_bytes(kind.field(index).type) for index in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return True
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _has_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
