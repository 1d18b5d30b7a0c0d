"""`tierline data`: where the public originals of the workloads are, and fetching them where a network allows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli import render

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress

RAW = "https://raw.githubusercontent.com"
POLLUX_COMMIT = "de25dcc90c350b8ade3a710e437a651a8d2efae6"
ALIBABA_COMMIT = "50a91c7c74abe3b658188dc78ac1dd302970d40c"

_POLLUX_BATCHES = {
    "bert": (12, 24, 48, 96, 192, 384),
    "cifar10": (128, 256, 512, 1024, 2048, 4096),
    "deepspeech2": (20, 40, 80, 160, 320, 640),
    "imagenet": (200, 400, 800, 1600, 3200, 6400, 12800),
    "ncf": (256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
    "yolov3": (8, 16, 32, 64, 128, 256, 512),
}


@dataclass(frozen=True, slots=True)
class Original:
    """A public data set. `files`: (path in the repository at `commit`, path under --to); empty = not fetched, and
    `note` says how to get it. `use` is the workload source to give once it is there."""

    name: str
    what: str
    repository: str
    paper: str
    licence: str
    where: str
    use: str
    commit: str = ""
    files: tuple[tuple[str, str], ...] = ()
    note: str = ""

    @property
    def url(self) -> str:
        return f"https://github.com/{self.repository}"


def _pollux_files() -> tuple[tuple[str, str], ...]:
    names = [f"workloads/workload-{number}.csv" for number in range(1, 9)]
    for model, batches in _POLLUX_BATCHES.items():
        names += [f"traces/{model}/{table}.csv" for table in ("placements", "scalability")]
        names += [f"traces/{model}/validation-{batch}.csv" for batch in batches]
    return tuple((f"simulator/{name}", f"pollux/{name}") for name in names)


ORIGINALS = (
    Original(
        name="taskset",
        what="learning curves of 1,000 optimizer settings per task",
        repository="releaunifreiburg/DyHPO",
        paper="TaskSet (Metz et al. 2020), as packaged with DyHPO (NeurIPS 2022)",
        licence="Apache-2.0",
        where="one JSON file a task",
        use="taskset:DIR",
        note="Put its JSON files into DIR: taskset:DIR reads them as they are.",
    ),
    Original(
        name="philly",
        what="82,247 jobs of Microsoft's Philly cluster, 2017",
        repository="petuum/adaptdl",
        paper="Jeon et al. (ATC'19), as kept in the artifact of Pollux (OSDI'21)",
        licence="Apache-2.0",
        where="simulator/traces/philly.csv",
        use="philly:TO/philly.csv",
        commit=POLLUX_COMMIT,
        files=(("simulator/traces/philly.csv", "philly.csv"),),
    ),
    Original(
        name="pollux",
        what="job mixes, measured step times, validation curves of six models",
        repository="petuum/adaptdl",
        paper="Pollux (OSDI'21)",
        licence="Apache-2.0",
        where="simulator/workloads, simulator/traces",
        use="pollux:TO/pollux",
        commit=POLLUX_COMMIT,
        files=_pollux_files(),
    ),
    Original(
        name="alibaba",
        what="8,152 pods with fractions of GPUs",
        repository="alibaba/clusterdata",
        paper="GPU trace 2023 (Weng et al., ATC'23)",
        licence="see the repository",
        where="cluster-trace-gpu-v2023/csv/openb_pod_list_default.csv",
        use="alibaba:TO/openb_pod_list_default.csv",
        commit=ALIBABA_COMMIT,
        files=(("cluster-trace-gpu-v2023/csv/openb_pod_list_default.csv", "openb_pod_list_default.csv"),),
    ),
    Original(
        name="gavel",
        what="steps per second of 26 job types on K80, P100, V100, alone and in pairs",
        repository="stanford-futuredata/gavel",
        paper="Gavel (OSDI'20)",
        licence="MIT",
        where="scheduler/*_throughputs*.json",
        use="--nodes 2x8:v100,1x4:p100 (its mean speeds are built in)",
        note="Nothing to fetch: the mean speeds per GPU type are built in.",
    ),
)


def register(app: typer.Typer) -> None:
    app.command("data", rich_help_panel="Simulation")(data)


def data(
    fetch: Annotated[str, typer.Option("--fetch", metavar="NAME", help="Fetch this one.")] = "",
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where to; made when missing.")] = Path("data"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """List the public data sets behind the workloads, or fetch one.

    Example: `tierline data --fetch philly --to data`, then `tierline simulate jobs philly:data/philly.csv --gpus 512`
    """
    from tierline.core.errors import UnknownName

    by_name = {original.name: original for original in ORIGINALS}
    if fetch:
        if fetch not in by_name:
            raise UnknownName("data set", fetch, by_name)
        _fetch(by_name[fetch], to)
        return
    if as_json:
        kept = ("name", "what", "url", "paper", "licence", "where", "use")
        rows = [{**{k: getattr(o, k) for k in kept}, "fetched": bool(o.files)} for o in ORIGINALS]
        render.print_json({"data": rows})
        return
    for original in ORIGINALS:
        print(f"{original.name}: {original.what}")
        print(f"    {original.paper}; {original.licence}")
        print(f"    {original.url}: {original.where}")
        print(f"    use: {original.use}")
        print(f"    {original.note or f'fetch: tierline data --fetch {original.name} --to DIR'}")


def _fetch(original: Original, to: Path) -> None:
    """All files or a clear error; a file that is there already with the announced size is kept."""
    import httpx
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from tierline.core.errors import InvalidInput, TierlineError

    if not original.files:
        raise InvalidInput(f"'{original.name}' is not fetched by Tierline; it is at {original.url}. {original.note}")
    console = render.console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=30.0) as client,
            Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress,
        ):
            task = progress.add_task(original.name, total=len(original.files))
            for source, target in original.files:
                _fetch_one(client, f"{RAW}/{original.repository}/{original.commit}/{source}", to / target, progress)
                progress.update(task, advance=1)
    except httpx.HTTPStatusError as error:
        raise TierlineError(
            f"{error.request.url} answered {error.response.status_code}; see {original.url}."
        ) from error
    except httpx.HTTPError as error:
        reason = f"is there a network? ({str(error) or type(error).__name__})"
        raise TierlineError(f"'{original.name}' cannot be fetched, {reason} See {original.url}.") from error
    except OSError as error:
        raise InvalidInput(f"'{to}' cannot be written: {error.strerror}.") from error
    print(
        f"{len(original.files)} file{'s' * (len(original.files) > 1)} in {to}; use {original.use.replace('TO', str(to))}"
    )


def _fetch_one(client: httpx.Client, url: str, target: Path, progress: Progress) -> None:
    """Streams into a file beside the target and renames it only when every announced byte has come."""
    from tierline.core.errors import TierlineError

    part = target.with_name(f"{target.name}.part")
    got = 0
    try:
        with client.stream("GET", url) as response:
            response.raise_for_status()
            target.parent.mkdir(parents=True, exist_ok=True)
            announced = int(response.headers.get("content-length", 0))
            encoded = "content-encoding" in response.headers  # then the announced size is not that of the content
            task = progress.add_task(target.name, total=announced or None)
            with part.open("wb") as file:
                for block in response.iter_bytes():
                    got += len(block)
                    file.write(block)
                    progress.update(task, completed=got)
            progress.remove_task(task)
        if announced and not encoded and got != announced:
            raise TierlineError(f"{url} announced {announced} bytes, but {got} came; nothing was kept.")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
