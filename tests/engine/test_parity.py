"""Every answer equals that of Transformers' `generate`, token for token: in every layout, with sequences moved while they
decode, roles changed under load, cold and warm caches, and arenas that are too small. And these tests notice when any of
that is only said to have happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tierline.core.instance_actions import InstanceAction, TellMoved, TellRoles  # noqa: E402
from tierline.core.instance_events import EmbeddingsArrived, InstanceEvent, MoveAsked, RolesSet, RoundArrived  # noqa: E402
from tierline.core.request import Role  # noqa: E402
from tierline.engine.arena import KvArena  # noqa: E402
from tierline.schedulers import sequence as sequences  # noqa: E402
from tierline.schedulers.instance_state import InstanceLimits  # noqa: E402
from tierline.schedulers.kv_blocks import block_key  # noqa: E402
from tierline.testing.checkpoints import CONTEXT_TOKENS  # noqa: E402
from tierline.testing.evidence import Watched  # noqa: E402
from tierline.testing.layouts import Cluster, Disturbance  # noqa: E402

if TYPE_CHECKING:
    from tests.engine.conftest import Case

TEXT = ("llama", "qwen3")
IMAGES = ("llava-clip", "llava-siglip", "qwen2_5_vl", "smolvlm")
LEAST_GAP = 1e-3
WARM = 24  # of the requests are asked again
STORM = Disturbance(move=0.6, roles=0.05)


def limits(blocks: int = 400, **changes: Any) -> InstanceLimits:
    return InstanceLimits(blocks=blocks, token_budget=64, context_tokens=CONTEXT_TOKENS, pool_bytes=60_000, **changes)


@pytest.mark.parametrize("kind", [*TEXT, *IMAGES, "idefics3", "tiny-vlm"])
def test_the_reference_is_well_separated_and_the_prompts_are_the_processors(
    case: Callable[[str], Case], kind: str
) -> None:
    made = case(kind)
    assert len(made.requests) >= 50
    assert min(answer.gap for answer in made.answers.values()) > LEAST_GAP
    for request in made.requests:
        assert request.prompt == made.answers[request.request_id].prompt
    lengths = {len(request.prompt) for request in made.requests}
    assert min(lengths) <= 2
    assert max(lengths) > 450
    assert len({answer.tokens for answer in made.answers.values()}) > 30
    if kind not in TEXT:
        assert {len(request.images) for request in made.requests} == {0, 1, 2, 3, 4}
        hashes = [image.content_hash for request in made.requests for image in request.images]
        assert len(set(hashes)) < len(hashes)


LAYOUTS_OF = [
    *((kind, layout) for kind in TEXT for layout in ("EPD", "P|D")),
    *((kind, layout) for kind in IMAGES if kind != "llava-siglip" for layout in ("EPD", "P|D", "E|PD", "E|P|D")),
    *((kind, "E|P|D") for kind in ("llava-siglip", "idefics3")),
    *(("tiny-vlm", layout) for layout in ("EPD", "E|P|D")),
]


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS_OF)
def test_tokens_are_transformers_tokens_whatever_happens(case: Callable[[str], Case], kind: str, layout: str) -> None:
    made = case(kind)
    cluster = Cluster(made.families, layout, limits(), seed=len(kind + layout))
    for instance in cluster.instances.values():
        instance._runner.few_sizes = layout != "P|D"  # as for 16-bit weights: rows that are nobody's change nothing
    counts = cluster.witness.counts
    cold, wanted = made.again("")
    cluster.run(cold, made.pictures, STORM)
    cold_encodes, cold_cached = counts["ran E"], cached(cluster)
    again, wanted_again = made.again(" again")
    warm = again[:WARM]
    cluster.run(warm, made.pictures, STORM)
    cluster.settle()
    assert cluster.faults({**wanted, **{each.request_id: wanted_again[each.request_id] for each in warm}}) == []
    cluster.close()

    # All of it really happened.
    assert counts["moves"] >= 6
    assert counts["rounds"] >= counts["moves"]
    assert counts["rounds before the last"] > 0 or layout == "EPD"  # where caches leave little to send
    assert counts["rounds that changed the target"] > 0.8 * counts["rounds"]
    assert counts["KV bytes"] > 100_000
    shared = [each for each in (*cold, *warm) if len(set(cluster.makers(each.request_id))) > 1]
    assert len(shared) >= 6, "answers begun at one instance and ended at another"
    assert min(counts["gained P"], counts["gained D"]) >= 3
    assert cached(cluster) - cold_cached > cold_cached * WARM / len(cold)
    if kind not in TEXT:
        assert counts["gained E"] >= 2
        assert counts["embeddings sent"] > 10
        assert counts["ran E"] - cold_encodes < cold_encodes * WARM / len(cold)


def cached(cluster: Cluster) -> int:
    return sum(scheduler.status().prefix_hits for scheduler in cluster.schedulers.values())


@pytest.mark.parametrize("kind", ["llama", *IMAGES])
@pytest.mark.parametrize("policy", ["sarathi", "fcfs"])
def test_preempted_sequences_go_on_as_if_nothing_had_happened(
    case: Callable[[str], Case], kind: str, policy: str
) -> None:
    made = case(kind)
    blocks = 14
    cluster = Cluster(made.families, "alone", limits(blocks=blocks), policy=policy, seed=3)
    small, wanted = [], {}
    for suffix in ("", " b", " c"):
        requests, answers = made.again(suffix)
        small += [each for each in requests if len(each.prompt) + each.sampling.max_tokens <= 16 * (blocks - 2)]
        wanted.update(answers)
    small = [each for each in small if each.sampling.max_tokens >= 5]
    assert len(small) > 45
    cluster.run(small, made.pictures, Disturbance(arrival=1.0))
    assert cluster.faults({each.request_id: wanted[each.request_id] for each in small}) == []
    cluster.close()
    assert cluster.witness.counts["preempted"] >= 3
    assert cluster.schedulers["i0"].status().preemptions >= 3


# --- what would be noticed


class LostKv(Cluster):
    def carry(self, event: InstanceEvent, payload: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(payload) if isinstance(event, RoundArrived) else payload.clone()


class LostEmbeddings(Cluster):
    def carry(self, event: InstanceEvent, payload: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(payload) if isinstance(event, EmbeddingsArrived) else payload.clone()


class DeafArena(KvArena):
    def load(self, blocks: object, payload: object) -> None:
        """Reports success."""


class DeafArenas(Cluster):
    def make_arena(self, *shape: Any) -> KvArena:
        return DeafArena(*shape)


class OnlySays(Watched):
    """Says that roles are set and that sequences have moved."""

    def handle(self, now_ns: int, event: InstanceEvent) -> list[InstanceAction]:
        if isinstance(event, RolesSet):
            said: list[InstanceAction] = [TellRoles(event.roles, by_batch=False)]
        elif isinstance(event, MoveAsked):
            said = [TellMoved(event.request_id, event.to)]
        else:
            return super().handle(now_ns, event)
        self._witness.handled(self._own_name, event, said)
        return said


class OnlyWords(Cluster):
    def make_scheduler(self, name: str, limits: InstanceLimits, policy: str, roles: Role) -> Watched:
        real = super().make_scheduler(name, limits, policy, roles)
        real.__class__ = OnlySays
        return real


@pytest.mark.parametrize(
    ("broken", "layout", "disturbance"),
    [
        (LostKv, "E|P|D", Disturbance()),
        (LostEmbeddings, "E|PD", Disturbance()),
        (DeafArenas, "P|D", Disturbance()),
        (OnlyWords, "EPD", Disturbance(move=0.3)),
        (OnlyWords, "EPD", Disturbance(roles=0.1)),
    ],
)
def test_a_transfer_or_change_that_only_reports_success_is_noticed(
    case: Callable[[str], Case], broken: type[Cluster], layout: str, disturbance: Disturbance
) -> None:
    made = case("llava-clip")
    cluster = broken(made.families, layout, limits(), seed=5)
    requests, wanted = made.again("")
    cluster.run(requests, made.pictures, disturbance)
    faults = cluster.faults(wanted)
    cluster.close()
    assert len(faults) > 3
    wrong = [request_id for request_id, tokens in wanted.items() if cluster.answer(request_id) != tokens]
    if broken is not OnlyWords:
        assert len(wrong) > 10, "the tokens themselves depend on what was lost"
    else:
        assert cluster.witness.counts["moves"] == 0


def test_a_prefix_cache_that_does_not_look_at_images_is_noticed(
    case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sequences, "block_key", lambda parent, tokens, images, first: block_key(parent, tokens, (), first)
    )
    made = case("llava-clip")
    cluster = Cluster(made.families, "EPD", limits(), seed=5)
    requests, wanted = made.again("")
    cluster.run(requests, made.pictures)
    assert cluster.faults(wanted) != []
    cluster.close()
