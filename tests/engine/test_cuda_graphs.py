"""Decode steps over the fixed, padded buffers of CUDA graphs, without CUDA: the tokens stay Transformers' own, and whatever
goes wrong ends in plain steps. What a GPU alone can show is in scripts/gpu serving."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tierline.engine.cuda_graphs import DecodeGraphs, Step  # noqa: E402
from tierline.schedulers.instance_state import InstanceLimits  # noqa: E402
from tierline.testing.checkpoints import CONTEXT_TOKENS  # noqa: E402
from tierline.testing.graphed import GraphedCluster  # noqa: E402
from tierline.testing.layouts import Disturbance  # noqa: E402

if TYPE_CHECKING:
    from tests.engine.conftest import Case

LIMITS = InstanceLimits(blocks=400, token_budget=64, context_tokens=CONTEXT_TOKENS, pool_bytes=60_000)


def graphed(made: Case, count: int = 30) -> tuple[GraphedCluster, list[str]]:
    """A cluster that has answered, and what is wrong with its answers."""
    cluster = GraphedCluster(made.families, "EPD", LIMITS, seed=4)
    cluster.use_graphs()
    return cluster, run(cluster, made, count)


def run(cluster: GraphedCluster, made: Case, count: int) -> list[str]:
    requests, wanted = made.again("")
    cluster.run(requests[:count], made.pictures, Disturbance(move=0.1, arrival=0.6))
    cluster.settle()
    faults = cluster.faults({each.request_id: wanted[each.request_id] for each in requests[:count]})
    cluster.close()
    return faults


@pytest.mark.parametrize("kind", ["llama", "llava-clip"])
def test_padded_decode_steps_give_transformers_tokens(case: Callable[[str], Case], kind: str) -> None:
    cluster, faults = graphed(case(kind))
    assert faults == []
    assert cluster.witness.counts["moves"] > 3
    assert len({key[0] for graphs in cluster.graphs.values() for key in graphs._graphs}) > 1, "batch sizes"
    for graphs in cluster.graphs.values():
        assert not graphs.off
        assert graphs.starts > 0
        assert all(graph.checked for graph in graphs._graphs.values())


@pytest.mark.skip(reason="hangs on how many sequences decode together, which other work on the machine changes")
def test_padding_writes_to_the_scratch_block_alone(case: Callable[[str], Case]) -> None:
    made = case("llama")
    cluster = GraphedCluster(made.families, "EPD", LIMITS, seed=4)
    cluster.use_graphs()
    for graphs in cluster.graphs.values():
        graphs._scratch = 0  # a block that sequences have too
    assert run(cluster, made, 30) != []


def failing(step: Step, device: object) -> Step:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def other(step: Step, device: object) -> Step:
    return lambda: None  # a recording that leaves everything as it was


@pytest.mark.parametrize(("record", "said"), [(failing, "operation not permitted"), (other, "differs from the plain")])
def test_a_recording_that_fails_or_errs_is_not_used(
    case: Callable[[str], Case],
    caplog: pytest.LogCaptureFixture,
    record: Callable[[Step, object], Step],
    said: str,
) -> None:
    made = case("llama")
    cluster = GraphedCluster(made.families, "EPD", LIMITS, seed=4)
    cluster.use_graphs()
    for graphs in cluster.graphs.values():
        graphs._record = record
    with caplog.at_level(logging.WARNING, logger="tierline.engine.cuda_graphs"):
        assert run(cluster, made, 12) == []
    assert all(graphs.off and not graphs.starts for graphs in cluster.graphs.values())
    assert len(caplog.messages) == len(cluster.graphs)
    assert all("CUDA graphs are off" in message and said in message for message in caplog.messages)


def test_more_rows_than_the_largest_graph_run_plainly(
    case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = case("llama")
    cluster = GraphedCluster(made.families, "EPD", LIMITS, seed=4)
    cluster.use_graphs()
    calls: list[int] = []
    real = DecodeGraphs.run

    def small(self: DecodeGraphs, inputs: torch.Tensor, *others: object) -> object:
        calls.append(inputs.shape[1])
        return real(self, inputs, *others)  # type: ignore[arg-type]

    monkeypatch.setattr("tierline.engine.cuda_graphs.ROWS", (1, 2))
    monkeypatch.setattr(DecodeGraphs, "run", small)
    assert run(cluster, made, 30) == []
    assert max(calls) > 2
    assert {key[0] for graphs in cluster.graphs.values() for key in graphs._graphs} == {1, 2}
