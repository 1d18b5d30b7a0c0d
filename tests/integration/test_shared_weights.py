"""Instances of one host share the checkpoint's memory map, as the kernel sees it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra serve")
pytest.importorskip("transformers", reason="needs the extra serve")
pytest.importorskip("zmq", reason="needs the extra serve")

from tierline.backends.serving.generator import EngineGenerator
from tierline.core.request import Request, Sampling
from tierline.deployment import DeploymentOptions, build_generator
from tierline.engine.model import TINY_VLM
from tierline.testing.daemon import wait_until

START_S = 300


@pytest.fixture
def generator() -> Iterator[EngineGenerator]:
    failed: list[str] = []
    made = build_generator(DeploymentOptions("tiny-vlm", instances=2, threads=1, routing="round_robin"), failed.append)
    try:
        wait_until(lambda: len(made.status()["instances"]) == 2 or bool(failed), "both instances are ready", START_S)
        assert not failed
        yield made
    finally:
        made.close()


def mapped_bytes(pid: int, file: Path) -> dict[str, int]:
    """Sums over the process's mappings of `file`, from its smaps: Rss, Shared_Clean, Private_Clean, Private_Dirty."""
    sums: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and (found := re.match(r"(\w+): +(\d+) kB", line)):
            sums[found[1]] = sums.get(found[1], 0) + int(found[2]) * 1024
    return sums


async def ask(generator: EngineGenerator, name: str) -> None:
    async for _ in generator.generate(Request(name, (3, 70, 71, 72, 1, 4), Sampling(4, temperature=0)), {}):
        pass


def test_weights_are_mapped_once_for_all(generator: EngineGenerator) -> None:
    async def both() -> None:
        await asyncio.gather(ask(generator, "a"), ask(generator, "b"))

    asyncio.run(both())
    file = TINY_VLM / "model.safetensors"
    wait_until(
        lambda: all(each["steps"] for each in generator.status()["instances"]),
        "each instance has computed, so that its weights are really there",
        START_S,
    )
    for instance in generator.status()["instances"]:
        mapped = mapped_bytes(instance["pid"], file)
        assert mapped["Shared_Clean"] > 0.5 * file.stat().st_size
        assert mapped["Private_Dirty"] == 0
