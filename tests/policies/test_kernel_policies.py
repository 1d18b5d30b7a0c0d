"""The kernel policies' names, in Python, in native/core and in the docs: the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tierline.cli.policies import sections
from tierline.core.errors import UnknownName
from tierline.policies.kernels import (
    DEFAULT_MODE,
    DEFAULT_POLICY,
    DEFAULT_PRIORITY,
    POLICIES,
    kernel_mode,
    kernel_policy,
    kernel_priority,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_tells_idea_source_inputs_memory_cost(name: str) -> None:
    assert sections(POLICIES[name].doc).keys() == {"idea", "source", "inputs", "memory", "cost"}
    assert all(text.endswith(".") for text in sections(POLICIES[name].doc).values())
    assert kernel_policy(name).name == name


def test_the_defaults_are_known() -> None:
    assert kernel_policy(DEFAULT_POLICY).limits
    assert kernel_mode(DEFAULT_MODE) == "latency"
    assert kernel_priority(DEFAULT_PRIORITY) == "best-effort"


@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        (kernel_policy, "orions", "unknown kernel policy 'orions': did you mean 'orion'"),
        (kernel_mode, "stric", "unknown kernel mode 'stric': did you mean 'strict'"),
        (kernel_priority, "higher", "unknown kernel priority 'higher': did you mean 'high'"),
    ],
)
def test_unknown_words_name_the_known_ones(function, given: str, said: str) -> None:
    with pytest.raises(UnknownName) as caught:
        function(given)
    assert said in str(caught.value)


def test_the_core_knows_the_same_policies() -> None:
    header = (ROOT / "native/core/include/tierline/types.hpp").read_text()
    body = re.search(r"enum class PolicyName.*?\{(.*?)\};", header, re.DOTALL)
    assert body is not None
    assert re.findall(r"^\s*(\w+)(?: = 0)?,", body[1], re.MULTILINE) == list(POLICIES)


def test_the_native_module_knows_the_same_policies() -> None:
    native = pytest.importorskip("tierline._native", reason="the native part is not built")
    assert list(native.POLICIES) == list(POLICIES)


def test_the_concept_page_lists_them_all() -> None:
    page = (ROOT / "docs/concepts/kernel-manager.md").read_text()
    assert re.findall(
        r"^\| `(\w+)` \| ", page[page.index("## Policies") : page.index("## Processes")], re.MULTILINE
    ) == list(POLICIES)
    assert [name for name in POLICIES if POLICIES[name].limits] == ["interference", "sequential"]
    assert "Only `interference` and `sequential` keep the limits" in page
