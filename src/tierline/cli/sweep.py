"""`tierline sweep`: a grid, random search or Optuna study over a command template, each trial a job."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli import options, render

if TYPE_CHECKING:
    from tierline.cli.client import Client, JobRequest
    from tierline.cli.space import Choice, Range, Value

SEARCH = "Search"
MAX_NAME = 58  # with "-" and five digits a trial's id has the 64 characters that an id may have


def register(app: typer.Typer) -> None:
    settings = {"allow_interspersed_args": False}
    app.command("sweep", rich_help_panel="Jobs", context_settings=settings)(sweep)


def numbered(client: Client, name: str) -> int:
    """The number of the next trial, so that more trials can be added to a sweep."""
    taken = [job.job_id.removeprefix(f"{name}-") for job in client.jobs(all=True, sweep=name)]
    return 1 + max((int(number) for number in taken if number.isdecimal()), default=-1)


def name_of(given: str, file_name: str) -> str:
    """The sweep's name as given, else its file's, as far as its letters are allowed, else one that nobody has."""
    from tierline.cli import jobspec
    from tierline.core.errors import InvalidInput

    from_file = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(file_name).stem).strip("-._")[:MAX_NAME]
    name = jobspec.identifier("--name", given) or from_file or f"sweep-{secrets.token_hex(3)}"
    if len(name) > MAX_NAME:
        raise InvalidInput(
            f"--name '{name}' is too long for its trials to be named after it: {MAX_NAME} letters are allowed."
        )
    return name


def trials_of(chosen: Mapping[str, Any]) -> list[dict[str, Value]]:
    """The values of every trial of a grid or random search."""
    from tierline.cli import space
    from tierline.core.errors import InvalidInput

    if chosen["grid"] and chosen["random"]:
        raise InvalidInput("A sweep is either a --grid or a --random search; fix a parameter with --random NAME=VALUE.")
    if not chosen["grid"] and not chosen["random"]:
        raise InvalidInput("No parameters were given: write --grid lr=0.1,0.01 or --random lr=log:1e-4..1.")
    if chosen["grid"]:
        if chosen["trials"] is not None:
            raise InvalidInput("--trials belongs to --random: a grid has as many trials as it has combinations.")
        return space.grid({name: space.choice(f"--grid {name}", spec) for name, spec in chosen["grid"].items()})
    count = chosen["trials"]
    if count is None or not 1 <= count <= space.MAX_TRIALS:
        given = "no --trials" if count is None else f"--trials {count}"
        raise InvalidInput(f"{given}: a random search needs a number of trials from 1 to {space.MAX_TRIALS}.")
    return space.sample(distributions(chosen["random"]), count, chosen["seed"])


def distributions(specs: Mapping[str, Any]) -> dict[str, Choice | Range]:
    from tierline.cli import space

    return {name: space.distribution(f"--random {name}", spec) for name, spec in specs.items()}


def request_of(template: list[str], chosen: Mapping[str, Any], name: str) -> JobRequest:
    """The job that all trials share, its command still with placeholders."""
    from tierline.cli import jobspec

    return jobspec.job(
        template,
        now_s=time.time(),
        cwd=Path(os.getcwd()),
        sweep=name,
        user=chosen["user"],
        kind=chosen["kind"],
        gpus_text=chosen["gpus"],
        gpu_types=chosen["gpu_type"] or (),
        gpu_memory=chosen["gpu_memory"],
        metric_text=chosen["metric"],
        progress_text=chosen["progress"],
        steps=chosen["steps"],
        priority=chosen["priority"],
        after=chosen["after"] or (),
        held=chosen["hold"],
        grace=chosen["grace"],
        preemptible=not chosen["no_preempt"],
        restarts=chosen["restarts"],
        deadline_text=chosen["deadline"],
        env=chosen["env"] or (),
        job_type=chosen["job_type"],
        sm_util=chosen["sm_util"],
        bw_util=chosen["bw_util"],
        exclusive=chosen["exclusive"],
    )


def of_trial(shared: JobRequest, name: str, number: int, values: Mapping[str, Value]) -> JobRequest:
    from tierline.cli import space

    argv = space.fill(shared.argv, values)
    return dataclasses.replace(shared, job_id=f"{name}-{number}", argv=argv, params=dict(values))


def chosen_options(context: typer.Context, given: Mapping[str, Any], from_file: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line says, else the file, else the default."""

    def on_command_line(option: str) -> bool:
        source = context.get_parameter_source(option)
        return source is not None and source.name == "COMMANDLINE"

    return {
        key: from_file[key] if key in from_file and not on_command_line(key) else value for key, value in given.items()
    }


def sweep(
    context: typer.Context,
    argv: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE.toml] -- CMD...", help="A sweep file, or a command with {name}s."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="NAME=A,B,C", help="Try every combination; repeatable.", rich_help_panel=SEARCH),
    ] = None,
    random: Annotated[
        list[str] | None,
        typer.Option(
            "--random",
            metavar="NAME=SPEC",
            help="Draw from LOW..HIGH, log:LOW..HIGH, int:LOW..HIGH, logint:LOW..HIGH or A,B,C; repeatable.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", "-t", help="Trials of a random search or study.", rich_help_panel=SEARCH)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random search or study.", rich_help_panel=SEARCH)] = 0,
    optuna: Annotated[
        str,
        typer.Option(
            "--optuna",
            metavar="MODULE:FUNCTION",
            help="An Optuna study: FUNCTION(trial) suggests and returns the parameters. Stays until it is done.",
            rich_help_panel=SEARCH,
        ),
    ] = "",
    sampler: Annotated[
        str,
        typer.Option(
            "--sampler",
            metavar="NAME",
            help="An Optuna study over --random: tpe, random, cmaes, gp or qmc.",
            rich_help_panel=SEARCH,
        ),
    ] = "",
    storage: Annotated[
        str,
        typer.Option(
            "--storage",
            metavar="URL",
            help="Where the study is kept, else in memory.",
            rich_help_panel=SEARCH,
        ),
    ] = "",
    study: Annotated[
        str,
        typer.Option("--study", metavar="NAME", help="Its name, else the sweep's.", rich_help_panel=SEARCH),
    ] = "",
    parallel: Annotated[
        int,
        typer.Option("--parallel", min=0, help="Live trials of a study, 0 = 2 a device.", rich_help_panel=SEARCH),
    ] = 0,
    name: Annotated[str, typer.Option("--name", "--sweep", help="Its trials are NAME-0, NAME-1, …")] = "",
    gpus: options.Gpus = "1",
    gpu_type: options.GpuType = None,
    gpu_memory: options.GpuMemory = "",
    job_type: options.JobType = "",
    sm_util: options.SmUtil = 0.0,
    bw_util: options.BwUtil = 0.0,
    exclusive: options.Exclusive = False,
    metric: options.Metric = "loss",
    progress: options.ProgressFrom = "report",
    steps: options.Steps = 0,
    chance: options.Chance = None,
    target: options.Target = None,
    kind: options.Kind = "exploratory",
    user: options.User = "",
    priority: options.Priority = 0,
    after: options.After = None,
    hold: options.Hold = False,
    grace: options.Grace = "30s",
    no_preempt: options.NoPreempt = False,
    restarts: options.Restarts = 3,
    deadline: options.Deadline = "",
    env: options.Env = None,
    as_json: options.AsJson = False,
) -> None:
    """Submit the trials of a hyperparameter search, all or none; their losses compare, so the steep ones get the GPUs.

    Examples:

    `tierline sweep --grid lr=0.1,0.01 --grid batch=32,64 -- python train.py --lr {lr} --batch {batch}`

    `tierline sweep --random lr=log:1e-4..1 --trials 24 -- python train.py --lr {lr}`

    `tierline sweep --random lr=log:1e-4..1 --trials 24 --sampler tpe -- python train.py --lr {lr}`
    """
    from tierline.cli import jobspec, space, sweepfile
    from tierline.cli.client import connect
    from tierline.core.errors import InvalidInput

    template = list(argv or ())
    from_file: dict[str, Any] = {}
    file_name = ""
    if template and template[0].endswith(".toml"):
        file_name = template.pop(0)
        from_file = sweepfile.read(Path(file_name))
    template = template or from_file.get("command", [])
    # The parameters above are taken by name from the context, for a sweep file may give any of them as well.
    given = {
        **context.params,
        "grid": dict(space.name_and_spec("--grid", text) for text in grid or ()),
        "random": dict(space.name_and_spec("--random", text) for text in random or ()),
    }
    chosen = chosen_options(context, given, from_file)
    sweep_name = name_of(chosen["name"], file_name)
    declared = jobspec.sweep_of(sweep_name, chosen["metric"], chosen["chance"], chosen["target"])
    shared = request_of(template, chosen, sweep_name)

    if chosen["optuna"] or chosen["sampler"]:
        from tierline.cli import study as studies

        if chosen["grid"]:
            raise InvalidInput("An Optuna study draws from --random or --optuna MODULE:FUNCTION, not from a --grid.")
        studies.run(shared, declared, chosen, as_json=as_json)
        return
    values = trials_of(chosen)
    space.check_template(template, list(values[0]))
    with connect() as client:
        first = numbered(client, sweep_name)
        requests = [of_trial(shared, sweep_name, first + i, each) for i, each in enumerate(values)]
        # A sweep's chance and target are settled with its first trials; more trials need not repeat them.
        more = first > 0 and declared.chance is None and declared.target is None
        job_ids = client.submit(requests, None if more else declared)
    if as_json:
        jobs = [{"job_id": job_id, "params": each} for job_id, each in zip(job_ids, values, strict=True)]
        render.print_json({"sweep": sweep_name, "jobs": jobs})
    else:
        print(f"{sweep_name}: {len(job_ids)} trials, {job_ids[0]} to {job_ids[-1]}")
