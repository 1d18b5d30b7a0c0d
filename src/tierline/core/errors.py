"""Every error that Tierline raises on purpose.

::

    TierlineError                 one clear sentence: what was wrong, what was given, what is allowed
    ├── InvalidInput              the user's input cannot be used (exit code 2, HTTP 422)
    │   ├── UnknownName           a name that is in no registry; the message lists the known ones
    │   └── NotFound              a job, sweep or file that does not exist (HTTP 404)
    ├── Refused                   understood, but not allowed (exit code 2, HTTP 403)
    ├── StateTooNew               the state was written by a newer Tierline
    ├── StateUnusable             the state folder is in use, full or damaged (exit code 2, HTTP 503)
    ├── DaemonUnavailable         nothing answers on the socket (exit code 3)
    ├── Overloaded                the serving tier has too much waiting (HTTP 429 or 503 with Retry-After)
    ├── RequestLost               an accepted request could not be finished (HTTP 500 or 503)
    ├── PixelsNeeded              an image that was taken to be cached has to be encoded after all (internal)
    ├── MissingExtra              a feature whose optional package is not installed
    └── MissingNative             a part of the kernel tier that this installation was built without (exit code 2)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TierlineError(Exception):
    """Root of the tree. `str(error)` is one sentence that can be shown to a user as it is."""

    def __reduce__(self) -> tuple[object, ...]:
        # An error made from parts holds its sentence only: rebuilt from that, it comes through from a worker process.
        return _from_sentence, (type(self), str(self))


def _from_sentence(kind: type[TierlineError], sentence: str) -> TierlineError:
    error = kind.__new__(kind)
    error.args = (sentence,)
    return error


class InvalidInput(TierlineError):
    """Input that cannot be used."""


class UnknownName(InvalidInput):
    """A name that no registry holds.

    >>> str(UnknownName("policy", "fifi", ["fair", "fifo"]))
    "unknown policy 'fifi': did you mean 'fifo'? Known: fair, fifo."
    """

    def __init__(self, what: str, given: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(given, names, n=1)
        hint = f" did you mean '{near[0]}'?" if near else ""
        super().__init__(f"unknown {what} '{given}':{hint} Known: {', '.join(names)}.")


class NotFound(InvalidInput):
    """Something named by the user does not exist."""


class Refused(TierlineError):
    """Understood, but not allowed to this user or in this state."""


class StateTooNew(TierlineError):
    """The state folder was written by a newer version; nothing was touched."""


class StateUnusable(TierlineError):
    """The state folder cannot be used: another daemon has it, the disk is full, or its content is damaged."""


class DaemonUnavailable(TierlineError):
    """No daemon answers on the socket."""


class Overloaded(TierlineError):
    """Too much waits already; `retry_after_s` says when to come back."""

    def __init__(self, sentence: str, retry_after_s: float = 1.0) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class RequestLost(TierlineError):
    """A request that was accepted could not be finished; the sentence says why."""


class PixelsNeeded(TierlineError):
    """Images whose embeddings were thought to be cached are not; `hashes` are those to be sent with the request again."""

    def __init__(self, hashes: tuple[str, ...]) -> None:
        super().__init__(f"The pictures {', '.join(hashes)} have to be encoded.")
        self.hashes = hashes


class MissingExtra(TierlineError):
    """An optional package is missing; the message names the extra to install."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': pip install 'tierline[{extra}]'.")


class MissingNative(TierlineError):
    """The native half of the kernel tier is not there; the message says what is missing and how to get it."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is missing: this Tierline was installed without its native part; install it again where g++ or "
            "clang++ is found (pip install --force-reinstall tierline; in a clone: scripts/native)."
        )
