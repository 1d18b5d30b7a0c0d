"""`tierline why NAME WHERE`: decisions about a serving instance or a request, of a live server or of a record.

A server tells its last decisions about instances, and how far a request is or how it ended; a record (`tierline serve
--record FILE`) holds every decision, those about single requests too. A request is known by its own id (`r7`), by the
`X-Request-Id` that came with it, and by the `id` of its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tierline.cli import render
from tierline.core.errors import NotFound
from tierline.core.nouns import NS_PER_S

if TYPE_CHECKING:
    from tierline.cli.serving_status import RequestTold

COLUMNS = ("AFTER", "DECISION", "WHERE", "REASON")
LIVE_COLUMNS = ("AGO", "DECISION", "REASON")
NUMBERS = ("AFTER", "AGO")
CLIENTS_COLUMNS = (*COLUMNS[:1], "REQUEST", *COLUMNS[1:])
STATES = {
    "leaving": "takes nothing new: it ends when it has nothing to do any more",
    "ending": "was told to end",
    "drowsy": "takes nothing new: it sleeps when it has nothing to do any more",
    "falling": "was told to sleep",
    "asleep": "sleeps: its weights are in host memory, it holds no KV and no images, and it serves nobody",
    "waking": "is being woken: it serves again when its first batch has run",
}


@dataclass(frozen=True, slots=True)
class Row:
    """`after_s`: since the first event of the record. `subject`: the instance or the request, by its own id."""

    after_s: float
    subject: str
    decision: str
    where: str
    reason: str


# --- a live server


def show_live(name: str, url: str, last: int, as_json: bool, api_key: str) -> None:
    """Raises `NotFound` for an instance that the server does not know."""
    from tierline.cli.serving_status import InstanceTold, ServingClient, ServingStatus

    def summary(each: InstanceTold) -> str:
        if each.state != "awake":
            return f"{each.name} {STATES[each.state]}."
        took = (
            f" (the last took {render.latency(each.switch_seconds)} until its first batch)"
            if each.role_switches
            else ""
        )
        return (
            f"{each.name} may {words(each.roles)} for {whom(each.group)}: {each.prefill_tokens} prompt tokens wait, "
            f"{each.encoding} images, {each.decoding} requests decode, {100 * each.kv_share:.0f}% of its KV is in use; "
            f"{each.role_switches} role switch{'' if each.role_switches == 1 else 'es'}{took}."
        )

    with ServingClient(url, api_key) as server:
        status: ServingStatus = server.status()
        requests = server.requests(name) if all(each.name != name for each in status.instances) else ()
    instance = next((each for each in status.instances if each.name == name), None)
    decisions = [each for each in status.decisions if each.subject == name]
    if requests:
        _show_requests(requests[-last:] if last else requests, as_json)
        return
    if instance is None and not decisions:
        known = ", ".join(each.name for each in status.instances) or "none"
        raise NotFound(
            f"'{name}' is no instance of {server.root} (instances: {known}), and no request that it remembers. All requests "
            "are in a record: `tierline serve --record FILE`, then `tierline why r1 FILE`."
        )
    decisions = decisions[-last:] if last else decisions
    if as_json:
        render.print_json({"instance": instance, "decisions": decisions})
        return
    print(summary(instance) if instance else f"{name} has left.")
    print()
    if not decisions:
        print("Nothing was decided about it lately.")
        return
    rows = [[render.duration((status.now_ns - each.at_ns) / NS_PER_S), each.what, each.reason] for each in decisions]
    render.print_table(LIVE_COLUMNS, rows, NUMBERS, wrap=True)


def _show_requests(requests: Sequence[RequestTold], as_json: bool) -> None:
    if as_json:
        render.print_json({"requests": requests})
        return
    for each in requests:
        called = f" ({each.client_id})" if each.client_id else ""
        print(f"{each.request_id}{called}: {_course(each)}.")
    print("Decisions about it are in a record: `tierline serve --record FILE`, then `tierline why NAME FILE`.")


def _course(each: RequestTold) -> str:
    """What became of a request, in words."""
    images = f" and {each.images} image{'' if each.images == 1 else 's'}" if each.images else ""
    said = [f"a prompt of {each.prompt_tokens} tokens{images}, came {render.duration(each.age_s)} ago"]
    if each.first_s is not None:
        said.append(f"first token after {render.latency(each.first_s)}, {each.output_tokens} tokens made")
    if each.end:
        meant = "its client has gone or has all it wanted" if each.end == "closed" else f"it ended with '{each.end}'"
        said.append(f"{meant} after {render.latency(each.took_s)}")
    elif each.instance:
        doing = {"prefill": "its prompt is at", "decode": "it decodes at", "moves": "it moves away from"}[each.stage]
        said.append(f"{doing} {each.instance}")
    else:
        said.append("it waits for room")
    return "; ".join(said)


def words(roles: str) -> str:
    """
    >>> words("EPD"), words("D"), words("")
    ('encode, prefill and decode', 'decode', 'do nothing')
    """
    names = [{"E": "encode", "P": "prefill", "D": "decode"}[letter] for letter in roles]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "do nothing"


def whom(group: str) -> str:
    """
    >>> whom("shared"), whom("text")
    ('everybody', 'text requests')
    """
    return {"shared": "everybody", "text": "text requests", "multimodal": "requests with images"}[group]


# --- a record


def show_recorded(name: str, path: Path, last: int, as_json: bool) -> None:
    """Raises `StateUnusable` for what is no record, `NotFound` where nothing is in it about `name`."""
    from tierline.runtime.serving_record import read_record, setting_of

    setting = setting_of(path)
    rows = list(_rows(name, read_record(path)))
    if not rows:
        raise NotFound(
            f"{path} holds no decision about '{name}': instances are i0, i1, ..., requests r1, r2, ... or as their clients "
            "call them."
        )
    rows = rows[-last:] if last else rows
    if as_json:
        render.print_json({"name": name, "policy": setting.get("policy", ""), "decisions": rows})
        return
    if all(row.subject == name for row in rows):
        table = [[f"{row.after_s:.3f}s", row.decision, row.where, row.reason] for row in rows]
        render.print_table(COLUMNS, table, NUMBERS, wrap=True)
        return
    table = [[f"{row.after_s:.3f}s", row.subject, row.decision, row.where, row.reason] for row in rows]
    render.print_table(CLIENTS_COLUMNS, table, NUMBERS, wrap=True)


@dataclass(slots=True)
class _Known:
    """Images of each request that is asked about; none yet of an instance."""

    images: dict[str, set[str]] = field(default_factory=dict)


def _rows(name: str, record: Iterable[tuple[int, object, Sequence[object]]]) -> Iterator[Row]:
    from tierline.core.instance_actions import TellAsleep, TellAwake
    from tierline.core.request import is_called
    from tierline.core.serving_events import (
        InstanceJoined,
        InstanceLost,
        InstanceSaid,
        RequestAbandoned,
        RequestSubmitted,
    )

    zero_ns: int | None = None
    known = _Known()
    for at_ns, event, actions in record:
        zero_ns = at_ns if zero_ns is None else zero_ns
        after_s = (at_ns - zero_ns) / NS_PER_S
        match event:
            case RequestSubmitted() if is_called(name, event.request.request_id, event.request.client_id):
                request = event.request
                known.images[request.request_id] = {image.content_hash for image in request.images}
                images = len(request.images)
                told = f"a prompt of {len(request.prompt)} tokens, {images} image{'' if images == 1 else 's'}"
                if request.client_id and request.client_id != name:
                    told += f"; its client calls it {request.client_id}"
                yield Row(after_s, request.request_id, "came", "-", told)
            case RequestAbandoned() if event.request_id in known.images:
                yield Row(after_s, event.request_id, "abandoned", "-", "its client has gone, or has all it wanted")
            case InstanceJoined() if event.name == name:
                yield Row(after_s, name, "joined", name, f"it may {words(event.roles.letters)}")
            case InstanceLost() if event.name == name:
                yield Row(after_s, name, "lost", name, event.reason)
            case InstanceSaid(message=TellAsleep()) if event.name == name:
                yield Row(after_s, name, "asleep", name, "it has given its memory up")
            case InstanceSaid(message=TellAwake()) if event.name == name:
                yield Row(after_s, name, "awake", name, "its first batch has run")
        yield from _acted(name, after_s, actions, known)


def _acted(name: str, after_s: float, actions: Sequence[object], known: _Known) -> Iterator[Row]:
    from tierline.core import serving_actions as act

    queued = ""
    for action in actions:
        match action:
            case act.QueueAttempt():
                queued = _of(action.request.request_id)  # what follows is for it
                if queued in known.images:
                    yield Row(
                        after_s, queued, f"prefill as {action.request.request_id}", action.instance, action.reason
                    )
            case act.EncodeOn() if action.content_hash in known.images.get(queued, ()):
                what = "encode an image" if action.pixels_of else "send an image's embeddings"
                yield Row(after_s, queued, what, f"{action.instance} for {action.to}", action.reason)
            case act.MoveAttempt() if (own := _of(action.attempt)) in known.images:
                yield Row(after_s, own, "move", f"{action.instance} to {action.to}", action.reason)
            case act.CancelAttempt() if (own := _of(action.attempt)) in known.images:
                yield Row(after_s, own, "cancel", action.instance, f"attempt {action.attempt} is over")
            case act.Answer() if (own := action.tokens.request_id) in known.images:
                if action.tokens.first == 0 and action.tokens.tokens:
                    yield Row(after_s, own, "first token", "-", "told to the client")
                if action.tokens.finish:
                    made = action.tokens.first + len(action.tokens.tokens)
                    reason = action.tokens.reason or f"after {made} tokens"
                    yield Row(after_s, own, action.tokens.finish, "-", reason)
            case act.AskPixels() if action.request_id in known.images:
                yield Row(after_s, action.request_id, "ask for pixels", "-", f"of {len(action.hashes)} images")
            case act.SetRoles() if action.instance == name:
                yield Row(after_s, name, f"roles {action.roles.letters or 'none'}", name, action.reason)
            case act.SetGroup() if action.instance == name:
                yield Row(after_s, name, f"group {action.group}", name, action.reason)
            case act.StopInstance() if action.instance == name:
                yield Row(after_s, name, "stop", name, action.reason)
            case act.SleepInstance() if action.instance == name:
                yield Row(after_s, name, "sleep", name, action.reason)
            case act.WakeInstance() if action.instance == name:
                yield Row(after_s, name, f"wake as {action.roles.letters}", name, action.reason)
            case act.RecordServingRefusal() if action.subject == name or action.subject in known.images:
                yield Row(after_s, action.subject, "refused", action.subject, action.reason)


def _of(attempt: str) -> str:
    """The request of an attempt: `r7` of `r7#12`."""
    return attempt.partition("#")[0]
