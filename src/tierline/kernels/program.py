"""A program that shares a device, as a user declares it: on the command line, or as a TOML file for `tierline run --share`.

::

    argv = ["python", "serve.py"]     # needed
    name = "serve"                    # default: the file's name
    priority = "high"                 # or "best-effort", the default
    memory = "40GiB"                  # cap on device memory; default: none
    profile = "serve.csv"             # kernel profiles, relative to the file
    cwd = "."                         # relative to the file; default: where tierline runs
    [env]
    MODEL = "small"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierline.core.errors import InvalidInput, NotFound
from tierline.kernels.environment import LABEL_BYTES
from tierline.policies.kernels import DEFAULT_PRIORITY, KernelPriority, kernel_priority

KEYS = ("argv", "name", "priority", "memory", "profile", "cwd", "env")
MAX_BYTES = 1 << 50
_RUNNERS = ("python", "fake-program")  # what they run says more than their own name
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Program:
    """`memory_bytes` 0 = no cap, `cwd` None = where tierline runs."""

    argv: tuple[str, ...]
    name: str
    priority: KernelPriority = DEFAULT_PRIORITY
    memory_bytes: int = 0
    profile: Path | None = None
    cwd: Path | None = None
    env: tuple[tuple[str, str], ...] = ()


def memory_bytes(text: str, what: str = "--memory") -> int:
    """Bytes of `8GiB`, `8G`, `512MiB`, `1000`; the units are binary. "" = 0, no cap.

    >>> memory_bytes("1.5GiB")
    1610612736
    """
    if not text:
        return 0
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidInput(f"{what} '{text}' is no size: a number with K, M, G or T is needed, as in 8GiB.")
    count = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if not 0 < count <= MAX_BYTES:
        raise InvalidInput(f"{what} '{text}': more than nothing and less than 1024T is allowed.")
    return count


def client_name(name: str, argv: Sequence[str]) -> str:
    """`name`, or else what the command is called: `train.py` of `python train.py`, `bert-server` of
    `fake-program bert-server`. Raises `InvalidInput`."""
    if not name:
        words = [Path(word).name for word in argv if not word.startswith("-")] or ["program"]
        name = words[1] if len(words) > 1 and words[0].startswith(_RUNNERS) else words[0]
        return name.encode()[:LABEL_BYTES].decode(errors="ignore")
    if len(name.encode()) > LABEL_BYTES or not name.isprintable():
        raise InvalidInput(f"name '{name}': up to {LABEL_BYTES} printable bytes are allowed.")
    return name


def check_profile(path: Path | None) -> Path | None:
    """The file's absolute path, once its rows were read: the interposer could only log what is wrong in it."""
    if path is None:
        return None
    from tierline.kernels.foreign_profiles import kind_of
    from tierline.kernels.profile import parse_profiles, read_text

    text = read_text(path)
    if (kind := kind_of(text)) != "tierline":
        raise InvalidInput(
            f"profile file '{path}' is one of {'Orion' if kind == 'orion' else 'Nsight Compute'}: convert it with "
            f"`tierline kernels profile {path} -o FILE.csv`."
        )
    parse_profiles(text, str(path))
    return path.absolute()


def read_program(path: Path) -> Program:
    """Raises `NotFound`, `InvalidInput`, `UnknownName`."""
    try:
        with open(path, "rb") as file:
            record = tomllib.load(file)
    except FileNotFoundError:
        raise NotFound(f"there is no program file '{path}'.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"program file '{path}' cannot be read: {error}.") from None
    for key in record:
        if key not in KEYS:
            raise InvalidInput(f"program file '{path}': unknown key '{key}'; allowed are {', '.join(KEYS)}.")
    argv = record.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) and word for word in argv):
        raise InvalidInput(f'program file \'{path}\': argv = ["COMMAND", "ARGUMENT", …] is needed.')
    texts = {key: _text(record, key, path) for key in ("name", "priority", "memory", "profile", "cwd")}
    folder = path.absolute().parent
    cwd = folder / texts["cwd"] if texts["cwd"] else None
    if cwd is not None and not cwd.is_dir():
        raise NotFound(f"program file '{path}': cwd '{cwd}' is no folder.")
    return Program(
        tuple(argv),
        client_name(texts["name"] or path.stem, argv),
        kernel_priority(texts["priority"] or DEFAULT_PRIORITY),
        memory_bytes(texts["memory"], f"{path}: memory"),
        check_profile(folder / texts["profile"] if texts["profile"] else None),
        cwd,
        _env(record.get("env", {}), path),
    )


def _text(record: Mapping[str, Any], key: str, path: Path) -> str:
    value = record.get(key, "")
    if isinstance(value, int) and not isinstance(value, bool) and key == "memory":
        return str(value)
    if not isinstance(value, str):
        raise InvalidInput(f"program file '{path}': {key} = {value!r}, but a text is needed.")
    return value


def _env(value: object, path: Path) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidInput(f"program file '{path}': [env] holds texts, as in NAME = \"value\".")
    return tuple(value.items())
