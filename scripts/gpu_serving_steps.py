"""The machine, throughput and memory of the built-in engine on this device: steps of scripts/gpu_serving.py."""

from __future__ import annotations

import gc
import os
import platform
import random
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import gpu_serving_models as models
import torch
from gpu_serving_models import BLOCK_TOKENS, SHAPES, Desk, Engine
from gpu_serving_parity import agreement
from gpu_serving_step import Lacking, Row, Settings, Tell, need_transformers, short, synchronize, timed, version_of

COPY_BYTES = 1 << 31
CROWD = 16  # sequences under way in the memory step


# --- the machine ------------------------------------------------------------------------------------------------------


def probe(settings: Settings, tell: Tell) -> None:
    """What is here. Raises `Lacking` where the device is not."""
    row: Row = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": version_of("transformers"),
        "cores": os.cpu_count(),
        "device": "cpu",
        "devices": 1,
    }
    if settings.on_gpu:
        if not torch.cuda.is_available():
            raise Lacking("torch finds no CUDA device here.")
        properties = torch.cuda.get_device_properties(0)
        row |= {
            "device": properties.name,
            "devices": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": _driver(),
            "copy_bytes_per_s": _copy_rate(settings.torch_device),
        }
    if row["transformers"] is None:
        row["lacks"] = "transformers, so there is no parity, no throughput, no moves and no memory step."
    tell(row)


def _driver() -> str:
    argv = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.splitlines()), "")


def _copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by a large copy on the device."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), device, 5)
    return 2 * COPY_BYTES / statistics.median(seconds)


# --- throughput -------------------------------------------------------------------------------------------------------


def throughput(settings: Settings, tell: Tell) -> None:
    _throughput(settings, tell, settings.shapes[:1])


def large(settings: Settings, tell: Tell) -> None:
    if len(settings.shapes) < 2:
        raise Lacking("a dry run has one shape.")
    _throughput(settings, tell, settings.shapes[1:])


def _throughput(settings: Settings, tell: Tell, shapes: Sequence[str]) -> None:
    """bf16 on a GPU: the engine, the engine with graphs and Transformers' generate, in turns, over the same prompts."""
    need_transformers()
    dtype = torch.bfloat16 if settings.on_gpu else torch.float32
    for shape in shapes:
        family = models.random_family(shape, settings.torch_device, dtype)
        weights = sum(parameter.nbytes for parameter in family.model.parameters())
        length = settings.input_tokens + settings.output_tokens
        blocks = max(settings.batches) * (-(-length // BLOCK_TOKENS) + 1) + 8
        desk = Desk()
        engines = {
            "engine": models.make_engine("plain", family, desk, blocks),
            "engine, CUDA graphs": models.make_engine("graphed", family, desk, blocks, graphs=True),
        }
        for batch in settings.batches:
            _batch(settings, tell, shape, family, engines, batch, weights)
        for engine in engines.values():
            engine.close()


def _batch(
    settings: Settings, tell: Tell, shape: str, family: Any, engines: dict[str, Engine], batch: int, weights: int
) -> None:
    vocabulary = int(SHAPES[shape]["vocab_size"])
    runs: dict[str, list[Row]] = {name: [] for name in (*engines, "Transformers")}
    answers: dict[str, dict[str, list[int]]] = {}
    warm_s = {}
    for turn in range(settings.rounds + 1):
        prompts = models.prompts_of(batch, settings.input_tokens, vocabulary, 1000 * batch + turn)
        for name in runs:
            began = time.perf_counter()
            if name == "Transformers":
                row, made = _generate(settings, family, prompts)
            else:
                row, made = _serve(settings, family, engines[name], prompts, f"b{batch}t{turn}r")
            if turn:  # in the first one libraries set themselves up and graphs are recorded
                runs[name].append(row)
            else:
                warm_s[name] = time.perf_counter() - began
            answers[name] = dict(enumerate(made))  # type: ignore[arg-type]
    for name, rows in runs.items():
        graphs = engines[name].graphs if name in engines else None
        tell({
            "shape": shape, "batch": batch, "how": name, "weights_bytes": weights,
            "input_tokens": settings.input_tokens, "output_tokens": settings.output_tokens,
            "tokens_per_s": [row["tokens_per_s"] for row in rows],
            "step_ms": statistics.median(row["step_ms"] for row in rows),
            "first_token_ms": statistics.median(row["first_token_ms"] for row in rows) if name in engines else None,
            "warm_up_s": round(warm_s[name], 2),
            "graphs": None if graphs is None else {"made": len(graphs._graphs), "off": graphs.off},
            "against_transformers": agreement(answers[name], answers["Transformers"]),  # type: ignore[arg-type]
        })  # fmt: skip


def _serve(
    settings: Settings, family: Any, engine: Engine, prompts: list[tuple[int, ...]], prefix: str
) -> tuple[Row, list[list[int]]]:
    models.use_ours(family, ours=True)
    steps = []
    synchronize(settings.torch_device)
    began_ns = time.perf_counter_ns()
    names = models.queue(engine, prompts, settings.output_tokens, prefix)
    while engine.instance.has_step:
        begun_ns = time.perf_counter_ns()
        engine.instance.step()
        steps.append(time.perf_counter_ns() - begun_ns)
    took_s = (time.perf_counter_ns() - began_ns) / 1e9
    made = [engine.desk.tokens.pop(name) for name in names]
    told = [engine.desk.last_ns.pop((engine.instance.name, name)) for name in names]
    count = sum(map(len, made))
    if count != len(prompts) * settings.output_tokens:
        raise RuntimeError(f"{count} tokens were made, {len(prompts)} x {settings.output_tokens} were asked for")
    row = {
        "tokens_per_s": count / took_s,
        "step_ms": statistics.median(steps) / 1e6,
        "first_token_ms": (statistics.median(each[0] for each in told) - began_ns) / 1e6,
    }
    return row, made


@torch.inference_mode()
def _generate(settings: Settings, family: Any, prompts: list[tuple[int, ...]]) -> tuple[Row, list[list[int]]]:
    models.use_ours(family, ours=False)
    device, length = settings.torch_device, settings.output_tokens
    synchronize(device)
    began = time.perf_counter()
    ids = torch.tensor(prompts, device=device)
    made = family.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        min_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
    )[:, ids.shape[1] :].tolist()
    took_s = time.perf_counter() - began
    return {"tokens_per_s": len(prompts) * length / took_s, "step_ms": 1e3 * took_s / length}, made


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(settings: Settings, tell: Tell) -> None:
    """An arena sized by `build` itself, and what is in use after many steps."""
    need_transformers()
    with tempfile.TemporaryDirectory(prefix="tierline-gpu-") as folder:
        dtype = torch.bfloat16 if settings.on_gpu else torch.float32
        family = models.random_family(settings.memory_shape, settings.torch_device, dtype)
        family.config.max_position_embeddings = settings.memory_context
        family.model.save_pretrained(folder)
        del family
        _empty(settings)
        for graphs, steps in ((False, settings.steps), (True, settings.steps // 3)):
            if graphs and not settings.on_gpu:
                continue
            try:
                tell({"graphs": graphs, **_many_steps(settings, folder, graphs, steps)})
            except (RuntimeError, ValueError) as error:
                tell({"graphs": graphs, "failed": short(error)})
            _empty(settings)


def _empty(settings: Settings) -> None:
    gc.collect()
    if settings.on_gpu:
        torch.cuda.empty_cache()


def _many_steps(settings: Settings, folder: str, graphs: bool, steps: int) -> Row:
    from tierline.core.instance_events import RequestQueued
    from tierline.core.request import Request, Sampling
    from tierline.engine.build import build
    from tierline.engine.settings import InstanceSettings

    device, desk = settings.torch_device, Desk()
    free = torch.cuda.mem_get_info(device)[0] if settings.on_gpu else 0
    told = InstanceSettings(
        name="m",
        model=folder,
        run_dir="",
        shm_dir="",
        server="",
        endpoint="",
        dtype="bf16" if settings.on_gpu else "fp32",
        device=str(device),
        kv_bytes=settings.kv_bytes,
        pack=False,
        cuda_graphs=graphs,
    )
    built = build(told, models.DeskPort("m", desk), lambda: None)
    instance, arena = built.instance, built.instance._arena
    arena_bytes = arena.keys.nbytes + arena.values.nbytes
    rng = random.Random(0)
    vocabulary = int(SHAPES[settings.memory_shape]["vocab_size"])
    started = 0
    readings: list[int] = []
    for step in range(steps):
        while started - len(desk.finished) < CROWD:
            prompt = tuple(rng.randrange(vocabulary) for _ in range(rng.choice((8, 40, 120))))
            sampling = Sampling(rng.randrange(8, 200), temperature=0.0, ignore_eos=True)
            instance.deliver(RequestQueued(Request(f"r{started}", prompt, sampling, arrived_ns=started)))
            started += 1
        instance.step()
        if step >= steps // 5 and step % 10 == 9:
            readings.append(_in_use(settings))
    row = {
        "free_bytes_before": free,
        "weights_bytes": built.weights_bytes,
        "arena_bytes": arena_bytes,
        "blocks": built.limits.blocks,
        "arena_share_of_free": arena_bytes / (free - built.weights_bytes) if free else None,
        "steps": steps,
        "sequences": started,
        "least_in_use_bytes": min(readings),
        "most_in_use_bytes": max(readings),
        # Steps differ in size, so halves are compared, not single readings.
        "growth_bytes": max(readings[len(readings) // 2 :]) - max(readings[: len(readings) // 2]),
        "reserved_bytes": torch.cuda.memory_reserved(device) if settings.on_gpu else None,
    }
    instance.close()
    return row


def _in_use(settings: Settings) -> int:
    if settings.on_gpu:
        return int(torch.cuda.memory_allocated(settings.torch_device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
