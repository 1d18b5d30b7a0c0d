"""API keys and their rates."""

from __future__ import annotations

import hashlib
import hmac
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tierline.core.errors import InvalidInput
from tierline.server.openai.errors import ApiError

KEY_LENGTH = 8


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the keys file. `requests_per_minute` None = the option's, 0 = no limit."""

    key: str
    name: str = ""
    requests_per_minute: float | None = None


@dataclass(slots=True)
class Bucket:
    """Tokens that refill evenly up to a minute's worth; a request takes one."""

    per_minute: float
    level: float
    seen_s: float

    def wait_s(self, now_s: float) -> float:
        """0 and one token is taken, or how long until there is one."""
        self.level = min(max(1.0, self.per_minute), self.level + (now_s - self.seen_s) * self.per_minute / 60)
        self.seen_s = now_s
        if self.level >= 1:
            self.level -= 1
            return 0.0
        return (1 - self.level) * 60 / self.per_minute


class Keys:
    """Keys from options and from a file (0600, a JSON list of {key, name, requests_per_minute}), which is read again
    whenever it changes."""

    def __init__(
        self,
        keys: tuple[str, ...],
        path: Path | None,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `InvalidInput` when the file cannot be used, or could be read by others."""
        self._fixed = [KeyEntry(key) for key in keys]
        self._path = path
        self._per_minute = per_minute
        self._clock = clock
        self._stamp = (0, 0, 0)
        self._entries: list[tuple[bytes, KeyEntry]] = []
        self._buckets: dict[bytes, Bucket] = {}
        for entry in self._fixed:
            _check(entry, "the options")
        self._entries = [(_digest(entry.key), entry) for entry in self._fixed]
        if path is not None:
            self._refresh(path)

    def __bool__(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._fixed) or self._path is not None

    def find(self, given: str) -> bytes:
        """What stands for the key in `pay`. Takes the same time wherever and whether it matches. Raises `ApiError` 401."""
        if self._path is not None:
            try:
                self._refresh(self._path)
            except InvalidInput as error:
                raise ApiError(401, str(error), "authentication_error", code="invalid_api_key") from error
        digest, found = _digest(given), None
        for known, _ in self._entries:
            if hmac.compare_digest(known, digest):
                found = known
        if found is None:
            raise ApiError(
                401,
                "Incorrect API key: send 'Authorization: Bearer KEY' with one that this server knows."
                if given
                else "An API key is needed: send 'Authorization: Bearer KEY'.",
                "authentication_error",
                code="invalid_api_key",
            )
        return found

    def pay(self, key: bytes) -> None:
        """One request of `key`. Raises `ApiError` 429 above its rate."""
        entry = next((entry for known, entry in self._entries if known == key), None)
        rate = self._per_minute if entry is None or entry.requests_per_minute is None else entry.requests_per_minute
        if rate <= 0:
            return
        now_s = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None or bucket.per_minute != rate:
            bucket = self._buckets[key] = Bucket(rate, max(1.0, rate), now_s)
        wait_s = bucket.wait_s(now_s)
        if wait_s > 0:
            raise ApiError(
                429,
                f"This key may send {rate:g} requests a minute; the next is allowed in {wait_s:.1f} s.",
                "rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
            )

    def _refresh(self, path: Path) -> None:
        try:
            status = path.stat()
        except OSError as error:
            raise InvalidInput(f"The keys file '{path}' cannot be read: {error.strerror}.") from error
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise InvalidInput(f"The keys file '{path}' can be read by others: chmod 600 it.")
        try:
            entries = msgspec.json.decode(path.read_bytes(), type=list[KeyEntry])
        except OSError as error:
            raise InvalidInput(f"The keys file '{path}' cannot be read: {error.strerror}.") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(
                f"The keys file '{path}' must be a list of key, name, requests_per_minute: {error}."
            ) from error
        for entry in entries:
            _check(entry, f"the keys file '{path}'")
        self._entries = [(_digest(entry.key), entry) for entry in [*self._fixed, *entries]]
        self._stamp = stamp


def _check(entry: KeyEntry, where: str) -> None:
    if len(entry.key) < KEY_LENGTH:
        raise InvalidInput(f"An API key of {len(entry.key)} characters in {where}: {KEY_LENGTH} or more are needed.")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
