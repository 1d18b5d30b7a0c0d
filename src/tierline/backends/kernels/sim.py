"""Programs on a simulated device under the gate that the interposer runs: the real admission, virtual time.

All of it happens in `tierline._native` (native/sim): the admission is `native/core`, the device and its programs are
`native/fake/engine`. Here a scenario is checked, handed over and read back; whoever shows an outcome says "simulated device".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.nouns import NS_PER_S
from tierline.kernels.environment import FAKE_DEVICES
from tierline.kernels.native import load
from tierline.policies.kernels import DEFAULT_MODE, MODES, KernelMode, KernelPriority

if TYPE_CHECKING:
    from tierline._native import ClientOutcome as NativeClient
    from tierline._native import Scenario as NativeScenario

PPM = 1_000_000
PROFILES = ("exact", "noisy:SHARE", "tagged", "none")


@dataclass(frozen=True, slots=True)
class SimulatedClient:
    """A program of `tierline._native.programs()`, by name."""

    program: str
    priority: KernelPriority = "best-effort"


@dataclass(frozen=True, slots=True)
class KernelScenario:
    """Clients on one device. `policy` None: no Tierline, plain streams. `profiles`: what the admission is told of the
    kernels: `exact`, `noisy:0.2` (each share off by an independent factor in 1 ± 0.2), `tagged` (shapes only), `none`.
    `exact_ends`: it hears of every end at once instead of as the live poller does. `alpha`, `beta`: limits of both sums;
    None = the core's. Rates and latencies count from `warmup_ns` to `duration_ns`."""

    clients: tuple[SimulatedClient, ...]
    policy: str | None = "interference"
    mode: KernelMode = DEFAULT_MODE
    device: str = "h200"
    profiles: str = "exact"
    exact_ends: bool = False
    alpha: float | None = None
    beta: float | None = None
    seed: int = 0
    duration_ns: int = 2 * NS_PER_S
    warmup_ns: int = NS_PER_S // 5
    keep_sums: bool = False


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """`per_s`: iterations (steps, batches, requests) a second; `latencies_ns` of each: a server's from the arrival on.
    Waits are those in the gate."""

    program: str
    priority: KernelPriority
    per_s: float
    latencies_ns: tuple[int, ...]
    p50_ns: int
    p99_ns: int
    launches: int
    waited: int
    forced: int
    wait_ns: int
    longest_wait_ns: int
    excess: int


@dataclass(frozen=True, slots=True)
class Sums:
    """Both sums of the kernels on the device from `at_ns` on, and how many clients they are of."""

    at_ns: int
    sm: float
    bw: float
    clients: int


@dataclass(frozen=True, slots=True)
class KernelOutcome:
    """The true sums count at instants at which kernels of two or more clients run; the excess is over alpha or beta."""

    clients: tuple[ClientFigures, ...]
    stuck: bool
    end_ns: int
    busy_ns: int
    shared_ns: int
    sm_peak: float
    bw_peak: float
    excess_ns: int
    excess_most: float
    predicted_sm_peak: float
    predicted_bw_peak: float
    events: int
    fences: int
    sums: tuple[Sums, ...]


def simulate(scenario: KernelScenario) -> KernelOutcome:
    """Run it. Deterministic. Raises `UnknownName`, `InvalidInput`, `MissingNative`."""
    native_scenario = to_native(scenario)
    from tierline import _native

    try:
        seen = _native.simulate(native_scenario)
    except ValueError as error:
        raise InvalidInput(f"{error}.") from None
    return KernelOutcome(
        clients=tuple(_figures(client) for client in seen.clients),
        stuck=seen.stuck,
        end_ns=seen.end_ns,
        busy_ns=seen.busy_ns,
        shared_ns=seen.shared_ns,
        sm_peak=seen.shared_sm_peak,
        bw_peak=seen.shared_bw_peak,
        excess_ns=seen.excess_ns,
        excess_most=seen.excess_most,
        predicted_sm_peak=seen.predicted_sm_peak_ppm / PPM,
        predicted_bw_peak=seen.predicted_bw_peak_ppm / PPM,
        events=seen.events,
        fences=seen.fences,
        sums=tuple(Sums(sums.at_ns, sums.sm, sums.bw, sums.clients) for sums in seen.sums),
    )


def to_native(scenario: KernelScenario) -> NativeScenario:
    """The scenario as the native module takes it, names checked."""
    load()
    from tierline import _native

    programs = {program.name: program for program in _native.programs()}
    for client in scenario.clients:
        if client.program not in programs:
            raise UnknownName("simulated program", client.program, programs)
    if scenario.device not in FAKE_DEVICES:
        raise UnknownName("simulated device", scenario.device, FAKE_DEVICES)
    if scenario.policy is not None and scenario.policy not in _native.POLICIES:
        raise UnknownName("kernel policy", scenario.policy, _native.POLICIES)
    if scenario.mode not in MODES:
        raise UnknownName("mode", scenario.mode, MODES)
    made = _native.Scenario(
        _native.device(scenario.device),
        [_native.ClientSpec(programs[client.program], client.priority) for client in scenario.clients],
    )
    made.gated = scenario.policy is not None
    config = made.config
    if scenario.policy is not None:
        config.policy, config.mode = scenario.policy, scenario.mode
    if scenario.alpha is not None:
        config.alpha_ppm = _limit("alpha", scenario.alpha)
    if scenario.beta is not None:
        config.beta_ppm = _limit("beta", scenario.beta)
    made.completions = "exact" if scenario.exact_ends else "polled"
    made.profiles, made.noise = parse_profiles(scenario.profiles)
    made.seed = scenario.seed
    made.duration_ns, made.warmup_ns = scenario.duration_ns, scenario.warmup_ns
    made.keep_sums = scenario.keep_sums
    return made


def parse_profiles(text: str) -> tuple[Literal["exact", "noisy", "tagged", "none"], float]:
    """The source of profiles and the noise's share.

    >>> parse_profiles("noisy:0.2")
    ('noisy', 0.2)
    """
    match text.partition(":"):
        case ("exact" | "tagged" | "none") as source, "", "":
            return source, 0.0
        case "noisy", ":", share:
            try:
                noise = float(share)
            except ValueError:
                noise = -1.0
            if 0.0 <= noise < 1.0:
                return "noisy", noise
    raise InvalidInput(f"profiles are {', '.join(PROFILES)} with 0 ≤ SHARE < 1, as in noisy:0.2; got '{text}'.")


def _limit(name: str, share: float) -> int:
    if not 0.0 < share <= 1.0:
        raise InvalidInput(f"{name} is a share of the device above 0 and up to 1; got {share:g}.")
    return round(share * PPM)


def _figures(client: NativeClient) -> ClientFigures:
    seen = client.statistics
    return ClientFigures(
        program=client.program,
        priority=client.priority,
        per_s=client.per_s,
        latencies_ns=tuple(client.latencies_ns),
        p50_ns=client.p50_ns,
        p99_ns=client.p99_ns,
        launches=seen.launches,
        waited=seen.waited,
        forced=seen.forced,
        wait_ns=seen.wait_ns,
        longest_wait_ns=seen.longest_wait_ns,
        excess=seen.excess,
    )
