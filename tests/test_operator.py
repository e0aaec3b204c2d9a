"""conv1d, conv_transpose1d and the operator behind them: torch.nn.functional is the oracle, errors
included."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

import fastconv1d
from fastconv1d import build, ops, plan, timing

ALGORITHMS = ["", "im2col"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _strict_fp32() -> Iterator[None]:
    """fp32 without TF32 on both sides, so that tolerances can be tight."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


class Kind(NamedTuple):
    """A function of ours and torch's own; `more` is what only the transposed one has."""

    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    more: dict[str, Any]

    @property
    def transposed(self) -> bool:
        return bool(self.more)


ORDINARY = Kind(fastconv1d.conv1d, F.conv1d, {})
TRANSPOSED = Kind(fastconv1d.conv_transpose1d, F.conv_transpose1d, {"output_padding": 1})
both = pytest.mark.parametrize("kind", [ORDINARY, TRANSPOSED], ids=["ordinary", "transposed"])


def tensors(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    groups: int = 2,
    kind: Kind = ORDINARY,
) -> tuple[Tensor, Tensor, Tensor]:
    """input (2, 4, 11), weight (6, 4/groups, 3) or transposed (4, 6/groups, 3), bias (6,)"""
    rows, columns = (4, 6) if kind.transposed else (6, 4)
    x, w, b = torch.randn(2, 4, 11), torch.randn(rows, columns // groups, 3), torch.randn(6)
    return x.to(device, dtype), w.to(device, dtype), b.to(device, dtype)


def supported(algorithm: str, device: torch.device, dtype: torch.dtype) -> bool:
    return algorithm != "im2col" or device.type == "cuda" or dtype.itemsize >= 4


# --- values ---------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(device: torch.device, dtype: torch.dtype, algorithm: str, kind: Kind) -> None:
    x, w, b = tensors(device, dtype, kind=kind)
    if not supported(algorithm, device, dtype):
        with pytest.raises(RuntimeError, match=r"no (fp16|bf16) arithmetic on the CPU"):
            kind.ours(x, w, b, groups=2, algorithm=algorithm)
        return
    geometry = {"stride": 2, "padding": 3, "dilation": 2, "groups": 2, **kind.more}
    for bias in (b, None):
        y = kind.ours(x, w, bias, **geometry, algorithm=algorithm)
        assert y.dtype == dtype
        assert y.is_contiguous()
        # torch rounds sums of 16-bit types more than once where it convolves them on the CPU.
        wide = [t if t is None or dtype.itemsize > 2 else t.float() for t in (x, w, bias)]
        torch.testing.assert_close(y, kind.theirs(*wide, **geometry).to(dtype))


class Subclass(Tensor):
    """Torch functions of it answer with it."""


class Seen(TorchFunctionMode):
    """Counts the functions that are called inside."""

    count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func is ops.convolution
        return func(*args, **(kwargs or {}))


def test_arguments_that_python_reads_itself_and_those_left_to_torch() -> None:
    input, weight, bias = torch.randn(2, 4, 20), torch.randn(6, 4, 3), torch.randn(6)
    fastconv1d.conv1d(input, weight, algorithm="simd")  # loads the binding
    call = ops.python_convolution
    if call is None:
        pytest.skip("Python's headers are missing")
    plain: list[Any] = [input, weight, bias, 1, (2,), 1, False, 0, 1, ""]
    torch.testing.assert_close(call(*plain), F.conv1d(input, weight, bias, padding=2))
    recorded = torch.nn.Parameter(weight)
    call(input, recorded, *plain[2:]).sum().backward()
    assert recorded.grad is not None
    others: list[tuple[int, Any]] = [
        (0, input[0]), (0, input.numpy()), (0, input.as_subclass(Subclass)), (0, None),
        (0, input.to(torch.complex64)), (1, weight[0]), (2, bias.as_subclass(Subclass)), (2, 1.0),
        (3, [1]), (3, True), (3, (1, 1)), (3, 1 << 70), (4, "same"), (5, np.int64(1)), (6, 0),
        (7, None), (8, (1,)), (9, None), (9, "\ud800"),
    ]  # fmt: skip
    for place, value in others:
        arguments = [*plain[:place], value, *plain[place + 1 :]]
        assert call(*arguments) is NotImplemented, (place, value)
    assert call(*plain[:9]) is NotImplemented
    with Seen() as seen:
        assert call(*plain) is NotImplemented
        fastconv1d.conv1d(input, weight)
    assert seen.count == 1
    assert type(fastconv1d.conv1d(input.as_subclass(Subclass), weight)) is Subclass
    with pytest.raises(RuntimeError, match="channels"):
        call(input, weight[:, :3], *plain[2:])


def test_a_binding_that_comes_later_has_nothing_compiled_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    input, weight = torch.randn(2, 4, 20), torch.randn(6, 4, 3)
    fastconv1d.conv1d(input, weight, algorithm="simd")
    loaded = ops.python_convolution
    torch.compiler.reset()
    compiled = torch.compile(lambda x: fastconv1d.conv1d(x, weight), backend=backend)
    for call in (None, loaded):
        monkeypatch.setattr(ops, "python_convolution", call)
        torch.testing.assert_close(compiled(input), F.conv1d(input, weight))
    assert graphs == 1


@both
def test_positional_arguments_are_torchs(kind: Kind) -> None:
    x, w, b = tensors(kind=kind)
    rest = (2, 3, 1, 2, 4) if kind.transposed else (2, 3, 4, 2)
    torch.testing.assert_close(kind.ours(x, w, b, *rest), kind.theirs(x, w, b, *rest))
    with pytest.raises(TypeError, match="positional"):
        kind.ours(x, w, b, *rest, "im2col")


geometries = st.fixed_dictionaries(
    {
        "stride": st.integers(1, 4),
        "padding": st.integers(0, 5),
        "dilation": st.integers(1, 3),
        "groups": st.sampled_from([1, 2]),
    }
)


@both
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    geometry=geometries,
    length=st.integers(1, 20),
    kernel=st.integers(1, 5),
    batch=st.integers(0, 3),
    output_padding=st.integers(0, 3),
)
def test_small_integers_are_exact(
    algorithm: str,
    kind: Kind,
    geometry: dict[str, int],
    length: int,
    kernel: int,
    batch: int,
    output_padding: int,
) -> None:
    if kind.transposed:
        geometry = {**geometry, "output_padding": output_padding}
    rows, columns = (4, 6) if kind.transposed else (6, 4)
    x = torch.randint(-8, 9, (batch, 4, length)).float()
    w = torch.randint(-8, 9, (rows, columns // geometry["groups"], kernel)).float()
    b = torch.randint(-8, 9, (6,)).float()
    try:
        expected = kind.theirs(x, w, b, **geometry)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="expected"):
            kind.ours(x, w, b, **geometry, algorithm=algorithm)
        return
    if batch == 0:
        algorithm = ""
    assert torch.equal(kind.ours(x, w, b, **geometry, algorithm=algorithm), expected)


def views(x: Tensor) -> dict[str, Tensor]:
    n, c, length = x.shape
    padded = torch.randn(n + 1, c + 2, 2 * length + 3).to(x)
    padded[1:, 1:-1, 3::2] = x
    return {
        "positions first": x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "channels last": x.transpose(1, 2).contiguous().transpose(1, 2),
        "strided with an offset": padded[1:, 1:-1, 3::2],
        "expanded batch": x[:1].expand(n, c, length),
        "expanded channels": x[:, :1].expand(n, c, length),
    }


@both
def test_columns_beyond_their_room_come_in_chunks(device: torch.device, kind: Kind) -> None:
    """512 MiB of columns for each of three samples, where a GiB is the most that is taken."""
    length, kernel = 1 << 15, 1 << 12
    x = torch.randint(-3, 4, (3, 1, length if kind.transposed else length + kernel - 1)).float()
    w, b = torch.zeros(1, 1, kernel), torch.ones(1)
    w[0, 0, 5], w[0, 0, -1] = 2, -3
    y = kind.ours(x.to(device), w.to(device), b.to(device), algorithm="im2col")
    parts = ((5, 2), (kernel - 1, -3))
    if kind.transposed:
        expected = sum(F.pad(x, (tap, kernel - 1 - tap)) * value for tap, value in parts)
    else:
        expected = sum(x[..., tap : tap + length] * value for tap, value in parts)
    assert torch.equal(y.cpu(), expected + 1)


@both
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_strides_and_offset(device: torch.device, algorithm: str, kind: Kind) -> None:
    x, w, b = tensors(device, kind=kind)
    for name, view in views(x).items():
        y = kind.ours(view, w, b, padding=1, groups=2, algorithm=algorithm)
        torch.testing.assert_close(y, kind.theirs(view, w, b, padding=1, groups=2), msg=name)
        assert y.is_contiguous(), name
    strided = torch.randn(*reversed(w.shape)).to(w).permute(2, 1, 0)
    y = kind.ours(x, strided, b.expand(1, 6)[0], groups=2, algorithm=algorithm)
    torch.testing.assert_close(y, kind.theirs(x, strided, b, groups=2))


@both
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("form", [2, (2,), [2]])
def test_forms_of_arguments(device: torch.device, algorithm: str, form: Any, kind: Kind) -> None:
    x, w, b = tensors(device, kind=kind)
    for name in ("stride", "padding", "dilation", *kind.more):
        geometry = {"groups": 2, "dilation": 3 if name in kind.more else 1, name: form}
        y = kind.ours(x, w, b, algorithm=algorithm, **geometry)
        torch.testing.assert_close(y, kind.theirs(x, w, b, **geometry))


@both
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_unbatched_and_empty_batch(device: torch.device, algorithm: str, kind: Kind) -> None:
    x, w, b = tensors(device, kind=kind)
    padding = 1 if kind.transposed else "same"
    y = kind.ours(x[0], w, b, padding=padding, groups=2, algorithm=algorithm)
    torch.testing.assert_close(y, kind.theirs(x[0], w, b, padding=padding, groups=2))
    assert y.dim() == 2
    empty = kind.ours(x[:0], w, b, groups=2)
    assert empty.shape == kind.theirs(x[:0], w, b, groups=2).shape


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_and_valid_padding(device: torch.device, kernel: int, dilation: int) -> None:
    x, _, b = tensors(device)
    w = torch.randn(6, 2, kernel).to(x)
    for padding in ("same", "valid"):
        if padding == "valid" and dilation * (kernel - 1) >= x.shape[2]:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on the copy that uneven padding costs it
            expected = F.conv1d(x, w, b, padding=padding, dilation=dilation, groups=2)
        for algorithm in ALGORITHMS:
            y = fastconv1d.conv1d(
                x, w, b, padding=padding, dilation=dilation, groups=2, algorithm=algorithm
            )
            torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.complex64])
def test_other_dtypes_go_to_aten(dtype: torch.dtype) -> None:
    x, w, b = (10 * torch.rand(4, 4, 5)).to(dtype), torch.ones(2, 4, 3).to(dtype), None
    torch.testing.assert_close(fastconv1d.conv1d(x, w, b), F.conv1d(x, w, b))


def test_complex_values_are_torchs() -> None:
    for kind in (ORDINARY, TRANSPOSED):
        x, w, b = (torch.complex(t, t.cos()) for t in tensors(kind=kind))
        geometry = {"stride": 3, "padding": 1, "dilation": 3, "groups": 2, **kind.more}
        torch.testing.assert_close(kind.ours(x, w, b, **geometry), kind.theirs(x, w, b, **geometry))


def test_no_input_channels_as_torch() -> None:
    x, w = torch.empty(2, 0, 9), torch.empty(6, 0, 3)
    assert fastconv1d.conv1d(x, w).shape == F.conv1d(x, w).shape


# --- plans and their bookkeeping ------------------------------------------------------------------


@both
def test_a_forced_plan_is_the_one_that_runs(device: torch.device, kind: Kind) -> None:
    x, w, b = tensors(device, kind=kind)
    before = fastconv1d.calls()
    for _ in range(3):
        kind.ours(x, w, b, groups=2, algorithm="im2col")
    after = fastconv1d.calls()
    assert after["im2col"] - before["im2col"] == 3
    assert set(after) == {row.name for row in plan.EVERY_PLAN}


@both
def test_the_environment_forces_a_plan(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    x, w, b = tensors(device, kind=kind)
    monkeypatch.setenv("FASTCONV1D_PLAN", "im2col")
    before = fastconv1d.calls()["im2col"]
    torch.testing.assert_close(kind.ours(x, w, b, groups=2), kind.theirs(x, w, b, groups=2))
    assert fastconv1d.calls()["im2col"] == before + 1


def test_an_unknown_algorithm_and_one_that_cannot_run() -> None:
    x, w, b = tensors()
    with pytest.raises(ValueError, match="algorithm is 'winograd', expected one of"):
        fastconv1d.conv1d(x, w, b, groups=2, algorithm="winograd")
    with pytest.raises(RuntimeError, match=r"algorithm 'direct' .*needs a CUDA device"):
        fastconv1d.conv1d(x, w, b, groups=2, algorithm="direct")
    with pytest.raises(RuntimeError, match="algorithm 'im2col' cannot run this: input is"):
        fastconv1d.conv1d(x.int(), w.int(), b.int(), groups=2, algorithm="im2col")


@pytest.fixture
def broken_build(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No library can be built, and none has been."""

    def fail(name: str, source: str, arch: str) -> None:
        raise build.BuildError(f"no compiler for {name} ({arch})")

    def unregistered(device: str) -> bool:
        return False

    monkeypatch.setattr(build, "load", fail)
    monkeypatch.setattr(ops, "_registered", unregistered)
    ops._attempt.cache_clear()
    ops._warn_once.cache_clear()
    yield
    ops._attempt.cache_clear()


def explicit(*arguments: Any) -> Tensor:
    """The operator as it is while no binding is loaded."""
    return ops._run(*arguments)


@pytest.mark.usefixtures("broken_build")
def test_a_failed_build_is_an_error_under_strict() -> None:
    x, w, b = tensors()
    with pytest.raises(RuntimeError, match=r"no compiler for binding_cpu \(cpu\)"):
        explicit(x, w, b, [1], [0], [1], False, [0], 2, "im2col")


@pytest.mark.usefixtures("broken_build")
def test_a_failed_build_warns_once_and_aten_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCONV1D_STRICT", "0")
    x, w, b = tensors()
    with pytest.warns(RuntimeWarning, match="no compiler for binding_cpu") as caught:
        for _ in range(2):
            y = explicit(x, w, b, [1], [0], [1], False, [0], 2, "im2col")
    torch.testing.assert_close(y, F.conv1d(x, w, b, groups=2))
    assert len(caught) == 1
    ops._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no compiler"):
        ops.enable("cpu")
    assert "cpu" not in ops._enabled


def test_a_kernel_library_that_fails_gives_way_to_the_next_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = plan.PLANS[0], ops.Gpu("NVIDIA H200", (9, 0), 132)
    problem = ops.Problem(32, 64, 128, 131072, 3, mode="tf32", gpu=gpu[1])

    def load(name: str, source: str, arch: str) -> Any:
        assert arch == "90a"
        raise build.BuildError(f"nvcc failed on {name}")

    monkeypatch.setattr(build, "load", load)
    ops._attempt.cache_clear()
    ops._warn_once.cache_clear()
    with pytest.raises(RuntimeError, match="nvcc failed on hopper_tf32"):
        ops._runnable(problem, "", gradient=False)
    monkeypatch.setenv("FASTCONV1D_STRICT", "0")
    with pytest.warns(RuntimeWarning, match="nvcc failed on hopper_tf32"):
        chosen, library = ops._runnable(problem, "", gradient=False)
    assert chosen.name == "aten"
    assert library is None
    ops._attempt.cache_clear()


def test_a_binding_that_registers_nothing_is_an_error_and_no_recursion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, w, b = tensors()

    def unregistered(device: str) -> bool:
        return False

    monkeypatch.setattr(ops, "_registered", unregistered)
    with pytest.raises(RuntimeError, match="registered no CPU kernel"):
        explicit(x, w, b, [1], [0], [1], False, [0], 2, "im2col")


def test_select_answers_the_binding() -> None:
    x, w, _ = tensors()
    select = torch.ops.fastconv1d._select
    names = [row.name for row in plan.EVERY_PLAN]
    arguments = (x, w.shape, True, 1, 0, 1, False, 0, 2)
    kind, index, launch, workspace, variant = select(*arguments, "ieee", False, "")
    assert (kind, index, variant) == (ops.LIBRARY, names.index("simd"), 1)
    assert launch and workspace
    assert select(*arguments, "ieee", False, "aten") == [ops.ATEN, names.index("aten"), 0, 0, 0]
    im2col = names.index("im2col")
    assert select(*arguments, "ieee", False, "im2col") == [ops.IM2COL, im2col, 0, 0, 1]
    double = (x.double(), *arguments[1:], "fp64", False)
    assert select(*double, "im2col") == [ops.IM2COL, im2col, 0, 0, 4]
    aten = [ops.ATEN, names.index("grad_aten"), 0, 0, 0]
    no_library_for_the_bias, apart = [0, 0], [0]
    answer = aten + no_library_for_the_bias + apart
    assert select(*arguments, "ieee", True, "aten") == answer
    depthwise = (x, (x.shape[1], 1, 4), True, 1, 3, 1, False, 0, x.shape[1])
    for algorithm in ("", "simd"):
        assert select(*depthwise, "ieee", True, algorithm)[5:] == no_library_for_the_bias + apart


# --- errors ---------------------------------------------------------------------------------------

X, W, B = torch.zeros(2, 4, 11), torch.zeros(6, 4, 3), torch.zeros(6)
V = torch.zeros(4, 6, 3)  # the transposed weight
Wrong = dict[str, tuple[dict[str, Any], str]]
WRONG_OF_BOTH: Wrong = {
    "input of 4 dimensions": ({"input": X[None]}, "input has shape (1, 2, 4, 11), expected"),
    "input of 1 dimension": ({"input": X[0, 0]}, "input has shape (11,), expected"),
    "no groups": ({"groups": 0}, "groups is 0, expected at least 1"),
    "negative groups": ({"groups": -1}, "groups is -1, expected at least 1"),
    "negative padding": ({"padding": -1}, "padding is -1, expected at least 0"),
    "no stride": ({"stride": 0}, "stride is 0, expected at least 1"),
    "negative stride": ({"stride": -2}, "stride is -2, expected at least 1"),
    "no dilation": ({"dilation": 0}, "dilation is 0, expected at least 1"),
    "negative dilation": ({"dilation": -1}, "dilation is -1, expected at least 1"),
    "bias's dtype": ({"bias": B.double()}, "bias is torch.float64, expected input's dtype"),
    "bias too short": ({"bias": B[:3]}, "bias has shape (3,), expected (6,)"),
    "bias of 2 dimensions": ({"bias": B[None]}, "bias has shape (1, 6), expected (6,)"),
    "bias of no dimension": ({"bias": B[0]}, "bias has shape (), expected (6,)"),
    "float stride": ({"stride": 1.0}, "stride is 1.0, expected an int"),
    "float in a tuple": ({"stride": (1.5,)}, "stride is (1.5,), expected an int"),
    "bool stride": ({"stride": True}, "stride is True, expected an int"),
    "stride a string": ({"stride": "a"}, "stride is 'a', expected an int"),
    "no stride at all": ({"stride": None}, "stride is None, expected an int"),
    "float padding": ({"padding": 1.5}, "padding is 1.5, expected an int"),
    "padding None": ({"padding": None}, "padding is None, expected an int"),
    "padding in a list": ({"padding": ["same"]}, "padding is ['same'], expected an int"),
    "float dilation": ({"dilation": 2.0}, "dilation is 2.0, expected an int"),
    "float groups": ({"groups": 1.0}, "groups is 1.0, expected an int"),
    "groups None": ({"groups": None}, "groups is None, expected an int"),
    "two strides": ({"stride": (1, 1)}, "stride is (1, 1), expected an int or a tuple of one"),
    "two paddings": ({"padding": (1, 1)}, "padding is (1, 1), expected an int or a tuple"),
    "two dilations": ({"dilation": (1, 1)}, "dilation is (1, 1), expected an int or a tuple"),
    "empty stride": ({"stride": ()}, "stride is (), expected an int or a tuple of one int"),
    "input a list": ({"input": [1.0]}, "input is a list, expected a Tensor"),
    "input an array": ({"input": np.zeros((2, 4, 11))}, "input is a ndarray, expected a Tensor"),
    "weight None": ({"weight": None}, "weight is a NoneType, expected a Tensor"),
    "bias a number": ({"bias": 3.0}, "bias is a float, expected a Tensor"),
    "no positions": ({"input": X[:, :, :0]}, "length is 0, expected at least 1"),
}  # fmt: skip
WRONG: Wrong = {
    "4 dimensions each": ({"input": X[None], "weight": W[None]}, "input has shape"),
    "weight of 2 dimensions": ({"weight": W[0]}, "weight has shape (4, 3), expected 3"),
    "weight of 4 dimensions": ({"weight": W[None]}, "weight has shape (1, 6, 4, 3), expected 3"),
    "channels": ({"input": X[:, :3]}, "input has 3 channels, expected groups x weight's"),
    "channels, unbatched": ({"input": X[0, :3]}, "input has 3 channels, expected"),
    "groups times channels": ({"groups": 2}, "input has 4 channels, expected groups x weight's"),
    "groups do not divide": ({"groups": 4, "weight": W[:, :1]}, "channels_out is 6, expected a"),
    "no dilation, same": ({"dilation": 0, "padding": "same"}, "dilation is 0, expected at least"),
    "kernel too long": ({"dilation": 10}, "input has length 11, with padding 11, expected at"),
    "weight's dtype": ({"weight": W.double()}, "weight is torch.float64, expected input's dtype"),
    "padding's name": ({"padding": "full"}, "padding is 'full', expected 'same', 'valid'"),
    "same and a stride": ({"padding": "same", "stride": 2}, "stride is 2, expected 1 with"),
    "two dilations, same": ({"dilation": (2, 1), "padding": "same"}, "dilation is (2, 1), exp"),
    "no output channels": ({"weight": W[:0], "bias": None}, "channels_out is 0, expected at"),
    "no taps": ({"weight": W[:, :, :0]}, "kernel_size is 0, expected at least 1"),
    "no taps, padded": ({"weight": W[:, :, :0], "padding": 2}, "kernel_size is 0, expected"),
    "no positions, padded": ({"input": X[:, :, :0], "padding": 2}, "length is 0, expected"),
}  # fmt: skip


WRONG_TRANSPOSED: Wrong = {
    "4 dimensions each": ({"input": X[None], "weight": V[None]}, "input has shape"),
    "weight of 2 dimensions": ({"weight": V[0]}, "weight has shape (6, 3), expected 3"),
    "weight of 4 dimensions": ({"weight": V[None]}, "weight has shape (1, 4, 6, 3), expected 3"),
    "channels": ({"input": X[:, :3]}, "input has 3 channels, expected weight's 4"),
    "channels, unbatched": ({"input": X[0, :3]}, "input has 3 channels, expected weight's 4"),
    "groups do not divide": ({"groups": 3, "bias": None}, "channels_in is 4, expected a multiple"),
    "groups and the bias": ({"groups": 2}, "bias has shape (6,), expected (12,)"),
    "padding beyond the output": ({"padding": 8}, "padding is 8, expected a smaller one"),
    "weight's dtype": ({"weight": V.double()}, "weight is torch.float64, expected input's dtype"),
    "padding's name": ({"padding": "same"}, "padding is 'same', expected an int or a tuple"),
    "too much output_padding": ({"output_padding": 1}, "output_padding is 1, expected less than"),
    "as much as the stride": (
        {"output_padding": 3, "stride": 3, "dilation": 2}, "output_padding is 3, expected less than"
    ),
    "negative output_padding": ({"output_padding": -1}, "output_padding is -1, expected at least"),
    "float output_padding": ({"output_padding": 1.5}, "output_padding is 1.5, expected an int"),
    "bool output_padding": ({"output_padding": True}, "output_padding is True, expected an int"),
    "output_padding None": ({"output_padding": None}, "output_padding is None, expected an int"),
    "two output_paddings": ({"output_padding": (0, 0)}, "output_padding is (0, 0), expected an"),
    "no output_padding": ({"output_padding": ()}, "output_padding is (), expected an int"),
    "no input channels": ({"input": X[:, :0], "weight": V[:0]}, "channels_in is 0, expected at"),
    "no output channels": ({"weight": V[:, :0], "bias": None}, "channels_out is 0, expected at"),
    "no taps": ({"weight": V[:, :, :0]}, "kernel_size is 0, expected at least 1"),
}  # fmt: skip
ERRORS = [
    (kind, change, words)
    for kind, wrong in ((ORDINARY, WRONG), (TRANSPOSED, WRONG_TRANSPOSED))
    for change, words in (WRONG_OF_BOTH | wrong).values()
]


def raised(function: Any, **arguments: Any) -> Exception:
    with pytest.raises(Exception) as caught:
        function(**arguments)
    return caught.value


def weight_of(kind: Kind) -> Tensor:
    return V if kind.transposed else W


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("kind", "change", "words"),
    ERRORS,
    ids=[f"{'transposed' if kind.transposed else 'ordinary'}-{words}" for kind, _, words in ERRORS],
)
def test_errors_have_torchs_class_and_say_what_was_expected(
    kind: Kind, change: dict[str, Any], words: str, algorithm: str
) -> None:
    arguments = {"input": X, "weight": weight_of(kind), "bias": B} | change
    theirs = raised(kind.theirs, **arguments)
    ours = raised(kind.ours, **arguments, algorithm=algorithm)
    assert type(ours) is type(theirs)
    assert words in str(ours)


@both
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["input", "weight", "bias"])
def test_tensors_on_two_devices(name: str, kind: Kind) -> None:
    arguments = {"input": X.cuda(), "weight": weight_of(kind).cuda(), "bias": B.cuda()}
    arguments[name] = arguments[name].cpu()
    assert type(raised(kind.ours, **arguments)) is type(raised(kind.theirs, **arguments))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(ORDINARY, torch.bool), (TRANSPOSED, torch.bool), (TRANSPOSED, torch.int32)],
)
def test_an_error_of_atens_own_passes_through(kind: Kind, dtype: torch.dtype) -> None:
    arguments = {"input": X.to(dtype), "weight": weight_of(kind).to(dtype)}
    assert type(raised(kind.ours, **arguments)) is type(raised(kind.theirs, **arguments))


# --- torch.library, compile, export, autocast -----------------------------------------------------


def leaves(*given: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in given]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_opcheck(device: torch.device, algorithm: str, transposed: bool, gradient: bool) -> None:
    x, w, b = tensors(device, kind=TRANSPOSED if transposed else ORDINARY)
    x, w, b = leaves(x, w, b) if gradient else (x, w, b)
    geometry = ([2], [1], [2], transposed, [1 if transposed else 0], 2, algorithm)
    torch.library.opcheck(ops.convolution, (x, w, b, *geometry))
    torch.library.opcheck(ops.convolution, (x, w, None, *geometry))


@both
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(
    device: torch.device, algorithm: str, dynamic: bool, backend: str, kind: Kind
) -> None:
    torch._dynamo.reset()

    def model(conv: Any, x: Tensor, w: Tensor, b: Tensor, padding: Any, **kw: Any) -> Tensor:
        return conv(x.sin(), w, b, padding=padding, groups=2, **kw).relu()

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
    _, w, b = tensors(device, kind=kind)
    last = 0 if kind.transposed else "same"
    for length in (11, 16, 23) if dynamic else (11,):
        x = torch.randn(2, 4, length).to(device)
        for padding in (1, last):
            ours, theirs = leaves(x, w, b), leaves(x, w, b)
            y = compiled(kind.ours, *ours, padding, algorithm=algorithm)
            expected = model(kind.theirs, *theirs, padding)
            torch.testing.assert_close(y, expected)
            y.square().sum().backward()
            expected.square().sum().backward()
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            y = compiled(kind.ours, x, w, b, last, algorithm=algorithm)
            torch.testing.assert_close(y, expected.detach())


@both
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_batch_and_length(
    device: torch.device, algorithm: str, strict: bool, kind: Kind
) -> None:
    layer: torch.nn.Module = (
        fastconv1d.ConvTranspose1d(4, 6, 3, 2, padding=1, output_padding=1, algorithm=algorithm)
        if kind.transposed
        else fastconv1d.Conv1d(4, 6, 3, padding="same", padding_mode="reflect", algorithm=algorithm)
    )
    layer.to(device)
    batch = torch.export.Dim("batch", min=2, max=64)
    length = torch.export.Dim("length", min=4, max=99)
    exported = torch.export.export(
        layer, (torch.randn(2, 4, 11).to(device),), dynamic_shapes=({0: batch, 2: length},),
        strict=strict,
    )  # fmt: skip
    targets = [str(node.target) for node in exported.graph.nodes]
    assert "fastconv1d.convolution.default" in targets
    x = torch.randn(5, 4, 37).to(device)
    for program in (exported, exported.run_decompositions()):
        torch.testing.assert_close(program.module()(x), layer(x))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_as_torch(device: torch.device, dtype: torch.dtype, kind: Kind) -> None:
    x, w, b = tensors(device, kind=kind)
    # What torch computes of the same numbers in fp32: in 16 bits it may round twice.
    expected = kind.theirs(*(t.to(dtype).float() for t in (x, w, b)), groups=2).to(dtype)
    with torch.autocast(device.type, dtype=dtype):
        y, theirs = kind.ours(x, w, b, groups=2), kind.theirs(x, w, b, groups=2)
        assert y.dtype == theirs.dtype == dtype
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.002)
        mixed = kind.ours(x.to(dtype), w, b.double().float(), groups=2)
        assert mixed.dtype == dtype
        double = [tensor.double() for tensor in (x, w, b)]
        assert kind.ours(*double, groups=2).dtype == torch.float64
        ours, theirs = leaves(x, w, b), leaves(x, w, b)
        mine = kind.ours(*ours, groups=2).float().square().sum()
        other = kind.theirs(*theirs, groups=2).float().square().sum()
    mine.backward()
    other.backward()
    for one, two in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, two.grad, atol=0.1, rtol=0.02)


@both
def test_meta_tensors(kind: Kind) -> None:
    x, w, b = tensors("meta", kind=kind)
    assert kind.ours(x, w, b, padding=1, groups=2).shape == (2, 6, 11)
    with pytest.raises(RuntimeError):
        kind.ours(x, w, b, groups=2, **{"padding" if kind.transposed else "dilation": 9})


@both
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_infinities_and_nans_come_out_as_torchs(dtype: torch.dtype, kind: Kind) -> None:
    x = torch.rand(1, 8, 600, device="cuda", dtype=dtype)
    x[0, 1, 100], x[0, 2, 200], x[0, 3, 300] = torch.inf, -torch.inf, torch.nan
    weight = torch.rand(16, 8, 3, device="cuda", dtype=dtype) + 1
    weight = weight.transpose(0, 1).contiguous() if kind.transposed else weight
    with timing.precision("tf32"):
        ours = kind.ours(x, weight, algorithm="dense")
        expected = kind.theirs(x, weight)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.isinf(), expected.isinf())
    assert torch.equal(ours.sign()[ours.isinf()], expected.sign()[expected.isinf()])
