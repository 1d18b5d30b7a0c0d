"""Are the engine's tokens Transformers' own on this device? A step of scripts/gpu_serving.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_serving_step import Settings, Tell, short
from msgspec import structs

LEAST_GAP = 1e-3
FIRST = ("llama", "llava-clip")  # then the others, while there is time
TIGHT_BLOCKS = 7


@dataclass(frozen=True, slots=True)
class Asked:
    """The requests of one checkpoint, what they hold, and Transformers' answers."""

    requests: list[Any]
    pictures: dict[str, Any]
    answers: dict[str, tuple[int, ...]]
    left_out: int


def parity(settings: Settings, tell: Tell) -> None:
    """fp32 without TF32, token for token: two instances with moves (a cold and a warm run), arenas that are too small, and
    CUDA graphs; then bf16, where the share of equal answers is told."""
    import transformers

    from tierline.testing.checkpoints import CHECKPOINTS

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for kind in settings.kinds or (*FIRST, *(each for each in CHECKPOINTS if each not in FIRST)):
        try:
            _kind(settings, tell, kind)
        except Exception as error:  # one family that cannot be had must not take the others' rows with it
            tell({"kind": kind, "how": "all", "failed": short(error)})


def _kind(settings: Settings, tell: Tell, kind: str) -> None:
    from tierline.engine.model import load
    from tierline.testing.checkpoints import build
    from tierline.testing.layouts import Cluster, Disturbance

    with tempfile.TemporaryDirectory(prefix="tierline-gpu-") as folder:
        place = build(kind, Path(folder))
        asked = _ask(settings, kind, place, torch.float32)
        families = [load(place, torch.float32, device) for device in settings.two_devices]
        storm = Disturbance(move=0.3, roles=0.05)
        _compare(tell, kind, "two instances, moves, cold", asked, _cluster(Cluster, families, 400), storm, times=2)
        tight = _few(asked, TIGHT_BLOCKS)
        crowd = Disturbance(move=0.02, arrival=1.0)
        _compare(tell, kind, "arena too small", tight, _cluster(Cluster, families, TIGHT_BLOCKS), crowd)
        _graphs(tell, kind, families, asked)
        if kind in settings.bf16_kinds:
            _bf16(settings, tell, kind, place, asked)


def _graphs(tell: Tell, kind: str, families: Sequence[Any], asked: Asked) -> None:
    from tierline.testing.graphed import GraphedCluster
    from tierline.testing.layouts import Disturbance

    cluster = _cluster(GraphedCluster, families, 400)
    cluster.use_graphs()
    how = "CUDA graphs" if families[0].embedding.weight.is_cuda else "padded as for CUDA graphs"

    def more() -> dict[str, Any]:
        return {
            "graph_steps": sum(each.starts for each in cluster.graphs.values()),
            "graphs": sum(len(each._graphs) for each in cluster.graphs.values()),
            "graphs_off": any(each.off for each in cluster.graphs.values()),
        }

    _compare(tell, kind, how, asked, cluster, Disturbance(move=0.05, arrival=0.8), more=more)


def _cluster(kind: Any, families: Sequence[Any], blocks: int) -> Any:
    from tierline.schedulers.instance_state import InstanceLimits
    from tierline.testing.checkpoints import CONTEXT_TOKENS

    limits = InstanceLimits(blocks=blocks, token_budget=64, context_tokens=CONTEXT_TOKENS, pool_bytes=60_000)
    return kind(families, "EPD", limits, seed=3)


def _compare(
    tell: Tell, kind: str, how: str, asked: Asked, cluster: Any, disturbance: Any, times: int = 1, more: Any = dict
) -> None:
    """Run all requests, `times` over, and tell how many answers are right and what happened on the way."""
    for again in range(times):
        began_s = time.monotonic()
        suffix = f" {again}"
        before = _counts(cluster)
        requests = [structs.replace(each, request_id=each.request_id + suffix) for each in asked.requests]
        wanted = {name + suffix: tokens for name, tokens in asked.answers.items()}
        cluster.run(requests, asked.pictures, disturbance)
        cluster.settle()
        faults = cluster.faults(wanted)
        wrong = [name for name, tokens in wanted.items() if cluster.answer(name) != tokens]
        row = {
            "kind": kind,
            "how": how if not again else how.replace("cold", "warm"),
            "dtype": "fp32",
            "requests": len(wanted),
            "identical": len(wanted) - len(wrong),
            "tokens": sum(map(len, wanted.values())),
            "left_out": asked.left_out,
            "faults": faults[:3],
            **{name: count - before[name] for name, count in _counts(cluster).items()},
            **more(),
            "seconds": round(time.monotonic() - began_s, 2),
        }
        tell(row)
    cluster.close()


def _counts(cluster: Any) -> dict[str, int]:
    statuses = [each.status() for each in cluster.schedulers.values()]
    return {
        "moves": cluster.witness.counts["moves"],
        "preemptions": sum(status.preemptions for status in statuses),
        "cached_tokens": sum(status.prefix_hits for status in statuses),
        "encoded": sum(status.encoded_images for status in statuses),
    }


def _few(asked: Asked, blocks: int) -> Asked:
    """The requests that fit into an arena of so many blocks."""
    small = [each for each in asked.requests if len(each.prompt) + each.sampling.max_tokens <= 16 * (blocks - 2)]
    return Asked(small, asked.pictures, {each.request_id: asked.answers[each.request_id] for each in small}, 0)


def _ask(settings: Settings, kind: str, folder: str, dtype: torch.dtype) -> Asked:
    """Transformers' answers on the device. Requests whose two likeliest tokens are nearly equal are left out in fp32:
    whoever adds in another order may rightly answer something else."""
    from tierline.testing.checkpoints import CHECKPOINTS
    from tierline.testing.mixed_requests import Reference, Requests, make_mixed

    class OnDevice(Reference):
        def inputs(self, mixed: Any) -> Any:
            return super().inputs(mixed).to(settings.torch_device)

    checkpoint = CHECKPOINTS[kind]
    maker, reference = Requests(folder), OnDevice(folder)
    if dtype != torch.float32:
        reference.model = type(reference.model).from_pretrained(folder, dtype=dtype).eval()
    reference.model.to(settings.torch_device)
    requests: list[Any] = []
    pictures: dict[str, Any] = {}
    answers: dict[str, tuple[int, ...]] = {}
    left_out = 0
    mixed_requests = make_mixed(settings.requests, 1, checkpoint.placeholder, checkpoint.sizes)
    for number, mixed in enumerate(mixed_requests):
        answer = reference.answer(mixed)
        if dtype == torch.float32 and answer.gap <= LEAST_GAP:
            left_out += 1
            continue
        requests.append(maker.make(f"r{number}", mixed, arrived_ns=number))
        answers[f"r{number}"] = answer.tokens
        pictures.update({picture.content_hash: picture for picture in mixed.pictures})
    return Asked(requests, pictures, answers, left_out)


def _bf16(settings: Settings, tell: Tell, kind: str, folder: str, single: Asked) -> None:
    """Rounding decides near ties, so bf16 is told as a rate: the engine and Transformers in bf16 against each other, and
    Transformers in bf16 against itself in fp32 as the measure of what rounding alone does."""
    from tierline.engine.model import load
    from tierline.testing.layouts import Cluster, Disturbance

    began_s = time.monotonic()
    asked = _ask(settings, kind, folder, torch.bfloat16)
    cluster = _cluster(Cluster, [load(folder, torch.bfloat16, each) for each in settings.two_devices], 400)
    made = cluster.run(asked.requests, asked.pictures, Disturbance(move=0.1))
    cluster.close()
    tell({
        "kind": kind, "how": "bf16 against Transformers in bf16", "dtype": "bf16", "requests": len(made),
        **agreement(made, asked.answers), "seconds": round(time.monotonic() - began_s, 2),
    })  # fmt: skip
    common = {name: tokens for name, tokens in asked.answers.items() if name in single.answers}
    tell({
        "kind": kind, "how": "Transformers: bf16 against fp32", "dtype": "bf16", "requests": len(common),
        **agreement(common, single.answers),
    })  # fmt: skip


def agreement(one: Mapping[str, Sequence[int]], other: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Equal answers, all tokens, and of these how many come before an answer's first difference."""
    equal = tokens = agreed = 0
    for name, mine in one.items():
        theirs = other[name]
        same = 0
        while same < min(len(mine), len(theirs)) and mine[same] == theirs[same]:
            same += 1
        equal += list(mine) == list(theirs)
        tokens += max(len(mine), len(theirs))
        agreed += same
    return {"identical": equal, "tokens": tokens, "agreed_tokens": agreed}
