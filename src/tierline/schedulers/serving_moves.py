"""Which request goes on decoding at which other instance.

A request whose owner may not decode it is held there until it has moved. One that no instance takes waits here, and is sent
where there may be room again; one that is under way waits no longer, and counts among the decodes of both instances until
the target says that it has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from tierline.core.instance_actions import TellMoved
from tierline.core.request import Role
from tierline.core.serving_actions import CancelAttempt, MoveAttempt, RecordServingRefusal, ServingAction
from tierline.schedulers.serving_answers import Answers
from tierline.schedulers.serving_fleet import Fleet
from tierline.schedulers.serving_state import Live, Server

TRIES = 8  # so many of those that wait to be moved are sent to an instance that has told of its load


@dataclass(slots=True)
class Moves:
    """`live`: requests by id. `answers`: told when a first token need not be kept for a move any longer. `out`: where actions
    are appended."""

    fleet: Fleet
    live: Mapping[str, Live]
    answers: Answers
    out: list[ServingAction]
    counts: Counter[str]
    _held: dict[str, Live] = field(default_factory=dict)  # those that wait to be moved and are not under way

    def prefilled(self, live: Live) -> None:
        """Its owner says that it may not decode it, so it waits to be moved."""
        live.held = True
        if live.moving_to:  # asked again: a preemption ends a move in silence; one that goes on is not changed by it
            self.out.append(MoveAttempt(live.owner, live.attempt, live.moving_to, "its prompt is done"))
        else:
            self._find_decoder(live)

    def not_held(self, live: Live) -> None:
        live.held = False
        self._held.pop(live.request_id, None)

    def retry(self, at_most: int | None = None) -> None:
        """Those that wait, or the first of them, may find an instance now."""
        for live in list(islice(self._held.values(), at_most)):
            self._find_decoder(live)

    def has_room(self, server: Server) -> None:
        """An instance has told of its load, or of an end: some of those that no instance would take are sent there."""
        server.news += 1
        if not self._held or Role.DECODE not in server.roles:
            return
        for live in list(islice(self._held.values(), TRIES)):
            if live.owner != server.name and self.fleet.pick(Role.DECODE, live, [server]) is not None:
                self._move(live, server, "it may have room again")

    def failed(self, live: Live, to: str) -> None:
        self.counts["moves_failed"] += 1
        if live.moving_to != to:
            return
        target = self.fleet.servers[to]
        target.drop_decode(live)
        live.moving_to = ""
        if target.news == live.news:  # else it has told of room since, and may take it now
            live.refused_by.add(to)
        if live.held:
            self._find_decoder(live)

    def moved(self, server: Server, message: TellMoved) -> None:
        live = self.live.get(message.request_id.rpartition("#")[0])
        if live is None or live.attempt != message.request_id or message.source != live.owner:
            self.out.append(CancelAttempt(server.name, message.request_id))
            return
        if live.moving_to != server.name:  # asked for twice: the first order was refused, the second was not
            if target := self.fleet.servers.get(live.moving_to):
                target.drop_decode(live)
            server.take_decode(live)
        self.fleet.servers[live.owner].drop_decode(live)
        live.before.add(live.owner)
        live.owner, live.moving_to, live.held = server.name, "", False
        live.refused_by.clear()
        self.counts["moves"] += 1
        self.answers.goes_on(live)

    def wanted(self, request_id: str, name: str, why: str) -> None:
        """Somebody wants a request moved to the instance `name`."""
        live, to = self.live.get(request_id), self.fleet.servers.get(name)
        reason = ""
        if live is None or to is None:
            reason = "there is no such request or instance"
        elif not live.prefilled or live.moving_to or live.owner == to.name:
            reason = "its prompt is not done, it is being moved, or it is there already"
        elif Role.DECODE not in to.roles:
            reason = f"{to.name} may not decode"
        else:
            self._move(live, to, why)
            return
        self.out.append(RecordServingRefusal(request_id, reason))

    def _find_decoder(self, live: Live) -> None:
        """Move one that is held, unless its owner may decode by now: it will go on there as soon as that hears of it."""
        if Role.DECODE in self.fleet.servers[live.owner].roles:
            self.not_held(live)
            return
        server = self.fleet.choose(Role.DECODE, live, apart_from=live.refused_by | {live.owner})
        if server is None:
            live.refused_by.clear()
            self._held[live.request_id] = live
            self.answers.tell_kept(live)
        else:
            self._move(live, server, "its prompt is done")

    def _move(self, live: Live, to: Server, reason: str) -> None:
        self._held.pop(live.request_id, None)
        live.moving_to, live.news = to.name, to.news
        to.take_decode(live)
        self.out.append(MoveAttempt(live.owner, live.attempt, to.name, reason))
