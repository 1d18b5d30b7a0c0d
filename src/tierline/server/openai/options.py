"""What an operator sets at the front door: limits, keys, where images may come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tierline.core.errors import InvalidInput

MIB = 1024 * 1024
PIL_PIXELS = 89_478_485
"""Above this PIL itself warns of a bomb."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be. `remote`: http(s) URLs are fetched, from public addresses alone; `hosts` not empty: from
    these alone. `fetch_timeout_s` covers one image with its redirects."""

    max_bytes: int = 20 * MIB
    max_pixels: int = 40_000_000
    max_request_pixels: int = 160_000_000
    formats: tuple[str, ...] = IMAGE_FORMATS
    remote: bool = False
    hosts: tuple[str, ...] = ()
    max_redirects: int = 3
    fetch_timeout_s: float = 10.0
    fetches: int = 16
    known_bytes: int = 16 * MIB
    """How much is kept of the images already seen (hash, width, height: some 200 bytes each)."""


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """`max_body_bytes` of one request; `max_held_bytes` of all bodies and decoded pixels together, beyond which
    requests are refused with 503. `api_keys` and the file `keys_file` name who may ask; `requests_per_minute` is the
    rate of each key that has none of its own in the file (0 = none).

    `readers` threads parse bodies, hash images and tokenise; `decoders` decode images; 0 = as the machine has cores.
    `headers_after_s`: a stream whose first token takes longer gets its headers before it, so that no proxy gives up.
    `send_timeout_s`: a client that takes nothing for so long has gone. `grace_s`: how long running answers may take once
    the server is told to end.
    `overload_status` is what `Overloaded` becomes; 503 as in vLLM. Pages of `cors_origins` may ask from a browser. Without
    keys the server answers to localhost, IP addresses and `hosts` alone: a name that was made to lead here does not count.
    """

    api_keys: tuple[str, ...] = ()
    keys_file: Path | None = None
    requests_per_minute: float = 0.0
    max_body_bytes: int = 64 * MIB
    max_held_bytes: int = 1024 * MIB
    body_timeout_s: float = 60.0
    max_choices: int = 16
    max_prompts: int = 256
    max_logprobs: int = 20
    images: ImageLimits = ImageLimits()
    readers: int = 0
    decoders: int = 0
    max_waiting_jobs: int = 1024
    headers_after_s: float = 10.0
    send_timeout_s: float = 60.0
    grace_s: float = 30.0
    overload_status: Literal[429, 503] = 503
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises `InvalidInput` for numbers that make no sense."""
        for name in ("max_body_bytes", "max_held_bytes", "max_choices", "max_prompts"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} {getattr(self, name)}: 1 or more is allowed.")
        for name in ("requests_per_minute", "grace_s", "headers_after_s", "readers", "decoders"):
            if not getattr(self, name) >= 0:
                raise InvalidInput(f"{name} {getattr(self, name)}: 0 or more is allowed.")
        if not 1 <= self.images.max_pixels <= PIL_PIXELS:
            raise InvalidInput(f"max_pixels {self.images.max_pixels}: 1 to {PIL_PIXELS} are allowed.")
        unknown = [name for name in self.images.formats if name not in IMAGE_FORMATS]
        if unknown:
            raise InvalidInput(f"image format '{unknown[0]}': {', '.join(IMAGE_FORMATS)} are allowed.")
