"""The comparer: is this output a correct convolution, and are these its gradients?

One judge for every test and benchmark. An output y is held against the convolution y64 of the same
tensors in fp64 and against the magnitude M = conv(|input|, |weight|) + |bias|:

    |y - y64| <= OUTPUT_ROUNDINGS u |y64| + (n ACCUMULATION + OPERANDS) M + floor

with u the unit roundoff of the output's dtype and n the number of products in one output. The
bound holds for every order of summation (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1). Where inputs are small integers, no tolerance is needed: `exact=True`.

Gradients are such sums too, of grad_output and the weight or the input. Those of the weight and the
bias are long: the bound then allows much more than errors that cancel by chance add up to, so that
random tensors are also held against `imprecise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from fastconv1d.problem import Problem

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
"""u: the largest relative error of rounding to a dtype."""

OUTPUT_ROUNDINGS = 4
"""One rounding of the sum, one more where the bias is added in a pass of its own; twice that, so
that a result a few units in the last place off is not called wrong."""

ACCUMULATION = {
    "tf32": 2.0**-23,
    "ieee": 2.0**-23,
    "bf16": 2.0**-23,
    "fp16": 2.0**-23,
    "fp64": 2.0**-52,
}
"""Relative error of one addition: tensor cores cut the sum off instead of rounding it (twice the
unit roundoff), and in fp64 the reference errs as well."""

OPERANDS = {
    "tf32": 2 * 2.0**-11 + 2.0**-22,
    "ieee": 3 * 2.0**-22,
    "bf16": 0.0,
    "fp16": 0.0,
    "fp64": 0.0,
}
"""Relative error of one product before it is added. TF32 rounds both operands to 11 bits. With
three TF32 products for one fp32 product, each operand loses 2^-22, and so does the product of the
low parts that is left out."""

CHUNK_BYTES = 1 << 30
"""fp64 memory that `references` spends on one chunk."""

_POISON = 0xFF  # four of these bytes, or two, or eight, are a NaN in every floating dtype


@dataclass(frozen=True, slots=True)
class Reference:
    """What a tensor is held against: y64 and the magnitude, both fp64, shaped like the tensor.

    `products` are added up in one element, numbers that no mode rounds beforehand where they are
    not `multiplied`. `first` is the batch row that y64 starts at, `name` what complaints call it.
    """

    y64: torch.Tensor
    magnitude: torch.Tensor
    products: int
    multiplied: bool = True
    first: int = 0
    name: str = "output"

    def __add__(self, other: Reference) -> Reference:
        """That of a sum over batch rows from those of its parts."""
        return replace(
            self,
            y64=self.y64 + other.y64,
            magnitude=self.magnitude + other.magnitude,
            products=self.products + other.products,
        )


@dataclass(frozen=True, slots=True)
class Gradients:
    """What the gradients of input, weight and bias are held against."""

    input: Reference
    weight: Reference
    bias: Reference


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the comparer says of an output.

    `worst` is the largest error as a multiple of its bound (inf: NaN, infinite or inexact), at
    `index`; `wrong` counts the elements beyond their bound; `reason` is '' where all is well.
    """

    worst: float = 0.0
    index: tuple[int, ...] | None = None
    wrong: int = 0
    reason: str = ""
    error_squares: float = 0.0
    truth_squares: float = 0.0
    peak: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the output is correct."""
        return not self.reason

    @property
    def relative_l2(self) -> float:
        """||y - y64|| / ||y64||; `peak` is the other measure, max |y - y64| / M."""
        if self.error_squares == 0:
            return 0.0
        if self.truth_squares == 0:
            return math.inf
        return math.sqrt(self.error_squares / self.truth_squares)


def expected(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, problem: Problem
) -> Reference:
    """The convolution and its magnitude in fp64, on the tensors' device.

    input, weight and bias are `problem`'s, of any floating dtype. ATen's own kernels compute it,
    also while `fastconv1d.enable()` is in force.
    """

    with torch.no_grad():
        x, w = input.double(), weight.double()
        b = None if bias is None else bias.double()
        y64 = _convolution(x, w, b, problem)
        magnitude = _convolution(x.abs(), w.abs(), None if b is None else b.abs(), problem)
    products = problem.channels_in // problem.groups * problem.kernel_size + problem.bias
    return Reference(y64, magnitude, products)


def _convolution(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, problem: Problem
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.aten._convolution.default(
        input,
        weight,
        bias,
        [problem.stride],
        [problem.padding],
        [problem.dilation],
        problem.transposed,
        [problem.output_padding],
        problem.groups,
        False,  # benchmark
        False,  # deterministic
        True,  # cudnn_enabled
        False,  # allow_tf32
    )
    return result


def references(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    problem: Problem,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Reference]:
    """`expected`, some batch rows at a time, so that fp64 fits beside a large problem."""
    row = problem.channels_in * problem.length + problem.channels_out * problem.length_out
    rows = max(1, chunk_bytes // (2 * 8 * max(row, 1)))
    for first in range(0, problem.batch, rows):
        chunk = input[first : first + rows]
        reference = expected(chunk, weight, bias, replace(problem, batch=len(chunk)))
        yield replace(reference, first=first)


def gradients(
    grad_output: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, problem: Problem
) -> Gradients:
    """The gradients of input, weight and bias in fp64, and their magnitudes.

    grad_output is shaped like `problem`'s output; where `problem` is the `ordinary` of a transposed
    one, it may have fewer positions. No operator that `fastconv1d.enable()` stands in for is used.
    """
    return Gradients(
        _grad_input(grad_output, weight, problem),
        _grad_weight(grad_output, input, problem),
        _grad_bias(grad_output),
    )


def _grad_input(grad_output: torch.Tensor, weight: torch.Tensor, problem: Problem) -> Reference:
    """A convolution with the same weight, transposed where the problem is ordinary."""
    adjoint = replace(problem, transposed=not problem.transposed, output_padding=0)
    first = 0
    if adjoint.transposed:
        # Without padding, which may leave nothing of an output that strides see a little of.
        adjoint, first = replace(adjoint, padding=0), problem.padding
    stop = first + problem.length

    def gradient(g: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        seen = _convolution(g, w, None, adjoint)
        missing = max(0, stop - seen.shape[2])
        return torch.nn.functional.pad(seen, (0, missing))[:, :, first:stop]

    with torch.no_grad():
        g, w = grad_output.double(), weight.double()
        y64, magnitude = gradient(g, w), gradient(g.abs(), w.abs())
    products = problem.channels_out // problem.groups * problem.kernel_size
    return Reference(y64, magnitude, products, name="grad_input")


def _grad_weight(grad_output: torch.Tensor, input: torch.Tensor, problem: Problem) -> Reference:
    """Tap by tap, a product of matrices over batch and positions."""
    if problem.transposed:
        grad_output, input = input, grad_output
    problem = problem.ordinary
    positions = grad_output.shape[2]
    groups, step = problem.groups, problem.stride
    padded = torch.nn.functional.pad(input, (problem.padding, problem.padding))

    def rows(tensor: torch.Tensor) -> torch.Tensor:  # (groups, channels, batch and positions)
        by_group = tensor.double().unflatten(1, (groups, -1))
        return torch.flatten(by_group.permute(1, 2, 0, 3), 2)

    with torch.no_grad():
        left = rows(grad_output)
        taps: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for tap in range(problem.kernel_size):
            first = tap * problem.dilation
            right = rows(padded[:, :, first : first + (positions - 1) * step + 1 : step]).mT
            taps[0].append(torch.bmm(left, right).flatten(0, 1))
            taps[1].append(torch.bmm(left.abs(), right.abs()).flatten(0, 1))
        y64, magnitude = (torch.stack(parts, 2) for parts in taps)
    products = len(grad_output) * positions
    return Reference(y64, magnitude, products, name="grad_weight")


def _grad_bias(grad_output: torch.Tensor) -> Reference:
    with torch.no_grad():
        g = grad_output.double()
        y64, magnitude = g.sum((0, 2)), g.abs().sum((0, 2))
    products = len(g) * g.shape[2]
    return Reference(y64, magnitude, products, multiplied=False, name="grad_bias")


def bound(reference: Reference, problem: Problem) -> torch.Tensor:
    """The largest error that each element may have, fp64; see the head of this module."""
    products = reference.products
    operands = OPERANDS[problem.mode] if reference.multiplied else 0.0
    relative = products * ACCUMULATION[problem.mode] + operands
    finfo = torch.finfo(problem.dtype)
    # Hardware may flush subnormal products to zero; fp16 results are themselves often subnormal.
    accumulator = torch.finfo(torch.float64 if problem.mode == "fp64" else torch.float32)
    floor = products * accumulator.tiny + finfo.tiny * finfo.eps
    rounding = OUTPUT_ROUNDINGS * UNIT_ROUNDOFF[problem.dtype]
    return rounding * reference.y64.abs() + relative * reference.magnitude + floor


def check(
    output: torch.Tensor, reference: Reference, problem: Problem, *, exact: bool = False
) -> Verdict:
    """Judge an output, a gradient, or the batch rows of it that `reference` speaks of.

    With `exact`, for small integer tensors, each element must be y64 rounded to the output's dtype.
    NaN and infinity are right only where rounding y64 gives the same.
    """
    truth, name = reference.y64, reference.name
    if output.shape != truth.shape:
        return _of_shape(output, tuple(truth.shape), name)
    if output.dtype != problem.dtype:
        return Verdict(
            math.inf, None, output.numel(), f"{name} is {output.dtype}, expected {problem.dtype}"
        )
    if output.numel() == 0:
        return Verdict()
    output = output.detach()
    if exact:
        truth = truth.round()
    rounded = truth.to(output.dtype)
    same = (output == rounded) | (output.isnan() & rounded.isnan())
    agreed = same & ~rounded.isfinite()
    limit = bound(reference, problem)
    error = (output.double() - truth).abs_().masked_fill_(agreed, 0.0)
    if exact:
        ratio = torch.where(same, 0.0, math.inf)
    else:
        ratio = (error / limit).masked_fill_(agreed, 0.0).nan_to_num_(nan=math.inf, posinf=math.inf)
    at = int(ratio.argmax())
    worst = float(ratio.reshape(-1)[at])
    wrong = int((ratio > 1).sum())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), truth.shape))
    index = (reference.first + place[0], *place[1:])
    reason = ""
    if wrong:
        actual, right = float(output[place]), float(truth[place])
        allowed = 0.0 if exact else float(limit[place])
        reason = (
            f"{name}{list(index)} is {actual:.9g}, expected {right:.9g} within {allowed:.3g} "
            f"({problem.mode}); {wrong} of {output.numel()} elements are wrong"
        )
    least = torch.finfo(torch.float64).tiny
    relative = (error / reference.magnitude.clamp_min(least)).masked_fill_(agreed, 0.0)
    return Verdict(
        worst=worst,
        index=index,
        wrong=wrong,
        reason=reason,
        error_squares=float(error.square_().nan_to_num_(nan=math.inf, posinf=math.inf).sum()),
        truth_squares=float(truth.masked_fill(agreed, 0.0).square_().sum()),
        peak=float(relative.nan_to_num_(nan=math.inf, posinf=math.inf).max()),
    )


def _of_shape(tensor: torch.Tensor, shape: tuple[int, ...], name: str) -> Verdict:
    reason = f"{name} has shape {tuple(tensor.shape)}, expected {shape}"
    return Verdict(math.inf, None, tensor.numel(), reason)


def merge(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a whole output from those on its chunks."""
    whole = Verdict()
    for part in verdicts:
        worse = part if part.worst > whole.worst or whole.index is None else whole
        whole = Verdict(
            worst=worse.worst,
            index=worse.index,
            wrong=whole.wrong + part.wrong,
            reason=whole.reason or part.reason,
            error_squares=whole.error_squares + part.error_squares,
            truth_squares=whole.truth_squares + part.truth_squares,
            peak=max(whole.peak, part.peak),
        )
    return whole


def compare(
    output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    problem: Problem,
    *,
    exact: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Verdict:
    """Judge an output against fp64, chunk by chunk; see `check`.

    input, weight, bias: `problem`'s tensors. output: (batch, channels_out, length_out).
    """
    if tuple(output.shape) != problem.output_shape:
        return _of_shape(output, problem.output_shape, "output")
    return merge(
        check(output[r.first : r.first + len(r.y64)], r, problem, exact=exact)
        for r in references(input, weight, bias, problem, chunk_bytes)
    )


def compare_gradients(
    actual: Sequence[torch.Tensor | None],
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    problem: Problem,
    *,
    exact: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[str, Verdict]:
    """Judge (grad_input, grad_weight, grad_bias), those that are not None, by their names.

    grad_output, input and weight: as for `gradients`. fp64 goes some batch rows at a time.
    """
    grad_input, grad_weight, grad_bias = actual
    verdicts: dict[str, Verdict] = {}
    if grad_input is not None and tuple(grad_input.shape) != problem.input_shape:
        verdicts["grad_input"] = _of_shape(grad_input, problem.input_shape, "grad_input")
        grad_input = None
    judged: list[Verdict] = []
    sums: dict[str, Reference] = {}

    def add(part: Reference) -> None:
        sums[part.name] = sums[part.name] + part if part.name in sums else part

    # Four copies of each tensor: in fp64, padded or put in another order, and their magnitudes.
    row = input[:1].numel() + grad_output[:1].numel()
    rows = max(1, chunk_bytes // (4 * 8 * max(row, 1)))
    for first in range(0, max(1, problem.batch), rows):
        chunk = slice(first, first + rows)
        if grad_input is not None:
            reference = replace(_grad_input(grad_output[chunk], weight, problem), first=first)
            judged.append(check(grad_input[chunk], reference, problem, exact=exact))
        if grad_weight is not None:
            add(_grad_weight(grad_output[chunk], input[chunk], problem))
        if grad_bias is not None:
            add(_grad_bias(grad_output[chunk]))
    if grad_input is not None:
        verdicts["grad_input"] = merge(judged)
    if grad_weight is not None:
        verdicts["grad_weight"] = check(grad_weight, sums["grad_weight"], problem, exact=exact)
    if grad_bias is not None:
        verdicts["grad_bias"] = check(grad_bias, sums["grad_bias"], problem, exact=exact)
    return verdicts


def imprecise(verdict: Verdict, products: int, elements: int, problem: Problem) -> str:
    """Why a tensor of normal tensors' products errs more than rounding does, or ''.

    Errors of `products` random numbers cancel: what is lost in a sum grows with the square root of
    the additions, also where each is cut off. So this sees one number left out of a sum whose bound
    hides it. It speaks of all elements together, and not of fewer than 32, whose mean is chance.
    """
    if elements < 32:
        return ""
    rounding = UNIT_ROUNDOFF[problem.dtype]
    drift = math.sqrt(products) * ACCUMULATION[problem.mode]
    allowed = rounding + drift + OPERANDS[problem.mode]
    if verdict.relative_l2 <= allowed:
        return ""
    return f"relative L2 error is {verdict.relative_l2:.3g}, expected at most {allowed:.3g}"


def less_accurate(ours: Verdict, theirs: Verdict, problem: Problem, factor: float = 2.0) -> str:
    """Why `ours` errs more than `factor` times `theirs`, or '' if it does not.

    Both are verdicts on the same problem against fp64; `theirs` is torch's at the same precision.
    Errors below one rounding of the output count as one rounding, so that a lucky exact result of
    torch's asks for nothing impossible. The rule is FlashAttention's.
    """
    floor = UNIT_ROUNDOFF[problem.dtype]
    for name, our_error, their_error in (
        ("relative L2 error", ours.relative_l2, theirs.relative_l2),
        ("largest error over magnitude", ours.peak, theirs.peak),
    ):
        allowed = factor * max(their_error, floor)
        if not our_error <= allowed:
            return (
                f"{name} is {our_error:.3g}, expected at most {factor:g} times torch's: "
                f"{allowed:.3g}"
            )
    return ""


def draw(
    problem: Problem, device: torch.device | str, seed: int, *, integers: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Random input, weight and bias for a problem, the same on every device.

    Normal, the weight scaled so that outputs are near 1; or integers from -3 to 3, whose sums every
    mode computes exactly.
    """
    generator = torch.Generator().manual_seed(seed)

    def tensor(shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return _draw(shape, scale, generator, integers).to(problem.dtype).to(device)

    products = problem.channels_in // problem.groups * problem.kernel_size
    return (
        tensor(problem.input_shape, 1.0),
        tensor(problem.weight_shape, products**-0.5),
        tensor((problem.channels_out,), 1.0) if problem.bias else None,
    )


def draw_grad_output(
    problem: Problem, device: torch.device | str, seed: int, *, integers: bool = False
) -> torch.Tensor:
    """A random gradient of a problem's output, unlike the tensors that `draw` gives for the seed.

    Integers keep gradients exact as long as 9 batch length_out is below 2^24.
    """
    generator = torch.Generator().manual_seed(seed ^ 0x5EED_0000)
    values = _draw(problem.output_shape, 1.0, generator, integers)
    return values.to(problem.dtype).to(device)


def _draw(
    shape: tuple[int, ...], scale: float, generator: torch.Generator, integers: bool
) -> torch.Tensor:
    if integers:
        return torch.randint(-3, 4, shape, generator=generator)
    return torch.randn(shape, generator=generator) * scale


def poison(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    guard: int = 256,
) -> torch.Tensor:
    """A contiguous tensor full of NaN with `guard` elements of a larger buffer on either side.

    For outputs: an element never written stays NaN, and `guards_intact` sees a write beside it.
    Odd guards give odd alignments.
    """
    buffer = torch.empty(math.prod(shape) + 2 * guard, dtype=dtype, device=device)
    buffer.view(torch.uint8).fill_(_POISON)
    return buffer[guard : buffer.numel() - guard].view(shape)


def guards_intact(tensor: torch.Tensor) -> bool:
    """Whether nothing was written beside a tensor that `poison` returned."""
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    whole.set_(tensor.untyped_storage())
    start = tensor.storage_offset() * tensor.element_size()
    stop = start + tensor.numel() * tensor.element_size()
    return bool((whole[:start] == _POISON).all()) and bool((whole[stop:] == _POISON).all())


def poison_allocator(bytes: int, device: torch.device, blocks: int = 2) -> None:
    """Make the caching allocator hand out NaN: fill `blocks` blocks of `bytes` each and free them.

    The next allocation of that size on the current stream gets one of them, so that an output
    element never written shows. Without effect on the CPU, which has no caching allocator.
    """
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    filled = [
        torch.full((bytes,), _POISON, dtype=torch.uint8, device=device) for _ in range(blocks)
    ]
    filled.clear()
