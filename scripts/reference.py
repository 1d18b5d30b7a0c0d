"""The generated half of docs/reference, as a MkDocs hook: command line, policies, HTTP API, daemon options.

MkDocs calls `on_files` before it reads the pages; the pages are made from the code and exist in the site alone, so they
cannot grow old. `on_page_markdown` checks that every test named in a page as `tests/FILE.py::NAME` is there: a page
about invariants whose test has gone would be worse than none. Run as a program it writes the pages into a folder:

    python scripts/reference.py DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

ROOT = Path(__file__).resolve().parent.parent
logger = logging.getLogger("mkdocs.hooks.reference")

_TEST = re.compile(r"`((?:native/)?tests/[\w/]+\.(?:py|cpp))::(\w+)`")
_MADE = "\n\n<!-- made by scripts/reference.py; do not edit -->\n"


def pages() -> dict[str, str]:
    """Path below docs/ -> content."""
    if str(ROOT / "src") not in sys.path:  # here, since MkDocs puts the path back once it has loaded a hook
        sys.path.insert(0, str(ROOT / "src"))
    return {
        "reference/cli.md": "\n".join(command_line()) + _MADE,
        "reference/policies.md": "\n".join(policies()) + _MADE,
        "reference/kernel-policies.md": "\n".join(kernel_policies()) + _MADE,
        "reference/serving-policies.md": "\n".join(serving_policies()) + _MADE,
        "reference/http.md": "\n".join(http_api()) + _MADE,
        "reference/openapi.json": json.dumps(openapi(), indent=1),
        "reference/daemon-options.md": "\n".join(daemon_options()) + _MADE,
    }


# ---- MkDocs ----------------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    for file, name in _TEST.findall(markdown):
        path = ROOT / file
        if not path.is_file() or not re.search(
            rf"\b(def|class|void) {name}\b|^{name} = ", path.read_text(), re.MULTILINE
        ):
            logger.warning("%s names the test %s::%s, which does not exist", page.file.src_uri, file, name)
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings announce a block of code with two colons, which Markdown would show."""
    return html.replace("<p>::</p>\n", "").replace("::</p>", ":</p>")


# ---- command line ----------------------------------------------------------------------------------------------------


def command_line() -> Iterator[str]:
    import typer
    from typer.main import get_command

    from tierline.cli import main

    root = get_command(main.app)
    yield "# Command line\n"
    yield "Made from the program itself; `tierline COMMAND --help` says the same.\n"
    lines = (inspect.getdoc(main) or "").splitlines()
    yield next(line for line in lines if line.startswith("Exit codes")) + "\n"
    yield from _command(root, typer.Context(root, info_name="tierline"), "tierline")


def _command(command: Any, context: Any, name: str) -> Iterator[str]:
    yield f"## `{name}`\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    yield f"```sh\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```\n"
    groups: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        what = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panel = getattr(parameter, "rich_help_panel", None) or what
        groups.setdefault(panel, []).append(f"| `{_code(record[0])}` | {_cell(record[1])} |")
    for panel, rows in groups.items():
        yield "\n".join([f"| {panel} | |", "|---|---|", *rows]) + "\n"
    for sub in getattr(command, "commands", {}).values():
        yield from _command(sub, type(context)(sub, info_name=sub.name, parent=context), f"{name} {sub.name}")


def _code(text: object) -> str:
    """For a code span within a table: a bar in it does not end the cell."""
    return " ".join(str(text).split())


def _cell(text: object) -> str:
    return _code(text).replace("|", "\\|").replace("<", "&lt;")


# ---- policies --------------------------------------------------------------------------------------------------------


def policies() -> Iterator[str]:
    from tierline.cli.policies import sections
    from tierline.policies.jobs import POLICIES, SEES_THE_FUTURE, policy_class

    yield "# Job policies\n"
    yield (
        "Made from the registry `tierline.policies.jobs.POLICIES` and the policies' docstrings. Use one with "
        "`tierline up --policy NAME` or `tierline simulate jobs SOURCE --policy NAME`; in a simulation options follow a "
        "question mark, as in `explsched?keep=0.5`. A policy of your own is named `module:Class`.\n"
    )
    yield "| policy | preempts | forecast | work-conserving | idea |\n|---|---|---|---|---|"
    told = {name: sections(policy_class(name).__doc__ or "") for name in POLICIES}
    for name in POLICIES:
        policy: Any = policy_class(name)
        forecast = "curves" if policy.needs_curves else "yes" if policy.needs_forecast else "no"
        star = " (sees the future)" if name in SEES_THE_FUTURE else ""
        cells = [f"[`{name}`](#{name}){star}", _yes(policy.preemptive), forecast, _yes(policy.work_conserving)]
        yield f"| {' | '.join(cells)} | {_cell(told[name].get('idea', ''))} |"
    for name in POLICIES:
        policy = policy_class(name)
        yield f"\n## {name}\n\n`{POLICIES[name]}`\n"
        for part, text in told[name].items():
            yield f"- **{part.capitalize()}.** {text}"
        options = [field for field in dataclasses.fields(policy) if field.init]
        plain = [field for field in options if field.default is not dataclasses.MISSING]
        if plain:
            yield "- **Options.** " + ", ".join(f"`{field.name} = {field.default!r}`" for field in plain)


def kernel_policies() -> Iterator[str]:
    from tierline.cli.policies import sections
    from tierline.policies.kernels import DEFAULT_POLICY, POLICIES

    yield "# Kernel policies\n"
    yield (
        "Made from the registry `tierline.policies.kernels.POLICIES`; they run in `native/core`. Use one with "
        "`tierline run --policy NAME -- CMD` or `tierline simulate kernels --policy NAME`; the default is "
        f"`{DEFAULT_POLICY}`. What the words mean: [the Kernel Manager](../concepts/kernel-manager.md).\n"
    )
    yield "| policy | kernels of two clients together | keeps the limits | looks at demands |\n|---|---|---|---|"
    for policy in POLICIES.values():
        cells = [_yes(policy.shares), _yes(policy.limits), _yes(policy.needs_profiles)]
        yield f"| [`{policy.name}`](#{policy.name}) | {' | '.join(cells)} |"
    for policy in POLICIES.values():
        yield f"\n## {policy.name}\n"
        for part, text in sections(policy.doc).items():
            yield f"- **{part.capitalize()}.** {text}"


def serving_policies() -> Iterator[str]:
    from tierline.cli.policies import sections
    from tierline.policies import batching, groups, registry, routing, scale, stages
    from tierline.presets import ABLATIONS, PRESETS

    yield "# Serving policies\n"
    yield (
        "Made from the registries. A *preset* (`tierline serve --policy NAME`) names one policy of each family: *groups* and "
        "*stages* propose whom an instance serves and what it may do, *scale* how many there are, *routing* names the "
        "instance for a stage of a request, *batching* composes an instance's iterations. Without a preset `--batching NAME` "
        "and `--routing NAME` choose these two. A policy of your own is named `module:Class`.\n"
    )
    yield "## Presets\n\n| preset | what it is | groups | stages | routing | batching |\n|---|---|---|---|---|---|"
    for preset in PRESETS.values():
        names = [choice.name if choice else "–" for choice in (preset.groups, preset.stages)]
        row = [f"`{preset.name}`", preset.idea, *names, preset.routing.name, preset.batching.name]
        yield f"| {' | '.join(row)} |"
    without = ", ".join(f"`-{part}`" for part in ABLATIONS)
    yield "\n`static:LAYOUT` is laid out for good, as in `static:2E2P4D` or `static:1PD+E,2PD`."
    yield f"Each may be without a part: {without}.\n"
    families = {"Groups": groups, "Stages": stages, "Scale": scale, "Routing": routing, "Batching": batching}
    for family, policies_of in ((family, module.POLICIES) for family, module in families.items()):
        yield f"## {family}\n"
        for name, target in policies_of.items():
            yield f"### {name}\n\n`{target}`\n"
            for part, text in sections(registry.policy_class(family, policies_of, name).__doc__ or "").items():
                yield f"- **{part.capitalize()}.** {text}"
            yield ""


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# ---- daemon options --------------------------------------------------------------------------------------------------


def daemon_options() -> Iterator[str]:
    from tierline import config

    yield "# Daemon options\n"
    yield f"{inspect.getdoc(config)}\n"
    yield f"## The table `[daemon]`\n\n{inspect.getdoc(config.DaemonOptions)}\n"
    yield "| key | type | default |\n|---|---|---|"
    for field in dataclasses.fields(config.DaemonOptions):
        default = "see above" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        yield f"| `{field.name}` | `{_code(field.type)}` | {default} |"


# ---- HTTP API --------------------------------------------------------------------------------------------------------


def openapi() -> dict[str, Any]:
    """The document as a daemon serves it at `/openapi.json`. Making the routes asks nothing of the daemon behind them."""
    from tierline import __version__
    from tierline.server.app import create_app

    return create_app(Mock(version=__version__), lambda sentence: None).openapi()


def http_api() -> Iterator[str]:
    document = openapi()
    schemas: Mapping[str, Any] = document["components"]["schemas"]
    yield "# HTTP API\n"
    yield (
        "Made from the daemon's [OpenAPI document](openapi.json), which it also serves at `/openapi.json`. Over the Unix "
        "socket no token is needed; over TCP send `Authorization: Bearer TOKEN` (see "
        '[operating a daemon](../guides/operate.md)). Errors have the body `{"error": {"type": …, "message": …}}`, '
        "the message one sentence: 401 no token, 403 refused, 404 unknown, 413 too large, 422 input that cannot be used, "
        "503 the state folder can no longer be written.\n"
    )
    yield (
        "```sh\ncurl --unix-socket ~/.local/state/tierline/run/tierline.sock \\\n    http://tierline/v1/cluster\n```\n"
    )
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"## {method.upper()} `{path}`\n"
            if operation.get("description"):
                yield " ".join(operation["description"].split()) + "\n"
            parameters = operation.get("parameters", [])
            if parameters:
                yield "| parameter | in | type | default |\n|---|---|---|---|"
                yield "\n".join(_parameter(each) for each in parameters) + "\n"
            content = operation.get("requestBody", {}).get("content", {})
            for media in content.values():
                yield f"Body: {_type(media['schema'])}\n"
            for code, answer in operation["responses"].items():
                schema = answer.get("content", {}).get("application/json", {}).get("schema")
                if code.startswith("2") and schema:
                    yield f"Answer {code}: {_type(schema)}\n"
    yield "## Shapes\n"
    for name, schema in sorted(schemas.items()):
        if "properties" not in schema or name in ("HTTPValidationError", "ValidationError"):
            continue
        yield f"### {name}\n"
        if schema.get("description"):
            yield " ".join(schema["description"].split()) + "\n"
        required: Sequence[str] = schema.get("required", ())
        yield "| field | type | default |\n|---|---|---|"
        for field, kind in schema["properties"].items():
            default = "required" if field in required else f"`{json.dumps(kind.get('default'))}`"
            yield f"| `{field}` | {_type(kind)} | {default} |"
        yield ""


def _parameter(parameter: Mapping[str, Any]) -> str:
    default = "required" if parameter.get("required") else f"`{json.dumps(parameter['schema'].get('default'))}`"
    return f"| `{parameter['name']}` | {parameter['in']} | {_type(parameter['schema'])} | {default} |"


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        pair = " and ".join(_type(each) for each in schema.get("prefixItems", ()))
        return f"array of {pair or _type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    limits = [f"from {low}"] if low is not None else []
    limits += [f"above {schema['exclusiveMinimum']}"] if "exclusiveMinimum" in schema else []
    limits += [f"to {high}"] if high is not None else []
    return " ".join([kind, *limits])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder: Path = parser.parse_args().folder
    for path, content in pages().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
        print(folder / path)


if __name__ == "__main__":
    main()
