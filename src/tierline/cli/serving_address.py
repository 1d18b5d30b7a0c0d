"""Where a served model is, and the key it wants; for the commands that talk to one."""

from __future__ import annotations

from typing import Annotated

import typer

from tierline.core.errors import InvalidInput

URL = "http://127.0.0.1:8000"
ApiKey = Annotated[
    str,
    typer.Option(
        metavar="KEY",
        envvar=["TIERLINE_API_KEY", "OPENAI_API_KEY"],
        help="Of a served model; better set $TIERLINE_API_KEY: others see options.",
        show_envvar=False,
    ),
]


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def root_of(url: str) -> str:
    """A server's address without the API's `/v1`. Raises `InvalidInput` for what is no address."""
    root = url.rstrip("/").removesuffix("/v1")
    if not is_url(root):
        raise InvalidInput(f"'{url}' is no address: it begins with http:// or https://, as in {URL}.")
    return root


def key_headers(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}
