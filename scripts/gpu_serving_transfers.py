"""How fast KV, embeddings and whole sequences go from one arena to another: steps of scripts/gpu_serving.py."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_serving_models as models
import torch
from gpu_serving_models import BLOCK_TOKENS, SHAPES, Desk, Engine
from gpu_serving_step import Row, Settings, Tell, need_transformers, timed


def shared_folder() -> Path:
    """Where payloads travel: memory, where there is such a folder."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def transfers(settings: Settings, tell: Tell) -> None:
    """KV and embeddings by the engine's own code: out of an arena, through a file in memory, into another arena."""
    from tierline.engine.arena import KvArena
    from tierline.engine.transfer import SharedMemory

    source_device, target_device = settings.two_devices
    shape = SHAPES[settings.shapes[-1]]
    kv_heads, heads = shape["num_key_value_heads"], shape["num_attention_heads"]
    head_dim = shape.get("head_dim", shape["hidden_size"] // heads)
    most = max(settings.move_tokens) // BLOCK_TOKENS + 8
    dtype = torch.bfloat16
    kv = (shape["num_hidden_layers"], 2 * most, BLOCK_TOKENS, kv_heads, head_dim, dtype)
    source, target = KvArena(*kv, source_device), KvArena(*kv, target_device)
    source.keys.normal_()
    source.values.normal_()
    where = {"from": str(source_device), "to": str(target_device)}
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="tierline-gpu-", dir=shared_folder()) as folder:
        carrier = SharedMemory(Path(folder), "a")
        for tokens in settings.move_tokens:
            count = -(-tokens // BLOCK_TOKENS)
            out, into = (rng.sample(range(2 * most), count) for _ in range(2))
            payload = source.export(out)
            size = payload.numel()
            about = {"tokens": tokens, "bytes": size, **where}

            def arrive(frames: list[bytes]) -> torch.Tensor:
                found = carrier.unpack(frames)
                assert found is not None
                return found

            def whole(out: list[int] = out, into: list[int] = into) -> None:
                target.load(into, arrive(carrier.pack("b", source.export(out))))

            def direct(out: list[int] = out, into: list[int] = into) -> None:
                index = torch.tensor(out, device=source_device)
                at = torch.tensor(into, device=target_device)
                target.keys.index_copy_(2, at, source.keys.index_select(2, index).to(target_device))
                target.values.index_copy_(2, at, source.values.index_select(2, index).to(target_device))

            def taken(name: str, call: Callable[[], object], about: Row = about) -> None:
                tell({"what": name, **about, "seconds": timed(call, target_device, settings.repeats)})

            taken("KV, whole way through shared memory", whole)
            got = target.export(into)
            tell({"what": "KV arrived as it was sent", **about, "same": bool(torch.equal(got, payload))})
            taken("KV out of the arena to the host", lambda out=out: source.export(out))  # type: ignore[misc]
            taken("KV into shared memory and out", lambda sent=payload: arrive(carrier.pack("b", sent)))  # type: ignore[misc]
            taken("KV from the host into the arena", lambda sent=payload, into=into: target.load(into, sent))  # type: ignore[misc]
            taken("KV from arena to arena on the device (no engine path yet)", direct)
            _ceilings(settings, taken, size)
        _embeddings(settings, tell, carrier, dtype, where)


def _ceilings(settings: Settings, taken: Callable[[str, Callable[[], object]], None], size: int) -> None:
    """What pinned memory would allow: plain copies of the same size."""
    if not settings.on_gpu:
        return
    there = torch.empty(size, dtype=torch.uint8, device=settings.torch_device)
    here = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    taken("ceiling: plain copy to pinned memory", lambda: here.copy_(there, non_blocking=True))
    taken("ceiling: plain copy from pinned memory", lambda: there.copy_(here, non_blocking=True))


def _embeddings(settings: Settings, tell: Tell, carrier: Any, dtype: torch.dtype, where: Row) -> None:
    source_device, target_device = settings.two_devices
    tokens, hidden = settings.embedding
    embeddings = torch.randn(tokens, hidden, dtype=torch.float32).to(dtype).to(source_device)

    def whole() -> torch.Tensor:
        payload = embeddings.cpu().view(torch.uint8).reshape(-1)  # as Instance does on either side
        found: torch.Tensor = carrier.unpack(carrier.pack("b", payload))
        return found.view(dtype).view(-1, hidden).to(target_device, copy=True)

    about = {"tokens": tokens, "bytes": embeddings.nbytes, **where}
    seconds = timed(whole, target_device, settings.repeats)
    tell({"what": "embeddings, whole way through shared memory", **about, "seconds": seconds})
    same = bool(torch.equal(whole().cpu(), embeddings.cpu()))
    tell({"what": "embeddings arrived as they were sent", **about, "same": same})


# --- moves ------------------------------------------------------------------------------------------------------------


def moves(settings: Settings, tell: Tell) -> None:
    """A decoding sequence moves from one instance to another. Both share this thread, so whatever the two do at once when
    they are processes adds up here."""
    need_transformers()
    from tierline.engine.transfer import SharedMemory

    shape = settings.shapes[-1]
    dtype = torch.bfloat16 if settings.on_gpu else torch.float32
    one, two = settings.two_devices
    family = models.random_family(shape, one, dtype)
    other = family if one == two else models.random_family(shape, two, dtype)
    desk = Desk()
    blocks = max(settings.move_tokens) // BLOCK_TOKENS + 64
    pair = {
        "a": models.make_engine("a", family, desk, blocks),
        "b": models.make_engine("b", other, desk, blocks),
    }
    output = 48
    with tempfile.TemporaryDirectory(prefix="tierline-gpu-", dir=shared_folder()) as folder:
        carriers = {name: SharedMemory(Path(folder), name) for name in pair}
        for tokens in settings.move_tokens:
            for turn in range(settings.repeats):
                prompt = models.prompts_of(1, tokens, int(SHAPES[shape]["vocab_size"]), tokens + turn)
                models.queue(pair["a"], prompt, output, f"alone{tokens}-{turn}-")
                while pair["a"].instance.has_step:
                    pair["a"].instance.step()
                row = _move(pair, desk, carriers, prompt, output, f"moved{tokens}-{turn}-")
                made = (desk.tokens[f"{how}{tokens}-{turn}-0"] for how in ("alone", "moved"))
                if turn or settings.repeats == 1:  # the first one warms up
                    tell(
                        {
                            "shape": shape,
                            "tokens": tokens,
                            **row,
                            "same_tokens": len({tuple(each) for each in made}) == 1,
                        }
                    )
    for engine in pair.values():
        engine.close()


def _move(
    pair: dict[str, Engine], desk: Desk, carriers: dict[str, Any], prompt: list[tuple[int, ...]], output: int, name: str
) -> Row:
    from tierline.core.instance_events import MoveAsked

    request_id = models.queue(pair["a"], prompt, output, name)[0]
    while len(desk.tokens[request_id]) < output // 4:
        pair["a"].instance.step()
    asked_ns = time.perf_counter_ns()
    pair["a"].instance.deliver(MoveAsked(request_id, "b"))
    rounds = sent = 0
    while request_id not in desk.finished:
        mail, desk.mail = desk.mail, []
        for source, target, event, payload in mail:
            if payload is not None:
                rounds, sent = rounds + 1, sent + payload.numel()
                payload = carriers[target].unpack(carriers[source].pack(target, payload))
            pair[target].instance.deliver(event, payload)
        for engine in pair.values():
            engine.instance.step()
    here, there = desk.last_ns["a", request_id], desk.last_ns["b", request_id]
    if request_id not in desk.moved_ns or not there:
        raise RuntimeError(f"{request_id} did not move; it ended where it was")
    steps = [b - a for a, b in itertools.pairwise(there)]
    return {
        "moved_ms": (desk.moved_ns[request_id] - asked_ns) / 1e6,
        "gap_ms": (there[0] - here[-1]) / 1e6,
        "step_ms": statistics.median(steps) / 1e6,
        "rounds": rounds,
        "bytes": sent,
        "tokens_meanwhile": sum(each > asked_ns for each in here),
    }
