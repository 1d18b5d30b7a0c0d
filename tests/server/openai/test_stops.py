"""Stop strings: how the text was cut into tokens makes no difference."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tierline.server.openai.stops import StopFinder

LETTERS = "abX\u4e2d"


@given(
    text=st.text(LETTERS, max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=8),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3),
    include=st.booleans(),
)
def test_any_split_gives_the_same_answer(text: str, cuts: list[int], stops: list[str], include: bool) -> None:
    def told(pieces: list[str]) -> tuple[str, str | None]:
        finder = StopFinder(stops, include=include)
        found = []
        for piece in pieces:
            found.append(finder.push(piece))
            if finder.hit is not None:
                return "".join(found), finder.hit
        return "".join([*found, finder.finish()]), None

    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    answer, hit = told(pieces)
    assert (answer, hit) == told(list(text)) == told([text])
    assert text.startswith(answer)
    if hit is None:
        assert answer == text
        assert not any(stop in text for stop in stops)
    else:
        assert not any(stop in answer[:-1] for stop in stops)
        assert answer.endswith(hit) if include else text[len(answer) :].startswith(hit)


def test_nothing_is_held_back_that_cannot_become_a_stop_string() -> None:
    finder = StopFinder(["END", "\n\n"])
    assert [finder.push(piece) for piece in ("a", "E", "x", "\n", "b", "EN", "d")] == [
        "a",
        "",
        "Ex",
        "",
        "\nb",
        "",
        "ENd",
    ]


def test_text_before_the_least_length_is_not_searched() -> None:
    finder = StopFinder(["ab"])
    assert finder.push("a") == ""
    assert finder.skip("b") == "ab"
    assert finder.push("b") == "b"
    assert finder.hit is None
