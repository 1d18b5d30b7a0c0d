"""PyTorch programs to share a GPU with: a training loop and an inference server, on CUDA, or tiny ones on the CPU.

    python gpu_programs.py train --model conv --how graphs --steps 20
    python gpu_programs.py serve --how compile --rate 150 --seconds 5 --json serve.json
    python gpu_programs.py check --how eager --steps 12 --deterministic

A training is a small conv net or a stack of transformer blocks in bfloat16 under AdamW. A server answers requests one by
one: open loop with Poisson arrivals (`--rate`), or back to back. `--how` says how the work reaches the device: `eager`,
`graphs` (a whole step, or a whole request, is one CUDA graph) or `compile` (torch.compile). `check` gives the losses
of both trainings and a server's answers, to be compared between runs; `--deterministic` makes them repeatable. Data are
random with a fixed seed; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_models import SIZES, Blocks, ConvNet, Size
from torch.nn import functional

HOWS = ("eager", "graphs", "compile")
MODELS = ("conv", "transformer")
WARM_UP = 3
POOL = 8  # batches that are drawn once and used in turn
SYNC_EVERY = 4  # steps between two looks at the loss, as a training that logs has them


def check_how(how: str, device: str) -> None:
    if how == "graphs" and device != "cuda":
        raise SystemExit("gpu_programs.py: --how graphs needs --device cuda: CUDA graphs are not to be had elsewhere.")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "gpu_programs.py: --device cuda, but torch finds no CUDA device; try --device cpu --size tiny."
        )


def synchronize(device: str) -> None:
    """Waits for this thread's own stream only, so that threads of one process do not wait for each other's work."""
    if device == "cuda":
        torch.cuda.current_stream().synchronize()


class Training:
    """One training run. `prepare` builds, warms up and captures or compiles; then each `step` is one optimizer step."""

    def __init__(self, model: str, how: str, device: str, size: Size, seed: int) -> None:
        self.kind, self.how, self.device, self.size, self.seed = model, how, device, size, seed
        self.steps = 0
        self._loss = torch.zeros(())

    def prepare(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = (
                ConvNet(self.size)
                if self.kind == "conv"
                else Blocks(self.size.width, self.size.layers, self.size.classes)
            )
        self.model = model.to(self.device, torch.bfloat16)
        if self.kind == "conv" and self.device == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, capturable=self.device == "cuda")
        self.pool = [self._batch(draw) for _ in range(POOL)]
        self.inputs, self.labels = (tensor.clone() for tensor in self.pool[0])
        self._forward: Callable[..., torch.Tensor] = self._loss_of
        if self.how == "compile":
            self._forward = torch.compile(self._loss_of, dynamic=False)
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        if self.how == "graphs":
            self._capture()
        else:
            for _ in range(WARM_UP):
                self._plain_step()
        synchronize(self.device)
        self._restore(before)

    def step(self) -> None:
        """Queues one step; the device may still be at it when this returns."""
        inputs, labels = self.pool[self.steps % POOL]
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        if self.how == "graphs":
            self.graph.replay()
        else:
            self._plain_step()
        self.steps += 1

    def loss(self) -> float:
        """Of the last step; waits for it."""
        return float(self._loss.item())

    def _batch(self, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.size
        conv = (size.conv_batch, 3, size.image, size.image)
        shape = conv if self.kind == "conv" else (size.train_batch, size.tokens, size.width)
        inputs = torch.randn(shape, generator=draw).to(self.device, torch.bfloat16)
        if self.kind == "conv" and self.device == "cuda":
            inputs = inputs.to(memory_format=torch.channels_last)
        return inputs, torch.randint(size.classes, shape[:1], generator=draw).to(self.device)

    def _loss_of(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.model(inputs).float(), labels)

    def _plain_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._forward(self.inputs, self.labels)
        loss.backward()
        self.optimizer.step()
        self._loss = loss.detach()

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._plain_step()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)  # so that the captured backward writes gradients, not adds to them
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=side):
            loss = self._forward(self.inputs, self.labels)
            loss.backward()
            self.optimizer.step()
            self._loss = loss.detach()

    def _restore(self, before: dict[str, torch.Tensor]) -> None:
        """As before the warm-up, in place: a captured graph keeps its addresses."""
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(before[name])
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()
        synchronize(self.device)


class Server:
    """One model that answers requests one by one. `request` returns when its answer is there."""

    def __init__(self, how: str, device: str, size: Size, seed: int) -> None:
        self.how, self.device, self.size, self.seed = how, device, size, seed
        self.requests = 0

    @torch.inference_mode()
    def prepare(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Blocks(self.size.serve_width, self.size.serve_layers, self.size.classes)
        self.model = model.to(self.device, torch.bfloat16).eval()
        shape = (self.size.serve_batch, min(self.size.tokens, 128), self.size.serve_width)
        self.pool = [torch.randn(shape, generator=draw).to(self.device, torch.bfloat16) for _ in range(POOL)]
        self.inputs = self.pool[0].clone()
        self._forward: Callable[..., torch.Tensor] = self.model
        if self.how == "compile":
            self._forward = torch.compile(self.model, dynamic=False)
        if self.how == "graphs":
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._forward(self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=side):
                self.answer = self._forward(self.inputs)
        for _ in range(WARM_UP):
            self.request()
        self.requests = 0

    @torch.inference_mode()
    def request(self) -> torch.Tensor:
        self.inputs.copy_(self.pool[self.requests % POOL])
        if self.how == "graphs":
            self.graph.replay()
        else:
            self.answer = self._forward(self.inputs)
        synchronize(self.device)
        self.requests += 1
        return self.answer


def answers_of(server: Server, requests: int) -> dict[str, Any]:
    """What the first requests are answered: a digest of all values, and their sum for a comparison with a tolerance."""
    values = [server.request().float().cpu() for _ in range(requests)]
    joined = torch.stack(values)
    return {
        "requests": requests,
        "digest": hashlib.sha256(joined.numpy().tobytes()).hexdigest()[:16],
        "sums": [float(value.double().abs().sum()) for value in values],
    }


def steps_of(training: Training, steps: int) -> list[float]:
    """The losses of the first steps, each waited for."""
    losses = []
    for _ in range(steps):
        training.step()
        losses.append(training.loss())
    return losses


def train_for(training: Training, began_s: float, ended_s: float) -> dict[str, Any]:
    """Train until `ended_s` (of time.monotonic); what is done before `began_s` does not count.

    `seconds` runs from the end of a step to the end of a step, so that steps over seconds is a rate."""
    while time.monotonic() < began_s:
        training.step()
        training.loss()
    training.step()
    first_loss = training.loss()
    steps, start_s = 0, time.monotonic()
    while time.monotonic() < ended_s:
        for _ in range(SYNC_EVERY):
            training.step()
        last_loss = training.loss()
        steps += SYNC_EVERY
        seconds = time.monotonic() - start_s
    if not steps:  # one step outlasted the window
        return {"steps": 0, "seconds": ended_s - began_s, "first_loss": first_loss, "last_loss": first_loss}
    return {"steps": steps, "seconds": seconds, "first_loss": first_loss, "last_loss": last_loss}


def arrivals_s(rate: float, seconds: float, seed: int) -> list[float]:
    """Poisson arrivals of `rate` a second within `seconds`."""
    draw, at_s, times = random.Random(seed), 0.0, []
    while (at_s := at_s + draw.expovariate(rate)) < seconds:
        times.append(at_s)
    return times


def serve_for(server: Server, began_s: float, ended_s: float, rate: float, seed: int) -> dict[str, Any]:
    """Serve until `ended_s`; requests that came before `began_s` do not count. `rate` 0: the next comes when one ends.

    A latency runs from the request's arrival, so it holds the time in the queue. A request without an answer at the end
    counts with the time it had waited by then, and as `unserved`."""
    started_s = time.monotonic()
    if not rate:
        while time.monotonic() < began_s:
            server.request()
        latencies, start_s = [], time.monotonic()
        before_s = start_s
        while before_s < ended_s:
            server.request()
            now_s = time.monotonic()
            latencies.append(now_s - before_s)
            before_s = now_s
        return {"latencies_s": latencies, "served": len(latencies), "seconds": before_s - start_s, "unserved": 0}
    # Two draws: the settling may begin late, the requests that count are the same in every run.
    settling = [started_s + at_s for at_s in arrivals_s(rate, max(began_s - started_s, 0.0), seed + 1)]
    counted = [began_s + at_s for at_s in arrivals_s(rate, ended_s - began_s, seed)]
    latencies, served = [], 0
    for arrival_s in settling + counted:
        if (ahead_s := arrival_s - time.monotonic()) > 0:
            time.sleep(ahead_s)
        if time.monotonic() < ended_s:
            server.request()
            served += arrival_s >= began_s
        if arrival_s >= began_s:
            latencies.append(time.monotonic() - arrival_s)
    return {
        "latencies_s": latencies,
        "served": served,
        "seconds": ended_s - began_s,
        "unserved": len(counted) - served,
    }


def check(how: str, device: str, size: Size, seed: int, steps: int) -> dict[str, Any]:
    """Losses of both trainings and a server's answers, one after another."""
    losses = {}
    for model in MODELS:
        training = Training(model, how, device, size, seed)
        training.prepare()
        losses[model] = steps_of(training, steps)
    server = Server(how, device, size, seed)
    server.prepare()
    return {"losses": losses, "answers": answers_of(server, min(steps, POOL))}


def be_deterministic() -> None:
    """So that the same program gives the same losses. CUBLAS_WORKSPACE_CONFIG=:4096:8 belongs to it on CUDA."""
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=("train", "serve", "check"))
    parser.add_argument("--how", choices=HOWS, default="eager")
    parser.add_argument("--model", choices=MODELS, default="conv", help="of a training (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="so many steps or requests instead, losses in the output")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0 = back to back (default)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    check_how(options.how, options.device)
    if options.deterministic:
        be_deterministic()
    size, began_s = SIZES[options.size], time.monotonic()
    found: dict[str, Any] = {"program": options.program, "how": options.how, "torch": torch.__version__}
    if options.program == "check":
        found |= check(options.how, options.device, size, options.seed, options.steps or POOL)
    elif options.program == "train":
        training = Training(options.model, options.how, options.device, size, options.seed)
        training.prepare()
        found |= {"model": options.model, "prepared_s": time.monotonic() - began_s}
        now_s = time.monotonic()
        if options.steps:
            found["losses"] = steps_of(training, options.steps)
        else:
            found |= train_for(training, now_s, now_s + options.seconds)
    else:
        server = Server(options.how, options.device, size, options.seed)
        server.prepare()
        found["prepared_s"] = time.monotonic() - began_s
        now_s = time.monotonic()
        if options.steps:
            found["answers"] = answers_of(server, options.steps)
        else:
            found |= serve_for(server, now_s, now_s + options.seconds, options.rate, options.seed)
    text = json.dumps(found)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)


if __name__ == "__main__":
    main()
