"""The public face: every example in its docstrings runs, and it says the same as the command line's own path."""

import doctest
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

import vla_razor
from tests.verbs.support import random_demonstration, write_store
from vla_razor import public
from vla_razor.errors import UserError
from vla_razor.policies import Observations
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.rollouts import demonstrations, probe_set

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in vla_razor.__all__ if inspect.isfunction(getattr(vla_razor, name))])
def test_the_example_of_each_function(name: str) -> None:
    function = getattr(vla_razor, name)
    module = inspect.getmodule(function)
    tests = doctest.DocTestFinder().find(function, name, globs={**vars(module), **vars(public)})
    for test in tests:
        assert doctest.DocTestRunner(optionflags=OPTIONS).run(test).failed == 0
    assert function.__module__ != public.__name__ or any(test.examples for test in tests), "it has none"


def test_the_example_of_demonstrations() -> None:
    found = doctest.testmod(demonstrations, optionflags=OPTIONS)
    assert found.attempted > 0 and found.failed == 0


def test_what_is_exported_is_there_and_nothing_else_by_that_way() -> None:
    assert set(vla_razor.__all__) == set(public.__all__)
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        vla_razor.evaluat  # noqa: B018  # pyright: ignore


def test_demonstrations_are_read(tmp_path: Path) -> None:
    demos = write_store(tmp_path, [random_demonstration(seed) for seed in range(6)])
    found = vla_razor.Demonstrations.read(demos)
    assert found.actions.shape == (48, 7) and found.images.shape == (48, 64, 64, 3)
    assert np.bincount(found.episode).tolist() == [8] * 6


def test_forward_kl_is_that_of_the_distributions_at_the_bases_own_tokens() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    asked = ["pick coke can", "open top drawer"] * 2
    base, hot = PrismaticPolicy(load_model("tiny")), PrismaticPolicy(load_model("tiny"))
    hot.model.config.temperature = 2 * base.model.config.temperature
    found = vla_razor.forward_kl(base, hot, torch.from_numpy(images), asked, seed=3)
    probe = probe_set.of_observations(base, Observations({"camera": images}, asked), seed=3)
    cold, warm = (
        probe_set.action_outputs(m, probe.observations, probe.input_ids, probe.tokens)[0] for m in (base, hot)
    )
    expected = torch.nn.functional.kl_div(warm, cold, log_target=True, reduction="none").sum((1, 2)).mean()
    assert found["per_action"] == pytest.approx(expected.item(), rel=1e-4) and found["states"] == 4
    assert vla_razor.forward_kl(base, base, images, asked)["per_action"] == pytest.approx(0, abs=1e-6)
    again = vla_razor.forward_kl(base, hot, images, asked, seed=3)
    assert again["per_action"] == found["per_action"]


def test_observations_of_several_cameras_may_be_given_by_name() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    base, hot, asked = public.load_policy("tiny"), public.load_policy("tiny", temperature=2.0), ["pick coke can"] * 2
    one = vla_razor.forward_kl(base, hot, images, asked)
    felt = torch.zeros(2, 8)
    named = vla_razor.forward_kl(base, hot, {"front": images, "wrist": images[:, ::2]}, asked, proprioception=felt)
    assert named["per_action"] == one["per_action"]


def test_the_base_of_an_adapter_is_the_model_below_it() -> None:
    images, asked = np.zeros((2, 64, 64, 3), np.uint8), ["pick coke can"] * 2
    adapted = PrismaticPolicy(load_model("tiny").add_lora(2, generator=torch.Generator().manual_seed(0)))
    assert vla_razor.forward_kl(None, adapted, images, asked)["per_action"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    base = PrismaticPolicy(load_model("tiny"))
    below, beside = (vla_razor.forward_kl(one, adapted, images, asked)["per_action"] for one in (None, base))
    assert below == pytest.approx(beside, rel=1e-4) and below > 0
    with pytest.raises(UserError, match="base=None is for an adapter"):
        vla_razor.forward_kl(None, base, images, asked)


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"load_policy has no temprature\. Did you mean temperature"):
        vla_razor.load_policy("tiny", temprature=1.0)
    with pytest.raises(UserError, match="unknown env 'pick_cam'"):
        vla_razor.make_env("pick_cam")
    with pytest.raises(UserError, match="all is several scenes; expected one"):
        vla_razor.make_vec("all")
    with pytest.raises(UserError, match="scripted only acts"):
        vla_razor.forward_kl(None, vla_razor.load_policy("scripted"), np.zeros((1, 4, 4, 3), np.uint8), ["x"])
