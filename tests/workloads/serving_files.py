"""Small files in the schemas of the public traces, and where the real ones are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "serving"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the repository")

AZURE = DATA / "azure" / "AzureLLMInferenceTrace_conv.csv"
MOONCAKE = DATA / "mooncake" / "conversation_trace.jsonl.gz"
SERVEGEN = DATA / "servegen_mm_image"

AZURE_TEXT = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
2023-11-16 18:15:51.3910410,91,16
"""
AZURE_MM_TEXT = """TIMESTAMP,NumImages,ContextTokens,GeneratedTokens
2024-10-15T12:00:00.269Z,0,770,491
2024-10-15T12:00:05.819Z,1,949,126
2024-10-15T12:00:06.513Z,16,4564,137
2024-10-15T12:00:07.332Z,2,10,0
"""
BURSTGPT_TEXT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,Conversation log
119,GPT-4,300,0,300,API log
125,GPT-4,30,10,40,API log
"""
MOONCAKE_LINES = [
    {"timestamp": 0, "input_length": 1200, "output_length": 50, "hash_ids": [0, 1, 2]},
    {"timestamp": 1000, "input_length": 1030, "output_length": 0, "hash_ids": [0, 1, 3]},
    {"timestamp": 3000, "input_length": 1200, "output_length": 9, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 20, "output_length": 9, "hash_ids": [7]},
]


def mooncake_file(folder: Path, lines: list[dict[str, object]] = MOONCAKE_LINES) -> Path:
    path = folder / "trace.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return path


def period(**changes: str) -> dict[str, str]:
    """A client's distributions as ServeGen writes them."""
    zero = "{0: 1.0}"
    return {
        "text_tokens": "{10: 0.5, 1000: 0.5}",
        "image_tokens": "{100: 0.25, 1200: 0.75}",
        "audio_tokens": zero,
        "video_tokens": zero,
        "image_count": "{1: 0.5, 3: 0.5}",
        "audio_count": zero,
        "video_count": zero,
        "output_tokens": "{5: 0.5, 500: 0.5}",
    } | changes


def servegen_folder(folder: Path, rows: list[str], dataset: object = None, number: int = 0) -> Path:
    """One client's files."""
    (folder / f"chunk-{number}-trace.csv").write_text("\n".join(rows) + "\n")
    (folder / f"chunk-{number}-dataset.json").write_text(json.dumps(dataset or {"0": period()}))
    return folder
