"""A daemon's API at the process boundary, faked: what a command sends is recorded, what it shows comes from here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tierline.cli import client as client_module
from tierline.cli.client import Client

NS = 1_000_000_000


def job_json(job_id: str, **changes: Any) -> dict[str, Any]:
    """A `JobStatus` as the daemon sends it."""
    job = {
        "job_id": job_id, "user": "ann", "sweep": "", "kind": "exploratory", "phase": "queued", "priority": 0,
        "argv": ["python", "train.py"], "gpus": 0, "device_ids": [], "attempt": 0, "restarts": 0,
        "submitted_ns": 100 * NS, "started_ns": 0, "ended_ns": 0, "attained_gpu_s": 0.0, "reports": 0, "step": None,
        "total_steps": 0, "loss": None, "best_loss": None, "utility": None, "density": None, "price": None, "reason": "",
    }  # fmt: skip
    return job | changes


@dataclass
class FakeDaemon:
    """Holds jobs; `posted` are the bodies of submissions, `asked` all requests as `METHOD path`."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    reports: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    posted: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    on_submit: Callable[[FakeDaemon, list[str]], None] | None = None

    def add(self, job_id: str, **changes: Any) -> None:
        self.jobs[job_id] = job_json(job_id, **changes)

    def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        if request.method == "POST" and path == "/v1/jobs":
            if self.refusal is not None:
                status, message = self.refusal
                return httpx.Response(status, json={"error": {"message": message}})
            return self.submit(json.loads(request.content))
        if path == "/v1/jobs":
            ended = request.url.params["all"] == "true"
            sweep = request.url.params["sweep"]
            found = [
                job
                for job in self.jobs.values()
                if (ended or job["phase"] not in ("completed", "failed", "stopped")) and sweep in ("", job["sweep"])
            ]
            return httpx.Response(200, json={"jobs": found})
        if path == "/v1/cluster":
            return httpx.Response(200, json=self.cluster())
        _, _, _, job_id, *rest = path.split("/")
        if job_id not in self.jobs:
            return httpx.Response(404, json={"error": {"message": f"there is no job '{job_id}'."}})
        return self.about(job_id, rest[0] if rest else "", int(request.url.params.get("offset", 0)))

    def submit(self, body: dict[str, Any]) -> httpx.Response:
        self.posted.append(body)
        ids = [job["job_id"] or f"job-{i}" for i, job in enumerate(body["jobs"])]
        for job_id, job in zip(ids, body["jobs"], strict=True):
            self.add(job_id, sweep=job["sweep"], argv=job["argv"])
        if self.on_submit is not None:
            self.on_submit(self, ids)
        return httpx.Response(200, json={"job_ids": ids})

    def about(self, job_id: str, what: str, offset: int) -> httpx.Response:
        job = self.jobs[job_id]
        if what == "why":
            return httpx.Response(200, json={"job": job, "decisions": self.decisions})
        if what == "reports":
            return httpx.Response(200, json={"reports": self.reports.get(job_id, [])})
        if what == "logs":
            data = self.logs.get(job_id, b"")
            ended = str(job["phase"] in ("completed", "failed", "stopped")).lower()
            heads = {
                "x-tierline-next-offset": str(len(data)),
                "x-tierline-gap": "false",
                "x-tierline-ended": ended,
            }
            return httpx.Response(200, content=data[offset:], headers=heads)
        if what:
            job["phase"] = {"stop": "stopped", "hold": "held", "release": "queued"}[what]
        return httpx.Response(200, json=job)

    def cluster(self) -> dict[str, Any]:
        devices = [
            {"device_id": f"cpu{i}", "node": "here", "gpu_type": "cpu", "memory_bytes": 0, "job_id": "", "blocked": ""}
            for i in range(2)
        ]
        for device, job in zip(devices, (j for j in self.jobs.values() if j["phase"] == "running"), strict=False):
            device["job_id"] = job["job_id"]
        queued = sum(job["phase"] == "queued" for job in self.jobs.values())
        return {
            "now_ns": 160 * NS, "policy": "explsched", "quantum_s": 1.0, "devices": devices, "price": [["cpu", 0.25]],
            "live_jobs": len(self.jobs), "queued_jobs": queued, "running_jobs": len(self.jobs) - queued,
        }  # fmt: skip


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    """The commands talk to this one."""
    fake = FakeDaemon()

    def connect(*_: object, **__: object) -> Client:
        http = httpx.Client(transport=httpx.MockTransport(fake.handle), base_url="http://tierline")
        return Client(http, "the fake daemon")

    monkeypatch.setattr(client_module, "connect", connect)
    return fake


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr of a refusal with exit code 2; fails when it was anything else."""
        assert (self.code, self.out) == (2, ""), self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("tierline: ")
        return lines[0]


@pytest.fixture
def tierline(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line as the console script does."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        from tierline.cli.main import main

        code = main(arguments)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run
