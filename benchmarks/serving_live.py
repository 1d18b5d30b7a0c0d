"""Live against simulated: instances on this machine under presets, and the simulator on the same requests.

Setting. `tierline serve tiny-vlm --instances 8 --pace h100:Qwen2.5-VL-7B --pace-positions 16 --pace-stretch 12`: eight real
processes that take as long as H100s with a 7B model would, times twelve, a position standing for sixteen; tokens, KV, moves,
HTTP and decisions are real. The load generator's library sends texts and pictures by the clock, from a process of its own.
Presets take turns (`--rounds`); each session is a server of its own. The *light* and *half* loads are steady, the *burst*
load has four times as many image requests in the last 5 of every 15 seconds, and the *drift* load has these bursts while its
images grow from 2 to 8 of 10 requests. The best static split of a load is the one that the simulator says, of `SPLITS`.
Then each run's requests, as they were sent and as the server counted their tokens, go through the simulator with the same
presets, scaled times, limits and SLO. What it does not have: the host's own work (HTTP, tokens to text, decoding of pictures,
small iterations of the real model on too few cores).

With `--profile FILE`, of `tierline calibrate serving tiny-vlm --threads 1`, nothing is paced: instances are as fast as they
are. The simulator has the profile's times, once as they were measured (`calibrated`) and once times the factors that the
instances had told when the load began (`simulated`), after a quarter of a minute of warm-up. The way to an instance and back
(HTTP, tokens, messages) is measured before each session by texts sent one after the other, and is a message's time twice.

About thirteen minutes; --session N runs one session alone and keeps the others' figures that the file has.

    python benchmarks/serving_live.py --json docs/results/serving_live.json
    python benchmarks/serving_live.py --loads drift --seconds 600 --rounds 1 --json docs/results/serving_live_drift.json
    python benchmarks/serving_live.py --profile tiny-vlm.toml --instances 1 --loads light,half --rate 40 \
        --slo ttft=250ms,tpot=25ms --policies adaptive,coupled
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import secrets
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

import tierline
from tierline import serving_experiments as experiments
from tierline.backends.serving.sim import SimServing
from tierline.clock import SimClock
from tierline.core.served_outcome import ServedOutcome
from tierline.core.served_trace import ServedTrace, TracedRequest
from tierline.core.slo import Slo
from tierline.core.stage_times import BatchShape, StageTimes
from tierline.perf.device_times import stage_times, times_of
from tierline.perf.fitted_rates import refitted
from tierline.perf.scaled_times import ScaledTimes
from tierline.perf.serving_demand import StageRates
from tierline.perf.serving_profile import ServingProfile, load_profile
from tierline.presets import preset_of
from tierline.runtime import serving_report
from tierline.runtime.driver import Driver
from tierline.workloads.replay_client import Replay, ReplayOptions, replay
from tierline.workloads.serving import load_served, workload_hash

DEVICE, POSITIONS, TOKEN_BUDGET = "h100:Qwen2.5-VL-7B", 16, 2048
TEXT = "synthetic?images=0&text_tokens=100&text_sigma=0.7&output_tokens=30&output_sigma=0.6"
IMAGES = (
    "synthetic?images=2.5&image_tokens=64&image_sigma=0&text_tokens=40&text_sigma=0.5&output_tokens=20&output_sigma=0.6"
)
IMAGE_TOKENS = 64  # of any picture in tiny-vlm
BURSTS = "&burst_every_s=15&burst_s=5&burst_factor=4"
SPLITS = ("2E2P4D", "2E3P3D", "1E3P4D", "1E4P3D", "4EP4D", "5EP3D", "6EP2D", "2E6PD", "1E7PD", "4EP4PD")
LATENCY_NS = 1_000_000  # of a message, paced
PROBES, PROBE_GAP_S = 30, 0.15
PROBE = "synthetic?images=0&text_tokens=100&text_sigma=0.7&output_tokens=2&output_sigma=0"
PREPARE_S = 0.003  # to decode a picture of these sizes here
TEMPLATE_TOKENS = 12  # around a question
WARM_UP_S = 5.0
WARM_UP_PROFILE_S = 15.0  # in which instances find out how long things take


@dataclass(frozen=True, slots=True)
class Load:
    """`rate` in requests/s; `mix`: what else the workload has."""

    name: str
    rate: float
    mix: str = "&mm_share=0.5"

    @property
    def changes(self) -> bool:
        return BURSTS in self.mix


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs share."""

    instances: int
    stretch: float
    seconds: float
    rate: float
    slo: str
    seed: int
    profile: str = ""  # "" = paced

    @property
    def loads(self) -> dict[str, Load]:
        found = (
            Load("light", 0.25 * self.rate),
            Load("half", 0.5 * self.rate),
            Load("burst", self.rate, f"&mm_share=0.5{BURSTS}"),
            Load("drift", self.rate, f"&mm_share=0.2&mm_share_end=0.8{BURSTS}"),
        )
        return {each.name: each for each in found}

    @property
    def calibrated(self) -> ServingProfile | None:
        return load_profile(Path(self.profile)) if self.profile else None

    @property
    def promise(self) -> Slo:
        return Slo.parse(self.slo)

    def trace(self, load: Load, seconds: float) -> ServedTrace:
        mix = f"mix?rate={load.rate}&seconds={seconds}&seed={self.seed}{load.mix}"
        return load_served(f"{mix}+{TEXT}+{IMAGES}")


# --- simulated


class Played(ScaledTimes):
    """What paced instances are timed by; but pictures are decoded by this machine, in milliseconds that nobody stretches."""

    def prepare_s(self, patches: int) -> float:
        return PREPARE_S


def simulated(
    plan: Plan,
    policy: str,
    requests: tuple[TracedRequest, ...],
    latency_ns: int = LATENCY_NS,
    profile: ServingProfile | None = None,
) -> tuple[ServedOutcome, ...]:
    """The same preset over the same times and requests. `profile`: not the plan's, but this."""
    profile = profile or plan.calibrated
    paced = profile is None
    times: StageTimes = Played(stage_times(DEVICE), POSITIONS, plan.stretch) if paced else times_of(profile)
    setup = experiments.ServingSetup(
        plan.profile or DEVICE,
        plan.instances,
        plan.promise,
        token_budget=TOKEN_BUDGET // POSITIONS if paced else TOKEN_BUDGET,
        block_tokens=16,
        latency_ns=latency_ns,
    )
    options, scheduler = experiments.options_of(preset_of(policy), times, setup)
    clock = SimClock()
    backend = SimServing(
        clock, ServedTrace("as sent", requests, workload_hash(requests)), times, options, scheduler.tick_ns
    )
    Driver(scheduler, backend, clock).run()
    return backend.outcomes()


def tried_splits(plan: Plan, load: Load) -> dict[str, float]:
    """Goodput under the load that the simulator gives each static split of as many instances."""
    trace = plan.trace(load, plan.seconds)
    requests = tuple(replace(each, text_tokens=each.text_tokens + TEMPLATE_TOKENS) for each in trace.requests)
    found = {}
    for split in SPLITS if plan.instances == 8 else ():
        policy = f"static:{split}"
        figures = judged(plan, simulated(plan, policy, requests), plan.seconds)
        found[policy] = round(figures.all.goodput_per_s, 4)
    return found


def judged(plan: Plan, outcomes: Sequence[ServedOutcome], seconds: float) -> serving_report.ServingReport:
    """Those that were due after the warm-up."""
    return serving_report.report(outcomes, plan.promise, plan.instances, (round(WARM_UP_S * 1e9), round(seconds * 1e9)))


# --- live


@contextmanager
def server(plan: Plan, policy: str) -> Iterator[str]:
    """A fresh deployment that is ready; ends with the block."""
    command = [sys.executable, "-m", "tierline.cli.main", "serve", "tiny-vlm", "--port", "0", "--threads", "1"]
    command += ["--instances", str(plan.instances), "--policy", policy, "--slo", plan.slo]
    if plan.profile:
        command += ["--profile", plan.profile]
    else:
        command += ["--pace", DEVICE, "--pace-positions", str(POSITIONS), "--pace-stretch", str(plan.stretch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            listening = process.stdout.readline()
            if not process.stdout.readline():
                sys.exit(2)
            yield listening.split()[-1]
        finally:
            process.terminate()


def cpu_times() -> tuple[float, float]:
    """Seconds of all cores so far: busy, and altogether."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / 100, sum(fields) / 100


def own_cpu_s() -> float:
    """CPU seconds of this process and of all that descend from it."""
    parents: dict[int, int] = {}
    used_s: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(stat.parent.name)] = int(fields[1])
        used_s[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / 100
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(used_s[pid] for pid in ours)


def as_counted(found: Replay) -> tuple[TracedRequest, ...]:
    """The requests as they were due, with the tokens that the server counted and made."""
    return tuple(
        replace(
            each.request,
            arrived_ns=each.outcome.arrived_ns,
            text_tokens=max(1, each.prompt_tokens - IMAGE_TOKENS * len(each.request.images)),
            output_tokens=max(1, each.outcome.output_tokens),
            images=tuple(replace(image, tokens=IMAGE_TOKENS) for image in each.request.images),
        )
        for each in found.sent
    )


def latency_ns_of(plan: Plan, profile: ServingProfile, url: str) -> int:
    """Half of what the first token of a text takes on an idle server, less the iteration that computes it; the median."""
    drawn = load_served(f"mix?rate=10&requests={PROBES}&seed={plan.seed}+{PROBE}").requests
    spaced = tuple(replace(each, arrived_ns=round((place + 1) * PROBE_GAP_S * 1e9)) for place, each in enumerate(drawn))
    found = asyncio.run(replay(url, spaced, ReplayOptions(salt=secrets.token_hex(4))))
    times = times_of(profile)
    ways_s = [
        (each.outcome.first_token_ns - each.outcome.arrived_ns) / 1e9
        - times.iteration_s(BatchShape(((each.prompt_tokens, 0),)))
        for each in found.sent
    ]
    return max(0, round(statistics.median(ways_s) / 2 * 1e9))


def told_factors(profile: ServingProfile, url: str) -> tuple[float, ...]:
    """By which the instances have found the parts of `profile` to take longer (`perf.fitted_rates`)."""
    rates, told = StageRates.of(times_of(profile)), httpx.get(f"{url}/tierline/status").json()["rates"]
    keys = ("decode_base_s", "prefill_token_s", "decode_sequence_s", "decode_context_s", "encode_patch_s")
    return tuple(told[key] / getattr(rates, key) if getattr(rates, key) > 0 else 1.0 for key in keys)


def run(plan: Plan, policy: str, load: Load, url: str, latency_ns: int) -> dict[str, Any]:
    """One load on a server that is there, and the simulator on what it was sent."""
    seconds = plan.seconds
    trace = plan.trace(load, seconds)
    before = httpx.get(f"{url}/tierline/status").json()
    profile = plan.calibrated
    factors = told_factors(profile, url) if profile else ()
    (busy, whole), own_s = cpu_times(), own_cpu_s()
    found = asyncio.run(replay(url, trace.requests, ReplayOptions(salt=secrets.token_hex(4))))
    busy, whole, own_s = cpu_times()[0] - busy, cpu_times()[1] - whole, own_cpu_s() - own_s
    after = httpx.get(f"{url}/tierline/status").json()
    first_ns = trace.requests[0].arrived_ns  # outcomes count from the first
    live = judged(plan, found.outcomes, seconds - first_ns / 1e9)
    sent = as_counted(found)

    def predicted(profile: ServingProfile | None) -> dict[str, Any]:
        outcomes = simulated(plan, policy, sent, latency_ns, profile)
        return figures(judged(plan, outcomes, seconds - first_ns / 1e9))

    counts = {
        key: after["counts"].get(key, 0) - before["counts"].get(key, 0)
        for key in ("dispatched", "moves", "group_changes", "role_changes", "instances_lost")
    }
    return {
        "policy": policy,
        "load": load.name,
        "rate": load.rate,
        "workload": trace.workload_hash,
        "requests": len(found.sent),
        "cpu_busy": round(busy / whole, 3),
        "cpu_own": round(own_s / whole, 3),
        "late_p99_s": found.late_p99_s,
        "latency_ns": latency_ns,
        "counts": counts,
        "live": figures(live),
        "simulated": predicted(refitted(profile, factors) if profile else None),
        **({"factors": factors, "calibrated": predicted(None)} if profile else {}),
    }


def figures(report: serving_report.ServingReport) -> dict[str, Any]:
    found = {kind: asdict(getattr(report, kind)) for kind in ("all", "text", "images")}
    return dict(_plain(found))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return (None if not math.isfinite(value) else round(value, 6)) if isinstance(value, float) else value


# --- all of it


def sessions(
    rounds: int, policies: list[str], loads: list[Load], best: dict[str, str]
) -> list[tuple[str, tuple[str, ...]]]:
    """Each a server under a policy and the loads that it gets: steady ones, then those that change in turns, the other way
    round every second time, with the best split of each."""
    steady = tuple(load.name for load in loads if not load.changes)
    found: list[tuple[str, tuple[str, ...]]] = [(policy, steady) for policy in policies if steady]
    for number in range(rounds):
        for load in loads:
            if load.changes:
                turn = [*policies, *([best[load.name]] if load.name in best else [])]
                found += [(policy, (load.name,)) for policy in (turn if number % 2 == 0 else turn[::-1])]
    return found


def show(kept: dict[str, Any]) -> None:
    print(f"\n{'':28}{'goodput/s':>18}{'text TTFT P99':>20}{'TTFT P50':>18}{'TPOT P50':>18}   CPU")
    for each in kept["runs"]:
        live, said = each["live"], each["simulated"]

        def pair(kind: str, *path: str, live: Any = live, said: Any = said) -> str:
            values = [kinds[kind] for kinds in (live, said)]
            for key in path:
                values = [value[key] for value in values]
            return " / ".join("-" if value is None else f"{value:.3g}" for value in values)

        print(
            f"{each['load']:<6}{each['policy']:<22}{pair('all', 'goodput_per_s'):>18}{pair('text', 'ttft', 'p99'):>20}"
            f"{pair('all', 'ttft', 'p50'):>18}{pair('all', 'tpot', 'p50'):>18}"
            f"   {each['cpu_own']:.0%} of {each['cpu_busy']:.0%}"
        )
    print("Each live / simulated. CPU: of this benchmark and its server, of all that was used.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--stretch", type=float, default=12.0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a run")
    parser.add_argument(
        "--rate", type=float, default=5.0, help="requests/s of burst and drift; half and light: of this"
    )
    parser.add_argument("--slo", default="ttft=2.4s,tpot=144ms")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--policies", default="adaptive,coupled", help="beside the best static split")
    parser.add_argument("--loads", default="light,half,burst", help="of light, half, burst and drift")
    parser.add_argument("--profile", default="", metavar="FILE", help="do not pace; what the simulator's times are")
    parser.add_argument("--session", type=int, default=-1, help="only this one")
    parser.add_argument("--plan", action="store_true", help="simulate the loads alone")
    parser.add_argument("--json", type=Path, default=None, help="where figures are kept")
    told = parser.parse_args()
    plan = Plan(told.instances, told.stretch, told.seconds, told.rate, told.slo, told.seed, told.profile)
    loads = [plan.loads[name] for name in told.loads.split(",")]
    kept: dict[str, Any] = {"runs": []}
    if told.json is not None and told.session >= 0 and told.json.exists():
        kept = json.loads(told.json.read_text())
        kept["runs"] = [each for each in kept["runs"] if each["session"] != told.session]
    splits = kept.get("static_goodput_simulated", {})
    if kept.get("plan") != asdict(plan) or set(splits) != {load.name for load in loads if load.changes}:
        splits = {load.name: tried_splits(plan, load) for load in loads if load.changes}
    best = {name: max(goodput, key=goodput.__getitem__) for name, goodput in splits.items() if goodput}
    todo = sessions(told.rounds, told.policies.split(","), loads, best)
    if told.plan:
        for load in loads:
            requests = plan.trace(load, plan.seconds).requests
            for policy in dict.fromkeys(policy for policy, names in todo if load.name in names):
                found = judged(plan, simulated(plan, policy, requests), plan.seconds)
                print(
                    f"{load.name} {policy} {found.all.goodput_per_s:.2f}/s, {found.all.attainment:.1%}, {found.all.ttft}, "
                    f"{found.all.tpot}"
                )
        print(splits)
        print(
            "\n".join(f"session {number}: {policy}, {', '.join(names)}" for number, (policy, names) in enumerate(todo))
        )
        return
    kept |= {
        "tierline": tierline.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "plan": asdict(plan),
        **({} if plan.profile else {"device": DEVICE, "positions": POSITIONS}),
        "static_goodput_simulated": splits,
    }
    for number, (policy, names) in enumerate(todo):
        if told.session not in (-1, number):
            continue
        with server(plan, policy) as url:
            latency_ns = LATENCY_NS
            if (profile := plan.calibrated) is not None:
                warm = plan.trace(plan.loads["half"], WARM_UP_PROFILE_S).requests
                asyncio.run(replay(url, warm, ReplayOptions(salt=secrets.token_hex(4))))
                latency_ns = latency_ns_of(plan, refitted(profile, told_factors(profile, url)), url)
            for name in names:
                done = run(plan, policy, plan.loads[name], url, latency_ns)
                kept["runs"].append({"session": number, **done})
                print(f"session {number}, {policy}, {name}: done", file=sys.stderr)
        kept["runs"].sort(key=lambda each: each["session"])
        if told.json is not None:
            told.json.write_text(json.dumps(kept, indent=1) + "\n")
    show(kept)


if __name__ == "__main__":
    main()
