"""Compositions of simulated serving runs: same requests for everybody, exact repeats, one sentence for bad input."""

import dataclasses
import json
import math
from importlib import resources

import pytest

from tierline import serving_experiments as experiments
from tierline.backends.serving.sim import Kill
from tierline.cli.main import main
from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.slo import Slo
from tierline.presets import PRESETS, preset_of
from tierline.runtime.codec import decode_actions, decode_event
from tierline.serving_experiments import ServingExperiment, ServingSetup

SOURCE = "synthetic?mm_share=0.5&repeat=0.3&rate=60&seconds=2"
SETUP = ServingSetup(instances=8, slo=Slo.parse("ttft=300ms,tpot=12ms"))
SMALL = ServingExperiment(SOURCE, ("coupled", "static:2E2P4D"), SETUP, seeds=2)
PROFILES = resources.files("tierline.perf") / "profiles"


def test_every_policy_gets_the_same_requests_and_all_are_answered():
    runs = experiments.run_all(SMALL)
    assert [(run.seed, run.policy) for run in runs] == [(seed, name) for seed in (0, 1) for name in SMALL.policies]
    for seed in (0, 1):
        assert len({run.workload_hash for run in runs if run.seed == seed}) == 1
    assert len({run.workload_hash for run in runs}) == 2
    for run in runs:
        assert run.report.all.finished == run.report.all.requests > 50
        assert run.report.images.requests > 10 and run.report.text.requests > 10


def test_a_run_repeats_exactly_in_any_process():
    def key(runs):
        return [json.dumps(experiments.as_json(SMALL, runs), sort_keys=True)]

    assert key(experiments.run_all(SMALL, workers=2)) == key(experiments.run_all(SMALL))


@pytest.mark.parametrize("name", [*PRESETS, "static:2E2P4D", "static:1P1D+2E2P2D", "adaptive-elasticity"])
def test_every_preset_answers_everybody_and_leaps_change_nothing(name):
    """Elastic policies see how far answers are: they must see the same at the same moments."""
    trace = experiments.trace_of(SOURCE, 90.0, 1.0, 0, 3)
    setup = dataclasses.replace(SETUP, kills=(Kill(500_000_000, "i2"),), start_ns=200_000_000)
    found = []
    for lockstep in (True, False):
        backend, scheduler = experiments.simulate(trace, preset_of(name), dataclasses.replace(setup, lockstep=lockstep))
        assert not backend.open
        found.append((backend.outcomes(), dict(scheduler.counts), [each.busy_ns for each in backend.instances]))
    assert found[0] == found[1]
    assert all(outcome.ok for outcome in found[0][0])
    truth = [request.output_tokens for request in trace.requests]
    assert [outcome.output_tokens for outcome in found[0][0]] == truth


def test_the_old_engine_stalls_and_the_caches_help_as_presets_say():
    trace = experiments.trace_of(SOURCE, 100.0, 2.0, 0, 0)
    reports = {}
    for name in ("coupled", "coupled-2024", "coupled-cache"):
        backend, scheduler = experiments.simulate(trace, preset_of(name), SETUP)
        outcomes = backend.outcomes()
        reports[name] = (
            experiments.judge(outcomes, SETUP),
            experiments.counts_of(backend, scheduler, outcomes),
        )
    assert reports["coupled"][1]["image_hit_share"] > 0.05
    assert reports["coupled-cache"][1]["prefix_hit_share"] == 0.0
    assert reports["coupled-2024"][0].all.tpot.p99 > reports["coupled"][0].all.tpot.p99


def test_the_warm_up_is_left_out():
    trace = experiments.trace_of(SOURCE, 50.0, 2.0, 0, 0)
    backend, _ = experiments.simulate(trace, preset_of("coupled"), SETUP)
    figures = experiments.judge(backend.outcomes(), SETUP)
    first, last = trace.requests[0].arrived_ns, trace.requests[-1].arrived_ns
    assert figures.from_ns == first + round(0.1 * (last - first))
    assert figures.all.requests == sum(each.arrived_ns >= figures.from_ns for each in trace.requests)


def test_layouts_keep_their_commas():
    assert experiments.parse_presets("emp, static:E,2PD,coupled") == ("emp", "static:E,2PD", "coupled")
    with pytest.raises(UnknownName, match="did you mean 'adaptive'"):
        experiments.parse_presets("adaptiv")
    with pytest.raises(InvalidInput, match="names of presets"):
        experiments.parse_presets(" , ")


def test_a_kill_is_a_name_and_a_time():
    assert experiments.parse_kill("i3@1.5") == Kill(1_500_000_000, "i3")
    for text in ("i3", "@2", "i3@", "i3@soon", "i3@-1", "i3@inf"):
        with pytest.raises(InvalidInput, match="NAME@SECONDS"):
            experiments.parse_kill(text)


def test_folders_of_this_machine_are_not_in_the_results():
    public = experiments._public_source("mix?rate=4+servegen:/data/of/mine/sg?hold=1+azure:/data/conv.csv")
    assert public == "mix?rate=4+servegen:sg?hold=1+azure:conv.csv"
    assert experiments._public_times("tables:/data/devices:h100:Qwen2.5-VL-7B") == "tables:h100:Qwen2.5-VL-7B"
    assert experiments._public_times("/home/me/mine.toml") == "mine.toml"


# --- the command


def test_the_command_compares_policies_and_writes_what_it_found(tmp_path, capsys):
    file, picture = tmp_path / "out.json", tmp_path / "out.png"
    command = ["simulate", "serving", "synthetic?mm_share=0.5", "--rate", "40,80", "--seconds", "1", "--workers", "1"]
    command += ["--policy", "coupled,static:2E2P4D", "--slo", "ttft=300ms,tpot=12ms"]
    assert main([*command, "--json", str(file), "--plot", str(picture)]) == 0
    told = capsys.readouterr().out
    assert "40 requests/s, mean of 1 workload" in told and "80 requests/s" in told
    assert "coupled" in told and "static:2E2P4D" in told and "GOODPUT" in told
    found = json.loads(file.read_text())
    assert set(found["rates"]) == {"40", "80"}
    cell = found["rates"]["80"]["policies"]["coupled"]
    assert 0.0 < cell["mean"]["all.goodput_per_s"] <= 200.0
    assert cell["seeds"][0]["counts"]["iterations"] > 10
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_records_events_that_can_be_read_back(tmp_path, capsys):
    file = tmp_path / "events.jsonl"
    command = ["simulate", "serving", "synthetic", "--rate", "20", "--seconds", "1", "--policy", "adaptive"]
    assert main([*command, "--events", str(file), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["instances"] == 8
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"RequestSubmitted", "InstanceJoined", "InstanceSaid", "Tick"} <= {row["kind"] for row in rows}
    for row in rows:
        decode_event(row["kind"], json.dumps(row["event"]))
        decode_actions(json.dumps(row["actions"]))
    assert [row["time_ns"] for row in rows] == sorted(row["time_ns"] for row in rows)


def test_the_command_lets_instances_sleep(capsys):
    command = ["simulate", "serving", "synthetic?images=0", "--rate", "0.5", "--seconds", "150", "--policy", "coupled"]
    assert main([*command, "--instances", "2", "--max-instances", "2"]) == 0
    told = capsys.readouterr().out
    assert "coupled, seed 0: 1 slept, " in told and "device-seconds" in told
    assert main([*command, "--instances", "2"]) == 0
    assert "slept" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--policy", "adaptiv"], "unknown serving policy 'adaptiv'"),
        (["--rate", "-1"], "--rate takes numbers"),
        (["--device", "h101"], "h101"),
        (["--model", "Qwen9"], "Qwen9"),
        (["--policy", "static:2E2P4D", "--instances", "4"], "4"),
        (["--kill", "i3"], "NAME@SECONDS"),
        (["--slo", "ttft=fast"], "--slo"),
        (["--policy", "coupled,emp", "--events", "x"], "--events records one run"),
        (["--json", "no/such/folder/x.json"], "folder does not exist"),
        (["--max-instances", "4"], "1 to 4 instances, 8 at the start"),
        (
            ["--profile", f"{PROFILES}/l40s-qwen2.5-vl-7b.toml", "--device", "h100"],
            "is of device 'l40s', and device 'h100' is used",
        ),
        (
            ["--profile", f"{PROFILES}/h100-llama-3.1-8b.toml", "--model", "Qwen2.5-VL-7B"],
            "is of model 'Llama-3.1-8B', and model",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, capsys):
    assert main(["simulate", "serving", "synthetic", "--rate", "10", "--seconds", "1", *arguments]) != 0
    told = capsys.readouterr().err
    assert sentence.lower() in told.lower()
    assert "Traceback" not in told and len(told.strip().splitlines()) <= 3


def test_nan_has_no_place_in_json():
    assert experiments._plain({"a": [math.nan, (1.0, math.inf)], "b": {"c": 2}}) == {
        "a": [None, [1.0, None]],
        "b": {"c": 2},
    }
