"""HTTP over the daemon's Unix socket, for httpx. One connection a request: nothing is kept that a restarted daemon breaks.

httpx's own transport (`uds=`) leaves the socket of a connection that failed to the garbage collector, and a command line
asks a daemon that may not be there all the time.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
from pathlib import Path

import httpx


class UnixTransport(httpx.BaseTransport):
    """Speaks to whoever listens at `path`. Raises httpx's `ConnectError`, `ReadTimeout` or `RemoteProtocolError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        timeout_s = request.extensions.get("timeout", {}).get("read")
        line = _Connection(self._path, timeout_s)
        try:
            try:
                line.connect()
            except OSError as error:
                raise httpx.ConnectError(f"{self._path}: {error.strerror or error}", request=request) from error
            target = request.url.raw_path.decode("ascii")
            with contextlib.suppress(BrokenPipeError):  # a refusal may come before all of a large body has gone
                line.request(request.method, target, request.read(), dict(request.headers))
            answer = line.getresponse()
            return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read(), request=request)
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"no answer within {timeout_s} s", request=request) from error
        except (OSError, http.client.HTTPException) as error:
            raise httpx.RemoteProtocolError(f"the daemon left: {error}", request=request) from error
        finally:
            line.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("tierline", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Owned by the connection before it is made, so that `close` closes it in any case."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
