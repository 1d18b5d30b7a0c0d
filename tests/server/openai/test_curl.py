"""The curl lines of the guide and the README, as they stand there, run by a shell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierline.server.openai import FrontOptions
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Live, events
from .test_images import GOOD

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("docs/guides/serve.md", "README.md")
ADDRESS = "http://127.0.0.1:8000"
KEY = "a-key-for-curl"

pytestmark = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")


def scripts() -> Iterator[tuple[str, str]]:
    """(page and place, script): each block of a page that asks the server, cut at its empty lines."""
    for page in PAGES:
        blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
        parts = [part for block in blocks for part in block.split("\n\n") if "curl -s" in part and ADDRESS in part]
        for number, part in enumerate(parts):
            yield f"{page}:{number}", part


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with Live(InstantGenerator(), ByteText(), FrontOptions(api_keys=(KEY,))) as server:
        yield server


@pytest.mark.parametrize(("place", "script"), list(scripts()))
def test_a_line_of_the_guide(live: Live, place: str, script: str, tmp_path: Path) -> None:
    (tmp_path / "shapes.png").write_bytes(GOOD)
    address = f"http://{live.address[0]}:{live.address[1]}"
    with_key = (
        script if "Authorization" in script else script.replace("curl -s", f"curl -H 'Authorization: Bearer {KEY}' -s")
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", with_key.replace(ADDRESS, address)],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "TIERLINE_API_KEY": KEY},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), script
    if '"stream": true' in script:
        assert events(done.stdout)[-2]["usage"]["completion_tokens"] > 0
    elif "/metrics" in script:
        assert "vllm:num_requests_running" in done.stdout
    else:
        told = json.loads(done.stdout)
        assert "error" not in told, told
        assert told.keys() & {"choices", "data", "tokens"}


def test_the_guide_is_tried() -> None:
    assert len([place for place, _ in scripts() if place.startswith("docs")]) >= 7
