"""Each objective against torch, scipy or an expectation worked out in closed form; the annotators by their labels."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare
from torch import Tensor
from torch.nn import functional as F

from tests.parity_mnist.support import seeded
from vla_razor.parity_mnist import methods
from vla_razor.parity_mnist.methods import METHODS, SAMPLES, Batch

ON_POLICY = [name for name, method in METHODS.items() if method.annotate is None]
DIGITS = torch.arange(10)


def make_batch(runs: int = 2, images: int = 5, seed: int = 0) -> Batch:
    """Random logits that want a gradient, a base's, and labels for digits 0, 1, 2 ..."""
    draw, digits = seeded(seed), torch.arange(images) % 10
    logits, base = torch.randn(2, runs, images, 10, generator=draw)
    chosen, rejected = (labels.expand(runs, -1) for labels in (digits % 2, methods.annotate_wrong(digits, draw)))
    right = methods.right_answers(digits).expand(runs, -1, -1)
    return Batch(logits.requires_grad_(), base, right, chosen, rejected, seeded(seed + 1))


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), of)[0]


def test_right_answers_have_the_parity_of_the_digit() -> None:
    right = methods.right_answers(torch.tensor([[4, 7]]))
    assert right.tolist() == [[[True, False] * 5, [False, True] * 5]]


def test_sft_is_cross_entropy() -> None:
    batch = make_batch()
    loss = methods.supervised(batch)
    reference = torch.stack([F.cross_entropy(x, y) for x, y in zip(batch.logits, batch.chosen, strict=True)])
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(gradient(loss, batch.logits), gradient(reference, batch.logits))


def test_simpo_in_closed_form() -> None:
    batch = make_batch()
    p = batch.logits.detach().double().softmax(-1).numpy()
    run, image = np.ogrid[:2, :5]
    odds = p[run, image, batch.chosen.numpy()] / p[run, image, batch.rejected.numpy()]
    expected = np.log1p(np.exp(1) / odds).mean(1)
    np.testing.assert_allclose(methods.simpo(batch).detach().numpy(), expected, rtol=1e-5)


LOGITS = torch.tensor([1.0, 0.5, -1.0, 0.3, 0.2, -0.4, 0.0, 1.2, -0.8, 0.1])
RIGHT = methods.right_answers(torch.tensor(4))


def expected_gradient(images: int, name: str) -> tuple[Tensor, Tensor]:
    """The gradient of an on-policy loss in the logits, averaged over many images that all look the same, and how
    uncertain its entries are.
    """
    logits = LOGITS.expand(1, images, 10).clone().requires_grad_()
    labels = torch.zeros(1, images, dtype=torch.long)
    batch = Batch(logits, LOGITS.expand_as(logits), RIGHT.expand(1, images, 10), labels, labels, seeded())
    own = images * gradient(METHODS[name].objective(batch), logits)[0]
    return own.mean(0), own.std(0) / images**0.5


def parts() -> tuple[float, Tensor, Tensor]:
    """How likely a right answer is, and the mean score of right and of wrong answers, d log pi(a) / d logits."""
    p = LOGITS.softmax(0)
    share = (p * RIGHT).sum()
    return share.item(), p * RIGHT / share - p, p * ~RIGHT / (1 - share) - p


def test_one_zero_reinforce_follows_the_policy_gradient_of_the_accuracy() -> None:
    logits = LOGITS.clone().requires_grad_()
    exact = gradient(-(logits.softmax(0) * RIGHT).sum(), logits)
    found, uncertainty = expected_gradient(20000, "one_zero_reinforce")
    assert ((found - exact).abs() < 4.5 * uncertainty).all()
    assert uncertainty.max() < exact.abs().max() / 50


def test_grpo_follows_its_expectation_over_the_samples_of_an_image() -> None:
    """Given k right answers of K their advantages are known, and the answers are drawn independently."""
    share, right, wrong = parts()
    exact = torch.zeros(10)
    for k in range(SAMPLES + 1):
        rewards = np.array([1.0] * k + [0.0] * (SAMPLES - k))
        advantage = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        weight = binom.pmf(k, SAMPLES, share) / SAMPLES
        exact -= weight * (advantage[:k].sum() * right + advantage[k:].sum() * wrong)
    found, uncertainty = expected_gradient(20000, "grpo")
    assert ((found - exact).abs() < 4.5 * uncertainty).all()
    assert uncertainty.max() < exact.abs().max() / 50
    logits = LOGITS.clone().requires_grad_()
    of_accuracy = gradient(-(logits.softmax(0) * RIGHT).sum(), logits)
    assert F.cosine_similarity(exact, of_accuracy, 0).item() == pytest.approx(1), "for one image, the same direction"


def test_the_penalty_is_the_kl_of_the_policy_to_its_base() -> None:
    with_penalty, without = make_batch(), make_batch()
    penalty = methods.grpo_kl(with_penalty) - methods.grpo(without)
    log_p, log_q = with_penalty.logits.log_softmax(-1), with_penalty.base_logits.log_softmax(-1)
    reference = 0.1 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean(1)
    torch.testing.assert_close(penalty, reference, atol=1e-5, rtol=1e-5)
    ours = gradient(methods.grpo_kl(make_batch()._replace(logits=with_penalty.logits)), with_penalty.logits)
    ours -= gradient(methods.grpo(make_batch()._replace(logits=with_penalty.logits)), with_penalty.logits)
    torch.testing.assert_close(ours, gradient(reference, with_penalty.logits), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_learns_from_its_own_logits(name: str) -> None:
    batch = make_batch(runs=3)
    loss = METHODS[name].objective(batch)
    assert loss.shape == (3,)
    moved = torch.autograd.grad(loss[1], batch.logits)[0].abs().sum((1, 2))
    assert moved[1] > 0
    assert moved[0] == moved[2] == 0


@pytest.mark.parametrize("name", ["grpo", "one_zero_reinforce"])
def test_nothing_is_learned_where_every_answer_gets_the_same(name: str) -> None:
    batch = make_batch()
    nothing_right = batch._replace(right=torch.zeros_like(batch.right))
    assert gradient(METHODS[name].objective(nothing_right), batch.logits).count_nonzero() == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_not_finite_leaves_the_others_alone(name: str) -> None:
    batch = make_batch()
    whole = METHODS[name].objective(batch)
    broken = batch.logits.detach().clone()
    broken[1] = torch.nan
    loss = METHODS[name].objective(make_batch()._replace(logits=broken))
    assert loss[0] == whole[0]
    assert not loss[1].isfinite()


def labels_of(annotate: str, reference: Tensor, repeats: int = 400) -> tuple[Tensor, Tensor]:
    """All digits many times over, and the labels of a method's annotator."""
    annotator = METHODS[annotate].annotate
    assert annotator is not None
    digits = DIGITS.repeat(repeats)
    return digits, annotator(digits, reference.expand(len(digits), -1), seeded())


@pytest.mark.parametrize("name", ["sft_1", "sft_2", "sft_oracle", "simpo"])
def test_annotators_are_always_right(name: str) -> None:
    sure_of_three = torch.zeros(10).index_fill(0, torch.tensor(3), 50.0)
    digits, labels = labels_of(name, sure_of_three)
    assert ((labels - digits) % 2 == 0).all()


def test_the_two_arbitrary_labelings() -> None:
    digits, labels = labels_of("sft_1", LOGITS)
    assert torch.equal(labels, digits % 2)
    digits, labels = labels_of("sft_2", LOGITS)
    for parity, expected in ((0, {0, 4}), (1, {1, 5})):
        own = labels[digits % 2 == parity]
        assert set(own.tolist()) == expected
        assert 0.45 < (own < 2).float().mean() < 0.55


def assert_drawn_from(labels: Tensor, probabilities: Tensor) -> None:
    counts = labels.bincount(minlength=10).double().numpy()
    expected = probabilities.double().numpy()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    expected = expected[possible] / expected.sum() * counts.sum()
    assert chisquare(counts[possible], expected).pvalue > 1e-3


def test_the_oracle_is_the_base_among_the_right_answers() -> None:
    digits, labels = labels_of("sft_oracle", LOGITS)
    p = LOGITS.softmax(0)
    for parity in (0, 1):
        right = methods.right_answers(torch.tensor(parity))
        assert_drawn_from(labels[digits % 2 == parity], p * right / (p * right).sum())


def test_distillation_follows_the_reference_wrong_answers_included() -> None:
    _, labels = labels_of("sft_distilled", LOGITS)
    assert_drawn_from(labels, LOGITS.softmax(0))


def test_rejected_labels_are_wrong_ones_uniformly() -> None:
    digits = DIGITS.repeat(400)
    labels = methods.annotate_wrong(digits, seeded())
    for parity in (0, 1):
        assert_drawn_from(labels[digits % 2 == parity], (~methods.right_answers(torch.tensor(parity))).float())


def test_who_is_annotated_and_who_is_taught() -> None:
    assert ON_POLICY == ["grpo", "grpo_kl", "one_zero_reinforce"]
    assert [name for name, method in METHODS.items() if method.taught] == ["sft_distilled"]
