"""Errors as users and other processes see them."""

import pickle

import pytest

from tierline.core.errors import InvalidInput, MissingExtra, MissingNative, TierlineError, UnknownName


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("no."),
        UnknownName("policy", "fifi", ["fair", "fifo"]),
        MissingExtra("plots", "plot"),
        MissingNative("the library"),
    ],
)
def test_an_error_comes_through_from_a_worker_process(error: TierlineError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
