"""The OpenAI front door over one model: `create_app`, and the routes that only tell."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from tierline import __version__
from tierline.core.serving_contracts import Generator, ModelText
from tierline.server.openai.errors import ApiError, as_api_error, unknown_model
from tierline.server.openai.fetch import Fetcher
from tierline.server.openai.gate import Front, Gate
from tierline.server.openai.images import ImageReader
from tierline.server.openai.inference import Inference, Service
from tierline.server.openai.keys import Keys
from tierline.server.openai.metrics import FrontMetrics
from tierline.server.openai.options import FrontOptions
from tierline.server.openai.pixels import Pixels
from tierline.server.openai.prepare import Preparer, decoded
from tierline.server.openai.schemas import DetokenizeBody, TokenizeBody
from tierline.server.openai.threads import Threads
from tierline.server.openai.wire import ClientGone, Held, Hold, read_body

Lifespan = Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]
TOKENIZE = msgspec.json.Decoder(TokenizeBody)
DETOKENIZE = msgspec.json.Decoder(DetokenizeBody)
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    text: ModelText,
    generator: Generator,
    options: FrontOptions | None = None,
    *,
    lifespan: Lifespan | None = None,
    fetcher: Fetcher | None = None,
) -> FastAPI:
    """The front door of `generator`. `lifespan` begins and ends what belongs to it, on the server's event loop; `fetcher`
    stands in for the one that fetches images from the network. Raises `InvalidInput` for an unusable keys file,
    `MissingExtra` without the extra `serve`.

    `app.state.front` tells and sets whether requests are taken (`run` ends a server with it).
    """
    options = options or FrontOptions()
    front, keys = Front(), Keys(options.api_keys, options.keys_file, options.requests_per_minute)
    metrics = FrontMetrics(text.model.name, text.model.context_tokens)
    reader = ImageReader(options.images)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    readers = Threads("reader", options.readers or min(8, max(2, cores)), options.max_waiting_jobs)
    decoders = Threads("decoder", options.decoders or min(16, max(2, cores)), options.max_waiting_jobs)
    fetcher = fetcher or Fetcher(options.images)
    pixels = Pixels(reader, options.images, generator, fetcher, readers, decoders, metrics)
    preparer = Preparer(text, reader, options)
    service = Service(text, generator, options, front, metrics, Held(options.max_held_bytes), preparer, pixels, readers)

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with lifespan(app) if lifespan is not None else contextlib.nullcontext():
                yield
        finally:
            await fetcher.aclose()
            readers.close()
            decoders.close()

    app = FastAPI(
        title="Tierline", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=living
    )
    app.state.front = front
    app.state.options = options
    app.router.routes += [
        Route("/v1/chat/completions", Inference(service, "chat"), methods=["POST"]),
        Route("/v1/completions", Inference(service, "completion"), methods=["POST"]),
    ]
    _add_error_handlers(app, options)
    _add_model_routes(app, service)
    _add_health_routes(app, service)
    app.add_middleware(Gate, front=front, keys=keys, origins=options.cors_origins, hosts=options.hosts)
    if options.cors_origins:  # before the gate: a browser asks first, and without its key
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(CORSMiddleware, allow_origins=options.cors_origins, allow_methods=["*"], allow_headers=["*"])
    return app


def _add_error_handlers(app: FastAPI, options: FrontOptions) -> None:
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer(as_api_error(error, options.overload_status))

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: Exception) -> Response:
        return answer(as_api_error(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}."
        found = answer(ApiError(error.status_code, message, code="not_found" if error.status_code == 404 else None))
        for name, value in (error.headers or {}).items():
            found.headers[name] = value
        return found


def answer(error: ApiError) -> Response:
    found = Response(error.body(), error.status)
    for name, value in error.headers():
        found.headers[name.decode()] = value.decode()
    return found


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _add_model_routes(app: FastAPI, service: Service) -> None:
    text, model = service.text, service.text.model
    created = int(time.time())

    def card() -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": created,
            "owned_by": "tierline",
            "root": model.name,
            "parent": None,
            "max_model_len": model.context_tokens,
        }

    async def body_of(request: Request) -> bytes:
        hold = Hold(service.held)
        try:
            options = service.options
            return await read_body(request.scope, request.receive, options.max_body_bytes, options.body_timeout_s, hold)
        finally:
            hold.give_all()

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [card()]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name != model.name:
            raise unknown_model(name, model.name)
        return _json(card())

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        """Of `prompt` or `messages`: {"count", "max_model_len", "tokens", "token_strs"}."""
        body = decoded(TOKENIZE, await body_of(request))
        tokens = await service.readers.run(service.preparer.tokenize, body)
        names = [text.token_text(token)[0] for token in tokens] if body.return_token_strs else None
        return _json(
            {"count": len(tokens), "max_model_len": model.context_tokens, "tokens": tokens, "token_strs": names}
        )

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        """Of `tokens`: {"prompt"}, special tokens included."""
        body = decoded(DETOKENIZE, await body_of(request))
        service.preparer.check_model(body.model)
        tokens = service.preparer.checked(body.tokens, "tokens")
        return _json({"prompt": await service.readers.run(_decode, text, tokens)})


def _decode(text: ModelText, tokens: list[int]) -> str:
    return text.decode(tokens, skip_special_tokens=False)


def _add_health_routes(app: FastAPI, service: Service) -> None:
    front, generator = service.front, service.generator

    async def ill() -> str:
        return "The server is ending." if front.draining else await generator.health()

    @app.get("/health")
    @app.get("/ping")
    @app.post("/ping")
    async def health() -> Response:
        """200 with an empty body while requests are served, else 503 with the reason."""
        why = await ill()
        if why:
            return answer(ApiError(503, why, "server_error", code="unhealthy", retry_after_s=1))
        return Response(status_code=200)

    @app.get("/version")
    async def version() -> Response:
        return _json({"version": __version__})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text() + generator.metrics_text(), media_type=METRICS_TYPE)

    @app.get("/tierline/requests")
    async def requests(name: str = Query("", alias="id")) -> Response:
        """What is known of the requests of this name."""
        return _json({"requests": generator.find(name)})

    @app.get("/tierline/status")
    async def status() -> Response:
        told = generator.status()
        told["front"] = {
            "version": __version__,
            "model": service.text.model.name,
            "health": await ill(),
            "draining": front.draining,
            "answers_under_way": len(front.watches),
            "held_bytes": service.held.taken,
            "last_minute": service.metrics.last_minute.told(),
        }
        return _json(told)
