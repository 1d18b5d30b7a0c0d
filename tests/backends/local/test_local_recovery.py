"""The daemon, the supervisor or the disk fails; no job, report or log line is lost, and nothing runs twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tierline.backends.jobs.processes import kill_all
from tierline.backends.jobs.progress import ReportFileReader
from tierline.backends.jobs.rundir import AttemptFolder, JobFolder
from tierline.backends.jobs.watch import AttemptWatch
from tierline.core.actions import StartJob
from tierline.core.nouns import NS_PER_S, Job
from tierline.core.status import AttemptStatus

SOURCE = str(Path(__file__).resolve().parents[3] / "src")

DAEMON = """
import sys, time, json
from pathlib import Path
from tierline.backends.jobs.local import LocalBackend
from tierline.clock import WallClock
from tierline.core.actions import StartJob
from tierline.core.nouns import Job
from tierline.core.status import AttemptStatus
jobs = {i: Job(job_id=i, argv=tuple(argv)) for i, argv in json.loads(sys.argv[2]).items()}
backend = LocalBackend(WallClock(), Path(sys.argv[1]), "here", jobs.__getitem__, 0.01)
recorded = json.loads(sys.argv[3])
backend.recover([AttemptStatus(i, 1, ("cpu0",), False, False, False, 0) for i in recorded])
backend.start()
print("up", flush=True)
for job_id in jobs.keys() - set(recorded):
    backend.execute(StartJob(job_id, 1, ("cpu0",), False, "test"))
print("all started", flush=True)
time.sleep(1000)
"""


def status(job_id: str, attempt: int = 1, leaving: bool = False, for_good: bool = False, offset: int = 0):
    return AttemptStatus(job_id, attempt, ("cpu0",), False, leaving, for_good, offset)


def daemon(site, *job_ids: str, recorded: tuple[str, ...] = ()) -> subprocess.Popen:
    """Another process that hosts a backend over the same folder, recovers `recorded` and starts these jobs."""
    argvs = json.dumps({job_id: site.jobs[job_id].argv for job_id in (*recorded, *job_ids)})
    return subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(site.root), argvs, json.dumps(recorded)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


STEADY = """
import os, time, tierline
open("began", "a").write("x")
step = 0
while not os.path.exists("go"):
    step += 1
    tierline.report(step, loss=1 / step)
    print("line", step, flush=True)
    time.sleep(0.005)
tierline.report(step + 1, loss=0.0)
"""


def test_a_job_outlives_the_daemon_and_is_adopted_by_the_next(site):
    site.script("a", STEADY)
    first = daemon(site, "a")
    site.prints("a", "line 5\n")
    kill(first)
    lines = site.log("a").count("\n")
    site.eventually(lambda: site.log("a").count("\n") > lines + 5, "progress without a daemon")
    half = (site.folder("a") / "reports.jsonl").read_bytes().split(b"\n")[:3]
    offset = len(b"\n".join(half)) + 1  # three reports had been recorded when the daemon died
    site.open((status("a", offset=offset),))
    site.started("a")
    (site.folder("a") / "go").touch()
    assert site.exited("a").outcome == "completed"
    steps = [r.step for r in site.reports("a")]
    assert steps == list(range(4, steps[-1] + 1))
    assert [int(line.split()[1]) for line in site.log("a").splitlines()] == list(range(1, steps[-1]))
    assert (site.folder("a") / "began").read_text() == "x"


def test_what_ended_while_no_daemon_was_there_is_told_with_its_reports(site):
    site.script("good", STEADY)
    site.script("bad", STEADY + "\nraise SystemExit(4)")
    first = daemon(site, "good", "bad")
    for job_id in site.jobs:
        site.prints(job_id, "line 3\n")
    kill(first)
    for job_id in site.jobs:
        (site.folder(job_id) / "go").touch()
    site.eventually(lambda: not site.supervisors(), "the end of both jobs")
    site.open((status("good"), status("bad")))
    assert site.exited("good").outcome == "completed"
    assert (site.exited("bad").outcome, site.exited("bad").exit_code) == ("failed", 4)
    assert site.reports("good")[0].step == 1
    assert site.reports("good")[-1].loss == 0.0


def test_a_job_that_was_asked_to_leave_is_asked_again_after_a_restart(site):
    site.script("a", STEADY)
    first = daemon(site, "a")
    site.prints("a", "line 2\n")
    kill(first)
    site.open((status("a", leaving=True, for_good=True),))
    assert site.exited("a").outcome == "stopped"
    assert not site.alive("a")


def test_recorded_but_never_launched_is_launched_or_answered(site):
    site.script("run", "print('ran')")
    site.script("leave", "print('ran')")
    site.open((status("run"), status("leave", leaving=True)))
    assert site.exited("run").outcome == "completed"
    assert site.exited("leave").outcome == "preempted"
    assert site.log("run") == "ran\n"
    site.start("leave")  # too late: that attempt's fate is decided
    assert site.log("leave") == ""


def test_an_attempt_starts_once_however_often_it_is_asked_for(site):
    site.script("a", STEADY)
    site.open()
    site.open()
    for backend in site.backends:
        for _ in range(2):
            backend.execute(StartJob("a", 1, (), False, "test"))
    site.prints("a", "line 3\n")
    site.eventually(lambda: len(site.supervisors()) == 1, "the end of the launcher that came too late")
    (site.folder("a") / "go").touch()
    site.exited("a")
    site.eventually(lambda: not site.supervisors(), "the end of the supervisor")
    assert (site.folder("a") / "began").read_text() == "x"


def test_the_daemon_is_killed_at_random_moments_between_intent_and_launch(site):
    """Whatever a kill -9 left half done, the next daemon completes: each job runs exactly once, none is lost."""
    rng = random.Random(7)
    for turn in range(8):
        earlier = tuple(site.jobs)
        names = [f"t{turn}-{n}" for n in range(4)]
        for name in names:
            site.script(name, "open('began', 'a').write('x'); print('ran')")
        victim = daemon(site, *names, recorded=earlier)
        assert victim.stdout.readline() == b"up\n"
        time.sleep(rng.uniform(0, 0.03))
        kill(victim)
    site.open(tuple(status(name) for name in site.jobs))
    for name in site.jobs:
        assert site.exited(name).outcome == "completed", site.exited(name)
        assert (site.folder(name) / "began").read_text() == "x"
        assert site.log(name) == "ran\n"
        assert len(site.exits(name)) == 1


@pytest.mark.parametrize("with_cgroup", [True, False])
def test_a_killed_supervisor_means_lost_and_leaves_nothing_behind(site, monkeypatch, with_cgroup):
    if not with_cgroup:
        monkeypatch.setattr("tierline.backends.jobs.launch._group_name", lambda *_: "not/possible")
    site.open()
    site.script(
        "a",
        """
        import subprocess, sys, time, os
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print("grandchild", os.getpid(), flush=True); time.sleep(1000)
            os._exit(0)
        time.sleep(1000)
        """,
    )
    site.job("neighbour", ("sleep", "1000"))
    site.start("a")
    site.start("neighbour")
    site.prints("a", "grandchild")
    site.started("neighbour")
    neighbour = site.alive("neighbour")
    pid = json.loads((site.folder("a") / "attempt-1" / "pid.json").read_text())
    os.kill(pid["supervisor_pid"], signal.SIGKILL)
    assert site.exited("a").outcome == "lost"
    assert not site.alive("a")  # what the event says is true the moment it is told
    grandchild = int(site.log("a").split()[1])
    site.eventually(lambda: not os.path.exists(f"/proc/{grandchild}"), "the end of the grandchild")
    assert site.alive("neighbour") == neighbour
    assert not site.exits("neighbour")


def test_a_supervisor_killed_while_no_daemon_was_there_means_lost(site):
    site.script("a", STEADY)
    first = daemon(site, "a")
    site.prints("a", "line 2\n")
    kill(first)
    kill_all(site.supervisors())
    site.eventually(lambda: not site.alive("a"), "the end of the job, by the kernel alone")
    site.open((status("a"),))
    assert site.exited("a").outcome == "lost"
    assert not site.alive("a")
    assert site.reports("a")[0].step == 1


def test_what_runs_without_being_recorded_is_killed(site):
    site.script("a", STEADY)
    first = daemon(site, "a")
    site.prints("a", "line 2\n")
    kill(first)
    site.open(())
    assert not site.alive("a")
    assert not site.supervisors()


def test_close_leaves_the_jobs_running(site):
    site.script("a", STEADY)
    site.open()
    site.start("a")
    site.prints("a", "line 2\n")
    site.backends[0].close()
    assert site.alive("a")
    assert site.supervisors()


def test_a_flood_of_output_is_capped_and_harms_no_neighbour(site):
    site.open(log_cap_bytes=1 << 20)
    site.script(
        "flood",
        """
        import os
        block = b"x" * 99 + b"\\n"
        for _ in range(200): os.write(1, block * 655)
        os.write(1, b"the end\\n")
        """,
    )
    site.script("calm", "for k in range(50): print(k)")
    site.start("flood")
    site.start("calm")
    assert site.exited("flood").outcome == "completed"
    assert site.exited("calm").outcome == "completed"
    assert [int(line) for line in site.log("calm").split()] == list(range(50))
    sizes = [path.stat().st_size for path in site.folder("flood").glob("log*")]
    assert len(sizes) == 2
    assert sum(sizes) <= (1 << 20) + 2 * 65_536
    assert site.log("flood").endswith("the end\n")


@pytest.fixture
def tiny_disk(tmp_path_factory):
    """A file system of 256 KiB, mounted for the test."""
    folder = tmp_path_factory.mktemp("tiny")
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_under_its_checkpoints_ends_that_job_alone(site, tiny_disk):
    site.open()
    site.script(
        "full",
        """
        import tierline
        for k in range(1, 100):
            tierline.report(k, loss=1 / k)
            tierline.save_checkpoint("state", bytes(k * 20_000))
        """,
    )
    site.script("neighbour", STEADY)
    site.folder("full").mkdir(parents=True)
    (site.folder("full") / "checkpoints").symlink_to(tiny_disk)
    site.start("neighbour")
    site.start("full")
    end = site.exited("full")
    assert end.outcome == "failed"
    assert end.reason.startswith("no space left on device (exit code 1; last line: OSError: [Errno 28]")
    kept = (tiny_disk / "state").stat().st_size
    assert kept % 20_000 == 0
    assert kept == 20_000 * (len(site.reports("full")) - 1)  # the last good checkpoint is whole
    assert [path.name for path in tiny_disk.iterdir()] == ["state"]
    assert site.alive("neighbour")
    assert not site.exits("neighbour")
    (site.folder("neighbour") / "go").touch()
    assert site.exited("neighbour").outcome == "completed"


def test_a_state_folder_on_a_full_disk_loses_no_exit(site, tiny_disk):
    """The disk is full of the job's own making; how it ended is known all the same."""
    site.root = tiny_disk
    site.open()
    site.script(
        "a",
        """
        try:
            with open("fill", "wb", buffering=0) as file:
                while True: file.write(bytes(4096))
        except OSError: pass
        raise SystemExit(7)
        """,
    )
    site.start("a")
    assert (site.exited("a").outcome, site.exited("a").exit_code) == ("failed", 7)
    site.start("a", attempt=2)
    assert site.exited("a", 2).outcome == "lost"
    assert "No space left" in site.exited("a", 2).reason


def test_a_supervisor_that_does_not_answer_is_killed_and_the_job_with_it(site, monkeypatch):
    monkeypatch.setattr("tierline.backends.jobs.watch._ANSWER_S", 0.2)
    site.open()
    site.job("a", ("sleep", "1000"), grace_ns=NS_PER_S // 10)
    site.start("a")
    site.started("a")
    (supervisor,) = site.supervisors()
    os.kill(supervisor, signal.SIGSTOP)
    site.preempt("a")
    assert site.exited("a").outcome == "preempted"
    assert not site.alive("a")


def test_a_supervisor_terminated_by_the_system_lets_the_job_save_and_counts_as_lost(site):
    site.open()
    site.script(
        "a",
        """
        import time, tierline
        tierline.should_stop(); print("ready", flush=True)
        while not tierline.should_stop(): time.sleep(0.01)
        tierline.save_checkpoint("state", b"saved")
        """,
    )
    site.start("a")
    site.prints("a", "ready")
    kill_term = site.supervisors()
    for pid in kill_term:
        os.kill(pid, signal.SIGTERM)
    assert site.exited("a").outcome == "lost"
    assert (site.folder("a") / "checkpoints" / "state").read_bytes() == b"saved"


def test_a_supervisor_that_starts_just_while_we_look_is_not_taken_for_dead(tmp_path, monkeypatch):
    """The claim appears between our looks at the lock and at the claim: the order of looking must allow for it."""
    folder = JobFolder(tmp_path, "a")
    attempt = folder.attempt(1)
    attempt.path.mkdir(parents=True)
    job = Job("a", argv=("true",))
    launcher = subprocess.Popen(["sleep", "1000"])
    watch = AttemptWatch(job, 1, (), folder, ReportFileReader(folder.reports, job, 1, 0), launcher)

    def not_yet_locked(self):
        self.claim()
        return False

    monkeypatch.setattr(AttemptFolder, "is_supervised", not_yet_locked)
    try:
        assert watch.observe(0) == []
    finally:
        launcher.kill()
        launcher.wait()
