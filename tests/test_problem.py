"""Problem: its geometry and validation are torch's own."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv1d import config
from fastconv1d.problem import Problem, UnsupportedError, row_alignment

LAYER_67 = Problem(32, 64, 128, 131072, 3)


def torch_shape(problem: Problem) -> tuple[int, ...] | None:
    """The shape that torch computes on the meta device; None if it refuses."""
    x = torch.empty(problem.input_shape, device="meta")
    w = torch.empty(problem.weight_shape, device="meta")
    if problem.transposed and problem.output_padding >= max(problem.stride, problem.dilation):
        return None  # torch checks this on real tensors only
    try:
        return tuple(
            torch.ops.aten.convolution(
                x, w, None, [problem.stride], [problem.padding], [problem.dilation],
                problem.transposed, [problem.output_padding], problem.groups,
            ).shape
        )  # fmt: skip
    except RuntimeError:
        return None


def accepts(problem: Problem) -> bool:
    try:
        problem.validate()
    except ValueError:
        return False
    return True


def test_every_small_convolution_has_torchs_shape() -> None:
    checked = 0
    for length, kernel, stride, padding, dilation in product(
        range(1, 8), range(1, 5), range(1, 4), range(4), range(1, 4)
    ):
        problem = Problem(2, 2, 4, length, kernel, stride, padding, dilation)
        shape = torch_shape(problem)
        assert accepts(problem) == (shape is not None), problem
        if shape is not None:
            assert problem.output_shape == shape, problem
            checked += 1
    assert checked > 500


def test_every_small_transposed_convolution_has_torchs_shape() -> None:
    checked = 0
    for length, kernel, stride, padding, dilation, extra in product(
        range(1, 5), range(1, 4), range(1, 4), range(3), range(1, 3), range(3)
    ):
        problem = Problem(2, 2, 4, length, kernel, stride, padding, dilation, 2, True, extra)
        shape = torch_shape(problem)
        assert accepts(problem) == (shape is not None and shape[2] > 0), problem
        if accepts(problem):
            assert problem.output_shape == shape, problem
            checked += 1
    assert checked > 100


sizes = st.integers(1, 9)


@settings(max_examples=200, deadline=None)
@given(
    batch=sizes, groups=st.integers(1, 4), per_in=sizes, per_out=sizes, length=st.integers(1, 64),
    kernel=sizes, stride=st.integers(1, 5), padding=st.integers(0, 9), dilation=st.integers(1, 5),
    transposed=st.booleans(),
)  # fmt: skip
def test_random_geometry(
    batch: int, groups: int, per_in: int, per_out: int, length: int, kernel: int, stride: int,
    padding: int, dilation: int, transposed: bool,
) -> None:  # fmt: skip
    problem = Problem(
        batch, per_in * groups, per_out * groups, length, kernel, stride, padding, dilation, groups,
        transposed,
    )  # fmt: skip
    shape = torch_shape(problem)
    assert accepts(problem) == (shape is not None and shape[2] > 0)
    if not accepts(problem):
        return
    assert problem.output_shape == shape
    # A convolution of ones counts the taps inside the input: half of the FLOPs without padding.
    if padding == 0:
        x, w = torch.ones(problem.input_shape), torch.ones(problem.weight_shape)
        run = F.conv_transpose1d if transposed else F.conv1d
        y = run(x, w, None, stride=stride, dilation=dilation, groups=groups)
        assert problem.flops == 2 * int(y.double().sum())


def test_flops_and_bytes_of_layer_67() -> None:
    assert LAYER_67.output_shape == (32, 128, 131070)
    assert LAYER_67.flops == 2 * 32 * 131070 * 64 * 128 * 3
    elements = 32 * 64 * 131072 + 128 * 64 * 3 + 32 * 128 * 131070
    assert LAYER_67.bytes == 4 * elements
    assert LAYER_67.gradient_flops == 2 * LAYER_67.flops
    more = 32 * 64 * 131072 + 128 * 64 * 3  # input and weight are read, and their gradients written
    assert LAYER_67.gradient_bytes == 4 * (elements + more)
    assert replace(LAYER_67, bias=True).gradient_bytes == 4 * (elements + more + 128)
    assert replace(LAYER_67, mode="bf16", bias=True).bytes == 2 * (elements + 128)
    assert replace(LAYER_67, mode="fp64").dtype == torch.float64


def test_layer_76_needs_64_bits() -> None:
    problem = Problem(64, 64, 128, 524280, 3, stride=3, dilation=4)
    assert problem.input_elements == 2_147_450_880
    assert problem.length_out == 174758


def test_buckets_cover_and_are_few() -> None:
    for length in (1, 2, 3, 100, 131072, 131073):
        bucketed = replace(LAYER_67, length=length, batch=17).bucketed()
        assert length <= bucketed.length <= 1.125 * length
        assert bucketed.batch == 18
        assert bucketed.bucketed() == bucketed
    assert replace(LAYER_67, batch=0).bucketed().batch == 0
    # 64, then 128 apart, in three alignments of fp32 rows.
    assert len({replace(LAYER_67, length=n).bucketed() for n in range(1000, 2000)}) == 9 * 3


def test_buckets_keep_the_alignment_of_rows() -> None:
    for length, size, aligned in ((131072, 4, 16), (131070, 4, 8), (131071, 4, 4), (417, 2, 2)):
        mode = "tf32" if size == 4 else "bf16"
        problem = replace(LAYER_67, length=length, mode=mode)
        assert problem.aligned == problem.bucketed().aligned == aligned
    assert replace(LAYER_67, length=417, row_alignment=16).aligned == 16
    rows = torch.empty(2, 3, 8)
    assert row_alignment(rows) == 0
    assert row_alignment(rows[..., :5]) == 16
    assert row_alignment(torch.empty(2, 3, 10)[..., :8]) == 8
    assert row_alignment(torch.empty(2, 8, 3).transpose(1, 2)) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stride": 0}, "stride is 0, expected at least 1"),
        ({"padding": -1}, "padding is -1, expected at least 0"),
        ({"dilation": -2}, "dilation is -2, expected at least 1"),
        ({"groups": 3}, "channels_in is 64, expected a multiple of groups=3"),
        ({"channels_out": 9, "groups": 2}, "channels_out is 9, expected a multiple of groups=2"),
        ({"length": 2}, "length 2, with padding 2, expected at least the kernel's reach 3"),
        ({"mode": "int8"}, "mode is 'int8', expected one of"),
        ({"output_padding": 1}, "output_padding is 1, expected 0 unless transposed"),
        ({"transposed": True, "output_padding": 1}, "expected less than stride=1 or dilation=1"),
        ({"transposed": True, "length": 1, "padding": 2}, "padding is 2, expected a smaller one"),
    ],
)
def test_validation_names_argument_value_and_expectation(change: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        replace(LAYER_67, **change).validate()
    assert words in str(caught.value)


def arguments(**changes: object) -> dict:
    x, w, b = torch.zeros(2, 4, 9), torch.zeros(6, 2, 3), torch.zeros(6)
    return {
        "input": x, "weight": w, "bias": b, "stride": [2], "padding": [1], "dilation": [1],
        "transposed": False, "output_padding": [0], "groups": 2, **changes,
    }  # fmt: skip


def test_from_tensors() -> None:
    assert Problem.from_tensors(**arguments()) == Problem(
        2, 4, 6, 9, 3, stride=2, padding=1, groups=2, bias=True, mode="ieee"
    )
    problem = Problem.from_tensors(
        **arguments(weight=torch.zeros(4, 3, 3), transposed=True, output_padding=[1])
    )
    assert problem.output_shape == (2, 6, 18)
    half = {key: torch.zeros_like(arguments()[key]).half() for key in ("input", "weight", "bias")}
    assert Problem.from_tensors(**arguments(**half)).mode == "fp16"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": torch.zeros(2, 5, 9)}, "input has 5 channels, expected groups x weight's"),
        ({"weight": torch.zeros(6, 2)}, "weight has shape (6, 2), expected 3 dimensions"),
        ({"bias": torch.zeros(5)}, "bias has shape (5,), expected (6,)"),
        ({"bias": torch.zeros(6).double()}, "bias is torch.float64, expected input's dtype"),
        ({"weight": torch.zeros(6, 2, 3, device="meta")}, "weight is on meta, expected input's"),
        ({"stride": [1, 1]}, "stride is (1, 1), expected one int"),
        ({"groups": 0}, "groups is 0, expected at least 1"),
    ],
)
def test_from_tensors_refuses(changes: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Problem.from_tensors(**arguments(**changes))
    assert words in str(caught.value)
    assert not isinstance(caught.value, UnsupportedError)


@pytest.mark.parametrize("to", [torch.int32, torch.complex64, "meta"])
def test_from_tensors_leaves_other_dtypes_and_devices_to_aten(to: torch.dtype | str) -> None:
    with pytest.raises(UnsupportedError):
        changed = {key: arguments()[key].to(to) for key in ("input", "weight", "bias")}
        Problem.from_tensors(**arguments(**changed))


def test_modes_follow_the_numbers_of_args_h() -> None:
    assert config.MODES == ("tf32", "ieee", "bf16", "fp16", "fp64")


def test_fp32_mode_follows_both_of_torchs_switches() -> None:
    cudnn = torch.backends.cudnn
    precision = cudnn.conv.fp32_precision
    try:
        cudnn.allow_tf32 = False
        assert config.fp32_mode() == "ieee"
        cudnn.allow_tf32 = True
        assert config.fp32_mode() == "tf32"
        # The newer switch alone: torch now refuses to say what allow_tf32 is.
        cudnn.conv.fp32_precision = "ieee"
        assert config.fp32_mode() == "ieee"
    finally:
        cudnn.allow_tf32 = True
        cudnn.conv.fp32_precision = precision


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_build_timeout_must_be_a_positive_number(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTCONV1D_BUILD_TIMEOUT", text)
    with pytest.raises(ValueError, match="FASTCONV1D_BUILD_TIMEOUT is"):
        config.build_timeout()


def test_strict_and_cache_dir_read_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("FASTCONV1D_STRICT", "0")
    assert not config.strict()
    monkeypatch.setenv("FASTCONV1D_STRICT", "1")
    assert config.strict()
    monkeypatch.setenv("FASTCONV1D_CACHE_DIR", str(tmp_path))
    assert config.cache_dir() == tmp_path
    monkeypatch.delenv("FASTCONV1D_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert config.cache_dir() == tmp_path / "fastconv1d"


def test_the_least_length_has_outputs_and_a_shorter_one_has_none_or_misses_taps() -> None:
    for stride, padding, dilation, kernel_size, extra in product(
        (1, 2, 3, 8), range(9), (1, 2, 3), (1, 2, 5), (0, 1)
    ):
        problem = Problem(
            1, 1, 1, 1, kernel_size, stride=stride, padding=padding, dilation=dilation,
            transposed=True, output_padding=extra if extra < max(stride, dilation) else 0,
        )  # fmt: skip
        least = replace(problem, length=problem.least_length)
        least.validate()
        shorter = replace(least, length=least.length - 1)
        assert shorter.length < least.reach or shorter.length_out < 1
    assert Problem(1, 1, 1, 1, 3, padding=2, dilation=4).least_length == 9


ORDINARY_OR_NOT = [
    Problem(2, 6, 4, 15, 3, stride=2, padding=1, dilation=2, groups=2, bias=True),
    Problem(2, 6, 4, 15, 3, stride=2, padding=1, transposed=True, output_padding=1, bias=True),
    Problem(1, 6, 9, 11, 4, stride=3, dilation=2, padding=5, groups=3, transposed=True),
    Problem(3, 2, 3, 1, 5, stride=4, padding=1, transposed=True, output_padding=3),
    Problem(2, 3, 4, 12, 3, stride=2, dilation=6, output_padding=5, padding=2, transposed=True),
]


@pytest.mark.parametrize("problem", ORDINARY_OR_NOT, ids=range(len(ORDINARY_OR_NOT)))
def test_the_ordinary_problem_has_the_same_gradient_of_the_weight(problem: Problem) -> None:
    x = torch.randn(problem.input_shape, dtype=torch.float64)
    weight = torch.randn(problem.weight_shape, dtype=torch.float64, requires_grad=True)
    grad_output = torch.randn(problem.output_shape, dtype=torch.float64)

    def convolve(p: Problem, x: torch.Tensor) -> torch.Tensor:
        return torch.convolution(
            x, weight, None, [p.stride], [p.padding], [p.dilation], p.transposed,
            [p.output_padding], p.groups,
        )  # fmt: skip

    (right,) = torch.autograd.grad(convolve(problem, x), weight, grad_output)
    ordinary = problem.ordinary
    ordinary.validate()
    assert not ordinary.transposed
    assert ordinary.weight_shape == problem.weight_shape
    assert ordinary.bias == (problem.bias and not problem.transposed)
    if problem.transposed:
        x, grad_output = grad_output, x
    assert ordinary.input_shape == x.shape
    output = convolve(ordinary, x)
    assert ordinary.output_shape == output.shape
    positions = grad_output.shape[2]
    assert (ordinary.length_out > positions) == (problem.output_padding >= problem.stride)
    (gradient,) = torch.autograd.grad(output[:, :, :positions], weight, grad_output)
    torch.testing.assert_close(gradient, right)


def test_an_ordinary_problem_is_its_own() -> None:
    assert LAYER_67.ordinary is LAYER_67
    transposed = replace(LAYER_67, transposed=True, channels_out=64, row_alignment=2)
    assert transposed.ordinary.row_alignment == 0
    assert transposed.ordinary.flops == transposed.flops
