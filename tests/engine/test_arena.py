"""The KV arena: what is exported is what arrives, and nothing else changes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tierline.engine.arena import KvArena  # noqa: E402


def arena(blocks: int = 6, dtype: torch.dtype = torch.float32, seed: int = 0) -> KvArena:
    made = KvArena(3, blocks, 4, 2, 8, dtype, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for part in (made.keys, made.values):
        part.copy_(torch.randn(part.shape, generator=generator))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_arrive_in_their_order_and_leave_the_others_alone(dtype: torch.dtype) -> None:
    source, target = arena(dtype=dtype, seed=1), arena(blocks=9, dtype=dtype, seed=2)
    others = [block for block in range(9) if block not in (7, 0, 3)]
    before = target.export(others)
    payload = source.export((5, 2, 4))
    assert payload.dtype == torch.uint8
    assert payload.shape == (3 * KvArena.bytes_per_block(3, 4, 2, 8, dtype),)
    target.load((7, 0, 3), payload)
    for here, there in ((7, 5), (0, 2), (3, 4)):
        assert torch.equal(target.export((here,)), source.export((there,)))
    assert torch.equal(target.export(others), before)
    assert not torch.equal(source.export((5,)), source.export((2,)))


def test_an_export_is_a_copy() -> None:
    source = arena()
    payload = source.export((1,))
    kept = payload.clone()
    source.keys.zero_()
    source.values.zero_()
    assert torch.equal(payload, kept)
    assert not source.export((1,)).any()


def test_what_was_freed_is_gone_and_comes_back_empty() -> None:
    made = arena()
    shapes = made.keys.shape, made.flat_values.shape
    made.free()
    assert sum(each.untyped_storage().nbytes() for each in (made.keys, made.values, made.flat_keys)) == 0
    made.restore()
    assert (made.keys.shape, made.flat_values.shape) == shapes and not made.export(range(6)).any()
    made.values[0, 0, 5, 3, 0] = 1.0
    assert made.flat_values[0, 0, 23, 0] == 1.0, "a view, as before"


def test_no_blocks_are_no_bytes() -> None:
    made = arena()
    before = made.export(range(6))
    payload = made.export(())
    assert payload.numel() == 0
    made.load((), payload)
    assert torch.equal(made.export(range(6)), before)


def test_a_payload_of_another_size_is_refused_and_changes_nothing() -> None:
    made = arena()
    before = made.export(range(6))
    payload = made.export((1, 2))
    for wrong in (
        payload[:-1],
        payload[:-4],
        torch.cat((payload, payload)),
        payload[:0],
        payload[: payload.numel() // 2],
    ):
        with pytest.raises(
            ValueError, match=rf"{wrong.numel()} bytes of KV arrived for 2 blocks, which take {payload.numel()}"
        ):
            made.load((3, 4), wrong)
    with pytest.raises(ValueError, match="for 0 blocks"):
        made.load((), payload)
    assert torch.equal(made.export(range(6)), before)


def test_flat_views_share_the_memory() -> None:
    made = arena()
    made.flat_keys.zero_()
    made.flat_values.zero_()
    assert not made.export(range(6)).any()
