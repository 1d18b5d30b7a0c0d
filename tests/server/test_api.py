"""The API of a real daemon over its Unix socket; effects are looked at from outside."""

from __future__ import annotations

import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tierline.cli.client import JobRequest, SweepRequest
from tierline.core.errors import InvalidInput, NotFound
from tierline.server import schemas
from tierline.testing.daemon import RunningDaemon, wait_until

TRAIN = """
import tierline, sys
for step in range(1, 6):
    tierline.report(step, loss=1 / step if step != 3 else float("nan"))
    print("step", step, flush=True)
"""


def python_job(cwd: Path, code: str = TRAIN, **more: object) -> JobRequest:
    (cwd / "train.py").write_text(code)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return JobRequest(argv=(sys.executable, "train.py"), cwd=str(cwd), env={"PYTHONPATH": path}, **more)  # type: ignore[arg-type]


def test_a_sweep_runs_to_its_end_and_everything_about_it_can_be_asked(running: RunningDaemon, tmp_path: Path) -> None:
    client = running.client
    ids = client.submit(
        [python_job(tmp_path, sweep="first") for _ in range(2)], SweepRequest("first", chance=2.0, target=0.1)
    )
    wait_until(lambda: all(client.job(i).phase == "completed" for i in ids), "the sweep has completed")
    status = client.job(ids[0])
    assert (status.sweep, status.attempt, status.reports, status.best_loss) == ("first", 1, 5, 0.2)
    assert [(row.step, row.loss) for row in client.reports(ids[0])] == [
        (1, 1.0),
        (2, 0.5),
        (3, None),
        (4, 0.25),
        (5, 0.2),
    ]
    assert b"".join(c.data for c in client.follow(ids[0])) == b"".join(b"step %d\n" % n for n in range(1, 6))
    assert client.logs(ids[0], -7).data == b"step 5\n"
    actions = [entry.action for entry in client.why(ids[0]).decisions]
    assert (actions[0], actions[-1]) == ("submitted", "completed")
    start = next(entry for entry in client.why(ids[0]).decisions if entry.action == "start")
    assert len(start.devices) == 1
    assert start.reason
    sweep = next(sweep for sweep in client.sweeps() if sweep.sweep_id == "first")
    assert (sweep.jobs, sweep.best_loss, sweep.chance) == ({"completed": 2}, 0.2, 2.0)
    assert ids[0] not in [job.job_id for job in client.jobs()]
    assert ids[0] in [job.job_id for job in client.jobs(all=True, sweep="first")]
    assert client.jobs(all=True, user="nobody") == []


def test_stop_hold_and_release_reach_the_process(running: RunningDaemon, sleeper: JobRequest) -> None:
    client = running.client
    job_id = client.submit([replace(sleeper, job_id="sleeper", argv=("sleep", "601.25"))])[0]
    wait_until(lambda: client.job(job_id).phase == "running", "it runs")
    wait_until(lambda: processes("601.25") == 1, "its process is there")
    client.hold(job_id)
    wait_until(lambda: client.job(job_id).phase == "held", "it is held")
    assert processes("601.25") == 0
    client.release(job_id)
    wait_until(lambda: client.job(job_id).attempt == 2 and processes("601.25") == 1, "it runs again")
    client.stop(job_id, "enough of it")
    wait_until(lambda: client.job(job_id).phase == "stopped", "it is stopped")
    assert processes("601.25") == 0
    assert "enough of it" in client.job(job_id).reason
    with pytest.raises(InvalidInput, match="has ended already"):
        client.stop(job_id)


def processes(word: str) -> int:
    """How many `sleep WORD` live, by the process table."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                count += (entry / "cmdline").read_bytes() == b"sleep\0" + word.encode() + b"\0"
            except OSError:
                continue
    return count


def test_a_held_job_waits_and_all_or_none_are_accepted(running: RunningDaemon, sleeper: JobRequest) -> None:
    client = running.client
    before = client.health().events
    with pytest.raises(InvalidInput, match="99 GPUs"):
        client.submit([replace(sleeper, job_id="fine"), replace(sleeper, job_id="big", min_gpus=99, max_gpus=99)])
    with pytest.raises(NotFound):
        client.job("fine")
    assert not list((running.state / "jobs").glob("fine*"))
    held = client.submit([replace(sleeper, held=True)])[0]
    assert client.job(held).phase == "held"
    assert client.health().events > before
    client.stop(held)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"argv": ("python3", "missing.py")}, "the script 'missing.py' does not exist"),
        ({"argv": ("python3", "-u", "-W", "error", "gone/train.py")}, "the script 'gone/train.py' does not exist"),
        ({"argv": ("bash", "run.sh")}, "the script 'run.sh' does not exist"),
        ({"argv": ("no-such-program-here",)}, "'no-such-program-here' is not on PATH and not in its folder"),
        ({"argv": ("./gone",)}, "'./gone' does not exist"),
        ({"argv": ("./plain.txt",)}, "exists but may not be executed"),
        ({"argv": ()}, "argv"),
        ({"cwd": "relative"}, "must be an absolute path"),
        ({"cwd": "/no/such/folder"}, "does not exist on this machine"),
        ({"job_id": "../etc"}, "job_id"),
        ({"job_id": ".hidden"}, "job_id"),
        ({"job_id": "x" * 65}, "job_id"),
        ({"env": {"A=B": "c"}}, "is no environment variable"),
        ({"env": {"A": "b\0c"}}, "NUL"),
        ({"argv": ("sleep", "1\0")}, "NUL"),
        ({"progress": "regex", "pattern": "("}, "pattern"),
        ({"progress": "regex", "pattern": "x"}, "loss"),
        ({"min_gpus": 3, "max_gpus": 2}, "3..2 GPUs"),
        ({"gpu_types": ("h100",)}, "this cluster has: cpu"),
        ({"priority": 1000}, "priority"),
        ({"after": ("nobody",)}, "does not exist"),
        ({"grace_s": -1}, "grace_s"),
        ({"params": {"bad": None}}, "params"),
    ],
)
def test_bad_jobs_get_one_sentence_and_leave_nothing(
    running: RunningDaemon, sleeper: JobRequest, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    (tmp_path / "plain.txt").write_text("no program")
    before = running.client.health().events
    with pytest.raises(InvalidInput) as caught:
        running.client.submit([replace(sleeper, **change)])  # type: ignore[arg-type]
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(running.client.events(before)) == sum(
        row.kind not in ("JobSubmitted", "SweepDeclared") for row in running.client.events(before)
    )


def test_scripts_that_exist_and_commands_without_one_are_taken(running: RunningDaemon, tmp_path: Path) -> None:
    (tmp_path / "ok.py").write_text("")
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)
    commands = [
        ("python3", "ok.py", "--lr", "1"), ("python3", "-c", "pass"), ("python3", "-um", "this"), ("tool",),
        ("./tool",), ("bash", "-c", "true"), ("python3", "-X", "utf8", "ok.py"),
    ]  # fmt: skip
    ids = running.client.submit([JobRequest(argv=argv, cwd=str(tmp_path)) for argv in commands])
    wait_until(lambda: all(running.client.job(i).phase == "completed" for i in ids), "all have completed")
    assert running.client.job(ids[3]).argv == ("./tool",)


PLAIN = {"job_id": "a", "argv": ["true"], "cwd": "/"}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "jobs is missing."),
        ({"jobs": []}, "Nothing is submitted"),
        ([], "The request is not what is asked for: a JSON object is needed."),
        ({"jobs": [{"argv": ["true"], "cwd": "/", "weight": 5}]}, "job 1 of the request: there is no field weight."),
        ({"jobs": [{**PLAIN, "priority": 1000}]}, "job 'a': priority is 1000; 100 at most is allowed."),
        ({"jobs": [{**PLAIN, "priority": "high"}]}, "job 'a': priority is 'high'; a whole number is needed."),
        (
            {"jobs": [{**PLAIN, "kind": "big"}]},
            "job 'a': kind is 'big'; allowed is 'exploratory', 'batch' or 'service'.",
        ),
        ({"jobs": [{**PLAIN, "argv": []}]}, "job 'a': argv is []; 1 or more entries are needed."),
        ({"jobs": [{**PLAIN, "env": {"A": 1}}]}, "job 'a': env[A] is 1; a text is needed."),
        ({"jobs": [{**PLAIN, "after": ["b c"]}]}, "job 'a': after[0] is 'b c'; 1 to 64 letters"),
        ({"jobs": [{**PLAIN, "held": "perhaps"}]}, "job 'a': held is 'perhaps'; true or false is needed."),
        ({"jobs": [], "sweep": {"sweep_id": "a b"}}, "sweep: sweep_id is 'a b'; 1 to 64 letters"),
        ({"jobs": [], "sweep": {"sweep_id": "s", "chance": 1, "target": 2}}, "target loss 2 must lie below"),
        ({"jobs": [], "sweep": {"sweep_id": "s", "direction": "max", "chance": 0.9, "target": 0.1}}, "must lie below"),
    ],
)
def test_malformed_submissions_are_told_what_is_wrong(running: RunningDaemon, body: object, sentence: str) -> None:
    with running.over_socket() as http:
        answer = http.post("http://tierline/v1/jobs", json=body)
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert sentence in message
    assert "\n" not in message


def test_a_refusal_uses_up_no_name(running: RunningDaemon, sleeper: JobRequest) -> None:
    (before,) = running.client.submit([replace(sleeper, held=True)])
    with pytest.raises(InvalidInput, match=f"job 'j{int(before[1:]) + 1}' asks for 99 GPUs"):
        running.client.submit([replace(sleeper, min_gpus=99, max_gpus=99)])
    (after,) = running.client.submit([replace(sleeper, held=True)])
    assert (before[0], int(after[1:])) == ("j", int(before[1:]) + 1)
    for job_id in (before, after):
        running.client.stop(job_id)


def test_a_torn_body_is_no_crash(running: RunningDaemon) -> None:
    with running.over_socket() as http:
        answer = http.post(
            "http://tierline/v1/jobs", content=b'{"jobs": [', headers={"content-type": "application/json"}
        )
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("The request's body is no JSON: ")


def test_a_maximised_metric_becomes_a_loss_at_the_edge(running: RunningDaemon) -> None:
    running.client.submit([], SweepRequest("acc", metric="accuracy", direction="max", chance=0.1, target=0.99))
    sweep = next(sweep for sweep in running.client.sweeps() if sweep.sweep_id == "acc")
    assert (sweep.chance, sweep.target) == (-0.1, -0.99)


def test_what_does_not_exist_is_404(running: RunningDaemon) -> None:
    for ask in (
        running.client.job,
        running.client.why,
        running.client.logs,
        running.client.reports,
        running.client.stop,
    ):
        with pytest.raises(NotFound, match="there is no job 'nobody'"):
            ask("nobody")


def test_the_cluster_its_policies_measures_and_events(running: RunningDaemon) -> None:
    client = running.client
    assert [device.device_id for device in client.cluster().devices] == ["cpu0", "cpu1", "cpu2", "cpu3"]
    assert {"explsched", "fifo"} <= {policy.name for policy in client.policies()}
    assert client.health().pid == running.process.pid
    first, second = client.events(0, 2)
    assert (first.seq, first.kind, second.seq) == (1, "NodeJoined", 2)
    assert [row.seq for row in client.events(1, 1)] == [2]
    text = client.metrics()
    assert 'tierline_devices{type="cpu",state="free"}' in text
    assert "tierline_round_seconds_count" in text


def test_shares_are_set_by_the_administrator(running: RunningDaemon) -> None:
    assert running.client.set_shares({"ann": 2.0})["ann"] == 2.0
    assert running.client.shares()["ann"] == 2.0
    with pytest.raises(InvalidInput):
        running.client.set_shares({"ann": -1.0})
    assert running.client.shares()["ann"] == 2.0


def test_the_socket_is_its_owners_alone(running: RunningDaemon) -> None:
    socket = running.state / "run" / "tierline.sock"
    assert socket.stat().st_mode & 0o777 == 0o600
    assert socket.parent.stat().st_mode & 0o777 == 0o700


def test_the_document_of_the_api_names_every_route(running: RunningDaemon) -> None:
    with running.over_socket() as http:
        paths = http.get("http://localhost/openapi.json").json()["paths"]
    assert {"/v1/jobs", "/v1/jobs/{job_id}/why", "/v1/shares", "/v1/events", "/metrics", "/health"} <= set(paths)


def test_the_client_sends_what_the_server_knows() -> None:
    assert {f.name for f in fields(JobRequest)} == set(schemas.JobRequest.model_fields)
    assert {f.name for f in fields(SweepRequest)} == set(schemas.SweepRequest.model_fields)


def test_two_hundred_jobs_in_one_call_are_accepted_together_or_not_at_all(
    running: RunningDaemon, sleeper: JobRequest
) -> None:
    client = running.client
    many = [replace(sleeper, job_id=f"many-{number}", held=True) for number in range(200)]
    before = client.health().events
    with pytest.raises(InvalidInput, match="99 GPUs"):
        client.submit([*many[:-1], replace(many[-1], min_gpus=99, max_gpus=99)])
    with pytest.raises(InvalidInput, match="many-7"):
        client.submit([*many, many[7]])
    assert not [job for job in client.jobs(all=True) if job.job_id.startswith("many-")]
    assert client.submit(many) == [job.job_id for job in many]
    rows = client.events(after=before, limit=1000)
    recorded = [row.event["job"]["job_id"] for row in rows if row.kind == "JobSubmitted"]
    assert [job_id for job_id in recorded if job_id.startswith("many-")] == [job.job_id for job in many]
    for job in many:
        client.stop(job.job_id)


def test_reports_that_are_no_number_or_absurd_are_kept_and_do_no_harm(running: RunningDaemon, tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "src"
    (tmp_path / "odd.py").write_text(
        f"import sys; sys.path.insert(0, {str(source)!r})\n"
        "import tierline\n"
        "for step, loss in enumerate([float('nan'), 1e9, float('inf'), 0.5, 0.25], start=1):\n"
        "    tierline.report(step, loss=loss)\n"
        "tierline.report(6, loss=0.125)\n"
        "open(__import__('os').environ['TIERLINE_REPORT_FILE'], 'a').write('{\"step\": 7, \"lo')\n"
    )
    client = running.client
    job_id = client.submit([JobRequest(argv=(sys.executable, "odd.py"), cwd=str(tmp_path))])[0]
    wait_until(lambda: client.job(job_id).phase == "completed", "the job has completed")
    assert [report.loss for report in client.reports(job_id)] == [None, 1e9, None, 0.5, 0.25, 0.125]
    status = client.job(job_id)
    assert (status.step, status.loss, status.best_loss, status.attempt) == (6, 0.125, 0.125, 1)
