"""Muon and AdamW work as one optimizer."""

import copy

import pytest
import torch
from torch import nn

from lit_mm.stages.groups import parameter_groups
from lit_mm.stages.optimizer import Muon, MuonWithAdamW, make_optimizer, orthogonalise
from lit_mm.stages.stage import Stage, Train


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


def groups_of(net: nn.Module, optimizer: str = "muon") -> list[dict]:
    stage = Stage("s", {"net": Train(lr=1e-2, optimizer=optimizer)}, max_steps=1)
    return parameter_groups({"net": dict(net.named_parameters())}, stage, {})


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    net(torch.randint(5, (8,))).square().mean().backward()
    optimizer.step()


def test_muon_gets_the_matrices_that_multiply_and_adamw_the_rest():
    net = Net()
    names = {id(p): n for n, p in net.named_parameters()}
    muon = {names[id(p)] for group in groups_of(net) if group["muon"] for p in group["params"]}
    assert muon == {"blocks.0.weight", "blocks.1.weight"}
    optimizer = make_optimizer(groups_of(net), (0.9, 0.95))
    assert [type(one).__name__ for one in (optimizer.muon, optimizer.adamw)] == ["Muon", "AdamW"]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_without_muon_it_is_plain_adamw():
    assert type(make_optimizer(groups_of(Net(), "adamw"), (0.9, 0.95))) is torch.optim.AdamW


def test_parameters_outside_the_layers_move_as_with_adamw_alone():
    ours, theirs = Net(), Net()
    step(ours, make_optimizer(groups_of(ours), (0.9, 0.95)), 1)
    step(theirs, make_optimizer(groups_of(theirs, "adamw"), (0.9, 0.95)), 1)
    assert torch.equal(ours.head.weight, theirs.head.weight) and torch.equal(ours.table.weight, theirs.table.weight)
    assert not torch.equal(ours.blocks[0].weight, theirs.blocks[0].weight)


def test_a_saved_state_continues_bit_for_bit_and_the_schedule_reaches_both():
    unbroken = Net()
    first = make_optimizer(groups_of(unbroken), (0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(first, lambda step: 0.5**step)
    for seed in range(2):
        step(unbroken, first, seed)
        schedule.step()
    saved = copy.deepcopy((unbroken.state_dict(), first.state_dict(), schedule.state_dict()))
    resumed = Net()
    second = make_optimizer(groups_of(resumed), (0.9, 0.95))
    again = torch.optim.lr_scheduler.LambdaLR(second, lambda step: 0.5**step)
    resumed.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    for seed in range(2, 4):
        step(unbroken, first, seed)
        schedule.step()
        step(resumed, second, seed)
        again.step()
    assert {group["lr"] for group in second.param_groups} == {1e-2 / 16}
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True))


def test_only_the_groups_that_are_there_are_stepped():
    """DeepSpeed steps the groups one at a time."""
    ours, theirs = Net(), Net()
    whole, piecewise = (make_optimizer(groups_of(net), (0.9, 0.95)) for net in (ours, theirs))
    for seed in range(2):
        step(ours, whole, seed)
        torch.manual_seed(seed)
        piecewise.zero_grad()
        theirs(torch.randint(5, (8,))).square().mean().backward()
        groups = piecewise.param_groups
        for group in groups:
            piecewise.param_groups = [group]
            piecewise.step()
        piecewise.param_groups = groups
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert piecewise.state_dict()["state"].keys() == whole.state_dict()["state"].keys()


def test_a_state_of_another_optimizer_is_refused():
    optimizer = make_optimizer(groups_of(Net()), (0.9, 0.95))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(make_optimizer(groups_of(Net(), "adamw"), (0.9, 0.95)).state_dict())
    assert isinstance(optimizer, MuonWithAdamW)


@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 4, 9), (1, 5, 5)])
def test_orthogonalised_matrices_keep_their_directions_and_lose_their_lengths(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape) * torch.tensor([0.01, 1.0, 100.0])[: shape[0], None, None]
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    straight = orthogonalise(matrices).float()
    lengths = torch.linalg.svdvals(straight)
    assert straight.shape == shape and lengths.min() > 0.3 and lengths.max() < 1.3
    along = (u.mT @ straight @ v.mT).diagonal(dim1=1, dim2=2)  # seen from the singular vectors of the original
    torch.testing.assert_close(along.sort(descending=True).values, lengths, rtol=0, atol=0.05)


def test_muon_agrees_with_torchs() -> None:
    ours, theirs = Net().blocks, Net().blocks
    matrices = [[block.weight for block in blocks] for blocks in (ours, theirs)]
    first = Muon([{"params": matrices[0], "lr": 1e-2, "weight_decay": 0.1}])
    second = torch.optim.Muon(matrices[1], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        torch.manual_seed(seed)
        gradients = [torch.randn(4, 4), torch.randn(4, 4)]
        for weights in matrices:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.clone()
        first.step()
        second.step()
    for a, b in zip(*matrices, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)  # torch's rounds to bf16; three steps move by 6e-3


def test_muon_enlarges_rounding_in_directions_that_a_gradient_hardly_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_mm.stages.optimizer.fast_bf16", lambda device: False)
    generator = torch.Generator().manual_seed(0)
    left, right, noise = (torch.randn(size, generator=generator) for size in ((64, 4), (4, 64), (64, 64)))
    gradient = left @ right  # of rank 4
    changed = gradient * (1 + 1e-7 * noise)

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).norm() / a.norm())

    enlargement = distance(orthogonalise(gradient[None]), orthogonalise(changed[None])) / distance(gradient, changed)
    assert enlargement > 20
