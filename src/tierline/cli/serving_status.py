"""What a serving deployment says of itself at `/tierline/status`, asked for and typed; for `top` and `why`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from tierline.cli.serving_address import key_headers, root_of
from tierline.core.errors import InvalidInput, RequestLost

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 10.0
Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class InstanceTold:
    """An instance. `state` as in `schedulers/serving_state.py`. Blocks are 0 until it has told of its load, and while it
    sleeps."""

    name: str
    roles: str
    group: str = "shared"
    state: str = "awake"
    reason: str = ""
    prefill_tokens: int = 0
    decoding: int = 0
    encoding: int = 0
    waiting: int = 0
    images: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    role_switches: int = 0
    switch_seconds: float = 0.0
    wake_seconds: float = 0.0
    encoded_images: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0

    @property
    def kv_share(self) -> float:
        """Of its KV blocks so much is in use or kept."""
        return 1.0 - self.free_blocks / self.total_blocks if self.total_blocks else 0.0


@dataclass(frozen=True, slots=True)
class DecisionTold:
    at_ns: int
    subject: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class RequestTold:
    """A request, under way or lately ended. Seconds since it came, None = not yet; `end` "" = it is under way."""

    request_id: str
    client_id: str = ""
    prompt_tokens: int = 0
    images: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    age_s: float = 0.0
    first_s: float | None = None
    took_s: float | None = None
    end: str = ""
    instance: str = ""
    stage: str = ""


@dataclass(frozen=True, slots=True)
class RequestsTold:
    requests: tuple[RequestTold, ...]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds; None where nothing was measured."""

    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class KindTold:
    """Of the last minute, text or image requests."""

    answered_per_s: float = 0.0
    failed_per_s: float = 0.0
    ttft: Percentiles = Percentiles()
    tpot: Percentiles = Percentiles()


@dataclass(frozen=True, slots=True)
class MinuteTold:
    seconds: float = 0.0
    text: KindTold = KindTold()
    images: KindTold = KindTold()


@dataclass(frozen=True, slots=True)
class FrontTold:
    model: str = ""
    version: str = ""
    health: str = ""
    draining: bool = False
    last_minute: MinuteTold = MinuteTold()


@dataclass(frozen=True, slots=True)
class DeploymentTold:
    policy: str = ""
    slo: str = ""
    pace: str = ""


@dataclass(frozen=True, slots=True)
class ServingStatus:
    """All of it, as far as it is shown."""

    instances: tuple[InstanceTold, ...]
    live: int = 0
    waiting: int = 0
    now_ns: int = 0
    deployment: DeploymentTold = DeploymentTold()
    counts: dict[str, int] = field(default_factory=dict)
    decisions: tuple[DecisionTold, ...] = ()
    front: FrontTold = FrontTold()


class ServingClient(AbstractContextManager["ServingClient"]):
    """A server of ours at `url`. Raises `InvalidInput` for what is no address."""

    def __init__(self, url: str, api_key: str = "") -> None:
        import httpx

        self.root = root_of(url)
        self._http = httpx.Client(headers=key_headers(api_key), timeout=TIMEOUT_S, trust_env=False)

    def status(self) -> ServingStatus:
        """Raises `RequestLost` when nobody answers, `InvalidInput` when it is refused or no server of ours."""
        return self._get("/tierline/status", {}, ServingStatus)

    def requests(self, name: str) -> tuple[RequestTold, ...]:
        """Those called so, by their own id, their client's or the answer's; oldest first. Raises as `status` does."""
        return self._get("/tierline/requests", {"id": name}, RequestsTold).requests

    def _get(self, path: str, query: dict[str, str], kind: type[Told]) -> Told:
        import msgspec

        answer = self._told(lambda: self._http.get(self.root + path, params=query))
        if answer.status_code in (401, 403):
            raise InvalidInput(f"{self.root} wants an API key: set $TIERLINE_API_KEY.")
        try:
            if answer.status_code == 200:
                return msgspec.json.decode(answer.content, type=kind)
        except msgspec.MsgspecError:
            pass
        raise InvalidInput(f"{self.root} answered {answer.status_code} to {path}: it is no server of `tierline serve`.")

    def _told(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        import httpx

        try:
            return ask()
        except httpx.ConnectError as error:
            raise RequestLost(f"No server answers at {self.root}: `tierline serve` starts one.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestLost(f"{self.root} did not answer as it should: {error or type(error).__name__}.") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
