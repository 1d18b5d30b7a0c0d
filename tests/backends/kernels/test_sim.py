"""The kernel tier's simulated backend: what goes in, what comes out, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("tierline._native", reason="the native part is not built (scripts/native)")

from tierline import _native
from tierline.backends.kernels.sim import (
    NS_PER_S,
    KernelScenario,
    SimulatedClient,
    parse_profiles,
    simulate,
)
from tierline.core.errors import InvalidInput, UnknownName

PAIR = KernelScenario(
    clients=(SimulatedClient("vision-server", "high"), SimulatedClient("resnet50-train", "best-effort")),
    duration_ns=NS_PER_S // 5,
    warmup_ns=NS_PER_S // 50,
)


def test_the_same_scenario_gives_the_same_outcome() -> None:
    assert simulate(PAIR) == simulate(PAIR)
    assert simulate(PAIR) != simulate(replace(PAIR, seed=1))


@pytest.mark.parametrize("policy", _native.POLICIES)
@pytest.mark.parametrize("mode", ["strict", "latency"])
def test_every_policy_serves_high_priority(policy: str, mode: str) -> None:
    outcome = simulate(replace(PAIR, policy=policy, mode=mode))  # type: ignore[arg-type]
    assert not outcome.stuck
    high, best_effort = outcome.clients
    assert high.per_s > 0 and len(high.latencies_ns) > 10
    assert best_effort.launches > 0
    assert all(client.forced == 0 for client in outcome.clients)


def test_sequential_keeps_clients_apart_and_plain_streams_do_not() -> None:
    assert simulate(replace(PAIR, policy="sequential", exact_ends=True)).shared_ns == 0
    plain = simulate(replace(PAIR, policy=None))
    assert plain.shared_ns > 0
    assert plain.clients[0].launches == 0  # nobody counted them
    assert plain.events == plain.fences == 0


def test_strict_keeps_the_true_sums_within_the_limits() -> None:
    outcome = simulate(replace(PAIR, mode="strict", alpha=0.9, beta=0.8))
    assert outcome.excess_ns == 0 and outcome.excess_most == 0.0
    assert outcome.sm_peak <= 0.9 and outcome.bw_peak <= 0.8
    assert outcome.predicted_sm_peak <= 0.9 and outcome.predicted_bw_peak <= 0.8


def test_kernels_without_profiles_are_learned() -> None:
    outcome = simulate(replace(PAIR, profiles="none"))
    assert not outcome.stuck and outcome.events > 0
    assert all(client.per_s > 0 for client in outcome.clients)


def test_the_sums_over_time_are_kept_when_asked_for() -> None:
    assert simulate(PAIR).sums == ()
    outcome = simulate(replace(PAIR, keep_sums=True))
    assert [sums.at_ns for sums in outcome.sums] == sorted(sums.at_ns for sums in outcome.sums)
    together = [sums for sums in outcome.sums if sums.clients > 1]
    assert max(sums.sm for sums in together) >= outcome.sm_peak > 0


def test_a_client_alone_is_never_gated() -> None:
    alone = replace(PAIR, clients=PAIR.clients[:1])
    gated, plain = simulate(alone), simulate(replace(alone, policy=None))
    assert gated.clients[0].waited == 0
    assert gated.events == gated.fences == 0
    assert len(gated.clients[0].latencies_ns) == len(plain.clients[0].latencies_ns)
    assert gated.clients[0].p50_ns < 1.1 * plain.clients[0].p50_ns


def test_names_and_numbers_are_checked() -> None:
    with pytest.raises(UnknownName, match="simulated program 'vision'"):
        simulate(replace(PAIR, clients=(SimulatedClient("vision"),)))
    with pytest.raises(UnknownName, match="simulated device 'h20'"):
        simulate(replace(PAIR, device="h20"))
    with pytest.raises(UnknownName, match="kernel policy 'fifo'"):
        simulate(replace(PAIR, policy="fifo"))
    with pytest.raises(UnknownName, match="mode 'lax'"):
        simulate(replace(PAIR, mode="lax"))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="alpha is a share"):
        simulate(replace(PAIR, alpha=1.2))
    with pytest.raises(InvalidInput, match="warmup_ns < duration_ns"):
        simulate(replace(PAIR, warmup_ns=PAIR.duration_ns))
    with pytest.raises(InvalidInput, match="between 1 and 64 clients"):
        simulate(replace(PAIR, clients=()))


@pytest.mark.parametrize("text", ["", "noisy", "noisy:x", "noisy:1", "noisy:-0.1", "exact:1", "counters"])
def test_profiles_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="profiles are exact, noisy:SHARE"):
        parse_profiles(text)
