"""What a file says of its image before anything of it is decoded: format, width and height, from its first bytes."""

from __future__ import annotations

import struct

from tierline.core.errors import InvalidInput


def read_header(data: bytes) -> tuple[str, int, int]:
    """(format, width, height) as stored, before any rotation. The format is what the bytes are, whatever they were
    called. Raises `InvalidInput`.

    >>> read_header(b"GIF89a" + bytes([2, 0, 3, 0]))
    ('GIF', 2, 3)
    """
    try:
        found = _read(data)
    except (struct.error, IndexError):
        raise InvalidInput("it ends within its header") from None
    if found is None:
        raise InvalidInput("it is no PNG, JPEG, WEBP, GIF or BMP file")
    _, width, height = found
    if width < 1 or height < 1:
        raise InvalidInput(f"its size is {width}x{height}")
    return found


def _read(data: bytes) -> tuple[str, int, int] | None:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        if data[12:16] != b"IHDR":
            return None
        width, height = struct.unpack_from(">II", data, 16)
        return "PNG", width, height
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack_from("<HH", data, 6)
        return "GIF", width, height
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:2] == b"BM":
        if struct.unpack_from("<I", data, 14)[0] == 12:
            width, height = struct.unpack_from("<HH", data, 18)
        else:
            width, height = struct.unpack_from("<ii", data, 18)
        return "BMP", width, abs(height)  # rows run downwards where the height is negative
    return None


def _jpeg(data: bytes) -> tuple[str, int, int] | None:
    place = 2
    while True:
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in (0xD8, 0x01) or 0xD0 <= marker <= 0xD7:
            place += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, place + 5)
            return "JPEG", width, height
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]


def _webp(data: bytes) -> tuple[str, int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        if len(data) < 30:
            raise IndexError
        return "WEBP", width + 1, height + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return "WEBP", (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return "WEBP", width & 0x3FFF, height & 0x3FFF
    return None
