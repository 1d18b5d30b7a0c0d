"""`tierline calibrate device`: what a GPU can do, measured once and used by `tierline run` from then on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli import render

if TYPE_CHECKING:
    from tierline.kernels.calibration import Calibration, Figure


def register(app: typer.Typer) -> None:
    calibrations = typer.Typer(help="Measure a device.", no_args_is_help=True)
    calibrations.command("device")(device)
    calibrations.callback()(_calibrate)
    app.add_typer(calibrations, name="calibrate", rich_help_panel="Sharing a GPU")


def _calibrate() -> None:
    """Measure a device: as in `tierline calibrate device`."""


def device(
    number: Annotated[
        int, typer.Option("--device", metavar="N", min=0, help="GPU by number, as the driver counts.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here. [default: the data folder]")
    ] = None,
    fake: Annotated[str, typer.Option("--fake", metavar="h200|a100|v100", help="Calibrate a simulated device.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Measure a device: memory, peak FLOPs and bandwidth, copy speed, and how much probe kernels slow each other down.
    With PyTorch installed all of it is measured; without it the peak FLOPs come from the data sheet, marked so.

    Example: `tierline calibrate device`, or without a GPU `tierline calibrate device --fake h200`
    """
    from tierline.kernels.calibrate import calibrate_fake, calibrate_gpu
    from tierline.kernels.calibration import path_of, write_calibration

    found = calibrate_fake(fake) if fake else calibrate_gpu(number)
    path = output or path_of(found.device, found.is_simulated)
    write_calibration(found, path)
    if as_json:
        import msgspec

        render.print_json(msgspec.to_builtins(found) | {"path": str(path)})
        return
    for line in lines(found):
        print(line)
    used = "" if output else "; `tierline run` uses it from now on"
    print(f"\nWritten to {path}{used}.")


def lines(found: Calibration) -> list[str]:
    """The record for a reader."""
    label = " (simulated device)" if found.is_simulated else ""
    rows = [
        f"{found.device}{label}: compute capability {found.compute_capability}, {found.sms} SMs, "
        f"{render.size(found.memory_bytes)} memory, {render.size(found.l2_bytes)} L2, driver {found.driver}",
        "",
    ]
    figures = [(f"peak {name}", _flops(figure), figure.source) for name, figure in found.flops.items()]
    figures += [
        (what, _rate(figure), figure.source)
        for what, figure in (
            ("memory bandwidth", found.bytes_per_s),
            ("host to device", found.host_to_device_bytes_per_s),
            ("device to host", found.device_to_host_bytes_per_s),
        )
    ]
    rows += render.plain_table(("FIGURE", "VALUE", "FROM"), figures, ("VALUE",)).splitlines()
    if not found.corun:
        return [*rows, "", "Co-run matrix: not measured (it needs PyTorch)."]
    probes = list(dict.fromkeys(cell.probe for cell in found.corun))
    cells = {(cell.probe, cell.beside): f"{cell.slowdown:.2f}x" for cell in found.corun}
    columns = ("SLOWED DOWN", *(f"BESIDE {probe}" for probe in probes))
    table = [[probe, *(cells.get((probe, other), "-") for other in probes)] for probe in probes]
    return [*rows, "", *render.plain_table(columns, table, columns[1:]).splitlines()]


def _flops(figure: Figure) -> str:
    return f"{figure.value / 1e12:.1f} TFLOP/s" if figure.value else "-"


def _rate(figure: Figure) -> str:
    return f"{figure.value / 1e9:.1f} GB/s" if figure.value else "-"
