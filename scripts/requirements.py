"""requirements.txt mirrors pyproject.toml: `--write` makes it, `--check` (the default) exits 1 where they differ."""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = (
    "# Mirrors pyproject.toml; made by `python scripts/requirements.py --write`, compared by scripts/check.\n"
    "# Extras are listed as comments: install them with `pip install '.[NAME]'`.\n"
)


def mirrored() -> str:
    """The text that requirements.txt shall have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"# Python {project['requires-python']}", *project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        lines.append(f"# extra {extra}")
        lines.extend(f"#   {requirement}" for requirement in requirements)
    return HEADER + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write requirements.txt")
    parser.add_argument("--check", action="store_true", help="compare only (the default)")
    options = parser.parse_args()
    path = ROOT / "requirements.txt"
    if options.write:
        path.write_text(mirrored())
        return 0
    if not path.exists() or path.read_text() != mirrored():
        print("requirements.txt does not mirror pyproject.toml; run: python scripts/requirements.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
