"""Convolutions of small maps in bf16 are as accurate as those of PyTorch, and give the same bits each time."""

import pytest
import torch
from torch import nn

from model.conv import Conv2d as Ours
from model.conv import SideBySide, from_wide, gap, to_wide

# images, input channels, output channels, size, stride
SHAPES = [
    (64, 32, 48, 4, 1),
    (32, 16, 32, 8, 2),
    (32, 32, 16, 8, 1),
    (12, 16, 32, 16, 2),
    (6, 16, 8, 5, 2),
    (4, 8, 8, 1, 1),
]


def pair(shape, kernel_size, bias=True):
    """(our layer, PyTorch's with equal weights), (images, gradient of the outputs). Both tensors are exact in bf16."""
    generator = torch.Generator().manual_seed(0)
    images, in_channels, out_channels, size, stride = shape
    arguments = in_channels, out_channels, kernel_size, stride, kernel_size // 2
    torch.manual_seed(0)
    ours = Ours(*arguments, bias=bias).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    plain = nn.Conv2d(*arguments, bias=bias).to(memory_format=torch.channels_last)
    out = (size - 1) // stride + 1

    def draw(*shape):
        values = torch.randn(shape, generator=generator).bfloat16().float()
        return values.contiguous(memory_format=torch.channels_last)

    return ours, plain, draw(images, in_channels, size, size), draw(images, out_channels, out, out)


def results(layer, x, grad, dtype=torch.bfloat16):
    """(outputs, gradients of the input, the weight and the bias), in autocast if dtype is bf16."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        outputs = layer(x)
    outputs.backward(grad.to(outputs.dtype))
    return [outputs.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_near_float64_as_the_library(shape, kernel_size):
    """Outputs and gradients meet a tolerance that PyTorch's convolution in bf16 meets too."""
    ours, plain, x, grad = pair(shape, kernel_size)
    assert all(map(torch.equal, ours.parameters(), plain.parameters()))
    assert list(ours.state_dict()) == list(plain.state_dict())
    for layer in (ours, plain):  # weights that are exact in bf16, so that only the rounding of results is compared
        for parameter in layer.parameters():
            parameter.data = parameter.data.bfloat16().float()
    here, library = results(ours, x, grad), results(plain, x, grad)
    exact = results(plain.double(), x.double(), grad.double(), torch.float64)
    for ours_is, library_is, true in zip(here, library, exact, strict=True):
        assert ours_is.dtype == library_is.dtype and ours_is.shape == library_is.shape
        for found in (library_is, ours_is):
            torch.testing.assert_close(found.double(), true, rtol=2**-8, atol=2**-8 * true.abs().mean().item())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_the_same_bits_each_time(shape, kernel_size, threads):
    """The bits are the same twice in a row, and after another layer and another batch."""
    torch.set_num_threads(threads)
    ours, _, x, grad = pair(shape, kernel_size)
    first = results(ours, x, grad)
    second = results(ours, x, grad)
    other, _, y, other_grad = pair((8, 24, 40, 6, 1), kernel_size)
    results(other, y, other_grad)
    results(ours, x[:4] + 1, grad[:4])
    third = results(ours, x, grad)
    assert all(map(torch.equal, first, second)) and all(map(torch.equal, first, third))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_memory_stays_in_channels_last(shape):
    for kernel_size in (1, 3):
        ours, _, x, grad = pair(shape, kernel_size)
        outputs, x_grad, weight_grad, _ = results(ours, x, grad)
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (outputs, x_grad, weight_grad))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 4, 5, 8])
def test_from_wide_is_the_inverse_of_to_wide(stride, width):
    for images in (1, 6, 32, 96):
        x = torch.randn(images, 3, 2, width)
        wide = to_wide(x, gap(x, stride))
        assert wide.shape[3] % stride == 0 and torch.equal(from_wide(wide, images, width), x)
        assert wide.count_nonzero() == x.count_nonzero()


def test_where_it_is_used():
    """It is used in bf16 autocast for small maps in channels_last with several images. Otherwise PyTorch's is used."""
    ours, plain, x, grad = pair(SHAPES[0], 3)
    assert isinstance(output_of(ours, x).grad_fn, SideBySide._backward_cls)
    large = torch.randn(2, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    for other in (large, x[:1], x.contiguous()):
        assert not isinstance(output_of(ours, other).grad_fn, SideBySide._backward_cls)
        assert torch.equal(output_of(ours, other), output_of(plain, other))
    for same in zip(results(ours, x, grad, torch.float32), results(plain, x, grad, torch.float32), strict=True):
        assert torch.equal(*same)


def output_of(layer, x):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_gradients_that_nobody_wants_are_left_out(kernel_size):
    """A frozen layer computes only the gradient of the input, and a first layer only that of the weight."""
    ours, _, x, grad = pair(SHAPES[0], kernel_size, bias=False)
    full = results(ours, x, grad)
    output_of(ours, x).backward(grad.bfloat16())
    assert torch.equal(ours.weight.grad, 2 * full[2])
    ours.requires_grad_(False)
    seen = x.clone().requires_grad_()
    output_of(ours, seen).backward(grad.bfloat16())
    assert torch.equal(seen.grad, full[1])
