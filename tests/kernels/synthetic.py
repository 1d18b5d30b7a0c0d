"""A region as the native module would hand it over, made up: a server with high priority beside a training job.

The server runs a short burst of kernels every two milliseconds; the trainer's kernels go beside it where both sums allow,
and wait where they do not. Sums are kept as the core keeps them: a stream counts with the largest demand in its queue.
"""

from __future__ import annotations

from types import SimpleNamespace

ATTENTION, GEMM, NORM = 0xA1, 0xB2, 0xC3
DEMANDS = {ATTENTION: (300_000, 290_000, 60_000), GEMM: (830_000, 210_000, 400_000), NORM: (120_000, 640_000, 150_000)}
NAMES = {ATTENTION: "flash_fwd_decode", GEMM: "sm90_gemm_128x128", NORM: "rms_norm_kernel"}
LIMIT = 950_000


def region(periods: int = 10) -> SimpleNamespace:
    """An object with the methods and attributes of the native `Region`."""
    trace, waits_ns = [], 0
    now = 5_000_000_000

    def note(at, kind, client, key, reason, running):
        sums = [sum(DEMANDS[k][i] for k in running) for i in (0, 1)]
        trace.append(
            SimpleNamespace(
                at_ns=at,
                key=key,
                client=client,
                stream=client,
                sm_ppm=sums[0],
                bw_ppm=sums[1],
                kind=kind,
                reason=reason,
            )
        )

    for period in range(periods):
        at, key = now + period * 2_000_000, (GEMM, NORM)[period % 2]
        note(at, "admitted", 1, key, "alone", [key])
        arrive = at + DEMANDS[key][2] // 2
        fits = all(DEMANDS[key][i] + DEMANDS[ATTENTION][i] <= LIMIT for i in (0, 1))
        start = arrive if fits else at + DEMANDS[key][2]
        if not fits:
            note(arrive, "waits", 0, ATTENTION, "sm_limit" if key == GEMM else "bw_limit", [key])
            waits_ns += start - arrive
            note(start, "ended", 1, key, "none", [])
        note(start, "admitted", 0, ATTENTION, "fits" if fits else "alone", [key, ATTENTION] if fits else [ATTENTION])
        note(start + DEMANDS[ATTENTION][2], "ended", 0, ATTENTION, "none", [key] if fits else [])
        if fits:  # the kernel beside it lasts longer
            note(at + DEMANDS[key][2], "ended", 1, key, "none", [])
    return SimpleNamespace(
        manager_pid=4242, created_ns=now, sm_ppm=0, bw_ppm=0, peak_sm_ppm=420_000, peak_bw_ppm=930_000, clients_joined=2,
        waiting=0, repairs=0, reaped=1,
        config=lambda: SimpleNamespace(
            policy="interference", mode="strict", alpha_ppm=LIMIT, beta_ppm=LIMIT,
            device=SimpleNamespace(sms=132, flops_per_s=9.89e14, bytes_per_s=4.8e12, memory_bytes=0),
        ),
        clients=lambda: [client(0, "serve", "high", periods, waits_ns), client(1, "train", "best-effort", periods, 0)],
        kernels=lambda: [kernel(key, periods if key == ATTENTION else periods // 2) for key in DEMANDS],
        waits=lambda: [SimpleNamespace(client=0, waited_for=1, wait_ns=waits_ns)] if waits_ns else [],
        trace=lambda: trace,
    )  # fmt: skip


def client(slot: int, label: str, priority: str, launches: int, wait_ns: int, **changes: object) -> SimpleNamespace:
    waits = [0] * 40
    waits[17] = launches // 2 if wait_ns else 0
    told = SimpleNamespace(
        launches=launches, at_once=launches - waits[17], waited=waits[17], forced=0, bypassed=1, overflowed=0, excess=0,
        denied_allocations=0, wait_ns=wait_ns, longest_wait_ns=240_000 if wait_ns else 0, predicted_busy_ns=1_080_000,
        observed_busy_ns=1_000_000, corun_ns=250_000, starved_ns=200_000, lost_ns=0, waits=waits,
    )  # fmt: skip
    row = SimpleNamespace(
        slot=slot, label=label, state=1, pid=100 + slot, priority=priority, waiting=0, memory_cap_bytes=8 << 30,
        memory_bytes=3 << 30, sm_ppm=300_000, bw_ppm=290_000, iteration_ns=2_000_000, statistics=told,
    )  # fmt: skip
    return SimpleNamespace(**(vars(row) | changes))


def kernel(key: int, launches: int, **changes: object) -> SimpleNamespace:
    sm, bw, duration_ns = DEMANDS[key]
    row = SimpleNamespace(
        key=key, name=NAMES[key], grid=(264, 4, 1), block=(256, 1, 1), registers=128, smem_static_bytes=0,
        smem_dynamic_bytes=49152, occupancy=2, flops=1e9, bytes=1e6,
        demand=SimpleNamespace(sm_ppm=sm, bw_ppm=bw, sm_blocks=132, duration_ns=duration_ns), source="roofline",
        bound="compute" if sm > bw else "memory", samples=3, launches=launches, waited=launches // 2, wait_ns=400_000,
        observed_ns=0, observed=0, corun_observed=4, corun_stretch=4.4,
    )  # fmt: skip
    return SimpleNamespace(**(vars(row) | changes))
