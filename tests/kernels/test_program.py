"""What a program is given: its declaration, its environment, MPS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierline.core.errors import InvalidInput, MissingNative, NotFound, TierlineError, UnknownName
from tierline.kernels import environment, mps
from tierline.kernels.environment import fake_environment, kernel_environment
from tierline.kernels.program import Program, check_profile, client_name, memory_bytes, read_program


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the native libraries seem to lie."""
    for name in ("libtierline_interpose.so", "fake/libcuda.so.1"):
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).touch()
    monkeypatch.setattr(environment, "LIB", tmp_path / "lib")
    return tmp_path / "lib"


def test_the_environment_of_the_interposer(library: Path) -> None:
    env = kernel_environment(Path("/r"), "orion", "strict", "high", "serve", 8 << 30, base={"PATH": "/bin"})
    assert env == {
        "LD_PRELOAD": str(library / "libtierline_interpose.so"),
        "TIERLINE_ARBITER": "/r",
        "TIERLINE_POLICY": "orion",
        "TIERLINE_MODE": "strict",
        "TIERLINE_PRIORITY": "high",
        "TIERLINE_CLIENT": "serve",
        "TIERLINE_MEMORY": str(8 << 30),
        "TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER": "0",
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",
    }


def test_what_the_user_has_set_stays(library: Path) -> None:
    ours = str(library / "libtierline_interpose.so")
    base = {"LD_PRELOAD": f"/other.so {ours}", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    env = kernel_environment(
        Path("/r"),
        "free",
        "latency",
        "best-effort",
        "a",
        0,
        profile=Path("/p.csv"),
        device_spec="132:1e15:4e12",
        base=base,
    )
    assert env["LD_PRELOAD"] == f"{ours}:/other.so"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in env
    assert "TIERLINE_MEMORY" not in env
    assert (env["TIERLINE_PROFILE"], env["TIERLINE_DEVICE_SPEC"]) == ("/p.csv", "132:1e15:4e12")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy": "orio"}, "unknown kernel policy 'orio': did you mean 'orion'"),
        ({"mode": "fast"}, "unknown kernel mode 'fast'"),
        ({"priority": "low"}, "unknown kernel priority 'low'"),
        ({"client": ""}, "client name ''"),
        ({"client": "é" * 32}, "1 to 63 bytes"),
        ({"memory_bytes": -1}, "memory cap of -1"),
    ],
)
def test_what_cannot_be_used_is_told(library: Path, change: dict[str, object], said: str) -> None:
    good = {"policy": "free", "mode": "strict", "priority": "high", "client": "a", "memory_bytes": 0}
    with pytest.raises(InvalidInput) as caught:
        kernel_environment(Path("/r"), **(good | change))  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "LIB", tmp_path)
    with pytest.raises(MissingNative, match=r"libtierline_interpose\.so is missing: .*install it again"):
        kernel_environment(Path("/r"), "free", "strict", "high", "a", 0)
    with pytest.raises(MissingNative, match="fake CUDA driver is missing"):
        fake_environment("h200")


def test_a_library_that_ld_preload_cannot_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "libtierline_interpose.so").touch()
    monkeypatch.setattr(environment, "LIB", folder)
    with pytest.raises(InvalidInput, match="no path with a blank"):
        kernel_environment(Path("/r"), "free", "strict", "high", "a", 0)


def test_the_environment_of_a_simulated_device(library: Path) -> None:
    env = fake_environment("a100", Path("/s"), {"LD_LIBRARY_PATH": "/x:", "PATH": "/bin", "FAKECUDA_CLOCK": "virtual"})
    assert env == {
        "LD_LIBRARY_PATH": f"{library / 'fake'}:/x",
        "PATH": f"/bin:{library / 'fake'}",  # behind all others
        "FAKECUDA_DEVICE": "a100",
        "FAKECUDA_SHARED": "/s",
    }
    assert fake_environment("h200", base={})["FAKECUDA_CLOCK"] == "wall"
    with pytest.raises(UnknownName, match="simulated device 'h300': did you mean"):
        fake_environment("h300")


# ---- declarations ------------------------------------------------------------------------------------------------------


def test_a_program_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("name,duration_ns\na,5\n")
    path = tmp_path / "serve.toml"
    path.write_text(
        'argv = ["python", "-u", "serve.py"]\npriority = "high"\nmemory = "1.5GiB"\nprofile = "p.csv"\ncwd = "."\n'
        '[env]\nMODEL = "small"\n'
    )
    assert read_program(path) == Program(
        ("python", "-u", "serve.py"), "serve", "high", 3 << 29, tmp_path / "p.csv", tmp_path, (("MODEL", "small"),)
    )
    path.write_text('argv = ["true"]\nname = "t"\nmemory = 1000\n')
    assert read_program(path) == Program(("true",), "t", "best-effort", 1000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("argv = 'true'", 'argv = ["COMMAND"'),
        ("argv = []", 'argv = ["COMMAND"'),
        ('argv = ["true"]\npriorty = "high"', "unknown key 'priorty'; allowed are argv"),
        ('argv = ["true"]\npriority = "low"', "unknown kernel priority 'low'"),
        ('argv = ["true"]\nmemory = "much"', "memory 'much' is no size"),
        ('argv = ["true"]\nmemory = true', "memory = True, but a text is needed"),
        ('argv = ["true"]\ncwd = "no"', "is no folder"),
        ('argv = ["true"]\nprofile = "no.csv"', "there is no profile file"),
        ('argv = ["true"]\n[env]\nN = 3', "[env] holds texts"),
        ("argv = [", "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_program_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_program(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no program file"):
        read_program(tmp_path / "a.toml")


def test_a_foreign_profile_is_to_be_converted_first(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_text("Name,Profile,Memory_footprint,SM_usage,Duration\nConv,1,0,9,9\n")
    with pytest.raises(InvalidInput, match=r"is one of Orion: convert it with `tierline kernels profile .*o\.csv -o"):
        check_profile(path)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/usr/bin/python3", "-u", "a/train.py", "--lr"], "train.py"),
        (["./serve"], "serve"),
        (["python"], "python"),
        (["fake-program", "bert-server", "--seconds", "3"], "bert-server"),
    ],
)
def test_what_a_program_is_called(argv: list[str], name: str) -> None:
    assert client_name("", argv) == name
    assert client_name("mine", argv) == "mine"
    with pytest.raises(InvalidInput, match="printable"):
        client_name("a\nb", argv)


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("1000", 1000), ("8GiB", 8 << 30), ("8G", 8 << 30), ("512 MiB", 1 << 29)]
)
def test_sizes(text: str, count: int) -> None:
    assert memory_bytes(text) == count


@pytest.mark.parametrize("text", ["0", "-1G", "8X", "2048T", "G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(TierlineError, match="--memory"):
        memory_bytes(text)


# ---- MPS ---------------------------------------------------------------------------------------------------------------

CONTROL = """#!/bin/sh
echo "$* $CUDA_VISIBLE_DEVICES $(test -t 0 || cat)" >> {log}
{then}
"""


def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> Path:
    """A control program of MPS that notes what it is told."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / mps.CONTROL
    program.write_text(CONTROL.format(log=tmp_path / "log", then=then))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "none"))
    return tmp_path / "log"


def test_mps_is_started_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = control(tmp_path, monkeypatch, "exit 0")
    found = mps.start(3, tmp_path)
    assert found.is_on
    assert found.is_ours
    assert found.env["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps-3")
    mps.stop(found)
    assert [line.split() for line in log.read_text().splitlines() if line.strip()] == [
        ["-d", "3"],
        ["get_server_list"],
        ["quit"],
    ]


def test_who_comes_later_finds_the_mps_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = control(tmp_path, monkeypatch, "exit 0")
    assert not mps.of_device(0, tmp_path).is_on
    (tmp_path / "mps-0").mkdir()
    (tmp_path / "mps-0" / "control").touch()
    found = mps.of_device(0, tmp_path)
    assert (found.is_on, found.env) == (True, {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "mps-0")})
    assert not mps.of_device(1, tmp_path).is_on
    mps.stop(found)  # it is not ours to end
    assert "quit" not in log.read_text()


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ('[ "$1" = -d ] && { echo no permission >&2; exit 1; }', "MPS cannot be started (no permission)"),
        ('[ "$1" = -d ] || { echo dead >&2; exit 1; }', "MPS was started and does not answer (dead)"),
    ],
)
def test_what_keeps_mps_off_is_told_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, said: str
) -> None:
    control(tmp_path, monkeypatch, then)
    found = mps.start(0, tmp_path)
    assert not found.is_on
    assert said in found.note
    assert "take turns" in found.note
    mps.stop(found)


def test_without_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = mps.start(0, tmp_path)
    assert (found.is_on, found.is_ours) == (False, False)
    assert "not on PATH" in found.note
    assert mps.running() is None


def test_an_mps_that_runs_is_used_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = control(tmp_path, monkeypatch, "exit 0")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "control").touch()
    found = mps.start(0, tmp_path)
    assert (found.is_on, found.is_ours) == (True, False)
    mps.stop(found)
    assert "quit" not in log.read_text()
