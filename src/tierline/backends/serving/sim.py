"""A simulated serving deployment: the same schedulers and batching policies as a live one, over predicted times.

A `Backend` and the `EventSource` of a `SimClock`. Nothing ticks: an instance knows when its iteration or its image ends, and
where it only decodes, many iterations are one event (`schedulers/lockstep.py`). What runs here:

- iterations and the encoder of each instance, beside each other or in turns (`sim_device`, `DeviceOptions`);
- preparation of images by `cpu_workers` workers of the host, first come, first served, before the encoder is asked;
- words and messages, each `latency_ns` under way, in order between two parties; embeddings and KV rounds go over the link
  of the instance that sends them, one after the other (`StageTimes.transfer_s` each), and nothing limits the receiver;
- start-up, sleep and waking of instances, and deaths: what a dead one had said arrives, what was said to it is lost.

The true length of an answer is known to the engine alone: it draws the end token there. Among events of the same nanosecond
devices come first, then messages, deaths and what the scheduler hears, each by instance and then by when it was caused.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tierline.backends.serving.sim_instance import DeviceOptions, SimInstance
from tierline.backends.serving.sim_prompts import END, TOKEN, Prompts
from tierline.clock import SimClock
from tierline.core.batch_view import BatchPolicy
from tierline.core.errors import InvalidInput
from tierline.core.events import Event
from tierline.core.instance_actions import Tell
from tierline.core.instance_events import (
    EncodeAsked,
    InstanceEvent,
    MoveAsked,
    PeerLost,
    RequestCancelled,
    RequestQueued,
    RolesSet,
    SleepAsked,
    WakeAsked,
)
from tierline.core.nouns import NS_PER_S
from tierline.core.request import Role
from tierline.core.served_outcome import UNFINISHED, ServedOutcome
from tierline.core.served_trace import ServedTrace, TracedImage
from tierline.core.serving_actions import (
    Answer,
    AskPixels,
    CancelAttempt,
    EncodeOn,
    MoveAttempt,
    NotifyLost,
    QueueAttempt,
    SetRoles,
    SleepInstance,
    StartInstance,
    StopInstance,
    WakeInstance,
)
from tierline.core.serving_events import InstanceJoined, InstanceLost, InstanceSaid, RequestSubmitted, Tick
from tierline.core.stage_times import StageTimes
from tierline.schedulers.instance import InstanceScheduler, Simulated
from tierline.schedulers.instance_state import InstanceLimits

MILLISECOND_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Kill:
    """Instance `name` dies at that time. Another takes its place after `SimOptions.start_ns`, unless it slept or is not to be
    `replaced`."""

    at_ns: int
    name: str
    replaced: bool = True


@dataclass(frozen=True, slots=True)
class SimOptions:
    """`roles`: of each instance at the start; they are named i0, i1, … `max_tokens`: what every client asks for at most.
    `start_ns`: from the decision to start an instance until it joins; `wake_ns`: from that to wake one until its weights are
    on the device, its arena is there and a first batch has run. `lockstep` False goes through every iteration of every
    sequence, with the same results."""

    roles: tuple[Role, ...]
    limits: InstanceLimits
    batching: Callable[[], BatchPolicy]
    device: DeviceOptions = field(default_factory=DeviceOptions)
    cpu_workers: int = 16
    latency_ns: int = MILLISECOND_NS // 5
    start_ns: int = 10 * NS_PER_S
    wake_ns: int = 2 * NS_PER_S
    kills: tuple[Kill, ...] = ()
    max_tokens: int = 32768
    lockstep: bool = True

    def __post_init__(self) -> None:
        if not self.roles:
            raise InvalidInput("A simulated deployment needs one instance at least.")
        if self.cpu_workers < 1 or self.max_tokens < 1 or min(self.latency_ns, self.start_ns, self.wake_ns) < 0:
            raise InvalidInput(
                f"cpu_workers {self.cpu_workers} and max_tokens {self.max_tokens} must be at least 1, "
                f"latency_ns {self.latency_ns}, start_ns {self.start_ns} and wake_ns {self.wake_ns} at least 0."
            )


def limits_of(times: StageTimes, **changes: Any) -> InstanceLimits:
    """Limits of an instance on such a device: all of its KV arena, 8 GiB of embeddings; `changes` to `InstanceLimits`."""
    block_tokens = changes.pop("block_tokens", 16)
    limits: dict[str, Any] = {
        "blocks": times.kv_tokens // block_tokens,
        "block_tokens": block_tokens,
        "token_budget": 2048,
        "sequence_limit": 256,
        "pool_bytes": 8 << 30,
        "context_tokens": 131_072,
        "end_tokens": frozenset({END}),
    }
    return InstanceLimits(**{**limits, **changes})


# Among events of the same nanosecond:
DEVICE, MESSAGE, DEATH, JOIN, WORD, ARRIVAL, TICK = range(7)


@dataclass(slots=True)
class _Course:
    """What has become of a request."""

    first_ns: int = -1
    finished_ns: int = -1
    tokens: int = 0
    cached_tokens: int = 0
    outcome: str = UNFINISHED


class SimServing:
    """`outcomes` tells afterwards what became of every request of the trace, in its order. `tick_ns`: the serving
    scheduler's (0 = it wants no ticks)."""

    def __init__(
        self, clock: SimClock, trace: ServedTrace, times: StageTimes, options: SimOptions, tick_ns: int = 0
    ) -> None:
        self._clock = clock
        self._trace = trace
        self._times = times
        self._options = options
        self._tick_ns = tick_ns
        self._prompts = Prompts(options.max_tokens)
        self._images = {image.content_hash: image for each in trace.requests for image in each.images}
        self._courses: list[_Course] = [_Course() for _ in trace.requests]
        self._live: dict[str, _Course] = {}  # of those that have come and not ended
        self._open = len(trace.requests)
        self._instances: dict[str, SimInstance] = {}
        self._held: dict[str, int] = {}  # instances with memory on their device -> since when
        self._joined = 0
        self._slots = 0
        self._generation: Counter[str] = Counter()
        self._roles: dict[str, Role] = {}  # by slot, as it was started
        self._cpu = [0] * options.cpu_workers  # when each worker is free, a heap
        self._link: dict[str, int] = {}  # when an instance's link is free
        self._last: dict[tuple[str, str], int] = {}  # when the last message from one to the other arrives
        self._heap: list[tuple[int, int, int, int, Any, Any]] = []
        self._seq = 0
        self._next = 0
        self.counts: Counter[str] = Counter()
        clock.attach(self)
        for roles in options.roles:
            self._start(roles, 0)
        for kill in options.kills:
            self._push(kill.at_ns, DEATH, 0, kill, None)
        self._push_arrival()
        if tick_ns:
            self._push(tick_ns, TICK, 0, None, None)

    # --- what happens

    def next_before(self, limit: tuple[int, int] | None) -> tuple[int, Event] | None:
        """The next event for the serving scheduler; all that happens before it has happened then."""
        heap = self._heap
        while heap:
            if limit is not None and heap[0][:2] >= limit:
                return None
            now_ns, order, _, _, what, more = heapq.heappop(heap)
            if order == DEVICE:
                what.due(now_ns, more)
                continue
            if order == MESSAGE:
                instance = self._instances.get(what)
                if instance is not None:
                    event, pixels = more
                    instance.deliver(now_ns, event, pixels=pixels)
                continue
            event = self._told(now_ns, order, what, more)
            if event is not None:
                return now_ns, event
        return None

    def _told(self, now_ns: int, order: int, what: Any, more: Any) -> Event | None:
        """An event for the serving scheduler, if this is one."""
        if order == WORD:
            word: Event = what
            return word
        if order == ARRIVAL:
            return self._arrived(what)
        if order == JOIN:
            name, roles = what
            return self._join(now_ns, name, roles)
        if order == DEATH:
            self._die(now_ns, what)
            return None
        if self._open:
            self._push(now_ns + self._tick_ns, TICK, 0, None, None)
            return Tick()
        return None

    def _push(self, at_ns: int, order: int, index: int, what: Any, more: Any) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (at_ns, order, index, self._seq, what, more))

    def _push_arrival(self) -> None:
        if self._next < len(self._trace.requests):
            self._push(self._trace.requests[self._next].arrived_ns, ARRIVAL, 0, self._next, None)
            self._next += 1

    def _arrived(self, number: int) -> Event:
        self._push_arrival()
        traced = self._trace.requests[number]
        request = self._prompts.request(f"r{number}", traced)
        self._live[request.request_id] = self._courses[number]
        return RequestSubmitted(request, tuple({image.content_hash: None for image in request.images}))

    # --- instances

    def _start(self, roles: Role, at_ns: int, slot: str = "") -> None:
        if not slot:
            slot = f"i{self._slots}"
            self._slots += 1
            self._roles[slot] = roles
        generation = self._generation[slot]
        self._generation[slot] += 1
        self._push(at_ns, JOIN, 0, (f"{slot}~{generation}" if generation else slot, roles), None)

    def _join(self, now_ns: int, name: str, roles: Role) -> Event:
        simulated = Simulated(self._prompts, TOKEN, self._options.lockstep)
        scheduler = InstanceScheduler(name, self._options.limits, self._options.batching(), roles, simulated)
        instance = SimInstance(name, self._joined, scheduler, self._times, self._options.device, self)
        self._joined += 1
        self._instances[name] = instance
        self._held[name] = now_ns
        return InstanceJoined(name, roles)

    def _die(self, now_ns: int, kill: Kill) -> None:
        name = kill.name
        slept = name not in self._held
        if self._gone(now_ns, name, "it was killed") and kill.replaced and not slept:
            slot = name.partition("~")[0]
            self._start(self._roles[slot], now_ns + self._options.start_ns, slot)

    def _gone(self, now_ns: int, name: str, reason: str) -> bool:
        instance = self._instances.pop(name, None)
        if instance is None:
            return False
        instance.die(now_ns)
        self._let_go(name, now_ns)
        self._push(now_ns + self._options.latency_ns, WORD, instance.index, InstanceLost(name, reason), None)
        return True

    def _let_go(self, name: str, now_ns: int) -> None:
        """It has no memory on its device from now on."""
        self.counts["held_ns"] += now_ns - self._held.pop(name, now_ns)

    def held_ns(self, until_ns: int) -> int:
        """Device time during which instances had their memory, of all in sum: what sleep and stops spare."""
        return self.counts["held_ns"] + sum(max(0, until_ns - since_ns) for since_ns in self._held.values())

    @property
    def instances(self) -> Sequence[SimInstance]:
        """Those that are there."""
        return tuple(self._instances.values())

    # --- for instances (`Outside`)

    def wake(self, instance: SimInstance, at_ns: int, version: int) -> None:
        self._push(at_ns, DEVICE, instance.index, instance, version)

    def tell(self, instance: SimInstance, now_ns: int, message: Tell) -> None:
        event = InstanceSaid(instance.name, message)
        self._push(now_ns + self._options.latency_ns, WORD, instance.index, event, None)

    def send(self, instance: SimInstance, now_ns: int, to: str, event: InstanceEvent, size_bytes: int) -> None:
        at_ns = now_ns + self._options.latency_ns
        if size_bytes:
            start_ns = max(now_ns, self._link.get(instance.name, 0))
            end_ns = start_ns + round(self._times.transfer_s(size_bytes) * NS_PER_S)
            self._link[instance.name] = end_ns
            self.counts["transfers"] += 1
            self.counts["transfer_bytes"] += size_bytes
            at_ns += end_ns - now_ns
        self._post(instance.name, to, at_ns, event)

    def output_of(self, attempt: str) -> int:
        number = int(attempt.partition("#")[0][1:])  # of the request, in the trace
        return self._trace.requests[number].output_tokens

    def image(self, content_hash: str) -> TracedImage:
        return self._images[content_hash]

    def _post(self, source: str, to: str, at_ns: int, event: InstanceEvent, pixels: bool = False) -> None:
        """In order between two parties."""
        target = self._instances.get(to)
        if target is None:
            return
        key = (source, to)
        at_ns = max(at_ns, self._last.get(key, 0))
        self._last[key] = at_ns
        self._push(at_ns, MESSAGE, target.index, to, (event, pixels))

    # --- actions

    def execute(self, action: object) -> None:
        """Carry an action of the serving scheduler out."""
        match action:
            case Answer():
                self._answered(action)
            case QueueAttempt():
                self._say(action.instance, RequestQueued(action.request, action.expected))
            case EncodeOn():
                self._encode(action)
            case CancelAttempt():
                self._say(action.instance, RequestCancelled(action.attempt))
            case MoveAttempt():
                self._say(action.instance, MoveAsked(action.attempt, action.to))
            case SetRoles():
                self._say(action.instance, RolesSet(action.roles))
            case NotifyLost():
                self._say(action.instance, PeerLost(action.lost))
            case AskPixels():
                raise AssertionError("all pixels go along with a simulated request")
            case StartInstance():
                self._start(self._options.roles[0], self._clock.now_ns() + self._options.start_ns)
            case StopInstance():
                self._gone(self._clock.now_ns(), action.instance, "it was stopped")
            case SleepInstance():
                self._let_go(action.instance, self._clock.now_ns())
                self._say(action.instance, SleepAsked())
            case WakeInstance():
                if action.instance in self._instances:
                    self._held[action.instance] = self._clock.now_ns()
                self._say(action.instance, WakeAsked(action.roles), self._options.wake_ns)

    def _say(self, name: str, event: InstanceEvent, more_ns: int = 0) -> None:
        self._post("", name, self._clock.now_ns() + self._options.latency_ns + more_ns, event)

    def _encode(self, action: EncodeOn) -> None:
        """The image is prepared first, if its pixels go along; a worker of the host does that."""
        now_ns = self._clock.now_ns()
        ready_ns = now_ns
        if action.pixels_of and self._options.device.encoder != "blocking":
            image, times = self._images[action.content_hash], self._times
            seconds = times.prepare_s(image.encoder_patches(times.patches_per_token))
            ready_ns = max(now_ns, heapq.heappop(self._cpu)) + round(seconds * NS_PER_S)
            heapq.heappush(self._cpu, ready_ns)
        target = self._instances.get(action.instance)
        if target is None:
            return
        event = EncodeAsked(action.content_hash, action.to)
        # Not in order with other messages: these need not wait for the preparation.
        at_ns = ready_ns + self._options.latency_ns
        self._push(at_ns, MESSAGE, target.index, action.instance, (event, bool(action.pixels_of)))

    def _answered(self, action: Answer) -> None:
        made, now_ns = action.tokens, self._clock.now_ns()
        course = self._live[made.request_id]
        if made.tokens and course.first_ns < 0:
            course.first_ns = now_ns
            course.cached_tokens = made.cached_tokens
        course.tokens += len(made.tokens)
        if made.finish:
            course.finished_ns = now_ns
            course.outcome = "finished" if made.finish in ("stop", "length") else made.finish
            self._open -= 1
            del self._live[made.request_id]

    def close(self) -> None:
        """Nothing is to be ended."""

    # --- afterwards

    def outcomes(self) -> tuple[ServedOutcome, ...]:
        return tuple(
            ServedOutcome(
                arrived_ns=traced.arrived_ns,
                first_token_ns=course.first_ns,
                finished_ns=course.finished_ns,
                output_tokens=course.tokens,
                prompt_tokens=traced.prompt_tokens,
                images=len(traced.images),
                outcome=course.outcome,
                stream=traced.stream,
            )
            for traced, course in zip(self._trace.requests, self._courses, strict=True)
        )

    @property
    def open(self) -> int:
        """Requests that have not ended, those still to come included."""
        return self._open
