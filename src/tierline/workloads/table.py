"""Reading trace tables: CSV files, plain or gzipped, with columns that must be there."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

from tierline.core.errors import InvalidInput


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The named columns of every row, as text. Raises InvalidInput when the file is no such table."""
    try:
        with path.open("rb") as raw, io.TextIOWrapper(gzip.open(raw) if path.suffix == ".gz" else raw, "utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            missing = [name for name in columns if name not in header]
            if missing:
                raise InvalidInput(f"{path.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}.")
            places = [header.index(name) for name in columns]
            return [tuple(row[place] for place in places) for row in reader if row]
    except (OSError, EOFError, UnicodeDecodeError, IndexError, csv.Error) as error:
        raise InvalidInput(f"{path.name} is no readable CSV table: {error}.") from error


def numbers(path: Path, name: str, column: list[str]) -> list[float]:
    """Raises InvalidInput that names the column when a value is not a number."""
    try:
        return [float(value) for value in column]
    except ValueError as error:
        raise InvalidInput(f"{path.name}, column {name}: {error}.") from error
