"""A cluster whose instances decode through `DecodeGraphs`. Without CUDA a step that is "recorded" is simply run again over
the same buffers: all but the recording itself is what runs on a GPU."""

from __future__ import annotations

import torch

from tierline.engine.arena import KvArena
from tierline.engine.cuda_graphs import DecodeGraphs, Step
from tierline.testing.layouts import Cluster


def run_again(step: Step, device: torch.device) -> Step:
    """In place of `CudaRecorder`."""
    return step


class GraphedCluster(Cluster):
    """To be told `use_graphs` before it runs. Its arenas have one block more than the scheduler knows of."""

    graphs: dict[str, DecodeGraphs]

    def make_arena(
        self,
        layers: int,
        blocks: int,
        block: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KvArena:
        return super().make_arena(layers, blocks + 1, block, kv_heads, head_dim, dtype, device)

    def use_graphs(self) -> None:
        self.graphs = {}
        for name, instance in self.instances.items():
            runner, arena = instance._runner, self.witness.arenas[name]
            record = None if arena.keys.is_cuda else run_again
            backbone, scratch = runner._family.backbone, arena.keys.shape[2] - 1
            self.graphs[name] = DecodeGraphs(backbone, arena, scratch, record)
            runner.use_graphs(self.graphs[name])
