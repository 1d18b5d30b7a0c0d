"""Freezes the fake device's ground truth, or checks that it is as frozen.

The truth is every source of the engine: device physics, device specs, kernels, workload programs and the twelve pairs.
``FROZEN`` holds one SHA-256 a file and one over all of them; results on the simulated device quote the last one.

    python native/fake/freeze.py            # writes FROZEN (once, before policies are compared)
    python native/fake/freeze.py --check    # exit code 1 and the changed files when the truth differs
"""

import hashlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def lines(folder: Path) -> list[str]:
    """One ``sha256  path`` line a source of ``folder``/engine, sorted by path, then one for all of them together."""
    engine = folder / "engine"
    files = sorted(
        (path for part in ("include", "src") for path in (engine / part).rglob("*") if path.suffix in {".hpp", ".cpp"}),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    each = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files]
    total = hashlib.sha256("\n".join(each).encode()).hexdigest()
    return [*each, f"{total}  all"]


def _by_path(rows: list[str]) -> dict[str, str]:
    return {path: digest for digest, path in (row.split("  ", 1) for row in rows)}


def changes(folder: Path) -> list[str]:
    """Paths (and ``all``) whose hash differs from ``folder``/FROZEN, files added and removed included."""
    frozen = _by_path((folder / "FROZEN").read_text().splitlines())
    now = _by_path(lines(folder))
    return sorted(path for path in frozen.keys() | now.keys() if frozen.get(path) != now.get(path))


def main(arguments: list[str]) -> int:
    """Writes FROZEN, or with ``--check`` compares; gives the exit code."""
    if arguments == ["--check"]:
        changed = changes(FOLDER)
        for path in changed:
            print(f"not as frozen: {path}")
        return 1 if changed else 0
    if arguments:
        print(f"arguments were {arguments}; allowed are none, or --check", file=sys.stderr)
        return 2
    (FOLDER / "FROZEN").write_text("\n".join(lines(FOLDER)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
