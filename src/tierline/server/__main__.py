"""`python -m tierline.server OPTIONS`: the daemon's process; `tierline up` gives `OPTIONS`, a `DaemonOptions` as JSON.

Exit code 0 when told to end; 2, with one sentence on stderr, when it cannot begin; 1, likewise, when it had to end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tierline.config import DaemonOptions
from tierline.core.errors import TierlineError
from tierline.server.daemon import Daemon


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("This is started by `tierline up`.", file=sys.stderr)
        return 2
    try:
        options = msgspec.json.decode(arguments[0], type=DaemonOptions, dec_hook=_path)
        daemon = Daemon(options)
    except (TierlineError, msgspec.DecodeError) as error:
        print(f"tierline: {error}", file=sys.stderr)
        return 2
    where = [f"unix:{options.state / 'run' / 'tierline.sock'}"]
    if daemon.tcp_address is not None:
        where.append(f"http://{daemon.tcp_address[0]}:{daemon.tcp_address[1]}")
    print(f"Tierline is up, policy {options.policy}, at {' and '.join(where)}", flush=True)
    try:
        daemon.serve()
    except TierlineError as error:
        print(f"tierline: {error}", file=sys.stderr)
        return 1
    return 0


def _path(kind: type, value: object) -> object:
    return Path(str(value)) if kind is Path else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
