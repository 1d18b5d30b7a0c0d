"""The policies of the kernel tier by name. Their decisions cost microseconds and are taken in native/core; this mapping
is the one place where their names, options and descriptions stand for the command line, the config and the docs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from tierline.core.errors import UnknownName

KernelMode = Literal["strict", "latency"]
KernelPriority = Literal["high", "best-effort"]
MODES: tuple[KernelMode, ...] = get_args(KernelMode)
PRIORITIES: tuple[KernelPriority, ...] = get_args(KernelPriority)


@dataclass(frozen=True, slots=True)
class KernelPolicy:
    """A policy of native/core. `doc` has the five lines that every policy has (Idea, Source, Inputs, Memory, Cost).

    `shares` tells whether kernels of two clients may run at the same instant, `limits` whether the sums of SM and bandwidth
    use are kept within their limits, `needs_profiles` whether it looks at demands at all."""

    name: str
    doc: str
    shares: bool
    limits: bool
    needs_profiles: bool


_ALL = (
    KernelPolicy(
        "interference",
        "Idea: whenever demand is released, look at the waiting heads of all clients together and admit the set that "
        "promises most progress while the sums of SM and of memory-bandwidth use stay within the device's limits. Best "
        "effort beside a high-priority client is bounded by what it costs: in mode `strict` by the predicted time of its "
        "work in flight, in mode `latency` by an account of the high-priority time lost, fed with what the slowdown limit "
        "allows. In mode `latency` a kernel that costs much waits for a pause of high priority, and one that fits "
        "nowhere may go by itself if the account covers it. "
        "Source: the Kernel Manager; ours. "
        "Inputs: the demands of heads and running streams, priorities, high-priority iterations, seen durations. "
        "Memory: of each kernel the high-priority time it costs per time of its own (harm); the balance of the account. "
        "Cost: exact over subsets of up to 8 heads, greedy by complementarity beyond.",
        shares=True,
        limits=True,
        needs_profiles=True,
    ),
    KernelPolicy(
        "sequential",
        "Idea: one client's kernels at a time; high priority goes first whenever the device changes hands. "
        "Source: time slicing; the baseline of every paper here. "
        "Inputs: who has work. Memory: who had the device last. Cost: one pass over the heads.",
        shares=False,
        limits=True,
        needs_profiles=False,
    ),
    KernelPolicy(
        "free",
        "Idea: no gate at all; launches are counted and pass. Kernels run as the hardware lets them. "
        "Source: plain CUDA streams, or MPS between processes. "
        "Inputs: none. Memory: none. Cost: none.",
        shares=True,
        limits=False,
        needs_profiles=False,
    ),
    KernelPolicy(
        "orion",
        "Idea: high priority is never held; a best-effort kernel goes when high priority is idle, or when it is of the other "
        "bound class and needs few SMs, and only so much best-effort work is in flight. "
        "Source: Orion, EuroSys 2024. "
        "Inputs: bound classes, SMs occupied, durations. Memory: none. Cost: one pass over the heads.",
        shares=True,
        limits=False,
        needs_profiles=True,
    ),
    KernelPolicy(
        "reef",
        "Idea: best-effort kernels pad the SMs that the running high-priority kernel leaves, if they end no later than it. "
        "Source: REEF, OSDI 2022 (dynamic kernel padding). "
        "Inputs: SMs occupied, durations. Memory: none. Cost: one pass over the heads.",
        shares=True,
        limits=False,
        needs_profiles=True,
    ),
    KernelPolicy(
        "tgs",
        "Idea: best effort launches at a rate that rises slowly while high priority keeps its own, and falls "
        "when it does not. "
        "Source: TGS, NSDI 2023 (additive increase, multiplicative decrease). "
        "Inputs: launch rates. Memory: both rates and the tokens left. Cost: constant.",
        shares=True,
        limits=False,
        needs_profiles=False,
    ),
    KernelPolicy(
        "lanes",
        "Idea: each priority class has its share of the SMs, and a kernel waits while its class has used its share. "
        "Source: Semi-PD (SM shares for prefill and decode). "
        "Inputs: SMs occupied. Memory: none. Cost: one pass over the heads.",
        shares=True,
        limits=False,
        needs_profiles=True,
    ),
    KernelPolicy(
        "pair",
        "Idea: at most one compute-bound and one memory-bound kernel run at a time. "
        "Source: NanoFlow, 2024. "
        "Inputs: bound classes. Memory: none. Cost: one pass over the heads.",
        shares=True,
        limits=False,
        needs_profiles=True,
    ),
    KernelPolicy(
        "gate",
        "Idea: best effort pauses at its next launch while high priority works; only so many launches are in flight. "
        "Source: FlowPrefill, 2026; XSched's highest-priority-first is the same with a depth of 16. "
        "Inputs: priorities. Memory: none. Cost: one pass over the heads.",
        shares=False,
        limits=False,
        needs_profiles=False,
    ),
)

POLICIES: Mapping[str, KernelPolicy] = {policy.name: policy for policy in _ALL}

DEFAULT_POLICY = "interference"
DEFAULT_MODE: KernelMode = "latency"
DEFAULT_PRIORITY: KernelPriority = "best-effort"


def kernel_policy(name: str) -> KernelPolicy:
    """The registered policy; raises `UnknownName`."""
    if name not in POLICIES:
        raise UnknownName("kernel policy", name, POLICIES)
    return POLICIES[name]


def kernel_mode(name: str) -> KernelMode:
    """`strict` (the sums are never exceeded, high priority may wait for what runs already) or `latency` (high priority
    never waits, any excess is counted); raises `UnknownName`."""
    if name not in MODES:
        raise UnknownName("kernel mode", name, MODES)
    return name


def kernel_priority(name: str) -> KernelPriority:
    """`high` or `best-effort`; raises `UnknownName`."""
    if name not in PRIORITIES:
        raise UnknownName("kernel priority", name, PRIORITIES)
    return name
