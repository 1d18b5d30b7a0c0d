"""Hyperparameter spaces of `tierline sweep`: reading them, grids, random samples, commands filled in. Pure."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierline.core.errors import InvalidInput

Value = float | int | str | bool
MAX_TRIALS = 10_000
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RANGE = re.compile(r"(?:(log|int|logint):)?([^,]+?)\.\.([^,]+)")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these values."""

    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A number from `low` to `high`, both included; `log` draws its logarithm evenly."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


Space = Mapping[str, Choice | Range]


def value_of(text: str) -> Value:
    """A number or a truth value where the text is one, else the text.

    >>> [value_of(t) for t in ("32", "1e-4", "true", "relu", "007")]
    [32, 0.0001, True, 'relu', '007']
    """
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) and not re.fullmatch(r"[+-]?\d+", text):
        return float(text)
    return text


def text_of(value: Value) -> str:
    """How a value stands in a command."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def name_and_spec(option: str, text: str) -> tuple[str, str]:
    name, equals, spec = text.partition("=")
    if not equals or not _NAME.fullmatch(name) or not spec:
        raise InvalidInput(f"{option} '{text}' is no parameter: write NAME=…, as in {option} lr=0.1,0.01.")
    return name, spec


def choice(where: str, spec: str | Sequence[Value]) -> Choice:
    """`0.1,0.01` or a list of values."""
    given = [value_of(part.strip()) for part in spec.split(",")] if isinstance(spec, str) else list(spec)
    if not given or any(not isinstance(v, int | float | str | bool) or v == "" for v in given):
        raise InvalidInput(f"{where}: one or more numbers, texts or truth values are needed, as in 0.1,0.01.")
    if len({(type(v), v) for v in given}) < len(given):
        raise InvalidInput(f"{where}: the same value stands there twice.")
    return Choice(tuple(given))


def distribution(where: str, spec: str | Sequence[Value]) -> Choice | Range:
    """`LOW..HIGH`, `log:LOW..HIGH`, `int:LOW..HIGH`, `logint:LOW..HIGH`, or values to choose from."""
    match = _RANGE.fullmatch(spec) if isinstance(spec, str) else None
    if match is None:
        if isinstance(spec, str) and re.match(r"(log|int|logint):", spec):
            raise InvalidInput(f"{where}: '{spec}' is no range: write log:1e-4..1, int:1..8, 0..1 or a,b,c.")
        return choice(where, spec)
    kind = match[1] or ""
    try:
        low, high = float(match[2]), float(match[3])
    except ValueError:
        raise InvalidInput(f"{where}: '{spec}' is no range: both ends must be numbers, as in log:1e-4..1.") from None
    integer, log = "int" in kind, "log" in kind
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidInput(f"{where}: '{spec}' is no range: the lower end stands first, and both are finite.")
    if log and low <= 0:
        raise InvalidInput(f"{where}: '{spec}': a logarithmic range lies above 0.")
    if integer and (low != int(low) or high != int(high)):
        raise InvalidInput(f"{where}: '{spec}': an integer range has integer ends.")
    return Range(low, high, log, integer)


def grid(space: Mapping[str, Choice]) -> list[dict[str, Value]]:
    """Every combination; the last parameter changes fastest."""
    count = math.prod(len(values.values) for values in space.values())
    if count > MAX_TRIALS:
        raise InvalidInput(f"the grid has {count} combinations; at most {MAX_TRIALS} are allowed.")
    combinations = itertools.product(*(values.values for values in space.values()))
    return [dict(zip(space, combination, strict=True)) for combination in combinations]


def sample(space: Space, trials: int, seed: int) -> list[dict[str, Value]]:
    """`trials` independent draws. Floats are rounded to six digits, so that the command shows what was meant."""
    rng = random.Random(seed)
    return [{name: _draw(kind, rng) for name, kind in space.items()} for _ in range(trials)]


def _draw(kind: Choice | Range, rng: random.Random) -> Value:
    if isinstance(kind, Choice):
        return rng.choice(kind.values)
    if kind.integer and not kind.log:
        return rng.randint(int(kind.low), int(kind.high))
    low, high = (math.log(kind.low), math.log(kind.high)) if kind.log else (kind.low, kind.high)
    drawn = rng.uniform(low, high)
    number = min(max(math.exp(drawn) if kind.log else drawn, kind.low), kind.high)
    return round(number) if kind.integer else float(f"{number:.6g}")


def placeholders(template: Sequence[str]) -> set[str]:
    return {match[1] for word in template for match in _PLACEHOLDER.finditer(word) if match[1]}


def check_template(template: Sequence[str], names: Sequence[str]) -> None:
    """Every placeholder has a parameter and every parameter a placeholder; else a trial would not be what it says."""
    used = placeholders(template)
    if missing := sorted(used - set(names)):
        known = ", ".join(names) or "none"
        raise InvalidInput(f"the command has {{{missing[0]}}}, but there is no such parameter (known: {known}).")
    if unused := [name for name in names if name not in used]:
        raise InvalidInput(
            f"the parameter '{unused[0]}' stands nowhere in the command: write {{{unused[0]}}} where it belongs."
        )


def fill(template: Sequence[str], values: Mapping[str, Value]) -> tuple[str, ...]:
    """The command of one trial. `{{` and `}}` stand for braces.

    >>> fill(["train.py", "--lr={lr}", '{"a": 1}'], {"lr": 0.1})
    ('train.py', '--lr=0.1', '{"a": 1}')
    """

    def replaced(match: re.Match[str]) -> str:
        return text_of(values[match[1]]) if match[1] else match[0][0]

    return tuple(_PLACEHOLDER.sub(replaced, word) for word in template)
