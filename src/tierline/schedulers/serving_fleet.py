"""The instances that are there, which of them may do which stage, and whom the routing policy picks."""

from __future__ import annotations

from collections.abc import Container, Sequence

from tierline.core.fleet_view import stages_of
from tierline.core.request import ALL_ROLES, Role
from tierline.core.routing_view import MODALITIES, WAIT, Group, Modality, RoutingPolicy
from tierline.core.serving_actions import ServingAction, SetGroup, SetRoles
from tierline.perf.serving_demand import StageRates
from tierline.schedulers.prefix_index import PrefixIndex, keys_of
from tierline.schedulers.serving_state import NOTHING, Live, Server, ServerState


class Fleet:
    """`out`: where actions are appended. Roles and groups change here alone, so that `able` is right. `strict`: each group
    that has instances keeps the stages that it needs; else only the whole does."""

    def __init__(self, routing: RoutingPolicy, out: list[ServingAction], rates: StageRates, *, strict: bool) -> None:
        self._routing = routing
        self._out = out
        self._able: dict[Role, list[Server]] = {role: [] for role in Role}
        self._prefixes = PrefixIndex()
        self.rates = rates
        self.strict = strict
        self.now_ns = 0
        self.servers: dict[str, Server] = {}  # in order of joining
        self.holders: dict[str, dict[str, Server]] = {}  # image -> who has its embeddings, by name

    def able(self, role: Role) -> list[Server]:
        """Who may do a stage, in order of joining."""
        return self._able[role]

    def choose(self, role: Role, live: Live, apart_from: Container[str] = ()) -> Server | None:
        """An instance for a stage of a request; None when there is none, or none that has room."""
        able = self._able[role]
        if apart_from:
            able = [server for server in able if server.name not in apart_from]
        return self.pick(role, live, able) if able else None

    def pick(self, role: Role, live: Live, able: Sequence[Server]) -> Server | None:
        """Who of `able` (one at least) does it; None where the request is to wait for room."""
        routing = self._routing
        if len(able) == 1 and (not routing.late or role is Role.ENCODE):
            return able[0]
        cached, embedded = self._affinity(role, live) if routing.wants_affinity else (NOTHING, NOTHING)
        views = tuple([server.known_view or server.view() for server in able])
        name = routing.choose(role, views, live.view(cached, embedded), self.now_ns)
        if name != WAIT:
            return self.servers[name]
        # Where all are idle one takes what there is, whatever the policy says: nobody would have news that lets it go on.
        return able[0] if all(server.view().idle for server in self._able[role]) else None

    def _affinity(self, role: Role, live: Live) -> tuple[dict[str, int], dict[str, int]]:
        if role is not Role.PREFILL:
            return {}, {}
        if live.prefix_keys is None:
            live.prefix_keys = keys_of(live.request)
        embedded: dict[str, int] = {}
        if live.request.images:
            for content_hash, tokens in {each.content_hash: each.tokens for each in live.request.images}.items():
                for name in self.holders.get(content_hash, NOTHING):
                    embedded[name] = embedded.get(name, 0) + tokens
        return self._prefixes.cached(live.prefix_keys, self.servers), embedded

    def sent(self, live: Live, server: Server) -> None:
        """The prompt is to be computed there; who comes with the same beginning may find its KV."""
        if self._routing.wants_affinity:
            if live.prefix_keys is None:
                live.prefix_keys = keys_of(live.request)
            self._prefixes.sent(live.prefix_keys, server.name)

    def join(self, name: str, roles: Role, group: Group = "shared") -> Server:
        server = self.servers[name] = Server(name, roles, roles, self.rates, group)
        self._index()
        return server

    def renew(self, rates: StageRates) -> None:
        """Predictions are made by other rates from now on; those that were made stay."""
        self.rates = rates
        for server in self.servers.values():
            server.renew(rates)

    def lose(self, name: str) -> bool:
        known = self.servers.pop(name, None) is not None
        self._index()
        return known

    # --- who keeps which stage

    def lacks_without(self, server: Server, roles: Role) -> Role:
        """Stages that nobody would do if `server` had these roles."""
        for other in self.servers.values():
            if other is not server:
                roles |= other.roles
        return ALL_ROLES & ~roles

    def serving(self, modality: Modality, apart_from: Server | None = None) -> list[Server]:
        """A modality's group and the shared instances, of those that may do something."""
        return [
            each
            for each in self.servers.values()
            if each.is_up and each.group in (modality, "shared") and each is not apart_from
        ]

    def group_lacks(self, server: Server, roles: Role, group: Group) -> str:
        """What a modality's group would lack if `server` had these roles in this group; "" if nothing that it has now."""
        if not self.strict:
            return ""
        for modality in MODALITIES:
            needed, before = stages_of(modality), self.serving(modality)
            after = self.serving(modality, apart_from=server)
            had, has = _together(before), _together(after)
            if group in (modality, "shared"):
                has |= roles
            if lost := needed & had & ~has:
                return f"the {modality} group would have nobody for {lost.letters}"
        return ""

    def set_roles(self, server: Server, roles: Role, reason: str, now_ns: int) -> None:
        if server.roles != roles:
            server.set_roles(roles, now_ns)
            server.changed_ns, server.reason = now_ns, reason
            self._out.append(SetRoles(server.name, roles, reason))
            self._index()

    # --- who comes and goes

    def send_away(self, server: Server, state: ServerState, reason: str, now_ns: int) -> None:
        """It takes nothing new, until it has nothing to do any more."""
        server.enter(state, now_ns)
        server.resume, server.configured = server.configured, Role(0)
        self.set_roles(server, Role(0), reason, now_ns)

    def call_back(self, server: Server, more: Role, reason: str, now_ns: int) -> None:
        """One that was sent away, and not told to end or to sleep yet, goes on. `more`: roles beside its own."""
        server.enter("awake", now_ns)
        server.configured = server.resume
        self.set_roles(server, server.resume | more, reason, now_ns)

    def fall_asleep(self, server: Server) -> None:
        """It has nothing to do any more: all that is kept there will be gone."""
        server.enter("falling", self.now_ns)
        server.status = None
        self._prefixes.forget(server.name)

    def awake(self, server: Server, roles: Role) -> None:
        """Its first batch has run."""
        server.wake_ns = self.now_ns - server.since_ns
        server.enter("awake", self.now_ns)
        server.configured, server.changed_ns = roles, self.now_ns
        server.set_roles(roles, self.now_ns)
        self._index()

    def set_group(self, server: Server, group: Group, reason: str, now_ns: int) -> None:
        if server.group != group:
            server.set_group(group)
            server.regrouped_ns, server.reason = now_ns, reason
            if self.strict:
                server.changed_ns = now_ns
            self._out.append(SetGroup(server.name, group, reason))

    def take_over_stages(self, now_ns: int) -> None:
        """An instance is lost: every stage is still done by somebody, of every group where these are kept apart."""
        for role in Role:
            if not self._able[role] and (up := [each for each in self.servers.values() if each.is_up]):
                self._take_over(up, role, "no other instance", now_ns)
        for modality in MODALITIES if self.strict else ():
            group = self.serving(modality)
            for role in Role:
                if group and role in stages_of(modality) & ~_together(group):
                    self._take_over(group, role, f"no other instance of the {modality} group", now_ns)

    def _take_over(self, group: Sequence[Server], role: Role, nobody: str, now_ns: int) -> None:
        server = min(group, key=lambda each: (each.state != "awake", each.prefill_tokens, each.decoding))
        reason = f"{nobody} may do {role.letters}"
        if server.state == "awake":
            self.set_roles(server, server.roles | role, reason, now_ns)
        else:
            self.call_back(server, role, reason, now_ns)

    def give_back_stages(self, now_ns: int) -> None:
        """What some took over, and an instance is configured to do now, is that one's own again."""
        for role in Role:
            if any(role in server.configured and role in server.roles for server in self._able[role]):
                for server in list(self._able[role]):
                    roles = server.roles & ~role
                    if role not in server.configured and not self.group_lacks(server, roles, server.group):
                        self.set_roles(server, roles, "the stage has its own instance again", now_ns)

    def _index(self) -> None:
        for role in Role:
            self._able[role] = [server for server in self.servers.values() if role in server.roles]


def _together(servers: Sequence[Server]) -> Role:
    roles = Role(0)
    for server in servers:
        roles |= server.roles
    return roles
