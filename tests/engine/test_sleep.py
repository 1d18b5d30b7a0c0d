"""A runner gives its memory up and takes it again: the same tokens, and nothing of what was recorded for the old memory."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tierline.core.instance_actions import Chunk, RunStep  # noqa: E402
from tierline.core.request import Request, Sampling  # noqa: E402
from tierline.engine import model as models  # noqa: E402
from tierline.engine.arena import KvArena  # noqa: E402
from tierline.engine.cuda_graphs import DecodeGraphs, Step  # noqa: E402
from tierline.engine.packing import can_pack  # noqa: E402
from tierline.engine.runner import ModelRunner  # noqa: E402

PROMPT = tuple(range(20, 40))


def runner(dtype: torch.dtype, block_tokens: int = 16) -> tuple[ModelRunner, KvArena]:
    device = torch.device("cpu")
    family = models.load("tiny-vlm", dtype, device)
    kv = models.kv_shape(family.config)
    arena = KvArena(kv.layers, 64, block_tokens, kv.kv_heads, kv.head_dim, dtype, device)
    return ModelRunner(family, arena, [1], {}), arena


def answer(made: ModelRunner, block_tokens: int = 16) -> list[int]:
    """Greedy tokens after the prompt."""
    made.add(Request("r", PROMPT, Sampling(8, temperature=0.0, ignore_eos=True)))
    tokens, first, count = [], 0, len(PROMPT)
    blocks = tuple(range(3, 3 - (-40 // block_tokens)))
    for _ in range(8):
        chunk = Chunk("r", first, count, blocks if not first else (), fresh=not first, samples=True)
        (sampled,) = made.run(RunStep(1, (chunk,)))
        tokens.append(sampled.token)
        first, count = first + count, 1
    made.drop("r")
    return tokens


@pytest.mark.parametrize(("dtype", "pack"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_tokens_are_the_same_after_a_sleep(dtype: torch.dtype, pack: bool) -> None:
    made, arena = runner(dtype)
    if pack and can_pack(dtype, torch.device("cpu")):
        made.pack()
    before = answer(made)
    for _ in range(2):
        made.free_memory()
        assert arena.keys.untyped_storage().nbytes() == 0
        made.take_memory()
        assert arena.keys.untyped_storage().nbytes() > 0
        assert answer(made) == before


@pytest.mark.parametrize("block_tokens", [1, 2, 16])
def test_the_first_batch_needs_two_blocks_at_most(block_tokens: int) -> None:
    made, arena = runner(torch.float32, block_tokens)
    made.warm_up()
    assert arena.keys[:, :, :2].any() and not arena.keys[:, :, 2:].any()
    before = answer(made, block_tokens)
    made.warm_up()
    assert answer(made, block_tokens) == before


def test_graphs_are_recorded_anew() -> None:
    made, arena = runner(torch.float32)
    recorded: list[int] = []

    def record(step: Step, device: object) -> Step:
        recorded.append(arena.keys.data_ptr())
        return step

    made.use_graphs(DecodeGraphs(made._family.backbone, arena, scratch=63, record=record))
    before = answer(made)
    assert len(recorded) == 1
    made.free_memory()
    made.take_memory()
    assert answer(made) == before and len(recorded) == 2, "the batch that woke it has recorded it again"
