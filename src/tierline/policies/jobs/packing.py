"""Packing: which waiting jobs shall share devices with running ones. One stage behind every policy's exclusive allocation.

The policy is asked first, as if there were no sharing: guests are hidden from it, so it hands out whole devices exactly as
it does without this stage. Then, in the order in which it refused the others, each takes the place where it gains most:

    gain = v_j · n_j · s_j − Σ v_r · n_r · (1 − s_r)        over the hosts r of the place

v: what a GPU-second is worth to a job: its density where the policy bids densities, else 1, so that a pair is made when
the sum of its normalised speeds is above 1 (Gavel's rule). s: predicted speeds (`perf/interference.py`); a job slowed on
one device stalls on all its n. What counts is the gain over `payback_quanta` quanta (as for resizing), less restarts:

- a job that has run before is packed if that outweighs its restart; one that has not, if there is any gain at all;
- the guest leaves when the loss outweighs the restart that it will need; so a pair must turn by twice the restart's share
  of that time (at least `least_margin` each way) before it flaps. It is always the guest: the host was promised the device;
- the guest leaves for a device of its own when one stays free, nobody else waits for it, and what both get back outweighs
  the restart. Only under work-conserving policies, for others may leave the free device free;
- at a quantum, where the policy bids densities, a waiting job that gains more by `keep` and the guest's restart takes
  the guest's place.

A job is never packed onto one of higher priority, nor if it cannot be preempted, nor where the speeds are not known or
one of them is 0. Source: Gavel (OSDI'20), section 3.1, for pairs as units of allocation; the price of a slowdown is ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tierline.core.contracts import JobPolicy
from tierline.core.views import Bools, ClusterView, Floats, Grant, Ints, Plan, SharingView


@dataclass(frozen=True, slots=True)
class GainPacking:
    """Implements `core.contracts.Packing` by the rule above. Cost: one pass over the hosts per candidate."""

    payback_quanta: int = 5
    least_margin: float = 0.05
    keep: float = 0.3

    def plan(self, policy: JobPolicy, view: ClusterView, rng: random.Random) -> Plan:
        assert view.sharing is not None
        plan = policy.plan(without_guests(view, view.sharing), rng)
        round_ = _Round(view, view.sharing, plan, self)
        leaves = [*round_.heirs(), *round_.bad_guests(), *(round_.movers() if policy.work_conserving else ())]
        packs = list(round_.packs())
        grants = (*plan.grants, *leaves, *round_.outbid, *packs)
        return replace(plan, grants=grants) if grants else plan


def without_guests(view: ClusterView, sharing: SharingView) -> ClusterView:
    """The view as an exclusive policy may see it: guests neither run nor wait."""
    if not len(sharing.pairs):
        return view
    shown = np.ones(len(view.jobs), np.bool_)
    shown[sharing.pairs[:, 1]] = False
    jobs = view.jobs
    return replace(view, jobs=replace(jobs, eligible=jobs.eligible & shown, running=jobs.running & shown))


class _Round:
    """One round's reckoning. `unit` (J): value of one GPU-second at full speed."""

    def __init__(self, view: ClusterView, sharing: SharingView, plan: Plan, rule: GainPacking) -> None:
        jobs = view.jobs
        self.view, self.sharing, self.plan, self.rule = view, sharing, plan, rule
        self.horizon_ns = rule.payback_quanta * view.quantum_ns
        self.restart = view.restart_ns / max(self.horizon_ns, 1)  # share of the horizon that a restart takes
        self.band = max(self.restart, rule.least_margin)
        self.bids = plan.density is not None
        self.unit = np.ones(len(jobs)) if plan.density is None else plan.density
        self.gpus = jobs.gpus.copy()
        self.gpu_type = jobs.gpu_type.copy()
        self.open = sharing.open_gpus.copy()
        self.free = view.free.copy()
        self.stays = jobs.running & jobs.eligible
        self.outbid: list[Grant] = []
        self._settled: set[int] = {grant.row for grant in plan.grants} | {drop.row for drop in plan.drops}
        for drop in plan.drops:
            self.stays[drop.row] = False
        for grant in plan.grants:
            if jobs.running[grant.row]:  # asked to leave, or to come back with another size
                self.stays[grant.row] = False
            elif grant.gpus:
                self.gpus[grant.row], self.gpu_type[grant.row] = grant.gpus, grant.gpu_type
                self.open[grant.row] = grant.gpus * sharing.shareable[grant.row]
                self.free[grant.gpu_type] -= grant.gpus
        self.open[jobs.running & ~self.stays] = 0
        self.guests = self._guests()

    def _guests(self) -> _Guests:
        host, guest = self.sharing.pairs[:, 0], self.sharing.pairs[:, 1]
        parted = np.zeros(len(self.stays), np.bool_)
        parted[guest[~self.stays[host]]] = True
        pair = np.flatnonzero(self.stays[guest] & ~parted[guest])
        pair = pair[np.argsort(guest[pair], kind="stable")]
        host, guest = host[pair], guest[pair]
        rows, first, hosts = np.unique(guest, return_index=True, return_counts=True)
        if not len(rows):
            none = np.zeros(0)
            return _Guests(rows, rows, hosts, none, none, none, none)
        mine, theirs = self._speeds(guest, host)
        loss = self._value(host, self.gpu_type[host], self.gpus[host]) * (1.0 - theirs)
        return _Guests(
            row=rows,
            host=host[first],
            hosts=hosts,
            full=self._value(rows, self.gpu_type[rows], self.gpus[rows]),
            speed=np.minimum.reduceat(mine, first),
            host_speed=np.minimum.reduceat(theirs, first),
            loss=np.add.reduceat(loss, first),
        )

    def _speeds(self, row: Ints | int, hosts: Ints) -> tuple[Floats, Floats]:
        """(speed of the job beside each host, speed of each host beside it); NaN = not known. `row`: one, or one a host."""
        of, types, speed = self.sharing.job_type, self.gpu_type[hosts], self.sharing.speed
        known = (of[hosts] >= 0) & (of[row] >= 0)
        mine = np.where(known, speed[types, of[row], of[hosts]], np.nan)
        return mine, np.where(known, speed[types, of[hosts], of[row]], np.nan)

    def _value(self, rows: Ints | int, types: Ints | int, gpus: Ints | int) -> Floats:
        """Value per second of these jobs on so many devices at full speed."""
        return np.asarray(self.unit[rows] * self.view.jobs.type_speed[rows, types] * gpus)

    def _leave(self, guest: int, why: str) -> Grant:
        pairs = self.sharing.pairs
        names = ", ".join(self.view.jobs.job_id[host] for host in pairs[pairs[:, 1] == guest, 0])
        self._settled.add(guest)
        return Grant(guest, 0, int(self.gpu_type[guest]), f"no longer shares with {names}: {why}", self._bid(guest))

    def _bid(self, row: int) -> float:
        return float(self.unit[row]) if self.bids else 0.0

    def _gain_words(self, gain: float, gpus: int) -> str:
        return f"gain {gain / max(gpus, 1):.3g} " + ("utility/GPU-s" if self.bids else "of a device")

    def heirs(self) -> Iterator[Grant]:
        """Guests whose host leaves, and who would inherit a device that the plan means for a job that bids more."""
        jobs = self.view.jobs
        starts = [g.row for g in self.plan.grants if g.gpus and not jobs.running[g.row]]
        if not self.bids or not starts:
            return
        least = min(float(self.unit[row]) for row in starts)
        for host, guest, _ in self.sharing.pairs.tolist():
            if self.stays[guest] and not self.stays[host] and self.unit[guest] * (1.0 + self.rule.keep) < least:
                self.stays[guest] = False
                self._settled.add(guest)
                why = f"its host {jobs.job_id[host]} leaves, and others bid more for the device"
                yield Grant(guest, 0, int(self.gpu_type[guest]), why, self._bid(guest))

    def bad_guests(self) -> Iterator[Grant]:
        """Guests whose pair costs more than their restart would."""
        found = self.guests
        for n in np.flatnonzero(found.gain < -self.band * found.full):
            guest = int(found.row[n])
            words = self._gain_words(float(found.gain[n]), int(self.gpus[guest]))
            yield self._leave(guest, f"speed {found.speed[n]:.2f} and {found.host_speed[n]:.2f} by now; {words}")

    def movers(self) -> Iterator[Grant]:
        """Guests for whom a device that nobody else wants is worth a restart; those who get back most first."""
        if not (self.free > 0).any():
            return
        found = self.guests
        back = found.full * (1.0 - found.speed) + found.loss
        pays = np.flatnonzero(back > self.band * found.full)
        for guest in found.row[pays[np.argsort(-back[pays], kind="stable")]].tolist():
            if guest in self._settled:
                continue
            speeds = self.view.jobs.type_speed[guest]
            fitting = (self.free >= self.gpus[guest]) & (speeds >= speeds[self.gpu_type[guest]])
            if fitting.any():
                self.free[int(np.argmax(fitting))] -= self.gpus[guest]
                yield self._leave(guest, "a device of its own is free")

    def packs(self) -> Iterator[Grant]:
        """Waiting jobs, in the policy's order, each onto the place where it gains most."""
        jobs, sharing = self.view.jobs, self.sharing
        waits = jobs.eligible & ~jobs.running & jobs.preemptible & sharing.shareable & (sharing.job_type >= 0)
        refused = self.plan.refused
        order = np.flatnonzero(waits) if refused is None else refused[waits[refused]]
        hosts = np.flatnonzero(self.open > 0)
        # Of two jobs alike the one worth less gains less, and places only get fewer: what failed once fails again.
        failed: dict[tuple[object, ...], float] = {}
        asked = self._ask() if self.bids and self.view.may_preempt else None
        for row in dict.fromkeys(order.tolist()):
            alike = (
                int(sharing.job_type[row]), int(jobs.min_gpus[row]), int(sharing.memory_bytes[row]), int(jobs.priority[row]),
                bool(jobs.attained_gpu_ns[row] > 0), jobs.type_speed[row].tobytes(),
            )  # fmt: skip
            if row in self._settled or self.unit[row] <= failed.get(alike, -np.inf):
                continue
            found = self._best_place(row, hosts) if len(hosts) else None
            if found is not None:
                yield found
                hosts = hosts[self.open[hosts] > 0]
            elif asked is None or not self._outbid(row, asked):
                failed[alike] = float(self.unit[row])

    def _gains(self, row: int, hosts: Ints) -> tuple[Floats, Floats, Floats, Floats]:
        """(gain if one device of each host is taken, speeds of the job, speeds of the hosts, losses of the hosts); the
        gain is −inf where the pair must not be made."""
        jobs, sharing, types = self.view.jobs, self.sharing, self.gpu_type[hosts]
        mine, theirs = self._speeds(row, hosts)
        loss = self._value(hosts, types, self.gpus[hosts]) * (1.0 - theirs)
        gain = self._value(row, types, 1) * mine - loss
        memory = sharing.device_memory_bytes[types]
        asked = sharing.memory_bytes[hosts]
        fits = (memory == 0) | (
            (asked > 0) & (sharing.memory_bytes[row] > 0) & (asked + sharing.memory_bytes[row] <= memory)
        )
        allowed: Bools = (
            fits & (mine > 0) & (theirs > 0) & (jobs.type_speed[row, types] > 0)
            & (jobs.priority[hosts] <= jobs.priority[row])
        )  # fmt: skip
        return np.where(allowed, gain, -np.inf), mine, theirs, loss

    def _best_place(self, row: int, hosts: Ints) -> Grant | None:
        jobs = self.view.jobs
        need = int(jobs.min_gpus[row])
        gains, mine, theirs, loss = self._gains(row, hosts)
        if need == 1:
            best = int(np.argmax(gains))
            chosen, gain = np.array([best]), float(gains[best])
        else:
            chosen, gain = self._gang_place(row, hosts, gains, mine, loss, need)
        if gain == -np.inf:
            return None
        gpu_type = int(self.gpu_type[hosts[chosen[0]]])
        resumes = jobs.attained_gpu_ns[row] > 0
        if gain <= (self.band * float(self._value(row, gpu_type, need)) if resumes else 0.0):
            return None
        left = need
        for host in hosts[chosen]:
            taken = min(left, int(self.open[host]))
            self.open[host] -= taken
            left -= taken
        words = self._gain_words(gain, need)
        why = f"predicted speed {mine[chosen].min():.2f} and {theirs[chosen].min():.2f}; {words}"
        return Grant(row, need, gpu_type, why, self._bid(row), onto=tuple(hosts[chosen].tolist()))

    def _gang_place(
        self, row: int, hosts: Ints, gains: Floats, mine: Floats, loss: Floats, need: int
    ) -> tuple[Ints, float]:
        """(places in `hosts`, gain) for a job of several devices: per type the hosts that cost least, until they are
        enough. A host counts once, however many of its devices are taken: it is slowed on all or on none."""
        best: tuple[Ints, float] = np.zeros(1, np.int64), -np.inf
        for gpu_type in np.unique(self.gpu_type[hosts]):
            order = np.flatnonzero((self.gpu_type[hosts] == gpu_type) & (gains > -np.inf))
            order = order[np.lexsort((-gains[order], -np.minimum(self.open[hosts[order]], need)))]
            enough = np.searchsorted(np.cumsum(self.open[hosts[order]]), need) + 1
            if enough > len(order):
                continue
            chosen = order[:enough]
            gain = float(self._value(row, int(gpu_type), need)) * float(mine[chosen].min()) - float(loss[chosen].sum())
            best = max(best, (chosen, gain), key=lambda found: found[1])
        return best

    def _outbid(self, row: int, asked: _Asked) -> bool:
        """Have the guest leave in whose place the waiting job gains most, if that pays for its restart."""
        jobs = self.view.jobs
        if jobs.min_gpus[row] != 1 or not len(asked.guests):
            return False
        gains, *_ = self._gains(row, asked.hosts)
        restart = self.band * float(self.unit[row]) * (jobs.attained_gpu_ns[row] > 0)
        excess = np.where(jobs.priority[asked.guests] <= jobs.priority[row], gains - asked.price - restart, -np.inf)
        best = int(np.argmax(excess))
        if excess[best] <= 0 or gains[best] <= 0:
            return False
        self.outbid.append(self._leave(int(asked.guests[best]), f"{jobs.job_id[row]} gains more there"))
        asked.price[best] = np.inf
        return True

    def _ask(self) -> _Asked:
        """What it takes to have each guest of one device leave: what it gains, its restart, and `keep` of its worth."""
        found, stays = self.guests, [int(row) not in self._settled for row in self.guests.row]
        single = (found.hosts == 1) & (self.gpus[found.row] == 1) & np.array(stays, dtype=np.bool_)
        price = found.gain + (self.rule.keep * found.speed + self.band) * found.full
        return _Asked(found.row[single], found.host[single], price[single])


@dataclass(frozen=True, slots=True)
class _Guests:
    """Guests that stay beside hosts that stay, a row each: row of the guest, of its first host, how many hosts; its value at
    full speed, its speed, that of its slowest host, and what its hosts lose."""

    row: Ints
    host: Ints
    hosts: Ints
    full: Floats
    speed: Floats
    host_speed: Floats
    loss: Floats

    @property
    def gain(self) -> Floats:
        return self.full * self.speed - self.loss


@dataclass(frozen=True, slots=True)
class _Asked:
    """Guests, their hosts, and the gain that another must bring to have them leave (a row each)."""

    guests: Ints
    hosts: Ints
    price: Floats
