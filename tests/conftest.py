"""The order of the tests' files. `scripts/test` gives a whole file to a core, so one that takes long must not be the last."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
LONGEST = (
    "native/test_interpose_sanitized.py",
    "integration/test_serving.py",
    "scripts/test_gpu_kernels.py",
    "integration/test_serve_command.py",
    "native/test_native_build.py",
    "engine/test_parity.py",
    "test_examples.py",
    "server/test_daemon.py",
    "native/test_interpose.py",
    "engine/test_tiny_vlm.py",
    "integration/test_serving_policies.py",
    "test_demo.py",
    "native/test_limits.py",
    "native/test_fake_driver_sanitized.py",
    "integration/test_serving_hosts.py",
    "integration/test_crash.py",
    "cli/test_with_daemon.py",
    "integration/test_shared_weights.py",
)
"""Those that take longest, by the time of the processor, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others, and the tests within each, stay in their order."""
    place = {TESTS / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
