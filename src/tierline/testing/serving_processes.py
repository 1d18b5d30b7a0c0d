"""Real instance processes for tests, looked at from the outside: what `/proc` and the file system say of them, who computed
what, and tokens against those of Transformers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tierline.backends.serving.generator import EngineGenerator
from tierline.backends.serving.nursery import Host
from tierline.core.errors import TierlineError
from tierline.core.request import Picture, Request, Role
from tierline.deployment import DeploymentOptions, build_generator
from tierline.testing.daemon import wait_until
from tierline.testing.mixed_requests import Reference, Requests, make_mixed

DEADLINE_S = 400.0
STATUS_NS = 100_000_000
LEAST_GAP = 1e-3
COMMAND = "from tierline.cli.main import run; run()"


@dataclass(frozen=True, slots=True)
class Questions:
    """Requests over a checkpoint and the tokens that Transformers answers with."""

    folder: str
    requests: tuple[Request, ...]
    pictures: Mapping[str, Picture]
    wanted: Mapping[str, tuple[int, ...]]

    @classmethod
    def make(cls, folder: str, count: int, placeholder: str, sizes: Sequence[tuple[int, int]]) -> Questions:
        """Only those whose answers do not hang on the last digits: who adds in another order may answer others."""
        maker, reference = Requests(folder), Reference(folder)
        requests, pictures, wanted = [], {}, {}
        for number, mixed in enumerate(make_mixed(count, 7, placeholder, sizes, longest=300)):
            answer = reference.answer(mixed)
            if answer.gap <= LEAST_GAP:
                continue
            request = maker.make(f"q{number}", mixed)
            assert request.prompt == answer.prompt
            requests.append(request)
            pictures.update({picture.content_hash: picture for picture in mixed.pictures})
            wanted[request.request_id] = answer.tokens
        return cls(folder, tuple(requests), pictures, wanted)


@dataclass(slots=True)
class Answers:
    """Tokens of the requests that were answered, errors of the others."""

    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    errors: dict[str, TierlineError] = field(default_factory=dict)

    def wrong(self, questions: Questions) -> list[str]:
        """Requests with other tokens than Transformers gives."""
        return [name for name, tokens in self.tokens.items() if tokens != questions.wanted[name]]


class Deployment:
    """A generator over real processes, as `tierline serve` makes it."""

    def __init__(
        self,
        folder: str,
        roles: str,
        *,
        transfer: str = "shm",
        hosts: Mapping[str, Host] | None = None,
        listen: str = "",
        pace: str = "",
        pace_positions: int = 1,
        policy: str = "",
        instances: int = 0,
        slo: str = "",
        limits: tuple[int, int] = (1, 0),
        record: Path | None = None,
        kv_bytes: int = 6_000_000,
    ) -> None:
        self.failures: list[str] = []
        options = DeploymentOptions(
            model=folder, roles=roles, dtype="fp32", device="cpu", threads=1, pack=False, transfer=transfer,
            kv_bytes=kv_bytes, pool_bytes=60_000, token_budget=64, pace=pace, pace_positions=pace_positions,
            policy=policy, instances=instances, slo=slo, min_instances=limits[0], max_instances=limits[1],
            record=str(record) if record else "",
        )  # fmt: skip
        self.roles = options.layout
        self.generator: EngineGenerator = build_generator(options, self.failures.append, hosts=hosts, listen=listen)
        self.folders = self.generator.instances.folders
        self.rng = random.Random(roles)

    # --- what is there

    @property
    def slots(self) -> dict[str, dict[str, Any]]:
        """What `status` says of the instances that are ready, by slot."""
        return {each["name"].partition("~")[0]: each for each in self.generator.status()["instances"]}

    def is_whole(self) -> bool:
        """All are ready and have the roles that they were started with."""
        slots = self.slots
        return len(slots) == len(self.roles) and all(
            slots[f"i{place}"]["roles"] == roles.letters for place, roles in enumerate(self.roles)
        )

    def wait_whole(self) -> None:
        wait_until(lambda: bool(self.failures) or self.is_whole(), "all instances are there", DEADLINE_S)
        assert not self.failures

    def total(self, key: str) -> int:
        return sum(each.get(key, 0) for each in self.generator.status()["instances"])

    def is_idle(self) -> bool:
        """No request is live, all KV blocks are free, and no transfer lies about."""
        status = self.generator.status()
        return status["live"] == 0 and not any(self.folders.shm.iterdir()) and all(
            each.get("free_blocks") == each.get("total_blocks") and not each["decoding"] and not each["prefill_tokens"]
            for each in status["instances"]
        )  # fmt: skip

    def wait_idle(self) -> None:
        def told() -> str:
            return f"nothing is held any more; {self.generator.status()}, {list(self.folders.shm.iterdir())}"

        try:
            wait_until(self.is_idle, "", DEADLINE_S / 2)
            time.sleep(2 * STATUS_NS / 1e9)  # what they told may have been from before the last request
            wait_until(self.is_idle, "", DEADLINE_S / 2)
        except AssertionError:
            raise AssertionError(f"gave up waiting until {told()}") from None

    def pid(self, slot: str) -> int:
        """0 while there is none."""
        found = [pid for name, pid in self.generator.instances.pids().items() if name.partition("~")[0] == slot]
        return found[0] if found else 0

    def kill(self, slot: str) -> None:
        """-9, for the process that has the slot now, as soon as there is one."""
        wait_until(lambda: bool(self.pid(slot)), f"{slot} has a process", DEADLINE_S)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid(slot), signal.SIGKILL)

    # --- doing

    def run(
        self,
        questions: Questions,
        *,
        apart_s: float = 0.0,
        disturb: Callable[[], None] | None = None,
        again_s: float = 0.02,
        deadline_s: float = DEADLINE_S,
    ) -> Answers:
        """Ask everything, one request every `apart_s`; meanwhile call `disturb` every `again_s`."""
        return asyncio.run(self._run(questions, apart_s, disturb, again_s, deadline_s))

    async def _run(
        self,
        questions: Questions,
        apart_s: float,
        disturb: Callable[[], None] | None,
        again_s: float,
        deadline_s: float,
    ) -> Answers:
        answers = Answers()
        disturbing = asyncio.create_task(_again(disturb, again_s)) if disturb is not None else None
        asking = []
        async with asyncio.timeout(deadline_s):
            for request in questions.requests:
                asking.append(asyncio.create_task(self._ask(request, questions.pictures, answers)))
                await asyncio.sleep(apart_s)
            await asyncio.gather(*asking)
        if disturbing is not None:
            disturbing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await disturbing
        return answers

    async def _ask(self, request: Request, pictures: Mapping[str, Picture], answers: Answers) -> None:
        own = {image.content_hash: pictures[image.content_hash] for image in request.images}
        tokens: list[int] = []
        try:
            async for made in self.generator.generate(request, own):
                assert made.first == len(tokens)
                tokens += made.tokens
        except TierlineError as error:
            answers.errors[request.request_id] = error
        else:
            answers.tokens[request.request_id] = tuple(tokens)

    def move_some(self) -> None:
        """Move a request to another instance; what is not possible is refused."""
        if live := self.generator.live_ids():
            able = [each["name"] for each in self.generator.status()["instances"] if "D" in each["roles"]]
            if able:
                self.generator.move(self.rng.choice(live), self.rng.choice(able))

    def change_roles(self) -> None:
        """Give some instance other roles."""
        names = [each["name"] for each in self.generator.status()["instances"]]
        if names:
            self.generator.set_roles(self.rng.choice(names), Role(self.rng.randrange(1, 8)))

    def restore_roles(self) -> None:
        """The first roles again, by way of all roles for everybody: a stage that nobody else has is not given up."""
        slots = self.slots
        for each in slots.values():
            self.generator.set_roles(each["name"], Role.ENCODE | Role.PREFILL | Role.DECODE)
        for slot, each in slots.items():
            self.generator.set_roles(each["name"], self.roles[int(slot[1:])])

    def close(self) -> None:
        self.generator.close()


async def _again(deed: Callable[[], None], every_s: float) -> None:
    while True:
        deed()
        await asyncio.sleep(every_s)


@contextlib.contextmanager
def deployed(folder: str, roles: str, **options: Any) -> Iterator[Deployment]:
    """A deployment whose instances are ready; afterwards none of its processes and folders is left."""
    deployment = Deployment(folder, roles, **options)
    try:
        deployment.wait_whole()
        yield deployment
    finally:
        pids = [*deployment.generator.instances.pids().values(), *deployment.generator.instances.fork_servers()]
        deployment.close()
    assert not [pid for pid in pids if is_alive(pid)]
    assert not deployment.folders.run.exists()
    assert not deployment.folders.shm.exists()


# --- what the system says


def is_alive(pid: int) -> bool:
    """Whether there is such a process; a zombie is none."""
    try:
        return bool(pid) and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[int]:
    """All processes that descend from this one."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                child = int(stat.parent.name)
                found += [child, *children_of(child)]
    return found


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_ticks(pid: int) -> int:
    """What a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def rss_bytes(pid: int) -> int:
    """Memory of its own: what is shared with others, such as weights and transfers, is left out."""
    told = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(told.partition("RssAnon:")[2].split()[0])


# --- the server


@dataclass(slots=True)
class ServeProcess:
    """`tierline serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    stderr: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = httpx.get(f"{self.url}/tierline/status", timeout=30).json()
        return told

    def metrics(self) -> dict[str, float]:
        """Each series by name and labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in rows}

    def wait_ready(self, count: int) -> None:
        wait_until(lambda: len(self.status()["instances"]) == count, f"{count} instances are ready", DEADLINE_S)

    def is_idle(self) -> bool:
        status = self.status()
        return status["live"] == 0 and all(
            each.get("free_blocks") == each.get("total_blocks") for each in status["instances"]
        )

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def serve_process(model: str, tmp: Path, *options: str) -> ServeProcess:
    """Starts `tierline serve` on a free port; returns when it listens. Its temporary folders are made in `tmp`."""
    told = tmp / "stderr"
    with told.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, "serve", model, "--port", "0", "--threads", "1", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp)},
        )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Listening on "):
            return ServeProcess(process, line.split()[-1], told)
    process.stdout.close()
    raise AssertionError(f"it ended with {process.wait()}: {told.read_text()}")
