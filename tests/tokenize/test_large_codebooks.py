"""Shards of codebooks above 65,536 entries: uint32 columns, and uint16 beside them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeshards.format import GridSpec, ShardError, ShardSpec
from codeshards.format.parquet import parquet_bytes
from codeshards.format.tar import read_tar, tar_bytes

SIZES = st.sampled_from([1, 50, 1 << 16, (1 << 16) + 1, 1 << 18, 1 << 24])


def stored(size: int) -> str:
    return "uint32" if size > 65_536 else "uint16"


@given(image=SIZES, segmentation=SIZES, rows=st.integers(0, 5), seed=st.integers(0, 99))
def test_codes_survive_parquet_and_tar_in_the_type_of_their_codebook(
    image: int, segmentation: int, rows: int, seed: int
) -> None:
    spec = ShardSpec(
        image=GridSpec(height=4, width=4, codebook_size=image, fingerprint="f"),
        scales=(1, 2),
        conditions={"segmentation": GridSpec(height=2, width=3, codebook_size=segmentation, fingerprint="g")},
    )
    rng = np.random.default_rng(seed)
    codes_NHW = rng.integers(0, image, (rows, 4, 4))
    codes_NHW[:1, 0, 0] = image - 1
    scales = {side: rng.integers(0, image, (rows, side, side)) for side in (1, 2)}
    maps = {"segmentation": rng.integers(0, segmentation, (rows, 2, 3))}
    keys = [f"k{row}" for row in range(rows)]
    table = spec.rows_to_table(keys, np.zeros(rows), None, codes_NHW, scales, maps)
    for name in ("codes_zcurve", "scale_1", "scale_2"):
        assert str(table.schema.field(name).type.value_type) == stored(image)
    assert str(table.schema.field("cond_segmentation").type.value_type) == stored(segmentation)
    content = tar_bytes(table)
    assert read_tar(content).equals(table)
    assert tar_bytes(read_tar(content)) == content
    parquet = pq.read_table(pa.BufferReader(parquet_bytes(table)))
    assert ShardSpec.from_schema(parquet.schema) == spec
    assert parquet["codes_row_major"].to_pylist() == codes_NHW.reshape(rows, 16).tolist()
    assert parquet["cond_segmentation"].to_pylist() == maps["segmentation"].reshape(rows, 6).tolist()


def test_a_shard_of_uint32_has_half_the_rows() -> None:
    def most(size: int) -> int:
        spec = ShardSpec(image=GridSpec(height=16, width=16, codebook_size=size, fingerprint="f"))
        rows = 419_430 // (1 if size <= 65_536 else 2)
        spec.check_rows(rows)
        with pytest.raises(ShardError, match="Make smaller shards"):
            spec.check_rows(rows + 1)
        return rows

    assert most(65_536) == 2 * most(65_537)


def test_a_tar_with_codes_of_another_type_is_damaged() -> None:
    spec = ShardSpec(image=GridSpec(height=1, width=2, codebook_size=70_000, fingerprint="f"), orders=("row_major",))
    content = tar_bytes(spec.rows_to_table(["a"], [0], None, np.array([[[1, 69_999]]])))
    assert np.load(io.BytesIO(content[content.index(b"\x93NUMPY") :])).tolist() == [[1, 69_999]]
    with pytest.raises(ShardError, match="type and shape"):
        read_tar(content.replace(b"'<u4'", b"'<i4'"))
