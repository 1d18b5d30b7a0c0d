"""From measured operators and a model's shape to the curves of a profile: which operators a layer has, and how often.

Matrix products and attention are measured (`perf/operator_tables.py`). What is left (norms, residuals, rotary embedding,
activation, KV writes, sampling) is memory-bound: bytes over bandwidth, plus the least that a kernel takes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tierline.core.errors import InvalidInput
from tierline.perf.curves_of_time import Knots, rising, thinned
from tierline.perf.model_shapes import BF16_BYTES, ModelShape, VisionShape
from tierline.perf.operator_tables import OperatorTables
from tierline.perf.serving_devices import ServingDevice
from tierline.perf.serving_profile import EncoderOperators, Generation, Operators

Seconds = NDArray[np.float64]
LAYER_KERNELS = 5  # two norms with their residuals, rotary embedding, KV write, activation
ENCODER_KERNELS = 4  # the same without a KV write
ROW_BYTES = 10  # of each output value: written in bf16, turned to fp32, read again to draw
GENERATION_BATCHES = (1, 4, 8, 16, 32, 64, 128, 256, 512)  # those of the tables that a thinned profile keeps


def operators_of(tables: OperatorTables, device: ServingDevice, shape: ModelShape, tolerance: float = 0.0) -> Operators:
    """All layers' curves. `tolerance`: relative error that may be made to keep fewer knots. Raises `InvalidInput` for a
    model with images where the tables hold no encoder."""
    context = rising(tables.context_s(shape.heads, shape.kv_heads, shape.head_dim)) * shape.layers
    lengths = tables.context_lengths
    launch_s = float(context[0])
    rows = tables.ms[tables.ms <= 4096]
    head = tables.gemm_s(shape.vocabulary, shape.hidden)[: len(rows)]
    head = head + _memory_s(device, rows, ROW_BYTES * shape.vocabulary, 2)
    if shape.vision is not None and not device.encodes:
        raise InvalidInput(
            f"device '{device.name}' with model '{shape.name}': the tables hold no encoder of {device.name}, so a model with "
            "images cannot be timed; h100, h200 or l40s is allowed."
        )
    return Operators(
        matrices=_knots(tables.ms, _matrices(tables, device, shape), tolerance),
        head=_knots(rows, head, tolerance),
        context=thinned(Knots((0.0, *_pairs(lengths[1:])), (0.0, *(context[1:] - launch_s).tolist())), tolerance),
        launch_s=launch_s,
        group=max(1, shape.heads // shape.kv_heads),
        generation=_generation(tables, shape, tolerance),
        encoder=None if shape.vision is None else _encoder(tables, device, shape.vision, tolerance),
    )


def _matrices(tables: OperatorTables, device: ServingDevice, shape: ModelShape) -> Seconds:
    hidden, width = shape.hidden, shape.heads * shape.head_dim
    kv_width = shape.kv_heads * shape.head_dim
    layer = (
        tables.gemm_s(width + 2 * kv_width, hidden)
        + tables.gemm_s(hidden, width)
        + tables.gemm_s(2 * shape.intermediate, hidden)
        + tables.gemm_s(hidden, shape.intermediate)
    )
    values = 8 * hidden + 2 * (width + kv_width) + 4 * kv_width + 3 * shape.intermediate
    layer = layer + _memory_s(device, tables.ms, BF16_BYTES * values, LAYER_KERNELS)
    return layer * shape.layers


def _generation(tables: OperatorTables, shape: ModelShape, tolerance: float) -> tuple[Generation, ...]:
    table = tables.generation_s(shape.heads, shape.kv_heads, shape.head_dim) * shape.layers
    found = []
    for batch, row in zip(tables.generation_batches.tolist(), table, strict=True):
        if batch in GENERATION_BATCHES or not tolerance:
            found.append(Generation(batch, _knots(tables.generation_lengths, row, tolerance)))
    return tuple(found)


def _encoder(tables: OperatorTables, device: ServingDevice, vision: VisionShape, tolerance: float) -> EncoderOperators:
    hidden, patches = vision.hidden, tables.ms
    layer = (
        tables.gemm_s(3 * hidden, hidden)
        + tables.gemm_s(hidden, hidden)
        + tables.gemm_s((2 if vision.gated else 1) * vision.intermediate, hidden)
        + tables.gemm_s(hidden, vision.intermediate)
    )
    values = 8 * hidden + 4 * hidden + (3 if vision.gated else 2) * vision.intermediate
    layer = layer + _memory_s(device, patches, BF16_BYTES * values, ENCODER_KERNELS)
    matrices = layer * vision.layers + tables.gemm_s(hidden, vision.patch_inputs)
    for outputs, inputs in vision.merger:
        matrices = matrices + np.interp(patches / vision.merge, patches, tables.gemm_s(outputs, inputs))
    attention = tables.encoder_s(vision.heads, vision.head_dim)
    lengths = tables.encoder_lengths
    full = rising(attention[0]) * vision.full_layers
    windows = None
    if vision.window_patches:
        by_batch = rising([float(np.interp(vision.window_patches, lengths, row)) for row in attention])
        by_batch = by_batch * (vision.layers - vision.full_layers)
        windows = thinned(Knots(_sizes(tables.encoder_batches), tuple(by_batch.tolist())), tolerance)
    return EncoderOperators(
        matrices=_knots(patches, matrices, tolerance),
        attention=thinned(Knots((0.0, *_sizes(lengths[1:])), (0.0, *(full[1:] - full[0]).tolist())), tolerance),
        launch_s=float(full[0]),
        window_patches=vision.window_patches,
        windows=windows,
    )


def _memory_s(device: ServingDevice, sizes: NDArray[np.int64], size_bytes: int, kernels: int) -> Seconds:
    """Kernels that read and write `size_bytes` for each of `sizes`."""
    each_s = size_bytes / (device.bytes_per_s * device.memory_share)
    return np.asarray(sizes, dtype=np.float64) * each_s + kernels * device.kernel_s


def _pairs(lengths: NDArray[np.int64]) -> tuple[float, ...]:
    """Of (new token, token before it or itself) in prompts of these lengths."""
    return _sizes(lengths * (lengths + 1) / 2)


def _sizes(sizes: NDArray[np.int64] | Seconds) -> tuple[float, ...]:
    return tuple(sizes.astype(float).tolist())


def _knots(sizes: NDArray[np.int64], seconds: Seconds, tolerance: float) -> Knots:
    return thinned(Knots(_sizes(sizes), tuple(rising(seconds).tolist())), tolerance)
