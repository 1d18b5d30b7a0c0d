"""The load generator: its words and pictures, what it reads of answers, and that it keeps the clock."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from tierline.core.errors import DaemonUnavailable, InvalidInput
from tierline.core.served_trace import TracedImage, TracedRequest
from tierline.testing.scripted_server import Scripted, answer, error, event, pixels, streamed, words
from tierline.workloads.replay_client import Progress, Replay, ReplayOptions, replay
from tierline.workloads.replaying import http
from tierline.workloads.replaying.answer import Answer
from tierline.workloads.replaying.compose import Composer
from tierline.workloads.replaying.http import Address
from tierline.workloads.replaying.pictures import Pictures
from tierline.workloads.replaying.survey import Survey
from tierline.workloads.replaying.words import Words

for _name in ("PIL", "httptools"):
    pytest.importorskip(_name)

MS = 1_000_000


# ---- words and pictures


def test_texts_have_the_asked_number_of_words() -> None:
    pool = Words()
    for count in (0, 1, 3, 4, 5, 300, 70_000):
        assert len(pool.text("a", count).split()) == count
    assert pool.text("a", 100).startswith(pool.text("a", 40))
    begins = {pool.text(str(n), 12) for n in range(5000)}
    assert len(begins) == 5000  # no two keys begin alike


def test_a_picture_is_its_name_s_and_no_other_s() -> None:
    from PIL import Image

    one, two = Pictures("x"), Pictures("y")
    first = one.base64("a", 112, 84)
    assert one.base64("a", 112, 84) == first == Pictures("x").base64("a", 112, 84)
    seen = set()
    for name in range(200):
        with Image.open(io.BytesIO(base64.b64decode(one.base64(str(name), 112, 84)))) as image:
            image.load()
            assert image.size == (112, 84) and image.format == "PNG"
            seen.add(image.convert("RGB").tobytes())
    with Image.open(io.BytesIO(base64.b64decode(two.base64("0", 112, 84)))) as image:
        seen.add(image.convert("RGB").tobytes())
    assert len(seen) == 201  # different pixels, not only different files


# ---- what is read of an answer


def read(*pieces: bytes, status: int = 200, error: str = "", expected: int = 7) -> Answer:
    ended: list[Answer] = []
    found = Answer(0, TracedRequest(0, 11, expected, (TracedImage("a", 4),), stream="s"), ended.append)
    found.begun(status)
    for number, piece in enumerate(pieces):
        found.body(piece, (number + 1) * MS)
    found.ended(error, 99 * MS)
    assert ended == [found]
    return found


def test_the_first_token_is_the_first_text() -> None:
    found = read(*words(3, usage=(20, 3)))
    assert (found.kind, found.first_ns, found.ended_ns) == ("finished", 2 * MS, 99 * MS)  # the role alone is none
    assert (found.prompt_tokens, found.output_tokens) == (20, 3)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_pieces_may_be_cut_anywhere(size: int, line_end: bytes) -> None:
    whole = b"".join(words(400, usage=(5, 400))).replace(b"\n", line_end)
    found = read(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert (found.kind, found.output_tokens, found.prompt_tokens) == ("finished", 400, 5)


def test_without_usage_the_wanted_length_is_taken() -> None:
    found = read(*words(3))
    assert found.output_tokens == 7
    assert found.outcome(0).prompt_tokens == 15 and found.outcome(0).images == 1
    assert read(*words(3, usage=(20, 3))).outcome(0).prompt_tokens == 20


@pytest.mark.parametrize(
    ("pieces", "status", "broke", "kind", "message"),
    [
        (words(3, done=False), 200, "", "broken", ""),
        (words(3), 200, "broken", "broken", ""),
        (words(3), 200, "timeout", "timeout", ""),
        ([], 200, "connection", "connection", ""),
        ([event("[DONE]")], 200, "", "empty", ""),
        (
            [*words(2, done=False), event({"error": {"message": "It was lost."}}), event("[DONE]")],
            200,
            "",
            "error",
            "It was lost.",
        ),
        ([event({"error": {"message": "No room."}}), event("[DONE]")], 200, "", "error", "No room."),
        ([b'{"error": {"message": "Busy."}}'], 503, "", "refused", "Busy."),
        ([b'{"error": {"message": "Slow down."}}'], 429, "", "refused", "Slow down."),
        ([b'{"detail": "Wrong."}'], 422, "", "http_422", "Wrong."),
        ([b"<html>"], 502, "", "http_502", "<html>"),
    ],
)
def test_what_goes_wrong_has_a_kind(pieces: list[bytes], status: int, broke: str, kind: str, message: str) -> None:
    found = read(*pieces, status=status, error=broke)
    assert (found.kind, found.message) == (kind, message)
    assert not found.outcome(0).ok and found.outcome(0).outcome == kind


def test_addresses() -> None:
    assert Address.parse("http://127.0.0.1:8000/v1/") == Address("127.0.0.1", 8000, False, "")
    assert Address.parse("https://host/models") == Address("host", 443, True, "/models")
    assert str(Address.parse("http://[::1]:80/v1")) == "http://[::1]:80"
    for url in ("127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://host/?x=1"):
        with pytest.raises(InvalidInput, match="is no address of a server"):
            Address.parse(url)


# ---- what is sent


def composer(**changes: Any) -> Composer:
    told: dict[str, Any] = {
        "model": "m", "context_tokens": 0, "tokens_per_word": 1.0, "template_tokens": 10, "counted": "so",
        "takes_ignore_eos": True, "unit_px": 28, "image_tokens": 0,
    }  # fmt: skip
    return Composer.make(Survey(**told | changes), "salt")


def text_of(body: bytes) -> str:
    content = json.loads(body)["messages"][0]["content"]
    return content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")


def test_a_request_is_what_the_trace_says() -> None:
    image = TracedImage("a", 60)
    made = composer(tokens_per_word=2.0).body(0, TracedRequest(0, 210, 33, (image, TracedImage("b", 400)), priority=2))
    told = json.loads(made)
    assert told["max_tokens"] == 33 and told["ignore_eos"] and told["stream"] and told["priority"] == 2
    content = told["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    assert [w // 28 * (h // 28) for w, h in pixels(content)] == [60, 400]
    assert len(text_of(made).split()) == 100  # (210 − template) / 2


def test_texts_share_what_prefixes_share_and_no_more() -> None:
    maker = composer(template_tokens=0)
    blocks = (("p", 512), ("q", 512), ("r", 300))
    one, other = (text_of(maker.body(n, TracedRequest(0, 1500, 5, prefix=blocks))) for n in (0, 1))
    third = text_of(maker.body(2, TracedRequest(0, 1500, 5, prefix=(blocks[0], ("z", 512)))))
    same = [a == b for a, b in zip(one.split(), other.split(), strict=True)]
    assert all(same[:1324]) and not all(same[1324:1330])
    less = [a == b for a, b in zip(one.split(), third.split(), strict=True)]
    assert all(less[:512]) and not all(less[512:520])


def test_without_ignore_eos_and_for_fixed_pictures() -> None:
    maker = composer(takes_ignore_eos=False, unit_px=0, image_tokens=64)
    told = json.loads(maker.body(0, TracedRequest(0, 50, 5, (TracedImage("a", 1196), TracedImage("b", 4)))))
    assert "ignore_eos" not in told
    (width, height), small = pixels(told["messages"][0]["content"])
    assert width == 448 and 250 <= height <= 256 and small == (56, 56)


def test_requests_are_cut_to_the_server_s_context() -> None:
    images = tuple(TracedImage(str(n), 300) for n in range(4))
    maker = composer(context_tokens=1010)
    assert maker.fitted(TracedRequest(0, 50, 40, images[:2])) == TracedRequest(0, 50, 40, images[:2])
    cut = maker.fitted(TracedRequest(0, 500, 50, images))
    assert (len(cut.images), cut.text_tokens, cut.output_tokens) == (3, 50, 50)
    assert maker.fitted(TracedRequest(0, 5000, 3000)).prompt_tokens == 1
    fixed = composer(context_tokens=1010, unit_px=0, image_tokens=90).fitted(TracedRequest(0, 50, 40, images))
    assert len(fixed.images) == 4


# ---- against a server


def run(server: Scripted, requests: list[TracedRequest], **options: Any) -> Replay:
    seen: list[Progress] = []
    found = asyncio.run(
        replay(server.url, requests, ReplayOptions(**{"salt": "s", "timeout_s": 30.0} | options), progress=seen.append)
    )
    assert seen
    return found


def text(at_ms: int = 0, tokens: int = 50, **more: Any) -> TracedRequest:
    return TracedRequest(at_ms * MS, tokens, 4, **more)


def test_the_server_is_surveyed_and_asked_for_what_the_trace_says() -> None:
    with Scripted() as server:
        found = run(server, [text(5), text(9, 90, images=(TracedImage("a", 100), TracedImage("a", 100)))])
        assert (found.survey.model, found.survey.unit_px) == ("scripted", 32)
        assert (found.survey.tokens_per_word, found.survey.template_tokens) == (1.0, 10)
        assert found.survey.counted == "by the server's usage"
        assert [each.prompt_tokens for each in found.sent] == [50, 290]  # as traced, counted by the server
        assert [each.outcome.outcome for each in found.sent] == ["finished"] * 2
        assert [each.outcome.arrived_ns for each in found.sent] == [0, 4 * MS]
        assert all(each.outcome.output_tokens == 2 for each in found.sent)
        assert [
            len(pixels(b["messages"][0]["content"]))
            for b in server.bodies
            if isinstance(b["messages"][0]["content"], list)
        ] == [2]


def test_requests_are_sent_whatever_the_server_does() -> None:
    """The server answers none before it has got all: a client that waits for answers would wait for ever."""
    with Scripted(hold=40) as server:
        found = run(server, [text(n) for n in range(40)])
        assert [each.outcome.outcome for each in found.sent] == ["finished"] * 40
        assert server.most == 40


def test_a_limit_on_requests_under_way_counts_as_waiting() -> None:
    with Scripted(delay_s=0.005) as server:
        found = run(server, [text() for _ in range(6)], max_in_flight=2)
        assert server.most <= 2
        assert {each.outcome.arrived_ns for each in found.sent} == {0}
        ends = sorted(each.outcome.finished_ns for each in found.sent)
        for number, each in enumerate(found.sent[2:]):
            assert each.sent_ns >= ends[number]


def test_speed_moves_when_requests_are_due() -> None:
    with Scripted() as server:
        found = run(server, [text(0), text(40), text(100)], speed=4.0)
        assert [each.outcome.arrived_ns for each in found.sent] == [0, 10 * MS, 25 * MS]


def test_connections_are_kept_and_replaced_when_the_server_closed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_S", 600.0)  # however slow this machine is
    with Scripted() as server:
        run(server, [text(20 * n) for n in range(10)], max_in_flight=1)
        assert server.connections == 1
    whole = streamed(*words(2, usage=(9, 2)))
    turns = iter([whole, None, whole, None, None])  # closed just as it is used; then twice in a row

    def chat(body: dict[str, Any]) -> bytes | None:
        return next(turns)

    with Scripted(chat=chat) as server:
        found = run(server, [text(20 * n) for n in range(3)], max_in_flight=1)
        assert [each.outcome.outcome for each in found.sent] == ["finished", "finished", "broken"]


def test_errors_do_not_end_the_replay() -> None:
    kinds: list[Callable[[], bytes]] = [
        lambda: error(503, "Too much waits."),
        lambda: error(400, "Not so."),
        lambda: streamed(*words(1, done=False), event({"error": {"message": "Lost."}}), event("[DONE]")),
        lambda: streamed(*words(3, done=False), end=False),
        lambda: b"HTTP/1.1 what?\r\n\r\n",
        lambda: streamed(*words(2, usage=(50, 2))),
    ]
    turns = iter(kinds)
    with Scripted(chat=lambda body: next(turns)()) as server:
        found = run(server, [text(10 * n) for n in range(6)], max_in_flight=1)
        assert [each.outcome.outcome for each in found.sent] == [
            "refused",
            "http_400",
            "error",
            "broken",
            "broken",
            "finished",
        ]
        assert [each.message for each in found.sent][:3] == ["Too much waits.", "Not so.", "Lost."]


def test_an_answer_that_never_ends_is_given_up() -> None:
    with Scripted(hold=99) as server:
        found = run(server, [text()], timeout_s=0.1)
        assert [each.outcome.outcome for each in found.sent] == ["timeout"]


def test_a_replay_that_is_ended_early_tells_what_it_has() -> None:
    async def cancelled(server: Scripted) -> Replay:
        seen: list[Progress] = []
        requests = [text(0), text(1), text(3_600_000)]
        task = asyncio.ensure_future(replay(server.url, requests, ReplayOptions(salt="s"), progress=seen.append))
        while not seen or seen[-1].ended < 2:
            await asyncio.sleep(0.005)
        task.cancel()
        return await task

    with Scripted() as server:
        found = asyncio.run(cancelled(server))
        assert [each.outcome.outcome for each in found.sent] == ["finished", "finished"]
    with Scripted(hold=99) as server:

        async def waiting() -> Replay:
            seen: list[Progress] = []
            task = asyncio.ensure_future(
                replay(server.url, [text(), text()], ReplayOptions(salt="s"), progress=seen.append)
            )
            while not seen or seen[-1].in_flight < 2:
                await asyncio.sleep(0.005)
            task.cancel()
            return await task

        found = asyncio.run(waiting())
        assert [each.outcome.outcome for each in found.sent] == ["unfinished", "unfinished"]


def test_a_server_without_usage_and_ignore_eos() -> None:
    def takes(body: dict[str, Any]) -> bytes:
        return error(400, "ignore_eos is unknown.") if "ignore_eos" in body else b""

    with Scripted(takes=takes, count=lambda body: 0, chat=lambda body: streamed(*words(2))) as server:
        found = run(server, [text(images=(TracedImage("a", 100),))])
        assert not found.survey.takes_ignore_eos and found.survey.counted == "by an estimate"
        assert (found.survey.unit_px, found.survey.image_tokens) == (0, 0)
        assert found.sent[0].outcome.output_tokens == 4 and found.sent[0].prompt_tokens == 0
        assert len(found.survey.notes(with_images=True)) == 3


def test_a_server_with_tokenize_and_pictures_of_one_size() -> None:
    counts = iter([90, 346])  # two tokens a word and 26 around them

    def about(method: str, path: str) -> bytes:
        if path == "/tokenize":
            return answer(json.dumps({"count": next(counts)}).encode())
        return answer(b'{"data": [{"id": "a"}, {"id": "b", "max_model_len": 700}]}')

    def count(body: dict[str, Any]) -> int:
        content = body["messages"][0]["content"]
        return 90 if isinstance(content, str) else 90 + 64

    with Scripted(about=about, count=count) as server:
        found = run(server, [text(tokens=900, images=(TracedImage("a", 100),))], model="b", api_key="key")
        assert found.survey == Survey("b", 700, 2.0, 26, "by the server's /tokenize", True, 0, 64)
        assert found.shortened == 1 and found.sent[0].request.text_tokens == 700 - 26 - 64 - 4
        assert all("authorization: Bearer key" in head for head in server.heads)


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"about": lambda method, path: error(401, "No key.")}, {}, "wants an API key"),
        ({"about": lambda method, path: answer(b'{"data": []}')}, {}, "names no model"),
        ({}, {"model": "other"}, "model 'other': .* serves scripted"),
        ({"takes": lambda body: error(500, "It is ill.")}, {}, r"refused a short text \(500\): It is ill"),
        (
            {"takes": lambda body: error(400, "Text alone.") if "image_url" in json.dumps(body) else b""},
            {},
            r"refused a picture \(400\): Text alone. With --text-only",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    changes: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with Scripted(**changes) as server:
        with pytest.raises(InvalidInput, match=said):
            run(server, [text(images=(TracedImage("a", 100),))], **options)
        assert server.bodies == []


def test_text_only_leaves_the_pictures_out() -> None:
    with Scripted(takes=lambda body: error(400, "Text alone.") if "image_url" in json.dumps(body) else b"") as server:
        found = run(server, [text(), text(1, images=(TracedImage("a", 100),))], text_only=True)
        assert len(found.sent) == len(server.bodies) == 1
        with pytest.raises(InvalidInput, match="holds no request to be sent"):
            run(server, [text(images=(TracedImage("a", 100),))], text_only=True)


def test_nobody_answers() -> None:
    with Scripted() as server:
        url = server.url
    with pytest.raises(DaemonUnavailable, match="No server answers at"):
        asyncio.run(replay(url, [text()], ReplayOptions()))


@pytest.mark.parametrize(
    "options", [{"speed": 0.0}, {"speed": float("inf")}, {"timeout_s": 0.0}, {"max_in_flight": -1}]
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="must be above 0"):
        ReplayOptions(**options)
