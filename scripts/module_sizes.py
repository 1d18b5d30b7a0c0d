"""Lines per module of src/: the median, the largest, and those over 400, which must say why in their docstring."""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEDIAN_LIMIT = 150
SIZE_LIMIT = 400
# A docstring "says why" if it speaks of its own length or of being one piece.
REASON = re.compile(r"\b(long|lines|length|one (file|module|piece|place)|together)\b", re.IGNORECASE)


def sizes() -> list[tuple[int, Path]]:
    """(lines, path) of every module that has any, largest first."""
    modules = sorted((ROOT / "src").rglob("*.py"))
    counted = [(len(path.read_text().splitlines()), path.relative_to(ROOT)) for path in modules]
    return sorted((pair for pair in counted if pair[0] > 0), reverse=True)


def unexplained(modules: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Modules over the limit whose docstring gives no reason."""
    large = [(lines, path) for lines, path in modules if lines > SIZE_LIMIT]
    return [
        (lines, path)
        for lines, path in large
        if not REASON.search(ast.get_docstring(ast.parse((ROOT / path).read_text())) or "")
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when a limit is broken")
    options = parser.parse_args()
    modules = sizes()
    median = statistics.median(lines for lines, _ in modules)
    total = sum(lines for lines, _ in modules)
    largest = ", ".join(f"{path} {lines}" for lines, path in modules[:3])
    print(f"{len(modules)} modules, {total} lines, median {median:g} (limit {MEDIAN_LIMIT}); largest: {largest}")
    broken = unexplained(modules)
    for lines, path in broken:
        print(f"{path} has {lines} lines (over {SIZE_LIMIT}) and its docstring does not say why")
    return 1 if options.check and (broken or median > MEDIAN_LIMIT) else 0


if __name__ == "__main__":
    sys.exit(main())
