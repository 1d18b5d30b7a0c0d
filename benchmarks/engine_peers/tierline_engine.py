"""Peer: the built-in engine as `tierline serve` runs it, an instance process behind the serving scheduler, without HTTP."""

import asyncio
import sys
import time
from importlib.metadata import version

from protocol import measure, read_task

from tierline.core.request import Request, Sampling
from tierline.deployment import DeploymentOptions, build_generator


def main() -> None:
    task = read_task(__doc__ or "")
    options = DeploymentOptions(model=str(task.model), threads=task.threads, prefix_caching=False)
    generator = build_generator(options, lambda sentence: sys.exit(sentence))
    while not generator.status()["instances"]:
        time.sleep(0.01)

    async def answer(name: str, prompt: list[int], output_tokens: int) -> list[int]:
        sampling = Sampling(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        out: list[int] = []
        async for made in generator.generate(Request(name, tuple(prompt), sampling), {}):
            out += made.tokens
        return out

    async def answers(prompts: list[list[int]], output_tokens: int) -> list[list[int]]:
        return await asyncio.gather(*(answer(f"b{n}", prompt, output_tokens) for n, prompt in enumerate(prompts)))

    def generate(prompts: list[list[int]], output_tokens: int) -> list[list[int]]:
        return asyncio.run(answers(prompts, output_tokens))

    try:
        measure("tierline", version("tierline"), task, generate)
    finally:
        generator.close()


if __name__ == "__main__":
    main()
