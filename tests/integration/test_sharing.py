"""A daemon with `--share`: two jobs on its one device, through an end, a recovery, and a replay of the record."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tierline.backends.jobs.sharing import check_sharing
from tierline.cli.client import JobRequest, connect
from tierline.config import DaemonOptions, build_recorded, hand_over
from tierline.core.errors import TierlineError
from tierline.kernels import native
from tierline.runtime.replay import fold
from tierline.runtime.store import EventStore
from tierline.testing.daemon import answers, spawn_daemon, wait_until


def native_half() -> bool:
    try:
        check_sharing()
        native.load()
    except TierlineError:
        return False
    return True


@pytest.mark.skipif(not native_half(), reason="the native half of the kernel tier is not built here")
def test_two_jobs_share_the_one_device_through_a_restart_of_the_daemon(tmp_path: Path) -> None:
    table = {"('x', 1)": {"null": 2.0, "('x', 1)": [1.6, 1.6]}}
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps({"v100": table}))
    options = DaemonOptions(tmp_path / "s", slots=1, policy="fifo", poll=0.05, share=True, pairs=str(pairs))
    jobs = [
        JobRequest(argv=("sleep", "600"), cwd=str(tmp_path), job_id=name, job_type="x", grace_s=1)
        for name in ("r", "j")
    ]
    for life in (1, 2):
        daemon = spawn_daemon(options)
        with connect(options.state) as client:
            wait_until(lambda client=client: answers(client), "the daemon answers")
            if life == 1:
                client.submit(jobs)
            wait_until(lambda client=client: [job.phase for job in client.jobs()] == ["running"] * 2, "both run")
            host, guest = client.jobs()
            assert (host.shares_with, guest.shares_with, guest.speed) == (("j",), ("r",), 0.8)
            (device,) = client.cluster().devices
            assert (device.job_id, device.guest) == ("r", "j")
            start = next(d for d in client.why("j").decisions if d.action == "start")
            assert start.reason == "shares cpu0 with r: predicted speed 0.80 and 0.80; gain 0.6 of a device"
            if life == 2:
                assert (host.attempt, guest.attempt) == (1, 1)  # adopted, not started again
                client.stop("r")
                wait_until(lambda client=client: len(client.jobs()) == 1, "the host has gone")
                (left,) = client.jobs()
                assert (left.job_id, left.shares_with) == ("j", ())
                client.stop("j")
                wait_until(lambda client=client: not client.jobs(), "the guest has gone")
        daemon.send_signal(signal.SIGTERM)
        _, said = daemon.communicate(timeout=60)
        assert (daemon.returncode, said) == (0, "")
    spec = json.loads((options.state / "jobs" / "j" / "attempt-1" / "spec.json").read_text())
    assert spec["env"]["TIERLINE_PRIORITY"] == "best-effort"
    store = EventStore(options.state)
    try:
        again = fold(store.table, build_recorded, hand_over, from_start=True)
        assert again is not None and again.actions > 0
        assert again.differences == 0, again.first
        measured = sum(row.kind == "PairsMeasured" for row in store.table.events(after=0))
        assert measured == 1  # what is known is not told again
    finally:
        store.close()
