"""The attempts of requests: who is sent where, who waits for that, and what ends with an attempt.

A live request is at its owner, or it waits here: in the line, for an instance with room, or homeless, while no instance may
do its next stage. Nobody passes those in the line, but in their order. What instances count of a request, and images under
way for it, end with the attempt; the line and the homeless forget it with the request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tierline.core.request import Role
from tierline.core.routing_view import Modality
from tierline.core.serving_actions import AskPixels, CancelAttempt, QueueAttempt, ServingAction
from tierline.schedulers.serving_answers import Answers
from tierline.schedulers.serving_fleet import Fleet
from tierline.schedulers.serving_images import ImageDispatch
from tierline.schedulers.serving_moves import Moves
from tierline.schedulers.serving_queue import WaitingLine
from tierline.schedulers.serving_state import Live, Server

MAX_LOSSES = 5  # a request that was on so many instances when they died may be what kills them


@dataclass(slots=True)
class Attempts:
    """`live`: requests by id; those that are forgotten go from it. `homeless`: those whose next stage no instance may do.
    `pressed`: called when a request begins to wait. `out`: where actions are appended."""

    fleet: Fleet
    live: dict[str, Live]
    line: WaitingLine
    homeless: dict[str, Live]
    images: ImageDispatch
    answers: Answers
    moves: Moves
    pressed: Callable[[], None]
    out: list[ServingAction]
    counts: Counter[str]
    _news: dict[str, Server] = field(default_factory=dict)  # who may have room for a prompt since the last event
    _number: int = 0

    # --- beginning

    def arrived(self, live: Live) -> None:
        self.live[live.request_id] = live
        if not self.line.count(live.modality):
            self.dispatch(live, "new")
            return
        self.line.add(live)
        self.pressed()
        if self.line.first(()) is live:
            self.place_waiting()

    def dispatch(self, live: Live, reason: str, only: Server | None = None) -> bool:
        """Send a request to prefill somewhere, its images first to encoders; False where it waits. `only`: nowhere else."""
        images = live.request.images
        able = self.fleet.able(Role.PREFILL)
        if not able or (images and not self.fleet.able(Role.ENCODE)):
            self.homeless[live.request_id] = live
            self.line.remove(live)
            self.pressed()
            return False
        server = self.fleet.pick(Role.PREFILL, live, [only] if only is not None else able)
        if server is None:
            if live.request_id not in self.line:
                self.line.add(live)
                self.pressed()
            return False
        self.line.remove(live)
        self._number += 1
        attempt = live.begin_attempt(self._number, server.name)
        server.take_prompt(live)
        self.fleet.sent(live, server)
        hashes = dict.fromkeys(image.content_hash for image in images)
        actions, expected, lacking = self.images.dispatch(live, server.name, hashes)
        if lacking:
            self.leave(live)
            self.ask_pixels(live, lacking)
            return True
        self.counts["dispatched"] += 1
        self.out.append(QueueAttempt(server.name, attempt, expected, reason))
        self.out += actions
        return True

    def place_waiting(self, server: Server | None = None) -> None:
        """Those who wait for room, in their order, for as long as there is some (at `server`, if it alone has news)."""
        full: set[Modality] = set()
        if server is not None and (Role.PREFILL not in server.roles or server.name not in self.fleet.servers):
            return
        while (live := self.line.first(full)) is not None:
            if not self.dispatch(live, "it has room", server) and live.request_id in self.line:
                full.add(live.modality)

    def place_where_news(self) -> None:
        """Those who wait for room, at the instances that may have some since the last event."""
        if self._news:
            for server in self._news.values():
                self.place_waiting(server)
            self._news.clear()

    def hear_of_room(self, server: Server) -> None:
        if self.line:
            self._news[server.name] = server

    def retry(self) -> None:
        """Instances may do other stages than before: those that wait for one may find it."""
        for live in list(self.homeless.values()):
            del self.homeless[live.request_id]
            self.dispatch(live, "an instance may do its next stage")
        self.place_waiting()
        self.moves.retry()

    # --- going on

    def current(self, server: Server, attempt: str) -> Live | None:
        """The live request whose current attempt is this one at this server; an attempt that is over is called off."""
        live = self.live.get(attempt.rpartition("#")[0])
        if live is None or live.attempt != attempt:
            self.out.append(CancelAttempt(server.name, attempt))
            return None
        return live if live.owner == server.name else None

    def past_prompt(self, server: Server, live: Live) -> None:
        if not live.prefilled:
            live.prefilled = True
            server.drop_prompt(live)
            server.take_decode(live)
            self.hear_of_room(server)
            self.images.release(live)

    # --- ending

    def begin_anew(self, live: Live, reason: str) -> None:
        """An instance was lost that the attempt needed."""
        self.answers.tell_kept(live)
        self.call_off(live)
        live.losses += 1
        if live.losses < MAX_LOSSES:
            self.leave(live)
            self.dispatch(live, reason)
        else:
            self.answers.tell_failed(live, f"{live.losses} instances were lost while they worked on it")
            self.forget(live)

    def mend_gap(self, live: Live) -> None:
        """Tokens are missing that an instance made before the attempt moved on. If it is lost, so are they."""
        if live.early and not all(name in self.fleet.servers for name in live.before):
            self.begin_anew(live, "words of an instance that was lost are missing")

    def ask_pixels(self, live: Live, lacking: tuple[str, ...]) -> None:
        """Its client is to send it again, with these images."""
        self.call_off(live)
        self.forget(live)
        self.out.append(AskPixels(live.request_id, lacking))

    def abandoned(self, live: Live) -> None:
        """Its client has gone, and is told nothing more."""
        self.answers.drop_kept(live)
        self.call_off(live)
        self.forget(live)

    def call_off(self, live: Live) -> None:
        for name in (live.owner, live.moving_to):
            if name in self.fleet.servers:
                self.out.append(CancelAttempt(name, live.attempt))

    def leave(self, live: Live) -> None:
        """The attempt is over, at its owner and on its way."""
        self.answers.tell_kept(live)
        if server := self.fleet.servers.get(live.owner):
            if live.prefilled:
                server.drop_decode(live)
            else:
                server.drop_prompt(live)
            self.hear_of_room(server)
        if target := self.fleet.servers.get(live.moving_to):
            target.drop_decode(live)
        self.moves.not_held(live)
        self.images.release(live)
        live.end_attempt()

    def forget(self, live: Live) -> None:
        """The request is over."""
        self.leave(live)
        self.homeless.pop(live.request_id, None)
        self.line.remove(live)
        del self.live[live.request_id]
