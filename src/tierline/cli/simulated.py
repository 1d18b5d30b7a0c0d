"""What the `tierline simulate` commands share: lists of numbers, where results go, charts."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierline.cli import render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure


def numbers(option: str, text: str, example: str) -> tuple[float, ...]:
    """`2,4,8` -> each number once, in order. Raises `InvalidInput` for what is none, or below 0."""
    from tierline.core.errors import InvalidInput

    try:
        values = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        values = ()
    if not values or any(not 0.0 <= value < 1e6 for value in values):
        raise InvalidInput(f"{option} takes numbers from 0 up with commas between, as in {example}; got '{text}'.")
    return values


def check_folders(*names: str) -> None:
    """Before minutes of work: that files can be made there ("" and "-" are none). Raises `InvalidInput`."""
    from tierline.core.errors import InvalidInput

    for name in names:
        if name not in ("", "-") and not Path(name).absolute().parent.is_dir():
            raise InvalidInput(f"'{name}' cannot be written: its folder does not exist.")


def put_json(found: dict[str, Any], to: str) -> bool:
    """Results as `--json` asks for them; whether they went to the standard output, where nothing else belongs then."""
    if to == "-":
        render.print_json(found)
    elif to:
        Path(to).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return to == "-"


@contextlib.contextmanager
def chart(option: str, path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, written when it is drawn. Raises `MissingExtra` or `InvalidInput`."""
    from tierline.core.errors import InvalidInput, MissingExtra

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(option, "plot") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{option} '{path}' cannot be written: {error}.") from error
