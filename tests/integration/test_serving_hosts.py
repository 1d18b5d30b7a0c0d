"""Instances on two hosts, as far as the kernel can tell: two network namespaces with a cable between them. Everything goes
over TCP, encrypted, and nobody gets in without the key."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
zmq = pytest.importorskip("zmq")

from tierline.testing.checkpoints import CHECKPOINTS, build  # noqa: E402
from tierline.testing.serving_processes import Questions  # noqa: E402

KIND = "llava-clip"
NET = "10.213.77"
HERE, THERE = f"{NET}.1", f"{NET}.2"

SERVER = """
import json, socket, sys
import msgspec, zmq
from tierline.backends.serving.nursery import Host
from tierline.engine import wire
from tierline.testing.daemon import wait_until
from tierline.testing.serving_processes import Questions, deployed

there = Host(command=("ip", "netns", "exec", sys.argv[2]), address=sys.argv[4])
questions = msgspec.json.decode(open(sys.argv[1]).read(), type=Questions)


def greeting(endpoint):
    address, port = endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((address, int(port)), 10) as raw:
        raw.sendall(b"\\xff" + bytes(8) + b"\\x7f" + b"\\x03\\x00")
        got = b""
        while len(got) < 64 and (more := raw.recv(64)):
            got += more
    return got[12:32].rstrip(b"\\0").decode()


def intrude(endpoint, lock):
    context = zmq.Context()
    spy = context.socket(zmq.PUSH)
    lock(spy)
    spy.set(zmq.IMMEDIATE, 1)  # nothing is sent before the other side has let us in
    spy.set(zmq.SNDTIMEO, 3000)
    spy.connect(endpoint)
    try:
        spy.send_multipart(wire.encode(wire.Tells("i0", ())))
        return "sent"
    except zmq.Again:
        return "kept out"
    finally:
        context.destroy(linger=0)


def strange(spy):
    spy.curve_publickey, spy.curve_secretkey = zmq.curve_keypair()
    spy.curve_serverkey = own.public.encode()  # even who knows the server's public key needs the pair


with deployed(questions.folder, "E,P,D,D", transfer="zmq", hosts={"i1": there, "i3": there}, listen=sys.argv[3]) as it:
    instances = it.generator.instances
    own = instances._keys
    endpoints = [instances._address, *(hello.endpoint for hello in instances.hellos().values())]
    answers = it.run(questions, disturb=it.move_some)
    it.kill("i1")
    again = it.run(questions)
    it.wait_whole()
    it.wait_idle()
    print(json.dumps({
        "wrong": answers.wrong(questions) + again.wrong(questions),
        "errors": [str(error) for each in (answers, again) for error in each.errors.values()],
        "right": len(answers.tokens) + len(again.tokens),
        "hosts": sorted({endpoint.split(":")[1][2:] for endpoint in endpoints}),
        "mechanisms": sorted({greeting(endpoint) for endpoint in endpoints if sys.argv[3] in endpoint}),
        "intruders": [intrude(endpoints[0], lambda spy: None), intrude(endpoints[0], strange)],
        "friend": intrude(endpoints[0], own.lock),
        "moves": it.generator.status()["counts"]["moves"],
    }))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    if not zmq.has("curve"):
        pytest.skip("this ZeroMQ was built without CURVE")
    if os.getuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command 'ip'")
    one, other = (f"tierline-{os.getpid()}-{letter}" for letter in "ab")
    try:
        ip("netns", "add", one)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr!r}")
    try:
        ip("netns", "add", other)
        ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", other)
        for name, address in ((one, HERE), (other, THERE)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield one, other
    finally:
        for name in (one, other):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_instances_on_two_hosts_speak_encrypted_tcp(namespaces: tuple[str, str], tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[KIND]
    questions = Questions.make(build(KIND, tmp_path / KIND), 30, checkpoint.placeholder, checkpoint.sizes)
    asked = tmp_path / "questions.json"
    asked.write_bytes(msgspec.json.encode(questions))
    one, other = namespaces
    script = [sys.executable, "-P", "-c", SERVER, str(asked), other, HERE, THERE]
    done = subprocess.run(
        ["ip", "netns", "exec", one, *script], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["errors"] == []
    assert found["right"] == 2 * len(questions.requests)
    assert found["hosts"] == [HERE, THERE]
    assert found["mechanisms"] == ["CURVE"]
    assert found["intruders"] == ["kept out", "kept out"]
    assert found["friend"] == "sent"
    assert found["moves"] >= 10
