"""Two processes that share a batch end with the weights of one process that has all of it."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from sp import NMDACoincidence
from tests.test_conformance import MAKERS, selective

STEPS, BATCH = 24, 8
KINDS = {**MAKERS, "selective max": lambda model: selective(model, normalisation="max", weight_decay=0.1)}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 11), nn.LayerNorm(11), nn.ReLU(), nn.Linear(11, 3)).double()


def train(model, optimizer, part=slice(None)):
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        x = torch.randn(BATCH, 6, generator=generator, dtype=torch.float64)[part]
        y = torch.randint(3, (BATCH,), generator=generator)[part]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        # In one process a gradient is not finite: both skip the step.
        (loss * torch.nan if step == 5 and part in (slice(None), slice(0, BATCH // 2)) else loss).backward()
        optimizer.step()
    return optimizer.get_diagnostics()


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        train_all(rank, folder)
        dist.barrier()  # a process that leaves early would break what the other still waits for
    finally:
        dist.destroy_process_group()


def train_all(rank, folder):
    torch.save(patches((slice(2), slice(2, None))[rank]).presynaptic, f"{folder}/patches {rank}.pt")
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    for kind, make in KINDS.items():
        model = network()
        found = {"diagnostics": train(DistributedDataParallel(model), make(model), half), **model.state_dict()}
        torch.save(found, f"{folder}/ddp {kind} {rank}.pt")
        model = network()
        fully_shard(model)
        optimizer = make(model)
        if optimizer.__dict__.get("coincidence") is not None:
            F.cross_entropy(model(torch.ones(2, 6, dtype=torch.float64)), torch.zeros(2, dtype=torch.int64)).backward()
            with pytest.raises(TypeError, match="sharded by fully_shard"):
                optimizer.step()
            continue
        found = {"diagnostics": train(model, optimizer, half)}
        assert all(isinstance(p, DTensor) for p in model.parameters())
        found |= {name: value.full_tensor() for name, value in model.state_dict().items()}
        torch.save(found, f"{folder}/shard {kind} {rank}.pt")


def patches(part):
    """Patches drawn from images of which the first two are bright, by a process that has a part of them."""
    torch.manual_seed(0)
    images = 0.1 * torch.rand(64, 1, 12, 12)
    images[:2] += 1
    model = nn.Conv2d(1, 4, 3)
    watcher = NMDACoincidence(model)
    model(images[part]).square().mean().backward()
    return watcher.synapses[0].take(256, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        torch.multiprocessing.spawn(work, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["ddp", "shard"])
def test_two_processes_end_with_the_weights_of_one(folder, form, kind):
    if form == "shard" and kind in ("coincidence", "sketched"):
        assert not (folder / f"shard {kind} 0.pt").exists()  # refused, as `work` checks
        return
    model = network()
    expected = {"diagnostics": train(model, KINDS[kind](model)), **model.state_dict()}
    for rank in (0, 1):
        found = torch.load(folder / f"{form} {kind} {rank}.pt", weights_only=True)
        diagnostics = found.pop("diagnostics"), dict(expected["diagnostics"])
        assert diagnostics[0]["skipped_steps"] == diagnostics[1]["skipped_steps"] == 1
        assert diagnostics[0]["gate_mean"] == pytest.approx(diagnostics[1]["gate_mean"], rel=1e-4)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)


def test_patches_weigh_the_same_whichever_process_has_them(folder):
    found = [torch.load(folder / f"patches {rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*found) and 256 <= found[0].shape[1] < 300
    length = patches(slice(None)).presynaptic.square().sum(-1).mean()
    assert found[0].square().sum(-1).mean() == pytest.approx(float(length), rel=0.05)
