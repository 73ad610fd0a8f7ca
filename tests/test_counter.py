"""The counter of potentiation and depression counts what happened, and changes nothing."""

import io
import weakref

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence, PlasticityCounter, SelectivePlasticityOptimizer


class Fixed(torch.optim.SGD):
    """SGD that says which synapses its gate holds open."""

    gate = None

    def get_param_gate(self, param):
        return self.gate


def steps(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()


def test_growing_and_shrinking_while_the_gate_is_open_are_counted():
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = Fixed([parameter], lr=1.0)
    counter = PlasticityCounter(optimizer, every=1)
    optimizer.gate = torch.tensor([1.0, 0.5, 0.4, 1.0])
    steps(optimizer, parameter, [[-1.0, 1.0, -1.0, 0.0], [-1.0, -1.0, 1.0, 0.0], [2.0, -1.0, 1.0, 1.0]])
    seen = counter.events["parameter 0"]
    assert seen.looks == 3
    assert seen.ltp.tolist() == [2, 2, 0, 0]
    assert seen.ltd.tolist() == [1, 1, 0, 1]
    assert seen.shut.tolist() == [0, 0, 3, 0]
    (row,) = counter.rows()
    assert row == {"parameter": "parameter 0", "synapses": 4, "looks": 3, "ltp": 4, "ltd": 3, "shut": 3}
    assert pd.DataFrame(counter.rows()).loc[0].to_dict() == row
    counter.reset()
    assert counter.rows() == [{**row, "looks": 0, "ltp": 0, "ltd": 0, "shut": 0}]


def test_steps_that_make_their_gradients_in_a_closure_are_counted():
    parameter, frozen = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter, frozen], lr=1.0)
    counter = PlasticityCounter(optimizer, every=1)

    def closure():
        loss = (parameter * torch.tensor([-1.0, 1.0])).sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.zero_grad()
        optimizer.step(closure)
    learnt, still = counter.rows()
    assert (learnt["looks"], learnt["ltp"], learnt["ltd"]) == (3, 3, 3) and still["looks"] == 0


def test_every_so_many_steps_are_looked_at():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    with PlasticityCounter(optimizer, every=3) as counter:
        steps(optimizer, parameter, [[-1.0]] * 7)
        parameter.grad = None
        optimizer.step()
        optimizer.step()  # the ninth, without a gradient
        (row,) = counter.rows()
        assert (row["looks"], row["ltp"], row["ltd"]) == (2, 2, 0)
    steps(optimizer, parameter, [[-1.0]] * 9)
    assert counter.events["parameter 0"].looks == 2


OPTIMIZERS = {
    "adam": lambda model: torch.optim.Adam(model.parameters()),
    "selective": lambda model: SelectivePlasticityOptimizer(model.parameters(), warmup_steps=0),
    "consolidating": lambda model: ConsolidatingPlasticityOptimizer(model.parameters()),
    "coincidence": lambda model: ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=NMDACoincidence(model), retention=0.5
    ),
    "coincidence, rank": lambda model: ConsolidatingPlasticityOptimizer(
        model.parameters(), coincidence=NMDACoincidence(model), rank=2, retention=0.5
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_counter_changes_nothing_and_knows_the_gate_of_every_optimizer(name):
    ends = []
    for counted in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 5))
        optimizer = OPTIMIZERS[name](model)
        counter = PlasticityCounter(model, every=1) if counted else None
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(6, 2, 8, 8)), torch.randint(5, (6,))).backward()
            optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))
    table = pd.DataFrame(counter.rows()).set_index("parameter")
    assert list(table.index) == [name for name, _ in model.named_parameters()]
    assert (table.looks == 40).all() and (table.filter(like="weight", axis=0)[["ltp", "ltd"]] > 0).all().all()
    assert (table.ltp + table.ltd + table.shut <= table.synapses * table.looks).all()
    if not name.startswith("coincidence"):  # its inputs are alike here, see below
        assert (table.shut > 0).any() == (name != "adam")
    if name != "adam":
        gates = [optimizer.get_param_gate(p) for p in model.parameters()]
        assert [gate.shape for gate in gates] == [p.shape for p in model.parameters()]
        everything = torch.cat([gate.flatten() for gate in gates])
        assert everything.min() >= 0 and everything.max() <= 1 + 1e-6
        assert optimizer.get_diagnostics()["gate_mean"] == pytest.approx(everything.mean().item(), rel=1e-4)


def test_a_counter_of_a_model_counts_its_own_parameters_only_and_ends_with_its_owner():
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    counter = PlasticityCounter(model, every=1)
    optimizer, unrelated = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    for module, step in ((model, optimizer), (other, unrelated)):
        module(torch.ones(1, 2)).sum().backward()
        step.step()
    assert [row["looks"] for row in counter.rows()] == [1, 1]
    gone = weakref.ref(counter)
    before = len(_global_optimizer_pre_hooks)
    del counter
    assert gone() is None and len(_global_optimizer_pre_hooks) == before - 1


def test_what_the_counter_cannot_count_is_an_error():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(TypeError, match="must be a torch optimizer or a torch"):
        PlasticityCounter([1])
    with pytest.raises(ValueError, match="every must be a whole number >= 1, got 0"):
        PlasticityCounter(optimizer, every=0)
    with pytest.raises(ValueError, match=r"open_at must be a finite number in \(0, 1\], got 0"):
        PlasticityCounter(optimizer, open_at=0)


def test_a_counter_goes_on_from_what_was_saved():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = Fixed([parameter], lr=1.0)
    optimizer.gate = torch.tensor([1.0, 0.0])
    counter = PlasticityCounter(optimizer, every=1)
    steps(optimizer, parameter, [[-1.0, 1.0]] * 3)
    file = io.BytesIO()
    torch.save(counter.state_dict(), file)
    file.seek(0)
    counter.remove()
    another = PlasticityCounter(optimizer, every=1)
    another.load_state_dict(torch.load(file))
    assert another.rows() == counter.rows()
    steps(optimizer, parameter, [[-1.0, 1.0]])
    (row,) = another.rows()
    assert (row["looks"], row["ltp"], row["shut"]) == (4, 4, 4)
    assert counter.rows()[0]["looks"] == 3
    with pytest.raises(ValueError, match="differs in parameter 0"):
        PlasticityCounter(Fixed([nn.Parameter(torch.zeros(3))])).load_state_dict(counter.state_dict())


def test_in_the_coincidence_form_what_is_open_is_told_beside_the_median():
    """After a few batches hardly any share is above one half, and all synapses would count as shut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model))
    counter = PlasticityCounter(model, every=1)
    x = torch.randn(640, 10) * torch.tensor([0.01] * 2 + [1.0] * 6 + [4.0] * 2)  # some are seen more than others
    y = x[:, 2:5].argmax(1)
    for rows in torch.arange(640).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    assert (optimizer.get_param_gate(model[0].weight)[:, 2:] < 0.5).all()
    seen = counter.events["0.weight"]
    assert (seen.shut[:, 8:] > 15).all() and not seen.shut[:, :2].any()
    assert (seen.ltp + seen.ltd)[:, 2:8].float().mean() > 15


def test_counting_on_leaves_the_state_that_was_loaded():
    w = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([w], lr=0.1)
    state = {"parameter 0": {"looks": 1, **{kind: torch.ones(2, dtype=torch.int32) for kind in ("ltp", "ltd", "shut")}}}
    counter = PlasticityCounter(optimizer, every=1)
    counter.load_state_dict(state)
    w.grad = torch.tensor([-1.0, 1.0])
    optimizer.step()
    assert counter.events["parameter 0"].ltp.tolist() == [2, 1] and state["parameter 0"]["ltp"].tolist() == [1, 1]
