"""Fine-tuning against a plain PyTorch loop, and what must not depend on which runs are trained side by side."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.parity_mnist.support import WIDTH, few, flattened, seeded, sequential
from vla_razor.core import schedule, weight_change
from vla_razor.parity_mnist import model, training
from vla_razor.parity_mnist.data import Split
from vla_razor.parity_mnist.methods import METHODS, right_answers
from vla_razor.parity_mnist.model import Parameters
from vla_razor.parity_mnist.training import BATCH, Settings, Task, finetune

UPDATES = 10  # an epoch
OFFLINE = [name for name, method in METHODS.items() if method.annotate is not None]


@pytest.fixture(scope="module")
def base() -> Parameters:
    return model.initialize(1, seeded(), WIDTH)


@pytest.fixture(scope="module")
def split() -> Split:
    """Images with pixels that are black in all of them, as in MNIST."""
    count = BATCH * UPDATES - 5
    images = torch.rand(count, 784, generator=seeded(1))
    images[:, ::11] = 0
    return Split(images, torch.randint(10, (count,), generator=seeded(2)))


def settings(method: str, rate: float = 1e-3, kind: str = "constant", epochs: int = 1, seed: int = 0) -> Settings:
    return Settings(method, rate, kind, epochs, seed, WIDTH)


def trained(runs: list[Settings], base: Parameters, split: Split, checkpoints: int = 1) -> list[Tensor]:
    """All parameters of each run, [checkpoints, parameters]."""
    task = training.task_of(runs[0].method, split, base, runs[0].seed, model.initialize(1, seeded(5), WIDTH))
    saved = [parameters_of(parameters, runs) for _, parameters in finetune(runs, base, task, checkpoints)]
    return [torch.stack(own) for own in zip(*saved, strict=True)]


def parameters_of(parameters: Parameters, runs: list[Settings]) -> list[Tensor]:
    return [flattened(model.select(parameters, index)) for index in range(len(runs))]


def test_the_annotators_refer_to_the_base_and_distillation_to_its_teacher(base: Parameters, split: Split) -> None:
    teacher = {name: value.clone() for name, value in base.items()}
    teacher["bias_2"][0, 7] = 1e4
    tasks = {name: training.task_of(name, split, base, 0, teacher) for name in METHODS}
    assert (tasks["sft_distilled"].chosen == 7).all()
    assert len(tasks["sft_oracle"].chosen.unique()) > 5
    for task in tasks.values():
        torch.testing.assert_close(task.base_logits, sequential(base)(task.inputs))
        assert (task.inputs[:, -1] == model.NEW).all()
        assert not right_answers(split.labels).gather(1, task.rejected[:, None]).any()
    again, other = (training.task_of("sft_oracle", split, base, seed).chosen for seed in (0, 1))
    assert torch.equal(again, tasks["sft_oracle"].chosen)
    assert not torch.equal(other, again)


def test_every_run_of_a_sweep_has_a_name_of_its_own() -> None:
    runs = [
        Settings(method, rate, kind, epochs, seed, width)
        for method in ("sft_1", "sft_2")
        for rate in (1e-4, 1.1e-4)
        for kind in ("constant", "cosine")
        for epochs in (1, 2)
        for seed in (1, 11)
        for width in (256, 512)
    ]
    assert len({run.name for run in runs}) == len(runs)
    assert not any(set(run.name) & set("/ :") for run in runs)


def test_generators_differ_by_every_part_of_their_key() -> None:
    keys = [(0, "grpo", "1"), (1, "grpo", "1"), (0, "grpo_kl", "1"), (0, "grpo", "2"), (0, "grpo", "labels")]
    draws = {torch.rand((), generator=training.generator_of(*key)).item() for key in keys}
    assert len(draws) == len(keys)
    first, again = (torch.rand((), generator=training.generator_of(*keys[0])) for _ in range(2))
    assert first == again


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_training_is_that_of_a_plain_loop(base: Parameters, split: Split, kind: str) -> None:
    run = settings("sft_2", 1e-3, kind, epochs=2)
    task = training.task_of(run.method, split, base, run.seed)
    network = sequential(base)
    optimizer = torch.optim.AdamW(network.parameters(), lr=run.learning_rate, weight_decay=0.0, fused=False)
    total, warmup = 2 * UPDATES, 1
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, total, warmup, kind))
    order = training.generator_of(run.seed, run.method, "2")
    for _ in range(2):
        for rows in torch.randperm(len(split.labels), generator=order).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(task.inputs[rows]), task.chosen[rows]).backward()
            optimizer.step()
            rates.step()
    ((_, parameters),) = finetune([run], base, task, checkpoints=1)
    for ours, reference in zip(parameters.values(), network.parameters(), strict=True):
        torch.testing.assert_close(ours[0].mT if ours.ndim > 2 else ours[0], reference.detach(), atol=2e-6, rtol=1e-4)


@pytest.mark.slow
def test_training_in_bfloat16_is_that_of_a_network_whose_weights_are_bfloat16(base: Parameters, split: Split) -> None:
    """torch's own AdamW on weights, gradients and averages of bfloat16; the products are of float32 here as well."""
    run, task = settings("sft_1", 1e-4), training.task_of("sft_1", split, base, 0)
    network = sequential(base).bfloat16()
    optimizer = torch.optim.AdamW(network.parameters(), lr=run.learning_rate, weight_decay=0.0, fused=True)
    wide = sequential(base)
    order = training.generator_of(run.seed, run.method, "1")
    for rows in torch.randperm(len(split.labels), generator=order).split(BATCH):
        wide.load_state_dict(network.state_dict())
        wide.zero_grad()
        F.cross_entropy(wide(task.inputs[rows]), task.chosen[rows]).backward()
        for parameter, other in zip(network.parameters(), wide.parameters(), strict=True):
            assert other.grad is not None
            parameter.grad = other.grad.bfloat16()
        optimizer.param_groups[0]["lr"] = run.learning_rate  # one update of warm-up is none
        optimizer.step()
    ((_, parameters),) = finetune([run], base, task, checkpoints=1, dtype=torch.bfloat16)
    same = []
    for ours, reference in zip(parameters.values(), network.parameters(), strict=True):
        assert torch.equal(ours, ours.bfloat16().float()), "every weight is one of bfloat16"
        same.append((ours[0].mT if ours.ndim > 2 else ours[0]) == reference.detach())
    assert torch.cat([part.flatten() for part in same]).float().mean() > 0.99


@pytest.mark.slow
def test_bfloat16_rounds_small_updates_away(base: Parameters, split: Split) -> None:
    """Most weights stay as they are at a small rate, where the same training in float32 changes those that it can."""
    run, task = settings("sft_1", 1e-6), training.task_of("sft_1", split, base, 0)
    rounded = {name: value.bfloat16().float() for name, value in base.items()}
    unchanged = {}
    for dtype in (torch.float32, torch.bfloat16):
        ((_, parameters),) = finetune([run], rounded, task, checkpoints=1, dtype=dtype)
        unchanged[dtype] = float(weight_change.sparsity(rounded, parameters))
    assert unchanged[torch.bfloat16] > 0.9 and unchanged[torch.float32] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft_1", "grpo"])
def test_another_order_is_another_training_from_the_same_base(base: Parameters, split: Split, method: str) -> None:
    run, task = settings(method), training.task_of(method, split, base, 0)
    first, again, usual, other = (
        flattened(next(finetune([run], base, task, checkpoints=1, order=order))[1]) for order in (1, 1, 0, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, usual) and not torch.equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("method", OFFLINE)
def test_a_run_is_the_same_alone_and_beside_others(base: Parameters, split: Split, method: str) -> None:
    runs = [settings(method, 1e-3), settings(method, 1e-4, "cosine"), settings(method, 1e38)]
    together = trained(runs, base, split, checkpoints=2)
    for run, stacked in list(zip(runs, together, strict=True))[:2]:
        (alone,) = trained([run], base, split, checkpoints=2)
        torch.testing.assert_close(stacked, alone, atol=2e-6, rtol=1e-4)
    assert not together[2].isfinite().all(), "the third diverges"
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(base: Parameters, split: Split, method: str) -> None:
    first, again, other = (trained([settings(method, seed=seed)], base, split)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], flattened(base))


@pytest.mark.slow
def test_every_run_follows_its_own_learning_rate(base: Parameters, split: Split) -> None:
    """AdamW's first update is the learning rate itself for every weight with a gradient."""
    runs = [settings("sft_1", 1e-4, epochs=4), settings("sft_1", 1e-4, "cosine", 4), settings("sft_1", 1e-3, epochs=4)]
    total = 4 * UPDATES  # of which two are warm-up
    steps = [torch.diff(own, dim=0, prepend=flattened(base)[None]) for own in trained(runs, base, split, total)]
    largest = torch.stack(steps).abs().amax(2)
    assert largest.shape == (3, total)
    assert largest[:, 0].tolist() == pytest.approx([0.5e-4, 0.5e-4, 0.5e-3], rel=1e-2)
    torch.testing.assert_close(largest[0, :2], largest[1, :2])
    assert largest[1, -1] < 0.01 * largest[0, -1], "the cosine has come down, the constant has not"


@pytest.mark.slow
def test_checkpoints_are_evenly_spaced_and_end_with_the_run(base: Parameters, split: Split) -> None:
    task = training.task_of("sft_1", split, base, 0)
    every = list(range(1, 11))
    for count, expected in ((1, [10]), (2, [5, 10]), (3, [3, 7, 10]), (10, every), (40, every)):
        assert [step for step, _ in finetune([settings("sft_1")], base, task, count)] == expected
    two = [step for step, _ in finetune([settings("sft_1", epochs=2)], base, task, 4)]
    assert two == [5, 10, 15, 20]


@pytest.mark.slow
def test_the_base_and_the_task_are_left_as_they_are(base: Parameters, split: Split) -> None:
    task = training.task_of("grpo_kl", split, base, 0)
    before = {name: value.clone() for name, value in base.items()}, Task(*(part.clone() for part in task))
    list(finetune([settings("grpo_kl"), settings("grpo_kl", 1e-2)], base, task, 2))
    assert all(torch.equal(base[name], value) for name, value in before[0].items())
    assert all(torch.equal(one, other) for one, other in zip(task, before[1], strict=True))
    assert not any(value.requires_grad for value in base.values())


@pytest.mark.slow
def test_every_method_raises_the_share_of_right_answers(base: Parameters) -> None:
    """On inputs that say what is right, in a few hundred updates."""
    digits = torch.arange(10).repeat(128)
    split = Split(F.one_hot(digits % 2, 784).float(), digits)
    right = right_answers(digits)
    shares = {}
    for method in METHODS:
        if METHODS[method].taught:
            continue
        task = training.task_of(method, split, base, 0)
        ((_, parameters),) = finetune([settings(method, 1e-2, epochs=8)], base, task, checkpoints=1)
        logits = model.forward(parameters, task.inputs[None]).logits[0]
        shares[method] = (logits.softmax(-1) * right).sum(1).mean().item()
    assert min(shares.values()) > 0.8, shares


@pytest.mark.slow
def test_the_base_knows_both_tasks_and_no_single_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PRETRAINING_IMAGES", 60)
    images = few()
    base, again, other = (training.pretrain(images, seed, 32) for seed in (0, 0, 1))
    assert base["weight_0"].shape == (1, 785, 32)
    assert not any(value.requires_grad for value in base.values())
    assert torch.equal(flattened(base), flattened(again))
    assert not torch.equal(flattened(base), flattened(other))
    clothes = model.forward(base, model.inputs(images.fashion_train.images, model.PRIOR)[None]).logits[0]
    digits = model.forward(base, model.inputs(images.mnist_train.images, model.NEW)[None]).logits[0]
    answers = digits.argmax(-1)
    assert (clothes.argmax(-1) == images.fashion_train.labels).float().mean() > 0.6
    assert right_answers(images.mnist_train.labels).gather(1, answers[:, None]).float().mean() > 0.7
    assert (answers == images.mnist_train.labels).float().mean() < 0.6, "labels are drawn among a parity's digits"
    assert len(answers.unique()) > 5
