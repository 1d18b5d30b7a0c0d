"""Starting, ending, asking to leave. Every effect is looked for outside the backend: in files and in /proc."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tierline.core.nouns import NS_PER_S, Metric


def test_a_job_runs_and_completes(site):
    site.open()
    site.script("a", "import os; print('out'); os.write(2, b'err\\n'); open('made', 'w').write('x')")
    site.start("a")
    assert (site.exited("a").outcome, site.exited("a").exit_code) == ("completed", 0)
    site.started("a")
    assert (site.folder("a") / "made").read_text() == "x"  # without a cwd, a job runs in its own folder
    assert sorted(site.log("a").split()) == ["err", "out"]
    assert site.backends[0].log_path("a") == site.folder("a") / "log"
    assert not site.alive("a")
    site.eventually(lambda: not site.supervisors(), "the end of the supervisor")


def test_the_job_gets_its_environment_and_nothing_of_the_daemons_own(site, monkeypatch, tmp_path):
    monkeypatch.setenv("TIERLINE_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("FROM_DAEMON", "1")
    site.open()
    show = "import os, json; print(json.dumps(dict(os.environ, CWD=os.getcwd())))"
    site.script("gpu", show, env=(("FROM_JOB", "2"), ("CUDA_VISIBLE_DEVICES", "5")), cwd=str(tmp_path))
    site.script("cpu", show)
    site.start("gpu", devices=("gpu3", "gpu1"))
    site.start("cpu", attempt=2, resume=True, devices=("cpu4",))
    site.exited("gpu")
    site.exited("cpu", 2)
    gpu, cpu = json.loads(site.log("gpu")), json.loads(site.log("cpu"))
    assert (gpu["CUDA_VISIBLE_DEVICES"], gpu["TIERLINE_GPUS"], gpu["CUDA_DEVICE_ORDER"]) == ("3,1", "3,1", "PCI_BUS_ID")
    assert (gpu["FROM_DAEMON"], gpu["FROM_JOB"], gpu["CWD"]) == ("1", "2", str(tmp_path))
    assert "TIERLINE_TOKEN" not in gpu
    assert "TIERLINE_RESUME" not in gpu
    assert (cpu["CUDA_VISIBLE_DEVICES"], cpu["TIERLINE_GPUS"], cpu["TIERLINE_RESUME"]) == ("", "4", "1")
    assert (cpu["TIERLINE_JOB_ID"], cpu["TIERLINE_ATTEMPT"]) == ("cpu", "2")
    assert cpu["TIERLINE_REPORT_FILE"] == str(site.folder("cpu") / "reports.jsonl")
    assert cpu["TIERLINE_CHECKPOINT_DIR"] == str(site.folder("cpu") / "checkpoints")
    assert Path(cpu["TIERLINE_CHECKPOINT_DIR"]).is_dir()


def test_the_argument_list_reaches_the_job_without_a_shell(site):
    site.open()
    words = ("$HOME", "a b", ";touch x", "*", "")
    site.job("a", (sys.executable, "-c", "import sys; print(sys.argv[1:])", *words))
    site.start("a")
    assert site.exited("a").outcome == "completed"
    assert site.log("a").strip() == repr(list(words))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('bad learning rate')", "exit code 1; last line: ValueError: bad learning rate"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9 (SIGKILL)"),
        ("raise OSError(28, 'No space left on device')", "no space left on device (exit code 1; last line: "),
    ],
)
def test_a_failure_has_a_clear_reason(site, body, reason):
    site.open()
    site.script("a", body)
    site.start("a")
    assert site.exited("a").outcome == "failed"
    assert site.exited("a").reason.startswith(reason)


def test_what_cannot_be_started_says_why(site, tmp_path):
    site.open()
    text = tmp_path / "notes.txt"
    text.write_text("no program")
    site.job("program", ("no-such-program-here",))
    site.job("folder", (sys.executable, "-c", "pass"), cwd="/no/such/folder")
    site.job("mode", (str(text),))
    site.job("empty", ())
    for job_id in site.jobs:
        site.start(job_id)
    reasons = {job_id: (site.exited(job_id).outcome, site.exited(job_id).reason) for job_id in site.jobs}
    assert reasons == {
        "program": ("failed", "cannot start: no such program 'no-such-program-here'"),
        "folder": ("failed", "cannot start: no such folder '/no/such/folder'"),
        "mode": ("failed", f"cannot start: '{text}' may not be executed"),
        "empty": ("failed", "cannot start: the job has no command"),
    }


def test_a_job_id_with_a_separator_is_refused(site):
    site.open()
    site.job("../out", (sys.executable, "-c", "pass"))
    site.start("../out")
    assert site.exited("../out").outcome == "failed"
    assert not (site.root / "out").exists()


TRAINING = """
import time, tierline
from tierline.report import resuming
state = tierline.checkpoint_dir() / "state"
step = int(state.read_text()) if resuming() else 0
print("from", step, flush=True)
while step < 2000:
    step += 1
    tierline.report(step, loss=1 / step)
    if tierline.should_stop():
        tierline.save_checkpoint("state", str(step).encode())
        print("left at", step)
        raise SystemExit(STATUS)
    if step == 5: print("five", flush=True)
    if step > 5 and not resuming(): time.sleep(0.005)
print("done")
"""


@pytest.mark.parametrize("status", ["0", "3"])
def test_preempted_then_resumed_no_step_is_lost(site, status):
    site.open()
    site.script("a", TRAINING.replace("STATUS", status), total_steps=2000)
    site.start("a")
    site.prints("a", "five")
    site.preempt("a")
    assert (site.exited("a").outcome, site.exited("a").exit_code) == ("preempted", int(status))
    left = int((site.folder("a") / "checkpoints" / "state").read_text())
    first = [r.step for r in site.reports("a")]
    assert first == list(range(1, left + 1))
    assert not site.alive("a")

    site.start("a", attempt=2, resume=True)
    assert site.exited("a", 2).outcome == "completed"
    assert f"from {left}\n" in site.log("a")
    assert [r.step for r in site.reports("a")] == list(range(1, 2001))
    assert {r.attempt for r in site.reports("a")[left:]} == {2}
    offsets = [r.offset for r in site.reports("a")]
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == (site.folder("a") / "reports.jsonl").stat().st_size


def test_a_preempted_job_that_did_all_its_steps_is_completed(site):
    site.open()
    site.script(
        "a",
        """
        import time, tierline
        tierline.should_stop(); tierline.report(9, loss=1.0); print("ready", flush=True)
        while not tierline.should_stop(): time.sleep(0.01)
        tierline.report(10, loss=0.5)
        """,
        total_steps=10,
    )
    site.start("a")
    site.prints("a", "ready")
    site.preempt("a")
    assert site.exited("a").outcome == "completed"


def test_a_stopped_job_is_stopped_whatever_its_exit_code(site):
    site.open()
    site.job("a", ("sleep", "1000"))
    site.start("a")
    site.started("a")
    (pid,) = site.alive("a")
    site.stop("a")
    assert site.exited("a").outcome == "stopped"
    assert not os.path.exists(f"/proc/{pid}")


def test_a_preemption_can_become_a_stop(site):
    site.open()
    site.script(
        "a",
        """
        import signal, time, os
        signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True)); print("ready", flush=True)
        while not os.path.exists("go"): time.sleep(0.01)
        """,
    )
    site.start("a")
    site.prints("a", "ready")
    site.preempt("a")
    site.prints("a", "asked")
    site.stop("a")
    (site.folder("a") / "go").touch()
    assert site.exited("a").outcome == "stopped"


# Each prints in one write, because the three share the log. The main process ends only when both others have printed.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say = "import os; os.write(1, f'{NAME} {os.getpid()}\\\\n'.encode()); open(NAME, 'w').close(); "
hide = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid(); "
hide += "os.fork() and os._exit(0); os.setpgid(0, 0); NAME = 'grandchild'; " + say + "time.sleep(1000)"
subprocess.run([sys.executable, "-c", hide], env={})
subprocess.Popen([sys.executable, "-c", "import time; NAME = 'child'; " + say + "time.sleep(1000)"])
os.write(1, f"main {os.getpid()}\\n".encode())
while not (os.path.exists("child") and os.path.exists("grandchild")):
    time.sleep(0.01)
time.sleep(AWAKE)
"""


def pids_in(log: str) -> dict[str, int]:
    return {words[0]: int(words[1]) for line in log.splitlines() if len(words := line.split()) == 2}


def test_after_the_grace_period_the_whole_tree_is_killed_even_what_hides(site):
    site.open()
    site.script("a", STUBBORN.replace("AWAKE", "1000"), grace_ns=NS_PER_S // 5)
    site.start("a")
    for name in ("main", "child", "grandchild"):
        site.prints("a", name)
    pids = pids_in(site.log("a"))
    assert all(os.path.exists(f"/proc/{pid}") for pid in pids.values())
    site.preempt("a")
    end = site.exited("a")
    assert end.outcome == "preempted"
    assert "was killed" in end.reason
    assert not [name for name, pid in pids.items() if os.path.exists(f"/proc/{pid}")]


@pytest.mark.parametrize("with_cgroup", [True, False])
def test_no_process_outlives_the_main_one(site, with_cgroup, monkeypatch):
    if not with_cgroup:  # a name that cannot be made: the supervisor must do without
        monkeypatch.setattr("tierline.backends.jobs.launch._group_name", lambda *_: "not/possible")
    site.open()
    site.script("a", STUBBORN.replace("time.sleep(AWAKE)", ""))
    site.start("a")
    assert site.exited("a").outcome == "completed"
    pids = pids_in(site.log("a"))
    assert len(pids) == 3
    assert not [name for name, pid in pids.items() if os.path.exists(f"/proc/{pid}")]


def test_a_max_metric_is_negated_and_odd_lines_do_no_harm(site):
    site.open()
    site.script(
        "a",
        """
        import os, tierline
        tierline.report(1, accuracy=0.25)
        tierline.report(2, accuracy=float("nan"))
        tierline.report(3, accuracy=1e9)
        with open(os.environ["TIERLINE_REPORT_FILE"], "a") as file:
            file.write('{"step": -4, "accuracy": 1}\\nnonsense\\n{"step": 5, "accuracy": true}\\n')
        tierline.report(6, accuracy=0.5)
        with open(os.environ["TIERLINE_REPORT_FILE"], "a") as file:
            file.write('{"step": 7, "accura')
        """,
        metric=Metric("accuracy", "max"),
    )
    site.start("a")
    assert site.exited("a").outcome == "completed"
    assert [(r.step, r.loss) for r in site.reports("a")] == [(1, -0.25), (2, None), (3, -1e9), (6, -0.5)]
    site.start("a", attempt=2)  # its first line is not glued to the torn one
    site.exited("a", 2)
    assert [r.step for r in site.reports("a") if r.attempt == 2] == [1, 2, 3, 6]
    torn = '{"step": 7, "accura'
    assert (site.folder("a") / "reports.jsonl").read_text().count(f"\n{torn}\n") == 1


def test_all_reports_come_before_the_end_of_the_attempt(site):
    site.open()
    site.script("a", "import tierline\nfor k in range(3000): tierline.report(k, loss=0.0)")
    site.start("a")
    site.exited("a")
    kinds = [type(event).__name__ for event in site.clock.events]
    assert kinds[0] == "JobStarted"
    assert kinds[-1] == "JobExited"
    assert [r.step for r in site.reports("a")] == list(range(3000))
