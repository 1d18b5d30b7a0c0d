"""Which beginning of a prompt went to which instance lately, so where its KV probably is. Bounded, a hash a block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

from tierline.core.request import Request

BLOCK = 64  # tokens; larger than an instance's own blocks, so that a long prompt costs few hashes
HOLDERS = 4  # instances remembered for a block, the last ones


class PrefixIndex:
    """At most `blocks` of `BLOCK` tokens are remembered, those used last. An instance that has given a block up since is not
    known to have: then the prompt is computed there, as it would have been elsewhere."""

    def __init__(self, blocks: int = 100_000) -> None:
        self._blocks = blocks
        self._holders: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def sent(self, keys: tuple[int, ...], instance: str) -> None:
        """The prompt with these keys is computed at this instance."""
        holders, alone = self._holders, (instance,)
        for key in keys:
            known = holders.pop(key, ())
            if known[:1] != alone:
                known = (instance, *(each for each in known if each != instance))[:HOLDERS] if known else alone
            holders[key] = known  # used last
        while len(holders) > self._blocks:
            holders.popitem(last=False)

    def forget(self, instance: str) -> None:
        """It has nothing any more. Costs a look at every block, so it is for what happens rarely."""
        for key, known in self._holders.items():
            if instance in known:
                self._holders[key] = tuple(each for each in known if each != instance)

    def cached(self, keys: tuple[int, ...], alive: Container[str]) -> dict[str, int]:
        """By instance, how many tokens of the beginning it probably has."""
        found: dict[str, int] = {}
        having: set[str] | None = None
        before: tuple[str, ...] = ()
        for place, key in enumerate(keys, 1):
            holders = self._holders.get(key)
            if holders is None:
                break
            if holders != before:
                now = {each for each in holders if each in alive}
                having = now if having is None else having & now
                before = holders
            if not having:
                break
            for name in having:
                found[name] = place * BLOCK
        return dict(sorted(found.items()))


def keys_of(request: Request) -> tuple[int, ...]:
    """A key for each full block of the prompt: of all tokens up to its end, with the pictures in them."""
    prompt, images = request.prompt, request.images
    keys: list[int] = []
    parent = image = 0
    for first in range(0, len(prompt) - BLOCK + 1, BLOCK):
        block: tuple[object, ...] = (parent, prompt[first : first + BLOCK])
        while image < len(images) and images[image].start < first + BLOCK:
            block += ((images[image].content_hash, images[image].start),)
            image += 1
        parent = hash(block)
        keys.append(parent)
    return tuple(keys)
