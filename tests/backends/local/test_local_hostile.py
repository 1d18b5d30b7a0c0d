"""Jobs that spoil their own run folder, flood us, or give us a pattern without end: nobody else may notice."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tierline.backends.jobs.joblog import JobLog
from tierline.backends.jobs.processes import kill_all
from tierline.backends.jobs.progress import MAX_BACKLOG_BYTES, MAX_POLL_BYTES, ReportFileReader
from tierline.backends.jobs.rundir import JobFolder
from tierline.backends.jobs.watch import kill_leftovers
from tierline.core.nouns import Job, Progress

STEADY = """
import os, time
for k in range(1, 100_000):
    print("line", k, flush=True)
    if os.path.exists("go"): break
    time.sleep(0.02)
"""


def test_a_running_job_leaves_no_zombie_with_us(site):
    """What starts a supervisor ends at once; it is collected then, not when the job is over."""
    site.open()
    site.script("a", STEADY)
    site.start("a")
    site.started("a")
    site.eventually(lambda: not children("Z"), "no zombie")
    assert site.alive("a")


def children(state: str) -> list[int]:
    """Our own children in this state."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == state and int(fields[1]) == os.getpid():
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    "spoil",
    [
        "os.remove(folder + '/reports.jsonl'); os.mkfifo(folder + '/reports.jsonl')",
        "os.symlink(folder + '/loop', folder + '/loop'); os.rename(folder + '/loop', folder + '/reports.jsonl')",
        "open(folder + '/attempt-1/pid.json', 'w').write('{}')",
        "open(folder + '/attempt-1/pid.json', 'w').write('[' * 100_000)",
        "os.remove(folder + '/attempt-1/pid.json'); os.mkfifo(folder + '/attempt-1/pid.json')",
        "os.mkfifo(folder + '/attempt-1/exit.json')",
        "open(folder + '/attempt-1/exit.json', 'w').write('{}')",
        "open(folder + '/attempt-1/exit.json', 'w').write('{\"error\": 0, \"asked\": []}')",
    ],
)
def test_a_job_that_spoils_its_run_folder_harms_no_neighbour_and_can_be_stopped(site, spoil):
    site.open()
    site.script(
        "spoiler",
        f"""
        import os, time, tierline
        tierline.report(1, loss=1.0)
        folder = os.path.dirname(os.environ["TIERLINE_REPORT_FILE"])
        while not os.path.exists(folder + "/attempt-1/pid.json"): time.sleep(0.01)
        {spoil}
        print("spoilt", flush=True)
        time.sleep(600)
        """,
        grace_ns=0,
    )
    site.script("neighbour", STEADY)
    site.start("spoiler")
    site.prints("spoiler", "spoilt")
    site.start("neighbour")
    site.prints("neighbour", "line 1")
    assert not site.exits("spoiler")  # its devices are not free while it lives
    site.stop("spoiler")
    assert site.exited("spoiler").outcome == "stopped"
    (site.folder("neighbour") / "go").touch()
    assert site.exited("neighbour").outcome == "completed"
    (site.folder("spoiler") / "attempt-1" / "pid.json").unlink()


def test_a_job_that_was_over_before_its_start_time_could_be_read_is_given_up_when_its_supervisor_dies(site):
    site.open()
    site.script("a", STEADY)
    site.start("a")
    site.started("a")
    path = site.folder("a") / "attempt-1" / "pid.json"
    record = json.loads(path.read_text())
    kill_all([record["supervisor_pid"]])
    site.exited("a")
    path.write_text(json.dumps({**record, "pid": 2**22 + 1, "pid_ticks": None}))
    assert kill_leftovers(JobFolder(site.root, "a"), 1)


def test_reports_faster_than_they_can_be_read_neither_fill_the_memory_nor_hide_the_end(tmp_path):
    path = tmp_path / "reports.jsonl"
    line = b'{"step": %9d, "loss": 0.5}\n'
    count = 3 * MAX_BACKLOG_BYTES // len(line % 0)
    path.write_bytes(b"".join(line % step for step in range(count)))
    reader = ReportFileReader(path, Job("j"), 1, 0)
    taken = 0
    while batch := reader.poll(1, ended=True):
        assert len(batch) * len(line % 0) <= MAX_POLL_BYTES
        taken += len(batch)
    assert taken * len(line % 0) <= MAX_BACKLOG_BYTES
    assert (reader.newest_step, reader.skipped) == (count - 1, 0)


PRINTS = """
for k in range(9): print("step", k, "loss 1.0")
print("a" * 60)
print("step 9 loss 1.0")
"""


def test_a_pattern_that_never_ends_costs_its_job_the_progress_and_nothing_else(site):
    site.open()
    site.job(
        "slow",
        (sys.executable, "-c", PRINTS),
        progress=Progress("regex", r"step (?P<step>\d+) loss (?P<loss>[\d.]+)|(a|aa)+b"),
    )
    site.start("slow")
    assert site.exited("slow").outcome == "completed"
    assert "the progress pattern takes too long on a line" in site.log("slow")
    assert [report.step for report in site.reports("slow")] == list(range(9))


def test_a_log_that_could_not_rotate_goes_on_when_there_is_room_again(tmp_path, monkeypatch):
    log = JobLog(tmp_path / "log", 8192, 1 << 20)
    log.write(b"a" * 4096)
    with monkeypatch.context() as full:
        full.setattr(JobLog, "_open", lambda self: os.open(tmp_path / "no" / "room", os.O_WRONLY))
        log.write(b"b" * 100)
    log.write(b"c" * 100)
    assert (tmp_path / "log").read_bytes() == b"c" * 100
    assert (tmp_path / "log.1").read_bytes() == b"a" * 4096
    assert log.dropped_bytes == 100
