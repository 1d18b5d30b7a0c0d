"""`tierline top URL`: a served model live: instances with group, roles and load, what clients feel, the last decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierline.cli import render
from tierline.core.nouns import NS_PER_S

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tierline.cli.serving_status import DecisionTold, InstanceTold, KindTold, ServingStatus

DECISION_ROWS = 10
KIND_COLUMNS = ("REQUESTS", "ANSWERED", "FAILED", "TTFT P50", "P99", "TPOT P50", "P99")
INSTANCE_COLUMNS = (
    "INSTANCE", "GROUP", "ROLES", "PROMPT TOKENS", "IMAGES", "DECODING", "KV", "SWITCHES", "LAST CHANGE",
)  # fmt: skip
DECISION_COLUMNS = ("AGO", "WHOM", "WHAT", "REASON")
NUMBERS = (
    *KIND_COLUMNS[1:], "PROMPT TOKENS", "IMAGES", "DECODING", "KV", "SWITCHES", "AGO",
)  # fmt: skip
LEGEND = "Roles: E encodes images, P computes prompts, D makes tokens. Images: being encoded. KV: blocks in use."


def headline(status: ServingStatus) -> str:
    front, deployment = status.front, status.deployment
    parts = [front.model or "a model", f"policy {deployment.policy or 'none'}"]
    parts += [f"SLO {deployment.slo}"] if deployment.slo else []
    parts += [f"plays {deployment.pace}"] if deployment.pace else []
    count = len(status.instances)
    parts.append(f"{count} instance{'' if count == 1 else 's'}")
    asleep = sum(each.state == "asleep" for each in status.instances)
    parts += [f"{asleep} of them asleep"] if asleep else []
    parts.append(f"{status.live} requests live, {status.waiting} of them wait for room")
    lost = status.counts.get("instances_lost", 0)
    parts += [f"{lost} instance{'' if lost == 1 else 's'} lost"] if lost else []
    return " · ".join(parts)


def health(status: ServingStatus) -> str:
    """What is wrong; "" when nothing is."""
    return f"Requests are refused: {status.front.health}" if status.front.health else ""


def kind_rows(status: ServingStatus) -> list[list[str]]:
    minute = status.front.last_minute
    return [_kind_row("text", minute.text), _kind_row("with images", minute.images)]


def _kind_row(name: str, kind: KindTold) -> list[str]:
    times = (kind.ttft.p50, kind.ttft.p99, kind.tpot.p50, kind.tpot.p99)
    return [name, f"{kind.answered_per_s:.2f}/s", f"{kind.failed_per_s:.2f}/s", *map(render.latency, times)]


def instance_rows(status: ServingStatus) -> list[list[str]]:
    return [_instance_row(each) for each in sorted(status.instances, key=lambda each: place(each.name))]


def place(name: str) -> tuple[int, str]:
    """Instances in the order of their slots: i2 before i10, whoever joined first.

    >>> sorted(["i10", "i2~1"], key=place)
    ['i2~1', 'i10']
    """
    digits = name.partition("~")[0].lstrip("i")
    return (int(digits) if digits.isdecimal() else 1 << 30, name)


def _instance_row(each: InstanceTold) -> list[str]:
    return [
        each.name,
        each.group,
        roles_or_state(each),
        str(each.prefill_tokens),
        str(each.encoding),
        str(each.decoding),
        f"{100 * each.kv_share:.0f}%" if each.total_blocks else "-",
        str(each.role_switches),
        each.reason or "-",
    ]


def roles_or_state(each: InstanceTold) -> str:
    """What it may do; of one that is not awake what it does instead."""
    states = {
        "leaving": "leaves", "ending": "ends", "drowsy": "to sleep", "falling": "to sleep", "asleep": "sleeps",
        "waking": "wakes",
    }  # fmt: skip
    return states.get(each.state) or each.roles or "-"


def decision_rows(status: ServingStatus, limit: int = 0) -> list[list[str]]:
    """The newest first."""
    newest = status.decisions[::-1]
    if not newest:
        return [["-", "-", "-", "no group, role or instance was changed yet"]]
    return [decision_row(status, each) for each in (newest[:limit] if limit else newest)]


def decision_row(status: ServingStatus, each: DecisionTold) -> list[str]:
    ago = render.duration((status.now_ns - each.at_ns) / NS_PER_S)
    return [ago, each.subject, each.what, each.reason]


def window(status: ServingStatus) -> str:
    return f"The last {status.front.last_minute.seconds:.0f} s"


def picture(status: ServingStatus) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(
        Text(headline(status), style="bold"),
        Text(health(status), style="red"),
        Text(window(status), style="dim"),
        render.rich_table(KIND_COLUMNS, kind_rows(status), NUMBERS),
        Text(),
        render.rich_table(INSTANCE_COLUMNS, instance_rows(status), NUMBERS),
        Text(LEGEND, style="dim"),
        Text(),
        render.rich_table(DECISION_COLUMNS, decision_rows(status, DECISION_ROWS), NUMBERS),
    )


def plain(status: ServingStatus) -> str:
    ill = health(status)
    return "\n\n".join(
        (
            headline(status) + (f"\n{ill}" if ill else ""),
            f"{window(status)}\n{render.plain_table(KIND_COLUMNS, kind_rows(status), NUMBERS)}",
            f"{render.plain_table(INSTANCE_COLUMNS, instance_rows(status), NUMBERS)}\n{LEGEND}",
            render.plain_table(DECISION_COLUMNS, decision_rows(status), NUMBERS),
        )
    )
