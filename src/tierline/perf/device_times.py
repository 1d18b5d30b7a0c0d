"""The one way to stage times: `stage_times("h100:Qwen2.5-VL-7B")`, or the path of a profile."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tierline.core.errors import InvalidInput
from tierline.perf.model_shapes import SHAPES, shape_named
from tierline.perf.operator_tables import read_tables
from tierline.perf.serving_devices import device_named
from tierline.perf.serving_profile import ServingProfile, load_profile, parse_profile
from tierline.perf.stage_time import OperatorTimes
from tierline.perf.stage_time_linear import LinearTimes
from tierline.perf.stage_time_online import PartedTimes
from tierline.perf.table_profile import table_profile

TABLES = "tables:"


def stage_times(name: str, tables: Path | None = None, *, model: str = "", device: str = "") -> PartedTimes:
    """Times of what `profile_named` finds; `model` and `device` ("" = any) it has to be of. Raises `InvalidInput`."""
    profile = profile_named(name, tables)
    profile.check(model, device)
    return times_of(profile)


def times_of(profile: ServingProfile) -> PartedTimes:
    """Times of a profile, by operators or by coefficients."""
    return OperatorTimes(profile) if profile.linear is None else LinearTimes(profile)


def profile_named(name: str, tables: Path | None = None) -> ServingProfile:
    """The profile that `name` means.

    - `FILE.toml`: as `tierline calibrate serving` writes it
    - `DEVICE:MODEL`: from the tables in `tables` (a folder of aiconfigurator's, with h100_sxm and others in it) where given,
      else the profile in this package; MODEL may be a folder with a config.json where tables are given
    - `tables:FOLDER:DEVICE:MODEL`: the same with the folder in the name

    Raises `InvalidInput`, `MissingExtra`.
    """
    if name.endswith(".toml"):
        return load_profile(Path(name))
    if name.startswith(TABLES):
        folder, _, name = name.removeprefix(TABLES).partition(":")
        tables = Path(folder)
    device_name, colon, model = name.partition(":")
    if not colon or not model:
        raise InvalidInput(
            f"stage times '{name}': DEVICE:MODEL as in h100:Qwen2.5-VL-7B, or the path of a profile (.toml) is needed."
        )
    device = device_named(device_name.lower())
    shape = shape_named(model)
    if tables is not None:
        return table_profile(read_tables(tables / device.folder), device, shape)
    packaged = resources.files("tierline.perf") / "profiles" / packaged_name(device.name, shape.name)
    if packaged.is_file():
        return parse_profile(packaged.read_text(encoding="utf-8"), f"profile '{name}'")
    if shape.vision is not None and not device.encodes:
        raise InvalidInput(
            f"device '{device.name}' with model '{shape.name}': no encoder was measured on {device.name}, so a model with "
            "images cannot be timed; h100, h200 or l40s is allowed."
        )
    raise InvalidInput(
        f"device '{device.name}' with model '{model}': the package holds no profile of it; name a folder of operator tables "
        f"(tables:FOLDER:{name}), or one of {', '.join(sorted(SHAPES))}."
    )


def packaged_name(device: str, model: str) -> str:
    return f"{device}-{model.lower()}.toml"
