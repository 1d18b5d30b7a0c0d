"""What an instance process is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tierline.core.encoder_kind import EncoderKind
from tierline.core.request import ALL_ROLES, Role
from tierline.core.slo import Slo

Transfer = Literal["shm", "zmq"]


@dataclass(frozen=True, slots=True)
class InstanceSettings:
    """`model`: what `engine.model.locate` takes; `dtype` of `engine.model.DTYPES`; `device` as torch names it. `kv_bytes` 0 =
    chosen by the device's memory. `run_dir`: private folder of this server's sockets; `shm_dir`: of its transfers; `server`
    and `endpoint`: where the serving scheduler and this instance listen. `threads` for computing. `pack`: weights in the
    layout that is fastest on this CPU, a copy of this process's own; else they stay shared with all others. `cuda_graphs`:
    steps that only decode as CUDA graphs (`engine/cuda_graphs.py`; not yet measured). `batching_options`, `slo` and `profile`
    (the name of stage times; "" = those of `pace`, if any) are for batching policies that take them. `pace`: the name of
    stage times (`perf/device_times.py`), for an instance that plays another device and model ("" = none); each position
    stands for `pace_positions` of theirs, and their times are `pace_stretch` times longer."""

    name: str
    model: str
    run_dir: str
    shm_dir: str
    server: str
    endpoint: str
    dtype: str = "bf16"
    device: str = "cpu"
    roles: Role = ALL_ROLES
    batching: str = "sarathi"
    batching_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    slo: Slo = field(default_factory=Slo)
    profile: str = ""
    transfer: Transfer = "shm"
    threads: int = 1
    pack: bool = True
    cuda_graphs: bool = False
    kv_bytes: int = 0
    block_tokens: int = 16
    token_budget: int = 2048
    encoder: EncoderKind = "overlapped"
    sequence_limit: int = 256
    pool_bytes: int = 256 * 1024 * 1024
    context_tokens: int = 0
    prefix_caching: bool = True
    pace: str = ""
    pace_positions: int = 1
    pace_stretch: float = 1.0
    curve_secret: str = ""
    curve_public: str = ""
