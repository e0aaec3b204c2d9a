"""enable(): any model's own convolutions on our plans, and every other convolution untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

import fastconv1d
from fastconv1d import ops


@pytest.fixture(autouse=True)
def _im2col(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Force a plan of our own, so that ours can be told from ATen's; leave nothing enabled."""
    monkeypatch.setenv("FASTCONV1D_PLAN", "im2col")
    yield
    for device in ("cpu", "cuda"):
        fastconv1d.disable(device)


def ran() -> int:
    return fastconv1d.calls()["im2col"]


def tensors(
    device: torch.device, conv: Callable[..., Tensor] = F.conv1d
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = (6, 2) if conv is F.conv1d else (4, 3)
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((2, 4, 11), (rows, columns, 3), (6,)))
    return x.to(device), w.to(device), b.to(device)


both = pytest.mark.parametrize(
    "convolve", [F.conv1d, F.conv_transpose1d], ids=["ordinary", "transposed"]
)


@both
def test_on_off_and_as_a_context(device: torch.device, convolve: Callable[..., Tensor]) -> None:
    x, w, b = tensors(device, convolve)
    expected = convolve(x, w, b, groups=2)
    before = ran()
    fastconv1d.enable(device.type)
    torch.testing.assert_close(convolve(x, w, b, groups=2), expected)
    assert ran() == before + 1
    fastconv1d.enable(device.type)
    with fastconv1d.enabled(device.type):
        convolve(x, w, b, groups=2)
    convolve(x, w, b, groups=2)  # still on: it was before the with
    assert ran() == before + 3
    fastconv1d.disable(device.type)
    fastconv1d.disable(device.type)
    convolve(x, w, b, groups=2)
    assert ran() == before + 3
    with pytest.raises(ZeroDivisionError), fastconv1d.enabled(device.type):
        raise ZeroDivisionError
    convolve(x, w, b, groups=2)
    assert ran() == before + 3


def test_a_users_own_model(device: torch.device) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv1d(4, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv1d(8, 4, 4, stride=2, padding_mode="circular", padding=2),
        torch.nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
    ).to(device, torch.float64)
    x = torch.randn(2, 4, 20, dtype=torch.float64).to(device)
    expected = model(x)
    before = ran()
    with fastconv1d.enabled(device.type):
        y = model(x)
        y.square().sum().backward()
    assert ran() >= before + 3
    torch.testing.assert_close(y, expected)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for mine, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_other_convolutions_are_untouched(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTCONV1D_PLAN")
    image, volume = torch.randn(2, 4, 9, 9).to(device), torch.randn(2, 4, 5, 5, 5).to(device)
    w2, w3 = torch.randn(6, 4, 3, 3).to(device), torch.randn(6, 4, 3, 3, 3).to(device)
    x, wt = torch.randn(2, 4, 9).to(device), torch.randn(4, 6, 3).to(device)
    last = image.to(memory_format=torch.channels_last)

    def run() -> list[Tensor]:
        return [
            F.conv2d(image, w2, padding=1),
            F.conv2d(last, w2, padding=1),
            F.conv3d(volume, w3),
            F.conv_transpose1d(x, wt, stride=2),
        ]

    expected = run()
    before = fastconv1d.calls()
    with fastconv1d.enabled(device.type):
        answers = run()
    for answer, other in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer, other)
        assert answer.stride() == other.stride()
    after = fastconv1d.calls()
    assert sum(after.values()) - sum(before.values()) <= 1  # the 1-D transpose is seen, no other


@both
def test_under_transforms_autocast_and_compile(
    device: torch.device, convolve: Callable[..., Tensor]
) -> None:
    x, w, b = tensors(device, convolve)

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return convolve(x[None], w, b, groups=2).pow(3).sum()

    def conv(x: Tensor) -> Tensor:
        return convolve(x, w, b, padding=1, groups=2).relu()

    def low(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return convolve(x.float(), w.float(), b.float(), groups=2)

    samples = vmap(grad(loss), (None, 0))
    torch._dynamo.reset()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    expected = samples(w, x), conv(x)
    before = ran()
    with fastconv1d.enabled(device.type):
        torch.testing.assert_close(samples(w, x), expected[0])
        assert ran() > before
        before = ran()
        torch.testing.assert_close(compiled(x), expected[1])
        assert ran() == before + 1
    torch.testing.assert_close(compiled(x), expected[1])
    # In fp32, of the same numbers: in 16 bits torch may round twice.
    rounded = [tensor.bfloat16().float() for tensor in (x, w, b)]
    low_expected = convolve(*rounded, groups=2).bfloat16()
    with pytest.MonkeyPatch.context() as patch, fastconv1d.enabled(device.type):
        patch.delenv("FASTCONV1D_PLAN")
        assert low(x).dtype == torch.bfloat16
        torch.testing.assert_close(low(x), low_expected)


@both
def test_derivatives(device: torch.device, convolve: Callable[..., Tensor]) -> None:
    leaves = [tensor.requires_grad_() for tensor in tensors(device, convolve)]

    def conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return convolve(x, w, b, stride=2, padding=1, groups=2)

    with fastconv1d.enabled(device.type):
        before = ran()
        conv(*leaves)
        assert ran() == before + 1
        assert torch.autograd.gradcheck(conv, leaves, check_forward_ad=True)
        # Double backward asks for convolutions of the other kind, too.
        assert torch.autograd.gradgradcheck(conv, leaves, fast_mode=True)


def test_errors_are_torchs(device: torch.device) -> None:
    x, w, _ = tensors(device)
    with pytest.raises(RuntimeError) as plain:
        F.conv1d(x, w, groups=3)
    with fastconv1d.enabled(device.type), pytest.raises(RuntimeError) as ours:
        F.conv1d(x, w, groups=3)
    assert str(ours.value).splitlines()[0] == str(plain.value).splitlines()[0]


def test_a_device_that_is_none() -> None:
    with pytest.raises(ValueError, match="device is 'tpu', expected 'cuda' or 'cpu'"):
        fastconv1d.enable("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_strict_is_an_error_and_else_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RuntimeError, match="torch sees no CUDA device"):
        fastconv1d.enable()
    monkeypatch.setenv("FASTCONV1D_STRICT", "0")
    ops._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="torch sees no CUDA device"), fastconv1d.enabled():
        pass
