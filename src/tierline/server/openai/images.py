"""Images of requests: named by the hash of their bytes, checked before they are decoded, decoded only where needed.

A picture that was decoded and found good is remembered by its size, and the text it came in by that text's own hash: when
it comes again and its embeddings are cached, neither base64 nor JPEG is decoded. All of it runs in threads; what costs
much (SHA-256, the decoders of PIL) releases the interpreter's lock.
"""

from __future__ import annotations

import binascii
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from tierline.core.errors import InvalidInput
from tierline.core.request import Picture
from tierline.server.openai.errors import ApiError, bad_request
from tierline.server.openai.image_headers import read_header
from tierline.server.openai.options import ImageLimits

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
HEADER_BYTES = 256
BASE64_BYTES = 64 * 1024
ENTRY_BYTES = 256


class _Address(msgspec.Struct):
    url: msgspec.Raw


class Recent(Generic[K, V]):
    """The `limit` entries that were used last. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._limit:
                self._entries.popitem(last=False)


@dataclass(slots=True)
class SeenImage:
    """An image as far as it is known. `place` names it in sentences; `url` is set until a remote one was fetched.

    `size` (width, height) is set once it was decoded, by this request or an earlier one; `stored` is what its header says,
    for the count of pixels. `source` is the file, or its base64 text.
    """

    place: str
    url: str = ""
    content_hash: str = ""
    size: tuple[int, int] | None = None
    stored: tuple[int, int] = (0, 0)
    source: bytes | memoryview = b""
    is_text: bool = False
    text_digest: bytes = b""

    @property
    def pixels(self) -> int:
        return self.stored[0] * self.stored[1]


class ImageReader:
    """Looks at images and decodes them. Thread-safe."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        entries = max(1, limits.known_bytes // (2 * ENTRY_BYTES))
        self._sizes: Recent[str, tuple[int, int]] = Recent(entries)
        self._texts: Recent[bytes, str] = Recent(entries)

    def see(self, given: msgspec.Raw, place: str) -> SeenImage:
        """The image that an `image_url` names, with its hash unless it has to be fetched. Raises `ApiError` (400)."""
        raw = memoryview(given)
        if not _is_string(raw):
            try:
                raw = memoryview(msgspec.json.decode(given, type=_Address).url)
            except (msgspec.DecodeError, RecursionError) as error:
                raise bad_request(f"{place}.image_url: an object with a url is needed.", "messages") from error
        if not _is_string(raw):
            raise bad_request(f"{place}.image_url.url: a string is needed.", "messages")
        text = raw[1:-1]
        if b"\\" in bytes(text[:HEADER_BYTES]):
            text = _unescaped(raw, place)
        start = bytes(text[:HEADER_BYTES])
        if start[:5].lower() == b"data:":
            try:
                return self._data(text, start, place)
            except ApiError:
                if b"\\" not in bytes(raw):  # base64 has none, but JSON may write any character as an escape
                    raise
            return self._data(_unescaped(raw, place), start, place)
        if start[:5].lower() in (b"http:", b"https"):
            if not self._limits.remote:
                raise bad_request(
                    f"{place}: this server fetches no images; send it as a data URI.",
                    "messages",
                    "image_url_not_allowed",
                )
            return SeenImage(place, url=bytes(text).decode("utf-8", "replace"))
        raise bad_request(f"{place}: an image is a data URI (data:image/png;base64,...).", "messages", "invalid_image")

    def _data(self, text: memoryview, start: bytes, place: str) -> SeenImage:
        comma = start.find(b",")
        if comma < 0 or not start[:comma].lower().endswith(b";base64"):
            raise bad_request(f"{place}: the data URI has no ';base64,' in its beginning.", "messages", "invalid_image")
        payload = text[comma + 1 :]
        if len(payload) // 4 * 3 > self._limits.max_bytes + 2:
            raise self._too_big(place, len(payload) // 4 * 3)
        image = SeenImage(place, source=payload, is_text=True, text_digest=hashlib.sha256(payload).digest())
        known = self._texts.get(image.text_digest)
        if known is not None and (size := self._sizes.get(known)) is not None:
            image.content_hash, image.size, image.stored = known, size, size
            return image
        image.source, image.is_text = _from_base64(payload, place), False
        return self.identify(image)

    def identify(self, image: SeenImage) -> SeenImage:
        """Hash and header of the file in `image.source`. Raises `ApiError` (400)."""
        data = bytes(image.source)
        if not data:
            raise bad_request(f"{image.place}: the image has 0 bytes.", "messages", "invalid_image")
        if len(data) > self._limits.max_bytes:
            raise self._too_big(image.place, len(data))
        image.content_hash = hashlib.sha256(data).hexdigest()
        image.size = self._sizes.get(image.content_hash)
        if image.size is not None:
            image.stored = image.size
            self._know(image)
            return image
        try:
            kind, *stored = read_header(data)
        except InvalidInput as error:
            raise _unusable(image.place, str(error)) from error
        if kind not in self._limits.formats:
            raise _unusable(image.place, f"{kind} is not among the formats allowed ({', '.join(self._limits.formats)})")
        image.stored = (stored[0], stored[1])
        self._check_pixels(image.place, *image.stored)
        return image

    def picture(self, image: SeenImage) -> Picture:
        """Decode it; from now on its size is known. As Transformers' `load_image` does: turned as its EXIF says, then
        RGB. Raises `ApiError` (400)."""
        from PIL import Image, ImageOps

        data = _from_base64(image.source, image.place) if image.is_text else bytes(image.source)
        try:
            kind, _, _ = read_header(data)
            with Image.open(io.BytesIO(data), formats=(kind,)) as opened:
                self._check_pixels(image.place, *opened.size)
                ImageOps.exif_transpose(opened, in_place=True)
                decoded = opened if opened.mode == "RGB" else opened.convert("RGB")
                self._check_pixels(image.place, *decoded.size)
                size = decoded.size
                rgb = decoded.tobytes()
        except ApiError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # PIL's decoders raise whatever they stumble over
            raise _unusable(image.place, _why(error)) from error
        image.size = size
        self._know(image)
        return Picture(image.content_hash, size[0], size[1], rgb)

    def _know(self, image: SeenImage) -> None:
        assert image.size is not None
        self._sizes.put(image.content_hash, image.size)
        if image.text_digest:
            self._texts.put(image.text_digest, image.content_hash)

    def _check_pixels(self, place: str, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            raise bad_request(
                f"{place}: the image has {width}x{height} pixels; {self._limits.max_pixels} in all are allowed.",
                "messages",
                "image_too_large",
            )

    def _too_big(self, place: str, size: int) -> ApiError:
        return bad_request(
            f"{place}: the image has {size} bytes; {self._limits.max_bytes} are allowed.", "messages", "image_too_large"
        )


def _is_string(raw: memoryview) -> bool:
    return len(raw) > 1 and raw[0] == 0x22


def _unescaped(raw: memoryview, place: str) -> memoryview:
    try:
        return memoryview(msgspec.json.decode(raw, type=str).encode())
    except (msgspec.DecodeError, UnicodeError) as error:
        raise bad_request(f"{place}.image_url.url is no text.", "messages", "invalid_image") from error


def _from_base64(payload: bytes | memoryview, place: str) -> bytes:
    """Strictly: a character that is none of base64's is an error. The decoder skips those, so what comes out is too short.
    It keeps the interpreter's lock, so it is given pieces: between them others have their turn."""
    size = len(payload)
    if not size:
        raise bad_request(f"{place}: the image has 0 bytes.", "messages", "invalid_image")
    padding = bytes(payload[-2:]).count(b"=")
    view = memoryview(payload)
    try:
        pieces = [binascii.a2b_base64(view[at : at + BASE64_BYTES]) for at in range(0, size, BASE64_BYTES)]
    except binascii.Error:
        pieces = []
    data = b"".join(pieces)
    if size % 4 or len(data) != size // 4 * 3 - padding:
        raise bad_request(f"{place}: the image's base64 is wrong or cut short.", "messages", "invalid_image")
    return data


def _why(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return "it is broken or cut short" + (f" ({said})" if said and "<" not in said else "")


def _unusable(place: str, why: str) -> ApiError:
    return bad_request(f"{place}: the image cannot be decoded: {why}.", "messages", "invalid_image")
