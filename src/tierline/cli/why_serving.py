"""`tierline why NAME WHERE`: decisions about a serving instance or a request, of a live server or of a record.

A server tells its last decisions about instances; a record (`tierline serve --record FILE`) holds every decision, those about
single requests too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tierline.cli import render
from tierline.core.errors import NotFound
from tierline.core.nouns import NS_PER_S

COLUMNS = ("AFTER", "DECISION", "WHERE", "REASON")
LIVE_COLUMNS = ("AGO", "DECISION", "REASON")
NUMBERS = ("AFTER", "AGO")


@dataclass(frozen=True, slots=True)
class Row:
    """`after_s`: since the first event of the record."""

    after_s: float
    decision: str
    where: str
    reason: str


# --- a live server


def show_live(name: str, url: str, last: int, as_json: bool, api_key: str) -> None:
    """Raises `NotFound` for an instance that the server does not know."""
    from tierline.cli.serving_status import InstanceTold, ServingClient, ServingStatus

    def summary(each: InstanceTold) -> str:
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
    instance = next((each for each in status.instances if each.name == name), None)
    decisions = [each for each in status.decisions if each.subject == name]
    if instance is None and not decisions:
        known = ", ".join(each.name for each in status.instances) or "none"
        raise NotFound(
            f"'{name}' is no instance of {server.root} (instances: {known}). Decisions about a request are in a record: "
            "`tierline serve --record FILE`, then `tierline why r1 FILE`."
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
        raise NotFound(f"{path} holds no decision about '{name}': instances are i0, i1, ..., requests r1, r2, ...")
    rows = rows[-last:] if last else rows
    if as_json:
        render.print_json({"name": name, "policy": setting.get("policy", ""), "decisions": rows})
        return
    table = [[f"{row.after_s:.3f}s", row.decision, row.where, row.reason] for row in rows]
    render.print_table(COLUMNS, table, NUMBERS, wrap=True)


@dataclass(slots=True)
class _Known:
    """Of the request that is asked about."""

    images: set[str] = field(default_factory=set)


def _rows(name: str, record: Iterable[tuple[int, object, Sequence[object]]]) -> Iterator[Row]:
    from tierline.core.serving_events import InstanceJoined, InstanceLost, RequestAbandoned, RequestSubmitted

    zero_ns: int | None = None
    known = _Known()
    for at_ns, event, actions in record:
        zero_ns = at_ns if zero_ns is None else zero_ns
        after_s = (at_ns - zero_ns) / NS_PER_S
        match event:
            case RequestSubmitted() if event.request.request_id == name:
                known.images = {image.content_hash for image in event.request.images}
                prompt, images = len(event.request.prompt), len(event.request.images)
                told = f"a prompt of {prompt} tokens, {images} image{'' if images == 1 else 's'}"
                yield Row(after_s, "came", "-", told)
            case RequestAbandoned() if event.request_id == name:
                yield Row(after_s, "abandoned", "-", "its client has gone")
            case InstanceJoined() if event.name == name:
                yield Row(after_s, "joined", name, f"it may {words(event.roles.letters)}")
            case InstanceLost() if event.name == name:
                yield Row(after_s, "lost", name, event.reason)
        yield from _acted(name, after_s, actions, known)


def _acted(name: str, after_s: float, actions: Sequence[object], known: _Known) -> Iterator[Row]:
    from tierline.core import serving_actions as act

    queued = any(isinstance(each, act.QueueAttempt) and _of(each.request.request_id) == name for each in actions)
    for action in actions:
        match action:
            case act.QueueAttempt() if _of(action.request.request_id) == name:
                yield Row(after_s, f"prefill as {action.request.request_id}", action.instance, action.reason)
            case act.EncodeOn() if queued and action.content_hash in known.images:
                what = "encode an image" if action.pixels_of else "send an image's embeddings"
                yield Row(after_s, what, f"{action.instance} for {action.to}", action.reason)
            case act.MoveAttempt() if _of(action.attempt) == name:
                yield Row(after_s, "move", f"{action.instance} to {action.to}", action.reason)
            case act.CancelAttempt() if _of(action.attempt) == name:
                yield Row(after_s, "cancel", action.instance, f"attempt {action.attempt} is over")
            case act.Answer() if action.tokens.request_id == name:
                if action.tokens.first == 0 and action.tokens.tokens:
                    yield Row(after_s, "first token", "-", "told to the client")
                if action.tokens.finish:
                    made = action.tokens.first + len(action.tokens.tokens)
                    yield Row(after_s, action.tokens.finish, "-", action.tokens.reason or f"after {made} tokens")
            case act.AskPixels() if action.request_id == name:
                yield Row(after_s, "ask for pixels", "-", f"of {len(action.hashes)} images")
            case act.SetRoles() if action.instance == name:
                yield Row(after_s, f"roles {action.roles.letters or 'none'}", name, action.reason)
            case act.SetGroup() if action.instance == name:
                yield Row(after_s, f"group {action.group}", name, action.reason)
            case act.StopInstance() if action.instance == name:
                yield Row(after_s, "stop", name, action.reason)
            case act.RecordServingRefusal() if action.subject == name:
                yield Row(after_s, "refused", name, action.reason)


def _of(attempt: str) -> str:
    """The request of an attempt: `r7` of `r7#12`."""
    return attempt.partition("#")[0]
