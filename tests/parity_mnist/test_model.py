"""Stacked networks against torch's own modules."""

import pytest
import torch

from tests.parity_mnist.support import WIDTH, seeded, sequential
from vla_razor.parity_mnist import model


def test_stacked_networks_are_torch_networks_side_by_side() -> None:
    parameters = model.initialize(3, seeded(), WIDTH)
    x = torch.randn(3, 5, model.INPUTS, generator=seeded(1))
    outputs = model.forward(parameters, x)
    assert [part.shape for part in outputs.hidden] == [(3, 5, WIDTH), (3, 5, WIDTH // 2)]
    for run in range(3):
        network = sequential(parameters, run)
        torch.testing.assert_close(outputs.logits[run], network(x[run]))
        for layer, hidden in enumerate(outputs.hidden):
            torch.testing.assert_close(hidden[run], network[: 2 * layer + 2](x[run]))


def test_gradients_are_those_of_torch_networks() -> None:
    parameters = model.initialize(2, seeded(), WIDTH)
    gradients = {name: torch.full_like(value, torch.nan) for name, value in parameters.items()}
    x = torch.randn(1, 5, model.INPUTS, generator=seeded(1)).expand(2, -1, -1)
    outputs = model.forward(parameters, x)
    model.backward(parameters, x, outputs, 2 * outputs.logits, gradients)
    for run in range(2):
        network = sequential(parameters, run)
        network(x[run]).square().sum().backward()
        for ours, reference in zip(gradients.values(), network.parameters(), strict=True):
            assert reference.grad is not None
            torch.testing.assert_close(ours[run].T if ours.ndim > 2 else ours[run], reference.grad)


def test_the_papers_network_and_its_first_parameters() -> None:
    parameters = model.initialize(2, seeded())
    assert sum(value[0].numel() for value in parameters.values()) == 785 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10
    for layer, size in enumerate((785, 512, 256)):
        weight, bias = parameters[f"weight_{layer}"], parameters[f"bias_{layer}"]
        bound = torch.nn.Linear(size, 10).weight.abs().max().item()
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert weight.mean().abs() < 0.05 * bound
        assert bias.abs().max() <= size**-0.5
        assert not torch.equal(weight[0], weight[1]), "every run has its own"
    again = model.initialize(2, seeded())
    assert all(torch.equal(again[name], value) for name, value in parameters.items())


def test_the_task_is_the_last_input() -> None:
    images = torch.rand(4, 784, generator=seeded())
    for task in (model.NEW, model.PRIOR):
        found = model.inputs(images, task)
        assert torch.equal(found[:, :-1], images)
        assert found[:, -1].tolist() == [task] * 4


def test_networks_are_rows_of_numbers_in_the_same_memory() -> None:
    one = model.initialize(1, seeded(), WIDTH)
    rows = model.flat(one).repeat(3, 1)
    three = model.shaped(rows, one)
    for name, value in three.items():
        assert value.shape == (3, *one[name].shape[1:])
        assert all(torch.equal(value[run], one[name][0]) for run in range(3))
    assert torch.equal(model.flat(three), rows)
    rows[1] = 0
    assert not any(value[1].any() for value in three.values())
    assert all(value[2].any() for value in three.values())


def test_a_selected_network_is_a_copy() -> None:
    stack = model.initialize(3, seeded(), WIDTH)
    selected = model.select(stack, 1)
    for name, value in selected.items():
        assert torch.equal(value, stack[name][1:2])
        value.zero_()
        assert stack[name].count_nonzero() == stack[name].numel(), "a selected network is a copy"
