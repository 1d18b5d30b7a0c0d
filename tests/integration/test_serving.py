"""Instances as real processes: every answer equals Transformers' token for token, whatever is moved, changed or killed, and
nothing is left behind. What happened is read from `/proc`, the file system and counters of work done, not from reports."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("zmq")

from tierline.backends.serving.folders import PREFIX, RunFolders
from tierline.backends.serving.nursery import Host
from tierline.core.request import Role
from tierline.testing.checkpoints import CHECKPOINTS, build
from tierline.testing.daemon import wait_until
from tierline.testing.serving_processes import (
    Deployment,
    Questions,
    cpu_ticks,
    deployed,
    descriptors,
    is_alive,
)

KIND = "llava-clip"
COUNT = 40


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    checkpoint = CHECKPOINTS[KIND]
    made = Questions.make(build(KIND, tmp_path_factory.mktemp(KIND)), COUNT, checkpoint.placeholder, checkpoint.sizes)
    assert len(made.requests) >= 30
    assert {len(request.images) for request in made.requests} == {0, 1, 2, 3, 4}
    return made


def all_right(deployment: Deployment, questions: Questions) -> None:
    answers = deployment.run(questions)
    assert answers.errors == {}
    assert answers.wrong(questions) == []
    assert len(answers.tokens) == len(questions.requests)


def moves(deployment: Deployment) -> int:
    return int(deployment.generator.status()["counts"].get("moves", 0))


@pytest.mark.parametrize("roles", ["EPD", "EP,D", "E,P,D", "2E,2P,2D"])
def test_tokens_are_those_of_transformers(questions: Questions, roles: str) -> None:
    with deployed(questions.folder, roles) as deployment:
        pids = {slot: each["pid"] for slot, each in deployment.slots.items()}
        assert len({*pids.values(), os.getpid()}) == len(deployment.roles) + 1
        many = len(pids) > 1

        def disturb() -> None:
            deployment.move_some()
            if many and deployment.rng.random() < 0.1:
                deployment.change_roles()

        cold = deployment.run(questions, disturb=disturb)
        cold_hits, cold_encoded = deployment.total("prefix_hits"), deployment.total("encoded_images")
        disturbed = [cold, deployment.run(questions, disturb=disturb)]
        while many and len(disturbed) < 12 and not (deployment.total("role_switches") and moves(deployment) >= 10):
            deployment.change_roles()  # before there is work, which then goes where it is wanted
            disturbed.append(deployment.run(questions, disturb=disturb))
        deployment.restore_roles()
        wait_until(deployment.is_whole, "the first roles are back")
        for answers in disturbed:
            assert answers.errors == {}
            assert answers.wrong(questions) == []
        deployment.wait_idle()
        before = {pid: descriptors(pid) for pid in (*pids.values(), os.getpid())}
        all_right(deployment, questions)
        deployment.wait_idle()
        after = {pid: descriptors(pid) for pid in before}

        assert {slot: each["pid"] for slot, each in deployment.slots.items()} == pids
        assert deployment.total("prefix_hits") > 2 * cold_hits, "warm caches are used"
        assert 0 < cold_encoded <= deployment.total("encoded_images")
        if many:
            assert moves(deployment) >= 10
            assert deployment.total("role_switches") >= 1, "a batch has shown it"
        # An instance meets the others one by one; what a picture or a move leaves open would be dozens.
        assert all(after[pid] <= before[pid] + 2 * len(pids) for pid in before), (before, after)


def test_roles_are_what_the_processes_do(questions: Questions) -> None:
    """Seen by the work that each process has done since the change."""
    keys = ("encoded_images", "prefix_queries", "steps")
    with deployed(questions.folder, "E,P,D") as deployment:
        all_right(deployment, questions)
        name = {slot: each["name"] for slot, each in deployment.slots.items()}
        for slot, roles in (("i0", "EPD"), ("i1", "EPD"), ("i2", "E"), ("i0", "P"), ("i1", "D")):
            deployment.generator.set_roles(name[slot], Role.parse(roles))
        deployment.wait_idle()
        before = deployment.slots
        ticks = {slot: cpu_ticks(each["pid"]) for slot, each in before.items()}
        fresh = fresh_pictures(questions)
        all_right(deployment, fresh)
        wanted = {"i0": {"prefix_queries", "steps"}, "i1": {"steps"}, "i2": {"encoded_images"}}

        def done() -> dict[str, set[str]]:
            after = deployment.slots
            return {slot: {key for key in keys if after[slot][key] > before[slot][key]} for slot in after}

        wait_until(lambda: done() == wanted or any(done()[slot] - wanted[slot] for slot in wanted), "they have told")
        deployment.wait_idle()
        assert done() == wanted
        after = deployment.slots
        assert {slot: each["roles"] for slot, each in after.items()} == {"i0": "P", "i1": "D", "i2": "E"}
        assert all(cpu_ticks(each["pid"]) > ticks[slot] for slot, each in after.items())
        assert all(each["role_switches"] > before[slot]["role_switches"] for slot, each in after.items())


def fresh_pictures(questions: Questions) -> Questions:
    """The same under hashes that no cache knows."""
    import dataclasses

    def again(content_hash: str) -> str:
        return content_hash[::-1]

    return Questions(
        questions.folder,
        tuple(
            structs.replace(
                request,
                images=tuple(
                    structs.replace(image, content_hash=again(image.content_hash)) for image in request.images
                ),
            )
            for request in questions.requests
        ),
        {
            again(name): dataclasses.replace(picture, content_hash=again(name))
            for name, picture in questions.pictures.items()
        },
        questions.wanted,
    )


# --- kills


@pytest.fixture(scope="module")
def three(questions: Questions) -> Iterator[Deployment]:
    with deployed(questions.folder, "E,P,D") as deployment:
        yield deployment


def with_kills(deployment: Deployment, questions: Questions, *kills: str, moves: bool = False) -> None:
    """Ask everything while these are killed one after the other ("" = the fork server)."""
    deployment.wait_whole()
    lost = deployment.generator.status()["counts"].get("instances_lost", 0)
    left, threads = list(kills), list[threading.Thread]()

    def disturb() -> None:
        if moves:
            deployment.move_some()
        if left and deployment.rng.random() < 0.15 and len(deployment.generator.live_ids()) > 3:
            victim = left.pop(0)
            if victim:
                threads.append(threading.Thread(target=deployment.kill, args=(victim,)))
                threads[-1].start()
            else:
                os.kill(deployment.generator.instances.fork_servers()[0], signal.SIGKILL)

    pids = {slot: each["pid"] for slot, each in deployment.slots.items()}
    while left:
        answers = deployment.run(questions, apart_s=0.02, disturb=disturb)
        for thread in threads:
            thread.join()
        assert answers.wrong(questions) == []
        assert answers.errors == {}, "so few losses cost no answer"
        assert len(answers.tokens) == len(questions.requests)
    deployment.wait_whole()
    for slot in kills:
        if slot:
            assert deployment.slots[slot]["pid"] != pids[slot]
            assert not is_alive(pids[slot])
    assert deployment.generator.status()["counts"]["instances_lost"] >= lost + 1
    all_right(deployment, questions)
    deployment.wait_idle()
    sockets = [path.name for path in deployment.folders.run.glob("*.sock")]
    assert len(sockets) == len(deployment.roles) + 1


@pytest.mark.parametrize("kills", [("i0",), ("i1",), ("i2",), ("i2", "i1"), ("i0", "i0")])
def test_a_killed_instance_costs_no_answer(three: Deployment, questions: Questions, kills: tuple[str, ...]) -> None:
    with_kills(three, fresh_pictures(questions), *kills)


def test_killed_in_the_middle_of_moves(questions: Questions) -> None:
    with deployed(questions.folder, "EP,2D") as deployment:
        before = descriptors(os.getpid())
        with_kills(deployment, questions, "i1", "i2", moves=True)
        with_kills(deployment, questions, "i0", moves=True)
        assert descriptors(os.getpid()) <= before + 12
        assert moves(deployment) >= 10


def test_the_fork_server_is_killed_and_an_instance_while_it_starts(three: Deployment, questions: Questions) -> None:
    generator = three.generator
    old = generator.instances.fork_servers()
    with_kills(three, questions, "")
    assert generator.instances.fork_servers() != old
    three.kill("i1")
    wait_until(lambda: "i1" not in three.slots, "its loss is known")
    three.kill("i1")  # the next one, which is not ready
    all_right(three, questions)
    three.wait_whole()
    three.wait_idle()


# --- what must not go unnoticed

BREAK = {
    "transfers that write nothing": """
import tierline.engine.transfer as transfer
import torch
whole = transfer.SharedMemory.pack
transfer.SharedMemory.pack = lambda self, peer, payload: whole(self, peer, torch.zeros_like(payload))
""",
    "moves and roles that are only reported": """
import tierline.schedulers.instance as instance
from tierline.core.instance_actions import TellRoles
instance.InstanceScheduler._roles_set = lambda self, roles: self._state.out.append(TellRoles(roles, by_batch=True))
instance.Moves.ask = lambda self, event: None
""",
}


@pytest.mark.parametrize("what", BREAK)
def test_a_broken_instance_is_noticed(questions: Questions, tmp_path: Path, what: str) -> None:
    script = tmp_path / "broken.py"
    script.write_text(f"{BREAK[what]}\nfrom tierline.engine.forkserver import serve\nserve()\n")
    broken = Host(command=(sys.executable, "-P", str(script)))
    with deployed(questions.folder, "E,P,D", hosts={f"i{place}": broken for place in range(3)}) as deployment:
        if "transfers" in what:
            answers = deployment.run(questions)
            assert len(answers.wrong(questions)) > len(questions.requests) / 3
        else:
            with pytest.raises(TimeoutError):
                deployment.run(questions, deadline_s=5)


# --- the rest


def test_payloads_travel_in_messages_too(questions: Questions) -> None:
    with deployed(questions.folder, "E,P,2D", transfer="zmq") as deployment:
        answers = deployment.run(questions, disturb=deployment.move_some)
        assert answers.wrong(questions) == []
        assert answers.errors == {}
        deployment.kill("i2")
        all_right(deployment, questions)
        deployment.wait_idle()


def test_sockets_are_made_where_the_temporary_folder_is_too_deep_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for depth, where in ((1, tmp_path), (100, Path("/tmp"))):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("d" * depth)))
        (tmp_path / ("d" * depth)).mkdir()
        folders = RunFolders.make()
        try:
            assert folders.run.is_relative_to(where)
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(folders.run / "server.sock"))
        finally:
            folders.remove()


def test_folders_of_a_dead_server_are_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "memory"
    foreign = memory / f"{PREFIX}foreign-shm"
    foreign.mkdir(parents=True)
    (memory / f"{PREFIX}file-shm").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tierline.backends.serving.folders.MEMORY", memory)
    dead, alive = RunFolders.make(), RunFolders.make()
    (dead.run / "x.sock").write_text("")
    (dead.shm / "a.b.1").write_text("")
    os.close(dead.lock)  # as its end would
    new = RunFolders.make()
    assert not dead.run.exists()
    assert not dead.shm.exists()
    for folders in (alive, new):
        assert folders.run.stat().st_mode & 0o777 == 0o700
        folders.remove()
        assert not folders.run.exists()
        assert not folders.shm.exists()
    assert foreign.exists(), "without a lock it may be anybody's"
