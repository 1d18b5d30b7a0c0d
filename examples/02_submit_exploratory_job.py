"""Submit a real training to a daemon, wait for it, and read back what it reported and what was decided about it.

This file is both: run without arguments it starts a daemon of its own with one CPU slot and submits itself; run as
`02_submit_exploratory_job.py train` it is the training script. On the command line the same is

    tierline up --slots 1 --detach
    tierline submit --name line --steps 20 --wait -- python 02_submit_exploratory_job.py train
    tierline why line
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tierline
from tierline.cli.client import JobRequest, connect


def train() -> None:
    """Fit y = 2x + 1 by gradient descent; the only line that Tierline needs is the one with `report`."""
    points = [(x / 10, 2 * x / 10 + 1) for x in range(-10, 11)]
    slope, offset = 0.0, 0.0
    for step in range(1, 21):
        errors = [(slope * x + offset - y, x) for x, y in points]
        tierline.report(step, loss=sum(e * e for e, _ in errors) / len(points))
        slope -= 0.2 * sum(2 * e * x for e, x in errors) / len(points)
        offset -= 0.1 * sum(2 * e for e, _ in errors) / len(points)


def main() -> None:
    cli = [sys.executable, "-m", "tierline.cli.main"]
    with tempfile.TemporaryDirectory(prefix="tierline-", ignore_cleanup_errors=True) as folder:
        state = Path(folder)
        options = ["--slots", "1", "--detach", "--state", folder]
        subprocess.run([*cli, "up", *options], check=True, stdout=subprocess.DEVNULL)
        try:
            with connect(state) as client:
                command = (sys.executable, str(Path(__file__).resolve()), "train")
                client.submit([JobRequest(argv=command, cwd=folder, job_id="line", total_steps=20)])
                while (job := client.job("line")).phase not in ("completed", "failed", "stopped"):
                    time.sleep(0.05)
                print(f"{job.job_id} {job.phase} after {job.step} steps")
                for row in client.reports("line")[::5]:
                    print(f"step {row.step:2d}  loss {row.loss:.4f}")
                print("decisions:", ", ".join(decision.action for decision in client.why("line").decisions))
        finally:
            subprocess.run([*cli, "down", "--state", folder], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    train() if sys.argv[1:] == ["train"] else main()
