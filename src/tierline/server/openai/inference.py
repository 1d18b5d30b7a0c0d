"""The two routes that matter, as plain ASGI applications: body -> prompts -> tokens -> answer or events.

Parsing, hashing, templates and tokenising happen in reader threads, decoding of images in decoder threads; the event loop
moves messages only, so that a burst of images does not hold up the streams beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import structs

from tierline.core.errors import PixelsNeeded, RequestLost
from tierline.core.request import ImageSpan, Picture, Request
from tierline.core.serving_contracts import Generator, ModelText
from tierline.server.openai.answer import Answer, Piece
from tierline.server.openai.errors import ApiError, as_api_error, bad_request
from tierline.server.openai.gate import Front
from tierline.server.openai.metrics import FrontMetrics, Timing
from tierline.server.openai.options import FrontOptions
from tierline.server.openai.pixels import Pixels
from tierline.server.openai.prepare import Prepared, Preparer
from tierline.server.openai.shapes import ChatShape, CompletionShape, Shape, usage_of
from tierline.server.openai.streams import close, merged
from tierline.server.openai.threads import Threads
from tierline.server.openai.wire import (
    DONE,
    ClientGone,
    Held,
    Hold,
    Out,
    Receive,
    Scope,
    Send,
    Watch,
    header,
    read_body,
)
from tierline.server.openai.wish import Wish

log = logging.getLogger(__name__)
TRIES = 3
INLINE_BYTES = 1024
"""Bodies up to this size are parsed on the event loop: a thread would cost more."""


@dataclass(slots=True)
class Service:
    """What the routes share."""

    text: ModelText
    generator: Generator
    options: FrontOptions
    front: Front
    metrics: FrontMetrics
    held: Held
    preparer: Preparer
    pixels: Pixels
    readers: Threads


@dataclass(slots=True)
class Job:
    """One answer to make."""

    answer: Answer
    request: Request
    timing: Timing


class Inference:
    """The ASGI application of one route; `kind` says which."""

    def __init__(self, service: Service, kind: Literal["chat", "completion"]) -> None:
        self._service = service
        self._shape: Callable[..., Shape] = ChatShape if kind == "chat" else CompletionShape
        self._prepare = service.preparer.chat if kind == "chat" else service.preparer.completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        arrived_s, arrived_ns = time.perf_counter(), time.monotonic_ns()
        out = Out(send, [], service.options.send_timeout_s)
        hold = Hold(service.held)
        try:
            _check_type(scope)
            body = await read_body(scope, receive, service.options.max_body_bytes, service.options.body_timeout_s, hold)
            async with Watch(receive) as watch:
                if service.front.draining:
                    raise service.front.refusal()
                service.front.watches.add(watch)
                try:
                    await self._serve(body, scope["state"]["request_id"], arrived_s, arrived_ns, out, hold)
                finally:
                    service.front.watches.discard(watch)
        except ClientGone:
            pass
        except Exception as error:
            await self._fail(out, error, scope["state"]["request_id"])
        finally:
            hold.give_all()

    async def _fail(self, out: Out, error: Exception, request_id: str) -> None:
        told = as_api_error(error, self._service.options.overload_status)
        if told.status == 500:
            log.error("Request %s failed.", request_id, exc_info=error)
        self._service.metrics.refuse(told.status)
        with contextlib.suppress(ClientGone):
            await out.error(told)

    async def _serve(
        self, body: bytes, request_id: str, arrived_s: float, arrived_ns: int, out: Out, hold: Hold
    ) -> None:
        service = self._service
        if len(body) <= INLINE_BYTES:
            prepared = self._prepare(body)
        else:
            prepared = await service.readers.run(self._prepare, body)
        del body
        pictures = await service.pixels.gather(prepared.images, hold)
        jobs = self._jobs(prepared, request_id, arrived_s, arrived_ns)
        shape = self._shape(request_id, service.text, prepared.wish)
        streams = [self._pieces(job, prepared, pictures, hold) for job in jobs]
        both = merged(streams)
        try:
            if prepared.wish.stream:
                await self._tell_events(jobs, both, shape, prepared.wish, out)
            else:
                await self._tell_whole(jobs, both, shape, prepared.wish, out)
        except BaseException as error:
            gone = isinstance(error, (asyncio.CancelledError, ClientGone))
            for job in jobs:
                job.timing.end("abort" if gone else "error", job.answer.cached_tokens)
            raise
        finally:
            await close(both)
            for stream in streams:  # those that were never begun
                await close(stream)

    def _jobs(self, prepared: Prepared, request_id: str, arrived_s: float, arrived_ns: int) -> list[Job]:
        service, wish = self._service, prepared.wish
        model = service.text.model
        sizes = [(image.content_hash, *image.size) for image in prepared.images if image.size is not None]
        assert len(sizes) == len(prepared.images)
        placed: list[tuple[tuple[int, ...], tuple[ImageSpan, ...]]] = []
        for prompt in prepared.prompts:
            try:
                placed.append(
                    service.text.place_images(prompt, sizes) if sizes or model.takes_images else (tuple(prompt), ())
                )
            except Exception as error:
                raise bad_request(str(error), "messages") from error
        base = secrets.token_hex(8)
        asked: list[Request] = []
        for tokens, spans in placed:
            for choice in range(wish.choices):
                sampling = wish.sampling_of(choice, len(tokens), model)
                own = f"{base}-{len(asked)}"
                asked.append(Request(own, tokens, sampling, spans, wish.priority, arrived_ns, client_id=request_id))
        metrics = service.metrics
        metrics.request_n.observe(wish.choices)
        jobs = []
        for index, request in enumerate(asked):  # only now, when nothing is refused any more, are they counted
            metrics.request_max_tokens.observe(request.sampling.max_tokens)
            count, least = len(request.prompt), request.sampling.min_tokens
            timing = Timing(metrics, arrived_s, count, has_images=bool(request.images))
            jobs.append(Job(Answer(service.text, wish, index, count, least), request, timing))
        return jobs

    async def _pieces(
        self, job: Job, prepared: Prepared, pictures: dict[str, Picture], hold: Hold
    ) -> AsyncIterator[Piece]:
        """The answer as it is told. The generator is closed as soon as the answer ends, by itself or by a stop string.
        Pictures that turn out to be needed after all are decoded, and the generator is asked again."""
        answer, told = job.answer, list(job.request.made)
        for _ in range(TRIES):
            stream = self._service.generator.generate(structs.replace(job.request, made=tuple(told)), pictures)
            try:
                async for made in stream:
                    told += made.tokens[len(told) - made.first :]
                    job.timing.made(len(made.tokens))
                    piece = answer.take(made)
                    if piece.finish is not None:
                        await close(stream)
                        job.timing.end(piece.finish, answer.cached_tokens)
                        yield piece
                        return
                    yield piece
                raise RequestLost("The answer broke off.")
            except PixelsNeeded as need:  # also in the middle of the answer, when its instance was lost
                pictures |= await self._service.pixels.decode(prepared.images, need.hashes, hold)
            finally:
                await close(stream)
        raise RequestLost("The embeddings of the request's images were dropped again and again.")

    async def _tell_events(
        self, jobs: Sequence[Job], both: AsyncIterator[tuple[int, Piece]], shape: Shape, wish: Wish, out: Out
    ) -> None:
        opened: set[int] = set()
        early = _Later(self._service.options.headers_after_s, out.start)
        try:
            async for index, piece in both:
                answer = jobs[index].answer
                data = b""
                if index not in opened:
                    early.cancel()
                    opened.add(index)
                    opening = shape.opening(answer)
                    data = b"" if opening is None else b"data: " + opening + b"\n\n"
                usage = None
                if wish.usage_always:
                    usage = usage_of(answer.prompt_tokens, answer.tokens, answer.cached_tokens)
                await out.events(data + b"data: " + shape.chunk(answer, piece, usage) + b"\n\n")
        finally:
            early.cancel()
        last = b"data: " + shape.usage_chunk(_usage(jobs, wish.choices)) + b"\n\n" if wish.usage else b""
        await out.events(last + DONE)
        await out.end()

    async def _tell_whole(
        self, jobs: Sequence[Job], both: AsyncIterator[tuple[int, Piece]], shape: Shape, wish: Wish, out: Out
    ) -> None:
        pieces: list[list[Piece]] = [[] for _ in jobs]
        async for index, piece in both:
            pieces[index].append(piece)
        await out.json(shape.whole([job.answer for job in jobs], pieces, _usage(jobs, wish.choices)))


class _Later:
    """Calls a coroutine function after a while unless cancelled before."""

    def __init__(self, delay_s: float, deed: Callable[[], Any]) -> None:
        self._task: asyncio.Task[None] | None = None
        self._deed = deed
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._deed())

    def cancel(self) -> None:
        self._handle.cancel()


def _usage(jobs: Sequence[Job], choices: int) -> dict[str, Any]:
    """Prompts count once, however many answers they get."""
    firsts = [job.answer for job in jobs[::choices]]
    return usage_of(
        sum(answer.prompt_tokens for answer in firsts),
        sum(job.answer.tokens for job in jobs),
        sum(answer.cached_tokens for answer in firsts),
    )


def _check_type(scope: Mapping[str, Any]) -> None:
    kind = header(dict(scope), b"content-type")
    if kind is not None and kind.split(b";")[0].strip().lower() != b"application/json":
        raise ApiError(415, "The Content-Type must be application/json.", code="unsupported_media_type")
    if header(dict(scope), b"content-encoding") not in (None, b"identity"):
        raise ApiError(415, "A compressed body is not accepted.", code="unsupported_media_type")
