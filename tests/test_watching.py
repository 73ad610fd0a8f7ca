"""What counts as activity, and what a training loop may do between two steps of a watched model."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from sp import ConsolidatingPlasticityOptimizer, NMDACoincidence

INPUTS, CLASSES = 6, 3


class Net(nn.Module):
    """An encoder, a middle and two heads."""

    def __init__(self):
        super().__init__()
        self.encoder, self.middle = nn.Linear(INPUTS, 16), nn.Linear(16, 16)
        self.head, self.other = nn.Linear(16, CLASSES), nn.Linear(16, INPUTS)

    def features(self, x):
        return torch.relu(self.middle(torch.relu(self.encoder(x))))

    def forward(self, x):
        return self.head(self.features(x))


class InOrder(nn.Module):
    """A GRU reads the inputs one by one; the readout sees its last state."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(1, 16, batch_first=True), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.gru(x[..., None])[0][:, -1])


def made(seed=0, network=Net):
    torch.manual_seed(seed)
    return network()


def watched(model, **options):
    return ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), **options)


def batch(seed, size=16):
    """Inputs and their classes, which depend on the signs of the first two values."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, INPUTS, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def classified(model, x, y):
    return F.cross_entropy(model(x), y)


def decoded(model, x, y):
    return F.mse_loss(model.other(model.features(x)), x)


def encoded(model, x, y):
    return model.encoder(x).square().mean()


def train(model, optimizer, loss=classified, seeds=range(30)):
    losses = []
    for seed in seeds:
        optimizer.zero_grad()
        value = loss(model, *batch(seed))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def assert_equal(model, other):
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0, msg=f"{name} differs")


def accuracy(model):
    x, y = batch(10_000, 500)
    return (model(x).argmax(1) == y).float().mean().item()


def with_auxiliary(model, x, y):
    return classified(model, x, y) + 0.1 * encoded(model, x, y)


def keep(model, group, step):
    """Change nothing."""


# What is changed before each step, and the loss that is used in it.
ROLES = {
    "a head thawed": (lambda model, group, step: model.head.requires_grad_(step >= 20), lambda step: classified),
    "a middle thawed": (lambda model, group, step: model.middle.requires_grad_(step >= 20), lambda step: classified),
    "heads in turn": (keep, lambda step: classified if step % 2 else decoded),
    "heads in blocks": (keep, lambda step: classified if step // 10 % 2 else decoded),
    "now and then an auxiliary loss": (keep, lambda step: classified if step % 3 else with_auxiliary),
    "encoder first": (keep, lambda step: encoded if step < 10 else classified),
    "equalisation changed": (
        lambda model, group, step: group.update(equalisation=[0.0, 0.12, 30.0][step // 10 % 3]),
        lambda step: classified,
    ),
}


@pytest.mark.parametrize("role", ROLES)
def test_a_layer_may_change_its_role_and_the_loss_stays_bounded(role):
    model, first = made(), {}
    optimizer, (change, chosen) = watched(model), ROLES[role]
    for step in range(80):
        change(model, optimizer.param_groups[0], step)
        (value,) = train(model, optimizer, chosen(step), [step])
        assert value < 2 * max(first.setdefault(chosen(step), value), 1.0)
    assert all(p.isfinite().all() for p in model.parameters())
    assert accuracy(model) > 0.8


def test_another_rank_in_mid_run_is_refused():
    model = made()
    optimizer = watched(model)
    train(model, optimizer, classified, [0])
    optimizer.param_groups[0]["rank"] = 4
    with pytest.raises(ValueError, match="rank must stay"):
        train(model, optimizer, classified, [1])


def test_a_second_backward_on_the_first_layer_is_one_more_batch():
    model = made()
    optimizer = watched(model)
    for seed in range(40):
        optimizer.zero_grad()
        classified(model, *batch(seed)).backward()
        (0.1 * encoded(model, *batch(seed + 1))).backward()
        optimizer.step()
    assert accuracy(model) > 0.8


@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.Linear(4, 5), torch.randn(8, 4)),
        lambda: (nn.Conv2d(2, 5, 3), torch.randn(8, 2, 4, 4)),
        lambda: (nn.Embedding(7, 5), torch.randint(7, (8, 3))),
    ],
    ids=["Linear", "Conv2d", "Embedding"],
)
def test_an_empty_batch_changes_nothing(make):
    torch.manual_seed(0)
    model, x = make()
    other = copy.deepcopy(model)
    for network, batches in ((model, [x, x[:0], x, x[:0], x]), (other, [x, x, x])):
        optimizer = watched(network)
        for rows in batches:
            optimizer.zero_grad()
            network(rows).square().sum().backward()
            optimizer.step()
    assert_equal(model, other)


def test_an_expert_without_examples_stays_and_the_others_learn():
    torch.manual_seed(0)
    experts = nn.ModuleList(nn.Linear(INPUTS, CLASSES) for _ in range(3))
    optimizer = watched(experts)
    means = []
    for seed in range(100):
        x, y = batch(seed)
        chosen = (x[:, 2] > 0).long() + 2 * (seed == 5)  # the step in which the third gets some, and others none
        before = [expert.weight.clone() for expert in experts]
        optimizer.zero_grad()
        losses = [F.cross_entropy(e(x[chosen == i]), y[chosen == i], reduction="sum") for i, e in enumerate(experts)]
        (sum(losses) / len(x)).backward()
        optimizer.step()
        means.append(sum(losses).item() / len(x))
        for i, (expert, old) in enumerate(zip(experts, before, strict=True)):
            assert torch.equal(expert.weight, old) == (not (chosen == i).any())
    assert sum(means[-20:]) < 0.8 * sum(means[:5]) * 20 / 5


@pytest.mark.parametrize("calls", [2, 8])
def test_a_batch_is_learnt_in_several_calls_of_the_model_as_in_one(calls):
    def in_calls(model, x, y):
        return sum(classified(model, *part) for part in zip(x.chunk(calls), y.chunk(calls), strict=True)) / calls

    one, several = made(), made()
    losses, in_parts = train(one, watched(one)), train(several, watched(several), in_calls)
    assert sum(in_parts[-10:]) < 1.15 * sum(losses[-10:])


def test_a_copy_without_the_model_that_was_watched_says_what_to_keep():
    encoder, head = nn.Linear(INPUTS, 16), nn.Linear(16, CLASSES)
    watcher = NMDACoincidence(nn.ModuleList([encoder, head]))  # nothing else holds the list
    with pytest.raises(RuntimeError, match="keep what you pass to NMDACoincidence"):
        copy.deepcopy((encoder, head, watcher))


def tensors():
    gc.collect()
    return sum(type(held) in (torch.Tensor, nn.Parameter) for held in gc.get_objects())


@pytest.mark.parametrize("clear", [True, False], ids=["cleared to None", "cleared to zero"])
@pytest.mark.parametrize("steps", [False, True], ids=["a watcher alone", "with an optimizer that never steps"])
@pytest.mark.parametrize("network", [Net, InOrder])
def test_what_no_step_will_use_is_not_held(clear, steps, network):
    model, held = made(network=network), []
    unused = watched(model) if steps else NMDACoincidence(model)
    other = torch.optim.SGD(model.parameters(), 0.01)
    for seed in range(30):
        model.zero_grad(set_to_none=clear)
        classified(model, *batch(seed)).backward()
        other.step()
        model(batch(seed)[0])  # never differentiated
        if seed in (4, 29):
            held.append(tensors())
    assert held[0] == held[1] and unused is not None


def probed(model, seed):
    x, y = batch(seed + 1000, 40)
    torch.autograd.grad(classified(model, x, y), list(model.parameters()), allow_unused=True)
    x.requires_grad_()
    torch.autograd.grad(classified(model, x, y), x, create_graph=True)


def only_forward(model, seed):
    model(batch(seed + 1000, 40)[0])


def only_other_inputs(model, seed):
    x = batch(seed + 1000, 40)[0].requires_grad_()
    model(x).sum().backward(inputs=[x])


def evaluated(model, seed):
    model.eval()
    probed(model, seed)
    with torch.no_grad():
        only_forward(model, seed)
    model.train()


def transformed(model, seed):
    x, y = batch(seed + 1000, 5)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    vmap(model)(x)
    jacrev(model)(x[0])
    grad(lambda x: classified(model, x, y))(x)
    vmap(grad(lambda p, x: functional_call(model, p, (x,)).sum()), (None, 0))(parameters, x)


@pytest.mark.parametrize("when", ["before", "between", "after"])
@pytest.mark.parametrize("probe", [probed, only_forward, only_other_inputs, transformed, evaluated])
def test_passes_that_made_no_gradient_change_nothing(probe, when):
    model, other = made(), made()
    for network, probing in ((model, True), (other, False)):
        optimizer = watched(network)
        for seed in range(25):
            if when == "before" and probing:
                probe(network, seed)
            network.zero_grad()
            loss = classified(network, *batch(seed))
            if when == "between" and probing:
                probe(network, seed)
            loss.backward()
            if when == "after" and probing:
                probe(network, seed)
            optimizer.step()
    assert_equal(model, other)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("clear", ["model", "optimizer"])
def test_a_gradient_that_was_discarded_takes_its_activity_along(clear, set_to_none):
    model, other = made(), made()
    for network, discards in ((model, True), (other, False)):
        optimizer = watched(network)
        for seed in range(25):
            if discards:
                classified(network, *batch(seed + 1000, 40)).backward()
            (network if clear == "model" else optimizer).zero_grad(set_to_none)
            classified(network, *batch(seed)).backward()
            optimizer.step()
    assert_equal(model, other)


def test_a_discriminator_remembers_what_made_its_own_gradient():
    """The loop of PyTorch's DCGAN tutorial; in the second run the generator's step leaves no trace in D by itself."""
    trained = []
    for separate in (False, True):
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, INPUTS))
        judge = nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, 1))
        of_generator, of_judge = watched(generator), watched(judge)
        for seed in range(20):
            judge.zero_grad()
            real, noise = batch(seed)[0], torch.randn(16, 2, generator=torch.Generator().manual_seed(seed))
            F.softplus(-judge(real)).mean().backward()
            fake = generator(noise)
            F.softplus(judge(fake.detach())).mean().backward()
            of_judge.step()
            generator.zero_grad()
            judge.requires_grad_(not separate)
            F.softplus(-judge(fake)).mean().backward()
            judge.requires_grad_(True)
            of_generator.step()
        trained.append((generator, judge))
    for network, other in zip(*trained, strict=True):
        assert_equal(network, other)


def test_hooks_go_with_their_watchers():
    model = made()
    for _ in range(50):
        watched(model)
    gc.collect()
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0
    assert not model.encoder.weight._post_accumulate_grad_hooks


BAD_STARTS = {
    "a batch of NaN": lambda step: (float("nan") if step == 0 else 1.0, 1.0),
    "a huge gradient": lambda step: (1.0, 1e21 if step == 0 else 1.0),
    "empty images": lambda step: (float(step >= 30), 1.0),
}


@pytest.mark.parametrize("options", [{}, {"rank": 8}], ids=["exact", "rank 8"])
@pytest.mark.parametrize("start", BAD_STARTS)
def test_a_bad_start_is_overcome(start, options):
    model = made()
    optimizer = watched(model, **options)
    for step in range(320):
        brightness, factor = BAD_STARTS[start](step)
        optimizer.zero_grad()
        x, y = batch(step)
        loss = factor * classified(model, brightness * x, y)
        loss.backward()
        optimizer.step()
        assert step == 0 or loss < 4
    assert accuracy(model) > 0.85


class Verbose(nn.Linear):
    """A Linear that returns more than a tensor."""

    def forward(self, x):
        return super().forward(x), x


@pytest.mark.filterwarnings("ignore:coincidence")  # whether it can be watched is not tested here
def test_a_layer_that_returns_a_tuple_learns():
    torch.manual_seed(0)
    model = nn.ModuleList([Verbose(INPUTS, 16), nn.Linear(16, CLASSES)])
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = watched(model)
    train(model, optimizer, lambda m, x, y: F.cross_entropy(m[1](torch.relu(m[0](x)[0])), y))
    assert all(p.isfinite().all() and not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_data_parallel_without_devices_is_watched():
    model, other = made(), made()
    parallel = nn.DataParallel(model)
    optimizer = watched(parallel)
    train(parallel, optimizer)
    train(other, watched(other))
    assert_equal(model, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*")
def test_a_script_of_a_watched_model_works_once_the_watcher_is_removed():
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv1d(2, 3, 1))
    watcher = NMDACoincidence(model)
    with pytest.raises((AttributeError, RuntimeError), match=r"watcher\.remove"):
        torch.jit.script(model)
    watcher.remove()
    scripted = torch.jit.script(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.parametrize("compiled_first", ["another of its class", "itself", "another, afterwards", "none"])
def test_a_compiled_model_is_watched_whatever_was_compiled_before(compiled_first):
    torch.compiler.reset()
    x, y = batch(0)

    def compiled(model):
        call = torch.compile(model, backend="eager")
        return lambda: classified(call, x, y).backward()

    model, other = made(), made()
    run = compiled(model)
    if compiled_first in ("another of its class", "itself"):
        (compiled(made(1)) if compiled_first == "another of its class" else run)()
    model.zero_grad()
    optimizer, plain = watched(model), watched(other)
    if compiled_first == "another, afterwards":
        compiled(made(1))()
    run()
    optimizer.step()
    classified(other, x, y).backward()
    plain.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_readout_is_the_layer_that_the_error_reaches_first(frozen):
    model = made()
    model.head.requires_grad_(not frozen)
    watcher = NMDACoincidence(model)
    classified(model, *batch(0)).backward()
    seen = {synapses.name: synapses.take() for synapses in watcher.synapses}
    assert {name for name, activity in seen.items() if activity and activity.readout} == (
        set() if frozen else {"head.weight"}
    )
    assert seen["middle.weight"] and seen["encoder.weight"]


def test_a_readout_steps_by_the_number_of_its_outputs_and_another_layer_does_not():
    # Outputs that never change what comes back to the others: the first steps differ by the gain and the gradient's
    # norm alone.
    moved = {}
    for outputs in (5, 20):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, outputs, bias=False))
        model[2].weight.data.copy_(torch.arange(16) / 16 - 0.4)
        optimizer = watched(model, equalisation=0, response_bound=None)
        before = model[2].weight.clone(), model[0].weight.clone()
        model(batch(0)[0]).sum(1).mean().backward()
        optimizer.step()
        rows = (model[2].weight - before[0]).norm(dim=1)
        moved[outputs] = rows[0].item() * outputs**0.5, (model[0].weight - before[1]).norm().item()
    assert moved[20][0] / moved[5][0] == pytest.approx(4, rel=1e-3)
    assert moved[20][1] / moved[5][1] == pytest.approx(1, rel=1e-3)


def test_a_layer_that_was_replaced_before_the_optimizer_was_made_is_pointed_out():
    model = made()
    watcher = NMDACoincidence(model)
    model.head = nn.Linear(16, CLASSES)
    with pytest.warns(UserWarning, match=r"added after the watcher"):
        ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=watcher)


def test_a_layer_that_came_after_its_watcher_is_pointed_out():
    model = nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    optimizer = watched(model)
    model[2] = nn.Linear(16, INPUTS)
    for late in (model[2], nn.Linear(16, INPUTS)):
        with pytest.warns(
            UserWarning, match=r"make a new NMDACoincidence\(model\) and a new optimizer, or .*sp.grow_out"
        ):
            copy.deepcopy(optimizer).add_param_group({"params": late.parameters()})
    with pytest.warns(UserWarning, match="added after the watcher"):
        optimizer.add_param_group({"params": model[2].parameters()})


def test_what_is_watched_or_never_could_be_is_added_without_a_word(recwarn):
    model = nn.Sequential(nn.Linear(INPUTS, 16), nn.LayerNorm((4, 16)), nn.BatchNorm1d(4), nn.Linear(16, CLASSES))
    model.register_parameter("places", nn.Parameter(torch.zeros(4, 16)))
    optimizer = ConsolidatingPlasticityOptimizer(model[0].parameters(), coincidence=NMDACoincidence(model))
    for late in (model[1].parameters(), model[2].parameters(), model[3].parameters(), [model.places]):
        optimizer.add_param_group({"params": late})
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert not recwarn.list


def test_two_optimizers_share_a_watcher():
    model = made()
    watcher = NMDACoincidence(model)
    parts = [model.encoder.parameters(), [*model.middle.parameters(), *model.head.parameters()]]
    optimizers = [ConsolidatingPlasticityOptimizer(part, coincidence=watcher) for part in parts]
    before = model.head.weight.clone()
    classified(model, *batch(0)).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(model.head.weight, before)


def test_of_layers_that_no_optimizer_steps_nothing_is_kept():
    model = made()
    watcher = NMDACoincidence(model)
    optimizer = ConsolidatingPlasticityOptimizer(model.head.parameters(), coincidence=watcher)
    train(model, optimizer, seeds=range(10))
    assert all(len(synapses.passes) <= 1 for synapses in watcher.synapses)


def test_layers_are_frozen_and_thawed_in_any_part_and_checkpoints_follow():
    model = made()
    optimizer = watched(model)
    train(model, optimizer, seeds=range(3))
    model.encoder.requires_grad_(False)
    model.middle.weight.requires_grad_(False)
    gate = optimizer.get_param_gate(model.encoder.weight)
    assert gate.shape == model.encoder.weight.shape and gate.max() < 1
    assert 0 < optimizer.get_diagnostics()["gate_mean"] < 1
    assert "middle.bias" not in optimizer.coincidence.covered()
    bias = model.middle.bias.clone()
    train(model, optimizer, seeds=range(3, 6))
    assert not torch.equal(model.middle.bias, bias)
    for thawed_before in (False, True):
        other = made(1)
        if not thawed_before:
            other.encoder.requires_grad_(False)
            other.middle.weight.requires_grad_(False)
        saved = optimizer.state_dict()
        if thawed_before:
            model.requires_grad_(True)
            train(model, optimizer, seeds=range(6, 9))
            saved = optimizer.state_dict()
        again = watched(other)
        again.load_state_dict(saved)
        assert torch.equal(again.get_param_gate(other.encoder.weight), optimizer.get_param_gate(model.encoder.weight))


def test_an_optimizer_of_biases_alone_is_told_what_to_do():
    model = made()
    for p in model.parameters():
        p.requires_grad_(p.dim() == 1)
    with pytest.raises(ValueError, match="unfreeze a weight first, or leave coincidence out"):
        watched(model)
