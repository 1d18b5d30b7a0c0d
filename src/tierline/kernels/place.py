"""Where the regions of this machine's devices lie, and who has them.

::

    RUNTIME/tierline/kernels/            mode 0700: $XDG_RUNTIME_DIR, else /dev/shm/tierline-UID
        device-0.region                  the arbiter of GPU 0; stays when its programs end, so that it can be reported
        device-0.users                   flock: shared while a program uses the region
        device-0.manager                 flock: held by the process that manages the device; its pid stands in it
        simulated-h200.region, …         the same on the fake driver; .device is the simulated device itself

The first user makes a new region, so that a report is about the programs that ran together last; who comes while it is in
use joins it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tierline.core.errors import InvalidInput, NotFound, Refused, StateUnusable
from tierline.kernels import native
from tierline.kernels.native import DeviceLimits
from tierline.kernels.region import SIMULATED
from tierline.policies.kernels import DEFAULT_MODE, DEFAULT_POLICY


def runtime_dir() -> Path:
    """The user's folder of regions, made with mode 0700. Raises `StateUnusable` when it is somebody else's."""
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    root = Path(xdg) / "tierline" if xdg else Path("/dev/shm") / f"tierline-{os.geteuid()}"
    folder = root / "kernels"
    try:
        for path in (root, folder):
            path.mkdir(mode=0o700, parents=path == folder, exist_ok=True)
            told = path.lstat()
            if not stat.S_ISDIR(told.st_mode) or told.st_uid != os.geteuid():
                raise StateUnusable(
                    f"The runtime folder '{path}' is not ours; set XDG_RUNTIME_DIR to a private folder."
                )
            if stat.S_IMODE(told.st_mode) & 0o077:
                path.chmod(0o700)
    except OSError as error:
        raise StateUnusable(
            f"The runtime folder '{folder}' cannot be used: {error.strerror or error}; "
            "set XDG_RUNTIME_DIR to a private folder."
        ) from None
    return folder


@dataclass(frozen=True, slots=True)
class DevicePlace:
    """The files of one device. `name` is `device-N`, or `simulated-NAME` on the fake driver."""

    folder: Path
    name: str

    @property
    def region(self) -> Path:
        return self.folder / f"{self.name}.region"

    @property
    def users(self) -> Path:
        return self.folder / f"{self.name}.users"

    @property
    def manager(self) -> Path:
        return self.folder / f"{self.name}.manager"

    @property
    def fake_device(self) -> Path:
        """The simulated device's own state, shared by its programs."""
        return self.folder / f"{self.name}.device"

    @property
    def is_simulated(self) -> bool:
        return self.name.startswith(SIMULATED)

    @property
    def title(self) -> str:
        """For messages: `device 0`, `simulated device h200`."""
        if self.is_simulated:
            return f"simulated device {self.name.removeprefix(SIMULATED)}"
        return self.name.replace("-", " ")


def place_of(device: int, fake: str = "") -> DevicePlace:
    """Of GPU `device`, or of the simulated device `fake`."""
    if device < 0:
        raise InvalidInput(f"--device {device}: 0 or more is allowed.")
    return DevicePlace(runtime_dir(), f"{SIMULATED}{fake}" if fake else f"device-{device}")


def find_region(name: str) -> Path:
    """A region by path, by name (`device-0`, `simulated-h200`, `h200`) or by the device's number. Raises `NotFound`."""
    path = Path(name)
    if path.is_file():
        return path
    folder = runtime_dir()
    for known in (name, f"device-{name}", f"{SIMULATED}{name}"):
        if "/" not in known and (folder / f"{known}.region").is_file():
            return folder / f"{known}.region"
    there = sorted(path.stem for path in folder.glob("*.region"))
    known_names = f"there are {', '.join(there)}" if there else "there is none yet: `tierline run` makes one"
    raise NotFound(f"no region '{name}'; {known_names}.")


def manager_pid(place: DevicePlace) -> int:
    """The process that manages the device; 0 when none does."""
    try:
        with open(place.manager, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(20) or b"0")
    except FileNotFoundError:
        pass
    return 0


@contextlib.contextmanager
def managing(place: DevicePlace) -> Iterator[None]:
    """Be the device's only manager for a while. Raises `Refused` with the other's pid."""
    file = open(place.manager, "a+b")  # noqa: SIM115  closed below, and kept open meanwhile
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read(20).decode() or "unknown"
            raise Refused(
                f"{place.title} is managed by process {pid} already; one manager a device is allowed: end that one first, or "
                f"join it with `tierline run -- CMD`."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


@contextlib.contextmanager
def in_use(place: DevicePlace) -> Iterator[None]:
    """Keep others from beginning the device's region anew for a while."""
    with open(place.users, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def take_region(
    place: DevicePlace, policy: str | None = None, mode: str | None = None, device: DeviceLimits | None = None
) -> int:
    """Make the device's region or join it, and return the descriptor that says it is in use: the lock lasts as long as any
    process has it open.

    `policy`, `mode` None = whatever the region in use has, else the defaults. Raises `Refused` when a region in use has
    another policy or mode, `StateUnusable` when there is no room for it, `MissingNative`.
    """
    descriptor = os.open(place.users, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(BlockingIOError):  # others use it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _make(place, policy or DEFAULT_POLICY, mode or DEFAULT_MODE, device)
        # Between this lock and the one above somebody may have come first; so what holds now is looked at.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _check_fits(place, policy, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make(place: DevicePlace, policy: str, mode: str, device: DeviceLimits | None) -> None:
    """Called while nobody uses the region."""
    for path in (place.fake_device, place.region):
        path.unlink(missing_ok=True)
    try:
        native.make_region(place.region, policy, mode, device)
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            told = os.statvfs(place.folder)
            free = told.f_bavail * told.f_frsize / 2**20
            raise StateUnusable(
                f"There is no room for a region in '{place.folder}' ({free:.1f} MiB free): make room there, or set "
                "XDG_RUNTIME_DIR to another private folder in memory."
            ) from None
        raise StateUnusable(f"{_sentence(error)}.") from None


def _check_fits(place: DevicePlace, policy: str | None, mode: str | None) -> None:
    try:
        region = native.open_region(place.region)
    except RuntimeError as error:
        raise Refused(f"{place.title} is in use, but not by this Tierline: {_sentence(error)}.") from None
    config = region.config()
    if (policy or config.policy, mode or config.mode) != (config.policy, config.mode):
        pid = manager_pid(place) or region.manager_pid
        asked = " and ".join(part for part in (policy and f"policy '{policy}'", mode and f"mode '{mode}'") if part)
        raise Refused(
            f"{place.title} is in use with policy '{config.policy}' and mode '{config.mode}' (process {pid} began it), not "
            f"{asked}: leave them out to join, or wait until its programs have ended."
        )


def _sentence(error: RuntimeError) -> str:
    return str(error).rstrip(".")
