"""Every registered batching policy keeps the public contract; relations that were published hold."""

import pytest

from tierline.core.batch_view import BatchView, SequenceView, Share
from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.instance_events import RequestQueued, StepEnded
from tierline.core.request import Request, Sampling
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
