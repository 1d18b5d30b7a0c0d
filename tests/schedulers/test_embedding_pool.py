"""Images in the pool: what is in use stays, what was used least recently goes."""

import pytest

from tierline.schedulers.embedding_pool import EmbeddingPool


def test_the_least_recently_used_goes_first():
    pool = EmbeddingPool(20)
    assert pool.put("a", 10) == pool.put("b", 10) == ()
    pool.use("a")
    assert pool.done("a") == ()
    assert pool.put("c", 10) == ("b",)
    assert "a" in pool and "c" in pool and "b" not in pool
    assert (len(pool), pool.used_bytes) == (2, 20)


def test_what_is_in_use_stays_beyond_the_budget_until_its_last_user_is_done():
    pool = EmbeddingPool(10)
    assert pool.put("a", 10, uses=2) == ()
    assert pool.put("b", 10, uses=1) == ()
    assert pool.used_bytes == 20
    assert pool.done("a") == ()
    assert pool.done("a") == ("a",)
    assert pool.done("b") == ()
    assert pool.used_bytes == 10


def test_one_that_nobody_waits_for_may_be_given_up_at_once():
    pool = EmbeddingPool(10)
    pool.put("a", 10, uses=1)
    assert pool.put("b", 10) == ("b",)


def test_an_image_that_comes_twice_counts_once_and_adds_its_uses():
    pool = EmbeddingPool(10)
    pool.put("a", 10, uses=1)
    pool.put("a", 10, uses=1)
    assert (pool.used_bytes, len(pool)) == (10, 1)
    pool.done("a")
    pool.done("a")
    with pytest.raises(AssertionError, match="once too often"):
        pool.done("a")


def test_nothing_is_kept_in_a_pool_of_no_bytes():
    pool = EmbeddingPool(0)
    assert pool.put("a", 1) == ("a",)
    assert pool.used_bytes == 0
