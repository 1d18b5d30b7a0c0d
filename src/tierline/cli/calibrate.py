"""`tierline calibrate`: what a GPU can do, used by `tierline run` from then on; and what a served model takes here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli import render

if TYPE_CHECKING:
    from tierline.kernels.calibration import Calibration, Figure
    from tierline.perf.serving_profile import ServingProfile


def register(app: typer.Typer) -> None:
    calibrations = typer.Typer(help="Measure a device, or a served model on it.", no_args_is_help=True)
    calibrations.command("device")(device)
    calibrations.command("serving")(serving)
    calibrations.callback()(_calibrate)
    app.add_typer(calibrations, name="calibrate", rich_help_panel="Sharing a GPU")


def _calibrate() -> None:
    """Measure a device (`tierline calibrate device`), or a served model on it (`tierline calibrate serving MODEL`)."""


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


def serving(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="tiny-vlm (in the package), a folder, or a Hugging Face id.")
    ] = "tiny-vlm",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here. [default: MODEL.toml]")
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="auto (bf16), bf16, fp16 or fp32.")] = "auto",
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads; 0 = all cores.")] = 0,
    seconds: Annotated[float, typer.Option(metavar="N", help="How long to measure; loading comes on top.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Measure what this machine takes to serve a model: memory, image encoding, prefill, decode and mixed iterations,
    transfers between instances; and what follows: the tipping point, thresholds, the initial split of instances.

    Example: `tierline calibrate serving tiny-vlm -o tiny.toml`
    """
    import os

    from tierline.deployment import DeploymentOptions, instance_settings, need_serve_extra
    from tierline.perf.serving_profile import model_label, save_profile

    need_serve_extra()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as instances run
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from tierline.engine.calibrate import CalibrationOptions, calibrate

    options = CalibrationOptions(seconds)
    deployment = DeploymentOptions(
        model=str(Path(model).resolve()) if Path(model).is_dir() else model, device=device, dtype=dtype, threads=threads
    )
    settings = next(iter(instance_settings(deployment).values()))
    path = output or Path(f"{model_label(model).rsplit('/', 1)[-1]}.toml")
    with render.progress("calibrating") as shown:
        task = shown.add_task("starting", total=100)

        def report(share: float, doing: str) -> None:
            shown.update(task, completed=round(100 * share), description=doing)

        found = calibrate(settings, model_label(model), options, report)
    save_profile(found, path)
    if as_json:
        import msgspec

        render.print_json(msgspec.to_builtins(found) | {"path": str(path)})
        return
    for line in profile_lines(found):
        print(line)
    print(f"\nWritten to {path}.")


def profile_lines(found: ServingProfile) -> list[str]:
    """A profile for a reader."""
    from tierline.core.stage_times import BatchShape
    from tierline.perf.device_times import times_of

    times, memory, advice, fit = times_of(found), found.memory, found.advice, found.fit

    def chunk(tokens: int) -> float:
        return times.iteration_s(BatchShape(chunks=((tokens, 0),)))

    def decode(count: int) -> float:
        return times.iteration_s(BatchShape(decodes=count, decode_context=512 * count))

    rows = [
        ("weights", render.size(memory.weights_bytes)),
        ("KV", f"{memory.kv_tokens} tokens of {render.size(memory.kv_token_bytes)}"),
        ("prefill, 128 and 512 tokens", f"{_ms(chunk(128))} and {_ms(chunk(512))}"),
        ("decode, batch 1 and 16, context 512", f"{_ms(decode(1))} and {_ms(decode(16))}"),
        ("both: 128 tokens beside 16 decodes", _ms(times.iteration_s(BatchShape(((128, 0),), 16, 8192)))),
    ]
    if found.encodes:
        rows.append(
            (
                "encode, an image of 256 and 1024 patches",
                f"{_ms(times.encode_s((256,)))} and {_ms(times.encode_s((1024,)))}",
            )
        )
        many = 2 * advice.tipping_tokens
        rows.append(
            (
                f"slower beside an image, 16 decodes and {many} tokens",
                f"{times.slowdown(16):.2f} and {times.slowdown(many):.2f} times",
            )
        )
    rows += [
        ("transfer", f"{_ms(found.transfer.setup_s)} and {found.transfer.bytes_per_s / 1e9:.2f} GB/s"),
        ("tipping point", f"{advice.tipping_tokens} tokens"),
        (
            "decode wants more instances beyond",
            f"{_ms(advice.decode_tpot_s)} a token, {advice.decode_kv_share:.0%} of KV",
        ),
        (
            "initial split encode : prefill : decode",
            f"{advice.encode_share:.0%} : {advice.prefill_share:.0%} : {advice.decode_share:.0%} ({advice.mix})",
        ),
        ("off by, iterations not fitted to", f"{fit.median:.1%} (median), {fit.p95:.1%} (P95) of {fit.points}"),
    ]
    if fit.encode_points:
        rows.append(
            ("off by, images", f"{fit.encode_median:.1%} (median), {fit.encode_p95:.1%} (P95) of {fit.encode_points}")
        )
    title = f"{found.model} on {found.device}"
    return [title, "", *render.plain_table(("WHAT", "VALUE"), rows).splitlines()]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


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
