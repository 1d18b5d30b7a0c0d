"""The core's admission and its region as Python sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

_native = pytest.importorskip("tierline._native", reason="the native part is not built (scripts/native)")


def strict_admission() -> _native.Admission:
    config = _native.Config()
    config.mode = "strict"
    config.alpha_ppm = config.beta_ppm = 1_000_000
    return _native.Admission(config)


def client_with_kernel(
    admission: _native.Admission, label: str, priority: str, sm_ppm: int, bw_ppm: int
) -> tuple[int, int, int]:
    client = admission.join(label, priority)
    stream = admission.open_stream(client, 1)
    kernel = admission.add_kernel(f"kernel of {label}", grid=(64, 1, 1), block=(128, 1, 1))
    demand = _native.Demand(sm_ppm=sm_ppm, bw_ppm=bw_ppm, sm_blocks=64, duration_ns=50_000)
    admission.set_profile(kernel, demand)
    return client, stream, kernel


def test_what_does_not_fit_waits_until_there_is_room() -> None:
    admission = strict_admission()
    first = client_with_kernel(admission, "first", "best-effort", 700_000, 200_000)
    second = client_with_kernel(admission, "second", "best-effort", 400_000, 200_000)
    ticket = admission.request(*first, now_ns=10)
    assert ticket.admitted and ticket.reason == "alone"
    waiting = admission.request(*second, now_ns=20)
    assert not waiting.admitted
    assert admission.decide(20) == []
    [waiter] = admission.region.waiters()
    assert (waiter.client, waiter.reason, waiter.blamed) == (second[0], "sm-limit", first[0])
    assert admission.completed(first[1], ticket.seq, 60)
    assert admission.decide(60) == [waiting.waiter]
    assert admission.take(waiting.waiter, 60).seq == 1
    assert admission.region.sm_ppm == 400_000


def test_what_fits_goes_together() -> None:
    admission = strict_admission()
    first = client_with_kernel(admission, "first", "high", 600_000, 200_000)
    second = client_with_kernel(admission, "second", "best-effort", 300_000, 700_000)
    assert admission.request(*first, now_ns=10).admitted
    waiting = admission.request(*second, now_ns=20)
    assert admission.decide(20) == [waiting.waiter]
    region = admission.region
    assert (region.peak_sm_ppm, region.peak_bw_ppm, region.clients_active) == (900_000, 900_000, 2)
    assert [entry.kind for entry in region.trace()] == ["admitted", "admitted"]
    assert [client.label for client in region.clients()] == ["first", "second"]


def test_numbers_that_nobody_has_are_errors() -> None:
    admission = strict_admission()
    client, stream, kernel = client_with_kernel(admission, "one", "high", 1, 1)
    for bad in (-2, client + 1, 64, 10**6):
        with pytest.raises(IndexError, match="there is no client"):
            admission.leave(bad, 0)
        with pytest.raises(IndexError, match="there is no stream"):
            admission.completed(bad if bad != client + 1 else 1024, 1, 0)
    with pytest.raises(IndexError, match="there is no kernel"):
        admission.request(client, stream, kernel + 1, now_ns=0)
    with pytest.raises(IndexError, match="there is no waiter"):
        admission.take(0, 0)


def test_unknown_words_are_told_with_the_known_ones() -> None:
    config = _native.Config()
    with pytest.raises(ValueError, match=r"unknown policy 'fifo'. Known: interference, sequential"):
        config.policy = "fifo"
    with pytest.raises(ValueError, match=r"unknown mode 'lax'. Known: strict, latency"):
        config.mode = "lax"
    with pytest.raises(ValueError, match="unknown priority"):
        _native.Admission(config).join("x", "low")


def test_memory_caps() -> None:
    admission = strict_admission()
    client = admission.join("capped", "best-effort", memory_cap_bytes=100)
    assert admission.reserve_memory(client, 80)
    assert not admission.reserve_memory(client, 21)
    admission.release_memory(client, 50)
    assert admission.reserve_memory(client, 21)
    [row] = admission.region.clients()
    assert (row.memory_bytes, row.memory_cap_bytes, row.statistics.denied_allocations) == (51, 100, 1)


def test_a_region_in_a_file_is_read_by_another_handle(tmp_path: Path) -> None:
    config = _native.Config()
    config.policy, config.alpha_ppm = "orion", 900_000
    config.device.sms = 108
    path = str(tmp_path / "region")
    made = _native.Region.create(path, config)
    seen = _native.Region.open(path)
    assert (seen.config().policy, seen.config().alpha_ppm, seen.config().device.sms) == ("orion", 900_000, 108)
    assert seen.manager_pid == made.manager_pid > 0
    assert seen.clients() == seen.kernels() == seen.waits() == seen.trace() == seen.streams() == []


def test_what_is_no_region_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot open the region"):
        _native.Region.open(str(tmp_path / "none"))
    other = tmp_path / "other"
    other.write_bytes(b"x" * 100)
    with pytest.raises(RuntimeError, match="not a region of this version"):
        _native.Region.open(str(other))
    with pytest.raises(RuntimeError, match="cannot make the region"):
        _native.Region.create(str(tmp_path / "no" / "folder"), _native.Config())


def test_the_stub_names_what_is_there() -> None:
    stub = Path(_native.__file__).with_name("_native.pyi").read_text(encoding="utf-8")
    for name in (name for name in dir(_native) if not name.startswith("_")):
        assert f"class {name}:" in stub or f"def {name}(" in stub or f"\n{name}:" in stub, name
        members = getattr(_native, name)
        if isinstance(members, type):
            body = stub.split(f"class {name}:", 1)[1].split("\n@final", 1)[0]
            for member in (member for member in dir(members) if not member.startswith("_")):
                assert f" {member}(" in body or f" {member}:" in body, f"{name}.{member}"
