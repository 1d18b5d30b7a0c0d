"""Prometheus metrics of the front door under vLLM's names, so that its dashboards and benchmarks read them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tierline.core.errors import MissingExtra
from tierline.core.request import FinishReason
from tierline.server.openai.last_minute import LastMinute

if TYPE_CHECKING:
    from prometheus_client import Histogram

FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip


class FrontMetrics:
    """A registry of its own, so that several front doors can live in one process."""

    def __init__(self, model_name: str, context_tokens: int) -> None:
        """Raises `MissingExtra` without prometheus-client."""
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingExtra("The OpenAI front door", "serve") from error
        self._registry = registry = CollectorRegistry()
        self.last_minute = LastMinute()
        label = ("model_name",)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, label, registry=registry).labels(model_name)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, label, registry=registry).labels(model_name)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"vllm:{name}", text, label, registry=registry, buckets=buckets).labels(model_name)

        lengths = _lengths(context_tokens)
        self.running = gauge("num_requests_running", "Requests whose first token was made.")
        self.waiting = gauge("num_requests_waiting", "Requests that wait for their first token.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of accepted requests.")
        self.cached_tokens = counter("prompt_tokens_cached", "Prompt tokens whose KV was found in a cache.")
        self.generation_tokens = counter("generation_tokens", "Tokens made.")
        self.first_token_s = histogram("time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN_S)
        self.token_s = histogram("inter_token_latency_seconds", "Between tokens.", TOKEN_S)
        self.per_token_s = histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of a request.", TOKEN_S
        )
        self.request_s = histogram("e2e_request_latency_seconds", "From arrival to the end.", REQUEST_S)
        self.request_prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", lengths)
        self.request_generation = histogram("request_generation_tokens", "Tokens made for a request.", lengths)
        self.request_n = histogram("request_params_n", "Choices asked for.", (1, 2, 5, 10, 20))
        self.request_max_tokens = histogram("request_params_max_tokens", "max_tokens asked for.", lengths)
        ended = Counter("vllm:request_success", "Ended requests.", (*label, "finished_reason"), registry=registry)
        self.ended = {reason: ended.labels(model_name, reason) for reason in ("stop", "length", "abort", "error")}
        self._refused = Counter(
            "vllm:admission_rejections", "Requests that were not accepted.", (*label, "status"), registry=registry
        )
        self._model_name = model_name
        images = Counter(
            "tierline:front_images",
            "Images by what they cost: known, hashed, decoded.",
            (*label, "cost"),
            registry=registry,
        )
        self.images = {cost: images.labels(model_name, cost) for cost in ("known", "hashed", "decoded")}

    def refuse(self, status: int) -> None:
        self._refused.labels(self._model_name, str(status)).inc()

    def text(self) -> str:
        from prometheus_client import generate_latest

        return generate_latest(self._registry).decode()


class Timing:
    """One choice of one request, from its acceptance to its end, whichever that is."""

    def __init__(
        self, metrics: FrontMetrics, arrived_s: float, prompt_tokens: int, *, has_images: bool = False
    ) -> None:
        self._metrics = metrics
        self._has_images = has_images
        self._arrived_s = arrived_s
        self._first_s = 0.0
        self._last_s = 0.0
        self._prompt_tokens = prompt_tokens
        self._tokens = 0
        self._ended = False
        metrics.waiting.inc()
        metrics.prompt_tokens.inc(prompt_tokens)

    def made(self, tokens: int) -> None:
        """So many tokens came in one message: the time since the last one is shared among them."""
        if not tokens:
            return
        now_s = time.perf_counter()
        metrics = self._metrics
        if self._first_s == 0:
            self._first_s = now_s
            metrics.first_token_s.observe(now_s - self._arrived_s)
            metrics.waiting.dec()
            metrics.running.inc()
        else:
            _observe(metrics.token_s, (now_s - self._last_s) / tokens, tokens)
        self._last_s = now_s
        self._tokens += tokens
        metrics.generation_tokens.inc(tokens)

    def end(self, finish: FinishReason, cached_tokens: int) -> None:
        """Counts once; a second call says nothing new."""
        if self._ended:
            return
        self._ended = True
        metrics = self._metrics
        (metrics.running if self._first_s else metrics.waiting).dec()
        metrics.ended[finish].inc()
        metrics.cached_tokens.inc(cached_tokens)
        metrics.request_s.observe(time.perf_counter() - self._arrived_s)
        metrics.request_prompt.observe(self._prompt_tokens)
        metrics.request_generation.observe(self._tokens)
        per_token_s = math.nan
        if self._tokens > 1:
            per_token_s = (self._last_s - self._first_s) / (self._tokens - 1)
            metrics.per_token_s.observe(per_token_s)
        first_s = self._first_s - self._arrived_s if self._first_s else math.nan
        metrics.last_minute.ended(self._has_images, first_s, per_token_s, finish in ("stop", "length"))


def _observe(histogram: Histogram, value: float, times: int) -> None:
    for _ in range(times):
        histogram.observe(value)


def _lengths(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, … up to `most`."""
    found: list[float] = []
    step = 1
    while step <= most:
        found += [step * factor for factor in (1, 2, 5) if step * factor <= most]
        step *= 10
    return tuple(found)
