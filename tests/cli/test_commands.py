"""What each command sends to a daemon and shows of its answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import NS, FakeDaemon, Outcome

Tierline = Callable[..., Outcome]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    return "train.py"


def test_submit_sends_one_job_and_prints_its_id(daemon: FakeDaemon, tierline: Tierline, script: str) -> None:
    options = [
        "--name",
        "a1",
        "--gpus",
        "1..4",
        "--gpu-type",
        "h200",
        "--gpu-memory",
        "24G",
        "--metric",
        "acc:max",
        "--chance",
        "0.1",
        "--steps",
        "50",
    ]
    more = [
        "--priority",
        "3",
        "--after",
        "b",
        "--hold",
        "--grace",
        "5s",
        "--no-preempt",
        "--restarts",
        "1",
        "--env",
        "X=1",
    ]
    answer = tierline("submit", *options, *more, "--", sys.executable, script, "--lr", "0.1")
    assert (answer.code, answer.out, answer.err) == (0, "a1\n", "")
    (body,) = daemon.posted
    assert body["sweep"] == {"sweep_id": "a1", "metric": "acc", "direction": "max", "chance": 0.1, "target": None}
    job = body["jobs"][0]
    assert job["argv"] == [sys.executable, "train.py", "--lr", "0.1"]
    assert job["cwd"] == str(Path.cwd())
    wanted = {
        "job_id": "a1", "min_gpus": 1, "max_gpus": 4, "gpu_types": ["h200"], "gpu_memory_bytes": 24 << 30, "metric": "acc",
        "direction": "max", "total_steps": 50, "priority": 3, "after": ["b"], "held": True, "grace_s": 5.0,
        "preemptible": False, "max_restarts": 1, "env": {"X": "1"}, "sweep": "a1",
    }  # fmt: skip
    assert {key: job[key] for key in wanted} == wanted


def test_options_behind_the_command_belong_to_the_command(daemon: FakeDaemon, tierline: Tierline, script: str) -> None:
    assert tierline("submit", sys.executable, script, "--gpus", "7").code == 0
    job = daemon.posted[0]["jobs"][0]
    assert job["argv"][1:] == ["train.py", "--gpus", "7"]
    assert job["min_gpus"] == 1


@pytest.mark.parametrize(("phase", "code"), [("completed", 0), ("failed", 1), ("stopped", 1)])
def test_submit_wait_answers_with_how_it_ended(
    daemon: FakeDaemon, tierline: Tierline, script: str, phase: str, code: int
) -> None:
    daemon.on_submit = lambda fake, ids: fake.jobs[ids[0]].update(phase=phase, reason="because")
    answer = tierline("submit", "--wait", "--", sys.executable, script)
    assert answer.code == code
    assert answer.out == "job-0\n"
    assert f"job-0 {phase}: because" in answer.err


def test_a_grid_is_one_request(daemon: FakeDaemon, tierline: Tierline, script: str) -> None:
    answer = tierline(
        *["sweep", "--name", "s", "--grid", "lr=0.1,0.01", "--grid", "batch=32,64", "--chance", "2.3", "--"],
        *[sys.executable, script, "--lr", "{lr}", "--batch={batch}"],
    )
    assert (answer.code, answer.out) == (0, "s: 4 trials, s-0 to s-3\n")
    (body,) = daemon.posted
    assert body["sweep"]["chance"] == 2.3
    assert [job["job_id"] for job in body["jobs"]] == ["s-0", "s-1", "s-2", "s-3"]
    assert [job["argv"][2:] for job in body["jobs"]][1] == ["--lr", "0.1", "--batch=64"]
    assert body["jobs"][1]["params"] == {"lr": 0.1, "batch": 64}
    assert {job["sweep"] for job in body["jobs"]} == {"s"}


def test_more_trials_go_on_counting_and_leave_the_sweep_as_it_is(
    daemon: FakeDaemon, tierline: Tierline, script: str
) -> None:
    daemon.add("s-7", sweep="s", phase="completed")
    tierline("sweep", "--name", "s", "--grid", "lr=1,2", "--", sys.executable, script, "{lr}")
    assert [job["job_id"] for job in daemon.posted[0]["jobs"]] == ["s-8", "s-9"]
    assert daemon.posted[0]["sweep"] is None


def test_a_sweep_file_and_what_stands_on_the_command_line_wins(
    daemon: FakeDaemon, tierline: Tierline, script: str
) -> None:
    Path("s.toml").write_text(
        f'command = "{sys.executable} train.py {{lr}}"\ntrials = 3\ngpus = 2\nmetric = "acc:max"\n'
        '[random]\nlr = "log:1e-4..1"\n[env]\nA = "b"\n'
    )
    answer = tierline("sweep", "--trials", "5", "--json", "s.toml")
    shown = json.loads(answer.out)
    assert shown["sweep"] == "s"
    assert [job["job_id"] for job in shown["jobs"]] == ["s-0", "s-1", "s-2", "s-3", "s-4"]
    job = daemon.posted[0]["jobs"][0]
    assert (job["min_gpus"], job["metric"], job["env"]) == (2, "acc", {"A": "b"})
    assert job["argv"][2] == str(shown["jobs"][0]["params"]["lr"])


BAD_SWEEPS = {
    "no parameters": ["--", "{python}", "train.py"],
    "unknown placeholder": ["--grid", "lr=1", "--", "{python}", "train.py", "{lr}", "{batch}"],
    "unused parameter": ["--grid", "lr=1", "--", "{python}", "train.py"],
    "no command": ["--grid", "lr=1"],
    "missing script": ["--grid", "lr=1", "--", "{python}", "gone.py", "{lr}"],
    "no trials": ["--random", "lr=0..1", "--", "{python}", "train.py", "{lr}"],
    "too few trials": ["--random", "lr=0..1", "--trials", "0", "--", "{python}", "train.py", "{lr}"],
    "grid and random": ["--random", "lr=0..1", "--grid", "b=1", "--", "{python}", "train.py", "{lr}", "{b}"],
    "no value": ["--grid", "lr", "--", "{python}", "train.py", "{lr}"],
    "bad range": ["--random", "lr=log:0..1", "--trials", "2", "--", "{python}", "train.py", "{lr}"],
    "trials of a grid": ["--grid", "lr=1", "--trials", "2", "--", "{python}", "train.py", "{lr}"],
    "no such file": ["gone.toml"],
    "no TOML": ["bad.toml"],
    "unknown key": ["key.toml"],
    "wrong type": ["type.toml"],
    "unknown sampler": [
        "--random",
        "lr=0..1",
        "--trials",
        "2",
        "--sampler",
        "tp",
        "--",
        "{python}",
        "train.py",
        "{lr}",
    ],
    "bad function": ["--optuna", "nothing", "--trials", "2", "--", "{python}", "train.py", "{lr}"],
    "unknown option": ["--gird", "lr=1", "--", "{python}", "train.py", "{lr}"],
    "bad name": ["--name", "a b", "--grid", "lr=1", "--", "{python}", "train.py", "{lr}"],
    "long name": ["--name", "a" * 60, "--grid", "lr=1", "--", "{python}", "train.py", "{lr}"],
    "bad chance": ["--grid", "lr=1", "--chance", "nan", "--", "{python}", "train.py", "{lr}"],
}


@pytest.mark.parametrize("case", BAD_SWEEPS)
def test_a_malformed_sweep_is_one_sentence_and_nothing_is_created(
    daemon: FakeDaemon, tierline: Tierline, script: str, case: str
) -> None:
    Path("bad.toml").write_text("command = [")
    Path("key.toml").write_text('comand = "x"')
    Path("type.toml").write_text('trials = "many"')
    arguments = [sys.executable if word == "{python}" else word for word in BAD_SWEEPS[case]]
    assert tierline("sweep", *arguments).sentence
    assert daemon.posted == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "0"], "--gpus"),
        (["--metric", "a:b"], "--metric direction 'b'"),
        (["--grace", "soon"], "--grace"),
        (["--kind", "batsh"], "did you mean 'batch'"),
        (["--env", "TIERLINE_NO_SUCH_VARIABLE"], "TIERLINE_NO_SUCH_VARIABLE"),
        (["--deadline", "yesterday"], "--deadline"),
        (["--steps", "-1"], "steps"),
        (["--steps", str(2**63)], "--steps"),
        (["--priority", "1000"], "--priority 1000: from -100 to 100 is allowed."),
        (["--restarts", "1000001"], "--restarts"),
        (["--gpus", "1000001"], "--gpus"),
        (["--gpu-memory", "9999999999T"], "--gpu-memory"),
        (["--grace", "25h"], "--grace"),
        (["--deadline", "99999d"], "--deadline"),
        (["--name", "a b"], "--name 'a b' is no name"),
        (["--sweep", "-x"], "--sweep '-x' is no name"),
        (["--user", "a/b"], "--user"),
        (["--after", "a,b"], "--after"),
        (["--steps", "many"], "steps"),
    ],
)
def test_bad_options_of_submit_are_one_sentence(
    daemon: FakeDaemon, tierline: Tierline, script: str, arguments: list[str], said: str
) -> None:
    assert said in tierline("submit", *arguments, "--", sys.executable, script).sentence
    assert daemon.posted == []


def test_a_missing_script_is_one_sentence(daemon: FakeDaemon, tierline: Tierline, script: str) -> None:
    assert "'gone.py' does not exist" in tierline("submit", "--", sys.executable, "gone.py").sentence
    assert daemon.posted == []


@pytest.mark.parametrize(("status", "code"), [(422, 2), (403, 2), (404, 2), (500, 3)])
def test_what_the_daemon_refuses_is_passed_on(
    daemon: FakeDaemon, tierline: Tierline, script: str, status: int, code: int
) -> None:
    daemon.refusal = (status, "job 'a' asks for 9 GPUs; this cluster has 2 that it may use.")
    answer = tierline("submit", "--gpus", "9", "--", sys.executable, script)
    assert answer.code == code
    assert answer.err.startswith("tierline: job 'a' asks for 9 GPUs; this cluster has 2")


def test_without_a_daemon_the_exit_code_is_3_and_the_hint_is_there(
    tierline: Tierline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERLINE_HOME", str(tmp_path))
    monkeypatch.delenv("TIERLINE_URL", raising=False)
    for command in (["ps"], ["top"], ["why", "a"], ["stop", "a"], ["logs", "a"]):
        answer = tierline(*command)
        assert (answer.code, answer.out) == (3, "")
        assert answer.err.count("tierline up") == 1
        assert len(answer.err.splitlines()) == 1


def test_ps_shows_where_each_job_stands(daemon: FakeDaemon, tierline: Tierline) -> None:
    daemon.add(
        "a", sweep="s", phase="running", gpus=2, step=40, total_steps=100, loss=0.51234, utility=0.75, price=0.25
    )
    daemon.add("b", reason="its density is below the price")
    daemon.add("c", phase="completed", ended_ns=130 * NS)
    first, *rows = tierline("ps").out.splitlines()
    assert first.split() == [
        "JOB",
        "SWEEP",
        "STATE",
        "GPUS",
        "STEP",
        "LOSS",
        "UTILITY",
        "DENSITY",
        "PRICE",
        "AGE",
        "REASON",
    ]
    assert rows[0].split() == ["a", "s", "running", "2", "40/100", "0.5123", "0.75", "-", "0.25", "1m00s"]
    assert rows[1].endswith("its density is below the price")
    assert len(rows) == 2
    assert tierline("ps", "--all").out.splitlines()[3].split()[-1] == "30s"
    assert tierline("ps", "-q").out == "a\nb\n"
    shown = json.loads(tierline("ps", "--json", "--sweep", "s").out)
    assert [job["job_id"] for job in shown["jobs"]] == ["a"]


def test_why_tells_every_decision_with_density_and_price(daemon: FakeDaemon, tierline: Tierline) -> None:
    daemon.add("a", phase="queued", reason="waits: density 0.1 is below the price 0.25")
    common = {"devices": [], "attempt": 1, "density": None, "price": None}
    daemon.decisions = [
        common | {"seq": 1, "time_ns": 101 * NS, "action": "start", "reason": "new", "devices": ["cpu0"]},
        common | {"seq": 2, "time_ns": 105 * NS, "action": "preempt", "reason": "flat", "density": 0.1, "price": 0.25},
    ]
    lines = tierline("why", "a").out.splitlines()
    assert lines[0].startswith("a is queued")
    assert lines[-1] == "Now: queued: waits: density 0.1 is below the price 0.25"
    assert ["5.0s", "preempt", "#1", "-", "0.1", "0.25", "flat"] in [line.split() for line in lines]
    assert [d["seq"] for d in json.loads(tierline("why", "a", "--json", "-n", "1").out)["decisions"]] == [2]
    assert "there is no job 'x'" in tierline("why", "x").sentence
    assert "no job id" in tierline("why", "../x").sentence


def test_logs_are_the_bytes_of_the_job(daemon: FakeDaemon, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from tierline.cli.main import main

    daemon.add("a", phase="completed")
    daemon.logs["a"] = b"one\ntwo \xff\nthree"
    for arguments, wanted in ((["-f"], daemon.logs["a"]), ([], daemon.logs["a"]), (["-n", "2"], b"two \xff\nthree")):
        assert main(["logs", *arguments, "a"]) == 0
        assert capfdbinary.readouterr().out == wanted


def test_stop_hold_and_release_act_on_all_or_on_a_sweep(daemon: FakeDaemon, tierline: Tierline) -> None:
    for name in ("a", "b", "c"):
        daemon.add(name, sweep="s" if name != "c" else "")
    assert tierline("hold", "a", "c").out == "a held\nc held\n"
    assert tierline("release", "a").out == "a queued\n"
    assert tierline("stop", "--sweep", "s").out == "a stopped\nb stopped\n"
    assert daemon.jobs["c"]["phase"] == "held"
    assert "no live jobs" in tierline("stop", "--sweep", "s").sentence
    assert "either" in tierline("stop").sentence
    assert "either" in tierline("stop", "c", "--sweep", "s").sentence


def test_a_misspelt_id_changes_nothing(daemon: FakeDaemon, tierline: Tierline) -> None:
    daemon.add("a")
    assert "'x'" in tierline("stop", "a", "x").sentence
    assert daemon.jobs["a"]["phase"] == "queued"


def test_top_prints_once_in_a_pipe(daemon: FakeDaemon, tierline: Tierline) -> None:
    daemon.add("run", phase="running", step=3, loss=0.5, utility=0.5)
    daemon.add("low", density=0.1)
    daemon.add("high", density=0.9)
    daemon.reports["run"] = [{"step": i, "loss": 4.0 - i, "time_ns": i, "attempt": 1} for i in range(4)]
    text = tierline("top").out
    assert "cpu 0.25" in text
    assert "total utility 0.50" in text
    assert "█▇▅▁" in text
    assert text.index("high") < text.index("low")
    assert json.loads(tierline("top", "--json").out)["utility"] == 0.5
