"""The page of scripts/gpu_serving.py from what was recorded. Pure: a record in, text out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

Record = dict[str, Any]


def render(found: Record) -> str:
    """The whole page."""
    return "\n".join([*head(found), *(line for part in PARTS for line in _part(found, *part))]) + "\n"


def wrong(found: Record) -> list[str]:
    """What went wrong, a sentence each: steps that failed, answers in fp32 that differ, bytes that arrived otherwise."""
    said = []
    for name, step in found["steps"].items():
        if step["state"] == "failed":
            said.append(f"{name} failed: {step['why']}")
        for row in step.get("rows", ()):
            where = " ".join(str(row[key]) for key in ("kind", "how", "what", "shape", "tokens") if key in row)
            if row.get("failed"):
                said.append(f"{name}, {where}: {row['failed']}")
            if row.get("dtype") == "fp32" and (row["identical"] != row["requests"] or row["faults"]):
                told = f"; {row['faults'][0]}" if row["faults"] else ""
                said.append(f"{name}, {where}: {row['identical']} of {row['requests']} answers are equal{told}")
            if row.get("same") is False:
                said.append(f"{name}, {where}: the bytes differ")
            if row.get("graphs_off"):
                said.append(f"{name}, {where}: graphs were given up")
    return said


def head(found: Record) -> Iterator[str]:
    here = next(iter(found["steps"].get("probe", {}).get("rows", [])), {})
    yield "# Serving on a real GPU"
    yield ""
    if found.get("synthetic"):
        yield "**Made-up samples of a test: no machine gave these figures.**\n"
    if found.get("dry_run"):
        yield "**Dry run on the CPU in tiny sizes: it shows that the script works. None of these figures is one of a GPU.**\n"
    memory = f" ({here['memory_bytes'] / 2**30:.0f} GiB)" if here.get("memory_bytes") else ""
    copy = (
        f", {here['copy_bytes_per_s'] / 1e12:.2f} TB/s read and written in a copy"
        if here.get("copy_bytes_per_s")
        else ""
    )
    yield (
        f"Measured on {found['date']} with {here.get('devices', '?')} x {here.get('device', 'an unknown device')}{memory}"
        f"{copy}; driver {here.get('driver') or 'unknown'}, {here.get('cores', '?')} cores, torch {here.get('torch', '?')}, "
        f"Transformers {here.get('transformers') or 'missing'}, Python {here.get('python', '?')}, Tierline "
        f"{found['version']}. Models are random. Repeat it with `./scripts/gpu serving`; all that was recorded is in "
        "serving_gpu.json."
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
    state = step["state"]
    if state == "skipped":
        yield f"Not run: {step['why']}"
        return
    if state == "failed":
        yield f"Failed: {step['why']}\n"
    elif state != "ok":
        yield "Not finished.\n"
    if step.get("rows"):
        yield from body(found, step["rows"])


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def parity(found: Record, rows: Sequence[Record]) -> Iterator[str]:
    yield (
        "Greedy answers against `generate` of Transformers on the same device, over small random checkpoints. In fp32, with "
        "TF32 off, all have to be equal; requests whose two likeliest tokens are nearly equal are left out of that. In bf16 "
        "rounding decides near ties: told is how many answers are equal, and the tokens before an answer's first "
        "difference.\n"
    )
    names = (
        "checkpoint",
        "what",
        "equal answers",
        "tokens before a difference",
        "moves",
        "preemptions",
        "cached tokens",
    )
    lines = []
    for row in rows:
        if "requests" not in row:
            lines.append([row["kind"], row.get("failed") or row.get("why", ""), "-", "-", "-", "-", "-"])
            continue
        agreed = f"{row['agreed_tokens']} of {row['tokens']}" if "agreed_tokens" in row else "-"
        what = row["how"]
        if row.get("graph_steps") is not None:
            what += f": {row['graph_steps']} steps by {row['graphs']} graphs" + (
                ", given up" if row["graphs_off"] else ""
            )
        counts = [str(row.get(key, "-")) for key in ("moves", "preemptions", "cached_tokens")]
        lines.append([row["kind"], what, f"{row['identical']} of {row['requests']}", agreed, *counts])
    yield from table(names, lines)


def throughput(found: Record, rows: Sequence[Record]) -> Iterator[str]:
    first = rows[0]
    here = next(iter(found["steps"].get("probe", {}).get("rows", [])), {})
    yield (
        f"{first['input_tokens']} tokens in, {first['output_tokens']} out, greedy, a batch begun at once; the ways take "
        "turns over the same prompts; median (least to most) of the turns. A step: the median iteration of the engine, the "
        "whole time over the output tokens for Transformers' `generate` with its own cache, uncompiled. Floor: the weights "
        "read once at the copy rate above. Equal tokens: before an answer's first difference from Transformers (near ties "
        "fall either way in bf16).\n"
    )
    base = {(row["shape"], row["batch"]): row for row in rows if row["how"] == "Transformers"}
    names = (
        "shape",
        "batch",
        "how",
        "tokens/s",
        "times Transformers",
        "step ms",
        "floor ms",
        "first token ms",
        "equal tokens",
    )
    lines = []
    for row in sorted(rows, key=lambda each: (each["shape"], each["batch"])):
        rate = statistics.median(row["tokens_per_s"])
        other = base.get((row["shape"], row["batch"]))
        times = f"{rate / statistics.median(other['tokens_per_s']):.2f}" if other else "-"
        copy = here.get("copy_bytes_per_s")
        floor = f"{1e3 * row['weights_bytes'] / copy:.2f}" if copy else "-"
        how = row["how"] + (" (given up)" if (row.get("graphs") or {}).get("off") else "")
        told = row["against_transformers"]
        lines.append([
            row["shape"], str(row["batch"]), how,
            f"{rate:.0f} ({min(row['tokens_per_s']):.0f} to {max(row['tokens_per_s']):.0f})", times,
            f"{row['step_ms']:.2f}", floor, "-" if row["first_token_ms"] is None else f"{row['first_token_ms']:.1f}",
            "-" if row["how"] == "Transformers" else f"{told['agreed_tokens']} of {told['tokens']}",
        ])  # fmt: skip
    yield from table(names, lines)


def transfers(found: Record, rows: Sequence[Record]) -> Iterator[str]:
    yield f"From {rows[0]['from']} to {rows[0]['to']}; payload bytes over the time, device synchronised.\n"
    lines = []
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f}"
        if "same" in row:
            lines.append([row["what"], str(row["tokens"]), size, "-", "yes" if row["same"] else "NO"])
            continue
        took = statistics.median(row["seconds"])
        lines.append([row["what"], str(row["tokens"]), size, f"{1e3 * took:.2f}", f"{row['bytes'] / took / 1e9:.2f}"])
    yield from table(("what", "tokens", "MB", "ms", "GB/s"), lines)


def moves(found: Record, rows: Sequence[Record]) -> Iterator[str]:
    yield (
        "A decoding sequence is moved; both instances take turns in one thread, so nothing overlaps. Move: from the request "
        "for it until the target owns the sequence. Gap: between the last token here and the first one there; a step is what "
        "it would be without a move. Medians.\n"
    )
    lines = []
    for key in sorted({(row["shape"], row["tokens"]) for row in rows}):
        same = [row for row in rows if (row["shape"], row["tokens"]) == key]
        middle = {
            name: statistics.median(row[name] for row in same) for name in ("moved_ms", "gap_ms", "step_ms", "bytes")
        }
        lines.append([
            key[0], str(key[1]), f"{middle['bytes'] / 1e6:.1f}", f"{middle['moved_ms']:.1f}", f"{middle['gap_ms']:.1f}",
            f"{middle['step_ms']:.1f}", str(max(row["rounds"] for row in same)),
            f"{sum(row['same_tokens'] for row in same)} of {len(same)}",
        ])  # fmt: skip
    yield from table(
        ("shape", "tokens", "MB", "move ms", "gap ms", "step ms", "rounds", "same tokens as unmoved"), lines
    )


def memory(found: Record, rows: Sequence[Record]) -> Iterator[str]:
    yield (
        "The arena as `build` sizes it from what is free. Growth: most in use in the second half of the readings over "
        "that of the first.\n"
    )
    lines = []
    for row in rows:
        if row.get("failed"):
            lines.append(["on" if row["graphs"] else "off", row["failed"], "-", "-", "-", "-"])
            continue
        share = row["arena_share_of_free"]
        lines.append([
            "on" if row["graphs"] else "off", f"{row['arena_bytes'] / 2**30:.2f}",
            "-" if share is None else f"{100 * share:.1f} %", str(row["steps"]),
            f"{row['most_in_use_bytes'] / 2**30:.3f}", f"{row['growth_bytes'] / 2**20:.2f}",
        ])  # fmt: skip
    yield from table(("graphs", "arena GiB", "of what was free", "steps", "most in use GiB", "growth MiB"), lines)


def beside(found: Record, rows: Sequence[Record]) -> Iterator[str]:
    yield (
        "Images of a made-up vision tower on the encoder lane's stream, iterations on theirs, by turns alone and together; "
        "how many times slower both are then (root of the two ratios of medians).\n"
    )
    lines = [
        [
            row["shape"], f"{row['layers']} layers, {row['patches']} patches", f"{row['decodes']}",
            f"{row['decodes_slowdown']:.2f}", f"{row['chunk_tokens']}", f"{row['prompt_slowdown']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    yield from table(("shape", "tower", "decodes", "slower", "prompt of", "slower"), lines)


PARTS = (
    ("parity", "The same tokens as Transformers", parity),
    ("throughput", "Throughput, 135M", throughput),
    ("large", "Throughput, 3B", throughput),
    ("moves", "Moving a sequence", moves),
    ("transfers", "Transfers", transfers),
    ("beside", "Images beside iterations", beside),
    ("memory", "Memory", memory),
)
