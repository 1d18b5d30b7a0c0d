"""A serving profile from operator tables and a model's shape, for a device that is not at hand.

What tables do not say is assumed, the same for every policy that is compared, and stated here.
"""

from __future__ import annotations

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.core.stage_times import PATCHES_PER_TOKEN, BatchShape, StageTimes
from tierline.perf.model_shapes import ModelShape
from tierline.perf.operator_tables import OperatorTables
from tierline.perf.serving_demand import tipping_point
from tierline.perf.serving_devices import ServingDevice
from tierline.perf.serving_profile import (
    FORMAT,
    Advice,
    Fit,
    Memory,
    Operators,
    Overhead,
    Preparation,
    ServingProfile,
    Transfer,
)
from tierline.perf.stage_operators import operators_of
from tierline.perf.stage_time import OperatorTimes

SOURCE = (
    "operator tables of ai-dynamo/aiconfigurator (https://github.com/ai-dynamo/aiconfigurator), measured under vLLM"
)
LICENCE = "Apache-2.0; Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES"
MEMORY_SHARE = 0.9  # of the device's memory that an engine takes, as vLLM does by default
OVERHEAD = Overhead(iteration_s=8e-4, sequence_s=5e-6, encode_s=1e-3)  # assumed: an engine with CUDA graphs
TRANSFER_SETUP_S, LINK_SHARE = 1e-3, 0.7  # assumed: a few messages between processes, and what copies of blocks reach
# Of one core. JPEG decoding was measured at 2.5 microseconds a patch (14 x 14 pixels); resizing, normalising and cutting into
# patches are assumed to take as long again, as a vectorised processor does (Transformers' PIL one took 20 to 33).
PREPARATION = Preparation(image_s=1e-3, patch_s=5e-6)
MIX_TEXT, MIX_PATCHES, MIX_OUTPUT, MIX_BATCH = 512, 4096, 256, 32
DECODE_SLOWDOWN, DECODE_KV_SHARE = 2.0, 0.9


def table_profile(
    tables: OperatorTables, device: ServingDevice, shape: ModelShape, tolerance: float = 0.0
) -> ServingProfile:
    """Raises `InvalidInput` where the model does not fit onto the device or cannot be timed there."""
    operators = operators_of(tables, device, shape, tolerance)
    room = int(device.memory_bytes * MEMORY_SHARE) - device.reserved_bytes - shape.weights_bytes
    kv_tokens = room // shape.kv_token_bytes
    if kv_tokens < 1:
        raise InvalidInput(
            f"model '{shape.name}' does not fit onto device '{device.name}': its weights take "
            f"{shape.weights_bytes / 1e9:.1f} GB of {device.memory_bytes / 1e9:.1f} GB."
        )

    def profile(operators: Operators, advice: Advice, fit: Fit) -> ServingProfile:
        return ServingProfile(
            format=FORMAT,
            device=device.name,
            model=shape.name,
            source=SOURCE,
            licence=LICENCE,
            memory=Memory(shape.weights_bytes, kv_tokens, shape.kv_token_bytes, shape.embedding_token_bytes),
            transfer=Transfer(TRANSFER_SETUP_S, device.link_bytes_per_s * LINK_SHARE),
            preparation=PREPARATION,
            overhead=OVERHEAD,
            advice=advice,
            fit=fit,
            operators=operators,
            patches_per_token=shape.vision.merge if shape.vision else PATCHES_PER_TOKEN,
        )

    unknown = Advice(0, 0.0, 0.0, 0.0, 0.0, 0.0, "")
    exact = OperatorTimes(profile(operators_of(tables, device, shape), unknown, Fit(0, 0.0, 0.0)))
    thinned = OperatorTimes(profile(operators, unknown, Fit(0, 0.0, 0.0)))
    merge = shape.vision.merge if shape.vision else 0
    advice = advise(exact, merge)
    return profile(operators, advice, _difference(exact, thinned, images=merge > 0) if tolerance else Fit(0, 0.0, 0.0))


def advise(times: StageTimes, merge: int) -> Advice:
    """What follows from stage times. The split is that of an instance's time when half of the requests show one image of
    `MIX_PATCHES` patches (`merge` of them a position; 0 = the model takes none), each has `MIX_TEXT` tokens of text and
    `MIX_OUTPUT` of output, and decodes run `MIX_BATCH` at a time."""
    image_tokens = MIX_PATCHES // merge if merge else 0
    lone = times.iteration_s(BatchShape(decodes=1, decode_context=MIX_TEXT))
    encode = times.encode_s((MIX_PATCHES,)) / 2 if merge else 0.0
    prefills = [times.iteration_s(BatchShape(chunks=((MIX_TEXT + images, 0),))) for images in (0, image_tokens)]
    prefill = sum(prefills) / 2
    context = MIX_BATCH * (MIX_TEXT + image_tokens // 2)
    decode = times.decodes_s(MIX_BATCH, context, MIX_OUTPUT) / MIX_BATCH
    total = encode + prefill + decode
    mix = f"{MIX_TEXT} text tokens, {MIX_OUTPUT} output tokens, batch {MIX_BATCH}"
    if merge:
        mix += f", half of the requests with one image of {MIX_PATCHES} patches"
    return Advice(
        tipping_tokens=tipping_point(times),
        decode_tpot_s=DECODE_SLOWDOWN * lone,
        decode_kv_share=DECODE_KV_SHARE,
        encode_share=encode / total,
        prefill_share=prefill / total,
        decode_share=decode / total,
        mix=mix,
    )


def _difference(exact: OperatorTimes, other: OperatorTimes, images: bool) -> Fit:
    """Over 2,000 batches of a fixed draw: some that only decode, chunks with and without a cached prefix, and both."""
    rng = np.random.default_rng(0)
    errors, encode_errors = [], []
    for _ in range(2000):
        decodes = int(2 ** rng.uniform(0, 8)) if rng.random() < 0.7 else 0
        context = decodes * int(2 ** rng.uniform(4, 13))
        chunks = tuple(
            (int(2 ** rng.uniform(0, 12)), int(2 ** rng.uniform(0, 14)) if rng.random() < 0.5 else 0)
            for _ in range(rng.integers(0 if decodes else 1, 4))
        )
        batch = BatchShape(chunks, decodes, context)
        errors.append(abs(other.iteration_s(batch) / exact.iteration_s(batch) - 1))
        if images:
            patches = [int(2 ** rng.uniform(6, 14)) for _ in range(rng.integers(1, 5))]
            encode_errors.append(abs(other.encode_s(patches) / exact.encode_s(patches) - 1))
    found = [*np.percentile(errors, (50, 95)), *(np.percentile(encode_errors, (50, 95)) if images else (0.0, 0.0))]
    median, p95, encode_median, encode_p95 = map(float, found)
    return Fit(len(errors), median, p95, len(encode_errors), encode_median, encode_p95)
