"""Which encoder makes the embeddings of which image for whom, and who has them already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tierline.core.instance_actions import TellEmbeddings
from tierline.core.request import Role
from tierline.core.routing_view import RoutingPolicy
from tierline.core.serving_actions import EncodeOn
from tierline.schedulers.serving_state import Live, Server


@dataclass(slots=True)
class Flight:
    """Embeddings under way from `encoder` to an instance, for these requests."""

    encoder: str
    requests: set[str] = field(default_factory=set)


class ImageDispatch:
    """Images of one request go to whichever encoder the routing policy names for each, so they are spread."""

    def __init__(self, servers: Mapping[str, Server], live: Mapping[str, Live], routing: RoutingPolicy) -> None:
        self._servers = servers
        self._live = live
        self._routing = routing
        self._flights: dict[tuple[str, str], Flight] = {}  # (image, to)
        self.queries = 0
        self.hits = 0

    def is_known(self, content_hash: str) -> bool:
        stored = any(content_hash in server.images for server in self._servers.values())
        return stored or any(key[0] == content_hash for key in self._flights)

    def dispatch(
        self, live: Live, to: str, hashes: tuple[str, ...]
    ) -> tuple[list[EncodeOn], tuple[str, ...], tuple[str, ...]]:
        """Get the embeddings of `hashes` to instance `to`: what to do, those under way then, and those that cannot be
        encoded for want of pixels (then nothing is done)."""
        actions: list[EncodeOn] = []
        expected: list[str] = []
        lacking: list[str] = []
        for content_hash in hashes:
            self.queries += 1
            if content_hash in self._servers[to].images:
                self.hits += 1
                continue
            expected.append(content_hash)
            if (content_hash, to) in self._flights:
                self.hits += 1
                self._flights[content_hash, to].requests.add(live.request_id)
                continue
            encode = self._encode(live, to, content_hash)
            if encode is None:
                lacking.append(content_hash)
            else:
                actions.append(encode)
        if lacking:
            for action in actions:
                self._land(action.content_hash, to)
            return [], (), tuple(lacking)
        return actions, tuple(expected), ()

    def _encode(self, live: Live, to: str, content_hash: str) -> EncodeOn | None:
        holders = [server for server in self._servers.values() if content_hash in server.images]
        able = holders or [server for server in self._servers.values() if Role.ENCODE in server.roles]
        if not able or (not holders and content_hash not in live.pixels):
            return None
        name = self._routing.choose(Role.ENCODE, tuple(server.view() for server in able), live.request)
        self._servers[name].encoding += 1
        self._flights[content_hash, to] = Flight(name, {live.request_id})
        if holders:
            self.hits += 1
        pixels_of = live.request_id if content_hash in live.pixels and not holders else ""
        reason = "it has the embeddings" if holders else "it may encode"
        return EncodeOn(name, content_hash, to, pixels_of, reason)

    def stored(self, server: Server, message: TellEmbeddings) -> None:
        server.images.update(message.stored)
        server.images.difference_update(message.dropped)
        for content_hash in message.stored:
            self._land(content_hash, server.name)

    def forget(self, to: str, hashes: tuple[str, ...]) -> None:
        """What was thought to be under way to an instance, or there, is not."""
        for content_hash in hashes:
            self._servers[to].images.discard(content_hash)
            flight = self._flights.get((content_hash, to))
            if flight is not None:
                encoder = self._servers.get(flight.encoder)
                if encoder is not None:
                    encoder.images.discard(content_hash)
                self._land(content_hash, to)

    def request_over(self, live: Live) -> None:
        """Nobody needs flights for this request; one that failed would otherwise be waited for by the next."""
        for image in live.request.images:
            for key in [key for key in self._flights if key[0] == image.content_hash]:
                flight = self._flights[key]
                flight.requests.discard(live.request_id)
                if not flight.requests:
                    self._land(*key)

    def instance_lost(self, name: str) -> tuple[list[EncodeOn], dict[str, tuple[str, ...]]]:
        """What an instance was encoding is encoded by another; also requests that lack pixels for that."""
        actions: list[EncodeOn] = []
        lacking: dict[str, tuple[str, ...]] = {}
        for key in [key for key, flight in self._flights.items() if flight.encoder == name or key[1] == name]:
            content_hash, to = key
            flight = self._flights.pop(key)
            if to == name:
                if flight.encoder in self._servers:
                    self._servers[flight.encoder].encoding -= 1
                continue
            for request_id in sorted(flight.requests):
                live = self._live.get(request_id)
                if live is None or live.owner != to:
                    continue
                if key in self._flights:
                    self._flights[key].requests.add(request_id)
                elif encode := self._encode(live, to, content_hash):
                    actions.append(encode)
                else:
                    lacking[request_id] = (*lacking.get(request_id, ()), content_hash)
        return actions, lacking

    def _land(self, content_hash: str, to: str) -> None:
        flight = self._flights.pop((content_hash, to), None)
        if flight is not None and flight.encoder in self._servers:
            self._servers[flight.encoder].encoding -= 1
