"""Tokens back to text, one at a time, never cutting a character.

Most tokenizers are one of two kinds. Byte-level BPE writes every byte as a letter of its own alphabet; SentencePiece writes
words with a mark for the space, and single bytes as `<0xE4>` where it has no word. Of both each token has bytes of its own,
so an incremental UTF-8 decoder does it. For others the text of the last few tokens is decoded again and again, and what is
new in it is told.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
REPLACEMENT = "\ufffd"
WINDOW = 16
"""Tokens that a character may take before it is given up (an unfinished one takes 4 bytes at most)."""


class TokenBytes(Protocol):
    """The bytes of a token by itself."""

    def __call__(self, token: int) -> bytes: ...


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for what follows U+0100.

    >>> byte_alphabet()["Ġ"], byte_alphabet()["a"]
    (32, 97)
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def token_bytes(backend: Any) -> TokenBytes | None:
    """Of a `tokenizers.Tokenizer`; None where its tokens have no bytes of their own."""
    parts = _decoders(json.loads(backend.to_str()).get("decoder"))
    kinds = [part["type"] for part in parts]
    known: dict[int, bytes] = {}

    def remembering(of_text: Callable[[str], bytes]) -> TokenBytes:
        def find(token: int) -> bytes:
            found = known.get(token)
            if found is None:
                found = known[token] = of_text(backend.id_to_token(token) or "")
            return found

        return find

    if kinds == ["ByteLevel"]:
        alphabet = byte_alphabet()

        def byte_level(text: str) -> bytes:
            try:
                return bytes(map(alphabet.__getitem__, text))
            except KeyError:  # an added token that is written in plain letters
                return text.encode()

        return remembering(byte_level)
    if "ByteFallback" in kinds or kinds == ["Metaspace"]:
        marks = [(part["pattern"].get("String", ""), part["content"]) for part in parts if part["type"] == "Replace"]
        marks += [(part["replacement"], " ") for part in parts if part["type"] == "Metaspace"]
        has_bytes = "ByteFallback" in kinds

        def sentence_piece(text: str) -> bytes:
            byte = _BYTE.fullmatch(text) if has_bytes else None
            if byte is not None:
                return bytes.fromhex(byte[1])
            for mark, plain in marks:
                text = text.replace(mark, plain) if mark else text
            return text.encode()

        return remembering(sentence_piece)
    return None


def _decoders(decoder: Any) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return [part for each in decoder["decoders"] for part in _decoders(each)] if "decoders" in decoder else [decoder]


class ByteStream:
    """Where tokens have bytes. A space before the first word is kept: the answer goes on from a prompt."""

    def __init__(self, of: TokenBytes, skipped: frozenset[int]) -> None:
        self._of = of
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        return "" if token in self._skipped else self._decoder.decode(self._of(token))

    def finish(self) -> str:
        """What is left, as a replacement character."""
        return self._decoder.decode(b"", True)


class WindowStream:
    """Where they have none: decodes the tokens since the last whole character, after those before them for context."""

    def __init__(self, decode: Callable[[Sequence[int]], str], skipped: frozenset[int]) -> None:
        self._decode = decode
        self._skipped = skipped
        self._context: list[int] = []
        self._open: list[int] = []

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        self._open.append(token)
        return self._told(len(self._open) > WINDOW)

    def finish(self) -> str:
        return self._told(True) if self._open else ""

    def _told(self, at_any_rate: bool) -> str:
        before = self._decode(self._context)
        text = self._decode([*self._context, *self._open])
        if text.endswith(REPLACEMENT) and not at_any_rate:
            return ""
        self._context, self._open = self._open, []
        return text[len(before) :] if text.startswith(before) else text
