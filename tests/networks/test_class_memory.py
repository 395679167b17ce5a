"""The memory of classes follows the published rule, in any dimension, over several processes, and is part of the weights."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from medseg3d.networks import build_network
from medseg3d.networks.class_memory import ClassMemory, note_labels, remember
from tests.networks.test_families import plan

NUM_CLASSES, WIDTH = 3, 4


def published_update(memory: Tensor, features: Tensor, labels: Tensor, momentum: float) -> Tensor:
    """The rule as a plain loop, for labels of the features' size."""
    memory = memory.clone()
    vectors, classes = features.movedim(1, -1).reshape(-1, features.shape[1]), labels.flatten()
    for number in range(len(memory)):
        own = vectors[classes == number]
        if not len(own):
            continue
        if not memory[number].any():
            memory[number] = own.mean(0)
            continue
        weights = 1 - F.cosine_similarity(own, memory[number].expand_as(own))
        memory[number] = (1 - momentum) * memory[number] + momentum * (own * (weights / weights.sum())[:, None]).sum(0)
    return memory


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
def test_the_memory_follows_the_published_rule(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    memory = ClassMemory(NUM_CLASSES, WIDTH)
    expected = torch.zeros(NUM_CLASSES, WIDTH)
    for step in range(4):
        features, labels = torch.randn(2, WIDTH, *size), torch.randint(-1, NUM_CLASSES - (step == 0), (2, *size))  # -1 belongs to no class
        expected = published_update(expected, features, labels, 0.9 * 0.5)
        memory.update(features, labels, 0.9 * 0.5)
        torch.testing.assert_close(memory.memory, expected)
        assert memory.is_known.tolist() == [True, True, step > 0]


def test_labels_may_be_finer_than_features_and_one_hot() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(1, WIDTH, 2, 3), torch.randint(0, NUM_CLASSES, (1, 2, 3))
    fine = labels.repeat_interleave(4, 1).repeat_interleave(2, 2)
    memories = [ClassMemory(NUM_CLASSES, WIDTH) for _ in range(3)]
    given = (labels, fine, F.one_hot(fine, NUM_CLASSES).movedim(-1, 1))
    for memory, form in zip(memories, given, strict=True):
        memory.update(features, form, 0.9)
        memory.update(2 * features + 1, form, 0.9)
        torch.testing.assert_close(memory.memory, memories[0].memory)


def test_codes_may_belong_to_several_regions_and_to_none() -> None:
    memory, features = ClassMemory(2, 1), torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 1, 1, 4)
    memory.contents = torch.tensor([[False, True, True, False], [False, False, True, False]])  # whole, core; the last code is ignored
    memory.update(features, torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8), 0.9)
    assert memory.memory.flatten().tolist() == [3.0, 4.0]


def test_a_single_voxel_of_a_class_is_remembered() -> None:
    memory, labels = ClassMemory(NUM_CLASSES, WIDTH), torch.zeros(1, 16, 16, dtype=torch.long)
    labels[0, 3, 5] = 2  # the nearest voxels of a grid of 2 x 2 would miss it
    memory.update(torch.ones(1, WIDTH, 2, 2), labels, 0.9)
    assert memory.is_known.tolist() == [True, False, True]


def test_features_like_the_memory_leave_it() -> None:
    memory = ClassMemory(1, 2)
    memory.memory.fill_(1)
    memory.update(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), 0.9)
    assert torch.equal(memory.memory, torch.ones(1, 2))


def test_logits_weigh_what_is_recalled() -> None:
    memory = ClassMemory(2, WIDTH).eval()
    memory.memory.copy_(torch.tensor([[1.0] * WIDTH, [3.0] * WIDTH]))
    recalled = memory(torch.zeros(1, WIDTH, 1, 2), torch.tensor([[[[0.0, 50.0]], [[0.0, 0.0]]]]))
    torch.testing.assert_close(recalled[0, 0, 0], torch.tensor([2.0, 1.0]))
    note_labels(memory, torch.zeros(1, 1, 2))
    remember(memory, rate_share=1.0)
    assert memory.memory[0, 0] == 1  # only training forgets


def test_the_learning_rate_decides_how_much_is_replaced() -> None:
    memory = ClassMemory(1, 1)
    memory.memory.fill_(1)
    memory(torch.full((1, 1, 2, 2), -1.0), torch.zeros(1, 1, 2, 2))
    note_labels(memory, torch.zeros(1, 2, 2))
    remember(memory, rate_share=0.5)
    torch.testing.assert_close(memory.memory, torch.full((1, 1), 1 - 0.45 * 2))
    remember(memory, rate_share=0.5)  # each batch once
    torch.testing.assert_close(memory.memory, torch.full((1, 1), 0.1))


def _in_a_process(rank: int, folder: str, features: Tensor, labels: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    memory = ClassMemory(NUM_CLASSES, WIDTH)
    for step in range(2):
        memory.update(features[step, rank], labels[step, rank], 0.45)
    save_file({"memory": memory.memory}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_remember_what_one_does_of_both_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(2, 2, 1, WIDTH, 3, 4), torch.randint(0, NUM_CLASSES - 1, (2, 2, 1, 3, 4))
    labels[0, 1] = 2  # in one of the processes only
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_in_a_process, args=(rank, str(tmp_path), features, labels)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)  # two interpreters import torch, on a machine that may be busy
        assert process.exitcode == 0
    alone = ClassMemory(NUM_CLASSES, WIDTH)
    for step in range(2):
        alone.update(features[step].flatten(0, 1), labels[step].flatten(0, 1), 0.45)
    first, second = (load_file(tmp_path / f"{rank}.safetensors")["memory"] for rank in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone.memory)


def mcibi(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    small = {"head_features": 8, "attention_features": 4, **options}
    return build_network(plan("mcibi", (4, 4, 8, 8), dimensions=2, encoder=(1,), classes=NUM_CLASSES, deep=True, **small))


def test_the_memory_lies_in_the_weights_and_changes_the_logits(tmp_path: Path) -> None:
    network, x = mcibi(), torch.randn(2, 1, 16, 16)
    network.train()(x)
    note_labels(network, torch.randint(0, NUM_CLASSES, (2, 16, 16)))
    assert network.own_loss() is None  # nothing is known yet
    remember(network, rate_share=1.0)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other = mcibi()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(other.memory.memory, network.memory.memory)
    assert other.memory.memory.any()
    with torch.no_grad():
        expected = network.eval()(x)
        assert torch.equal(other.eval()(x), expected)
        other.memory.memory.zero_()
        assert not torch.allclose(other(x), expected)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_memory_must_look_like_its_classes(norm: str) -> None:
    network = mcibi(norm=norm)
    network.memory.memory[:2] = torch.eye(8)[:2]
    network.train()
    loss = network.own_loss()
    assert loss is not None
    loss.backward()
    reached = {name.split(".")[0] for name, weight in network.named_parameters() if weight.grad is not None}
    assert reached == {"head"}
    optimizer = torch.optim.SGD(network.head.parameters(), lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        network.own_loss().backward()
        optimizer.step()
    assert network.own_loss().detach() < 0.7 * loss.detach()
