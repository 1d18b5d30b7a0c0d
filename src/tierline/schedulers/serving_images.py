"""Which encoder makes the embeddings of which image for whom, and who has them already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tierline.core.instance_actions import TellEmbeddings
from tierline.core.request import Role
from tierline.core.serving_actions import EncodeOn
from tierline.schedulers.serving_fleet import Fleet
from tierline.schedulers.serving_state import Live, Server


@dataclass(slots=True)
class Flight:
    """Embeddings under way from `encoder` to an instance, for these requests: all are there, and one at least."""

    encoder: str
    seconds: float
    requests: set[str] = field(default_factory=set)


class ImageDispatch:
    """Images of one request go to whichever encoder the routing policy names for each, so they are spread."""

    def __init__(self, fleet: Fleet, live: Mapping[str, Live]) -> None:
        self._fleet = fleet
        self._live = live
        self._flights: dict[tuple[str, str], Flight] = {}  # (image, to)
        self._under_way: Counter[str] = Counter()  # image -> flights
        self.queries = 0
        self.hits = 0

    def flights(self) -> Iterable[tuple[tuple[str, str], Flight]]:
        """What is under way, by image and receiver."""
        return self._flights.items()

    def is_known(self, content_hash: str) -> bool:
        return content_hash in self._fleet.holders or self._under_way[content_hash] > 0

    def dispatch(
        self, live: Live, to: str, hashes: Iterable[str]
    ) -> tuple[list[EncodeOn], tuple[str, ...], tuple[str, ...]]:
        """Get the embeddings of `hashes` to instance `to`, where the request is: what to do, those under way then, and
        those that cannot be encoded for want of pixels (then the attempt is to be ended)."""
        actions: list[EncodeOn] = []
        expected: list[str] = []
        lacking: list[str] = []
        held = self._fleet.servers[to].images
        for content_hash in hashes:
            self.queries += 1
            if content_hash in held:
                self.hits += 1
                continue
            expected.append(content_hash)
            if (content_hash, to) in self._flights:
                self.hits += 1
                self._board(live, content_hash, to)
            elif encode := self._encode(live, to, content_hash):
                actions.append(encode)
            else:
                lacking.append(content_hash)
        return actions, tuple(expected), tuple(lacking)

    def needed(
        self, live: Live, to: str, hashes: tuple[str, ...]
    ) -> tuple[list[EncodeOn], tuple[str, ...], tuple[str, ...]]:
        """The attempt says that it lacks these: what was thought to be there, or under way for it, is not."""
        for content_hash in hashes:
            self._gone(self._fleet.servers[to], content_hash)
            flight = self._flights.get((content_hash, to))
            if flight is not None and live.request_id in flight.requests:
                self._gone(self._fleet.servers[flight.encoder], content_hash)
                self._land(content_hash, to)
        return self.dispatch(live, to, hashes)

    def forget(self, server: Server) -> None:
        """It gives all up, and is asked for none of its images from now on."""
        for content_hash in sorted(server.images):
            self._gone(server, content_hash)

    def stored(self, server: Server, message: TellEmbeddings) -> None:
        """What one stores that falls asleep is not counted on."""
        for content_hash in message.stored if server.is_up else ():
            server.images.add(content_hash)
            self._fleet.holders.setdefault(content_hash, {})[server.name] = server
            self._land(content_hash, server.name)
        for content_hash in message.dropped:
            self._gone(server, content_hash)

    def release(self, live: Live) -> None:
        """The request waits for no image. A flight for nobody is forgotten: if it failed, nobody there would say so, and
        the next request would wait for it."""
        for content_hash, to in list(live.flights):
            flight = self._flights[content_hash, to]
            flight.requests.discard(live.request_id)
            if not flight.requests:
                self._land(content_hash, to)
        live.flights.clear()

    def instance_lost(self, name: str) -> tuple[list[EncodeOn], dict[str, tuple[str, ...]]]:
        """What a lost instance was encoding is encoded by another; also requests that lack pixels for that."""
        for content_hash in [each for each, holders in self._fleet.holders.items() if name in holders]:
            self._no_holder(name, content_hash)
        actions: list[EncodeOn] = []
        lacking: dict[str, tuple[str, ...]] = {}
        for key in [key for key, flight in self._flights.items() if name in (flight.encoder, key[1])]:
            content_hash, to = key
            requests = [self._live[each] for each in self._flights[key].requests]
            self._land(content_hash, to)
            if to == name:
                continue
            for live in sorted(requests, key=lambda each: (content_hash not in each.pixels, each.request_id)):
                if key in self._flights:
                    self._board(live, content_hash, to)
                elif encode := self._encode(live, to, content_hash):
                    actions.append(encode)
                else:
                    lacking[live.request_id] = (*lacking.get(live.request_id, ()), content_hash)
        return actions, lacking

    def _encode(self, live: Live, to: str, content_hash: str) -> EncodeOn | None:
        holders = list(self._fleet.holders.get(content_hash, {}).values())
        able = holders or self._fleet.able(Role.ENCODE)
        if not able or (not holders and content_hash not in live.pixels):
            return None
        server = self._fleet.pick(Role.ENCODE, live, able) or able[0]  # an image never waits
        seconds = 0.0 if holders else self._encode_s(live, content_hash)
        server.count_encode(1, seconds)
        self._flights[content_hash, to] = Flight(server.name, seconds)
        self._under_way[content_hash] += 1
        self._board(live, content_hash, to)
        if holders:
            self.hits += 1
        pixels_of = live.request_id if content_hash in live.pixels and not holders else ""
        reason = "it has the embeddings" if holders else "it may encode"
        return EncodeOn(server.name, content_hash, to, pixels_of, reason)

    def _encode_s(self, live: Live, content_hash: str) -> float:
        for image in live.request.images:
            if image.content_hash == content_hash:
                return self._fleet.rates.image_s(image.tokens)
        return 0.0

    def _board(self, live: Live, content_hash: str, to: str) -> None:
        self._flights[content_hash, to].requests.add(live.request_id)
        live.flights[content_hash, to] = None
        self._fleet.servers[to].bar(live, True)

    def _land(self, content_hash: str, to: str) -> None:
        flight = self._flights.pop((content_hash, to), None)
        if flight is None:
            return
        self._under_way[content_hash] -= 1
        if not self._under_way[content_hash]:
            del self._under_way[content_hash]
        for request_id in sorted(flight.requests):
            live = self._live[request_id]
            live.flights.pop((content_hash, to), None)
            if not live.flights and (receiver := self._fleet.servers.get(to)):
                receiver.bar(live, False)
        if encoder := self._fleet.servers.get(flight.encoder):
            encoder.count_encode(-1, -flight.seconds)

    def _gone(self, server: Server, content_hash: str) -> None:
        server.images.discard(content_hash)
        self._no_holder(server.name, content_hash)

    def _no_holder(self, name: str, content_hash: str) -> None:
        holders = self._fleet.holders.get(content_hash, {})
        holders.pop(name, None)
        if not holders:
            self._fleet.holders.pop(content_hash, None)
