"""The decode step as CUDA graphs: its many small launches are recorded once and then started as one.

Not yet measured on a GPU; `InstanceSettings.cuda_graphs` is off by default. `scripts/gpu serving` compares tokens and speed
with it and without it.

An iteration in which every row decodes is padded to a batch size of `ROWS` and to block tables of a power of two; each pair
of these has a graph of its own, recorded when it is first needed. A graph reads fixed buffers (inputs, positions, slots,
block tables, lengths), which are filled before it is started. Rows that pad write to a scratch block that is nobody's. The
first start of a graph is compared with the plain step; where recording fails or the two differ, one line is logged and all
steps are plain from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tierline.engine import attention
from tierline.engine.arena import KvArena
from tierline.engine.attention import Decodes, StepLayout

log = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
LEAST_BLOCKS = 8
WARM_UPS = 2  # plain runs before recording: libraries set themselves up in their first calls
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}  # of the largest value

Step = Callable[[], None]
Record = Callable[[Step, torch.device], Step]


class CudaRecorder:
    """Records steps as CUDA graphs. They run one after the other, so all use the same memory between their buffers."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._side: Any = None  # one for all: PyTorch has 32 streams, and gives them out again

    def __call__(self, step: Step, device: torch.device) -> Step:
        with torch.cuda.device(device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self._side):
                for _ in range(WARM_UPS):
                    step()
            torch.cuda.current_stream(device).wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as the encoder's, may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        return graph.replay


@dataclass(slots=True)
class _Graph:
    """The buffers of one batch size and table width, and what starts the step that reads and writes them."""

    inputs: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor
    hidden: torch.Tensor
    replay: Step | None = None
    checked: bool = False


class DecodeGraphs:
    """`backbone`: from embeddings to hidden states. `scratch`: a block of `arena` that no sequence is ever given. `record`
    turns a step into one that is started by a single call."""

    def __init__(self, backbone: Any, arena: KvArena, scratch: int, record: Record | None = None) -> None:
        self._backbone = backbone
        self._arena = arena
        self._scratch = scratch
        self._record = record or CudaRecorder()
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self.off = False  # something went wrong: all steps are plain
        self.starts = 0  # steps that ran as a graph

    def forget(self) -> None:
        """What the graphs read has moved: they are recorded anew when they are needed."""
        self._graphs.clear()

    def run(self, inputs: torch.Tensor, positions: torch.Tensor, layout: StepLayout) -> torch.Tensor | None:
        """Last hidden states [rows, hidden] of an iteration; None where it has to run plainly. They are good until the next
        call. `inputs` [1, rows, hidden]; `positions` [1, rows] or [axes, 1, rows]."""
        decodes = layout.decodes
        if self.off or decodes is None or layout.chunks or len(decodes.lengths) > ROWS[-1]:
            return None
        rows, width = decodes.tables.shape
        batch = next(size for size in ROWS if size >= rows)
        blocks = max(LEAST_BLOCKS, 1 << (width - 1).bit_length())
        key = (batch, blocks, *positions.shape[:-1])
        try:
            graph = self._graphs.get(key)
            if graph is None:
                graph = self._graphs[key] = self._buffers(batch, blocks, inputs, positions)
            self._fill(graph, inputs, positions, layout.slots, decodes)
            if graph.replay is None:
                graph.replay = self._record(lambda: self._padded(graph), inputs.device)
            graph.replay()
            if not graph.checked:
                self._check(graph.hidden[:rows], inputs, positions, layout)
                graph.checked = True
        except (RuntimeError, ValueError) as error:
            self.off = True
            self._graphs.clear()
            log.warning("CUDA graphs are off: %s", (str(error).splitlines() or [type(error).__name__])[0])
            return None
        self.starts += 1
        return graph.hidden[:rows]

    def _buffers(self, batch: int, blocks: int, inputs: torch.Tensor, positions: torch.Tensor) -> _Graph:
        device, hidden = inputs.device, inputs.shape[-1]
        return _Graph(
            inputs=torch.zeros((1, batch, hidden), dtype=inputs.dtype, device=device),
            positions=torch.zeros((*positions.shape[:-1], batch), dtype=positions.dtype, device=device),
            slots=torch.zeros(batch, dtype=torch.long, device=device),
            tables=torch.zeros((batch, blocks), dtype=torch.int32, device=device),
            lengths=torch.zeros(batch, dtype=torch.int32, device=device),
            hidden=torch.zeros((batch, hidden), dtype=inputs.dtype, device=device),
        )

    def _fill(
        self, graph: _Graph, inputs: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, decodes: Decodes
    ) -> None:
        rows, width = decodes.tables.shape
        graph.inputs[:, :rows] = inputs
        graph.positions[..., :rows] = positions
        graph.slots.fill_(self._scratch * self._arena.block_tokens)
        graph.slots[:rows] = slots
        graph.tables.fill_(self._scratch)
        graph.tables[:rows, :width] = decodes.tables
        graph.lengths.fill_(1)  # a row that sees nothing would be not a number
        graph.lengths[:rows] = decodes.lengths

    def _padded(self, graph: _Graph) -> None:
        decodes = Decodes.of(self._arena, graph.tables, graph.lengths)
        layout = StepLayout(arena=self._arena, slots=graph.slots, decodes=decodes, chunks=())
        graph.hidden.copy_(self._plain(graph.inputs, graph.positions, layout))

    def _plain(self, inputs: torch.Tensor, positions: torch.Tensor, layout: StepLayout) -> torch.Tensor:
        attention.use_layout(layout)
        try:
            output = self._backbone(inputs_embeds=inputs, position_ids=positions, attention_mask=None, use_cache=False)
        finally:
            attention.use_layout(None)
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _check(self, hidden: torch.Tensor, inputs: torch.Tensor, positions: torch.Tensor, layout: StepLayout) -> None:
        """Raises `ValueError` where a graph's answer is not that of the plain step."""
        plain = self._plain(inputs, positions, layout).float()
        furthest = float((hidden.float() - plain).abs().max() / plain.abs().max().clamp(min=1e-6))
        allowed = TOLERANCES.get(hidden.dtype, 0.1)
        if not furthest <= allowed:
            raise ValueError(
                f"a graph of {len(hidden)} rows differs from the plain step by {furthest:.3g} of the largest value, "
                f"and {allowed} is allowed"
            )
