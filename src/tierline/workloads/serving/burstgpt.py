"""`burstgpt:FILE`: BurstGPT (Wang et al., KDD'25; HPMLL/BurstGPT, CC-BY-4.0), conversations with ChatGPT and GPT-4.

CSV: Timestamp (seconds), Model, Request tokens, Response tokens; further columns are not read. Requests without an answer
(Response tokens 0: they failed) are left out. `model` chooses one model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.workloads.serving.columns import Columns
from tierline.workloads.serving.replayed import replayed
from tierline.workloads.serving.tables import Table
from tierline.workloads.serving.want import Want


@dataclass(frozen=True, slots=True)
class Options:
    scale: str = "stretch"
    model: str = ""


def build(path: str, options: Options, want: Want) -> Columns:
    """Text only. Raises InvalidInput for a file that is not such a trace, or in which `model` answered nothing."""
    table = Table(path, ("Timestamp", "Model", "Request tokens", "Response tokens"))
    times_s = table.seconds("Timestamp")
    asked, answered = table.whole("Request tokens"), table.whole("Response tokens")
    names, stream = np.unique(np.array(table.texts("Model")), return_inverse=True)
    kept = answered > 0
    if options.model:
        if options.model not in names:
            raise InvalidInput(f"'{path}' holds no model '{options.model}'; it has {', '.join(map(str, names))}.")
        kept &= names[stream] == options.model
    if not kept.any():
        raise InvalidInput(f"'{path}' holds no request that was answered.")
    zeros = np.zeros(len(kept), np.int64)
    trace = Columns(
        arrived_s=times_s,
        text_tokens=np.maximum(asked, 1),
        output_tokens=answered,
        image_counts=zeros,
        image_tokens=zeros[:0],
        stream=stream.astype(np.int64),
        streams=tuple(f"burstgpt/{name}" for name in names),
    )
    return replayed("burstgpt", trace.take(np.flatnonzero(kept)), want, options.scale)
