"""Offline throughput of the built-in engine beside Transformers' `generate` and vLLM's CPU build: same weights, same prompts.

Each peer is a process of its own (benchmarks/engine_peers/); a round starts each once, in turn (A B C, A B C, ...), so that
what else the machine does falls on all alike. Shown are medians over rounds and repetitions, and the ratio to the first
peer that ran, round by round, with its smallest and largest value. A peer that is missing is left out, and why is
said. Repeat with:

    pip install torch transformers gguf accelerate pillow
    scripts/vllm-cpu-venv
    python benchmarks/engine_throughput.py --rounds 5 --json build/engine_throughput.json
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine_models import DEFAULT_OUT, TEXT_MODEL, ensure_models

HERE = Path(__file__).resolve().parent
VLLM_PYTHON = HERE.parent / ".venv-vllm" / "bin" / "python"


class Missing(Exception):
    """A peer cannot run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one process of a peer reported; see engine_peers/protocol.py."""

    peer: str
    round: int
    version: str
    start_s: float
    peak_rss_bytes: int
    output_tokens_per_s: dict[int, tuple[float, ...]]
    first_tokens: tuple[int, ...]


# ---- the commands of the peers -----------------------------------------------------------------------------------------
def transformers_command() -> list[str]:
    require(sys.executable, "import torch, transformers", "pip install torch transformers")
    return [sys.executable, str(HERE / "engine_peers" / "transformers_generate.py")]


def vllm_command() -> list[str]:
    if not VLLM_PYTHON.exists():
        raise Missing("there is no .venv-vllm: scripts/vllm-cpu-venv makes it")
    require(str(VLLM_PYTHON), "import vllm", "scripts/vllm-cpu-venv")
    return [str(VLLM_PYTHON), str(HERE / "engine_peers" / "vllm_cpu.py")]


def tierline_command() -> list[str]:
    """Our own engine. ENGINE'S SIDE: fill engine_peers/tierline_engine.py; same arguments, same line of JSON."""
    script = HERE / "engine_peers" / "tierline_engine.py"
    if not script.exists():
        raise Missing(f"there is no {script.relative_to(HERE.parent)}")
    return [sys.executable, str(script)]


PEERS: dict[str, Callable[[], list[str]]] = {
    "transformers": transformers_command,
    "vllm": vllm_command,
    "tierline": tierline_command,
}


def require(python: str, statement: str, remedy: str) -> None:
    done = subprocess.run([python, "-c", statement], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Missing(f"'{statement}' fails ({reason}); {remedy}")


# ---- running and reading -----------------------------------------------------------------------------------------------
def run_peer(peer: str, round_: int, command: Sequence[str], timeout_s: float) -> Run:
    """Start one peer and read the last line that it prints."""
    with tempfile.TemporaryFile("w+") as output:
        # A session of its own: an engine's worker processes end with it, whatever became of their parent.
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read().splitlines()
    lines = [line for line in text if line.startswith('{"engine"')]
    if code != 0 or not lines:
        ended = f"did not end within {timeout_s:g} s" if code is None else f"ended with {code} and no report"
        raise Missing("\n".join([ended, *text[-8:]]))
    report = json.loads(lines[-1])
    return Run(
        peer=peer,
        round=round_,
        version=report["version"],
        start_s=report["start_s"],
        peak_rss_bytes=report["peak_rss_bytes"],
        output_tokens_per_s={row["batch"]: tuple(row["output_tokens_per_s"]) for row in report["results"]},
        first_tokens=tuple(report["first_tokens"]),
    )


def rate(run: Run, batch: int) -> float:
    return statistics.median(run.output_tokens_per_s[batch])


def ratios(runs: Sequence[Run], peer: str, baseline: str, batch: int) -> list[float]:
    """The peer's rate over the baseline's, one for each round in which both ran."""
    base = {run.round: rate(run, batch) for run in runs if run.peer == baseline}
    return [rate(run, batch) / base[run.round] for run in runs if run.peer == peer and run.round in base]


def same_first_tokens(run: Run, other: Run) -> float:
    """Share of sequences whose first token is equal: rounding in bfloat16 may tip a few, other weights tip all."""
    equal = sum(a == b for a, b in zip(run.first_tokens, other.first_tokens, strict=True))
    return equal / len(run.first_tokens)


def show(runs: Sequence[Run], batches: Sequence[int]) -> str:
    names = list(dict.fromkeys(run.peer for run in runs))
    baseline = names[0]
    head = ["peer", "version"]
    head += [f"tok/s at {batch} (x {baseline})" for batch in batches]
    head += ["first token after", "peak memory", "same first token"]
    table = [head]
    for name in names:
        own = [run for run in runs if run.peer == name]
        row = [name, own[0].version]
        for batch in batches:
            cell = f"{statistics.median(rate(run, batch) for run in own):.0f}"
            if name != baseline and (among := ratios(runs, name, baseline, batch)):
                cell += f" ({statistics.median(among):.2f}; {min(among):.2f}..{max(among):.2f})"
            row.append(cell)
        row.append(f"{statistics.median(run.start_s for run in own):.1f} s")
        row.append(f"{statistics.median(run.peak_rss_bytes for run in own) / 2**20:.0f} MiB")
        row.append(f"{same_first_tokens(own[0], runs[0]):.0%}")
        table.append(row)
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=2, help="timed ones of each batch in each process")
    parser.add_argument("--batches", default="1,16,32")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", type=Path, default=DEFAULT_OUT, help="where the checkpoints are kept, or made")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds for one process")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    batches = [int(batch) for batch in given.batches.split(",")]
    unknown = set(given.peers.split(",")) - set(PEERS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    task = ["--model", str(ensure_models(given.models)[TEXT_MODEL]), "--batches", given.batches]
    for option in ("prompt_tokens", "output_tokens", "repetitions", "threads"):
        task += ["--" + option.replace("_", "-"), str(getattr(given, option))]

    commands: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for name in given.peers.split(","):
        try:
            commands[name] = [*PEERS[name](), *task]
        except Missing as missing:
            left_out[name] = str(missing)
    runs: list[Run] = []
    for round_ in range(given.rounds):
        for name, command in list(commands.items()):
            try:
                run = run_peer(name, round_, command, given.timeout)
            except Missing as missing:
                left_out[name] = f"round {round_ + 1}: {missing}"
                del commands[name]
                continue
            runs.append(run)
            rates = ", ".join(f"{rate(run, batch):.0f} at {batch}" for batch in batches)
            print(f"round {round_ + 1}: {name}: {rates} tok/s; {run.start_s:.1f} s to the first token", flush=True)
    if runs:
        print(
            f"\n{given.prompt_tokens} tokens in, {given.output_tokens} out, {given.threads} threads, {given.rounds} rounds"
        )
        print(show(runs, batches))
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    if given.json:
        record = {
            "model": TEXT_MODEL,
            "prompt_tokens": given.prompt_tokens,
            "output_tokens": given.output_tokens,
            "threads": given.threads,
            "machine": platform.processor() or platform.machine(),
            "left_out": left_out,
            "runs": [asdict(run) for run in runs],
        }
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if runs else 1


if __name__ == "__main__":
    raise SystemExit(main())
