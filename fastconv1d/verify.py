"""`fastconv1d verify REFERENCE.py SUBMISSION.py`: is a ModelNew right, and how fast is it?

Files are KernelBench's: the reference has `class Model`, get_inputs() and get_init_inputs(), the
submission `class ModelNew`. This finds mistakes and the usual shortcuts; it is no sandbox: both
files run in this process.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn

from fastconv1d import compare, timing
from fastconv1d.problem import Problem

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""KernelBench's atol = rtol between submission and reference."""

_WEIGHT_SEED = 42
_SLEEP_CYCLES = 20_000_000  # some 10 ms: longer than it takes to enqueue a call
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Tensors = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on a submission.

    `rule` states what was asked of each element. `worst_reference` is the largest distance from the
    reference as a multiple of KernelBench's tolerance, `worst_truth` the largest error against fp64
    as a multiple of its bound (None where the reference is no plain convolution). Times are medians
    in milliseconds, None unless correct.
    """

    ok: bool
    reason: str
    device: str
    dtype: str
    trials: int
    seed: int
    rule: str
    worst_reference: float
    worst_truth: float | None
    reference_ms: float | None = None
    submission_ms: float | None = None

    @property
    def speedup(self) -> float | None:
        """The reference's time over the submission's."""
        if self.reference_ms is None or self.submission_ms is None:
            return None
        return self.reference_ms / self.submission_ms


class RejectedError(Exception):
    """The submission is wrong; the message says how."""


def verify(
    reference: Path,
    submission: Path,
    *,
    trials: int = 3,
    dtype: str = "fp32",
    device: torch.device | str | None = None,
    seed: int | None = None,
    seconds: float = 1.0,
) -> Report:
    """Check a submission against its reference on `trials` fresh random inputs, then time both.

    Each trial demands: the reference's shape, dtype and device; every element within the stated
    rule; memory of its own, not that of an input, a parameter or an earlier output; inputs and
    parameters left alone; and work that is finished for whoever reads the result on the current
    stream, which is not the default one in every second trial. Before each trial the memory that
    the submission is about to get is filled with NaN. One more trial follows the timing.

    `seed` makes the inputs (drawn if None); `seconds` is the time to spend on timing, 0 for none.

    Raises: ValueError for an unknown dtype, fewer than one trial, or a reference without Model,
    get_inputs or get_init_inputs. Whatever the submission raises is a verdict.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if trials < 1:
        raise ValueError(f"trials is {trials}, expected at least 1")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if seed is None:
        seed = secrets.randbits(31)
    examination = _Examination(reference, torch.device(device), DTYPES[dtype], seed)
    reason = ""
    times: dict[str, timing.Timing] = {}
    try:
        examination.load(submission)
        for trial in range(trials):
            examination.trial(trial)
        if seconds > 0:
            times = examination.time(seconds)
            examination.trial(trials)
    except RejectedError as error:
        reason, times = str(error), {}
    return Report(
        ok=not reason,
        reason=reason,
        device=str(examination.device),
        dtype=dtype,
        trials=trials,
        seed=seed,
        rule=examination.rule,
        worst_reference=examination.worst_reference,
        worst_truth=examination.worst_truth,
        reference_ms=times["reference"].median if times else None,
        submission_ms=times["submission"].median if times else None,
    )


class _Examination:
    """One reference, one submission, and what the trials have shown so far."""

    def __init__(
        self, reference: Path, device: torch.device, dtype: torch.dtype, seed: int
    ) -> None:
        self.device, self.dtype, self.seed = device, dtype, seed
        self.names = load_reference(reference)
        self.get_inputs: Callable[[], list[Any]] = self.names["get_inputs"]
        self.model = self._build(self.names["Model"])
        self.inputs = self._draw(-1)
        self.convolution = _find_convolution(self.model, self.inputs)
        self.worst_reference = 0.0
        self.worst_truth = None if self.convolution is None else 0.0
        self.earlier: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def rule(self) -> str:
        """What is asked of an element y, r being the reference's."""
        tolerance = TOLERANCE[self.dtype]
        near = f"|y - r| <= {tolerance:g} + {tolerance:g} |r|"
        if self.convolution is None:
            return near
        mode = self._problem(self.inputs[0], self.convolution).mode
        return (
            f"y within the rounding bound of {mode} around the fp64 convolution, and {near} "
            "unless y is nearer to fp64 than r"
        )

    def load(self, submission: Path) -> None:
        """Build ModelNew and call it once, so that whatever it compiles is compiled."""
        with _verdict("loading the submission"):
            # It sees the reference's names, as in KernelBench, and cannot rebind them.
            names = _execute(_compile(submission), dict(self.names))
            if "ModelNew" not in names:
                raise RejectedError(f"{submission.name} has no ModelNew")
            self.candidate = self._build(names["ModelNew"])
            self.state = {name: value.clone() for name, value in self._state().items()}
        with _verdict("the first call"):
            self.candidate(*[tensor.clone() for tensor in self.inputs])
            timing.synchronize(self.device)

    def trial(self, number: int) -> None:
        """Call both on fresh inputs, in the memory of the inputs before them, and compare."""
        fresh = self._draw(number)
        with torch.no_grad():
            wanted = self.model(*fresh)
        if [tensor.shape for tensor in fresh] != [tensor.shape for tensor in self.inputs]:
            self.inputs = [torch.empty_like(tensor) for tensor in fresh]
        stream = self._stream(number)
        with stream, _verdict("a call"):
            compare.poison_allocator(wanted.nbytes, self.device)
            output, seen = self._call(fresh)
        self._check_form(output, wanted)
        if not _identical(seen, output):
            raise RejectedError(
                "the output changed after the current stream was done with it: work on another "
                "stream, or on another thread, was not finished"
            )
        self._check_memory(output, seen, fresh)
        self._check_values(seen, wanted, fresh)

    def time(self, seconds: float) -> dict[str, timing.Timing]:
        """Time both in turns, grad mode on as in KernelBench and cuDNN in benchmark mode."""
        benchmark = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        calls: dict[str, timing.Call] = {
            "reference": lambda: self.model(*self.inputs),
            "submission": lambda: self.candidate(*self.inputs),
        }
        try:
            with _verdict("a timed call"):
                return timing.race(calls, self.device, seconds)
        finally:
            torch.backends.cudnn.benchmark = benchmark

    def _build(self, model: Callable[..., nn.Module]) -> nn.Module:
        return build_model(model, self.names).to(device=self.device, dtype=self.dtype)

    def _draw(self, number: int) -> Tensors:
        """The inputs of a trial: of trial 0 as KernelBench makes them, on the host; of others on
        the device, where even 2^31 numbers take no time."""
        torch.manual_seed(self.seed + number)
        with torch.device(self.device) if number else nullcontext():
            inputs = self.get_inputs()
        return [
            value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for value in inputs
        ]

    def _stream(self, number: int) -> Any:
        if self.device.type == "cuda" and number % 2:
            torch.cuda.synchronize(self.device)
            return torch.cuda.stream(torch.cuda.Stream(self.device))
        return nullcontext()

    def _call(self, fresh: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """The submission's output, and what the current stream saw of it.

        The inputs arrive late, behind a sleeping kernel, in memory full of NaN: who works on
        another stream without waiting reads NaN, and who is not waited for is seen unfinished.
        """
        for buffer in self.inputs:
            buffer.fill_(float("nan") if buffer.is_floating_point() else 0)
        timing.synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda._sleep(_SLEEP_CYCLES)
        for buffer, value in zip(self.inputs, fresh, strict=True):
            buffer.copy_(value)
        output = self.candidate(*self.inputs)
        if type(output) is not torch.Tensor:
            raise RejectedError(f"the output is a {type(output).__name__}, expected a Tensor")
        seen = output.detach().clone()
        timing.synchronize(self.device)
        return output, seen

    def _check_form(self, output: torch.Tensor, wanted: torch.Tensor) -> None:
        for name in ("shape", "dtype", "device", "layout"):
            actual, right = getattr(output, name), getattr(wanted, name)
            if actual != right:
                raise RejectedError(f"the output's {name} is {actual}, expected {right}")

    def _check_memory(self, output: torch.Tensor, seen: torch.Tensor, fresh: Tensors) -> None:
        home = _memory(output)
        if home and home in map(_memory, self.inputs):
            raise RejectedError("the output lies in an input's memory, expected its own")
        if home and home in map(_memory, self._state().values()):
            raise RejectedError("the output lies in a parameter's memory, expected its own")
        if self.earlier is not None:
            kept, copy = self.earlier
            if not _identical(kept, copy) or (home and home == _memory(kept)):
                raise RejectedError("an earlier call's output was overwritten by a later call")
        self.earlier = output.detach(), seen
        for index, (buffer, value) in enumerate(zip(self.inputs, fresh, strict=True)):
            if not _identical(buffer, value):
                raise RejectedError(f"input {index} was modified")
        for name, value in self._state().items():
            if name not in self.state or not _identical(value, self.state[name]):
                raise RejectedError(f"{name} was modified by a call")

    def _check_values(self, output: torch.Tensor, wanted: torch.Tensor, fresh: Tensors) -> None:
        if self.convolution is None:
            distance = _distance(output, wanted)
            worst = _largest(distance)
            self.worst_reference = max(self.worst_reference, worst)
            if worst > 1:
                raise RejectedError(
                    f"{int((distance > 1).sum())} of {output.numel()} elements differ from the "
                    f"reference by more than its tolerance, up to {worst:.3g} times{self._hint()}"
                )
            return
        layer = self.convolution
        problem = self._problem(fresh[0], layer)
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        for truth in compare.references(fresh[0], weight, bias, problem):
            rows = slice(truth.first, truth.first + len(truth.y64))
            verdict = compare.check(output[rows], truth, problem)
            self.worst_truth = max(self.worst_truth or 0.0, verdict.worst)
            if not verdict.ok:
                raise RejectedError(f"against fp64: {verdict.reason}{self._hint()}")
            distance = _distance(output[rows], wanted[rows])
            ours, theirs = (
                (values[rows].double() - truth.y64).abs_() for values in (output, wanted)
            )
            distance.masked_fill_((ours <= theirs).to(distance.device), 0.0)
            worst = _largest(distance)
            self.worst_reference = max(self.worst_reference, worst)
            if worst > 1:
                raise RejectedError(
                    f"{int((distance > 1).sum())} elements differ from the reference by more than "
                    f"its tolerance, up to {worst:.3g} times, and are farther from fp64 than it"
                    f"{self._hint()}"
                )

    def _problem(self, input: torch.Tensor, layer: nn.Conv1d | nn.ConvTranspose1d) -> Problem:
        return Problem.from_tensors(
            input,
            layer.weight,
            layer.bias,
            layer.stride,
            [int(padding) for padding in layer.padding],
            layer.dilation,
            layer.transposed,
            layer.output_padding,
            layer.groups,
        )

    def _state(self) -> dict[str, torch.Tensor]:
        return dict(self.candidate.state_dict())

    def _hint(self) -> str:
        ours, theirs = self.state, self.model.state_dict()
        for name in theirs:
            same_form = name in ours and ours[name].shape == theirs[name].shape
            if not same_form or not _identical(ours[name], theirs[name]):
                return f" (from the same seed, its {name} is not the reference's)"
        return ""


@contextmanager
def _verdict(doing: str) -> Iterator[None]:
    """Whatever the submission raises is a reason to reject it."""
    try:
        yield
    except RejectedError:
        raise
    except Exception as error:
        raise RejectedError(f"{doing} raised {type(error).__name__}: {error}") from error


def load_reference(path: Path) -> dict[str, Any]:
    """The names that a KernelBench file defines: Model, get_inputs and get_init_inputs at least.

    Raises: ValueError if one of these is missing.
    """
    names = _execute(_compile(path), {})
    for name in ("Model", "get_inputs", "get_init_inputs"):
        if name not in names:
            raise ValueError(f"{path} has no {name}, expected a KernelBench reference")
    return names


def build_model(model: Callable[..., nn.Module], names: Mapping[str, Any]) -> nn.Module:
    """A model of the file's get_init_inputs, its weights always the same."""
    torch.manual_seed(_WEIGHT_SEED)
    arguments = names["get_init_inputs"]()
    torch.manual_seed(_WEIGHT_SEED)
    return model(*arguments)


def _compile(path: Path) -> CodeType:
    return compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)


def _execute(code: CodeType, names: dict[str, Any]) -> dict[str, Any]:
    names["__name__"] = Path(code.co_filename).stem
    exec(code, names)
    return names


def _find_convolution(model: nn.Module, inputs: Tensors) -> nn.Conv1d | nn.ConvTranspose1d | None:
    """The one layer that the model consists of, if it is a plain 1-D convolution of its input."""
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def record(layer: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        calls.append((layer, arguments[0], output))

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    with torch.no_grad():
        result = model(*inputs)
    for hook in hooks:
        hook.remove()
    if len(calls) != 1 or len(inputs) != 1:
        return None
    [(layer, input, output)] = calls
    assert isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d))
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    whole = input is inputs[0] and output is result and input.dim() == 3
    return layer if plain and whole else None


def _distance(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """|y - r| as a multiple of the tolerance; infinite where only one of them is a number."""
    tolerance = TOLERANCE[wanted.dtype]
    y, r = output.double(), wanted.double()
    distance = (y - r).abs_().div_(r.abs().mul_(tolerance).add_(tolerance))
    return torch.where((y == r) | (y.isnan() & r.isnan()), 0.0, distance.nan_to_num_(torch.inf))


def _largest(values: torch.Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _identical(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit for bit, so that NaN equals itself."""
    integers = _INTEGERS[left.element_size()]
    return torch.equal(left.detach().view(integers), right.detach().view(integers))


def _memory(tensor: torch.Tensor) -> int:
    """The address of a tensor's storage, 0 if it is empty."""
    return tensor.untyped_storage().data_ptr() if tensor.numel() else 0
