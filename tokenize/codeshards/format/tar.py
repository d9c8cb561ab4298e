"""A shard as a tar file that plain ``webdataset`` reads; equal rows always give equal bytes.

Members, in this sequence::

    __imagepriors__         the shard's spec and number of rows as JSON; webdataset skips names like this
    KEY.json                {"key": …, "label": … or null, "orders": […], "view": …}, and the carried columns by name
    KEY.codes.npy           [orders, H·W], the image codes, one row per name in "orders"
    KEY.scale_1.npy …       [S·S], where the spec has scales
    KEY.cond_depth.npy …    [h·w], row_major, where the spec has conditions

Codes are uint16, or uint32 for a codebook above 65,536 entries.

Axes: N rows of a shard, O its orders, L codes of a sequence.
"""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codeshards.format.errors import ShardError
from codeshards.format.files import compact_json
from codeshards.format.schema import METADATA_KEY, NO_LABEL, GridSpec, ShardSpec, column_to_numpy
from runkit.codes import Codes
from runkit.jsonfiles import parse_json

SPEC_MEMBER = f"__{METADATA_KEY.decode()}__"


def tar_bytes(table: pa.Table) -> bytes:
    """The content of a tar file with a shard's table; times, owners and modes are fixed."""
    spec = ShardSpec.from_schema(table.schema)
    out = io.BytesIO()
    add_member(out, SPEC_MEMBER, compact_json({**spec.to_json(), "rows": table.num_rows}).encode())
    columns = {name: column_to_numpy(table.column(name).combine_chunks()) for name in spec.column_names}
    arrays = _stacked(spec, columns)
    orders = list(spec.orders)
    for row, (key, view, label) in enumerate(
        zip(columns["key"], columns["view"].tolist(), columns["label"].tolist(), strict=True)
    ):
        about = {"key": key, "label": None if label == NO_LABEL else label, "orders": orders, "view": view}
        about |= {name: columns[name][row] for name in spec.carried}
        add_member(out, f"{key}.json", compact_json(about).encode())
        for name, values in arrays.items():
            add_member(out, f"{key}.{name}", _npy_header(values.dtype.str, values.shape[1:]) + values[row].tobytes())
    out.write(bytes(-out.tell() % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
    return out.getvalue()


def read_tar(content: bytes) -> pa.Table:
    """The table that :func:`tar_bytes` wrote.

    Raises:
        ShardError: It is not a shard of codes, or incomplete.
    """
    try:
        members = _members(content)
        name, start, stop = next(members, ("", 0, 0))
        if name != SPEC_MEMBER:
            raise ShardError(f"not a shard of codes: its first member is {name or 'missing'}, expected {SPEC_MEMBER}")
        header = parse_json(content[start:stop], SPEC_MEMBER, ShardError)
        rows = header.pop("rows")
        spec = ShardSpec.from_json(header)
        return _read_rows(content, members, spec, rows)
    except ShardError:
        raise
    except (
        tarfile.TarError,
        ValueError,
        OverflowError,  # a view of 300
        KeyError,
        TypeError,
        AttributeError,
        StopIteration,
        RecursionError,  # tarfile, in long names of long names
    ) as error:
        raise ShardError(f"the tar is damaged ({error or repr(error)})") from error


def _read_rows(content: bytes, members: Iterator[tuple[str, int, int]], spec: ShardSpec, rows: int) -> pa.Table:
    members_of_row = _row_members(spec)
    if type(rows) is not int or not 0 <= rows * 2 * tarfile.BLOCKSIZE * (1 + len(members_of_row)) <= len(content):
        raise ShardError(f"the tar is damaged: {len(content)} bytes cannot hold the {rows!r} rows that it names")
    found = {name: np.empty((rows, *shape), descr) for name, (descr, shape) in members_of_row.items()}
    keys, views, labels = list[str](), np.empty(rows, np.uint8), np.empty(rows, np.int64)
    carried: dict[str, list[Any]] = {name: [] for name in spec.carried}
    for row in range(rows):
        name, start, stop = next(members)
        about = parse_json(content[start:stop], name, ShardError)
        key = about["key"]
        if name != f"{key}.json" or about["orders"] != list(spec.orders):
            raise ShardError(f"the tar is damaged: member {name} describes row {key!r} with orders {about['orders']}")
        keys.append(key)
        views[row] = about["view"]
        labels[row] = NO_LABEL if about["label"] is None else about["label"]
        for name, column in carried.items():
            column.append(about[name])
        for part, values in found.items():
            name, start, stop = next(members)
            header = _npy_header(*members_of_row[part])
            if name != f"{key}.{part}" or not content.startswith(header, start):
                raise ShardError(
                    f"the tar is damaged: found member {name}, expected {key}.{part} of the spec's type and shape"
                )
            values[row] = np.frombuffer(content[start + len(header) : stop], values.dtype).reshape(values.shape[1:])
    if (extra := next(members, None)) is not None:
        raise ShardError(f"the tar is damaged: member {extra[0]} comes after its {rows} rows")
    codes_NOL = found.pop("codes.npy")
    columns = {f"codes_{name}": codes_NOL[:, index] for index, name in enumerate(spec.orders)}
    columns |= {name.removesuffix(".npy"): values for name, values in found.items()}
    return spec.columns_to_table(keys, views, labels, columns, carried)


def _stacked(spec: ShardSpec, columns: dict[str, npt.NDArray[Any]]) -> dict[str, Codes]:
    """Ending of the member's name → its arrays of all rows."""
    codes_NOL = np.stack([columns[f"codes_{name}"] for name in spec.orders], axis=1)
    others = [name for name in spec.code_grids if not name.startswith("codes_")]
    arrays = {"codes.npy": codes_NOL, **{f"{name}.npy": columns[name] for name in others}}
    return {name: np.ascontiguousarray(values, values.dtype.newbyteorder("<")) for name, values in arrays.items()}


def _row_members(spec: ShardSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Ending of the member's name → the type and shape of its array."""
    others = {
        f"{name}.npy": (_descr(grid), (grid.length,))
        for name, grid in spec.code_grids.items()
        if not name.startswith("codes_")
    }
    return {"codes.npy": (_descr(spec.image), (len(spec.orders), spec.image.length)), **others}


def _descr(grid: GridSpec) -> str:
    return grid.dtype.newbyteorder("<").str


def add_member(out: io.BytesIO, name: str, content: bytes) -> None:
    """Append a file to a tar file; its time, owner and mode are fixed."""
    info = tarfile.TarInfo(name)  # mtime 0, uid and gid 0, no names of owners
    info.size, info.mode = len(content), 0o644
    out.write(bytes(-out.tell() % tarfile.BLOCKSIZE))
    out.write(info.tobuf(tarfile.PAX_FORMAT))
    out.write(content)


def _members(content: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the first byte, offset after the last) of each member, in file order."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        while (info := tar.next()) is not None:
            yield info.name, info.offset_data, info.offset_data + info.size
        if content[tar.offset :].strip(b"\0") or len(content) < tar.offset:
            raise ShardError("the tar is damaged: bytes follow its end, or it was cut short")


@functools.lru_cache(maxsize=64)
def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()
