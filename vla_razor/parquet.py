"""Tables as parquet files that tell of their own damage: a checksum of what they hold is in their metadata."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vla_razor.errors import UserError
from vla_razor.files import atomic_write

CHECKSUM = b"sha256"


def write(path: Path, table: pa.Table) -> None:
    """`atomic_write` of a table. The same content gives the same bytes."""
    marked = table.replace_schema_metadata({**(table.schema.metadata or {}), CHECKSUM: _checksum(table)})
    atomic_write(path, lambda file: pq.write_table(marked, file))


def read(path: Path, remedy: str) -> pa.Table:
    """What `write` wrote, or another program, whose tables have no checksum. Raises UserError, which ends with the
    remedy, where it is damaged, FileNotFoundError where there is none.
    """
    try:
        table = pq.read_table(path)
        known = (table.schema.metadata or {}).get(CHECKSUM)
        damaged = known is not None and known != _checksum(table)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # arrow's words for a file that is cut or overwritten
        raise UserError(
            f"{path} cannot be read as a table: {str(error).splitlines()[0].rstrip('.')}. {remedy}"
        ) from error
    if damaged:
        raise UserError(f"{path} is damaged: its rows are not those whose checksum it holds. {remedy}")
    return table


def _checksum(table: pa.Table) -> bytes:
    """Of names, types and values; those of a number are the digits that make it out."""
    content = [[(field.name, str(field.type)) for field in table.schema], table.to_pylist()]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest().encode()
