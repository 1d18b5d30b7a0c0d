"""Every registered batching policy keeps the public contract; relations that were published hold."""

import pytest
from msgspec.structs import replace

from tierline.core.batch_view import BatchView, SequenceView, Share
from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.instance_events import RequestQueued, StepEnded
from tierline.core.request import Request, Sampling
from tierline.core.slo import Slo
from tierline.policies.batching import POLICIES, make_batching
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_state import InstanceLimits
from tierline.testing.batching import BatchPolicyContract, named, steps


@pytest.mark.parametrize("name", sorted(POLICIES))
class TestRegistered(BatchPolicyContract):
    @pytest.fixture(autouse=True)
    def _take(self, name):
        self.name = name

    def make(self):
        return make_batching(self.name)


for _attribute in [a for a in dir(BatchPolicyContract) if a.startswith("test_")]:
    # parametrize hands `name` to every test; the suite's tests do not take it
    def _wrap(test):
        def run(self, name):
            test(self)

        run.__name__ = test.__name__
        return run

    setattr(TestRegistered, _attribute, _wrap(getattr(BatchPolicyContract, _attribute)))


def test_every_policy_is_where_the_registry_says():
    for name in POLICIES:
        assert type(make_batching(name)).__module__.endswith(f".{name}")


def test_an_unknown_policy_and_wrong_options_are_refused():
    with pytest.raises(UnknownName, match="did you mean 'sarathi'"):
        make_batching("sarathy")
    with pytest.raises(InvalidInput, match="does not take these options"):
        make_batching("fcfs", {"chunk_tokens": 3})


def decode(name):
    return SequenceView(name, 0, 0, 1, 1, 50, 3, 0, True)


def prompt(name, left, ready=None, blocks=1):
    return SequenceView(name, 0, 0, left if ready is None else ready, left, 0, 0, blocks, False)


def test_sarathi_runs_decodes_first_and_fills_up_with_chunks():
    view = BatchView(0, (prompt("a", 5), decode("d"), decode("e")), (prompt("b", 90), prompt("c", 9)), 9, 20, 16)
    shares = named(view, make_batching("sarathi").compose(view))
    assert shares == (Share("d", 1), Share("e", 1), Share("a", 5), Share("b", 13))
    shares = named(view, make_batching("sarathi", {"chunk_tokens": 4}).compose(view))
    assert shares == (Share("d", 1), Share("e", 1), Share("a", 2))


def test_sarathi_lets_nobody_pass_one_that_does_not_fit_but_one_that_is_not_encoded():
    waiting = (prompt("i", 9, ready=0), prompt("a", 9, blocks=7), prompt("b", 9))
    assert make_batching("sarathi").compose(BatchView(0, (), waiting, 6, 20, 16)) == ()
    assert make_batching("sarathi").compose(BatchView(0, (), waiting, 7, 20, 16)) == (Share("a", 9),)
    assert make_batching("sarathi").compose(BatchView(0, (), waiting, 8, 20, 16)) == (Share("a", 9), Share("b", 9))


def test_sarathi_begins_a_prompt_before_its_last_image_and_fcfs_does_not():
    view = BatchView(0, (), (prompt("i", 30, ready=12), prompt("a", 9)), 9, 40, 16)
    assert make_batching("sarathi").compose(view) == (Share("i", 12), Share("a", 9))
    assert make_batching("fcfs").compose(view) == (Share("a", 9),)


def test_fcfs_runs_a_prompt_longer_than_the_budget_alone():
    view = BatchView(0, (decode("d"),), (prompt("a", 90), prompt("b", 9)), 9, 20, 16)
    assert make_batching("fcfs").compose(view) == (Share("a", 90),)


def stalls(policy):
    """Iterations without a token for the running answers after long prompts come."""
    limits = InstanceLimits(blocks=400, token_budget=32, context_tokens=9999)
    scheduler = InstanceScheduler("i", limits, make_batching(policy))
    actions = []
    for number in range(2):
        actions += scheduler.handle(0, RequestQueued(Request(f"d{number}", (1, 2, 3), Sampling(max_tokens=60))))
    begun = steps(scheduler, actions, 3)
    for number in range(3):
        request = Request(f"p{number}", (number,) * 300, Sampling(max_tokens=1), arrived_ns=1 + number)
        assert scheduler.handle(0, RequestQueued(request))
    from_now_on = scheduler.handle(0, StepEnded(begun[-1].step + 1, (("d0", 7), ("d1", 7))))
    later = steps(scheduler, from_now_on, 40)
    named = [{chunk.request_id for chunk in step.chunks} for step in later]
    with_prompts = [names for names in named if any(name.startswith("p") for name in names)]
    assert with_prompts
    return sum(not {"d0", "d1"} <= names for names in with_prompts)


def test_sarathi_never_stalls_a_decode_and_fcfs_does():
    """Sarathi-Serve, OSDI 2024, figure 1: generation stalls behind whole prompts."""
    assert stalls("sarathi") == 0
    assert stalls("fcfs") == 3


# --- slo_chunk: what prompts get beside decodes, and by themselves


class LinearTimes:
    """5 ms and 20 us a prompt token; a decode costs nothing more."""

    kv_token_bytes = embedding_token_bytes = patches_per_token = 1
    kv_tokens = 10**6

    def iteration_s(self, batch):
        return 5e-3 + 20e-6 * sum(new for new, _ in batch.chunks)

    def decodes_s(self, decodes, decode_context, steps):
        return 5e-3 * steps

    def encode_s(self, patches):
        return 0.0

    def slowdown(self, tokens):
        return 1.0

    def prepare_s(self, patches):
        return 0.0

    def transfer_s(self, size_bytes):
        return 0.0


def slo_chunk(**options):
    slo = Slo(ttft_ns=50_000_000, tpot_ns=10_000_000, image_ttft_ns=150_000_000)
    return make_batching("slo_chunk", {"tpot_share": 1.0, **options}, LinearTimes(), slo)


def tokens_of(policy, now_ms, *prompts, decodes=4, budget=4096, encoding=0, iterations=0, busy_ms=0):
    decoding = tuple(decode(f"d{at}") for at in range(decodes))
    ms = 1_000_000
    view = BatchView(now_ms * ms, decoding, prompts, 10**6, budget, 100, encoding, iterations, busy_ms * ms)
    return {share.request_id: share.tokens for share in policy.compose(view) if share.request_id}


def test_without_credit_a_chunk_keeps_the_tpot():
    assert tokens_of(slo_chunk(credit_s=0.0), 0, prompt("p", 2000)) == {"p": 240}  # 5 ms of 10 are left, in steps of 16


def test_beside_the_encoder_a_chunk_leaves_time_for_both():
    policy = slo_chunk(credit_s=0.0, beside=(1.25, 1.6))
    assert tokens_of(policy, 0, prompt("p", 2000), encoding=1) == {"p": 144}  # 10 ms are 8 by itself, 3 of them for it
    assert tokens_of(policy, 0, prompt("p", 2000), encoding=5) == {"p": 64}  # 6.25 ms, and `least_tokens`


def test_credit_is_spent_once_and_earned_again_by_short_iterations():
    policy = slo_chunk(credit_s=0.02)
    assert tokens_of(policy, 0, prompt("p", 2000))["p"] > 1200  # 10 and 20 ms
    assert tokens_of(policy, 30, prompt("q", 2000), iterations=1, busy_ms=30)["q"] <= 256  # it is spent
    assert (
        tokens_of(policy, 60, prompt("r", 2000), iterations=3, busy_ms=60)["r"] <= 256
    )  # iterations of 15 ms: it still is
    assert (
        tokens_of(policy, 90, prompt("s", 2000), iterations=9, busy_ms=90)["s"] > 1200
    )  # and these were of 5 instead of 10


def test_what_an_iteration_took_counts_and_not_what_was_predicted():
    policy = slo_chunk(credit_s=0.02)
    tokens_of(policy, 0, prompt("p", 300))
    assert tokens_of(policy, 11, prompt("q", 2000), iterations=1, busy_ms=11)["q"] > 1100
    tokens_of(policy, 0, prompt("p", 300), iterations=1, busy_ms=11)
    assert tokens_of(policy, 60, prompt("q", 2000), iterations=2, busy_ms=60)["q"] <= 256  # another took the device


def test_a_pause_earns_nothing_and_an_instance_without_decodes_owes_nothing():
    policy = slo_chunk(credit_s=0.02)
    tokens_of(policy, 0, prompt("p", 2000))
    assert tokens_of(policy, 900, prompt("q", 2000), iterations=1, busy_ms=30)["q"] <= 256
    tokens_of(policy, 930, prompt("r", 100), decodes=0, iterations=2, busy_ms=60)
    assert tokens_of(policy, 960, prompt("s", 2000), iterations=3, busy_ms=70)["s"] > 1200


def test_alone_a_pressing_prompt_is_done_at_once_and_one_that_can_wait_in_chunks():
    text = prompt("text", 1100)
    image = replace(prompt("image", 1100), has_images=True)  # its deadline is 150 ms away, text's 50 ms
    policy = slo_chunk(alone_tokens=512)
    assert tokens_of(policy, 0, text, image, decodes=0) == {"text": 1100}
    assert tokens_of(policy, 0, image, decodes=0) == {"image": 512}
    assert tokens_of(policy, 100, image, decodes=0) == {"image": 1100}  # by now it presses, too
    assert tokens_of(policy, 149, image, decodes=0) == {"image": 512}  # and now it is too late for it
