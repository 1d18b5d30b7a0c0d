"""Text of about so many tokens. The same key begins with the same words, however many are asked for; other keys do not."""

from __future__ import annotations

import hashlib
import random

# Short, common, without capitals: most tokenizers have one token for each with the space before it.
_COMMON = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one "
    "you were all her she there would their we him been has when who will no more if out so up said what its about than "
    "into them can only other time new some could these two may first then do any like my now over such our man me even "
    "most made after also did many off before must well back through years much where your way down should because long "
    "each just state those people too mr how little good world make very year still see own work men day get here old "
    "between both life being under three never know same last another while us off might great go come since against"
)
WORDS = tuple(_COMMON.split())
POOL_WORDS = 1 << 16
NAME_WORDS = 4  # of the beginning of every text, drawn by its key: texts that begin alike are few


class Words:
    """A pool of words, and pieces of it by key."""

    def __init__(self, seed: str = "tierline") -> None:
        rng = random.Random(seed)
        words = rng.choices(WORDS, k=POOL_WORDS)
        self._text = " ".join(words)
        self._begins = [0]
        for word in words:
            self._begins.append(self._begins[-1] + len(word) + 1)

    def text(self, key: str, words: int) -> str:
        """`words` words, joined by single spaces."""
        if words <= 0:
            return ""
        digest = hashlib.sha256(key.encode()).digest()
        name = " ".join(WORDS[byte % len(WORDS)] for byte in digest[8 : 8 + min(words, NAME_WORDS)])
        parts = [name]
        left = words - NAME_WORDS
        at = int.from_bytes(digest[:8], "little") % POOL_WORDS
        while left > 0:
            end = min(at + left, POOL_WORDS)
            parts.append(self._text[self._begins[at] : self._begins[end] - 1])
            left -= end - at
            at = 0
        return " ".join(parts)
