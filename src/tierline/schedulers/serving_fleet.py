"""The instances that are there, which of them may do which stage, and whom the routing policy picks."""

from __future__ import annotations

from collections.abc import Container

from tierline.core.request import ALL_ROLES, Request, Role
from tierline.core.routing_view import RoutingPolicy
from tierline.core.serving_actions import ServingAction, SetRoles
from tierline.schedulers.serving_state import Server


class Fleet:
    """`out`: where actions are appended. Roles change here alone, so that `able` is right."""

    def __init__(self, routing: RoutingPolicy, out: list[ServingAction]) -> None:
        self._routing = routing
        self._out = out
        self._able: dict[Role, list[Server]] = {role: [] for role in Role}
        self.servers: dict[str, Server] = {}  # in order of joining

    def able(self, role: Role) -> list[Server]:
        """Who may do a stage, in order of joining."""
        return self._able[role]

    def choose(self, role: Role, request: Request, apart_from: Container[str] = ()) -> Server | None:
        """An instance for a stage of a request; None when there is none."""
        able = self._able[role]
        if apart_from:
            able = [server for server in able if server.name not in apart_from]
        return self.pick(role, request, able) if able else None

    def pick(self, role: Role, request: Request, able: list[Server]) -> Server:
        if len(able) == 1:
            return able[0]
        return self.servers[self._routing.choose(role, tuple([server.view() for server in able]), request)]

    def join(self, name: str, roles: Role) -> None:
        self.servers[name] = Server(name, roles, roles)
        self._index()

    def lose(self, name: str) -> bool:
        known = self.servers.pop(name, None) is not None
        self._index()
        return known

    def lacks_without(self, server: Server, roles: Role) -> Role:
        """Stages that nobody would do if `server` had these roles."""
        for other in self.servers.values():
            if other is not server:
                roles |= other.roles
        return ALL_ROLES & ~roles

    def set_roles(self, server: Server, roles: Role, reason: str, now_ns: int) -> None:
        if server.roles != roles:
            server.set_roles(roles, now_ns)
            self._out.append(SetRoles(server.name, roles, reason))
            self._index()

    def take_over_stages(self, now_ns: int) -> None:
        """An instance is lost: every stage is still done by somebody."""
        for role in Role:
            if self.servers and not self._able[role]:
                server = min(self.servers.values(), key=lambda each: (each.prefill_tokens, each.decoding))
                self.set_roles(server, server.roles | role, f"no other instance may do {role.letters}", now_ns)

    def give_back_stages(self, now_ns: int) -> None:
        """What some took over, and an instance is configured to do now, is that one's own again."""
        for role in Role:
            if any(role in server.configured for server in self._able[role]):
                for server in list(self._able[role]):
                    if role not in server.configured:
                        self.set_roles(server, server.roles & ~role, "the stage has its own instance again", now_ns)

    def _index(self) -> None:
        for role in Role:
            self._able[role] = [server for server in self.servers.values() if role in server.roles]
