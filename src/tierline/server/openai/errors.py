"""Errors as OpenAI's clients read them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math

import msgspec

from tierline.core.errors import InvalidInput, NotFound, Overloaded, Refused, RequestLost, TierlineError

JSON = (b"content-type", b"application/json")


class ApiError(TierlineError):
    """An answer other than 200. `param` names the field at fault; `retry_after_s` becomes Retry-After."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The answer's JSON."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = [JSON]
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unsupported(what: str, param: str) -> ApiError:
    return ApiError(400, f"{what} is not supported by this server.", param=param, code="unsupported_parameter")


def unknown_model(given: str, known: str) -> ApiError:
    return ApiError(
        404,
        f"The model `{given[:200]}` does not exist; this server has `{known}`.",
        param="model",
        code="model_not_found",
    )


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request has more than the {limit} bytes that are allowed.", code="request_too_large")


def as_api_error(error: BaseException, overload_status: int = 503) -> ApiError:
    """What a client is told of `error`. Of one that is not ours it learns nothing but that it happened."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Overloaded):
        return ApiError(
            overload_status, str(error), "overloaded_error", code="overloaded", retry_after_s=error.retry_after_s
        )
    if isinstance(error, RequestLost):
        return ApiError(503, str(error), "server_error", code="request_lost", retry_after_s=1)
    if isinstance(error, NotFound):
        return ApiError(404, str(error))
    if isinstance(error, Refused):
        return ApiError(403, str(error), "permission_error")
    if isinstance(error, InvalidInput):
        return bad_request(str(error))
    return ApiError(500, "The server failed on this request; its log says why.", "server_error", code="internal_error")
