"""`sweep.toml`: the options of `tierline sweep` as a file, with `[grid]`, `[random]` and `[env]` as tables."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tierline.core.errors import InvalidInput, NotFound, UnknownName

# Key -> what it must be. They are the long options with `_` for `-`.
TEXT: tuple[str, ...] = (
    "name", "gpus", "gpu_memory", "job_type", "metric", "progress", "kind", "user", "grace", "deadline",
    "optuna", "sampler", "storage", "study",
)  # fmt: skip
COUNT = ("trials", "seed", "steps", "priority", "restarts", "parallel")
NUMBER = ("chance", "target", "sm_util", "bw_util")
FLAG = ("hold", "no_preempt", "exclusive")
TEXTS = ("gpu_type", "after")
TABLES = ("grid", "random", "env")
KNOWN = ("command", *TEXT, *COUNT, *NUMBER, *FLAG, *TEXTS, *TABLES)


def read(path: Path) -> dict[str, Any]:
    """The checked content. Raises `InvalidInput` or `NotFound` with one sentence."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFound(f"the sweep file '{path}' does not exist.") from None
    except OSError as error:
        raise InvalidInput(f"the sweep file '{path}' cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the sweep file '{path}' is no TOML: {error}.") from None
    return {key: _checked(path, key, value) for key, value in content.items()}


def _checked(path: Path, key: str, value: Any) -> Any:
    def need(good: Callable[[Any], bool], what: str) -> Any:
        if not good(value):
            raise InvalidInput(f"'{key}' in '{path}' is {value!r}; {what} is needed.")
        return value

    if key == "command":
        if isinstance(value, str):
            return shlex.split(value)
        return need(_texts, "a text or a list of texts")
    if key == "gpus" and isinstance(value, int):
        return str(value)
    if key in TEXT:
        return need(lambda v: isinstance(v, str), "a text")
    if key in COUNT:
        return need(lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number")
    if key in NUMBER:
        return need(lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number")
    if key in FLAG:
        return need(lambda v: isinstance(v, bool), "true or false")
    if key in TEXTS:
        return [value] if isinstance(value, str) else need(_texts, "a text or a list of texts")
    if key == "env":
        need(lambda v: isinstance(v, dict) and _texts(list(v.values())), "a table of texts")
        return [f"{name}={text}" for name, text in value.items()]
    if key in TABLES:
        return need(
            lambda v: isinstance(v, dict) and all(isinstance(entry, str | list) for entry in v.values()),
            "a table of lists or of texts such as 'log:1e-4..1'",
        )
    raise UnknownName("sweep-file key", key, KNOWN)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
