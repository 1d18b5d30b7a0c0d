"""The order of those who wait when there are deadlines: earliest first, hopeless ones last, and nobody last for ever."""

from __future__ import annotations


def place(
    now_ns: int,
    since_ns: int,
    deadline_ns: int,
    service_s: float,
    patience_ns: int,
    priority: int = 0,
    step_ns: int = 0,
) -> tuple[float, float]:
    """(0, deadline) of one that can still be in time, (1, deadline) of one that cannot.

    One that has waited for `patience_ns` comes again as if it were new: its deadline moves by whole patiences. So it competes
    with those that come then, and what cannot be served in time is shared out evenly instead of all falling to whoever was
    late once. Each step of `priority` is worth `step_ns`.
    """
    if patience_ns > 0 and now_ns > since_ns:
        deadline_ns += (now_ns - since_ns) // patience_ns * patience_ns
    hopeless = now_ns + service_s * 1e9 > deadline_ns
    return float(hopeless), float(deadline_ns - priority * step_ns)
