"""The options that `submit` and `sweep` share, as Typer types; what their texts mean is read in `jobspec`."""

from __future__ import annotations

from typing import Annotated

import typer

RESOURCES = "Resources"
PROGRESS = "Progress"
RULES = "Rules"

Gpus = Annotated[
    str, typer.Option("--gpus", "-g", metavar="N|MIN..MAX", help="GPUs (or CPU slots).", rich_help_panel=RESOURCES)
]
GpuType = Annotated[
    list[str] | None,
    typer.Option("--gpu-type", metavar="TYPE", help="Only on this type; repeatable.", rich_help_panel=RESOURCES),
]
GpuMemory = Annotated[
    str, typer.Option("--gpu-memory", metavar="SIZE", help="Per GPU, as in 24G.", rich_help_panel=RESOURCES)
]
SHARING = "Sharing a device (where `tierline up --share`)"
JobType = Annotated[
    str,
    typer.Option("--job-type", metavar="NAME", help="The measured type of job that it is.", rich_help_panel=SHARING),
]
SmUtil = Annotated[
    float,
    typer.Option(
        "--sm-util", min=0.0, max=1.0, help="Share of a device's compute it uses alone.", rich_help_panel=SHARING
    ),
]
BwUtil = Annotated[
    float,
    typer.Option("--bw-util", min=0.0, max=1.0, help="Share of its memory bandwidth.", rich_help_panel=SHARING),
]
Exclusive = Annotated[
    bool, typer.Option("--exclusive", help="Let no other job onto its device.", rich_help_panel=SHARING)
]
Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="NAME[:max]",
        help="What is judged: lower is better, or :max.",
        rich_help_panel=PROGRESS,
    ),
]
ProgressFrom = Annotated[
    str,
    typer.Option(
        "--progress",
        metavar="HOW",
        help="report (tierline.report), regex:PATTERN with groups step and loss, jsonl[:KEY], tensorboard:DIR[:TAG].",
        rich_help_panel=PROGRESS,
    ),
]
Steps = Annotated[int, typer.Option("--steps", min=0, help="Steps in all, 0 = unknown.", rich_help_panel=PROGRESS)]
Chance = Annotated[
    float | None,
    typer.Option("--chance", help="The metric of a model that has learnt nothing.", rich_help_panel=PROGRESS),
]
Target = Annotated[
    float | None, typer.Option("--target", help="The metric of a model as good as can be.", rich_help_panel=PROGRESS)
]
Kind = Annotated[
    str, typer.Option("--kind", metavar="KIND", help="exploratory, batch or service.", rich_help_panel=RULES)
]
User = Annotated[str, typer.Option("--user", help="Submit for somebody else (administrators).", rich_help_panel=RULES)]
Priority = Annotated[
    int,
    typer.Option(
        "--priority",
        metavar="N",
        help="Higher goes first: -100 to 100, above 0 for administrators.",
        rich_help_panel=RULES,
    ),
]
After = Annotated[
    list[str] | None,
    typer.Option("--after", metavar="JOB", help="Wait until JOB has completed; repeatable.", rich_help_panel=RULES),
]
Hold = Annotated[bool, typer.Option("--hold", help="Do not start before `tierline release`.", rich_help_panel=RULES)]
Grace = Annotated[
    str, typer.Option("--grace", metavar="TIME", help="Time to checkpoint when stopped.", rich_help_panel=RULES)
]
NoPreempt = Annotated[bool, typer.Option("--no-preempt", help="Once started, let it run.", rich_help_panel=RULES)]
Restarts = Annotated[
    int,
    typer.Option(
        "--restarts",
        min=0,
        metavar="N",
        help="Starts again when the machinery lost it, N times at most; a failure of its own is final.",
        rich_help_panel=RULES,
    ),
]
Deadline = Annotated[
    str,
    typer.Option(
        "--deadline", metavar="WHEN", help="In 2h, or at 2030-05-01T18:00 (local time).", rich_help_panel=RULES
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        "-e",
        metavar="KEY[=VALUE]",
        help="For the job; bare: yours. Repeatable.",
        rich_help_panel=RULES,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
