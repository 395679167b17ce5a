"""Convolutions with prepacked weights give the numbers of those they were made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from medseg3d.devices import choose_device
from medseg3d.networks.convolutions import convolution
from medseg3d.networks.packed import PackedConvolution, can_pack, packed

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        ((3, 3, 3), (1, 1, 1)),
        ((5, 5, 5), (1, 1, 1)),
        ((3, 3, 3), (2, 1, 2)),
        ((1, 3, 3), (1, 1, 1)),
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3), (2, 1)),
    ],
)
@pytest.mark.parametrize("is_padded", [True, False])
def test_a_convolution_keeps_its_numbers(kernel, stride, groups, bias, is_padded):
    torch.manual_seed(0)
    conv = convolution(6, 12 if groups == 1 else 6, kernel, stride, groups=groups, bias=bias, is_padded=is_padded)
    assert any(isinstance(module, PackedConvolution) for module in packed(nn.Sequential(conv), torch.float32).modules())
    (prepacked,) = packed(nn.Sequential(conv), torch.float32)
    with torch.inference_mode():
        for batch in (1, 3):  # the weights are prepacked for the first size, and serve any other
            x = torch.randn(batch, 6, *(9 + axis for axis in range(len(kernel))))
            torch.testing.assert_close(prepacked(x), conv(x), rtol=1e-5, atol=1e-5)
        if choose_device("cpu").precision != "bfloat16":
            return  # the kernels need units for it
        (half,) = packed(nn.Sequential(conv), torch.bfloat16)
        expected = conv.bfloat16()(x.bfloat16())
        assert half(x).dtype == torch.bfloat16
        torch.testing.assert_close(half(x), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_slices", [3, 5, 7, 8, 9, 18, 40])
def test_fewer_products_give_the_same_sums(num_slices, bias, is_padded):
    torch.manual_seed(0)
    conv = convolution(16, 24, (3, 3, 3), (1, 1, 1), bias=bias, is_padded=is_padded)
    (prepacked,) = packed(nn.Sequential(conv), torch.float32)
    assert isinstance(prepacked, PackedConvolution)
    with torch.inference_mode():
        for batch in (2, 1):
            x = torch.randn(batch, 16, num_slices, 22, 20)
            assert prepacked(x).is_contiguous(memory_format=torch.channels_last_3d)
            exact = nn.functional.conv3d(
                x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=conv.padding
            )
            torch.testing.assert_close(prepacked(x).double(), exact, rtol=0, atol=3e-5 * float(exact.std()))
        torch.testing.assert_close(prepacked(x[:, :, :3]), conv(x[:, :, :3]), rtol=0, atol=1e-4)  # any other size as well
    assert (prepacked.fewer_products is not None) == (is_padded and num_slices != 5)


@pytest.mark.parametrize("kernel", [(3, 1, 1), (3, 3, 1), (3, 5, 5), (5, 3, 3), (1, 1, 3)])
def test_other_kernels_are_convolved_directly(kernel):
    torch.manual_seed(0)
    conv = convolution(16, 16, kernel, (1, 1, 1))
    (prepacked,) = packed(nn.Sequential(conv), torch.float32)
    x = torch.randn(1, 16, 8, 9, 10)
    with torch.inference_mode():
        torch.testing.assert_close(prepacked(x), conv(x), rtol=1e-5, atol=1e-5)
    assert prepacked.fewer_products is None


@pytest.mark.parametrize(
    ("size", "stride"), [((1, 9, 9), (1, 1, 1)), ((8, 8, 8), (1, 1, 2)), ((8, 8, 8), (2, 1, 1)), ((8, 9, 9), (1, 1, 1))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_channel_keeps_its_numbers(size, stride, dtype):
    torch.manual_seed(0)
    conv = convolution(1, 16, (3, 3, 3), stride).to(dtype)
    (prepacked,) = packed(nn.Sequential(conv), dtype)
    x = torch.randn(1, 1, *size).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(prepacked(x), conv(x), rtol=2e-2, atol=2e-2)


def test_threads_share_what_is_arranged():
    torch.manual_seed(0)
    conv = convolution(16, 16, (3, 3, 3), (1, 1, 1))
    x = torch.randn(1, 16, 8, 8, 8)
    for _ in range(20):
        (prepacked,) = packed(nn.Sequential(conv), torch.float32)
        with ThreadPoolExecutor(4) as pool, torch.inference_mode():
            results = list(pool.map(prepacked, [x] * 4))
        assert all(torch.equal(result, results[0]) for result in results)
