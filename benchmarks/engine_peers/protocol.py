"""What every peer of `benchmarks/engine_throughput.py` shares: arguments, prompts, how it is timed, the line it prints.

A peer is a program of its own, so that it may live in another virtual environment. It prints one JSON line last:
`{"engine", "version", "start_s", "peak_rss_bytes", "results": [{"batch", "output_tokens_per_s": [one a repetition]}],
"first_tokens": [the first token of each sequence of the largest batch]}`.
Needs nothing beside the standard library, and Linux's /proc.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts and the number of output tokens, to the output tokens of each: greedy, and the end token does not stop it."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a peer is asked to run."""

    model: Path
    batches: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    repetitions: int
    threads: int


@dataclass(frozen=True, slots=True)
class BatchResult:
    batch: int
    output_tokens_per_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Report:
    engine: str
    version: str
    start_s: float  # from the start of the process to the first token of a first request
    peak_rss_bytes: int  # VmHWM, summed over the process and its descendants: pages they share count in each
    results: tuple[BatchResult, ...]
    first_tokens: tuple[int, ...]


def read_task(description: str) -> Task:
    """Read the arguments that `benchmarks/engine_throughput.py` passes to every peer."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--batches", default="1,16,32")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=2, help="timed, after one that is not")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    batches = tuple(int(batch) for batch in given.batches.split(","))
    return Task(given.model, batches, given.prompt_tokens, given.output_tokens, given.repetitions, given.threads)


def prompts(batch: int, tokens: int, repetition: int) -> list[list[int]]:
    """The same token ids for every peer; no two repetitions share a prefix, so no prefix cache can help."""
    rng = random.Random(f"{batch} {repetition}")
    return [[rng.randrange(100, 49_000) for _ in range(tokens)] for _ in range(batch)]


def seconds_since_start() -> float:
    """Seconds since this process was made."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return uptime_s - ticks / os.sysconf("SC_CLK_TCK")


def peak_rss_bytes() -> int:
    """Peak resident memory of this process and of its living descendants, each at its own peak."""
    parents: dict[int, int] = {}
    peaks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            lines = (folder / "status").read_text().splitlines()
        except OSError:
            continue  # it ended meanwhile
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        parents[int(folder.name)] = int(fields["PPid"])
        peaks[int(folder.name)] = int(fields.get("VmHWM", "0 kB").split()[0]) * 1024

    def is_ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return sum(peak for pid, peak in peaks.items() if is_ours(pid))


def measure(engine: str, version: str, task: Task, generate: Generate) -> None:
    """Time `generate` on every batch and print the report."""
    generate(prompts(1, task.prompt_tokens, -2), 1)
    start_s = seconds_since_start()
    results = []
    first_tokens: tuple[int, ...] = ()
    for batch in task.batches:
        generate(prompts(batch, task.prompt_tokens, -1), task.output_tokens)
        rates = []
        for repetition in range(task.repetitions):
            given = prompts(batch, task.prompt_tokens, repetition)
            begin_ns = time.perf_counter_ns()
            outputs = generate(given, task.output_tokens)
            elapsed_s = (time.perf_counter_ns() - begin_ns) / 1e9
            lengths = {len(output) for output in outputs}
            if len(outputs) != batch or lengths != {task.output_tokens}:
                raise SystemExit(f"{engine}: asked for {batch} x {task.output_tokens} tokens, given lengths {lengths}")
            rates.append(batch * task.output_tokens / elapsed_s)
            if repetition == 0 and batch == max(task.batches):
                first_tokens = tuple(output[0] for output in outputs)
        results.append(BatchResult(batch, tuple(rates)))
    report = Report(engine, version, start_s, peak_rss_bytes(), tuple(results), first_tokens)
    sys.stdout.write("\n" + json.dumps(asdict(report)) + "\n")  # a line of its own, whatever the engine wrote before
    sys.stdout.flush()
