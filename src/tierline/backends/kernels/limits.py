"""Random workloads on the simulated device, and what became of the limits: for the benchmark and the tests.

A workload is two to six clients whose kernels, streams, graphs, priorities and limits are drawn by its seed
(native/sim/src/random_scenario.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tierline.backends.kernels.sim import PPM, parse_profiles
from tierline.kernels.native import load
from tierline.policies.kernels import KernelMode

KEPT_SEEDS = 5


@dataclass(frozen=True, slots=True)
class Draw:
    """How workloads are run. `margin` lowers both limits that the gate keeps by that share; what is judged stays."""

    policy: str = "interference"
    mode: KernelMode = "strict"
    profiles: str = "exact"
    exact_ends: bool = True
    margin: float = 0.0
    duration_ns: int = 10_000_000
    device: str = "h200"


@dataclass(frozen=True, slots=True)
class Window:
    """While the newest launch was one of [from_launch, to_launch): the largest excess, its time, the time together."""

    from_launch: int
    to_launch: int
    most: float = 0.0
    excess_ns: int = 0
    shared_ns: int = 0

    @property
    def share(self) -> float:
        return self.excess_ns / self.shared_ns if self.shared_ns else 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """Many workloads together. `over_limit`: how many had a true sum over its limit; `worst_seeds`: some of those."""

    workloads: int = 0
    over_limit: int = 0
    stuck: int = 0
    launches: int = 0
    forced: int = 0
    busy_ns: int = 0
    shared_ns: int = 0
    excess_ns: int = 0
    excess_most: float = 0.0
    longest_wait_ns: int = 0
    windows: tuple[Window, ...] = ()
    worst_seeds: tuple[int, ...] = ()

    @property
    def shared_share(self) -> float:
        return self.shared_ns / self.busy_ns if self.busy_ns else 0.0

    @property
    def excess_share(self) -> float:
        return self.excess_ns / self.shared_ns if self.shared_ns else 0.0

    def joined(self, other: Group) -> Group:
        """Both together."""
        merged: dict[str, Any] = {}
        for each in fields(self):
            mine, others = getattr(self, each.name), getattr(other, each.name)
            if each.name in ("excess_most", "longest_wait_ns"):
                merged[each.name] = max(mine, others)
            elif each.name == "windows":
                merged[each.name] = _windows_together(mine, others)
            else:
                merged[each.name] = mine + others
        merged["worst_seeds"] = merged["worst_seeds"][:KEPT_SEEDS]
        return Group(**merged)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _windows_together(mine: Sequence[Window], others: Sequence[Window]) -> tuple[Window, ...]:
    longer, shorter = (mine, others) if len(mine) >= len(others) else (others, mine)
    return (
        *(
            Window(
                a.from_launch,
                a.to_launch,
                max(a.most, b.most),
                a.excess_ns + b.excess_ns,
                a.shared_ns + b.shared_ns,
            )
            for a, b in zip(longer, shorter, strict=False)
        ),
        *longer[len(shorter) :],
    )


def run_group(draw: Draw, first_seed: int, count: int) -> Group:
    """Workloads with the seeds `first_seed` and on. Raises `InvalidInput`, `MissingNative`."""
    load()
    from tierline import _native

    source, noise = parse_profiles(draw.profiles)
    device = _native.device(draw.device)
    group = Group()
    for seed in range(first_seed, first_seed + count):
        scenario = _native.random_scenario(device, seed, draw.duration_ns)
        config = scenario.config
        config.policy, config.mode = draw.policy, draw.mode
        judged = config.alpha_ppm, config.beta_ppm
        config.alpha_ppm, config.beta_ppm = (round(limit * (1 - draw.margin)) for limit in judged)
        scenario.judged_alpha, scenario.judged_beta = (limit / PPM for limit in judged)
        scenario.profiles, scenario.noise = source, noise
        scenario.completions = "exact" if draw.exact_ends else "polled"
        seen = _native.simulate(scenario)
        statistics = [client.statistics for client in seen.clients]
        is_over = seen.excess_most > 0.0
        group = group.joined(
            Group(
                workloads=1,
                over_limit=int(is_over),
                stuck=int(seen.stuck),
                launches=seen.launches,
                forced=sum(each.forced for each in statistics),
                busy_ns=seen.busy_ns,
                shared_ns=seen.shared_ns,
                excess_ns=seen.excess_ns,
                excess_most=seen.excess_most,
                longest_wait_ns=max(each.longest_wait_ns for each in statistics),
                windows=tuple(
                    Window(w.from_launch, w.to_launch, w.most, w.excess_ns, w.shared_ns) for w in seen.excess
                ),
                worst_seeds=(seed,) if is_over or seen.stuck else (),
            )
        )
    return group
