"""Whether an instance has its memory: it sleeps when it is told to and has nothing to do, and wakes when it is told to.

Asleep it has no roles, no KV blocks with content and no embeddings. What was on its way to it when it fell asleep is answered
as by one that has given it up.
"""

from __future__ import annotations

from tierline.core.instance_actions import DropEmbeddings, FreeMemory, TakeMemory, TellAsleep, TellAwake, TellEmbeddings
from tierline.core.instance_events import EmbeddingsArrived, EncodeAsked
from tierline.core.request import Role
from tierline.schedulers.instance_images import Encoder
from tierline.schedulers.instance_state import InstanceState


class Sleep:
    """`asked`: it is to sleep as soon as it may. `has_memory`: else nothing can be computed or kept."""

    def __init__(self, state: InstanceState, encoder: Encoder) -> None:
        self._state = state
        self._encoder = encoder
        self.asked = False
        self.has_memory = True
        self._waking: Role | None = None  # the roles that it will have

    def ask(self) -> None:
        self.asked = self.has_memory

    def fall(self) -> None:
        """Between iterations: sleep, if there is nothing to do."""
        state = self._state
        if state.sequences or self._encoder.waiting:
            return
        self.asked = self.has_memory = False
        state.set_roles(Role(0))
        state.forget_all()
        state.out += [FreeMemory(), TellAsleep()]

    def wake(self, roles: Role) -> None:
        """Who has not fallen asleep yet is awake at once, with all that it has."""
        if self.has_memory:
            self.asked = False
            self._state.set_roles(roles)
            self._state.out.append(TellAwake(roles))
            if kept := tuple(self._state.pool):
                self._state.out.append(TellEmbeddings(kept, ()))
            return
        if self._waking is None:
            self._state.out.append(TakeMemory())
        self._waking = roles

    def ended(self) -> None:
        """The engine has its memory again."""
        assert self._waking is not None, "nobody has been woken"
        self.has_memory = True
        self._state.set_roles(self._waking)
        self._state.out.append(TellAwake(self._waking))
        self._waking = None

    # --- what comes too late

    def encode_asked(self, event: EncodeAsked) -> None:
        if self.has_memory:
            self._encoder.ask(event)
        else:
            self._encoder.refuse(event)

    def embeddings_arrived(self, event: EmbeddingsArrived) -> None:
        if self.has_memory:
            self._encoder.arrived(event.content_hash, event.size_bytes)
        else:
            self._state.out.append(DropEmbeddings((event.content_hash,)))
