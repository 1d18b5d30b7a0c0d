"""Who may ask, how often, and from which page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tierline.core.errors import InvalidInput, Refused
from tierline.server.openai import FrontOptions
from tierline.server.openai.errors import ApiError
from tierline.server.openai.keys import Keys
from tierline.server.openai.run import check_listen
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Door, chat

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_without_a_key_nothing_but_health_is_told(generator: InstantGenerator) -> None:
    door = Door(generator, ByteText(), FrontOptions(api_keys=("a-good-key",)))
    async with door.client() as client:
        for headers in (
            {},
            bearer("wrong-key"),
            bearer(""),
            {"authorization": "a-good-key"},
            {"authorization": "Basic x"},
        ):
            for method, path in (
                ("POST", CHAT),
                ("GET", "/v1/models"),
                ("POST", "/tokenize"),
                ("GET", "/tierline/status"),
            ):
                answer = await client.request(method, path, json=chat(), headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "a-good-key" not in answer.text
        for path in ("/health", "/ping", "/version", "/metrics"):
            assert (await client.get(path)).status_code == 200
        good = await client.post(CHAT, json=chat(), headers=bearer("a-good-key"))
        lower = await client.post(CHAT, json=chat(), headers={"authorization": "bearer a-good-key"})
    assert (good.status_code, lower.status_code) == (200, 200)
    assert generator.started == 2


def write(path: Path, entries: object, mode: int = 0o600) -> None:
    path.write_text(json.dumps(entries))
    path.chmod(mode)


async def test_keys_of_a_file_are_read_again_when_it_changes(generator: InstantGenerator, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, [{"key": "first-key", "name": "ann"}])
    door = Door(generator, ByteText(), FrontOptions(keys_file=path))
    async with door.client() as client:
        assert (await client.get("/v1/models", headers=bearer("first-key"))).status_code == 200
        write(path, [{"key": "second-key"}])
        os.utime(path, (1, 1))
        assert (await client.get("/v1/models", headers=bearer("first-key"))).status_code == 401
        assert (await client.get("/v1/models", headers=bearer("second-key"))).status_code == 200
        path.unlink()
        assert (await client.get("/v1/models", headers=bearer("second-key"))).status_code == 401


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(InvalidInput, match="cannot be read"):
        Keys((), path, 0)
    for entries, mode, why in (
        ([{"key": "long-enough"}], 0o644, "chmod 600"),
        ([{"key": "short"}], 0o600, "5 characters"),
        ([{"key": "long-enough", "else": 1}], 0o600, "must be a list"),
        ({"key": "long-enough"}, 0o600, "must be a list"),
    ):
        write(path, entries, mode)
        with pytest.raises(InvalidInput, match=why):
            Keys((), path, 0)
    with pytest.raises(InvalidInput, match="8 or more"):
        Keys(("short",), None, 0)


def test_a_rate_is_a_bucket_that_fills_evenly(tmp_path: Path) -> None:
    now_s = 0.0
    path = tmp_path / "keys.json"
    write(path, [{"key": "quick-key", "requests_per_minute": 60}, {"key": "free-key", "requests_per_minute": 0}])
    keys = Keys(("plain-key",), path, 2, clock=lambda: now_s)
    plain, quick, free = (keys.find(f"{name}-key") for name in ("plain", "quick", "free"))
    for _ in range(2):
        keys.pay(plain)
    with pytest.raises(ApiError) as caught:
        keys.pay(plain)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 30)
    for _ in range(60):
        keys.pay(quick)
    with pytest.raises(ApiError):
        keys.pay(quick)
    for _ in range(1000):
        keys.pay(free)
    now_s = 29.0
    with pytest.raises(ApiError) as caught:
        keys.pay(plain)
    assert caught.value.retry_after_s == pytest.approx(1)
    now_s = 30.0
    keys.pay(plain)
    now_s = 10_000.0
    for _ in range(2):  # a full bucket holds a minute's worth, however long nobody asked
        keys.pay(plain)
    with pytest.raises(ApiError):
        keys.pay(plain)


async def test_too_many_requests_are_told_when_to_come_back(generator: InstantGenerator) -> None:
    door = Door(generator, ByteText(), FrontOptions(api_keys=("a-good-key",), requests_per_minute=1))
    async with door.client() as client:
        first = await client.post(CHAT, json=chat(), headers=bearer("a-good-key"))
        second = await client.post(CHAT, json=chat(), headers=bearer("a-good-key"))
        models = await client.get("/v1/models", headers=bearer("a-good-key"))
    assert (first.status_code, second.status_code, models.status_code) == (200, 429, 200)
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(second.headers["retry-after"]) <= 60


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_others_are_let_in_with_a_key_alone(host: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="give an API key"):
        check_listen(host, FrontOptions())
    check_listen(host, FrontOptions(api_keys=("a-good-key",)))
    check_listen(host, FrontOptions(keys_file=tmp_path))
    for own in ("127.0.0.1", "::1", "localhost"):
        check_listen(own, FrontOptions())


async def test_a_page_in_a_browser_does_not_ask_for_its_visitor(generator: InstantGenerator) -> None:
    door = Door(generator, ByteText(), FrontOptions())
    named = Door(generator, ByteText(), FrontOptions(cors_origins=("https://ui.example",), hosts=("model.example",)))
    keyed = Door(generator, ByteText(), FrontOptions(cors_origins=("https://ui.example",), api_keys=("a-good-key",)))
    async with door.client() as client, named.client() as other, keyed.client() as third:
        foreign = await client.post(CHAT, json=chat(), headers={"origin": "https://evil.example"})
        null = await client.post(CHAT, json=chat(), headers={"origin": "null"})
        own = await client.post(CHAT, json=chat(), headers={"origin": "http://127.0.0.1"})
        allowed = await other.post(CHAT, json=chat(), headers={"origin": "https://ui.example"})
        asked = {"origin": "https://ui.example", "access-control-request-method": "POST"}
        before = await other.options(CHAT, headers=asked)
        keyed_before = await third.options(CHAT, headers=asked)
        refused = await third.post(CHAT, json=chat(), headers={"origin": "https://ui.example"})
        hosts = {
            host: (await each.post(CHAT, json=chat(), headers={"host": host})).status_code
            for each, host in (
                (client, "evil.example:8000"), (client, "localhost:8000"), (client, "[::1]:80"), (client, "127.0.0.1"),
                (client, ""), (client, "localhost@evil.example"), (other, "model.example"), (third, "any.example"),
            )
        }  # fmt: skip
    assert [answer.status_code for answer in (foreign, null, own, allowed, before)] == [403, 403, 200, 200, 200]
    assert list(hosts.values()) == [403, 200, 200, 200, 403, 403, 200, 401], hosts
    assert (keyed_before.status_code, refused.status_code) == (200, 401)
    assert refused.headers["access-control-allow-origin"] == "https://ui.example"
    assert allowed.headers["access-control-allow-origin"] == "https://ui.example"


def test_options_that_make_no_sense() -> None:
    for wrong in ({"max_body_bytes": 0}, {"grace_s": -1}, {"requests_per_minute": float("nan")}, {"readers": -1}):
        with pytest.raises(InvalidInput):
            FrontOptions(**wrong)  # type: ignore[arg-type]
