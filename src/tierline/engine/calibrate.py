"""Measures what this machine's engine takes for a model's stages, and makes a serving profile of it.

An instance without peers runs scenes: some sequences decode, prompts come in beside them, and every iteration is timed as it
is run: decision, model, draw, and the word of what it gave to the server's socket. Shapes are drawn over the whole range,
so that no part of an iteration hides behind another.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import zmq
from PIL import Image
from scipy.optimize import nnls

from tierline.core.errors import InvalidInput
from tierline.core.instance_actions import Tell
from tierline.core.instance_events import InstanceEvent, RequestCancelled, RequestQueued
from tierline.core.request import Picture, Request, Sampling, TokenLogprob
from tierline.engine import wire
from tierline.engine.build import Built, build, device_label
from tierline.engine.calibrate_overlap import Iteration, measure_overlap
from tierline.engine.families import image_layout_of
from tierline.engine.families.text import TextFamily
from tierline.engine.instance import Payload
from tierline.engine.pace import shape_of
from tierline.engine.settings import InstanceSettings
from tierline.engine.transfer import SharedMemory
from tierline.perf.device_times import times_of
from tierline.perf.linear_fit import Measured, MeasuredImage, fit_linear
from tierline.perf.model_shapes import patches_per_token
from tierline.perf.serving_profile import (
    FORMAT,
    Advice,
    Fit,
    Memory,
    Overhead,
    Preparation,
    ServingProfile,
    Transfer,
)
from tierline.perf.table_profile import advise

MOST_DECODES = 64
LONGEST_CONTEXT = 1024
OUTPUT_TOKENS = 64
DECODE_STEPS = 4  # measured of each scene's decodes alone
HELD_OUT = 5  # every so manieth scene is not fitted to, but predicted
ENOUGH_ITERATIONS, MOST_ITERATIONS = 40, 6000
IMAGE_SHARE = 0.25  # of the time,
OVERLAP_SHARE = 0.1  # and again for images beside iterations
OVERLAP_SIDE, OVERLAP_DECODES, OVERLAP_CONTEXT = 672, 16, 128
ITERATED = 0.95  # of all that is to be done, when only images beside iterations are left
SIDES = (112, 224, 336, 448, 672, 896)  # of pictures, in pixels
MOST_IMAGES = 40
COPIES = 5
NEVER = float("inf")

Report = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """`seconds`: about how long iterations and images are measured for; loading comes on top."""

    seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `InvalidInput`."""
        if not 1.0 <= self.seconds <= 3600.0:
            raise InvalidInput(f"--seconds {self.seconds:g}: 1 to 3600 is allowed.")


class _Alone:
    """The port of an instance that has no peers; what it tells goes over a socket file, as to a server."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        server = self._context.socket(zmq.PUSH)
        for socket in (self._inbox, server):
            socket.set_hwm(0)
        self._inbox.bind(f"ipc://{folder}/server")
        server.connect(f"ipc://{folder}/server")
        self._teller = wire.Teller("calibration", server)

    def send(self, peer: str, event: InstanceEvent, payload: Payload) -> None:
        raise AssertionError("it has no peers")

    def tell(self, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        self._teller.tell(message, logprobs)

    def flush(self) -> None:
        self._teller.flush()

    def forget(self) -> None:
        """Nobody wants to know what was told."""
        while self._inbox.poll(0):
            self._inbox.recv_multipart()

    def close(self) -> None:
        self._context.destroy(linger=0)


def calibrate(settings: InstanceSettings, model: str, options: CalibrationOptions, report: Report) -> ServingProfile:
    """Measure the model of `settings`, which the profile calls `model`; `report` is told the share that is done, and what is
    done now. Raises `InvalidInput`."""
    report(0.0, "loading the model")
    # Every prompt shall be computed, and no other device be played.
    settings = replace(settings, prefix_caching=False, pace="", name="calibration")
    with ExitStack() as ends:
        port = _Alone(Path(ends.enter_context(TemporaryDirectory(prefix="tierline-calibrate-"))))
        ends.callback(port.close)
        built = build(settings, port, lambda: None)
        ends.callback(built.instance.close)
        takes_images = built.family.takes_images
        part = 1 - (IMAGE_SHARE + OVERLAP_SHARE) * takes_images
        until = time.monotonic() + options.seconds * part
        scenes = _Scenes(built, port, options.seed)
        number = 0
        while scenes.count < MOST_ITERATIONS and (time.monotonic() < until or len(scenes.fitted) < ENOUGH_ITERATIONS):
            enough = len(scenes.fitted) >= ENOUGH_ITERATIONS  # on a busy machine that comes before the clock
            scenes.run(until if enough else NEVER, held_out=number % HELD_OUT == HELD_OUT - 1, warm=number > 0)
            number += 1
            share = part - max(0.0, until - time.monotonic()) / options.seconds
            report(ITERATED * share, f"iterations: {scenes.count} measured")
        report(ITERATED * part, "images")
        images, preparation = _images(built.family, options.seconds * IMAGE_SHARE, report) if takes_images else ([], [])
        held_out = len(images) // HELD_OUT
        fitted, checked = images[: len(images) - held_out], images[len(images) - held_out :]
        linear = fit_linear(scenes.fitted, fitted)
        report(ITERATED * (1 - OVERLAP_SHARE * takes_images), "transfers")
        limits, kv = built.limits, built.arena
        profile = ServingProfile(
            format=FORMAT,
            device=device_label(settings.device),
            model=model,
            source=f"measured by tierline calibrate serving: {settings.dtype}, {settings.threads} threads, PyTorch "
            f"{torch.__version__}, {scenes.count} iterations, {len(images)} images",
            licence="",
            memory=Memory(
                weights_bytes=built.weights_bytes,
                kv_tokens=limits.blocks * limits.block_tokens,
                kv_token_bytes=2 * kv.keys[:, :, 0, 0].numel() * kv.keys.element_size(),
                embedding_token_bytes=built.family.embedding.weight.shape[-1] * kv.keys.element_size(),
            ),
            transfer=_transfers(built),
            preparation=Preparation(*preparation),
            overhead=Overhead(),  # what was measured has it in it
            advice=Advice(0, 0.0, 0.0, 0.0, 0.0, 0.0, ""),
            fit=Fit(0, 0.0, 0.0),
            linear=linear,
            patches_per_token=patches_per_token(built.family.config.to_dict()),
        )
        times = times_of(profile)
        advice = advise(times, profile.patches_per_token if takes_images else 0)
        overlap = None
        if takes_images:
            report(ITERATED, "images beside iterations")
            overlap = measure_overlap(
                built.family,
                _picture(OVERLAP_SIDE),
                scenes.decodes(OVERLAP_DECODES),
                scenes.prompt(2 * advice.tipping_tokens),  # bound by arithmetic alone
                advice.tipping_tokens,
                time.monotonic() + options.seconds * OVERLAP_SHARE,
                lambda turns: report(ITERATED, f"images beside iterations: {turns} turns"),
            )
    errors = [abs(times.iteration_s(each.batch) / each.seconds - 1) for each in scenes.held_out]
    image_errors = [abs(times.encode_s((each.patches,)) / each.seconds - 1) for each in checked]
    fit = Fit(len(errors), *_spread(errors), len(image_errors), *_spread(image_errors))
    report(1.0, "done")
    return replace(profile, fit=fit, advice=advice, overlap=overlap)


def _spread(errors: Sequence[float]) -> tuple[float, float]:
    if not errors:
        return 0.0, 0.0
    return float(np.median(errors)), float(np.percentile(errors, 95))


class _Scenes:
    """Iterations of drawn shapes. `fitted` and `held_out`: those measured."""

    def __init__(self, built: Built, port: _Alone, seed: int) -> None:
        self._built = built
        self._port = port
        self._rng = np.random.default_rng(seed)
        self._requests = 0
        self._running: list[str] = []
        self.fitted: list[Measured] = []
        self.held_out: list[Measured] = []

    @property
    def count(self) -> int:
        return len(self.fitted) + len(self.held_out)

    def run(self, until: float, held_out: bool, warm: bool) -> None:
        """One scene, cut short at `until`; kept if `warm`."""
        rng, longest = self._rng, self.longest
        context = round(float(np.exp(rng.uniform(0, np.log(longest)))))
        decodes = round(float(np.exp(rng.uniform(0, np.log(self._room(context)))))) if rng.random() < 0.8 else 0
        into = (self.held_out if held_out else self.fitted) if warm else []
        for _ in range(decodes):
            self._ask(max(1, int(context * rng.uniform(0.7, 1.3))), OUTPUT_TOKENS)
        self._prefill(until, into)
        for _ in range(DECODE_STEPS * bool(decodes)):
            self._step(until, into)
        for _ in range(4):
            tokens = round(float(np.exp(rng.uniform(0, np.log(longest)))))
            self._ask(tokens, 1)
            if rng.random() < 0.3:
                self._ask(max(1, tokens // 2), 1)
            self._prefill(until, into)
        self._end()

    @property
    def longest(self) -> int:
        """Tokens of a prompt, or of the context of a decode."""
        return max(1, min(LONGEST_CONTEXT, self._built.limits.context_tokens - 2 * OUTPUT_TOKENS))

    def decodes(self, most: int) -> Iteration:
        """Of so many sequences that decode, or as many as there is room for."""
        context = min(OVERLAP_CONTEXT, self.longest)
        count = min(most, self._room(context))

        def run() -> float:
            if self._built.instance.due is None:
                for _ in range(count):
                    self._ask(context, OUTPUT_TOKENS)
                self._prefill(NEVER, [])
            return self._seconds()

        return Iteration(count, run)

    def prompt(self, tokens: int) -> Iteration:
        """Of a prompt of so many tokens, or as many as an iteration may have."""
        tokens = min(tokens, self.longest, self._built.limits.token_budget)

        def run() -> float:
            self._end()
            self._ask(tokens, 1)
            return self._seconds()

        return Iteration(tokens, run)

    def _seconds(self) -> float:
        """Of an iteration that is due."""
        into: list[Measured] = []
        self._step(NEVER, into)
        return into[0].seconds

    def _room(self, context: int) -> int:
        """Sequences of so much context that may decode at a time, a prompt as long beside them."""
        limits = self._built.limits
        room = limits.blocks * limits.block_tokens // (2 * (context + OUTPUT_TOKENS + limits.block_tokens))
        return max(1, min(MOST_DECODES, limits.sequence_limit - 1, room))

    def _end(self) -> None:
        """Nothing runs any more."""
        for name in self._running:
            self._built.instance.deliver(RequestCancelled(name))
        self._running = []
        while self._built.instance.has_step:
            self._built.instance.step()

    def _ask(self, tokens: int, output: int) -> None:
        vocabulary = self._built.family.config.get_text_config().vocab_size
        name = f"c{self._requests}"
        self._requests += 1
        prompt = tuple(self._rng.integers(0, vocabulary, tokens).tolist())
        image_token = getattr(self._built.family.config, "image_token_id", None)
        prompt = tuple(0 if token == image_token else token for token in prompt)
        sampling = Sampling(output, temperature=0.0, ignore_eos=True)
        self._built.instance.deliver(RequestQueued(Request(name, prompt, sampling), ()))
        self._running.append(name)

    def _prefill(self, until: float, into: list[Measured]) -> None:
        """Run and time iterations until every prompt is computed, or the time is over."""
        while self._waiting() and self._step(until, into):
            pass

    def _waiting(self) -> bool:
        """Whether a prompt is not computed yet."""
        due = self._built.instance.due
        if due is None:
            return False
        return self._built.scheduler.status().waiting > 0 or bool(shape_of(due).chunks)

    def _step(self, until: float, into: list[Measured]) -> bool:
        """Run and time an iteration; False when there is none, or the time is over."""
        due = self._built.instance.due
        if due is None or time.monotonic() > until:
            return False
        batch = shape_of(due)
        begun = time.perf_counter()
        self._built.instance.collect()
        self._built.instance.step()
        self._port.flush()
        into.append(Measured(batch, time.perf_counter() - begun))
        self._port.forget()
        return True


def _images(family: TextFamily, seconds: float, report: Report) -> tuple[list[MeasuredImage], list[float]]:
    """Pictures through preprocessing and encoder, as the encoder lane runs them; and what decoding their JPEG files takes, as
    (seconds an image, seconds a patch)."""
    layout = image_layout_of(family.config, family.folder)
    assert layout is not None, "a family that takes images lays them out"
    merged = patches_per_token(family.config.to_dict())
    found: list[MeasuredImage] = []
    files: list[tuple[float, float]] = []
    until = time.monotonic() + seconds
    for number in range(MOST_IMAGES + 1):
        side = SIDES[number % len(SIDES)]
        tokens = layout(side, side)
        patches = merged * tokens.tokens.count(tokens.image_token)
        picture = _picture(side)
        begun = time.perf_counter()
        with torch.inference_mode():
            family.encode([picture])[0].cpu()
        if number:  # the first warms up
            found.append(MeasuredImage(patches, time.perf_counter() - begun))
        packed = io.BytesIO()
        Image.frombytes("RGB", (side, side), picture.rgb).save(packed, "JPEG", quality=90)
        begun = time.perf_counter()
        Image.open(io.BytesIO(packed.getvalue())).convert("RGB").tobytes()
        files.append((float(patches), time.perf_counter() - begun))
        if time.monotonic() > until and len(found) >= len(SIDES):
            break
        left = max(0.0, until - time.monotonic()) / seconds
        report(ITERATED * (1 - OVERLAP_SHARE - IMAGE_SHARE * left), f"images: {len(found)} measured")
    if len({patches for patches, _ in files}) < 3:
        return found, [float(np.median([taken for _, taken in files])), 0.0]
    return found, list(_line(files))


def _picture(side: int) -> Picture:
    """A square picture of coarse noise."""
    pixels = np.random.default_rng(side).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return Picture(f"noise {side}", side, side, Image.fromarray(pixels).resize((side, side)).tobytes())


def _transfers(built: Built) -> Transfer:
    """KV blocks out of the arena, through shared memory and back into it, and two messages between processes."""
    arena, sizes = built.arena, [1, 4, 16, 64, 256]
    points: list[tuple[float, float]] = []
    shm = Path("/dev/shm")
    with TemporaryDirectory(dir=shm if shm.is_dir() else None, prefix="tierline-calibrate-") as folder:
        carrier = SharedMemory(Path(folder), "a")
        for count in (each for each in sizes if each <= built.limits.blocks):
            for _ in range(COPIES):
                blocks = list(range(count))
                begun = time.perf_counter()
                payload = arena.export(blocks)
                arrived = carrier.unpack(carrier.pack("b", payload))
                assert arrived is not None
                arena.load(blocks, arrived)
                points.append((float(payload.numel()), time.perf_counter() - begun))
        setup_s, byte_s = _line(points)
        hop_s = _message_s(Path(folder))
    return Transfer(setup_s=setup_s + 2 * hop_s, bytes_per_s=1 / max(byte_s, 1e-15))


def _message_s(folder: Path) -> float:
    """A message over a socket file, from one thread's hands to its own."""
    context = zmq.Context()
    try:
        with context.socket(zmq.PULL) as inbox, context.socket(zmq.PUSH) as outbox:
            inbox.bind(f"ipc://{folder}/m")
            outbox.connect(f"ipc://{folder}/m")
            taken = []
            for _ in range(50):
                begun = time.perf_counter()
                outbox.send(b"x" * 200)
                inbox.recv()
                taken.append(time.perf_counter() - begun)
            return float(np.median(taken))
    finally:
        context.destroy(linger=0)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope, neither negative, of the medians at each size, by relative error."""
    sizes = sorted({size for size, _ in points})
    medians = np.array([np.median([taken for other, taken in points if other == size]) for size in sizes])
    features = np.column_stack((np.ones(len(sizes)), np.array(sizes) / sizes[-1])) / medians[:, None]
    found = nnls(features, np.ones(len(sizes)))[0]
    return float(found[0]), float(found[1]) / sizes[-1]
