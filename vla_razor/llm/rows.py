"""Reading rows of published data: from files, with the place of every mistake, or from the Hugging Face Hub."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vla_razor.errors import RunFailed, UserError


class Row(NamedTuple):
    """A row and where it stands, for messages."""

    where: str
    content: Any

    def get(self, *path: str | int) -> Any:
        """What stands at `path` below the row. Raises UserError, naming row and field, where nothing does."""
        value = self.content
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                name = ".".join(map(str, path))
                has = f"It has {', '.join(map(str, self.content))}." if self.content else "It is empty."
                raise UserError(f"{self.where}: no field {name!r}. {has}") from None
        return value

    def text(self, *path: str | int) -> str:
        """The text at `path`, without the spaces around it. Raises UserError where it is none, or empty."""
        value = self.get(*path)
        if not isinstance(value, str) or not value.strip():
            name = ".".join(map(str, path))
            raise UserError(f"{self.where}: field {name!r} is {value!r}, expected a text that is not empty.")
        return value.strip()

    def has(self, *path: str | int) -> bool:
        """Whether something stands at `path`."""
        try:
            self.get(*path)
        except UserError:
            return False
        return True


def from_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file. Raises UserError where the file is missing or a line is no object."""
    for number, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            yield _object(_parse(line, f"{path}, line {number}"), f"{path}, line {number}")


def from_array(path: Path) -> Iterator[Row]:
    """The objects of a JSON file that holds one array. Raises UserError where it does not."""
    content = _parse(_read(path), str(path))
    if not isinstance(content, list):
        raise UserError(f"{path}: expected an array of objects, found {type(content).__name__}.")
    for number, item in enumerate(content, 1):
        yield _object(item, f"{path}, entry {number}")


def from_hub(repository: str, split: str, file: str | None = None) -> Iterator[Row]:
    """The rows of a data set on the Hugging Face Hub. Raises RunFailed where it cannot be had."""
    from datasets import load_dataset

    try:
        rows = load_dataset(repository, data_files=file, split=split)
    except Exception as error:  # the Hub's client, datasets and the network each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "Without a connection give data_dir=DIR, a folder of local files."
        raise RunFailed(f"the data set {repository} could not be loaded: {reason}. {remedy}") from error
    for number, row in enumerate(rows, 1):
        yield _object(row, f"{repository}, {split} row {number}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Expected a file of the data set there.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is no UTF-8 text; the file is damaged, or is something else."
        ) from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}). The file may be cut off: fetch it again.") from None


def _object(content: Any, where: str) -> Row:
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: expected an object, found {type(content).__name__}.")
    return Row(where, content)
