"""What clients are told, and the first token of an answer that is kept back for a moment.

A move leaves a gap behind the first token, and answers of a few tokens would miss the TPOT by it. So the client is told of
that token when the answer goes on, as engines do whose decoders answer, unless it would come too late. At most one token
of a request is kept; it is told before anything else of the request, or dropped with the request alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tierline.core.request import Role, TokensMade
from tierline.core.serving_actions import Answer, ServingAction
from tierline.core.slo import Slo
from tierline.schedulers.serving_fleet import Fleet
from tierline.schedulers.serving_state import Live, Server


@dataclass(slots=True)
class Answers:
    """`out`: where actions are appended. `keep_first`: first tokens may be kept."""

    fleet: Fleet
    slo: Slo
    out: list[ServingAction]
    keep_first: bool
    _kept: dict[str, Live] = field(default_factory=dict)  # those whose first token is kept

    def tell(self, server: Server, live: Live, made: TokensMade) -> None:
        """Tell what `server` has made, or keep it."""
        if self._may_keep(server, live, made):
            live.kept = made
            self._kept[live.request_id] = live
        else:
            self.tell_kept(live)
            self._answer(live, made)

    def tell_failed(self, live: Live, reason: str) -> None:
        """The last word of a request, whose first token is told already if it was kept."""
        self.out.append(Answer(TokensMade(live.request_id, len(live.told), (), finish="error", reason=reason)))

    def tell_kept(self, live: Live) -> None:
        if made := self.drop_kept(live):
            self._answer(live, made)

    def tell_kept_before(self, until_ns: int) -> None:
        """All that is kept and was promised for before `until_ns`."""
        for live in [each for each in self._kept.values() if until_ns > each.deadline_ns]:
            self.tell_kept(live)

    def goes_on(self, live: Live) -> None:
        """The answer goes on elsewhere: what is kept is told now if it would come too late with the next token."""
        if self.fleet.now_ns + self.slo.tpot_ns > live.deadline_ns:
            self.tell_kept(live)

    def drop_kept(self, live: Live) -> TokensMade | None:
        self._kept.pop(live.request_id, None)
        made, live.kept = live.kept, None
        return made

    def _may_keep(self, server: Server, live: Live, made: TokensMade) -> bool:
        """Where it would come in time: `deadline >= now + M(r) + 2 TPOT`."""
        first = made.first == 0 and len(made.tokens) == 1 and not made.finish
        if not (self.keep_first and first and live.owner == server.name) or Role.DECODE in server.roles:
            return False
        gap_ns = self.fleet.rates.move_s(live.positions) * 1e9 + 2 * self.slo.tpot_ns
        return live.deadline_ns >= self.fleet.now_ns + gap_ns

    def _answer(self, live: Live, made: TokensMade) -> None:
        live.first_ns = live.first_ns or self.fleet.now_ns
        self.out.append(Answer(made))
