"""What `tierline serve` can be told of its instances: grammar of roles, sizes, limits, devices."""

from dataclasses import replace

import pytest

from tierline import deployment
from tierline.core.errors import InvalidInput, MissingExtra, UnknownName
from tierline.core.request import Role
from tierline.deployment import DeploymentOptions, devices_of, need_serve_extra, parse_size, what_differs
from tierline.presets import parse_roles, preset_of


@pytest.mark.parametrize(
    ("roles", "instances", "layout"),
    [
        ("", 0, "EPD"), ("", 3, "EPD EPD EPD"), ("E,P,D", 0, "E P D"), ("e,pd", 0, "E PD"), ("2EP,2D", 0, "EP EP D D"),
        ("1E2P1D", 0, "E P P D"), ("1E 2P|1D", 4, "E P P D"), ("EPD", 3, "EPD EPD EPD"), ("DPE", 0, "EPD"),
        ("2EPD", 2, "EPD EPD"),
    ],
)  # fmt: skip
def test_roles(roles, instances, layout):
    assert [each.letters for each in parse_roles(roles, instances)] == layout.split()


@pytest.mark.parametrize("roles", ["X", "E,,D", "2", "E2", ",", "E;P", "E P x", "-1E", "0E", "99999E"])
def test_roles_that_mean_nothing(roles):
    with pytest.raises(InvalidInput, match=f"--roles '{roles}'") as caught:
        parse_roles(roles, 0)
    assert str(caught.value).count(".") == 1


def test_counts_that_do_not_agree():
    with pytest.raises(InvalidInput, match=r"--instances 2 and --roles 'E,P,D' \(3 instances\) do not agree"):
        parse_roles("E,P,D", 2)
    with pytest.raises(InvalidInput, match="--instances -1"):
        parse_roles("", -1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1K", 1024),
        ("1.5k", 1536),
        ("512M", 512 << 20),
        ("2GiB", 2 << 30),
        (" 1 GB ", 1 << 30),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "many", "1T", "1.M", "K"])
def test_sizes_that_mean_nothing(text):
    with pytest.raises(InvalidInput, match="as in 512M"):
        parse_size(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"instances": 65}, "65 instances: 64 at most"),
        ({"roles": "E,P"}, "no instance may do D"),
        ({"roles": "D"}, "no instance may do EP"),
        ({"block_tokens": 0}, "block_tokens 0: 1 or more"),
        ({"queue_limit": 0}, "queue_limit 0: 1 or more"),
        ({"kv_bytes": -1}, "kv_bytes -1: 0 or more"),
        ({"threads": -1}, "threads -1: 0 or more"),
        ({"transfer": "mail"}, "--transfer mail: shm"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(options, said):
    with pytest.raises(InvalidInput, match=said) as caught:
        DeploymentOptions(**options)
    assert "\n" not in str(caught.value)


def test_instances_are_set_up_as_the_policy_wants():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

    def settings(**options):
        return deployment.instance_settings(DeploymentOptions(device="cpu", **options))["i0"]

    plain, old = settings(policy="coupled"), settings(policy="coupled-2024")
    assert (plain.encoder, plain.prefix_caching, plain.pool_bytes) == ("overlapped", True, 256 << 20)
    assert plain.token_budget == 2048
    assert (old.encoder, old.prefix_caching, old.pool_bytes, old.batching) == ("blocking", False, 0, "fcfs")
    assert settings(policy="adaptive-overlap").encoder == "blocking" and settings().encoder == "overlapped"
    assert not settings(policy="adaptive-cache").prefix_caching
    assert settings(policy="coupled", token_budget=100).token_budget == 100


def test_the_token_budget_is_the_policy_s_where_none_is_given(monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setattr(deployment, "preset_of", lambda name: replace(preset_of(name), token_budget=300))
    found = deployment.instance_settings(DeploymentOptions(policy="coupled", device="cpu"))
    assert found["i0"].token_budget == 300


def test_what_real_instances_cannot_do_of_a_policy_is_said():
    assert "decoded in the front door" in what_differs(DeploymentOptions(policy="coupled-2024"))
    for options in ({}, {"policy": "adaptive"}, {"policy": "coupled-2024", "pace": "h100:LLaVA-1.5-7B"}):
        assert what_differs(DeploymentOptions(**options)) == ""


def test_policies_are_looked_up_at_once():
    with pytest.raises(UnknownName, match="sarathi"):
        DeploymentOptions(batching="sarathy")
    with pytest.raises(UnknownName, match="round_robin"):
        DeploymentOptions(routing="robin")


def test_layouts_up_to_the_limit():
    assert len(DeploymentOptions(instances=64).layout) == 64
    assert DeploymentOptions(roles="2EP2D").layout[-1] == Role.DECODE


def test_a_missing_engine_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="serve"):
        need_serve_extra()


@pytest.mark.parametrize(
    ("cuda", "device", "found"),
    [
        (0, "auto", "cpu cpu cpu"), (2, "auto", "cuda:0 cuda:1 cuda:0"), (2, "cpu", "cpu cpu cpu"),
        (2, "cuda", "cuda:0 cuda:1 cuda:0"), (2, "cuda:1", "cuda:1 cuda:1 cuda:1"),
    ],
)  # fmt: skip
def test_devices(monkeypatch, cuda, device, found):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    assert devices_of(device, 3) == tuple(found.split())


@pytest.mark.parametrize(("cuda", "device"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2"), (2, "tpu")])
def test_devices_that_are_not_there(monkeypatch, cuda, device):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    with pytest.raises(InvalidInput, match=f"--device {device}: this machine has {cuda} CUDA devices"):
        devices_of(device, 1)


def test_settings_of_instances():
    pytest.importorskip("torch")
    settings = deployment.instance_settings(DeploymentOptions(roles="E,P,D", threads=3, device="cpu"))
    assert [(each.name, each.roles.letters, each.threads, each.pack) for each in settings.values()] == [
        ("i0", "E", 3, False), ("i1", "P", 3, False), ("i2", "D", 3, False),
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="--dtype int3"):
        deployment.instance_settings(DeploymentOptions(dtype="int3"))
