"""CSV files of public traces -> columns, with one clear sentence for whatever is wrong in them."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.workloads.serving.columns import Floats, Integers

_ZONE = re.compile(r"(Z|\+00:?00)$")


def stamp(path: str | Path) -> tuple[int, int]:
    """What changes when a file does: for caches of what was read from it."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be read: {error.strerror}.") from error
    return found.st_mtime_ns, found.st_size


def read_text(path: str) -> str:
    """A file, unpacked where its name ends in .gz."""
    try:
        raw = Path(path).read_bytes()
        return (gzip.decompress(raw) if path.endswith(".gz") else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InvalidInput(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}.") from error


class Table:
    """The named columns of a CSV file with a header. Raises InvalidInput when one is missing or there are no rows."""

    def __init__(self, path: str, needed: Sequence[str]) -> None:
        lines = read_text(path).splitlines()
        if not lines:
            raise InvalidInput(f"'{path}' is empty; a header with {', '.join(needed)} is needed.")
        header = [name.strip() for name in next(csv.reader(lines[:1]))]
        missing = [name for name in needed if name not in header]
        if missing:
            raise InvalidInput(
                f"'{path}' has no column {' and no column '.join(missing)}; its columns are {', '.join(header)}."
            )
        rows = [row for row in csv.reader(lines[1:]) if row]
        if not rows:
            raise InvalidInput(f"'{path}' has a header, but no rows.")
        places = {name: header.index(name) for name in needed}
        last = max(places.values())
        for number, row in enumerate(rows, start=2):
            if len(row) <= last:
                raise InvalidInput(f"'{path}', row {number}: {len(row)} values, but the header names {len(header)}.")
        self.path = path
        self._cells = {name: [row[place].strip() for row in rows] for name, place in places.items()}

    def texts(self, name: str) -> list[str]:
        return self._cells[name]

    def whole(self, name: str) -> Integers:
        """Whole numbers from 0."""
        cells = self._cells[name]
        try:
            found = np.array([int(cell) for cell in cells], np.int64)
        except (ValueError, OverflowError):
            row = next(i for i, cell in enumerate(cells) if not cell.isdecimal())
            raise InvalidInput(
                f"'{self.path}', row {row + 2}: {name} is '{cells[row]}', but a whole number is needed."
            ) from None
        if int(found.min()) < 0:
            row = int(np.argmax(found < 0))
            raise InvalidInput(f"'{self.path}', row {row + 2}: {name} is {cells[row]}, but must not be below 0.")
        return found

    def seconds(self, name: str) -> Floats:
        """Times as plain seconds, from the first on. Raises InvalidInput when they are not in order."""
        cells = self._cells[name]
        try:
            found = np.array([float(cell) for cell in cells], np.float64)
        except ValueError:
            found = np.array([np.nan])
        if not np.isfinite(found).all():
            row = next((i for i, cell in enumerate(cells) if not _is_number(cell)), 0)
            raise InvalidInput(f"'{self.path}', row {row + 2}: {name} is '{cells[row]}', but seconds are needed.")
        return in_order(found - found[0], self.path, name)

    def dates(self, name: str) -> Floats:
        """Dates such as 2023-11-16 18:15:46.6805900 or 2024-10-15T12:00:00.269Z, as seconds from the first on."""
        cells = [_ZONE.sub("", cell) for cell in self._cells[name]]
        try:
            found = np.array(cells, "datetime64[ns]")
        except ValueError:
            row = next(i for i, cell in enumerate(cells) if not _is_date(cell))
            raise InvalidInput(
                f"'{self.path}', row {row + 2}: {name} is '{cells[row]}', but a date such as "
                "2023-11-16 18:15:46.680 is needed."
            ) from None
        return in_order((found - found[0]).astype(np.int64) / 1e9, self.path, name)


def in_order(times_s: Floats, path: str, name: str) -> Floats:
    """`times_s` as they are; raises InvalidInput when one lies before the one ahead of it."""
    early = np.flatnonzero(np.diff(times_s) < 0.0)
    if len(early):
        raise InvalidInput(f"'{path}' is not sorted by {name}: request {int(early[0]) + 2} lies before the one ahead.")
    return times_s


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def _is_date(cell: str) -> bool:
    try:
        np.datetime64(cell, "ns")
    except ValueError:
        return False
    return True
