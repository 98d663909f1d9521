"""Tables: whatever is damaged in a file, what is read is what was written, or an error."""

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_razor import parquet
from vla_razor.errors import UserError

TABLE = pa.table({"run": ["a", "b", None], "prior_x": [0.5, float("nan"), None], "step": [1, 2, 3]})


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    for name in ("a", "b"):
        parquet.write(tmp_path / name, TABLE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert repr(parquet.read(tmp_path / "a", "").to_pylist()) == repr(TABLE.to_pylist())
    pq.write_table(TABLE, tmp_path / "of others")
    assert parquet.read(tmp_path / "of others", "").num_rows == 3
    with pytest.raises(FileNotFoundError):
        parquet.read(tmp_path / "nowhere", "")


def test_damage_is_told_or_harmless(tmp_path: Path) -> None:
    """Every byte cut, and a bit of every byte flipped: arrow itself would take many of them for another table."""
    path, draw, said, unnoticed = tmp_path / "table.parquet", np.random.default_rng(0), list[str](), 0
    parquet.write(path, TABLE)
    whole = path.read_bytes()
    for at in range(len(whole)):
        flipped = bytes([whole[at] ^ 1 << int(draw.integers(8))])
        for content in (whole[:at], whole[:at] + flipped + whole[at + 1 :]):
            path.write_bytes(content)
            try:
                assert repr(parquet.read(path, "Copy it.").to_pylist()) == repr(TABLE.to_pylist())
            except UserError as found:
                said.append(str(found))
            with contextlib.suppress(Exception):  # what arrow does notice
                unnoticed += repr(pq.read_table(path).to_pylist()) != repr(TABLE.to_pylist())
    assert all(str(path) in message and message.endswith("Copy it.") for message in said)
    assert len(said) > len(whole) and unnoticed > 0
