"""The workloads by which serving policies are compared: ServeGen's image service mixed with Azure's conversations.

Share of requests from the image service 20, 50, 80 %; image repeat rate 0 (headline), 10, 30 %; stationary and with
image bursts. The image service stands still at one window of its day (hold), for the rate is to be the asked one from
beginning to end; Azure's trace is stretched to its rate, which keeps its arrivals' shape. Their hashes are committed
with the tests, so that policies are compared on what was fixed before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tierline.core.served_trace import ServedTrace
from tierline.workloads.serving.source import load_served

MM_SHARES = (0.2, 0.5, 0.8)
REPEATS = (0.0, 0.1, 0.3)
START_S = 39600  # eleven o'clock of ServeGen's day: eight clients send, the two largest among them
CONTEXT_TOKENS = 32768  # Qwen2.5-VL's
BURSTS = "burst_every_s=60&burst_s=10&burst_factor=4"

Load = Literal["stationary", "bursts", "drift"]
LOADS: tuple[Load, ...] = ("stationary", "bursts", "drift")


def judged(
    data: Path,
    rate: float,
    seconds: float,
    *,
    mm_share: float = 0.5,
    repeat: float = 0.0,
    load: Load = "stationary",
    seed: int = 0,
    start_s: int = START_S,
) -> ServedTrace:
    """One cell's trace. `data` holds servegen_mm_image/ and azure/AzureLLMInferenceTrace_conv.csv.

    `bursts`: for 10 of every 60 s image requests come four times as often as between; `drift`: their share goes from
    `mm_share` to 1 − `mm_share`. The mean rate is the same in all. `start_s`: the time of ServeGen's day, so which of its
    clients send. Raises NotFound where the data is not, InvalidInput for values out of range.
    """
    options = f"rate={rate:g}&seconds={seconds:g}&mm_share={mm_share:g}&repeat={repeat:g}&context={CONTEXT_TOKENS}"
    options += {"stationary": "", "bursts": f"&{BURSTS}", "drift": f"&mm_share_end={1.0 - mm_share:g}"}[load]
    images = f"servegen:{data / 'servegen_mm_image'}?start_s={start_s}&hold=1"
    text = f"azure:{data / 'azure' / 'AzureLLMInferenceTrace_conv.csv'}"
    return load_served(f"mix?{options}+{images}+{text}", seed=seed)


def cells() -> Iterator[tuple[float, float, Load]]:
    """(mm_share, repeat, load) of every cell of the grid; drift, where it changes anything."""
    for load in LOADS:
        for mm_share in MM_SHARES:
            for repeat in REPEATS:
                if load != "drift" or mm_share != 0.5:
                    yield mm_share, repeat, load
