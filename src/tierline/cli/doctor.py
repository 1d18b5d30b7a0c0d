"""`tierline doctor`: what this machine has and lacks, and what to do about it. Looks only; always exits 0."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from typing import Annotated, Literal

import typer

from tierline.cli import render

Verdict = Literal["ok", "lacks", "note"]
MARK = {"ok": "[green]✔[/]", "lacks": "[yellow]✘[/]", "note": "[blue]•[/]"}
LOW_DISK_BYTES = 2 << 30
# Extra -> the module whose presence tells that it is installed.
EXTRAS = {
    "demo": "sklearn",
    "plot": "matplotlib",
    "optuna": "optuna",
    "tensorboard": "tensorboard",
    "transformers": "transformers",
    "lightning": "lightning",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """`hint` says what to do where something is lacking, else ""."""

    what: str
    verdict: Verdict
    detail: str
    hint: str = ""


def register(app: typer.Typer) -> None:
    app.command("doctor", rich_help_panel="Cluster")(doctor)


def python() -> Finding:
    from tierline import __version__

    return Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}, Tierline {__version__}")


def processors() -> Finding:
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    limited = "" if usable == present else f" of {present}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding("Processors", "ok", f"{usable}{limited} cores, {render.size(memory)} memory")


def gpus() -> Finding:
    hint = "Without GPUs Tierline schedules CPU slots: tierline up --slots N."
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # NVML has one exception class per code, and a missing library is one more
        return Finding("GPUs", "lacks", f"NVML finds none: {error}", hint)
    try:
        found: dict[str, int] = {}
        for i in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(i)
            name = (
                f"{pynvml.nvmlDeviceGetName(device)} {render.size(int(pynvml.nvmlDeviceGetMemoryInfo(device).total))}"
            )
            found[name] = found.get(name, 0) + 1
        driver = pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()
    if not found:
        return Finding("GPUs", "lacks", f"NVML works (driver {driver}), but there is no GPU", hint)
    return Finding("GPUs", "ok", ", ".join(f"{count} x {name}" for name, count in found.items()) + f", driver {driver}")


def cgroups() -> Finding:
    from tierline.backends.jobs import cgroup

    group = cgroup.create(f"doctor-{os.getpid()}")
    if group is None:
        return Finding(
            "cgroup v2",
            "lacks",
            "no group can be made here; a job is contained by its process group and the walk of its descendants",
            "To have one, run the daemon in a delegated scope: systemd-run --user --scope -p Delegate=yes tierline up.",
        )
    cgroup.remove(group)
    return Finding("cgroup v2", "ok", f"delegated: jobs get a group of their own below {group.parent.parent}")


def compilers() -> Finding:
    found = [name for name in ("g++", "clang++", "nvcc") if shutil.which(name)]
    if "g++" in found or "clang++" in found:
        return Finding("Compilers", "ok", ", ".join(found))
    return Finding(
        "Compilers", "note", "no C++ compiler", "Only building the kernel tier from source needs one: apt install g++."
    )


def native() -> Finding:
    from tierline.core.errors import MissingNative
    from tierline.kernels import environment
    from tierline.kernels.native import load

    try:
        version, library = load().REGION_VERSION, environment.library_path()
        fake = ", fake driver there" if (environment.LIB / "fake" / "libcuda.so.1").is_file() else ""
    except MissingNative as error:
        return Finding("Kernel tier", "lacks", str(error), "All but sharing one GPU (tierline run) works without it.")
    return Finding("Kernel tier", "ok", f"regions of version {version}, preload library {library}{fake}")


def cuda_driver() -> Finding:
    from tierline.kernels.examination import driver_version

    if version := driver_version():
        return Finding("CUDA driver", "ok", f"libcuda.so.1 {version}")
    return Finding(
        "CUDA driver", "note", "no libcuda.so.1", "tierline run --fake h200 shows sharing on a simulated device."
    )


def mps() -> Finding:
    from tierline.kernels import mps as service

    if (pipes := service.running()) is not None:
        return Finding("MPS", "ok", f"runs, pipes in {pipes}")
    if found := service.found():
        return Finding("MPS", "ok", f"{found}; tierline run --share starts it")
    hint = "It comes with NVIDIA's driver. Threads of one process share without it: tierline.kernels.client."
    return Finding("MPS", "note", f"no {service.CONTROL}: kernels of two processes take turns on a GPU", hint)


def nsight() -> Finding:
    from tierline.kernels.examination import ncu

    found, obstacle = ncu()
    if obstacle:
        hint = "Load the nvidia module with NVreg_RestrictProfilingToAdminUsers=0, or run ncu as root."
        return Finding("Nsight Compute", "note", f"{found or 'no ncu'}; {obstacle}", hint)
    if not found:
        return Finding(
            "Nsight Compute", "note", "no ncu", "Without it kernels are learnt while they run, which is enough."
        )
    return Finding("Nsight Compute", "ok", f"{found}; nothing is known to keep it from the counters")


def extras() -> Finding:
    have = [extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is not None]
    lack = [extra for extra in EXTRAS if extra not in have]
    if not lack:
        return Finding("Extras", "ok", ", ".join(have))
    detail = f"installed: {', '.join(have) or 'none'}; not installed: {', '.join(lack)}"
    return Finding("Extras", "note", detail, f"Install what you need: pip install 'tierline[{lack[0]}]'.")


def daemon() -> Finding:
    from tierline.cli.client import connect
    from tierline.core.errors import DaemonUnavailable, TierlineError

    try:
        with connect(timeout_s=3.0) as client:
            health = client.health()
            cluster = client.cluster()
    except DaemonUnavailable:
        return Finding("Daemon", "lacks", "none answers", "Start one: tierline up (--slots N without a GPU).")
    except TierlineError as error:
        return Finding("Daemon", "lacks", str(error), "Look at its log in the state folder.")
    detail = f"pid {health.pid}, version {health.version}, {len(cluster.devices)} devices, policy {health.policy}"
    return Finding("Daemon", "ok", f"{detail}, {cluster.live_jobs} live jobs")


def state() -> Finding:
    from tierline.config import StatePaths, state_dir
    from tierline.core.errors import TierlineError
    from tierline.runtime.store import EventTable

    paths = StatePaths(state_dir())
    if not paths.events.exists():
        return Finding("State", "note", f"{paths.root}: nothing recorded yet")
    try:
        table = EventTable(paths.events)
    except TierlineError as error:
        return Finding("State", "lacks", str(error), "Use the Tierline that wrote it, or set TIERLINE_HOME.")
    try:
        runs, (events, _) = table.runs(), table.last()
    finally:
        table.close()
    written = f", written by Tierline {runs[-1].version}" if runs else ""
    files = paths.root.glob(f"{paths.events.name}*")  # the table and its write-ahead log
    size = render.size(sum(file.stat().st_size for file in files))
    return Finding("State", "ok", f"{paths.root}: {events} events in {size}{written}")


def disk() -> Finding:
    from tierline.config import state_dir

    folder = next(parent for parent in (state_dir(), *state_dir().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding("Disk", "lacks", f"'{folder}' cannot be written", "Set TIERLINE_HOME to another folder.")
    if free < LOW_DISK_BYTES:
        return Finding("Disk", "lacks", f"{render.size(free)} free at {folder}", "Checkpoints and logs go there.")
    return Finding("Disk", "ok", f"{render.size(free)} free at {folder}")


CHECKS: tuple[Callable[[], Finding], ...] = (
    python, processors, gpus, cuda_driver, mps, nsight, compilers, native, cgroups, extras, daemon, state, disk,
)  # fmt: skip


def examine(check: Callable[[], Finding]) -> Finding:
    """A check that breaks is a finding as well: the doctor never fails."""
    try:
        return check()
    except Exception as error:
        return Finding(check.__name__.capitalize(), "lacks", f"could not be examined: {error!r}")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Tell what this machine has and lacks for Tierline, with a hint for everything that is lacking.

    Example: `tierline doctor`
    """
    findings = [examine(check) for check in CHECKS]
    if as_json:
        render.print_json({"findings": findings})
        return
    from rich.markup import escape

    console = render.console()
    for finding in findings:
        console.print(f"{MARK[finding.verdict]} [bold]{finding.what}[/]: {escape(finding.detail)}", soft_wrap=True)
        if finding.hint:
            console.print(f"  {escape(finding.hint)}", soft_wrap=True, style="dim")
