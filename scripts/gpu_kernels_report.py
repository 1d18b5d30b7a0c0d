"""The figures of scripts/gpu_kernels.py from what was recorded, and their Markdown. Pure: a record in, text out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

Record = dict[str, Any]
TOLERANCE = 1e-2  # relative, of losses in bfloat16 whose kernels torch.compile may choose anew in every process
WAVES = {"alone": "under the interposer, alone", "shared": "under the interposer, three programs on one region"}
TAKEN_BY_POLLER = ("cuEventQuery",)  # per unit of time, not per launch


# --- figures ----------------------------------------------------------------------------------------------------------


def same_results(rows: Sequence[Record]) -> list[Record]:
    """Each run under the interposer against the same program without it."""
    plain = {row["how"]: row for row in rows if row["wave"] == "without" and "losses" in row}
    found = []
    for row in rows:
        if row["wave"] == "without":
            continue
        base = plain.get(row["how"])
        if base is None or "losses" not in row:
            found.append({"how": row["how"], "wave": row["wave"], "verdict": "no figure"})
            continue
        pairs = list(zip(values_of(base), values_of(row), strict=True))
        furthest = max((abs(a - b) / max(abs(a), 1e-9) for a, b in pairs), default=0.0)
        identical = all(a == b for a, b in pairs) and base["answers"]["digest"] == row["answers"]["digest"]
        found.append({
            "how": row["how"], "wave": row["wave"], "identical": identical, "furthest": furthest,
            "verdict": "same" if furthest <= TOLERANCE else "differs",
        })  # fmt: skip
    return found


def values_of(row: Record) -> list[float]:
    return [value for losses in row["losses"].values() for value in losses] + list(row["answers"]["sums"])


def added_ns(rows: Sequence[Record]) -> list[Record]:
    """Per program and client: nanoseconds added to a launch, round by round against the plain program's same round."""
    plain = {row["program"]: [r["median_ns"] for r in row["rounds"]] for row in rows if row["client"] == "plain"}
    found = []
    for row in rows:
        mine, base = [r["median_ns"] for r in row["rounds"]], plain.get(row["program"], [])
        pairs = list(zip(mine, base, strict=False))
        if row["client"] == "plain" or not pairs:
            continue
        added = [a - b for a, b in pairs]
        found.append({
            "program": row["program"], "client": row["client"], "rounds": len(added),
            "plain_ns": statistics.median(base), "median_ns": statistics.median(added),
            "least_ns": min(added), "most_ns": max(added), "at_once": at_once_share(row.get("region")),
        })  # fmt: skip
    return found


def at_once_share(region: Record | None) -> float | None:
    """Of the launches of all clients that were measured, the share that was admitted without a wait."""
    clients = [client for client in (region or {}).get("clients", []) if client["label"] != "company"]
    launches = sum(client["launches"] for client in clients)
    return sum(client["at_once"] + client["bypassed"] for client in clients) / launches if launches else None


def added_calls(rows: Sequence[Record]) -> list[Record]:
    """Per program and client: driver calls a launch beyond the plain program's, by name."""
    plain = {row["program"]: row for row in rows if row.get("client") == "plain" and row.get("counted")}
    found = []
    for row in rows:
        if row.get("client") == "plain":
            continue
        base = plain.get(row.get("program", ""))
        if base is None or not row.get("counted"):
            found.append(
                {
                    "program": row.get("program", ""),
                    "client": row.get("client", ""),
                    "why": row.get("why", "no plain run"),
                }
            )
            continue
        more = {
            name: (row["calls"].get(name, 0) - base["calls"].get(name, 0)) / row["launches"]
            for name in sorted({*row["calls"], *base["calls"]})
        }
        more = {name: count for name, count in more.items() if abs(count) >= 0.005}
        found.append({
            "program": row["program"], "client": row["client"],
            "per_launch": sum(count for name, count in more.items() if name not in TAKEN_BY_POLLER), "by_name": more,
        })  # fmt: skip
    return found


def unit_s(job: Record) -> float | None:
    """What one step or one request takes alone, from a row of turns."""
    if job.get("kind") == "serve":
        return job.get("service_s")
    return job["seconds"] / job["steps"] if job.get("steps") else None


def rate_of(job: Record) -> float | None:
    """Steps or requests a second within the window."""
    done = job.get("served") if job.get("kind") == "serve" else job.get("steps")
    return done / job["seconds"] if done is not None and job.get("seconds") else None


def share_figures(row: Record, turns: Record) -> Record:
    """`gain`: work done per second in units of the time it takes alone. `p99`: of each server against alone. `speed`: of each
    job against alone. A figure whose parts are missing is None."""
    alone, jobs = turns.get("jobs", {}), row.get("jobs", {})
    speed, p99, parts = {}, {}, []
    for name, job in jobs.items():
        base = alone.get(name, {})
        one_s, rate, alone_rate = unit_s(base), rate_of(job), rate_of(base)
        parts.append(rate * one_s if rate is not None and one_s else None)
        speed[name] = rate / alone_rate if rate is not None and alone_rate else None
        if job.get("kind") == "serve":
            then, now = base.get("latency", {}).get("p99_s"), job.get("latency", {}).get("p99_s")
            p99[name] = now / then if now and then else None
    whole = [part for part in parts if part is not None]
    return {"gain": sum(whole) if parts and len(whole) == len(parts) else None, "p99": p99, "speed": speed}


# --- Markdown ---------------------------------------------------------------------------------------------------------


def render(found: Record) -> str:
    """The whole page."""
    return "\n".join([*head(found), *(line for part in PARTS for line in _part(found, *part))]) + "\n"


def head(found: Record) -> Iterator[str]:
    here = found["steps"].get("probe", {})
    yield "# Kernels on a real GPU"
    yield ""
    if found.get("synthetic"):
        yield "**Made-up samples of a test: no machine gave these figures.**\n"
    if found.get("dry_run"):
        yield "**Dry run on the CPU in tiny sizes: it shows that the script works. None of these figures is one of a GPU.**\n"
    memory = f" ({here['memory_bytes'] / 2**30:.0f} GiB)" if here.get("memory_bytes") else ""
    yield (
        f"Measured on {found['date']} with {here.get('device', 'an unknown device')}{memory}, driver "
        f"{here.get('driver') or 'unknown'}, {here.get('cores', '?')} cores, torch {here.get('torch', '?')}, Python "
        f"{here.get('python', '?')}, Tierline {found['version']}. Repeat it with `./scripts/gpu kernels`; all that was "
        "recorded is in gpu_kernels.json."
    )
    if lacks := here.get("lacks"):
        yield f"\nMissing there: {lacks}"


def _part(found: Record, name: str, title: str, body: Any) -> Iterator[str]:
    step = found["steps"].get(name)
    if step is None:
        return
    yield f"\n## {title}\n"
    if step.get("date", found["date"]) != found["date"]:
        yield f"Measured on {step['date']}.\n"
    state = step.get("state")
    if state == "skipped":
        yield f"Not run: {step.get('why', '?')}"
    elif state == "failed":
        yield f"Failed: {step.get('why', '?')}"
    elif state is None:
        yield "Cut short; what there was by then:\n"
    if state != "skipped":
        try:
            yield from body(step)
        except (KeyError, TypeError, ValueError) as error:  # parts of a step that failed on its way
            yield f"The record is incomplete ({type(error).__name__}: {error})."


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def works(step: Record) -> Iterator[str]:
    """Do programs compute the same?"""
    yield "Losses of two trainings and a server's answers, with the interposer against without it.\n"
    seen = {(row["wave"], row["how"]): row for row in step["rows"]}
    rows = []
    for same in step.get("same") or same_results(step["rows"]):
        row = seen[same["wave"], same["how"]]
        clients = [c for c in row.get("region", {}).get("clients", []) if c["label"].startswith(same["how"])]
        counts = ["+".join(str(c[key]) for c in clients) or "-" for key in ("launches", "bypassed", "waited", "forced")]
        verdict = same["verdict"]
        if verdict != "no figure":
            verdict += ", bit for bit" if same["identical"] else f", furthest {same['furthest']:.2g}"
        rows.append([same["how"], WAVES.get(same["wave"], same["wave"]), verdict, *counts])
    yield from table(("how", "run", "losses and answers", "launches", "bypassed", "waited", "forced"), rows)
    for row in step["rows"]:
        if "error" in row:
            yield f"\n{row['how']}, {row['wave']}: {row['error']}"
    ended = step.get("tierline_run", {}).get("exit_code")
    if ended is not None:
        yield f"\n`tierline run` with the eager program ended with {ended}. {step['tierline_run']['output']}".rstrip()


def overhead(step: Record) -> Iterator[str]:
    """What does a launch cost?"""
    yield (
        "Time of the launching thread per tiny launch; added: against the same round of the program without the interposer, "
        "median (least to most) of the rounds. `torch`: `add_` in eager PyTorch; `cuda`: `<<<>>>` by nvcc; `company`: `add_` "
        "in short bursts beside a client that is at work on the device.\n"
    )
    rows = []
    for r in added_ns(step["rows"]):
        spread = f"{r['median_ns']:+.0f} ({r['least_ns']:+.0f} to {r['most_ns']:+.0f})"
        at_once = "-" if r["at_once"] is None else f"{r['at_once']:.1%}"
        rows.append([r["program"], r["client"], f"{r['plain_ns']:.0f}", spread, str(r["rounds"]), at_once])
    yield from table(("program", "client", "without, ns", "added, ns", "rounds", "admitted at once"), rows)
    yield "\nDriver calls added per launch, as CUPTI counts them (the poller's cuEventQuery apart, which goes by time).\n"
    calls = []
    for r in added_calls(step.get("calls", [])):
        if "why" in r:
            calls.append([r["program"], r["client"], "-", r["why"]])
        else:
            which = ", ".join(f"{name} {count:+.2f}" for name, count in r["by_name"].items()) or "none"
            calls.append([r["program"], r["client"], f"{r['per_launch']:+.2f}", which])
    yield from table(("program", "client", "per launch", "which"), calls)
    for row in step["rows"]:
        if "launched" in row and row["client"] != "plain" and "region" in row:
            seen = sum(client["launches"] for client in row["region"]["clients"])
            yield f"\n`<<<>>>`, {row['client']}: {row['launched']} launched, {row['executed']} executed, {seen} seen."
    yield from (f"\nMissing: {text}" for text in step.get("missing", []))


def share(step: Record) -> Iterator[str]:
    """What does sharing gain?"""
    turns: Record = next((row for row in step["rows"] if row["name"] == "turns"), {})
    yield from _alone(turns)
    rows, notes = [], []
    for row in step["rows"]:
        said = [row[key] for key in ("skipped", "error") if row.get(key)]
        said += [f"{name}: {job['error']}" for name, job in row.get("jobs", {}).items() if "error" in job]
        for note in said:
            if note not in notes:
                notes.append(note)
        marks = " ".join(f"({notes.index(note) + 1})" for note in said)
        if row.get("skipped") or row.get("error"):
            rows.append([row["title"], *["-"] * 4, f"{'not run' if row.get('skipped') else 'failed'} {marks}"])
        else:
            rows.append([row["title"], *_row_figures(row, turns), f"{_waits(row)} {marks}".strip()])
    yield from table(("how", "gain", "p99 ×", "p99, ms", "throughput ×", "waits"), rows)
    if notes:
        yield ""
        yield from (f"{i}. {note}" for i, note in enumerate(notes, 1))


def _row_figures(row: Record, turns: Record) -> list[str]:
    """gain, p99 against alone, p99, throughput against alone."""
    jobs = row.get("jobs", {}).values()
    late = [f"{1e3 * job['latency']['p99_s']:.2f}" for job in jobs if job.get("latency", {}).get("count")]
    if row["name"] == "turns":
        return ["1.00", "1.00", ", ".join(late), "1.00"]
    figures = share_figures(row, turns)
    p99 = ", ".join(_times(value) for value in figures["p99"].values())
    speed = ", ".join(f"{name} {_times(value)}" for name, value in figures["speed"].items())
    return [_times(figures["gain"]), p99, ", ".join(late), speed]


def mps(step: Record) -> Iterator[str]:
    """The rows of MPS stand in the same units; what the jobs do alone is taken from the pair's own step."""
    yield step.get("mps", {}).get("note", "")
    if step.get("rows"):
        yield ""
        yield from share({"rows": [*([step["turns"]] if step.get("turns") else []), *step["rows"]]})


def _alone(turns: Record) -> Iterator[str]:
    for name, job in turns.get("jobs", {}).items():
        one_s = unit_s(job)
        if one_s is None:
            continue
        what = f"a step {1e3 * one_s:.2f} ms"
        if job["kind"] == "serve":
            what = f"a request {1e3 * one_s:.2f} ms back to back, {job['rate']:.0f} a second asked for"
        yield f"- `{name}` alone ({job['priority']}): {what}."
    if turns:
        yield ""


def _waits(row: Record) -> str:
    told = [
        f"{c['label']}: {c['waited']} of {c['launches']} waited" + (f", {c['forced']} forced" if c["forced"] else "")
        for c in row.get("region", {}).get("clients", [])
        if c["launches"]
    ]
    return "; ".join(told)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def lanes(step: Record) -> Iterator[str]:
    alone, count = step["alone_s"], step["launches"]
    yield (
        f"{count['gemm']} matrix products ({1e3 * alone['gemm']:.2f} ms each alone) beside {count['norm']} normalisations "
        f"({1e3 * alone['norm']:.2f} ms each alone); multiprocessors as GEMM + norm.\n"
    )
    base = next((row["seconds"] for row in step["rows"] if row["how"] == "one after another"), None)
    rows = []
    for row in step["rows"]:
        where = " + ".join(str(n) for n in row["sms"]) or "all"
        if "seconds" in row:
            rows.append(
                [row["how"], where, f"{1e3 * row['seconds']:.2f}", _times(base / row["seconds"] if base else None)]
            )
        else:
            rows.append([row["how"], where, "-", row["why"]])
    yield from table(("how", "SMs", "ms", "times as fast"), rows)


def calibrate(step: Record) -> Iterator[str]:
    yield "```text"
    yield str(step.get("output", "")).strip()
    yield "```"


def tests(step: Record) -> Iterator[str]:
    yield f"{step.get('summary', '')}"
    if step.get("output"):
        yield f"\n```text\n{step['output']}\n```"


PARTS = (
    ("works", "Does it work at all", works),
    ("overhead", "What a launch costs", overhead),
    ("share1", "A training beside an inference server", share),
    ("share2", "Two of each", share),
    ("mps", "Separate processes under MPS", mps),
    ("lanes", "Lanes: GEMM beside norm", lanes),
    ("calibrate", "Calibration", calibrate),
    ("tests", "Tests", tests),
)
