"""What a deployment promises, from text."""

import pytest

from tierline.core.errors import InvalidInput
from tierline.core.slo import Slo


def test_what_is_not_named_keeps_its_default():
    assert Slo.parse("") == Slo()
    assert Slo.parse("tpot=25ms") == Slo(tpot_ns=25_000_000)
    assert Slo.parse("ttft=1s,image=2.5s,ktoken=100ms") == Slo(10**9, 50_000_000, 2_500_000_000, 100_000_000)


@pytest.mark.parametrize("text", ["ttft", "ttft=1", "ttft=s", "speed=1s", "ttft=-1s", "ttft=0s", "tpot=0ms", "ttft=1h"])
def test_what_cannot_be(text):
    with pytest.raises(InvalidInput) as caught:
        Slo.parse(text)
    assert str(caught.value).endswith(".")


def test_images_and_length_have_more_time_where_it_was_said():
    slo = Slo(ttft_ns=100, tpot_ns=10, image_ttft_ns=300, ttft_ns_per_ktoken=50)
    assert slo.ttft_of(0, 0) == 100 and slo.ttft_of(2000, 0) == 200 and slo.ttft_of(2000, 1) == 400
    assert Slo(ttft_ns=100, tpot_ns=10).ttft_of(10, 3) == 100
