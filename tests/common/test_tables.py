"""Tables: what pyarrow wrote is read as it is; what repeats a value without end is refused before it is decoded."""

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runkit.errors import UserError
from runkit.tables import check_table, open_table, read_table


def repeated(value, rows):
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [value])


def write(path, **columns):
    # A hostile file does not say that it has dictionaries.
    pq.write_table(pa.table(columns), path, store_schema=False, compression="zstd")
    return path


def test_tables_are_read_as_they_are(tmp_path):
    table = pa.table(
        {
            "key": [f"k{number % 7}" for number in range(100)],
            "label": pa.array([None, 1] * 50, pa.int32()),
            "codes": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(400, dtype=np.uint16)), 4),
            "words": [["a", "b"]] * 100,
            "image": [{"bytes": bytes([number]), "path": None} for number in range(100)],
        },
        metadata={"about": "it"},
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=30)
    expected = pq.read_table(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").equals(expected, check_metadata=True)
    assert read_table(tmp_path / "t.parquet", ["label"]).equals(expected.select(["label"]))
    group = open_table(tmp_path / "t.parquet", check_table(tmp_path / "t.parquet")).read_row_group(1)
    assert group.to_pylist() == expected.slice(30, 30).to_pylist()
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    assert read_table(tmp_path / "empty.parquet").num_rows == 0


CHILD = """
import resource, sys
from pathlib import Path
from runkit.tables import read_table

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        read_table(Path(name))
    except ValueError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_what_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path):
    big = np.random.default_rng(0).bytes(2**18)
    image = pa.StructArray.from_arrays([repeated(big, 50_000), repeated("x", 50_000)], ["bytes", "path"])
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, 50_001, 50, dtype=np.int32)), repeated("x" * 10_000, 50_000))
    bombs = {
        write(tmp_path / "bytes.parquet", image=repeated(big, 50_000)): "the table would become 13,107,200,000 bytes",
        write(tmp_path / "struct.parquet", image=image): "the table would become 13,107,250,000 bytes",
        write(tmp_path / "lists.parquet", words=lists): "the table would become 500,0",
        write(tmp_path / "rows.parquet", label=repeated("a", 3_000_000)): "3,000,000 rows in",
        write(tmp_path / "page.parquet", image=[bytes(270_000_000)]): "column image would become 270,",
    }
    assert all(path.stat().st_size < 400_000 for path in bombs)
    done = subprocess.run([sys.executable, "-c", CHILD, *bombs], capture_output=True, text=True, check=True)
    *messages, kilobytes = done.stdout.splitlines()
    for words, message in zip(bombs.values(), messages, strict=True):
        assert words in message
    assert int(kilobytes) < 100_000


def test_other_files_are_one_message(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"t\.parquet cannot be read"):
        read_table(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "nowhere.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(UserError, match="no regular file"):
        read_table(tmp_path / "pipe.parquet")


def test_any_damaged_byte_of_what_describes_the_columns_costs_one_message(tmp_path):
    table = pa.table({"image": [{"bytes": b"x" * 50, "path": "a"}] * 8, "words": [["a", "b"]] * 8})
    pq.write_table(table, tmp_path / "whole.parquet", row_group_size=4)
    # In a process of its own: pyarrow ends the process for some of them, where it is not asked with care.
    script = (
        "import pathlib, runkit.errors, runkit.tables\n"
        "data = pathlib.Path('whole.parquet').read_bytes()\n"
        "footer = int.from_bytes(data[-8:-4], 'little')\n"
        "counts = {}\n"
        "for place in range(len(data) - 8 - footer, len(data) - 8):\n"
        "    for flip in (0x10, 0x81):\n"
        "        path = pathlib.Path('damaged.parquet')\n"
        "        path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1:])\n"
        "        try:\n"
        "            runkit.tables.read_table(path)\n"
        "        except runkit.errors.UserError:\n"
        "            counts['refused'] = counts.get('refused', 0) + 1\n"
        "print(counts)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout
