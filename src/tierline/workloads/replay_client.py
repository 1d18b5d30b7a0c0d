"""Replay of a `ServedTrace` against any OpenAI-compatible server, by the clock: an open loop.

Requests are sent when the trace says, whatever the server does; a request's latency counts from the moment it was due,
so that neither a slow sender nor a limit on requests under way can hide waiting. How far the sender itself was behind is
reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.core.served_outcome import ServedOutcome
from tierline.core.served_trace import TracedRequest
from tierline.workloads.replaying.answer import Answer
from tierline.workloads.replaying.compose import Composer
from tierline.workloads.replaying.http import Address, Client
from tierline.workloads.replaying.survey import Survey, survey

CHAT = "/v1/chat/completions"
LEAD_S = 0.2
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """`speed` 2 = twice as fast as the trace. `max_in_flight` 0 = any number. `timeout_s`: of each answer."""

    model: str = ""
    api_key: str = ""
    speed: float = 1.0
    max_in_flight: int = 0
    timeout_s: float = 600.0
    text_only: bool = False
    salt: str = ""

    def __post_init__(self) -> None:
        if not (0.0 < self.speed < math.inf and 0.0 < self.timeout_s < math.inf and self.max_in_flight >= 0):
            raise InvalidInput(
                f"speed and timeout must be above 0 and max-in-flight not below, but got {self.speed:g}, "
                f"{self.timeout_s:g} and {self.max_in_flight}."
            )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is."""

    due: int
    sent: int
    ended: int
    failed: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one request. Times as in its outcome: ns since the first was due. `prompt_tokens` 0 = not told."""

    request: TracedRequest
    outcome: ServedOutcome
    sent_ns: int
    prompt_tokens: int
    message: str


@dataclass(frozen=True, slots=True)
class Replay:
    """`late_*_s`: from when requests were due until they were sent. `shortened`: requests cut to the server's context."""

    survey: Survey
    sent: tuple[Sent, ...]
    late_p50_s: float
    late_p99_s: float
    late_max_s: float
    connections: int
    shortened: int

    @property
    def outcomes(self) -> list[ServedOutcome]:
        return [each.outcome for each in self.sent]


async def replay(
    url: str,
    requests: Sequence[TracedRequest],
    options: ReplayOptions,
    *,
    begun: Callable[[Survey, int], None] = lambda survey, requests: None,
    drawing: Callable[[int, int], None] = lambda done, of: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Replay:
    """Ask the server what it is like, draw pictures of all sizes, send, wait for all answers. When it is cancelled, what
    was sent and has no answer counts as unfinished. Raises DaemonUnavailable or InvalidInput before anything is sent."""
    kept = [request for request in requests if not (options.text_only and request.images)]
    if not kept:
        raise InvalidInput("The workload holds no request to be sent.")
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    client = Client(Address.parse(url), headers)
    try:
        found = await survey(client, options.model, any(request.images for request in kept))
        composer = Composer.make(found, options.salt)
        fitted = [composer.fitted(request) for request in kept]
        sizes = composer.sizes(fitted)
        for number, (width, height) in enumerate(sizes):
            composer.pictures.draw(width, height)
            if number % 16 == 0:
                drawing(number, len(sizes))
                await asyncio.sleep(0)
        begun(found, len(fitted))
        sender = _Sender(client, composer, options, fitted)
        watch = asyncio.ensure_future(_tell(sender, progress))
        gc.collect()
        gc.freeze()  # no collection walks over the trace while the clock runs
        try:
            await sender.run()
        finally:
            gc.unfreeze()
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        shortened = sum(one is not other for one, other in zip(fitted, kept, strict=True))
        return sender.result(shortened)
    finally:
        await client.aclose()


async def _tell(sender: _Sender, progress: Callable[[Progress], None]) -> None:
    while True:
        progress(sender.progress())
        await asyncio.sleep(LOOK_S)


class _Sender:
    def __init__(
        self, client: Client, composer: Composer, options: ReplayOptions, requests: Sequence[TracedRequest]
    ) -> None:
        self._client = client
        self._composer = composer
        self._options = options
        self._requests = requests
        self._answers: list[Answer] = []
        self._ended = self._failed = 0
        self._room = asyncio.Event()
        self._zero_ns = 0

    def progress(self) -> Progress:
        sent = len(self._answers)
        return Progress(len(self._requests), sent, self._ended, self._failed, sent - self._ended)

    async def run(self) -> None:
        """Returns when every answer has ended, or early when it is cancelled."""
        try:
            await self._run()
        except asyncio.CancelledError:
            now_ns = time.monotonic_ns()
            for answer in self._answers:
                if answer.ended_ns < 0:
                    answer.abandon(now_ns)

    async def _run(self) -> None:
        first_ns, speed = self._requests[0].arrived_ns, self._options.speed
        self._zero_ns = time.monotonic_ns() + round(LEAD_S * 1e9)
        for number, request in enumerate(self._requests):
            due_ns = self._zero_ns + round((request.arrived_ns - first_ns) / speed)
            message = self._client.message("POST", CHAT, self._composer.body(number, request))
            await asyncio.sleep(0)  # also when late: answers have to be read
            while (left_ns := due_ns - time.monotonic_ns()) > 0:  # a loop's timers may be half a millisecond early
                await asyncio.sleep(left_ns / 1e9)
            while self._options.max_in_flight and len(self._answers) - self._ended >= self._options.max_in_flight:
                self._room.clear()
                await self._room.wait()
            answer = Answer(due_ns, request, self._over)
            answer.sent_ns = time.monotonic_ns()
            self._answers.append(answer)
            self._client.send(message, answer, self._options.timeout_s)
        while self._ended < len(self._answers):
            self._room.clear()
            await self._room.wait()

    def _over(self, answer: Answer) -> None:
        self._ended += 1
        self._failed += answer.kind != "finished"
        self._room.set()

    def result(self, shortened: int) -> Replay:
        late_s = np.array([answer.sent_ns - answer.due_ns for answer in self._answers] or [0], np.float64) / 1e9
        p50, p99, most = (float(x) for x in np.percentile(late_s, [50, 99, 100]))
        sent = tuple(
            Sent(
                request,
                answer.outcome(self._zero_ns),
                answer.sent_ns - self._zero_ns,
                answer.prompt_tokens,
                answer.message,
            )
            for request, answer in zip(self._requests, self._answers, strict=False)
        )
        return Replay(self._composer.survey, sent, p50, p99, most, self._client.opened, shortened)
