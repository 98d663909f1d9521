"""The probe set: what is measured, against independent arithmetic; what is kept, and when it is refused."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec, registry
from torch.distributions import Categorical, kl_divergence

from vla_razor import config, files
from vla_razor.errors import RunFailed, UserError
from vla_razor.policies import Observations
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.tiny import make_tiny
from vla_razor.rollouts import probe_set
from vla_razor.rollouts.environments import make_vector_env
from vla_razor.rollouts.probe_set import Origin, ProbeSet, action_outputs, measure

STATISTICS = {"q01": [-0.07] * 3 + [-0.25] * 3 + [-1.0], "q99": [0.07] * 3 + [0.25] * 3 + [1.0], "mask": [True] * 7}
ORIGIN = Origin(
    base="b" * 64, task="pick_can", environment="[]", unnorm_key="panda", temperature=1.0, seed=0, states=12
)
PROMPTS = ("pick can", "open top drawer")


def tiny(seed: int = 0, nudge: float = 0.0) -> PrismaticPolicy:
    model = make_tiny(
        PROMPTS, torch.Generator().manual_seed(seed), norm_stats={"vla_razor_panda": {"action": STATISTICS}}
    )
    noise = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += nudge * torch.randn(parameter.shape, generator=noise)
    return PrismaticPolicy(model)


@pytest.fixture(scope="module")
def base() -> PrismaticPolicy:
    return tiny()


@pytest.fixture(scope="module")
def tuned() -> PrismaticPolicy:
    return tiny(nudge=0.02)


def made_up(base: PrismaticPolicy, states: int = 12, prompts: Sequence[str] = PROMPTS) -> ProbeSet:
    """A probe set of random pictures, with the base's own tokens."""
    images = np.random.default_rng(0).integers(0, 256, (states, 64, 64, 3), np.uint8)
    seen = Observations({"camera": images})
    input_ids = base.prompt_ids([prompts[index % len(prompts)] for index in range(states)])
    pixels = base.views(seen)
    tokens = base.sample(pixels, input_ids, torch.Generator().manual_seed(0))
    log_probs, hidden = action_outputs(base, seen, input_ids, tokens)
    time, origin = torch.arange(states) % 5, replace(ORIGIN, states=states)
    return ProbeSet(seen, input_ids, tokens, log_probs, time, origin, hidden)


@pytest.fixture(scope="module")
def probe(base: PrismaticPolicy) -> ProbeSet:
    return made_up(base)


def test_a_policy_is_at_zero_from_itself(base: PrismaticPolicy, probe: ProbeSet) -> None:
    measured = measure(base, probe)
    assert measured["per_action"] == 0
    assert (measured["sharpening"], measured["displacement"], measured["temperature"]) == (0, 0, 1)
    other_batches = measure(base, probe, batch_size=5)
    for name in ("per_token", "reverse_kl", "total_variation", "l2_distance"):
        assert other_batches[name] == pytest.approx(0, abs=1e-6)
    assert other_batches["per_token"] < 1e-11


@torch.no_grad()
def test_against_torch_distributions(base: PrismaticPolicy, tuned: PrismaticPolicy, probe: ProbeSet) -> None:
    pixels = base.views(probe.observations)
    before, after = (
        Categorical(logits=model.model.action_logits(pixels, probe.input_ids, probe.tokens).double())
        for model in (base, tuned)
    )
    exact, measured = kl_divergence(before, after), measure(tuned, probe, batch_size=5)
    assert measured["states"] == 12
    assert measured["per_action"] == pytest.approx(exact.sum(1).mean().item(), rel=1e-4)
    assert measured["per_token"] == pytest.approx(exact.mean().item(), rel=1e-4)
    assert measured["by_position"] == pytest.approx(exact.mean(0).tolist(), rel=1e-4)
    assert measured["reverse_kl"] == pytest.approx(kl_divergence(after, before).mean().item(), rel=1e-4)
    gap = before.probs - after.probs
    assert measured["total_variation"] == pytest.approx(gap.abs().sum(-1).mean().item() / 2, rel=1e-4)
    assert measured["l2_distance"] == pytest.approx(gap.norm(dim=-1).mean().item(), rel=1e-4)
    for row in measured["by_time"]:
        steps = probe.time == row["time"]
        assert row["states"] == int(steps.sum())
        assert row["per_token"] == pytest.approx(exact[steps].mean().item(), rel=1e-4)


def test_activations_and_entropy_by_independent_arithmetic(
    base: PrismaticPolicy, tuned: PrismaticPolicy, probe: ProbeSet
) -> None:
    pixels = base.views(probe.observations)
    with torch.no_grad():
        before, after = (m.model.predicting_hidden(pixels, probe.input_ids, probe.tokens) for m in (base, tuned))
        logits = tuned.model.action_logits(pixels, probe.input_ids, probe.tokens) / tuned.temperature
    measured, gap = measure(tuned, probe), (after - before).flatten(0, 1).double()
    assert measured["activation_l1"] == pytest.approx(gap.abs().sum(-1).mean().item(), rel=1e-4)
    assert measured["activation_l2"] == pytest.approx(gap.norm(dim=-1).mean().item(), rel=1e-4)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert measured["entropy"] == pytest.approx(entropy.item(), rel=1e-4)
    assert measure(base, probe)["activation_l2"] == pytest.approx(0, abs=1e-5)
    assert "activation_l1" not in measure(tuned, replace(probe, base_hidden=None))


@torch.no_grad()
def test_spillover_is_what_reverse_kl_is_more_under_other_instructions(
    base: PrismaticPolicy, tuned: PrismaticPolicy
) -> None:
    probe = made_up(base, prompts=["pick can"])
    probe.elsewhere = elsewhere = probe_set.under(base, probe, ["open top drawer", "pick can", "pick drawer"])
    asked = base.prompt_ids(["open top drawer", "pick drawer"] * 6)
    assert elsewhere.input_ids == asked, "the probe set's own instruction is left out"
    assert measure(base, probe)["spillover"] == pytest.approx(0, abs=1e-6)

    def reverse(prompts: list[list[int]], tokens: torch.Tensor) -> float:
        pixels = base.views(probe.observations)
        before, after = (
            Categorical(logits=m.model.action_logits(pixels, prompts, tokens).double()) for m in (base, tuned)
        )
        return kl_divergence(after, before).mean().item()

    expected = reverse(asked, elsewhere.tokens) - reverse(probe.input_ids, probe.tokens)
    assert measure(tuned, probe, batch_size=5)["spillover"] == pytest.approx(expected, rel=1e-3)
    again = probe_set.under(base, probe, ["open top drawer", "pick drawer"])
    assert torch.equal(again.tokens, elsewhere.tokens), "the base's actions are drawn from a seed"
    assert "spillover" not in measure(tuned, replace(probe, elsewhere=None))
    with pytest.raises(UserError, match=r"\['pick can'\]: none is of another task than pick_can"):
        probe_set.under(base, probe, ["pick can"])


def test_a_policy_that_changed_under_one_instruction_alone_spills_nothing(base: PrismaticPolicy) -> None:
    probe = made_up(base, prompts=["pick can"])
    probe.elsewhere = probe_set.under(base, probe, ["open top drawer"])
    spilled = {}
    for word in ("pick", "drawer"):
        model = tiny()
        (_, token, *_) = model.model.processor.prompt_ids([word], "bare")[0]
        model.model.language_model.model.embed_tokens.weight.data[token] += 1
        measured = measure(model, probe)
        spilled[word] = measured["spillover"], measured["reverse_kl"]
    assert spilled["pick"][0] == pytest.approx(-spilled["pick"][1]) and spilled["pick"][1] > 1e-4
    assert spilled["drawer"][0] > 1e-4 and spilled["drawer"][1] == pytest.approx(0, abs=1e-6)


def test_the_parts_sum_to_the_total(tuned: PrismaticPolicy, probe: ProbeSet) -> None:
    measured = measure(tuned, probe)
    assert measured["sharpening"] + measured["displacement"] == pytest.approx(measured["per_action"])
    json.dumps(measured)


def test_another_temperature_is_all_sharpening(base: PrismaticPolicy, probe: ProbeSet) -> None:
    sharper = tiny()
    sharper.model.config.temperature = 0.5
    measured = measure(sharper, probe)
    assert measured["temperature"] == pytest.approx(0.5, rel=1e-4)
    assert measured["sharpening"] == pytest.approx(measured["per_action"], rel=1e-4)
    assert measured["per_action"] > 0.01


def test_sampled_estimates_agree(base: PrismaticPolicy, tuned: PrismaticPolicy) -> None:
    measured = measure(tuned, made_up(base, states=100))
    for name in ("k1", "k3"):
        estimate = measured[name]
        assert abs(estimate["per_action"] - measured["per_action"]) < 4 * estimate["standard_error"]
    assert measured["k3"]["standard_error"] < measured["k1"]["standard_error"]


def test_the_base_of_an_adapter_is_the_model_without_it(probe: ProbeSet) -> None:
    model = tiny()
    model.add_lora(4, 8, torch.Generator().manual_seed(0))
    for name, parameter in model.module.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1
    assert measure(model, probe)["per_token"] > 1e-4
    with model.adapter_disabled():
        assert measure(model, probe)["per_token"] < 1e-11


def test_another_vocabulary_is_refused(probe: ProbeSet) -> None:
    longer = make_tiny(("a much longer list of words than that",), torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="action ids"):
        measure(PrismaticPolicy(longer, robot=None), probe)


def test_kept_and_read_back(probe: ProbeSet, tmp_path: Path) -> None:
    probe_set.save_to(tmp_path / "probe", probe)
    back = probe_set.load_from(tmp_path / "probe")
    assert back.origin == probe.origin
    assert back.input_ids == probe.input_ids
    np.testing.assert_array_equal(back.images, probe.images)
    for name in ("tokens", "base_log_probs", "time", "base_hidden"):
        assert torch.equal(getattr(back, name), getattr(probe, name))
    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == [
        "SHA256SUMS",
        "probe.json",
        "probe.safetensors",
    ]


def test_every_camera_and_what_was_felt_are_kept(probe: ProbeSet, tmp_path: Path) -> None:
    images, felt = {"front": probe.images, "wrist": 255 - probe.images[:, :8]}, np.ones((len(probe), 3), np.float32)
    probe_set.save_to(tmp_path / "probe", replace(probe, observations=Observations(images, proprioception=felt)))
    back = probe_set.load_from(tmp_path / "probe").observations
    assert list(back.images) == ["front", "wrist"]
    for camera, pictures in images.items():
        np.testing.assert_array_equal(back.image(camera), pictures)
    np.testing.assert_array_equal(back.proprioception, felt)


@pytest.mark.parametrize("damage", ["cut", "changed", "schema", "garbage", "missing", "key"])
def test_a_damaged_file_is_refused(probe: ProbeSet, tmp_path: Path, damage: str) -> None:
    probe_set.save_to(tmp_path, probe)
    facts, tensors = tmp_path / "probe.json", tmp_path / "probe.safetensors"
    content, known = tensors.read_bytes(), json.loads(facts.read_text())
    if damage == "cut":
        tensors.write_bytes(content[:-10])
    elif damage == "changed":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        tensors.unlink()
    else:
        changed = {"schema": {**known, "schema": 99}, "key": {**known, "new": 1}, "garbage": None}[damage]
        facts.write_text("{" if changed is None else json.dumps(changed))
    with pytest.raises(UserError, match=rf"Delete {tmp_path} to have the probe set collected again"):
        probe_set.load_from(tmp_path)


def test_a_cache_that_cannot_be_written(probe: ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="VLA_RAZOR_CACHE"):
        probe_set.save_to(tmp_path / "file" / "probe", probe)

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(RunFailed, match="out of disk"):
        probe_set.save_to(tmp_path / "probe", probe)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


TOY: dict[str, Any] = {
    "id": "toy_tasks:Toys/Reach-v0",
    "name": "reach",
    "tasks": ["reach"],
    "make": {"size": 4, "robot": "panda"},
    "grid": None,
}
STATED: dict[str, Any] = {"states": 5, "seed": 0}


class Watched(dict):
    """A configuration that remembers which of its keys were read."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def two_tongued(unnorm_key: str | None = "vla_razor_google_robot", **settings: Any) -> PrismaticPolicy:
    """The policy with two data sets' statistics, and other settings of its configuration."""
    model = tiny().model
    model.config.norm_stats = {
        "vla_razor_panda": {"action": STATISTICS},
        "vla_razor_google_robot": {"action": STATISTICS | {"q99": [0.1] * 7}},
    }
    for name, value in settings.items():
        setattr(model.config, name, value)
    return PrismaticPolicy(model, unnorm_key)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Makes the user's module importable, here and in workers, and gives an empty cache."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "envs")
    monkeypatch.setattr(probe_set, "GRID", "2x3")
    monkeypatch.setattr(probe_set, "cache_folder", lambda: tmp_path / "probe_sets")


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
def test_whatever_collecting_reads_names_a_probe_set(base: PrismaticPolicy) -> None:
    toy = TOY | {"make": {"size": 4}, "hold": 1}  # a user's environment knows of no robot
    scene, model = Watched(toy), tiny()
    origin = probe_set.origin_of(model, scene, states=5, seed=0)
    scene.read.clear()
    with closing(make_vector_env(scene, 2, 1, "cpu")) as envs:
        probe_set.collect(model, envs, scene, origin)
    changed: dict[str, Any] = {
        "id": "toy_tasks:Toys/Mute-v0",
        "tasks": ["reach", "reach again"],
        "make": {"size": 5},
        "grid": {"x": [0, 1], "y": [0, 1]},
        "hold": 2,
        "starts": {"place": 4},
        "cameras": ["side"],
    }
    assert scene.read == changed.keys() | {"camera"}  # as runs of earlier versions name the only one
    origins = [probe_set.origin_of(model, toy | {key: value}, states=5, seed=0) for key, value in changed.items()]
    assert len({one.key for one in [origin, *origins]}) == 8


@pytest.mark.usefixtures("toys")
def test_whatever_of_the_policy_and_the_settings_decides_a_probe_set_names_it(
    base: PrismaticPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(policy: PrismaticPolicy | None = None, **settings: Any) -> str:
        return probe_set.origin_of(policy or two_tongued(), TOY, **(STATED | settings)).key

    nudged = two_tongued()
    next(nudged.module.parameters()).data += 1e-3
    assert key(two_tongued("vla_razor_panda")) == key(two_tongued(None)), "named or found"
    keys = [key(), key(two_tongued(temperature=0.5)), key(two_tongued(prompt="bare")), key(nudged)]
    keys += [key(two_tongued("vla_razor_panda")), key(seed=1), key(states=6)]
    monkeypatch.setattr(probe_set, "GRID", "3x3")
    assert len({*keys, key()}) == 8


def test_one_drawer_is_not_all_of_them(base: PrismaticPolicy) -> None:
    overrides = [["env=drawer"], ["env=drawer", "env.tasks=[open_top_drawer]"], ["env=drawer", "image_size=[32,32]"]]
    scenes = [config.compose("kl", given).env for given in overrides]
    assert len({probe_set.origin_of(base, scene, states=3, seed=0).key for scene in scenes}) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
def test_a_users_environment_is_probed_by_the_module_that_registers_it(base: PrismaticPolicy) -> None:
    model = two_tongued()
    probe = probe_set.obtain(model, TOY | {"make": {"size": 6}}, **STATED)
    assert probe.images.shape == (5, 32, 32, 3)
    assert (probe.images[0] == 255).all(-1).sum() == 36
    assert measure(model, probe)["per_action"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "no_such_module:Toys/Reach-v0"}, "env.id=no_such_module:Toys/Reach-v0: No module named"),
        ({"id": "toy_tasks:Toys/Teach-v0"}, "env.id=toy_tasks:Toys/Teach-v0: .*Teach"),
        ({"make": {"length": 3}}, "toy_tasks:Toys/Reach-v0: .*unexpected keyword argument 'length'"),
        ({"id": "toy_tasks:Toys/Mute-v0", "make": {}}, "the environment gives no instruction; expected observations"),
    ],
)
def test_an_environment_that_will_not_do_is_one_message(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        probe_set.obtain(two_tongued(), {**TOY, "make": {}, **change}, **STATED)


TWO = """
import sys, time
from pathlib import Path
from tests.rollouts.test_probe_set import STATED, TOY, two_tongued
from vla_razor.rollouts import probe_set

if __name__ == "__main__":
    me, folder = sys.argv[1], Path(sys.argv[2])
    probe_set.GRID, collect = "2x3", probe_set.collect

    def collected(*given, **named):
        print("collects", flush=True)
        time.sleep(2)
        return collect(*given, **named)

    probe_set.collect = collected
    (folder / me).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.02)
    scene = TOY | {"make": {"size": 4}}
    probe = probe_set.obtain(two_tongued(), scene, **STATED)
    print("got", probe.tokens.sum().item(), flush=True)
"""


@pytest.mark.slow
def test_of_two_processes_that_need_one_probe_set_one_collects_and_the_other_waits(tmp_path: Path) -> None:
    root, ready = Path(__file__).parents[2], tmp_path / "ready"
    ready.mkdir()
    (script := tmp_path / "two.py").write_text(TWO)
    paths = os.pathsep.join(map(str, (root, root / "envs", root / "tests" / "envs")))
    environment = os.environ | {"PYTHONPATH": paths, "VLA_RAZOR_CACHE": str(tmp_path / "cache")}
    commands = [[sys.executable, str(script), name, str(ready)] for name in ("one", "other")]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    said = sorted(process.communicate(timeout=300)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    (waited, collected), (got,) = said, {text.splitlines()[-1] for text in said}
    assert waited.splitlines() == ["another process collects this probe set: waiting for it", got]
    assert collected.splitlines() == ["collects", got]


def test_a_simulation_that_was_changed_makes_another_probe_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: PrismaticPolicy
) -> None:
    package = tmp_path / "other_tasks"
    package.mkdir()
    (package / "__init__.py").write_text("gravity = 9.81")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry, "Other-v0", EnvSpec("Other-v0", "other_tasks.tasks:Other"))
    scene = {"id": "Other-v0", "name": "other", "tasks": [], "make": {}, "grid": {}}
    first, again = (probe_set.origin_of(base, scene, states=3, seed=0) for _ in range(2))
    (package / "__init__.py").write_text("gravity = 9.82")
    changed = probe_set.origin_of(base, scene, states=3, seed=0)
    assert first.key == again.key != changed.key
    ours = probe_set.origin_of(base, ENV, states=3, seed=0)
    assert len(json.loads(ours.environment)["sources"]) == 16
    assert ours.environment != changed.environment


ENV = config.compose("kl").env


@pytest.fixture(scope="module")
def envs() -> Iterator[Any]:
    with closing(make_vector_env(ENV, 2, 1, "cpu")) as envs:
        yield envs


@pytest.mark.slow
class TestCollecting:
    @pytest.fixture(autouse=True)
    def small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe_set, "GRID", "1x2")
        monkeypatch.setattr(probe_set, "cache_folder", lambda: tmp_path)

    def test_collected_once_then_cached(
        self, base: PrismaticPolicy, envs: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probe = probe_set.obtain(base, ENV, states=10, envs=envs)
        assert len(probe) == 10
        assert probe.images.shape == (10, 64, 64, 3)
        assert probe.tokens.shape == (10, 7)
        torch.testing.assert_close(probe.base_log_probs.exp().sum(-1), torch.ones(10, 7))
        assert int(probe.time.max()) < envs.setup.horizon
        assert probe.origin.base == base.fingerprint()
        assert measure(base, probe)["per_action"] == 0

        monkeypatch.setattr(probe_set, "rollout", None)  # the second time nothing is simulated
        monkeypatch.setattr(probe_set, "make_vector_env", None)
        again = probe_set.obtain(tiny(), ENV, states=10, other_instructions=["open top drawer"])
        assert torch.equal(again.base_log_probs, probe.base_log_probs)
        assert again.elsewhere and probe.elsewhere is None

    def test_the_same_seed_collects_the_same(self, base: PrismaticPolicy, envs: Any) -> None:
        origin = probe_set.origin_of(base, ENV, states=1000, seed=3)
        first, second = (probe_set.collect(base, envs, ENV, origin) for _ in range(2))
        np.testing.assert_array_equal(first.images, second.images)
        assert torch.equal(first.tokens, second.tokens)
        assert len(first) == 2 * envs.setup.horizon  # a random policy does not succeed: all states, and no more
