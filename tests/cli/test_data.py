"""`tierline data`, against a web server on the loopback."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierline.cli import data
from tierline.cli.main import main

FILES = {"simulator/traces/philly.csv": b"timestamp,duration\n" * 1000}


class Server(http.server.BaseHTTPRequestHandler):
    short = False

    def do_GET(self) -> None:
        body = FILES.get(self.path.split("/", 4)[-1])
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.short else body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    handler = type("Handler", (Server,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setattr(data, "RAW", f"http://127.0.0.1:{server.server_port}")
        yield handler
        server.shutdown()
        thread.join()


def test_a_file_is_fetched_whole(web: type[Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--fetch", "philly", "--to", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "philly.csv").read_bytes() == FILES["simulator/traces/philly.csv"]
    assert f"philly:{tmp_path / 'new'}/philly.csv" in capsys.readouterr().out


def test_half_a_file_is_none(web: type[Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web.short = True
    assert main(["data", "--fetch", "philly", "--to", str(tmp_path)]) == 2
    assert "philly" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_told_with_its_address(
    web: type[Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "--fetch", "alibaba", "--to", str(tmp_path / "new")]) == 2
    assert "answered 404" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_no_network_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "RAW", "http://127.0.0.1:1")
    assert main(["data", "--fetch", "pollux", "--to", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_list_names_every_original(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["data"]
    assert {row["name"] for row in rows} == {"taskset", "philly", "pollux", "alibaba", "gavel"}
    assert all(row["url"].startswith("https://github.com/") and row["licence"] for row in rows)
    assert main(["data"]) == 0
    assert "stanford-futuredata/gavel" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "words"), [("phily", "did you mean 'philly'"), ("taskset", "is not fetched")])
def test_what_cannot_be_fetched(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--fetch", name]) == 2
    assert words in capsys.readouterr().err
