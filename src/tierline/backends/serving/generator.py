"""Between the front door's event loop and the serving scheduler: a request goes in, its tokens come out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from tierline.backends.serving.request_log import CLOSED, RequestLog
from tierline.backends.serving.torch import TorchInstances
from tierline.core.contracts import Loop
from tierline.core.errors import Overloaded, PixelsNeeded, RequestLost, StateUnusable, TierlineError
from tierline.core.events import Event
from tierline.core.request import Picture, Request, Role, TokensMade
from tierline.core.serving_actions import Answer, AskPixels
from tierline.core.serving_events import MoveWanted, RequestAbandoned, RequestSubmitted, RolesAsked, Tick
from tierline.schedulers.serving import ServingScheduler

log = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""A request waits so long for an instance where there is none: the time in which a lost one is replaced on a busy machine."""
RETRY_S = 5.0
LOOKS = 300  # within that time


@dataclass(slots=True)
class _Client:
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[TokensMade | TierlineError]
    pictures: Mapping[str, Picture]


class Mailboxes:
    """Where answers wait for their readers, each in its own event loop."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}

    def open(self, request_id: str, pictures: Mapping[str, Picture]) -> asyncio.Queue[TokensMade | TierlineError]:
        client = _Client(asyncio.get_running_loop(), asyncio.Queue(), pictures)
        self._clients[request_id] = client
        return client.queue

    def close(self, request_id: str) -> None:
        self._clients.pop(request_id, None)

    def ids(self) -> tuple[str, ...]:
        return tuple(self._clients)

    def answer(self, action: Answer) -> None:
        self._put(action.tokens.request_id, action.tokens)

    def ask_pixels(self, action: AskPixels) -> None:
        self._put(action.request_id, PixelsNeeded(action.hashes))

    def picture(self, request_id: str, content_hash: str) -> Picture | None:
        """None when the client has just gone."""
        client = self._clients.get(request_id)
        return client.pictures.get(content_hash) if client is not None else None

    def fail_all(self, error: TierlineError) -> None:
        """Nothing will be answered any more."""
        for request_id in list(self._clients):
            self._put(request_id, error)

    def _put(self, request_id: str, item: TokensMade | TierlineError) -> None:
        client = self._clients.get(request_id)
        if client is not None:
            with contextlib.suppress(RuntimeError):  # its event loop has ended
                client.loop.call_soon_threadsafe(client.queue.put_nowait, item)


class EngineGenerator:
    """A `Generator` over instances of the built-in engine; owns the thread of the driver's loop, which ends when the clock
    does (`end_clock`), and one that posts ticks where the scheduler wants them. `end_record`: ends what is written. `about`:
    what `status` says of the deployment."""

    def __init__(
        self,
        scheduler: ServingScheduler,
        instances: TorchInstances,
        driver: Loop,
        mailboxes: Mailboxes,
        end_clock: Callable[[], None],
        end_record: Callable[[], None] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._instances = instances
        self._driver = driver
        self._mailboxes = mailboxes
        self._end_clock = end_clock
        self._about = dict(about or {})
        self._count = itertools.count(1)
        self._log = RequestLog()
        self._failed = ""
        self._thread = threading.Thread(target=self._run, name="serving loop", daemon=True)
        self._thread.start()
        self._end_record = end_record
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="serving ticks", daemon=True)
        if scheduler.tick_ns:
            self._ticker.start()

    def _tick(self) -> None:
        """Ticks, while there are instances or requests. Each is handled before the next: late ones do not pile up."""
        while not self._ended.wait(self._scheduler.tick_ns / 1e9):
            if self._scheduler.servers or self._scheduler.live:
                try:
                    self._submit(Tick())
                except RequestLost:
                    return

    def _run(self) -> None:
        try:
            self._driver.run()
        except StateUnusable as error:  # it was ended: by `close`, or by a failure in another thread
            self.failed(str(error))
        except Exception as error:
            log.exception("The serving loop has failed.")
            self.failed(_failure(error))

    def failed(self, sentence: str) -> None:
        """Nothing can be served from now on: `health` says so, and so is every client told."""
        self._failed = self._failed or sentence
        self._mailboxes.fail_all(RequestLost(self._failed))

    def _submit(self, event: Event) -> None:
        """Raises `Overloaded`, and `RequestLost` when the loop has ended."""
        try:
            self._driver.submit([event])
        except StateUnusable as error:
            if error.__cause__ is not None:  # it is this event that has ended it
                log.error("The serving loop has failed.", exc_info=error)
                self.failed(_failure(error.__cause__))
            self.failed(str(error))
            raise RequestLost(self._failed) from error

    async def wants_pixels(self, content_hash: str) -> bool:
        return not self._driver.query(lambda: self._scheduler.has_embeddings(content_hash))

    async def generate(self, request: Request, pictures: Mapping[str, Picture]) -> AsyncIterator[TokensMade]:
        if self._failed:
            raise RequestLost(self._failed)
        own = f"r{next(self._count)}"
        sent = structs.replace(request, request_id=own, arrived_ns=request.arrived_ns or time.monotonic_ns())
        queue = self._mailboxes.open(own, pictures)
        entry, how, error = self._log.begin(sent), CLOSED, ""
        finished = False
        try:
            self._submit(RequestSubmitted(sent, tuple(pictures)))
            if self._is_empty():
                await self._instance(queue)
            while not finished:
                item = await queue.get()
                finished = isinstance(item, TierlineError) or item.finish is not None
                if isinstance(item, TierlineError):
                    raise item
                entry.made(item)
                how = item.finish or how
                if item.finish == "error":
                    error = item.reason[:1].upper() + item.reason[1:] + "."
                    raise RequestLost(error)
                yield structs.replace(item, request_id=request.request_id)
        except TierlineError as failure:
            words = {Overloaded: "refused", PixelsNeeded: "sent back for pixels"}
            how = words.get(type(failure), "error")
            raise
        finally:
            self._mailboxes.close(own)
            self._log.end(entry, how, error)
            if not finished:
                with contextlib.suppress(RequestLost):
                    self._submit(RequestAbandoned(own))

    def _is_empty(self) -> bool:
        """No instance is there, nor is one started because a request waits."""
        limits = self._scheduler.elasticity
        to_zero = limits.max_instances and not limits.min_instances
        return not self._scheduler.servers and not to_zero

    async def _instance(self, queue: asyncio.Queue[TokensMade | TierlineError]) -> None:
        """Wait for an instance or a word. Raises `Overloaded` where neither comes."""
        for _ in range(LOOKS):
            if not queue.empty() or not self._is_empty():
                return
            await asyncio.sleep(PATIENCE_S / LOOKS)
        raise Overloaded("No instance is there to answer; one is being started.", RETRY_S)

    async def health(self) -> str:
        if self._failed:
            return self._failed
        ready = self._driver.query(lambda: len(self._scheduler.servers))
        if ready:
            return ""
        lost = self._scheduler.counts["instances_lost"]
        return "All instances are lost; they are started again." if lost else "No instance is ready yet."

    def set_roles(self, name: str, roles: Role) -> None:
        """Ask for other roles of an instance; raises `RequestLost` when the loop has ended."""
        self._submit(RolesAsked(name, roles))

    def move(self, request_id: str, to: str) -> None:
        """Ask for a request (by an id of `live_ids`) to go on at another instance."""
        self._submit(MoveWanted(request_id, to))

    @property
    def instances(self) -> TorchInstances:
        """What it runs on."""
        return self._instances

    def live_ids(self) -> tuple[str, ...]:
        """Requests that are being served, by the ids that `move` takes."""
        return self._mailboxes.ids()

    def status(self) -> dict[str, Any]:
        """Instances, requests, counters; read by people, by `tierline chat` and by tests."""
        return self._driver.query(self._status)

    def _status(self) -> dict[str, Any]:
        pids, hellos = self._instances.pids(), self._instances.hellos()
        instances = []
        for name, server in self._scheduler.servers.items():
            status, hello = server.status, hellos.get(name)
            instances.append(
                {
                    "name": name,
                    "pid": pids.get(name),
                    "roles": server.roles.letters,
                    "group": server.group,
                    "state": server.state,
                    "reason": server.reason,
                    "prefill_tokens": server.prefill_tokens,
                    "decoding": server.decoding,
                    "encoding": server.encoding,
                    "images": len(server.images),
                    "role_switches": server.switches,
                    "switch_seconds": server.switch_ns / 1e9,
                    "wake_seconds": server.wake_ns / 1e9,
                    "weights_bytes": hello.weights_bytes if hello else 0,
                    "start_seconds": hello.start_ns / 1e9 if hello else 0.0,
                    **({key: getattr(status, key) for key in status.__struct_fields__} if status else {}),
                }
            )
        return {
            "now_ns": time.time_ns(),
            "deployment": self._about,
            "instances": instances,
            "live": self._scheduler.live,
            "counts": dict(self._scheduler.counts),
            "image_queries": self._scheduler.image_queries,
            "image_hits": self._scheduler.image_hits,
            "waiting": self._scheduler.waiting,
            "rates": dataclasses.asdict(self._scheduler.rates),
            "decisions": [
                {"at_ns": each.at_ns, "subject": each.subject, "what": each.what, "reason": each.reason}
                for each in self._scheduler.decisions
            ],
        }

    def find(self, name: str) -> list[dict[str, Any]]:
        """What is known of requests of this name: how far they are, and of live ones where."""
        found = self._log.find(name)
        places = self._driver.query(lambda: {each["request_id"]: self._place(each["request_id"]) for each in found})
        return [{**each, **places[each["request_id"]]} for each in found]

    def _place(self, request_id: str) -> dict[str, str]:
        live = self._scheduler.live_request(request_id)
        if live is None:
            return {"instance": "", "stage": ""}
        if not live.owner:
            return {"instance": "", "stage": "waits"}
        stage = "moves" if live.moving_to else "decode" if live.prefilled else "prefill"
        return {"instance": live.owner, "stage": stage}

    def metrics_text(self) -> str:
        """Prometheus lines of the instances; names are vLLM's, `tierline:` where vLLM has none."""
        status = self.status()
        lines: list[str] = []

        def series(name: str, kind: str, text: str, rows: list[tuple[str, float]]) -> None:
            lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))
            lines.extend(f"{name}{labels} {value:g}" for labels, value in rows)

        def each(key: str) -> list[tuple[str, float]]:
            return [(f'{{instance="{one["name"]}"}}', float(one.get(key, 0))) for one in status["instances"]]

        def total(key: str) -> list[tuple[str, float]]:
            return [("", float(sum(one.get(key, 0) for one in status["instances"])))]

        usage = [
            (f'{{instance="{one["name"]}"}}', 1 - one["free_blocks"] / one["total_blocks"])
            for one in status["instances"]
            if one.get("total_blocks")
        ]
        series("vllm:kv_cache_usage_perc", "gauge", "Share of KV blocks in use, 0 to 1.", usage)
        series(
            "vllm:prefix_cache_queries_total",
            "counter",
            "Positions looked up in prefix caches.",
            total("prefix_queries"),
        )
        series("vllm:prefix_cache_hits_total", "counter", "Positions found there.", total("prefix_hits"))
        series("vllm:mm_cache_queries_total", "counter", "Images looked up.", [("", status["image_queries"])])
        series(
            "vllm:mm_cache_hits_total", "counter", "Images whose embeddings were there.", [("", status["image_hits"])]
        )
        series("vllm:num_preemptions_total", "counter", "Sequences that lost their blocks.", total("preemptions"))
        series("tierline:instance_running", "gauge", "Sequences with KV, per instance.", each("running"))
        series("tierline:instance_waiting", "gauge", "Sequences in the queue, per instance.", each("waiting"))
        series("tierline:instance_free_blocks", "gauge", "KV blocks that are free.", each("free_blocks"))
        series("tierline:embedding_pool_bytes", "gauge", "Image embeddings kept.", each("pool_bytes"))
        series("tierline:encoded_images_total", "counter", "Images encoded.", each("encoded_images"))
        series("tierline:steps_total", "counter", "Iterations.", each("steps"))
        series("tierline:role_switches_total", "counter", "Role changes shown by a batch.", each("role_switches"))
        for key, text in (
            ("moves", "Requests moved."),
            ("moves_failed", "Moves that failed."),
            ("instances_lost", "Losses."),
            ("role_changes", "Roles set by the policy."),
            ("group_changes", "Groups set by the policy."),
            ("instances_started", "Instances asked for by the policy."),
            ("instances_stopped", "Instances ended by the policy."),
            ("instance_sleeps", "Sleeps: memory given up, weights kept on the host."),
            ("instance_wakes", "Sleeps that ended with a first batch."),
            ("refusals", "Changes that a limit barred."),
        ):
            series(f"tierline:{key}_total", "counter", text, [("", status["counts"].get(key, 0))])
        roles = [(f'{{instance="{one["name"]}",roles="{one["roles"]}"}}', 1.0) for one in status["instances"]]
        series("tierline:instance_roles", "gauge", "Roles of each instance.", roles)
        groups = [(f'{{instance="{one["name"]}",group="{one["group"]}"}}', 1.0) for one in status["instances"]]
        series("tierline:instance_group", "gauge", "Whom each instance serves.", groups)
        states = [(f'{{instance="{one["name"]}",state="{one["state"]}"}}', 1.0) for one in status["instances"]]
        series("tierline:instance_state", "gauge", "Awake, asleep or on the way to either, or to its end.", states)
        series("tierline:wake_seconds", "gauge", "Last waking until its first batch.", each("wake_seconds"))
        series("tierline:switch_seconds", "gauge", "Last role change until its first batch.", each("switch_seconds"))
        series("tierline:requests_unplaced", "gauge", "Requests without an instance.", [("", status["waiting"])])
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        """End the instances; what is live fails with one sentence."""
        self._driver.close("The server is shutting down.")
        self.failed("The server is shutting down.")
        self._ended.set()
        self._instances.close()
        self._end_clock()
        self._thread.join()
        if self._ticker.is_alive():
            self._ticker.join()
        if self._end_record is not None:
            self._end_record()


def _failure(error: BaseException) -> str:
    return f"The serving loop has failed ({type(error).__name__}: {error})."
