"""An Optuna study whose trials become jobs: ask, submit, poll, tell, in the foreground.

Trials are asked as slots free up, so that the sampler learns from those that have ended. A trial that completed is told
its best value; one that was stopped (by its user, or early by a policy) counts as pruned with the values it reported,
one that failed as failed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierline.cli import render, space
from tierline.cli.client import Client, JobRequest, SweepRequest, connect
from tierline.cli.stop import ENDED
from tierline.cli.sweep import distributions, numbered, of_trial
from tierline.core.errors import InvalidInput, MissingExtra, NotFound, TierlineError, UnknownName

if TYPE_CHECKING:
    import optuna

    from tierline.core.status import JobStatus

POLL_S = 0.5
SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
}
Suggest = Callable[[Any], Mapping[str, space.Value]]


def load_function(name: str) -> Suggest:
    """`MODULE:FUNCTION`, the module importable from the working folder, or `FILE.py:FUNCTION`."""
    module_name, colon, function_name = name.rpartition(":")
    if not colon or not module_name or not function_name.isidentifier():
        raise InvalidInput(f"--optuna '{name}' names no function: write MODULE:FUNCTION or FILE.py:FUNCTION.")
    try:
        if module_name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(module_name)
    except (ImportError, FileNotFoundError) as error:
        raise NotFound(f"--optuna '{name}': the module cannot be imported: {error}.") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise NotFound(f"--optuna '{name}': '{module_name}' has no function '{function_name}'.")
    return function  # type: ignore[no-any-return]


def suggest_from(specs: Mapping[str, Any]) -> Suggest:
    """A function that draws from `--random`'s space through the trial."""
    kinds = distributions(specs)

    def suggest(trial: optuna.Trial) -> dict[str, space.Value]:
        values: dict[str, space.Value] = {}
        for name, kind in kinds.items():
            if isinstance(kind, space.Choice):
                chosen = trial.suggest_categorical(name, kind.values)
                assert chosen is not None  # Optuna allows None among the choices, `Choice` does not
                values[name] = chosen
            elif kind.integer:
                values[name] = trial.suggest_int(name, int(kind.low), int(kind.high), log=kind.log)
            else:
                values[name] = trial.suggest_float(name, kind.low, kind.high, log=kind.log)
        return values

    return suggest


def create(chosen: Mapping[str, Any], name: str, direction: str) -> optuna.Study:
    try:
        import optuna
    except ImportError:
        raise MissingExtra("an Optuna study", "optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler_name = chosen["sampler"] or "tpe"
    if sampler_name not in SAMPLERS:
        raise UnknownName("sampler", sampler_name, SAMPLERS)
    sampler = getattr(optuna.samplers, SAMPLERS[sampler_name])(seed=chosen["seed"])
    try:
        return optuna.create_study(
            study_name=chosen["study"] or name,
            storage=chosen["storage"] or None,
            sampler=sampler,
            direction="maximize" if direction == "max" else "minimize",
            load_if_exists=True,
        )
    except Exception as error:  # whatever the database's driver raises
        raise InvalidInput(f"--storage '{chosen['storage']}' cannot be used: {error}.") from None


def tell(study: optuna.Study, trial: optuna.Trial, job: JobStatus, client: Client, direction: str) -> None:
    """Hand the job's result over. Optuna is told in the metric's own unit, Tierline keeps losses."""
    from optuna.trial import TrialState

    sign = -1.0 if direction == "max" else 1.0
    seen: set[int] = set()
    for row in client.reports(job.job_id):
        if row.loss is not None and row.step >= 0 and row.step not in seen:
            seen.add(row.step)
            trial.report(sign * row.loss, row.step)
    if job.phase == "completed" and job.best_loss is not None:
        study.tell(trial, sign * job.best_loss)
    else:
        study.tell(trial, state=TrialState.PRUNED if job.phase == "stopped" else TrialState.FAIL)


def run(shared: JobRequest, declared: SweepRequest, chosen: Mapping[str, Any], *, as_json: bool) -> None:
    """The whole study. Ctrl-C leaves it; the jobs that live go on."""
    name, direction = declared.sweep_id, declared.direction
    count = chosen["trials"]
    if count is None or count < 1:
        raise InvalidInput("A study needs --trials with the number of trials, 1 or more.")
    if bool(chosen["optuna"]) == bool(chosen["random"]):
        raise InvalidInput("A study draws either from --optuna MODULE:FUNCTION or from --random parameters.")
    suggest = load_function(chosen["optuna"]) if chosen["optuna"] else suggest_from(chosen["random"])
    if chosen["random"]:
        space.check_template(shared.argv, list(chosen["random"]))
    study = create(chosen, name, direction)
    live: dict[str, optuna.Trial] = {}
    asked = 0
    with connect() as client, render.console(stderr=True).status(name) as line:
        parallel = chosen["parallel"] or 2 * len(client.cluster().devices)
        number = numbered(client, name)
        try:
            while asked < count or live:
                while asked < count and len(live) < parallel:
                    trial = study.ask()
                    job_id = submit_trial(client, suggest, study, trial, shared, declared, number + asked)
                    live[job_id] = trial
                    asked += 1
                for job in client.jobs(all=True, sweep=name):
                    if job.job_id in live and job.phase in ENDED:
                        tell(study, live.pop(job.job_id), job, client, direction)
                line.update(f"{name}: {asked} of {count} trials asked, {len(live)} live; {best_of(study)}")
                if live:
                    time.sleep(POLL_S)
        except KeyboardInterrupt:
            print(
                f"tierline: left the study; {len(live)} jobs go on (end them: tierline stop --sweep {name}).",
                file=sys.stderr,
            )
            raise
    if as_json:
        trials = [
            {"number": t.number, "state": t.state.name, "value": t.value, "params": t.params} for t in study.trials
        ]
        render.print_json({"sweep": name, "trials": trials})
    else:
        states = [t.state.name.lower() for t in study.trials]
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        print(f"{name}: {counted}; {best_of(study)}")


def submit_trial(
    client: Client,
    suggest: Suggest,
    study: optuna.Study,
    trial: optuna.Trial,
    shared: JobRequest,
    declared: SweepRequest,
    number: int,
) -> str:
    """Submit one trial; on any error the trial is told as failed, so that none is left running in the storage."""
    from optuna.trial import TrialState

    try:
        values = suggest(trial)
        if not isinstance(values, Mapping) or not values:
            raise InvalidInput("the --optuna function must return the parameters as a dict, as in {'lr': lr}.")
        space.check_template(shared.argv, list(values))
        (job_id,) = client.submit([of_trial(shared, declared.sweep_id, number, values)], declared)
    except TierlineError:
        study.tell(trial, state=TrialState.FAIL)
        raise
    return job_id


def best_of(study: optuna.Study) -> str:
    try:
        best = study.best_trial
    except ValueError:
        return "no result yet"
    params = ", ".join(f"{name}={render.number(v) if isinstance(v, float) else v}" for name, v in best.params.items())
    return f"best {render.number(best.value)} ({params})"
