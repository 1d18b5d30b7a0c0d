"""`azure:FILE` and `azure-mm:FILE`: Microsoft's traces of LLM inference services (AzurePublicDataset, CC-BY-4.0).

azure: AzureLLMInferenceTrace_conv.csv or _code.csv of 2023 and 2024 (Splitwise, ISCA'24; DynamoLLM, HPCA'25):
TIMESTAMP, ContextTokens, GeneratedTokens. azure-mm: AzureLMMInferenceTrace_multimodal.csv of 2025 (ModServe, SoCC'25):
NumImages besides; its ContextTokens count text and images together and images' own sizes are not told. So an image is
taken to have `image_tokens`, or less where the context does not hold so many beside `text_tokens` of text. An answer of
0 tokens counts as 1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.workloads.serving.columns import Columns
from tierline.workloads.serving.replayed import TraceOptions, replayed
from tierline.workloads.serving.tables import Table, stamp
from tierline.workloads.serving.want import Want

Options = TraceOptions


@dataclass(frozen=True, slots=True)
class MultimodalOptions:
    scale: str = "stretch"
    image_tokens: int = 576
    text_tokens: int = 16


def build(path: str, options: TraceOptions, want: Want) -> Columns:
    """Text only. Raises InvalidInput for a file that is not such a trace."""
    return replayed("azure", _read(path, stamp(path)), want, options.scale)


@functools.lru_cache(maxsize=2)
def _read(path: str, stamp: tuple[int, int]) -> Columns:
    table = Table(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    context = table.whole("ContextTokens")
    zeros = np.zeros(len(context), np.int64)
    return Columns(
        arrived_s=table.dates("TIMESTAMP"),
        text_tokens=np.maximum(context, 1),
        output_tokens=np.maximum(table.whole("GeneratedTokens"), 1),
        image_counts=zeros,
        image_tokens=zeros[:0],
        stream=zeros,
        streams=("azure",),
    )


def build_multimodal(path: str, options: MultimodalOptions, want: Want) -> Columns:
    """Images and text. Raises InvalidInput for a file that is not such a trace or options below 1."""
    if options.image_tokens < 1 or options.text_tokens < 1:
        raise InvalidInput("options 'image_tokens' and 'text_tokens' of workload 'azure-mm' must be at least 1.")
    table = Table(path, ("TIMESTAMP", "NumImages", "ContextTokens", "GeneratedTokens"))
    context, counts = table.whole("ContextTokens"), table.whole("NumImages")
    each = np.minimum((context - options.text_tokens) // np.maximum(counts, 1), options.image_tokens)
    each = np.where(counts > 0, np.maximum(each, 1), 0)
    trace = Columns(
        arrived_s=table.dates("TIMESTAMP"),
        text_tokens=np.maximum(context - counts * each, 1),
        output_tokens=np.maximum(table.whole("GeneratedTokens"), 1),
        image_counts=counts,
        image_tokens=np.repeat(each, counts),
        stream=np.zeros(len(counts), np.int64),
        streams=("azure-mm",),
    )
    return replayed("azure-mm", trace, want, options.scale)
