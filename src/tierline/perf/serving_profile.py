"""A serving profile: how long one device takes for the stages of one model, and what follows from that. A TOML file.

Made by `tierline calibrate serving MODEL` on a machine, or from measured operator tables (`perf/stage_operators.py`).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import msgspec

from tierline.core.errors import InvalidInput, NotFound
from tierline.core.stage_times import PATCHES_PER_TOKEN
from tierline.perf.curves_of_time import Knots
from tierline.perf.device_sharing import Overlap

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Overhead:
    """What an iteration takes beside its operators: scheduling, input preparation, sampling, launches. Seconds: of each
    iteration, of each sequence in it, of each batch of the encoder."""

    iteration_s: float = 0.0
    sequence_s: float = 0.0
    encode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """Between two instances."""

    setup_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Preparation:
    """An image on the CPU: decode, resize, normalise."""

    image_s: float = 0.0
    patch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one device. `kv_tokens`: positions that fit beside the weights."""

    weights_bytes: int
    kv_tokens: int
    kv_token_bytes: int
    embedding_token_bytes: int


@dataclass(frozen=True, slots=True)
class Generation:
    """Attention of so many decoding sequences, over the mean of the tokens before each."""

    sequences: int
    context: Knots


@dataclass(frozen=True, slots=True)
class EncoderOperators:
    """`matrices` over the patches of a batch; `attention` over the patches of one image, without `launch_s`, which a batch
    pays once; `windows` over the windows of a batch, of `window_patches` each (none: 0)."""

    matrices: Knots
    attention: Knots
    launch_s: float
    window_patches: int = 0
    windows: Knots | None = None


@dataclass(frozen=True, slots=True)
class Operators:
    """Seconds of all layers together. `matrices` over the tokens of an iteration, memory-bound kernels included; `head`, the
    output layer, over the sequences; `context` over pairs of (new token, token before it or itself), without `launch_s`,
    which an iteration pays once. `group`: query heads that share a KV head."""

    matrices: Knots
    head: Knots
    context: Knots
    launch_s: float
    group: int
    generation: tuple[Generation, ...]
    encoder: EncoderOperators | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """Coefficients in seconds: of an iteration, of each token, of each token beyond `knee_tokens`, of each pair of
    (new token, token before it or itself) in prompts, of each sequence, of each token before a decoding sequence, and, more
    than of another iteration, of one that has prompts. The encoder's: of a batch, of a patch, of a pair of patches of one
    image."""

    iteration_s: float
    token_s: float
    token_beyond_s: float
    knee_tokens: int
    pair_s: float
    sequence_s: float
    context_s: float
    prompts_s: float = 0.0
    encode_s: float = 0.0
    patch_s: float = 0.0
    patch_pair_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Advice:
    """What follows for a scheduler. `tipping_tokens`: of an iteration, where it turns from memory-bound to compute-bound.
    `decode_tpot_s` and `decode_kv_share`: decode wants more instances beyond these. `encode_share`, `prefill_share`,
    `decode_share`: of an instance's time under the mix that `mix` names, the initial split of instances."""

    tipping_tokens: int
    decode_tpot_s: float
    decode_kv_share: float
    encode_share: float
    prefill_share: float
    decode_share: float
    mix: str


@dataclass(frozen=True, slots=True)
class Fit:
    """How far predictions are from what they were fitted to: relative, median and 95th percentile of the absolute error over
    `points` iterations (`encode_…` images) that the fit did not see, or of the tables where these were thinned."""

    points: int
    median: float
    p95: float
    encode_points: int = 0
    encode_median: float = 0.0
    encode_p95: float = 0.0


@dataclass(frozen=True, slots=True)
class ServingProfile:
    """`operators` or `linear`, one of them. `patches_per_token`: of an image, as the model merges them. `overlap`: None = an
    H100's."""

    format: int
    device: str
    model: str
    source: str
    licence: str
    memory: Memory
    transfer: Transfer
    preparation: Preparation
    overhead: Overhead
    advice: Advice
    fit: Fit
    operators: Operators | None = None
    linear: Linear | None = None
    patches_per_token: int = PATCHES_PER_TOKEN
    overlap: Overlap | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` where it cannot be."""
        if (self.operators is None) == (self.linear is None):
            raise ValueError("a profile has either [operators] or [linear]")
        if self.memory.kv_tokens < 1 or self.memory.kv_token_bytes < 1:
            raise ValueError("[memory] kv_tokens and kv_token_bytes have to be 1 or more")
        if self.patches_per_token < 1:
            raise ValueError("patches_per_token has to be 1 or more")
        if self.overlap is not None and self.overlap.ridge_tokens <= 0:
            raise ValueError("[overlap] ridge_tokens has to be above 0")
        if self.transfer.bytes_per_s <= 0:
            raise ValueError("[transfer] bytes_per_s has to be above 0")
        if self.operators is not None and not self.operators.generation:
            raise ValueError("[operators] lacks generation")
        _check_seconds(self, "")

    @property
    def encodes(self) -> bool:
        """Whether it knows of an encoder."""
        if self.operators is not None:
            return self.operators.encoder is not None
        return self.linear is not None and self.linear.patch_s > 0

    def check(self, model: str = "", device: str = "") -> None:
        """Raises `InvalidInput` where it is of another model or device ("" = any). Names of models count as equal without
        their publisher and `-Instruct`; a device's short name, as h100, stands for those whose full name has it."""
        if model and plain_name(self.model) != plain_name(model):
            raise InvalidInput(f"the profile is of model '{self.model}', and model '{model}' is used.")
        if device and self.device.lower() not in device.lower():
            raise InvalidInput(f"the profile is of device '{self.device}', and device '{device}' is used.")


def _check_seconds(part: object, path: str) -> None:
    """No time, share or rate is negative or no number."""
    for each in fields(part) if is_dataclass(part) else ():
        value = getattr(part, each.name)
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            raise ValueError(f"{path}{each.name} is {value}; 0 or more is allowed")
        _check_seconds(value, f"{path}{each.name}.")


def plain_name(model: str) -> str:
    """A model's name without what does not change its shape.

    >>> plain_name("Qwen/Qwen2.5-VL-7B-Instruct")
    'qwen2.5-vl-7b'
    """
    return model.rsplit("/", 1)[-1].lower().removesuffix("-instruct").removesuffix("-hf")


def model_label(model: str) -> str:
    """What a profile calls a model: its id, or the name of its folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def load_profile(path: Path) -> ServingProfile:
    """Raises `NotFound` or `InvalidInput`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"profile {path}: there is no such file; `tierline calibrate serving MODEL` writes one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"profile {path} cannot be read ({error}).") from error
    return parse_profile(text, f"profile {path}")


def parse_profile(text: str, name: str) -> ServingProfile:
    """Raises `InvalidInput`, which begins with `name`."""
    try:
        found = tomllib.loads(text)
        if found.get("format") != FORMAT:
            given = found.get("format", "none")
            raise InvalidInput(f"{name}: format {given} is given, and {FORMAT} is known; calibrate anew.")
        return msgspec.convert(found, ServingProfile, strict=False)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise InvalidInput(f"{name} is no serving profile ({str(error).rstrip('.')}).") from error


def save_profile(profile: ServingProfile, path: Path) -> None:
    """Write it whole or not at all. Raises `InvalidInput`."""
    text = format_profile(profile)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise InvalidInput(f"profile {path} cannot be written ({error.strerror}).") from error


def format_profile(profile: ServingProfile) -> str:
    """As TOML that `parse_profile` reads back to the same, numbers to nine digits."""
    lines: list[str] = []
    _table(lines, "", msgspec.to_builtins(profile))
    return "\n".join(lines).strip() + "\n"


def _table(lines: list[str], name: str, content: dict[str, Any]) -> None:
    parts: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, dict) or (isinstance(value, list | tuple) and value and isinstance(value[0], dict)):
            parts.append((key, value))
        elif value is not None:
            lines.append(f"{key} = {_value(value)}")
    for key, value in parts:
        path = f"{name}.{key}" if name else key
        for each in [value] if isinstance(value, dict) else value:
            lines += ["", f"[{path}]" if isinstance(value, dict) else f"[[{path}]]"]
            _table(lines, path, each)


def _value(value: object) -> str:
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()  # TOML's basic strings are written as JSON's
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.9g}"
    return str(value)
