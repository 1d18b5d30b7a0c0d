"""`mooncake:FILE`: Mooncake's trace of Kimi's conversations (Qin et al., FAST'25; kvcache-ai/Mooncake, Apache-2.0).

JSON lines: timestamp (ms), input_length, output_length, hash_ids of the prompt's blocks of 512 tokens. Equal ids at the
beginning of two prompts are equal text before them too, so they become the request's `prefix`; trailing blocks that no
other request has are left out of it, for nobody can share them.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np

from tierline.core.errors import InvalidInput
from tierline.workloads.serving.columns import Columns, Prefix
from tierline.workloads.serving.replayed import TraceOptions, replayed
from tierline.workloads.serving.tables import in_order, read_text
from tierline.workloads.serving.want import Want

BLOCK_TOKENS = 512

Options = TraceOptions


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def build(path: str, options: TraceOptions, want: Want) -> Columns:
    """Text only, with prefixes. Raises InvalidInput for a file that is not such a trace."""
    decoder = msgspec.json.Decoder(_Line)
    lines: list[_Line] = []
    for number, text in enumerate(read_text(path).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise InvalidInput(
                f"'{path}', line {number}: timestamp, input_length, output_length and hash_ids are needed ({error})."
            ) from error
        if (
            line.input_length < 1
            or line.output_length < 0
            or len(line.hash_ids) != -(-line.input_length // BLOCK_TOKENS)
        ):
            raise InvalidInput(
                f"'{path}', line {number}: {line.input_length} tokens are not {len(line.hash_ids)} blocks of "
                f"{BLOCK_TOKENS}."
            )
        lines.append(line)
    if not lines:
        raise InvalidInput(
            f"'{path}' is empty; lines with timestamp, input_length, output_length, hash_ids are needed."
        )
    times_s = np.array([line.timestamp for line in lines], np.float64) / 1000.0
    zeros = np.zeros(len(lines), np.int64)
    trace = Columns(
        arrived_s=in_order(times_s - times_s[0], path, "timestamp"),
        text_tokens=np.array([line.input_length for line in lines], np.int64),
        output_tokens=np.maximum(np.array([line.output_length for line in lines], np.int64), 1),
        image_counts=zeros,
        image_tokens=zeros[:0],
        stream=zeros,
        streams=("mooncake",),
        prefixes=prefixes(lines),
    )
    return replayed("mooncake", trace, want, options.scale)


def prefixes(lines: list[_Line]) -> tuple[Prefix, ...]:
    uses = Counter(block for line in lines for block in line.hash_ids)
    whole = {block: (f"mooncake-{block}", BLOCK_TOKENS) for block in uses}
    found: list[Prefix] = []
    for line in lines:
        shared = len(line.hash_ids)
        while shared and uses[line.hash_ids[shared - 1]] == 1:
            shared -= 1
        blocks = [whole[block] for block in line.hash_ids[:shared]]
        if shared == len(line.hash_ids) and blocks:  # the last block is seldom full
            blocks[-1] = (blocks[-1][0], line.input_length - (shared - 1) * BLOCK_TOKENS)
        found.append(tuple(blocks))
    return tuple(found)
