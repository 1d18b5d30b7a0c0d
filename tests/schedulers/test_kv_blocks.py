"""Blocks and prefixes: who holds what, what can be found again, what goes first."""

import pytest

from tierline.core.request import ImageSpan
from tierline.schedulers.kv_blocks import ROOT_KEY, KvBlocks, block_key


def test_blocks_are_taken_all_or_not_at_all():
    kv = KvBlocks(3, 4)
    assert kv.take(2) == [0, 1]
    assert kv.take(2) == []
    assert kv.free == 1
    kv.release([0, 1])
    assert kv.free == 3
    assert kv.take(0) == []


def test_needed_rounds_up():
    assert [KvBlocks(9, 4).needed(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_a_registered_block_is_found_after_its_release_and_held_with_others():
    kv = KvBlocks(3, 4)
    blocks = kv.take(2)
    kv.register(blocks[0], b"a")
    kv.register(blocks[1], b"b")
    assert kv.match([b"a", b"b", b"c"]) == blocks
    assert kv.match([b"x", b"b"]) == []
    assert kv.held(blocks) == 2
    kv.release(blocks)
    assert (kv.free, kv.held(blocks)) == (3, 0)
    kv.retain(kv.match([b"a"]))
    kv.retain(kv.match([b"a"]))
    assert kv.free == 2
    kv.release(blocks[:1])
    assert kv.free == 2, "one of two holders is left"


def test_unknown_blocks_go_first_then_the_least_recently_used_and_of_a_sequence_its_end():
    kv = KvBlocks(4, 4)
    one, other = kv.take(2), kv.take(1)
    for block, key in zip([*one, *other], [b"1", b"2", b"o"], strict=True):
        kv.register(block, key)
    kv.release(one)
    kv.release(other)
    assert kv.take(1) == [3], "it holds nothing"
    assert kv.take(1) == [one[1]], "the end of the sequence that was let go first"
    assert kv.match([b"1", b"2"]) == [one[0]]
    kv.retain([one[0]])
    kv.release([one[0]])  # used again: the other one is older now
    assert kv.take(1) == other
    assert kv.match([b"o"]) == []


def test_a_second_block_of_the_same_content_stays_unknown():
    kv = KvBlocks(2, 4)
    one, other = kv.take(2)
    kv.register(one, b"a")
    kv.register(other, b"a")
    kv.release([one, other])
    assert kv.match([b"a"]) == [one]
    assert kv.take(1) == [other]


def test_without_caching_nothing_is_found():
    kv = KvBlocks(2, 4, caching=False)
    kv.register(kv.take(1)[0], b"a")
    assert kv.match([b"a"]) == []


def test_a_release_too_many_is_our_own_bug():
    kv = KvBlocks(2, 4)
    blocks = kv.take(1)
    kv.release(blocks)
    with pytest.raises(AssertionError, match="once too often"):
        kv.release(blocks)


def test_a_key_tells_tokens_parents_images_and_where_these_lie():
    tokens = (9, 9, 9, 9)
    plain = block_key(ROOT_KEY, tokens, (), 0)
    assert plain == block_key(ROOT_KEY, list(tokens), (), 0)
    a, b = ImageSpan("a", 2, 4), ImageSpan("b", 2, 4)
    keys = [
        plain,
        block_key(plain, tokens, (), 4),
        block_key(ROOT_KEY, (9, 9, 9, 8), (), 0),
        block_key(ROOT_KEY, tokens, (a,), 0),
        block_key(ROOT_KEY, tokens, (b,), 0),
        block_key(ROOT_KEY, tokens, (ImageSpan("a", 3, 4),), 0),
        block_key(ROOT_KEY, tokens, (a,), 4),  # its second half
    ]
    assert len(set(keys)) == len(keys)
    assert block_key(ROOT_KEY, tokens, (a,), 6) == plain, "the image ends before the block"
    assert block_key(ROOT_KEY, tokens, (ImageSpan("a", 4, 4),), 0) == plain, "it begins after the block"


def test_keys_of_several_images_do_not_run_into_each_other():
    one = block_key(ROOT_KEY, (9,) * 20, (ImageSpan("h", 1, 1), ImageSpan("1x", 5, 1)), 0)
    other = block_key(ROOT_KEY, (9,) * 20, (ImageSpan("h", 11, 1), ImageSpan("x", 5, 1)), 0)
    assert one != other
