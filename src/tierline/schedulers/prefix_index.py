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
            known = holders.get(key)
            if known is None:
                holders[key] = alone
                continue
            holders.move_to_end(key)  # used last
            if known[:1] != alone:
                holders[key] = (instance, *(each for each in known if each != instance))[:HOLDERS]
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
        having: set[str] = set()
        before: tuple[str, ...] = ()
        place = 0
        for place, key in enumerate(keys):
            holders = self._holders.get(key)
            if holders is None:
                break
            if holders != before:
                now = {each for each in holders if each in alive}
                found |= dict.fromkeys(having - now, place * BLOCK)
                having = having & now if place else now
                before = holders
            if not having:
                break
        else:
            place = len(keys)
        found |= dict.fromkeys(having, place * BLOCK)
        return dict(sorted(found.items()))


def keys_of(request: Request) -> tuple[int, ...]:
    """A key for each full block of the prompt: of all tokens up to its end, with the pictures in them."""
    prompt, parent = request.prompt, 0
    begin: dict[int, tuple[tuple[str, int], ...]] = {}  # where a block begins -> the pictures that begin in it
    for image in request.images:
        first = image.start - image.start % BLOCK
        begin[first] = (*begin.get(first, ()), (image.content_hash, image.start))
    firsts = range(0, len(prompt) - BLOCK + 1, BLOCK)
    return tuple([parent := hash((parent, prompt[first : first + BLOCK], begin.get(first))) for first in firsts])
