"""`tierline run` around a program, with a native half that does nothing: exec, signals, streams, exit codes, messages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tierline.cli.main import main
from tierline.kernels import environment, mps

STUBBED = Path(__file__).with_name("stubbed.py")
LIMIT_S = 60


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a preload library that does nothing of note: some library that this Python has loaded anyway."""
    folder = tmp_path_factory.mktemp("lib")
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    harmless = next((path for path in sorted(loaded) if "/libm" in path or "/libz" in path or "/libdl" in path), None)
    if harmless is None:
        pytest.skip("no library to preload is known here")
    shutil.copy(harmless, folder / "libtierline_interpose.so")
    (folder / "fake").mkdir()
    shutil.copy(harmless, folder / "fake" / "libcuda.so.1")
    return folder


def start(library: Path, *words: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(STUBBED), str(library), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **(pipes | options))  # type: ignore[call-overload, no-any-return]


def run(library: Path, *words: str, given: str = "") -> tuple[int, str, str]:
    with start(library, *words) as process:
        out, err = process.communicate(given, timeout=LIMIT_S)
    return process.returncode, out, err


def test_streams_and_the_exit_code_are_the_programs_own(library: Path) -> None:
    code, out, err = run(library, "run", "--", "sh", "-c", "cat; echo told >&2; exit 7", given="said")
    assert (code, out, err) == (7, "said", "told\n")


def test_the_program_takes_the_place_of_the_command(library: Path) -> None:
    with start(library, "run", "--", "sh", "-c", "echo $$; exec sleep 60") as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == -signal.SIGTERM


def test_options_behind_the_program_are_its_own(library: Path) -> None:
    code, out, _ = run(library, "run", "--priority", "high", "echo", "--policy", "none", "-h")
    assert (code, out) == (0, "--policy none -h\n")


def test_what_the_program_is_told(library: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("name,duration_ns\na,5\n")
    words = ["--priority", "high", "--policy", "orion", "--mode", "strict", "--memory", "8GiB", "--profile"]
    code, out, err = run(library, "run", *words, str(tmp_path / "p.csv"), "--device", "1", "--", "env")
    assert (code, err) == (0, "")
    env = dict(line.partition("=")[::2] for line in out.splitlines())
    region = tmp_path / "run" / "tierline" / "kernels" / "device-1.region"
    wanted = {
        "TIERLINE_ARBITER": str(region),
        "TIERLINE_POLICY": "orion",
        "TIERLINE_MODE": "strict",
        "TIERLINE_PRIORITY": "high",
        "TIERLINE_CLIENT": "env",
        "TIERLINE_MEMORY": str(8 << 30),
        "TIERLINE_PROFILE": str(tmp_path / "p.csv"),
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_PRELOAD": str(library / "libtierline_interpose.so"),
    }
    assert {name: env.get(name) for name in wanted} == wanted
    assert region.is_file()


def test_the_device_is_the_first_that_is_visible(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert run(library, "run", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")[1] == "3\n"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-12ab")
    code, _, err = run(library, "run", "--", "true")
    assert (code, err.count("\n")) == (2, 1)
    assert "name the device, --device N" in err


def test_a_simulated_device_is_labelled_and_leaves_the_gpus_alone(library: Path) -> None:
    code, out, err = run(library, "run", "--fake", "h200", "--", "sh", "-c", "echo $FAKECUDA_DEVICE $LD_LIBRARY_PATH")
    assert (code, out) == (0, f"h200 {library / 'fake'}\n")
    assert err == "tierline: sh runs on a simulated device (h200); no GPU is used.\n"


def test_the_region_is_in_use_as_long_as_the_program_runs(library: Path) -> None:
    with start(library, "run", "--policy", "orion", "--", "sh", "-c", "echo here; cat") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "here\n"
        assert run(library, "run", "--", "sh", "-c", "echo $TIERLINE_POLICY")[1] == "orion\n"
        code, _, err = run(library, "run", "--policy", "tgs", "--", "true")
        assert code == 2
        assert "is in use with policy 'orion'" in err
        first.communicate(timeout=LIMIT_S)
    assert run(library, "run", "--policy", "tgs", "--", "sh", "-c", "echo $TIERLINE_POLICY")[1] == "tgs\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command is given"),
        (["--policy", "orio", "--", "true"], "unknown kernel policy 'orio': did you mean 'orion'"),
        (["--mode", "x", "--", "true"], "unknown kernel mode 'x'"),
        (["--priority", "x", "--", "true"], "unknown kernel priority 'x'"),
        (["--memory", "x", "--", "true"], "--memory 'x' is no size"),
        (["--profile", "no.csv", "--", "true"], "there is no profile file 'no.csv'"),
        (["--fake", "h300", "--", "true"], "unknown simulated device 'h300'"),
        (["--json", "--", "true"], "--json goes with --share"),
        (["--share"], "--share needs the TOML files"),
        (["--share", "--priority", "high", "a.toml"], "--priority stands in each program's TOML file"),
        (["--share", "a.toml", "--json"], "'--json' stands behind a file"),
        (["--share", "a.toml"], "there is no program file 'a.toml'"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(
    library: Path, native: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str],
    said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(environment, "LIB", library)
    assert main(["run", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("tierline: ")
    assert said in err


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [("no-such-program", 127, "No such file or directory"), ("/etc/passwd", 126, "Permission denied")],
)
def test_what_cannot_be_executed(library: Path, program: str, code: int, said: str) -> None:
    assert run(library, "run", "--", program) == (code, "", f"tierline: '{program}' cannot be executed: {said}.\n")
    assert not list(Path(os.environ["XDG_RUNTIME_DIR"]).rglob("*.region"))


def test_a_library_that_is_missing(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "run", "--", "true")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "libtierline_interpose.so is missing" in err
    assert not list((tmp_path / "run").rglob("*.region"))


# ---- several together --------------------------------------------------------------------------------------------------


def line_with(process: subprocess.Popen[str], words: str) -> str:
    """The next line of its output that holds these words."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"it ended without saying '{words}'")


def declare(folder: Path, name: str, script: str, more: str = "") -> str:
    path = folder / f"{name}.toml"
    path.write_text(f"argv = ['sh', '-c', '''{script}''']\n{more}\n")
    return str(path)


def test_programs_run_together_and_are_told_apart(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which(mps.CONTROL):
        pytest.skip("there is an MPS here, which this test would start")
    a = declare(tmp_path, "a", "echo one; echo oh >&2", 'priority = "high"')
    b = declare(tmp_path, "bee", 'echo $KIND; test -z "$(cat)"', '[env]\nKIND = "two"')
    code, out, err = run(library, "run", "--share", a, b)
    assert code == 0
    assert "a   | one\n" in out
    assert "bee | two\n" in out
    assert "a   | oh\n" in err
    assert "take turns" in out  # there is no MPS here
    assert "Policy: sequential; --policy NAME sets another." in out
    cells = [line.split() for line in out.splitlines()]
    assert ["a", "high", "0"] in [row[:3] for row in cells]
    assert ["bee", "best-effort", "0"] in [row[:3] for row in cells]


def test_the_summary_as_json(library: Path, tmp_path: Path) -> None:
    a, b = declare(tmp_path, "a", "echo one"), declare(tmp_path, "b", "kill -9 $$")
    code, out, err = run(library, "run", "--share", "--fake", "h200", "--policy", "free", "--json", a, b)
    assert code == 1
    found = json.loads(out)
    assert [(each["name"], each["exit_code"]) for each in found["programs"]] == [("a", 0), ("b", 137)]
    assert (found["simulated"], found["policy"], found["mps"]["on"]) == (True, "free", True)
    assert "a | one\n" in err
    assert "no GPU is used" in err


def test_two_managers_on_one_device(library: Path, tmp_path: Path) -> None:
    waits = declare(tmp_path, "waits", "echo here; sleep 60")
    with start(library, "run", "--share", "--fake", "h200", waits) as first:
        line_with(first, "here")
        code, _, err = run(library, "run", "--share", "--fake", "h200", declare(tmp_path, "b", "true"))
        assert code == 2
        assert f"simulated device h200 is managed by process {first.pid} already" in err
        assert run(library, "run", "--fake", "h200", "--", "true")[0] == 0  # joining is no second manager
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=LIMIT_S)
    assert first.returncode == 128 + signal.SIGTERM


def test_a_program_that_ignores_the_first_signal_is_killed_by_the_second(library: Path, tmp_path: Path) -> None:
    stubborn = declare(tmp_path, "a", "trap 'echo no' INT; echo $$; while :; do sleep 0.05; done")
    with start(library, "run", "--share", "--fake", "h200", stubborn) as process:
        line = line_with(process, "a | ")
        process.send_signal(signal.SIGINT)
        line_with(process, "a | no")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGINT
    assert not Path(f"/proc/{line.split()[-1]}").exists()


def test_names_and_programs_that_cannot_be(library: Path, tmp_path: Path) -> None:
    a = declare(tmp_path, "a", "sleep 60")
    code, _, err = run(library, "run", "--share", "--fake", "h200", a, a)
    assert code == 2
    assert "two programs are called 'a'" in err
    (tmp_path / "no.toml").write_text('argv = ["no-such-program"]\n')
    code, _, err = run(library, "run", "--share", "--fake", "h200", a, str(tmp_path / "no.toml"))
    assert code == 2
    assert "'no-such-program' cannot be started" in err
    assert not list((tmp_path / "run").rglob("*.region"))
