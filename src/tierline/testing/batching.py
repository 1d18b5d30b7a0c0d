"""The contract that every batching policy keeps. Subclass it, or run it over your own policy::

from tierline.testing.batching import BatchPolicyContract

class TestMine(BatchPolicyContract):
    def make(self): return MyPolicy()
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from msgspec import structs

from tierline.core.batch_view import EVERY_DECODE, BatchPolicy, BatchView, SequenceView, Share
from tierline.core.instance_actions import InstanceAction, RunStep
from tierline.core.instance_events import RequestQueued, StepEnded
from tierline.core.request import ALL_ROLES, ImageSpan, Request, Sampling
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_state import InstanceLimits
from tierline.testing.instances import FakeCluster


def made_up_views(seed: int, count: int = 40) -> Iterator[BatchView]:
    """Instances in the middle of anything: decodes, prompts begun, prompts that wait for images, few blocks, few seats."""
    rng = random.Random(seed)
    for number in range(count):
        budget, limit = rng.choice([1, 8, 64, 512]), rng.choice([1, 4, 16])
        running = [_running(rng, f"r{at}") for at in range(rng.randrange(limit + 1))]
        waiting = [_waiting(rng, f"w{at}", at) for at in range(rng.randrange(6))]
        yield BatchView(number, tuple(running), tuple(waiting), rng.randrange(40), budget, limit)


def named(view: BatchView, shares: tuple[Share, ...]) -> tuple[Share, ...]:
    """The shares with every decode named."""
    every = tuple(Share(each.request_id, 1) for each in view.running if each.decoding)
    place = shares.index(EVERY_DECODE) if EVERY_DECODE in shares else len(shares)
    return (*shares[:place], *(every if place < len(shares) else ()), *shares[place + 1 :])


def _running(rng: random.Random, name: str) -> SequenceView:
    decoding = rng.random() < 0.6
    left = 1 if decoding else rng.randrange(1, 200)
    ready = left if decoding else rng.choice([0, left, rng.randrange(left + 1)])
    context, output = rng.randrange(1, 500), rng.randrange(1, 90) if decoding else 0
    return SequenceView(name, rng.randrange(100), 0, ready, left, context, output, 0, decoding)


def _waiting(rng: random.Random, name: str, arrived_ns: int) -> SequenceView:
    left = rng.randrange(1, 200)
    ready = rng.choice([0, left, left, rng.randrange(left + 1)])
    return SequenceView(name, arrived_ns, 0, ready, left, rng.choice([0, 16]), 0, rng.randrange(1, 15), False)


def steps(scheduler: InstanceScheduler, actions: list[InstanceAction], most: int) -> list[RunStep]:
    """The next iterations of an instance whose engine draws the token 7 always."""
    seen: list[RunStep] = []
    while len(seen) < most:
        step = next((action for action in actions if isinstance(action, RunStep)), None)
        if step is None:
            break
        seen.append(step)
        sampled = tuple((chunk.request_id, 7) for chunk in step.chunks if chunk.samples)
        actions = scheduler.handle(len(seen), StepEnded(step.step, sampled))
    return seen


class BatchPolicyContract:
    """Mix into a test class that defines `make`."""

    def make(self) -> BatchPolicy:
        raise NotImplementedError("return a fresh policy")  # the one abstract method of the suite

    def _composed(self) -> Iterator[tuple[BatchView, tuple[Share, ...]]]:
        policy = self.make()
        for seed in range(5):
            for view in made_up_views(seed):
                yield view, named(view, policy.compose(view))

    def test_docstring_names_idea_source_inputs_memory_cost(self) -> None:
        text = type(self.make()).__doc__ or ""
        assert not [word for word in ("Idea:", "Source:", "Inputs:", "Memory:", "Cost:") if word not in text]

    def test_only_what_is_in_the_view_is_named_once_and_with_no_more_than_is_ready(self) -> None:
        for view, shares in self._composed():
            known = {each.request_id: each for each in (*view.running, *view.waiting)}
            assert len({share.request_id for share in shares}) == len(shares)
            for share in shares:
                assert 0 < share.tokens <= known[share.request_id].ready_tokens

    def test_running_need_not_be_looked_at_where_sums_are_known(self) -> None:
        policy = self.make()
        for seed in range(5):
            for view in made_up_views(seed):
                known = structs.replace(view, known_begun=view.begun, known_decodes=view.decodes)
                assert named(view, policy.compose(view)) == named(view, policy.compose(known))

    def test_budget_seats_and_blocks_are_kept(self) -> None:
        chunked = self.make().chunked
        for view, shares in self._composed():
            prompt_alone = not chunked and len(shares) == 1
            decodes = {each.request_id for each in view.running if each.decoding}
            if chunked or not {share.request_id for share in shares} <= decodes:  # only decodes: the scheduler cuts
                assert sum(share.tokens for share in shares) <= view.token_budget or prompt_alone
            chosen = {share.request_id for share in shares}
            admitted = [each for each in view.waiting if each.request_id in chosen]
            assert len(admitted) <= max(0, view.sequence_limit - len(view.running))
            assert sum(each.blocks_needed for each in admitted) <= view.free_blocks

    def test_a_prompt_is_whole_where_the_policy_has_no_chunks(self) -> None:
        if self.make().chunked:
            return
        for view, shares in self._composed():
            left = {each.request_id: each.left_tokens for each in (*view.running, *view.waiting)}
            assert all(share.tokens == left[share.request_id] for share in shares)

    def test_no_iteration_is_missed_while_something_can_run(self) -> None:
        policy = self.make()
        for view, shares in self._composed():
            if any(each.decoding or (policy.chunked and each.ready_tokens) for each in view.running):
                assert shares
            first = view.waiting[0] if view.waiting else None
            seats = view.sequence_limit - len(view.running)
            if first and first.ready_tokens == first.left_tokens and seats > 0 and not view.running:
                assert bool(shares) or first.blocks_needed > view.free_blocks

    def test_nothing_to_do_needs_nothing(self) -> None:
        assert self.make().compose(BatchView(0, (), (), 10, 10, 10)) == ()

    def test_same_views_same_shares(self) -> None:
        assert list(self._composed()) == list(self._composed())

    def test_the_true_output_length_is_not_seen(self) -> None:
        assert set(SequenceView.__struct_fields__) == {
            "request_id", "arrived_ns", "priority", "ready_tokens", "left_tokens", "context_tokens", "output_tokens",
            "blocks_needed", "decoding", "has_images",
        }  # fmt: skip
        until = 4  # all are alike until the shortest answer ends
        lives = []
        for longest in (until, 50):
            scheduler = InstanceScheduler("i", InstanceLimits(blocks=99, token_budget=16), self.make())
            actions: list[InstanceAction] = []
            for number in range(4):
                sampling = Sampling(max_tokens=until if number else longest)
                request = Request(f"r{number}", tuple(range(9 + number)), sampling, arrived_ns=number)
                actions += scheduler.handle(0, RequestQueued(request))
            lives.append(steps(scheduler, actions, until))
        assert lives[0] == lives[1]

    def test_answers_are_right_through_a_random_life(self) -> None:
        for seed in range(4):
            rng = random.Random(seed)
            limits = InstanceLimits(12, 4, rng.choice([4, 32]), rng.choice([2, 8]), 20, end_tokens=frozenset(range(90)))
            cluster = FakeCluster(limits, [ALL_ROLES] * 2, [self.make], seed)
            for number in range(20):
                image = ImageSpan(rng.choice("abc"), 4, 3)
                text = tuple(range(rng.randrange(4, 20)))
                prompt, images = (text, ()) if number % 2 else ((*text[:4], 9, 9, 9, *text[4:]), (image,))
                request = Request(f"r{number}", prompt, Sampling(rng.randrange(1, 25)), images, arrived_ns=number)
                cluster.serving.submit(structs.replace(request, priority=rng.choice([0, 0, 1])))
                cluster.advance_some(rng.randrange(12))
            cluster.drain()  # asserts that all is answered, and rightly
