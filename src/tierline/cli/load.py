"""`tierline load`: a serving workload against any OpenAI-compatible server, and what its users would have felt."""

from __future__ import annotations

import json
import math
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli import render
from tierline.cli.serving_address import ApiKey

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tierline.core.served_trace import ServedTrace
    from tierline.core.slo import Slo
    from tierline.runtime.serving_report import ModalityReport, ServingReport
    from tierline.workloads.replay_client import Replay, ReplayOptions, Sent

LATE_S = 0.01
"""The sender's own lateness (p99) from which its figures are to be doubted."""


def register(app: typer.Typer) -> None:
    app.command("load", rich_help_panel="Serving")(load)


def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the server is, as in http://127.0.0.1:8000.")],
    workload: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD",
            help="servegen:DIR, azure:FILE, azure-mm:FILE, burstgpt:FILE, mooncake:FILE, synthetic, or several with + "
            "between them; ?option=value&… behind it.",
        ),
    ],
    rate: Annotated[float, typer.Option(metavar="N", min=0.0, help="Requests/s; 0 = as the workload says.")] = 0.0,
    seconds: Annotated[float, typer.Option(metavar="S", min=0.0, help="Of the workload; 0 = as it says.")] = 0.0,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="Requests at most; 0 = as the workload says.")] = 0,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="[default: the workload's]")] = None,
    speed: Annotated[float, typer.Option(metavar="X", help="2 = all of it twice as fast.")] = 1.0,
    slo: Annotated[str, typer.Option(metavar="SLO", help="For goodput, as in ttft=500ms,tpot=50ms,image=2s.")] = "",
    warmup: Annotated[
        float, typer.Option(metavar="S", min=0.0, help="Leave out of the figures what arrives this early.")
    ] = 0.0,
    devices: Annotated[int, typer.Option(metavar="N", min=1, help="Devices of the server, for goodput of each.")] = 1,
    max_in_flight: Annotated[
        int, typer.Option(metavar="N", min=0, help="Wait to send while so many are under way; 0 = never.")
    ] = 0,
    timeout: Annotated[float, typer.Option(metavar="S", help="Give up an answer after this.")] = 600.0,
    text_only: Annotated[bool, typer.Option("--text-only", help="Send the requests without pictures alone.")] = False,
    model: Annotated[str, typer.Option(metavar="NAME", help="[default: the server's first]")] = "",
    api_key: ApiKey = "",
    salt: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Same text, same pictures and words. [default: new ones, so caches are cold]"
        ),
    ] = "",
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="One JSON line a request.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Replay a serving workload by the clock, with real pictures, and report latencies and goodput.

    Examples: `tierline load http://127.0.0.1:8000 synthetic --rate 2 --seconds 60 --slo ttft=1s,tpot=100ms`,
    `tierline load http://127.0.0.1:8000 "mix?rate=4&mm_share=0.5+servegen:DIR+azure:FILE" --limit 500`
    """
    from tierline.core.errors import InvalidInput
    from tierline.core.slo import Slo
    from tierline.runtime.serving_report import report
    from tierline.workloads.replay_client import ReplayOptions
    from tierline.workloads.serving import load_served

    promise = Slo.parse(slo) if slo else None
    options = ReplayOptions(model, api_key, speed, max_in_flight, timeout, text_only, salt or secrets.token_hex(4))
    if save is not None and not save.resolve().parent.is_dir():
        raise InvalidInput(f"'{save}' cannot be written: its folder does not exist.")
    trace = load_served(workload, rate=rate, seconds=seconds, requests=limit, seed=seed)
    found = _replay(url, trace, options)
    if not found.sent:
        raise InvalidInput("The replay was ended before the first request was sent.")
    if save is not None:
        _save(save, found)
    window = _window(found, warmup)
    figures = report(found.outcomes, promise, devices, window)
    if as_json:
        render.print_json(_as_json(trace, options, found, figures))
        return
    _show(trace, options, found, figures)


def _replay(url: str, trace: ServedTrace, options: ReplayOptions) -> Replay:
    import asyncio

    from tierline.workloads.replay_client import Progress, replay

    _raise_file_limit()
    with render.progress("sending") as bar:
        task = bar.add_task("asking the server", total=None)

        def begun(survey: object, requests: int) -> None:
            bar.update(task, total=requests, completed=0, description="")

        def drawing(done: int, of: int) -> None:
            bar.update(task, total=of, completed=done, description="sizes of pictures drawn")

        def progress(now: Progress) -> None:
            failed = f", {now.failed} failed" if now.failed else ""
            bar.update(task, completed=now.sent, description=f"{now.in_flight} under way{failed}")

        results: list[Replay] = []  # not the task's result: Python's signal module would make text of all of it

        async def run() -> None:
            results.append(await replay(url, trace.requests, options, begun=begun, drawing=drawing, progress=progress))

        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())
    return results[0]


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is: half the CPU a request."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _raise_file_limit() -> None:
    """Every request under way has a connection: as many as the system lets us have."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        return


def _window(found: Replay, warmup_s: float) -> tuple[int, int] | None:
    """The whole run, or all after the warm-up. Raises InvalidInput when nothing arrives after it."""
    from tierline.core.errors import InvalidInput

    if not warmup_s:
        return None
    from_ns = round(warmup_s * 1e9)
    arrivals = [outcome.arrived_ns for outcome in found.outcomes]
    if max(arrivals) < from_ns:
        raise InvalidInput(f"no request arrived after the warm-up of {warmup_s:g} s.")
    return from_ns, max(max(arrivals) + 1, *(outcome.finished_ns for outcome in found.outcomes))


# ---- what is shown


def _show(trace: ServedTrace, options: ReplayOptions, found: Replay, figures: ServingReport) -> None:
    kinds = (("all", figures.all), ("text", figures.text), ("images", figures.images))
    rows = [_row(name, each, figures) for name, each in kinds if each.requests]
    columns = [
        "",
        "SENT",
        "OK",
        "TTFT P50",
        "P90",
        "P99",
        "TPOT P50",
        "P90",
        "P99",
        "E2E P50",
        "P90",
        "P99",
        "OUT TOK/S",
    ]
    columns += ["IN SLO", "GOODPUT"] if figures.slo else []
    render.print_table(columns, rows, right=columns[1:])
    print()
    print(f"{figures.all.requests} requests in {figures.seconds:.1f} s: {figures.offered_per_s:.3g}/s came, "
          f"{figures.all.requests_per_s:.3g}/s were answered.")  # fmt: skip
    if figures.slo:
        per = f", {figures.all.goodput_per_device:.3g}/s a device" if figures.devices > 1 else ""
        print(f"Goodput within {_slo_words(figures.slo)}: {figures.all.goodput_per_s:.3g} requests/s{per}.")
    for kind, count in figures.all.errors:
        said = next((each.message for each in found.sent if each.outcome.outcome == kind and each.message), "")
        print(f"{count} x {kind}{f': {said}' if said else ''}")
    for note in _notes(options, found):
        print(note)
    print(f"workload {trace.workload_hash[:16]}, salt {options.salt}")


def _row(name: str, each: ModalityReport, figures: ServingReport) -> list[str]:
    times = [
        render.latency(value) for part in (each.ttft, each.tpot, each.e2e) for value in (part.p50, part.p90, part.p99)
    ]
    row = [name, str(each.requests), str(each.finished), *times, f"{each.output_tokens_per_s:.0f}"]
    if figures.slo:
        row += [f"{100 * each.attainment:.1f}%", f"{each.goodput_per_s:.3g}/s"]
    return row


def _slo_words(slo: Slo) -> str:
    ttft = f"TTFT {render.latency(slo.ttft_ns / 1e9)}"
    if slo.image_ttft_ns:
        ttft += f" ({render.latency(slo.image_ttft_ns / 1e9)} with images)"
    if slo.ttft_ns_per_ktoken:
        ttft += f" + {render.latency(slo.ttft_ns_per_ktoken / 1e9)} per 1,000 prompt tokens"
    return f"{ttft} and TPOT {render.latency(slo.tpot_ns / 1e9)}"


def _notes(options: ReplayOptions, found: Replay) -> list[str]:
    """What a reader has to know of how the figures came about."""
    with_images = any(each.request.images for each in found.sent)
    notes = found.survey.notes(with_images)
    told = [each for each in found.sent if each.prompt_tokens]
    if told:
        mean = sum(each.prompt_tokens for each in told) / len(told)
        wanted = sum(each.request.prompt_tokens for each in told) / len(told)
        notes.append(f"Prompts: the server counted {mean:.0f} tokens on average, the workload has {wanted:.0f}.")
    if found.shortened:
        notes.append(
            f"{found.shortened} requests were cut to the server's context of {found.survey.context_tokens} tokens."
        )
    late = f"The sender was {render.latency(found.late_p50_s)} late at the median, {render.latency(found.late_p99_s)} at P99"
    if options.max_in_flight:
        late += f" (at most {options.max_in_flight} under way)"
    elif found.late_p99_s > LATE_S:
        late += ": it is near its own limit, so latencies hold some of that"
    notes.append(f"{late}.")
    return notes


# ---- what is written


def _as_json(trace: ServedTrace, options: ReplayOptions, found: Replay, figures: ServingReport) -> dict[str, Any]:
    sender = {
        "late_p50_s": found.late_p50_s,
        "late_p99_s": found.late_p99_s,
        "late_max_s": found.late_max_s,
        "connections": found.connections,
        "shortened": found.shortened,
        "speed": options.speed,
        "max_in_flight": options.max_in_flight,
        "salt": options.salt,
    }
    told = {
        "workload": {"source": trace.source, "hash": trace.workload_hash, "requests": len(trace.requests)},
        "server": found.survey,
        "sender": sender,
        "report": figures,
        "notes": _notes(options, found),
    }
    return {key: _finite(render.to_json(value)) for key, value in told.items()}


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _save(path: Path, found: Replay) -> None:
    from tierline.core.errors import InvalidInput

    try:
        with path.open("w") as file:
            for number, each in enumerate(found.sent):
                file.write(json.dumps(_line(number, each)) + "\n")
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be written: {error.strerror}.") from error
    print(f"{len(found.sent)} requests in {path}", file=sys.stderr)


def _line(number: int, each: Sent) -> dict[str, Any]:
    """Seconds since the first request was due; null = never."""

    def at(time_ns: int) -> float | None:
        return round(time_ns / 1e9, 6) if time_ns >= 0 else None

    outcome, request = each.outcome, each.request
    return {
        "request": number,
        "stream": request.stream,
        "due_s": at(outcome.arrived_ns),
        "sent_s": at(each.sent_ns),
        "first_token_s": at(outcome.first_token_ns),
        "finished_s": at(outcome.finished_ns),
        "text_tokens": request.text_tokens,
        "images": len(request.images),
        "image_tokens": sum(image.tokens for image in request.images),
        "wanted_tokens": request.output_tokens,
        "prompt_tokens": each.prompt_tokens or None,
        "output_tokens": outcome.output_tokens,
        "outcome": outcome.outcome,
        "message": each.message,
    }
