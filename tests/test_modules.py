"""Conv1d is torch.nn.Conv1d in all but the plan that runs it."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

import fastconv1d

CONFIGURATIONS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (4,), "stride": 2, "padding": 3, "dilation": (2,), "groups": 2},
    {"kernel_size": 5, "padding": "same", "bias": False},
    {"kernel_size": 4, "padding": "same", "dilation": 3},
    {"kernel_size": 2, "padding": "valid", "groups": 4},
    {"kernel_size": 3, "padding": (2,), "padding_mode": "reflect", "stride": 3},
    {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "dtype": torch.float64},
]


def pair(**configuration: Any) -> tuple[fastconv1d.Conv1d, torch.nn.Conv1d]:
    """Our layer and torch's, each made right after the same seed."""
    algorithm = configuration.pop("algorithm", None)
    torch.manual_seed(3)
    ours = fastconv1d.Conv1d(4, 8, algorithm=algorithm, **configuration)
    torch.manual_seed(3)
    return ours, torch.nn.Conv1d(4, 8, **configuration)


@pytest.mark.parametrize("algorithm", [None, "im2col"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_same_layer(
    configuration: dict[str, Any], algorithm: str | None, device: torch.device
) -> None:
    ours, theirs = pair(**configuration, algorithm=algorithm)
    for (name, mine), (other_name, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == other_name
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


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_repr_and_state_dict_both_ways(configuration: dict[str, Any]) -> None:
    ours, theirs = pair(**configuration)
    assert isinstance(ours, torch.nn.Conv1d)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    torch.nn.init.zeros_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    assert not theirs.weight.any()


def test_algorithm_is_keyword_only_shown_and_kept() -> None:
    layer = fastconv1d.Conv1d(4, 8, 3, algorithm="im2col")
    assert repr(layer) == "Conv1d(4, 8, kernel_size=(3,), stride=(1,), algorithm='im2col')"
    with pytest.raises(TypeError):
        fastconv1d.Conv1d(4, 8, 3, 1, 0, 1, 1, True, "zeros", None, None, "im2col")
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


def test_device_and_dtype_arguments() -> None:
    layer = fastconv1d.Conv1d(4, 8, 3, device="meta", dtype=torch.bfloat16)
    assert layer.weight.device.type == "meta"
    assert layer.weight.dtype == torch.bfloat16
    assert layer(torch.empty(2, 4, 9, device="meta", dtype=torch.bfloat16)).shape == (2, 8, 7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"groups": 3},
        {"groups": 0},
        {"padding": "full"},
        {"padding": "same", "stride": 2},
        {"padding_mode": "mirror"},
    ],
    ids=str,
)
def test_the_constructors_errors_are_torchs(wrong: dict[str, Any]) -> None:
    with pytest.raises(Exception) as theirs:
        torch.nn.Conv1d(4, 8, 3, **wrong)
    with pytest.raises(type(theirs.value)) as ours:
        fastconv1d.Conv1d(4, 8, 3, **wrong)
    assert str(ours.value) == str(theirs.value)


def test_parametrizations_and_hooks_see_a_conv1d() -> None:
    ours, theirs = pair(kernel_size=3)
    for layer in (ours, theirs):
        torch.nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(ours(x), theirs(x))
