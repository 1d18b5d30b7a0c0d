"""The environment in which a program runs under the interposer: what `tierline run` and the `local` backend set.

Names and meanings are listed in docs/concepts/kernel-manager.md. The native libraries lie beside this package::

    tierline/_lib/libtierline_interpose.so        preloaded into the program
    tierline/_lib/fake/libcuda.so.1, …            the fake driver: a simulated device where there is no GPU
    tierline/_lib/fake/fake-program               runs workload programs on it
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tierline.core.errors import InvalidInput, MissingNative, UnknownName
from tierline.policies.kernels import kernel_mode, kernel_policy, kernel_priority

LIB = Path(__file__).resolve().parent.parent / "_lib"
LABEL_BYTES = 63  # what the region holds of a client's label
FAKE_DEVICES = ("h200", "a100", "v100")
# For the program unless it sets them itself: Inductor's static launcher holds the GIL while it launches, so a launch that
# waits would hold all other Python threads; and hardware queues beyond the default 8, so that streams do not queue up.
_DEFAULTS = {"TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER": "0", "CUDA_DEVICE_MAX_CONNECTIONS": "32"}


def library_path() -> Path:
    """The preload library. Raises `MissingNative`."""
    path = LIB / "libtierline_interpose.so"
    if not path.is_file():
        raise MissingNative("the preload library libtierline_interpose.so")
    return path


def fake_folder() -> Path:
    """The folder of the fake driver's libraries. Raises `MissingNative`."""
    path = LIB / "fake"
    if not (path / "libcuda.so.1").is_file():
        raise MissingNative("the fake CUDA driver")
    return path


def kernel_environment(
    region: Path,
    policy: str,
    mode: str,
    priority: str,
    client: str,
    memory_bytes: int,
    *,
    profile: Path | None = None,
    device_spec: str = "",
    base: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """What to add to `base` so that a program runs under the interposer as `client` of the arbiter in the file `region`.

    `memory_bytes` 0 = no cap. `device_spec` is `sms:flops_per_s:bytes_per_s` ("" = the driver's attributes). A library that
    `base` preloads already stays preloaded, behind ours. Raises `MissingNative`, `UnknownName`, `InvalidInput`.
    """
    if memory_bytes < 0:
        raise InvalidInput(f"a memory cap of {memory_bytes} bytes: 0 (no cap) or more is allowed.")
    if not client or len(client.encode()) > LABEL_BYTES:
        raise InvalidInput(f"client name '{client}': 1 to {LABEL_BYTES} bytes are allowed.")
    library = str(library_path())
    if any(letter in library for letter in ": \t"):
        raise InvalidInput(f"'{library}' cannot be preloaded: LD_PRELOAD takes no path with a blank or a colon in it.")
    others = [entry for entry in base.get("LD_PRELOAD", "").replace(" ", ":").split(":") if entry and entry != library]
    env = {
        "LD_PRELOAD": ":".join([library, *others]),
        "TIERLINE_ARBITER": str(region),
        "TIERLINE_POLICY": kernel_policy(policy).name,
        "TIERLINE_MODE": kernel_mode(mode),
        "TIERLINE_PRIORITY": kernel_priority(priority),
        "TIERLINE_CLIENT": client,
    }
    if memory_bytes:
        env["TIERLINE_MEMORY"] = str(memory_bytes)
    if profile is not None:
        env["TIERLINE_PROFILE"] = str(profile)
    if device_spec:
        env["TIERLINE_DEVICE_SPEC"] = device_spec
    return env | {name: value for name, value in _DEFAULTS.items() if name not in base}


def fake_environment(device: str, shared: Path | None = None, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to add to `base` so that a program sees a simulated device instead of the machine's GPUs.

    `shared` is the file in which several processes find the same device; None = one of its own in each. Variables of the
    fake driver that `base` sets stay. Raises `MissingNative`, `UnknownName`.
    """
    if device not in FAKE_DEVICES:
        raise UnknownName("simulated device", device, FAKE_DEVICES)
    folder = str(fake_folder())
    libraries = [folder, *(path for path in base.get("LD_LIBRARY_PATH", "").split(":") if path)]
    programs = [*(path for path in base.get("PATH", os.defpath).split(":") if path), folder]  # for `fake-program`
    env = {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": ":".join(programs), "FAKECUDA_DEVICE": device}
    if shared is not None:
        env |= {"FAKECUDA_SHARED": str(shared)}
    return env | {name: value for name, value in {"FAKECUDA_CLOCK": "wall"}.items() if name not in base}
