"""Real pictures by the hundred a second: scenes of `workloads.scenes`, drawn once a size, each copy in colours of its own.

A scene is a PNG with a palette. Another palette makes another picture (other pixels, so no server takes two for one) and
costs microseconds, where drawing and packing a megapixel costs milliseconds. The same name always gives the same bytes.
A PNG of flat shapes is small (some kilobytes), so what a server reads and decodes is less than of a photograph.
"""

from __future__ import annotations

import binascii
import hashlib
import io
import random
import struct
import zlib

from tierline.core.errors import MissingExtra

COLOURS = 32
SHIFT = 8  # a colour differs from the scene's by up to this in red, green and blue


class Pictures:
    """Pictures by name and size, as base64 of PNG files. Raises MissingExtra without Pillow."""

    def __init__(self, salt: str = "") -> None:
        self._salt = salt
        self._drawn: dict[tuple[int, int], tuple[bytes, bytes, bytes]] = {}

    def draw(self, width: int, height: int) -> None:
        """Draw the scene of this size, unless it was; to be done before time matters."""
        if (width, height) not in self._drawn:
            self._drawn[width, height] = _split(_scene(width, height))

    def base64(self, name: str, width: int, height: int) -> bytes:
        """The picture `name`, whose size must always be the same."""
        self.draw(width, height)
        before, palette, after = self._drawn[width, height]
        digest = hashlib.sha256(f"{self._salt} {name}".encode()).digest()
        shifts = random.Random(digest).choices(range(-SHIFT, SHIFT + 1), k=len(palette))
        chunk = b"PLTE" + bytes(min(255, max(0, c + s)) for c, s in zip(palette, shifts, strict=True))
        return binascii.b2a_base64(
            before + struct.pack(">I", len(palette)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + after,
            newline=False,
        )


def _scene(width: int, height: int) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("drawing pictures", "serve") from error
    from tierline.workloads.scenes import draw, free_scene

    seed = width << 20 | height
    small = draw(free_scene(seed)).quantize(COLOURS)
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.NEAREST).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _split(png: bytes) -> tuple[bytes, bytes, bytes]:
    """What is before the palette's chunk, the palette, what is after the chunk."""
    at = 8
    while True:
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"PLTE":
            return png[:at], png[at + 8 : at + 8 + length], png[at + 12 + length :]
        at += 12 + length
