"""Conv1d and ConvTranspose1d are torch.nn's in all but the plan that runs them."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

import fastconv1d

ORDINARY: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (4,), "stride": 2, "padding": 3, "dilation": (2,), "groups": 2},
    {"kernel_size": 5, "padding": "same", "bias": False},
    {"kernel_size": 4, "padding": "same", "dilation": 3},
    {"kernel_size": 2, "padding": "valid", "groups": 4},
    {"kernel_size": 3, "padding": (2,), "padding_mode": "reflect", "stride": 3},
    {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "dtype": torch.float64},
]


TRANSPOSED: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (4,), "stride": 2, "padding": 3, "dilation": (2,), "groups": 2},
    {"kernel_size": 16, "stride": (8,), "padding": 4},
    {"kernel_size": 3, "stride": 4, "output_padding": (3,), "bias": False},
    {"kernel_size": 2, "stride": 5, "groups": 4, "dtype": torch.float64},
]
both = pytest.mark.parametrize("name", ["Conv1d", "ConvTranspose1d"])
CONFIGURATIONS = [("Conv1d", configuration) for configuration in ORDINARY]
CONFIGURATIONS += [("ConvTranspose1d", configuration) for configuration in TRANSPOSED]


def pair(name: str, **configuration: Any) -> tuple[Any, Any]:
    """Our layer and torch's, each made right after the same seed."""
    algorithm = configuration.pop("algorithm", None)
    torch.manual_seed(3)
    ours = getattr(fastconv1d, name)(4, 8, algorithm=algorithm, **configuration)
    torch.manual_seed(3)
    return ours, getattr(torch.nn, name)(4, 8, **configuration)


@pytest.mark.parametrize("algorithm", [None, "im2col"])
@pytest.mark.parametrize(("name", "configuration"), CONFIGURATIONS, ids=str)
def test_same_layer(
    name: str, configuration: dict[str, Any], algorithm: str | None, device: torch.device
) -> None:
    ours, theirs = pair(name, **configuration, algorithm=algorithm)
    for (parameter, mine), (other_parameter, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert parameter == other_parameter
        assert torch.equal(mine, other)
    ours.to(device)
    theirs.to(device)
    x = torch.randn(3, 4, 17).to(device, configuration.get("dtype"))
    tolerance = {} if device.type == "cpu" else {"atol": 2e-3, "rtol": 2e-3}
    torch.testing.assert_close(ours(x), theirs(x), **tolerance)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]), **tolerance)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(("name", "configuration"), CONFIGURATIONS, ids=str)
def test_repr_and_state_dict_both_ways(name: str, configuration: dict[str, Any]) -> None:
    ours, theirs = pair(name, **configuration)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    torch.nn.init.zeros_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    assert not theirs.weight.any()


def test_output_size_chooses_the_output_padding() -> None:
    ours, theirs = pair("ConvTranspose1d", kernel_size=5, stride=3, padding=1, dilation=2)
    ours.algorithm = "im2col"
    x = torch.randn(2, 4, 9)
    # (9 - 1) 3 - 2 + 2 (5 - 1) + 1 = 31, and up to 2 more
    for size in ([31], [32], (33,), (2, 8, 32), torch.Size([2, 8, 33])):
        assert ours(x, size).shape == (2, 8, size[-1])
        torch.testing.assert_close(ours(x, output_size=size), theirs(x, output_size=size))
    torch.testing.assert_close(ours(x[0], [33]), theirs(x[0], [33]))
    for wrong in ([30], [34], [8, 31, 1, 1], []):
        with pytest.raises(ValueError) as expected:
            theirs(x, wrong)
        with pytest.raises(ValueError) as raised:
            ours(x, wrong)
        assert str(raised.value) == str(expected.value)


def test_a_transposed_layer_pads_with_nothing_else() -> None:
    ours, theirs = pair("ConvTranspose1d", kernel_size=3)
    ours.padding_mode = theirs.padding_mode = "reflect"
    x = torch.randn(2, 4, 9)
    with pytest.raises(ValueError):
        theirs(x)
    with pytest.raises(ValueError, match="padding_mode is 'reflect', expected 'zeros'"):
        ours(x)


@both
def test_algorithm_is_keyword_only_shown_and_kept(name: str) -> None:
    cls = getattr(fastconv1d, name)
    layer = cls(4, 8, 3, algorithm="im2col")
    assert repr(layer) == f"{name}(4, 8, kernel_size=(3,), stride=(1,), algorithm='im2col')"
    positional = (1, 0, 1, 1, True, "zeros", None, None)
    if name == "ConvTranspose1d":
        positional = (1, 0, 0, 1, True, 1, "zeros", None, None)
    cls(4, 8, 3, *positional)
    with pytest.raises(TypeError):
        cls(4, 8, 3, *positional, "im2col")
    before = fastconv1d.calls()["im2col"]
    x = torch.randn(1, 4, 9)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ):
        assert twin.algorithm == "im2col"
        assert torch.equal(twin(x), layer(x))
    assert fastconv1d.calls()["im2col"] == before + 6


@both
def test_device_and_dtype_arguments(name: str) -> None:
    layer = getattr(fastconv1d, name)(4, 8, 3, device="meta", dtype=torch.bfloat16)
    assert layer.weight.device.type == "meta"
    assert layer.weight.dtype == torch.bfloat16
    assert layer(torch.empty(2, 4, 9, device="meta", dtype=torch.bfloat16)).shape == (
        (2, 8, 7 if name == "Conv1d" else 11)
    )


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("Conv1d", {"groups": 3}),
        ("Conv1d", {"groups": 0}),
        ("Conv1d", {"padding": "full"}),
        ("Conv1d", {"padding": "same", "stride": 2}),
        ("Conv1d", {"padding_mode": "mirror"}),
        ("ConvTranspose1d", {"groups": 3}),
        ("ConvTranspose1d", {"groups": 0}),
        ("ConvTranspose1d", {"padding_mode": "reflect"}),
    ],
    ids=str,
)
def test_the_constructors_errors_are_torchs(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(Exception) as theirs:
        getattr(torch.nn, name)(4, 8, 3, **wrong)
    with pytest.raises(type(theirs.value)) as ours:
        getattr(fastconv1d, name)(4, 8, 3, **wrong)
    assert str(ours.value) == str(theirs.value)


@both
def test_parametrizations_and_hooks_see_torchs_layer(name: str) -> None:
    ours, theirs = pair(name, kernel_size=3)
    for layer in (ours, theirs):
        torch.nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(ours(x), theirs(x))
