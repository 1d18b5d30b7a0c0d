"""The composition root: `tierline.toml` and flags -> options -> wired objects. Nobody else joins the layers.

Order of precedence: flag, `[daemon]` table of the configuration file, default. The file is `--config`, else
`$XDG_CONFIG_HOME/tierline/tierline.toml` where it exists. The state folder is `--state`, else `$TIERLINE_HOME`, else
`$XDG_STATE_HOME/tierline` (`~/.local/state/tierline`). Heavy modules are imported when they are wired, so that a
command which only talks to the daemon starts fast.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import msgspec

from tierline.core.errors import InvalidInput, StateUnusable, UnknownName
from tierline.core.nouns import NS_PER_S, Job, Node, PairSpeed

if TYPE_CHECKING:
    from tierline.backends.jobs.local import LocalBackend
    from tierline.clock import WallClock
    from tierline.schedulers.jobs import JobScheduler

SOCKET_PATH_BYTES = 107  # what a Unix socket's address holds on Linux, less its closing zero


def state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's state folder; it need not exist."""
    if home := environ.get("TIERLINE_HOME"):
        return Path(home).expanduser().absolute()
    if xdg := environ.get("XDG_STATE_HOME"):
        return Path(xdg) / "tierline"
    return Path.home() / ".local" / "state" / "tierline"


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    xdg = environ.get("XDG_CONFIG_HOME")
    return (Path(xdg) if xdg else Path.home() / ".config") / "tierline" / "tierline.toml"


@dataclass(frozen=True, slots=True)
class StatePaths:
    """What lies where in a state folder; the local backend keeps its jobs in `jobs/` there."""

    root: Path

    @property
    def events(self) -> Path:
        return self.root / "events.db"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def run(self) -> Path:
        """Private folder (0700) of the socket."""
        return self.root / "run"

    @property
    def socket(self) -> Path:
        return self.run / "tierline.sock"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens.json"

    @property
    def log(self) -> Path:
        return self.root / "daemon.log"


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """What `tierline up` can be told. `slots` None = this machine's GPUs, else so many CPU slots; `listen` "" = the
    Unix socket alone; `allowed_hosts` are further names under which the TCP address may be called. Seconds: `quantum`,
    `restart_cost`, `fill` (how long a round waits for company), `poll` (how often jobs are looked at). `share`: two jobs may
    use one device; `pairs`: a file of measured pairs to begin with."""

    state: Path
    slots: int | None = None
    policy: str = "explsched"
    quantum: float = 60.0
    restart_cost: float = 30.0
    fair_by: Literal["job", "user", "sweep"] = "job"
    fill: float = 0.02
    seed: int = 0
    listen: str = ""
    allowed_hosts: tuple[str, ...] = ()
    snapshot_every: int = 2_000
    poll: float = 0.2
    share: bool = False
    pairs: str = ""

    def __post_init__(self) -> None:
        if self.slots is not None and not 1 <= self.slots <= 4096:
            raise InvalidInput(f"--slots {self.slots}: between 1 and 4096 CPU slots are allowed.")
        if not 0.05 <= self.quantum <= 86_400:
            raise InvalidInput(f"--quantum {self.quantum}: between 0.05 and 86400 seconds are allowed.")
        if not 0 <= self.restart_cost <= 86_400:
            raise InvalidInput(f"--restart-cost {self.restart_cost}: between 0 and 86400 seconds are allowed.")
        if self.fair_by not in ("job", "user", "sweep"):
            raise UnknownName("fairness unit", self.fair_by, ("job", "user", "sweep"))
        if not 0 <= self.fill <= 60:
            raise InvalidInput(f"fill = {self.fill}: between 0 and 60 seconds are allowed.")
        if self.snapshot_every < 1:
            raise InvalidInput(f"snapshot_every = {self.snapshot_every}: at least 1 event is needed.")
        if not 0.01 <= self.poll <= 10:
            raise InvalidInput(f"poll = {self.poll}: between 0.01 and 10 seconds are allowed.")
        if self.pairs and not self.share:
            raise InvalidInput("--pairs says how jobs run beside each other and needs --share.")
        if self.listen:
            parse_listen(self.listen)
        length = len(os.fsencode(StatePaths(self.state).socket))
        if length > SOCKET_PATH_BYTES:
            raise InvalidInput(
                f"The state folder '{self.state}' has too long a name: its socket's path takes {length} bytes and "
                f"{SOCKET_PATH_BYTES} are allowed; choose a shorter --state."
            )


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run's decisions depend on besides its events; recorded with the run, so that replay can repeat it."""

    policy: str
    quantum_ns: int
    restart_ns: int
    fill_ns: int
    seed: int
    fair_by: Literal["job", "user", "sweep"]
    share: bool = False


def setting_of(options: DaemonOptions) -> Setting:
    return Setting(
        policy=options.policy,
        quantum_ns=round(options.quantum * NS_PER_S),
        restart_ns=round(options.restart_cost * NS_PER_S),
        fill_ns=round(options.fill * NS_PER_S),
        seed=options.seed,
        fair_by=options.fair_by,
        share=options.share,
    )


def parse_listen(listen: str) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT` -> (host, port); port 0 lets the system choose."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise InvalidInput(f"--listen '{listen}': HOST:PORT is needed, with a port up to 65535, as in 127.0.0.1:8642.")
    return host, int(port)


def read_options(config: Path | None, flags: Mapping[str, Any]) -> DaemonOptions:
    """Join the configuration file with the flags given (None = not given). Raises `InvalidInput` with one sentence."""
    path = config if config is not None else config_file()
    values: dict[str, Any] = {}
    if config is not None or path.exists():
        values = _read_table(path)
    values |= {name: value for name, value in flags.items() if value is not None}
    state = Path(values.pop("state", None) or state_dir()).expanduser().absolute()
    try:
        return replace(msgspec.convert({**values, "state": str(state)}, DaemonOptions, dec_hook=_path), state=state)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"The daemon's options cannot be used: {_plain(str(error))}.") from error


def _plain(text: str) -> str:
    """A validation error in the user's words: what was given and what is allowed, for which option."""
    what, _, where = text.partition(" - at `$.")
    expected, _, got = what.replace("`", "").removeprefix("Expected ").partition(", got ")
    if not where:
        return what.replace("`", "'")
    name = where.rstrip("`")
    allowed = get_args(get_type_hints(DaemonOptions).get(name))
    if not got and allowed:
        return f"'{name}' has an {what[0].lower()}{what[1:]}; allowed are {', '.join(map(str, allowed))}".replace(
            "`", "'"
        )
    return f"'{name}' takes {expected}, but got {got}" if got else what


def _path(kind: type, value: Any) -> Any:
    return kind(value)


def _read_table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidInput(f"The configuration file '{path}' cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The configuration file '{path}' is no TOML: {error}.") from error
    for name in table:
        if name != "daemon":
            raise UnknownName(f"table in '{path}'", name, ("daemon",))
    daemon = table.get("daemon", {})
    known = tuple(entry.name for entry in fields(DaemonOptions))
    for name in daemon:
        if name not in known:
            raise UnknownName(f"key of [daemon] in '{path}'", name, known)
    return dict(daemon)


def build_scheduler(setting: Setting) -> JobScheduler:
    """The job tier as the setting says, in its initial state. Raises `UnknownName` for a policy nobody has."""
    from tierline.policies.jobs import make_policy
    from tierline.policies.jobs.packing import GainPacking
    from tierline.schedulers.jobs import JobScheduler, JobSchedulerOptions

    options = JobSchedulerOptions(
        quantum_ns=setting.quantum_ns,
        restart_ns=setting.restart_ns,
        seed=setting.seed,
        fair_by=setting.fair_by,
        fill_ns=setting.fill_ns,
    )
    return JobScheduler(make_policy(setting.policy), options, GainPacking() if setting.share else None)


def policy_names() -> dict[str, str]:
    """Every policy of the job tier with its idea: the first line of its docstring."""
    from tierline.policies.jobs import POLICIES, policy_class

    lines = {name: (policy_class(name).__doc__ or "").strip().partition("\n")[0] for name in POLICIES}
    return {name: line.removeprefix("Idea: ") for name, line in lines.items()}


def build_recorded(text: str) -> JobScheduler:
    """`build_scheduler` from a setting as it stands in the event table."""
    try:
        return build_scheduler(msgspec.json.decode(text, type=Setting))
    except msgspec.DecodeError as error:
        raise StateUnusable(f"The setting of a recorded run cannot be read: {error}.") from error


def hand_over(before: str, scheduler: JobScheduler, after: str) -> JobScheduler:
    """A scheduler under the setting `after` with the state of one under `before` (both as recorded). A policy's memory
    goes along when the policy stays; another begins with its own."""
    successor = build_recorded(after)
    state = scheduler.dump()
    if msgspec.json.decode(before, type=Setting).policy != msgspec.json.decode(after, type=Setting).policy:
        state["policy"] = successor.dump()["policy"]
    successor.load({**state, "weights_stale": True})
    return successor


NODE_NAME = "local"
"""The one node of this machine. Not its host name: that may change (in a container it does), the devices stay ours."""


def discover_node(options: DaemonOptions) -> Node:
    """This machine as a node: its GPUs, or `slots` CPU slots."""
    from tierline.backends.jobs.devices import discover, open_nvml

    return Node(NODE_NAME, discover(options.slots, open_nvml() if options.slots is None else None))


def build_backend(options: DaemonOptions, node: Node, clock: WallClock, lookup: Callable[[str], Job]) -> LocalBackend:
    """The backend that runs jobs on this machine; with GPUs it also looks for processes of others on them."""
    from tierline.backends.jobs.devices import open_nvml
    from tierline.backends.jobs.local import LocalBackend
    from tierline.backends.jobs.sharing import DeviceSharing

    nvml = open_nvml() if options.slots is None else None
    sharing = DeviceSharing(options.state.resolve()) if options.share else None
    return LocalBackend(
        clock, options.state, node.name, lookup, options.poll, devices=node.devices, nvml=nvml, sharing=sharing
    )


def check_sharing(options: DaemonOptions) -> None:
    """Raises `MissingNative`, `NotFound` or `InvalidInput` when devices are to be shared and cannot."""
    if options.share:
        from tierline.backends.jobs.sharing import check_sharing

        check_sharing()
        measured_pairs(options, ())


def measured_pairs(options: DaemonOptions, gpu_types: Iterable[str]) -> tuple[PairSpeed, ...]:
    """Pairs of the file that was given, for these types; under "" those of its V100, for types that it does not have."""
    if not options.pairs:
        return ()
    from tierline.workloads.pairs import STAND_IN, pair_speeds, read_pairs, table_of

    tables = read_pairs(Path(options.pairs).expanduser())
    found = pair_speeds("", table_of(tables, STAND_IN))
    for gpu_type in gpu_types:
        found += pair_speeds(gpu_type, tables.get(gpu_type, {}))
    return found
