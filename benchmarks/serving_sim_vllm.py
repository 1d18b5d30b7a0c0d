"""The serving simulator against a real vLLM: 300 requests of Llama-3.1-8B on one RTX PRO 6000, with the times at which vLLM
had queued and scheduled each of them and made its first and last token (LLMServingSim's validation data, MIT).

Setting. The whole log is simulated, arrivals and lengths as logged, one instance. The coefficients of the iteration model
(an iteration, a prompt token, a sequence, a position of context, a pair of positions in a prompt) are fitted on the times of
the first half of the requests alone; errors are stated for both halves, so those of the second are a prediction. Not
fitted, for vLLM's settings are facts: 128 sequences at most (seen in the log), 2,048 tokens an iteration, KV for all.

A request arrives when its client sent it, plus the shortest time that any of them took to vLLM's queue. TTFT is until vLLM
had the first token, TPOT between first and last, E2E until the last.

    python benchmarks/serving_sim_vllm.py DATA/serving/llmservingsim/rtxpro6000_llama-3.1-8b_vllm_requests.jsonl --json -
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from tierline import __version__
from tierline.backends.serving.sim import SimOptions, SimServing, limits_of
from tierline.clock import SimClock
from tierline.core.request import ALL_ROLES
from tierline.core.served_trace import ServedTrace, TracedRequest
from tierline.core.stage_times import BatchShape
from tierline.policies.batching import make_batching
from tierline.policies.routing import make_routing
from tierline.runtime.driver import Driver
from tierline.schedulers.serving import ServingScheduler

SEQUENCES = 128
TOKEN_BUDGET = 2048
FITTED = ("iteration_s", "token_s", "sequence_s", "context_s", "pair_s")


@dataclass(frozen=True)
class Coefficients:
    """Stage times of a model without images on one device: a straight line in each of these. The first guess is what the
    device's data sheet says (1.8 TB/s, some 250 TFLOP/s in bf16, 16 GB of weights, 128 KiB of KV a token)."""

    iteration_s: float = 9e-3
    token_s: float = 64e-6
    sequence_s: float = 20e-6
    context_s: float = 73e-9
    pair_s: float = 2e-9
    kv_token_bytes: int = 131_072
    embedding_token_bytes: int = 0
    kv_tokens: int = 500_000

    def iteration(self, tokens: int, rows: int, context: float, pairs: float) -> float:
        fixed = self.iteration_s + self.sequence_s * rows
        return fixed + self.token_s * tokens + self.context_s * context + self.pair_s * pairs

    def iteration_s_of(self, batch: BatchShape) -> float:
        tokens = sum(new for new, _ in batch.chunks)
        pairs = sum(new * (cached + (new + 1) / 2) for new, cached in batch.chunks)
        return self.iteration(tokens, batch.decodes + len(batch.chunks), batch.decode_context, pairs)

    def decodes_s(self, decodes: int, decode_context: int, steps: int) -> float:
        one = self.iteration(0, decodes, decode_context, 0.0)
        return steps * one + self.context_s * decodes * steps * (steps - 1) / 2

    def encode_s(self, patches: Sequence[int]) -> float:
        raise AssertionError("the log has no images")

    def prepare_s(self, patches: int) -> float:
        raise AssertionError("the log has no images")

    def transfer_s(self, size_bytes: int) -> float:
        return 0.0


class Times:
    """`Coefficients` as `StageTimes`: there a method has the name that here a coefficient has."""

    def __init__(self, of: Coefficients) -> None:
        self._of = of
        self.kv_token_bytes, self.embedding_token_bytes = of.kv_token_bytes, of.embedding_token_bytes
        self.kv_tokens, self.patches_per_token = of.kv_tokens, 1
        self.iteration_s = of.iteration_s_of
        self.decodes_s, self.encode_s = of.decodes_s, of.encode_s
        self.prepare_s, self.transfer_s = of.prepare_s, of.transfer_s

    def slowdown(self, tokens: int) -> float:
        return 1.0  # no images


@dataclass(frozen=True)
class Log:
    """Seconds from the first arrival on, one entry a request."""

    trace: ServedTrace
    ttft: np.ndarray
    tpot: np.ndarray
    e2e: np.ndarray


def read(path: Path) -> Log:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    arrival = np.array([row["arrival_time"] for row in rows])
    queued, first, last = (
        np.array([row[key] for row in rows]) for key in ("queued_ts", "first_token_ts", "last_token_ts")
    )
    begin = arrival + np.min(queued - arrival)
    output = np.array([row["output_toks"] for row in rows])
    at_ns = np.round((begin - begin[0]) * 1e9).astype(int).tolist()
    requests = tuple(
        TracedRequest(at, row["input_toks"], row["output_toks"]) for at, row in zip(at_ns, rows, strict=True)
    )
    return Log(
        ServedTrace("llmservingsim", requests, ""),
        first - begin,
        (last - first) / np.maximum(1, output - 1),
        last - begin,
    )


def simulated(log: Log, coefficients: Coefficients, budget: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """TTFT, TPOT and E2E of each request."""
    times = Times(coefficients)
    limits = limits_of(times, sequence_limit=SEQUENCES, token_budget=budget)
    options = SimOptions((ALL_ROLES,), limits, lambda: make_batching("sarathi"), latency_ns=0)
    clock = SimClock()
    scheduler = ServingScheduler(make_routing("least_loaded"), queue_limit=1 << 40)
    backend = SimServing(clock, log.trace, times, options)
    Driver(scheduler, backend, clock).run()
    outcomes = backend.outcomes()
    arrived = np.array([each.arrived_ns for each in outcomes]) / 1e9
    first = np.array([each.first_token_ns for each in outcomes]) / 1e9
    last = np.array([each.finished_ns for each in outcomes]) / 1e9
    tokens = np.array([each.output_tokens for each in outcomes])
    return first - arrived, (last - first) / np.maximum(1, tokens - 1), last - arrived


def loss(log: Log, found: tuple[np.ndarray, np.ndarray, np.ndarray], half: slice) -> float:
    """Mean relative errors; of TTFT against 0.1 s at least, since some are a few milliseconds."""
    ttft, tpot, e2e = found
    return float(
        np.mean(np.abs(ttft - log.ttft)[half] / np.maximum(0.1, log.ttft[half]))
        + np.mean(np.abs(tpot - log.tpot)[half] / log.tpot[half])
        + np.mean(np.abs(e2e - log.e2e)[half] / log.e2e[half])
    )


def fit(log: Log, half: slice, budget: int, rounds: int) -> Coefficients:
    """Coefficients by Nelder and Mead's method over their logarithms, from the data sheet's."""
    start = Coefficients()
    guess = np.array([getattr(start, name) for name in FITTED])

    def of(logs: np.ndarray) -> Coefficients:
        return replace(start, **dict(zip(FITTED, (guess * np.exp(logs)).tolist(), strict=True)))

    found = minimize(
        lambda logs: loss(log, simulated(log, of(logs), budget), half),
        np.zeros(len(guess)),
        method="Nelder-Mead",
        options={"maxfev": rounds, "initial_simplex": np.vstack([np.zeros(5), np.eye(5) * 0.4]), "xatol": 1e-3},
    )
    return of(found.x)


def errors(log: Log, found: tuple[np.ndarray, np.ndarray, np.ndarray], half: slice) -> dict[str, dict[str, float]]:
    """By figure: the error of the mean, of the median and of the 99th percentile, and the mean error of a request; in %."""
    stated = {}
    for name, truth, said in zip(("ttft", "tpot", "e2e"), (log.ttft, log.tpot, log.e2e), found, strict=True):
        truth, said = truth[half], said[half]
        stated[name] = {
            "vllm_mean_s": float(truth.mean()),
            "simulated_mean_s": float(said.mean()),
            "mean_%": float(100 * (said.mean() / truth.mean() - 1)),
            **{f"p{q}_%": float(100 * (np.percentile(said, q) / np.percentile(truth, q) - 1)) for q in (50, 90, 99)},
            "each_%": float(100 * np.mean(np.abs(said - truth) / truth)),
        }
    return stated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--rounds", type=int, default=150, help="simulations that the fit may take")
    parser.add_argument("--token-budget", type=int, default=TOKEN_BUDGET)
    parser.add_argument("--json", default="", metavar="FILE|-")
    given = parser.parse_args()
    log = read(given.log)
    count = len(log.trace.requests)
    first, second = slice(0, count // 2), slice(count // 2, count)
    coefficients = fit(log, first, given.token_budget, given.rounds)
    found = simulated(log, coefficients, given.token_budget)
    result: dict[str, Any] = {
        "tierline": __version__,
        "requests": count,
        "token_budget": given.token_budget,
        "sequences": SEQUENCES,
        "coefficients": {name: asdict(coefficients)[name] for name in FITTED},
        "data_sheet": errors(log, simulated(log, Coefficients(), given.token_budget), second),
        "first_half": errors(log, found, first),
        "second_half": errors(log, found, second),
    }
    if given.json == "-":
        print(json.dumps(result, indent=1))
        return 0
    for half in ("first_half", "second_half", "data_sheet"):
        print(half)
        for name, row in result[half].items():
            cells = "  ".join(f"{key} {value:8.3f}" for key, value in row.items())
            print(f"  {name:5} {cells}")
    print(", ".join(f"{name} {value:.3g}" for name, value in result["coefficients"].items()))
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
