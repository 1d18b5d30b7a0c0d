"""`tierline serve`: a model behind an OpenAI-compatible endpoint, over one instance or many."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("serve", rich_help_panel="Serving")(serve)


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="tiny-vlm (in the package), a folder, or a Hugging Face id.")
    ] = "tiny-vlm",
    instances: Annotated[
        int, typer.Option(metavar="N", help="Instances of the model. [default: 1, or as --roles says]")
    ] = 0,
    roles: Annotated[
        str,
        typer.Option(metavar="ROLES", help="What each may do: EPD, or E,P,D or 2EP,2D. [default: every one does all]"),
    ] = "",
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Beyond loopback an API key is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 = a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", envvar="TIERLINE_API_KEY", help="A key that callers need; may be given several times."
        ),
    ] = None,
    keys_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Keys with a name and a rate each.")] = None,
    rate: Annotated[float, typer.Option(metavar="N", help="Requests a minute of each key; 0 = no limit.")] = 0.0,
    served_name: Annotated[str, typer.Option(metavar="NAME", help="The model's name for clients.")] = "",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="auto (bf16), bf16, fp16 or fp32.")] = "auto",
    batching: Annotated[str, typer.Option(metavar="POLICY", help="sarathi, fcfs or slo_chunk.")] = "sarathi",
    routing: Annotated[
        str, typer.Option(metavar="POLICY", help="least_loaded, round_robin, prefix_affinity, emp or late_binding.")
    ] = "least_loaded",
    context: Annotated[int, typer.Option(metavar="TOKENS", help="Prompt and output together; 0 = the model's.")] = 0,
    kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="KV arena of each instance, as in 512M.")] = "",
    image_cache: Annotated[str, typer.Option(metavar="SIZE", help="Image embeddings kept by each instance.")] = "256M",
    max_batch_tokens: Annotated[
        int, typer.Option(metavar="N", help="Positions of one iteration; 0 = the policy's.")
    ] = 0,
    max_sequences: Annotated[int, typer.Option(metavar="N", help="Sequences of one iteration.")] = 256,
    max_requests: Annotated[int, typer.Option(metavar="N", help="Live requests; more are refused.")] = 4096,
    prefix_caching: Annotated[bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Reuse KV.")] = True,
    transfer: Annotated[str, typer.Option(metavar="shm|zmq", help="How KV travels between instances.")] = "shm",
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads an instance; 0 = divide the cores.")] = 0,
    pack: Annotated[
        bool | None,
        typer.Option("--pack/--share", help="Weights packed for this CPU, or shared. [default: pack if alone]"),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="PRESET",
            help="adaptive, emp, coupled, coupled-2024, static:2E2P4D. [default: nobody changes anything]",
        ),
    ] = "",
    slo: Annotated[str, typer.Option(metavar="TIMES", help="What is promised: ttft=2s,tpot=50ms,image=4s.")] = "",
    profile: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Stage times of this device with the model, for the policy.")
    ] = "",
    min_instances: Annotated[int, typer.Option(metavar="N", help="With --max-instances; 0: all may sleep.", min=0)] = 1,
    max_instances: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="The policy starts instances up to N, has them sleep, wakes and stops them. [default: none]",
        ),
    ] = 0,
    record: Annotated[Path | None, typer.Option(metavar="FILE", help="Every event and decision as JSON lines.")] = None,
    pace: Annotated[
        str,
        typer.Option(
            metavar="DEVICE:MODEL|FILE", help="Play this device and model, as h100:Qwen2.5-VL-7B, or a profile (.toml)."
        ),
    ] = "",
    pace_positions: Annotated[
        int, typer.Option(metavar="N", help="With --pace: each position of ours stands for N of theirs.", min=1)
    ] = 1,
    pace_stretch: Annotated[float, typer.Option(metavar="X", help="With --pace: all times X times longer.")] = 1.0,
    image_urls: Annotated[
        bool, typer.Option("--image-urls", help="Fetch http(s) images, from public addresses.")
    ] = False,
    image_host: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Fetch images from this host alone; several times.")
    ] = None,
) -> None:
    """Serve a model with text and images over an OpenAI-compatible API.

    Examples: `tierline serve tiny-vlm`, `tierline serve ./llava --instances 4 --roles E,P,2D`, then
    `tierline chat --image shapes.png -m "What is in the picture?"`. Eight instances that take as long as H100s with a large
    model would: `tierline serve tiny-vlm --instances 8 --pace h100:Qwen2.5-VL-7B`
    """
    import msgspec

    from tierline.core.errors import InvalidInput
    from tierline.deployment import DeploymentOptions, need_serve_extra, parse_size

    need_serve_extra()
    deployment = DeploymentOptions(
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        instances=instances,
        roles=roles,
        device=device,
        dtype=dtype,
        threads=threads,
        batching=batching,
        routing=routing,
        transfer=transfer,
        kv_bytes=parse_size(kv_memory) if kv_memory else 0,
        pool_bytes=parse_size(image_cache),
        token_budget=max_batch_tokens,
        sequence_limit=max_sequences,
        context_tokens=context,
        queue_limit=max_requests,
        prefix_caching=prefix_caching,
        pack=pack,
        pace=str(Path(pace).resolve()) if pace.endswith(".toml") and ":" not in pace else pace,
        pace_positions=pace_positions,
        pace_stretch=pace_stretch,
        policy=policy,
        slo=slo,
        profile=str(Path(profile).resolve()) if profile.endswith(".toml") and ":" not in profile else profile,
        min_instances=min_instances,
        max_instances=max_instances,
        record=str(record.resolve()) if record else "",
    )
    if keys_file is not None and not keys_file.is_file():
        raise InvalidInput(f"--keys-file {keys_file}: there is no such file.")
    order = {
        "deployment": msgspec.to_builtins(deployment),
        "front": {
            "api_keys": api_key or [],
            "keys_file": str(keys_file.resolve()) if keys_file else None,
            "requests_per_minute": rate,
            "images": {"remote": image_urls or bool(image_host), "hosts": image_host or []},
        },
        "host": host,
        "port": port,
        "served_name": served_name or (model if not Path(model).is_dir() else Path(model).resolve().name),
    }
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: a file of the folder we happen to stand in must not be imported in place of a library.
    # The order goes through a pipe, for everybody on this machine can read a process's arguments, and it may hold keys.
    reading, writing = os.pipe()
    with open(writing, "wb") as pipe:
        pipe.write(msgspec.json.encode(order))
    os.set_inheritable(reading, True)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "tierline.server.openai", str(reading)])
