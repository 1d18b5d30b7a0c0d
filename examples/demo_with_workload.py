"""Step three of three: an online service under a changing mix of text and image requests, its groups and roles as they move.

Eight instances of `tiny-vlm` play H100s with Qwen2.5-VL-7B (`--pace`), eight times as slow, a position for sixteen: what two
cores can compute. The share of requests with images goes from a fifth to four fifths, and they come in bursts. Watch the
paper's system with --policy emp, or one that never changes with --policy coupled or static:2E2P4D.
"""

import argparse
import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tierline.cli.serving_status import ServingClient, ServingStatus
from tierline.cli.top_serving import picture
from tierline.core.slo import Slo
from tierline.runtime.serving_report import ModalityReport, report
from tierline.workloads.replay_client import Progress, Replay, ReplayOptions, replay
from tierline.workloads.serving import load_served

PACE = ("--pace", "h100:Qwen2.5-VL-7B", "--pace-positions", "16")
TEXT = "synthetic?images=0&text_tokens=80&text_sigma=0.5&output_tokens=30&output_sigma=0.5"
IMAGES = "synthetic?images=1&image_tokens=64&image_sigma=0&text_tokens=40&output_tokens=20&output_sigma=0.5"


def promise(options: argparse.Namespace) -> str:
    return f"ttft={options.stretch / 2:g}s,tpot={50 * options.stretch:g}ms,image={options.stretch:g}s"


@contextmanager
def served(options: argparse.Namespace) -> Iterator[str]:
    """The address of a server whose instances are ready; it ends with the block."""
    count, stretch = str(options.instances), str(options.stretch)
    command = [sys.executable, "-m", "tierline.cli.main", "serve", "tiny-vlm", "--port", "0", "--instances", count]
    command += ["--policy", options.policy, "--slo", promise(options), *PACE, "--pace-stretch", stretch]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            listening = server.stdout.readline()
            if not server.stdout.readline():  # "Ready after ..."
                sys.exit(2)  # it has said why on stderr
            yield listening.split()[-1]
        finally:
            server.terminate()


class Watch:
    """Looks at the server every half second, in a thread of its own; shows it on a terminal."""

    def __init__(self, url: str) -> None:
        self.status: ServingStatus | None = None
        self.progress = Progress(0, 0, 0, 0, 0)
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        shown = Live(auto_refresh=False, transient=True) if Console().is_terminal else nullcontext()
        with ServingClient(self._url) as server, shown as live:
            while not self._ended.wait(0.5):
                self.status = server.status()
                if live is not None:
                    now = f"{self.progress.sent} of {self.progress.due} requests sent, {self.progress.in_flight} under way"
                    live.update(Group(Text(now, style="bold cyan"), picture(self.status)), refresh=True)
            self.status = server.status()

    def told(self, progress: Progress) -> None:
        self.progress = progress


def tell(found: Replay, status: ServingStatus, options: argparse.Namespace) -> None:
    figures = report(found.outcomes, Slo.parse(promise(options)), options.instances)
    print(f"{options.policy}: {len(found.sent)} requests, {figures.all.finished} answered")
    for name, each in (("text", figures.text), ("with images", figures.images)):
        print(f"{name:<12}{row(each)}")
    kinds = Counter(each.what.split()[0] for each in status.decisions if not each.reason.startswith("refused"))
    told = ", ".join(f"{kind} {count} times" for kind, count in sorted(kinds.items())) or "nothing"
    print(f"changed by the policy: {told}; requests moved between instances: {status.counts.get('moves', 0)}")
    for each in sorted(status.instances, key=lambda each: each.name):
        print(f"{each.name}: {each.roles} for {each.group}, {each.encoded_images} images encoded")


def row(each: ModalityReport) -> str:
    return (
        f"{each.finished:>5} answered, TTFT {each.ttft.p50:.2f} s (P99 {each.ttft.p99:.2f}), "
        f"TPOT {1000 * each.tpot.p50:.0f} ms (P99 {1000 * each.tpot.p99:.0f}), "
        f"{100 * each.attainment:.0f} % within the SLO"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="adaptive", help="adaptive, emp, coupled, static:2E2P4D, ...")
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--stretch", type=float, default=8.0, help="times longer than on the devices that are played")
    options = parser.parse_args()
    mix = f"mix?rate={options.rate}&seconds={options.seconds}&mm_share=0.2&mm_share_end=0.8"
    mix += "&burst_every_s=15&burst_s=5&burst_factor=4" if options.seconds >= 30 else ""
    trace = load_served(f"{mix}+{TEXT}+{IMAGES}")
    with served(options) as url:
        with Watch(url) as watch:
            found = asyncio.run(replay(url, trace.requests, ReplayOptions(), progress=watch.told))
        assert watch.status is not None
        tell(found, watch.status, options)


if __name__ == "__main__":
    main()
