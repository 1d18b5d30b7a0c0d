"""Who may do what: tokens, foreign pages, other users' jobs, and a body without end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest

from tierline.cli.client import JobRequest, connect
from tierline.core.errors import InvalidInput, Refused
from tierline.server.auth import MAX_BODY_BYTES, Tokens, ensure_tokens
from tierline.testing.daemon import RunningDaemon

ANN = "a-token-of-ann-0123456789"


def message(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize("token", ["", "wrong", ANN + "x", ANN[:-1], "ü" * 30])
def test_nothing_is_answered_over_tcp_without_a_token(running: RunningDaemon, token: str) -> None:
    for path in ("/health", "/v1/jobs", "/metrics", "/openapi.json", "/nothing"):
        headers = {"authorization": f"Bearer {token}".encode()} if token else {}
        answer = httpx.get(running.tcp + path, headers=headers, trust_env=False)  # type: ignore[arg-type]
        assert answer.status_code == 401
        assert "token is needed" in message(answer)
    assert running.over_tcp("GET", "/health").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "localhost.evil"]
)
def test_a_foreign_host_is_turned_away(running: RunningDaemon, host: str) -> None:
    answer = running.over_tcp("GET", "/v1/jobs", headers={"host": host})
    assert answer.status_code == 403
    assert "is not this daemon" in message(answer)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", "file://"])
def test_a_foreign_page_is_turned_away_on_every_listener(
    running: RunningDaemon, origin: str, sleeper: JobRequest
) -> None:
    body = {"jobs": [asdict(replace(sleeper, job_id="from-a-page"))]}
    over_tcp = running.over_tcp("POST", "/v1/jobs", headers={"origin": origin}, json=body)
    with running.over_socket() as http:
        over_unix = http.post("http://localhost/v1/jobs", headers={"origin": origin}, json=body)
        rebound = http.post("http://evil.example/v1/jobs", json=body)
    for answer in (over_tcp, over_unix, rebound):
        assert answer.status_code == 403
    assert "are not accepted" in message(over_unix)
    assert "from-a-page" not in [job.job_id for job in running.client.jobs(all=True)]


def test_a_page_of_our_own_address_may_ask(running: RunningDaemon) -> None:
    assert running.over_tcp("GET", "/health", headers={"origin": running.tcp}).status_code == 200
    port = running.tcp.rpartition(":")[2]
    assert running.over_tcp("GET", "/health", headers={"host": f"localhost:{port}"}).status_code == 200


def test_a_user_cannot_raise_their_share_or_weight(running: RunningDaemon, sleeper: JobRequest) -> None:
    before = running.client.shares()
    answer = running.over_tcp("PUT", "/v1/shares", json={"shares": {"ann": 100.0}})
    assert answer.status_code == 403
    assert message(answer) == "Shares are set by an administrator alone, and 'ann' is none."
    assert running.client.shares() == before
    weighed = {"jobs": [asdict(sleeper) | {"weight": 9}]}
    assert running.over_tcp("POST", "/v1/jobs", json=weighed).status_code == 422
    urgent = {"jobs": [asdict(replace(sleeper, priority=1))]}
    answer = running.over_tcp("POST", "/v1/jobs", json=urgent)
    assert (answer.status_code, "only an administrator" in message(answer)) == (403, True)


def test_a_user_acts_on_their_own_jobs_alone(running: RunningDaemon, sleeper: JobRequest) -> None:
    held = asdict(replace(sleeper, job_id="anns", held=True))
    assert running.over_tcp("POST", "/v1/jobs", json={"jobs": [held]}).json() == {"job_ids": ["anns"]}
    assert running.client.job("anns").user == "ann"
    for deed in ("stop", "hold", "release"):
        answer = running.over_tcp("POST", f"/v1/jobs/anns/{deed}", user="bob")
        assert answer.status_code == 403
        assert message(answer) == f"job 'anns' belongs to user 'ann': 'bob' may not {deed} it."
    assert running.over_tcp("GET", "/v1/jobs/anns/logs", user="bob").status_code == 403
    assert running.client.job("anns").phase == "held"
    assert running.over_tcp("POST", "/v1/jobs/anns/stop").json()["phase"] == "stopped"


def test_a_user_cannot_submit_as_another_or_into_anothers_sweep(running: RunningDaemon, sleeper: JobRequest) -> None:
    answer = running.over_tcp("POST", "/v1/jobs", json={"jobs": [asdict(replace(sleeper, user="bob"))]})
    assert answer.status_code == 403
    sweep = {"jobs": [], "sweep": {"sweep_id": "anns-sweep"}}
    assert running.over_tcp("POST", "/v1/jobs", json=sweep).status_code == 201
    assert running.over_tcp("POST", "/v1/jobs", json=sweep, user="bob").status_code == 403
    job = {"jobs": [asdict(replace(sleeper, sweep="anns-sweep"))]}
    assert running.over_tcp("POST", "/v1/jobs", json=job, user="bob").status_code == 403


def test_the_event_table_is_for_administrators(running: RunningDaemon) -> None:
    assert running.over_tcp("GET", "/v1/events").status_code == 403


def test_the_client_works_over_tcp_too(running: RunningDaemon) -> None:
    with connect(url=running.tcp, token=running.tokens["bob"]) as client:
        assert (client.health().user, client.health().admin) == ("bob", False)
        with pytest.raises(Refused):
            client.set_shares({"bob": 5.0})
    with connect(url=running.tcp, token="wrong") as client, pytest.raises(Refused, match="token"):
        client.jobs()


def test_a_body_above_the_limit_is_refused_before_it_is_read(running: RunningDaemon) -> None:
    headers = {"content-length": str(MAX_BODY_BYTES + 1)}
    host, _, port = running.tcp.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        lines = [f"POST /v1/jobs HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {running.tokens['ann']}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        line.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert b" 413 " in line.recv(4096)


def test_a_body_that_hides_its_length_is_cut_off(running: RunningDaemon) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 2**20 + 2):
            yield b" " * 2**20

    answer = running.over_tcp("POST", "/v1/jobs", content=pieces(), timeout=30)
    assert answer.status_code == 413


def test_a_token_file_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    ensure_tokens(path, "ann")
    assert path.stat().st_mode & 0o777 == 0o600
    entry = json.loads(path.read_text())[0]
    assert (entry["user"], entry["admin"], len(entry["token"])) == ("ann", False, 43)
    tokens = Tokens(path)
    who = tokens.find(entry["token"])
    assert who is not None
    assert (who.user, who.admin) == ("ann", False)
    assert tokens.find("") is None
    path.chmod(0o640)
    with pytest.raises(InvalidInput, match="chmod 600"):
        Tokens(path)


def test_a_token_that_was_taken_out_of_the_file_is_dead_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps([{"token": ANN, "user": "ann"}]))
    path.chmod(0o600)
    tokens = Tokens(path)
    assert tokens.find(ANN) is not None
    path.write_text("[]")
    assert tokens.find(ANN) is None


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"token":"short","user":"ann"}]', '[{"token":"0123456789abcdef0","user":"a b"}]']
)
def test_a_malformed_token_file_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InvalidInput, match="token file"):
        Tokens(path)
