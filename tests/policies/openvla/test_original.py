"""A policy that was tuned here, in OpenVLA's original code. Two variables name an interpreter with transformers 4.40.1
and timm 0.9.10, and a checkout of the repository.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_razor.policies.openvla import OpenVLA

from .conftest import Reference

PYTHON, CODE = "VLA_RAZOR_OPENVLA_PYTHON", "VLA_RAZOR_OPENVLA_CODE"
ORIGINAL = """
import json, sys
import numpy as np, torch
import tiny_timm
from prismatic.extern.hf.configuration_prismatic import OpenVLAConfig
from prismatic.extern.hf.modeling_prismatic import OpenVLAForActionPrediction

folder, pixels, prompts = sys.argv[1], np.load(sys.argv[2]), json.loads(sys.argv[3])
config = OpenVLAConfig.from_pretrained(folder)
config._attn_implementation = "eager"
model = OpenVLAForActionPrediction.from_pretrained(folder, config=config).eval()
found = {"tokens": [], "actions": []}
for seen, prompt in zip(torch.from_numpy(pixels), prompts):
    asked = {"pixel_values": seen[None], "do_sample": False}
    ids = torch.tensor([prompt + [29871] * (prompt[-1] != 29871)])  # else predict_action adds it, but not to the mask
    asked["attention_mask"] = torch.ones_like(ids)
    found["tokens"].append(model.generate(ids, max_new_tokens=7, **asked)[0, -7:].tolist())
    found["actions"].append(model.predict_action(ids, "arm7", **asked).tolist())
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (os.environ.get(PYTHON) and os.environ.get(CODE)),
    reason=f"no original OpenVLA: {PYTHON} names no interpreter with transformers 4.40.1, {CODE} no checkout",
)
def test_the_original_code_loads_a_tuned_policy_and_decides_alike(reference: Reference, tmp_path: Path) -> None:
    model = OpenVLA.from_pretrained(reference.folder).add_lora(4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    wanted = reference.tokens.roll(1, 0)
    for _ in range(10):  # towards the actions of other pictures
        optimizer.zero_grad()
        model.supervised_loss(reference.pixels, reference.prompts, wanted).backward()
        optimizer.step()
    model.merge_lora().save_pretrained(tmp_path / "tuned")
    ours = OpenVLA.from_pretrained(tmp_path / "tuned").sample_actions(reference.pixels, reference.prompts)
    assert not torch.equal(ours.tokens, reference.tokens)  # it has learned something
    np.save(tmp_path / "pixels.npy", reference.pixels.numpy())
    given = [tmp_path / "tuned", tmp_path / "pixels.npy", json.dumps(reference.prompts)]
    paths = os.pathsep.join([os.environ[CODE], str(reference.folder)])
    done = subprocess.run(
        [os.environ[PYTHON], "-W", "ignore", "-c", ORIGINAL, *map(str, given)],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens"] == ours.tokens.tolist()
    actions = model.unnormalize(ours.tokens, "arm7")
    np.testing.assert_allclose(np.array(found["actions"]), actions.reshape(len(actions), -1), atol=1e-6)
