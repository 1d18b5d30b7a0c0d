"""The front door on a real port: clients that leave, bodies that are too long, an end in good order."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tierline.core.errors import InvalidInput
from tierline.server.openai import FrontOptions, create_app, run
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Live, chat, wait_until

PATH = "/v1/chat/completions"
SERVER = """
import sys
from tierline.server.openai import FrontOptions, create_app, run
from tierline.testing.instant import ByteText, InstantGenerator

generator = InstantGenerator(gap_s=float(sys.argv[2]))
app = create_app(ByteText(), generator, FrontOptions(grace_s=float(sys.argv[1])))
run(app, port=0, started=lambda host, port: print(port, flush=True))
print(generator.finished, len(generator.cancelled), flush=True)
"""


def lines_of(answer: httpx.Response) -> Iterator[str]:
    return (line for line in answer.iter_lines() if line)


@contextmanager
def raw(live: Live, head: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(live.address, timeout=20) as connection:
        connection.sendall(head)
        yield connection


def request_of(body: bytes, extra: bytes = b"") -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head + extra + b"content-length: %d\r\n\r\n" % len(body) + body


def test_a_client_that_leaves_cancels_its_request(live: Live) -> None:
    live.generator.gap_s = 3600
    for asked in ({"stream": True}, {"stream": False}, {"stream": True, "n": 3}):
        before = len(live.generator.cancelled)
        with raw(live, request_of(json.dumps(chat(**asked)).encode())):
            wait_until(lambda: len(live.app.state.front.watches) == 1)
        wait_until(lambda count=before + asked.get("n", 1): len(live.generator.cancelled) == count)
    wait_until(lambda: not live.app.state.front.watches)
    text = httpx.get(f"{live.url[:-3]}/metrics").text
    assert 'vllm:request_success_total{finished_reason="abort",model_name="instant"} 5.0' in text
    assert 'vllm:num_requests_running{model_name="instant"} 0.0' in text


def test_a_client_that_leaves_within_its_body_leaves_nothing_behind(live: Live) -> None:
    with raw(live, request_of(b'{"messages"')[:-3]):
        pass
    assert httpx.post(live.url + "/chat/completions", json=chat()).status_code == 200
    wait_until(lambda: httpx.get(f"{live.url[:-3]}/tierline/status").json()["front"]["held_bytes"] == 0)
    assert live.generator.started == 1


def test_other_streams_go_on_beside_bad_input(live: Live) -> None:
    live.generator.gap_s = 0.02
    live.generator.answer = list(b"a longer answer")
    with (
        httpx.Client(base_url=live.url) as client,
        httpx.stream("POST", live.url + "/chat/completions", json=chat(stream=True), timeout=60) as stream,
    ):
        lines = lines_of(stream)
        next(lines)
        for body in (b"[" * 10_000, b"", b"\xff", b'{"messages":[]}', json.dumps(chat(n=99)).encode()):
            answer = client.post("/chat/completions", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400
        told = [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines if line != "data: [DONE]"]
    assert "".join(told) == "a longer answer"


def test_a_body_that_is_too_long_is_answered_although_it_was_not_announced(generator: InstantGenerator) -> None:
    with Live(generator, ByteText(), FrontOptions(max_body_bytes=200_000)) as live:

        def endless() -> Iterator[bytes]:
            for _ in range(30):
                yield b" " * 10_000

        answers = [
            httpx.post(live.url + "/chat/completions", content=content, headers={"content-type": "application/json"})
            for content in (b" " * 300_000, endless())
        ]
        assert [answer.status_code for answer in answers] == [413, 413]
        with raw(
            live, request_of(b"")[:-2].replace(b"content-length: 0", b"content-length: 99999999999")
        ) as connection:
            connection.sendall(b"\r\nx")
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        assert httpx.post(live.url + "/chat/completions", json=chat()).status_code == 200


def test_a_body_that_never_comes_is_given_up(generator: InstantGenerator) -> None:
    with (
        Live(generator, ByteText(), FrontOptions(body_timeout_s=0.2)) as live,
        raw(live, request_of(b'{"messages"')[:-3]) as connection,
    ):
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_headers_come_before_a_first_token_that_takes_long(generator: InstantGenerator) -> None:
    generator.first_s = 3600
    options = FrontOptions(headers_after_s=0.05, grace_s=0.1)
    with (
        Live(generator, ByteText(), options) as live,
        httpx.stream("POST", live.url + "/chat/completions", json=chat(stream=True), timeout=60) as stream,
    ):
        assert stream.status_code == 200
        live.app.state.front.end()
        first, last = lines_of(stream)
    assert json.loads(first[6:])["error"]["code"] == "cut"
    assert last == "data: [DONE]"


@contextmanager
def server(grace_s: float, gap_s: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", SERVER, str(grace_s), str(gap_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err


def test_a_signal_lets_streams_finish_and_refuses_new_ones() -> None:
    with server(60, 0.05) as (process, url), httpx.Client() as client:
        with client.stream("POST", url + PATH, json=chat(stream=True)) as stream:
            lines = lines_of(stream)
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(url + "/health").status_code == 503)
            refused = httpx.post(url + PATH, json=chat())
            told = [json.loads(line[6:])["choices"][0] for line in lines if line != "data: [DONE]"]
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "".join(each["delta"]["content"] for each in told) == "user: hello\nassistant: "
        assert told[-1]["finish_reason"] == "stop"
        assert outcome(process) == (0, "1 0", "")


def test_streams_that_outlast_the_grace_period_are_ended_and_told() -> None:
    with server(0.3, 3600) as (process, url), httpx.Client() as client:
        with client.stream("POST", url + PATH, json=chat(stream=True)) as stream:
            lines = lines_of(stream)
            next(lines)
            process.send_signal(signal.SIGINT)
            *_, error, done = lines
        assert "ended before the answer was complete" in json.loads(error[6:])["error"]["message"]
        assert done == "data: [DONE]"
        assert outcome(process) == (0, "0 1", "")


def test_a_second_signal_ends_at_once() -> None:
    with server(3600, 3600) as (process, url), httpx.Client() as client:
        with client.stream("POST", url + PATH, json=chat(stream=True)) as stream:
            lines = lines_of(stream)  # kept: a reader that is dropped closes the connection
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(url + "/health").status_code == 503)
            process.send_signal(signal.SIGTERM)
            code, _, _ = outcome(process)
        assert code == -signal.SIGTERM


def test_an_address_that_is_taken_is_one_sentence(live: Live) -> None:
    app = create_app(ByteText(), InstantGenerator(), FrontOptions())
    with pytest.raises(InvalidInput, match="cannot be listened on"):
        run(app, port=live.address[1])


def test_a_client_that_leaves_while_asking_for_tokens_is_no_error(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{"
    with raw(live, head):
        pass
    assert httpx.post(live.url[:-3] + "/tokenize", json={"prompt": "x"}).status_code == 200
    assert not caplog.records
