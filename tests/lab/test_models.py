"""The networks of the experiments take flat images and say what they cannot be built from."""

import pytest
import torch

from sp.lab.networks import MODELS, mlp_size


@pytest.mark.parametrize("name", [name for name in MODELS if name != "last_block"])  # that one is in test_pretrained
@pytest.mark.parametrize("inputs", [64, 784])
def test_each_gives_logits_that_depend_on_the_image_and_trains_every_parameter(name, inputs):
    torch.manual_seed(0)
    hidden = {"convolutional": (4, 6, 8), "recurrent": (8,)}.get(name, (8, 8))
    model = MODELS[name](inputs, hidden, 10)
    logits = model(torch.randn(3, inputs))
    assert logits.shape == (3, 10) and not torch.allclose(logits[0], logits[1])
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_colour_image_has_three_planes_and_its_contrast_does_not_matter():
    torch.manual_seed(0)
    model = MODELS["normalised"](3 * 16**2, (8, 16, 24), 10)
    x = torch.randn(5, 3 * 16**2)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() > 1][:3] == [(8, 3, 3, 3), (16, 8, 3, 3), (24, 256)]
    with torch.no_grad():
        model[1].bias.zero_()
        torch.testing.assert_close(model(100 * x), model(x), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(model(x.reshape(5, 3, 256).flip(1).flatten(1)), model(x), atol=1e-2)
    assert MODELS["convolutional"](3 * 16**2, (4, 6, 8), 10)[1].in_channels == 3


def test_the_size_of_a_perceptron_is_counted_without_making_it():
    assert mlp_size(7, (6, 5), 4) == sum(p.numel() for p in MODELS["mlp"](7, (6, 5), 4).parameters())


@pytest.mark.parametrize(
    ("name", "inputs", "hidden", "message"),
    [
        ("convolutional", 64, (8, 8), r"hidden must be three widths for a convolutional network.*got \(8, 8\)"),
        ("convolutional", 60, (4, 4, 8), "inputs must be the pixels of a square image, such as 784, got 60"),
        ("normalised", 192, (8,), r"hidden must be two widths or more for a normalised network.*got \(8,\)"),
        ("transformer", 60, (8,), "inputs must be the pixels of a square image, such as 784, got 60"),
        ("transformer", 64, (6,), "hidden must be a multiple of 4, the number of heads, for a transformer, got 6"),
        ("recurrent", 64, (8, 8), r"hidden must be one width for a recurrent network, such as \(64,\), got \(8, 8\)"),
    ],
)
def test_what_a_network_cannot_be_made_of_is_an_error(name, inputs, hidden, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](inputs, hidden, 10)
