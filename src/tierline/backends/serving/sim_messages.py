"""Messages between simulated instances: from what one wants to what the other is told."""

from __future__ import annotations

from tierline.core.instance_actions import (
    AcceptMove,
    CancelMove,
    ConfirmMove,
    ConfirmRound,
    InstanceAction,
    OfferMove,
    RefuseMove,
    SendEncodeFailure,
)
from tierline.core.instance_events import (
    EncodeFailed,
    InstanceEvent,
    MoveAccepted,
    MoveCancelled,
    MoveOffered,
    MoveRefused,
    MoveTaken,
    RoundArrived,
    RoundTaken,
)


def message_of(action: InstanceAction, source: str) -> InstanceEvent:
    """What the peer is told, if `source` wants this; without a payload."""
    match action:
        case SendEncodeFailure():
            return EncodeFailed(action.content_hash, action.error)
        case OfferMove():
            return MoveOffered(action.request, source, action.tokens)
        case AcceptMove():
            return MoveAccepted(action.request_id, source, action.cached_tokens)
        case RefuseMove():
            return MoveRefused(action.request_id, source, action.reason)
        case CancelMove():
            return MoveCancelled(action.request_id, source)
        case ConfirmRound():
            return RoundTaken(action.request_id, source, action.until)
        case ConfirmMove():
            return MoveTaken(action.request_id, source)
    raise AssertionError(f"{type(action).__name__} is not for a peer")


def sender_of(event: InstanceEvent) -> str:
    """The peer that a move's message is from; "" for others."""
    match event:
        case MoveOffered() | RoundArrived() | MoveCancelled():
            return event.source
        case MoveAccepted() | MoveRefused() | RoundTaken() | MoveTaken():
            return event.peer
    return ""
