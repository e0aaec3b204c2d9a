"""The benchmark: a layer is checked against fp64 first, then raced against torch in one run."""

import contextlib
import functools
import os
import platform
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from math import gcd
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fastconv1d import compare, config, layers, ops, plan, timing
from fastconv1d.functional import conv1d, conv_transpose1d
from fastconv1d.layers import Layer
from fastconv1d.problem import Gpu, Problem
from fastconv1d.timing import Call, Timing

OPS = ("forward", "backward", "train")
"""What can be timed: the layer, all of its gradients, or both through autograd."""

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]

GPU_MODES = ("tf32", "ieee", "bf16")
CPU_MODES = ("ieee",)
CPU_FLOPS, CPU_BYTES, CPU_ALONE = 2e9, 64e6, 4
"""What a layer is cut down to on a CPU, so that a run takes seconds; alone, to four times that."""

CHECK_FLOPS, CHECK_BYTES = 2e8, 64e6
"""What a layer is cut down to for the check on small integers."""

SHAPE = (
    "batch",
    "channels_in",
    "channels_out",
    "length",
    "kernel_size",
    "stride",
    "padding",
    "output_padding",
    "dilation",
    "groups",
    "length_out",
)
"""The fields of a row's `shape`."""

BIASES: dict[str, Callable[[Problem], list[bool]]] = {
    "layer": lambda problem: [problem.bias],
    "yes": lambda problem: [True],
    "no": lambda problem: [False],
    "both": lambda problem: [False, True],
}
"""The values of `--bias`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a results file; docs/performance.md explains each field.

    A row that was not run says why in `skipped`; one that failed its check says how in `failure`
    and holds no times.
    """

    layer: str
    transposed: bool
    shape: dict[str, int]
    mode: str
    dtype: str
    bias: bool
    device: str
    forced: bool = False
    plan: str | None = None
    tuned: bool = False
    op: str = "forward"
    scaled: str | None = None
    skipped: str | None = None
    correct: bool | None = None
    failure: str | None = None
    checked: int | None = None
    error: float | None = None
    torch_error: float | None = None
    peak_error: float | None = None
    torch_peak_error: float | None = None
    torch_correct: bool | None = None
    less_accurate: str | None = None
    errors: dict[str, float] | None = None
    torch_errors: dict[str, float] | None = None
    ours_ms: float | None = None
    ours_spread: list[float] | None = None
    torch_ms: float | None = None
    torch_spread: list[float] | None = None
    torch_how: str | None = None
    im2col_ms: float | None = None
    im2col_spread: list[float] | None = None
    ratio: float | None = None
    floor_ms: float | None = None
    roofline_share: float | None = None
    host_us: float | None = None
    torch_host_us: float | None = None
    peak_bytes: int | None = None
    torch_peak_bytes: int | None = None
    im2col_peak_bytes: int | None = None
    copy_gbs: float | None = None
    matmul_tflops: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """The row as one flat JSON object, where and with what it was measured included."""
        values = asdict(self)
        origin: dict[str, Any] = values.pop("provenance")
        return values | origin


def run(
    chosen: Sequence[Layer],
    *,
    device: torch.device,
    modes: Sequence[str] = (),
    bias: str = "layer",
    plans: Sequence[str] = (),
    batch: int | None = None,
    length: int | None = None,
    operations: Sequence[str] = ("forward",),
    compile: bool = False,
    seconds: float = 1.0,
    commit: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Benchmarks layers and yields a row for each layer, mode, bias, op and plan.

    `modes` defaults to tf32, ieee and bf16 on a GPU, to ieee on a CPU; `bias` is a key of
    `BIASES`; `plans` are names for `algorithm` (default: the plan that the layer gets by itself);
    `operations` are of `OPS`. `seconds` is the time each row's race lasts. Falling back to another
    plan is an error inside.

    Raises:
        ValueError: a mode does not exist on the device, or something else than forward is to be
            compiled.
    """
    if compile and set(operations) != {"forward"}:
        raise ValueError("compile is for forward alone, expected no backward and no train with it")
    modes = modes or (GPU_MODES if device.type == "cuda" else CPU_MODES)
    if device.type == "cpu" and "tf32" in modes:
        raise ValueError("mode is 'tf32', expected one of ieee, bf16, fp16, fp64 on a CPU")
    gpu = Gpu.of(device) if device.type == "cuda" else None
    ceilings = timing.Ceilings(device)
    origin = provenance(device, commit)
    times = CPU_ALONE if len(chosen) == 1 else 1
    for layer in chosen:
        problem, scaled = _fit(layer.problem, batch, length, device, times)
        for mode in modes:
            for with_bias in BIASES[bias](problem):
                case = replace(problem, mode=mode, bias=with_bias, gpu=gpu)
                blank = _blank(layer, case, device, scaled, origin)
                races = ((op, algorithm) for op in operations for algorithm in plans or ("",))
                for op, algorithm in races:
                    sources = ops.sources_hash(device.type, forward=op == "forward")
                    row = replace(
                        blank,
                        op=op,
                        forced=algorithm in plans,
                        provenance={**origin, "sources_hash": sources},
                    )
                    what = f"{layer.name}, {mode}, {'bias' if with_bias else 'no bias'}"
                    progress(what if op == "forward" else f"{what}, {op}")
                    with strict(), timing.precision(mode), torch.no_grad():
                        row = _measure(row, case, algorithm, device, ceilings, compile, seconds)
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                    yield row


def _fit(
    problem: Problem, batch: int | None, length: int | None, device: torch.device, times: int = 1
) -> tuple[Problem, str | None]:
    wanted = replace(
        problem,
        batch=problem.batch if batch is None else batch,
        length=problem.length if length is None else length,
    )
    wanted.validate()
    fitting = wanted
    if device.type == "cpu":
        # What was asked for stays.
        free = [name for name, asked in (("batch", batch), ("length", length)) if asked is None]
        fitting = layers.shrink(wanted, times * CPU_FLOPS, times * CPU_BYTES, free)
    changes = [
        f"{name} {getattr(problem, name)} → {getattr(fitting, name)}"
        for name in ("batch", "length")
        if getattr(problem, name) != getattr(fitting, name)
    ]
    return fitting, ", ".join(changes) or None


def _blank(
    layer: Layer, case: Problem, device: torch.device, scaled: str | None, origin: dict[str, Any]
) -> Row:
    shape = {name: getattr(case, name) for name in SHAPE}
    return Row(
        layer=layer.name,
        transposed=case.transposed,
        shape=shape,
        mode=case.mode,
        dtype=str(case.dtype).removeprefix("torch."),
        bias=case.bias,
        device=device.type,
        scaled=scaled,
        provenance=origin,
    )


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Makes falling back to another plan an error inside."""
    saved = os.environ.get("FASTCONV1D_STRICT")
    os.environ["FASTCONV1D_STRICT"] = "1"
    try:
        yield
    finally:
        if saved is None:
            del os.environ["FASTCONV1D_STRICT"]
        else:
            os.environ["FASTCONV1D_STRICT"] = saved


class WrongError(Exception):
    """An output or a gradient failed the comparer."""


def _selected(case: Problem, algorithm: str, op: str) -> list[tuple[plan.Plan, plan.Plan]]:
    """What computes the output and the gradients of input and weight, as far as an op has them,
    each with what the cost model alone would take. One plan may be that of both gradients."""
    selected = []
    if op != "backward":
        selected.append((plan.select(case, algorithm), plan.model_choice(case)))
    if op != "forward":
        of_weight = plan.select(case.ordinary, algorithm, gradient=True)
        weights = (of_weight, of_weight)  # nobody tunes these
        if plan.in_one_pass(of_weight, case, algorithm):
            return [*selected, weights, weights]
        other = case.adjoint
        selected += [(plan.select(other, algorithm), plan.model_choice(other)), weights]
    return selected


def _measure(
    row: Row,
    case: Problem,
    algorithm: str,
    device: torch.device,
    ceilings: timing.Ceilings,
    compile: bool,
    seconds: float,
) -> Row:
    op = row.op
    try:
        selected = _selected(case, algorithm, op)
    except RuntimeError as error:
        return replace(row, skipped=str(error))
    plans = [chosen for chosen, _ in selected]
    by_model = bool(algorithm or config.forced_plan()) or all(one is two for one, two in selected)
    row = replace(row, plan=_together(plans), tuned=not by_model)
    rivals = {"ours": algorithm}
    columns = "ours" if op == "forward" and plans[0].family == "im2col" else None
    if op == "forward" and not columns and plan.explain(case, "im2col")[0][1] is None:
        columns = rivals["im2col"] = "im2col"
    try:
        if op != "backward":
            for rival in rivals.values():
                check_integers(case, plan.select(case, rival), device)
        if op != "forward":
            _check_integer_gradients(case, plans[-2:], algorithm, device)
        tensors = draw(case, device)
        grad_output = None if op == "forward" else _draw_grad_output(case, device)
        calls = {
            name: _bind(case, op, tensors, grad_output, rival)
            for name, rival in (rivals | {"torch": None}).items()
        }
        if grad_output is None:
            checks = _check_elements(case, plans[0], tensors, calls, device)
        else:
            checks = _check_gradients(case, plans, tensors, grad_output, calls, device)
        if compile:
            calls["torch.compile"] = torch.compile(calls["torch"], dynamic=False)
        floor: dict[str, Any] = {
            "copy_gbs": ceilings.copy_gbs,
            "matmul_tflops": ceilings.matmul_tflops(case.mode),
            "floor_ms": ceilings.floor_ms(case, op),
        }
        times = _times(columns, timing.race(calls, device, seconds))
        return replace(
            row,
            correct=True,
            roofline_share=floor["floor_ms"] / times["ours_ms"],
            **checks,
            **floor,
            **times,
            **_costs(case, op, algorithm, columns, calls, device),
        )
    except (WrongError, RuntimeError) as error:
        return replace(row, correct=False, failure=str(error))


def _together(plans: Sequence[plan.Plan]) -> str:
    """A row's `plan`: all of their names, or ATen's where it does everything."""
    if all(chosen.family == "aten" for chosen in plans):
        return "aten"
    # A plan of both gradients has one name.
    once = plans[:-1] if len(plans) > 1 and plans[-1] is plans[-2] else plans
    return " + ".join(chosen.name for chosen in once)


def _bind(
    case: Problem,
    op: str,
    tensors: Tensors,
    grad_output: torch.Tensor | None,
    algorithm: str | None,
) -> Callable[[], Any]:
    if grad_output is None:
        return bind(case, tensors, algorithm)
    return (bind_backward if op == "backward" else bind_train)(
        case, tensors, grad_output, algorithm
    )


def bind(
    case: Problem, tensors: Tensors, algorithm: str | None = None
) -> Callable[[], torch.Tensor]:
    """A call of our function, or of torch's where `algorithm` is None."""
    ours: Callable[..., torch.Tensor]
    theirs: Callable[..., torch.Tensor]
    geometry: tuple[int, ...]
    if case.transposed:
        ours, theirs = conv_transpose1d, F.conv_transpose1d
        geometry = (case.stride, case.padding, case.output_padding, case.groups, case.dilation)
    else:
        ours, theirs = conv1d, F.conv1d
        geometry = (case.stride, case.padding, case.dilation, case.groups)
    if algorithm is None:
        return functools.partial(theirs, *tensors, *geometry)
    return functools.partial(ours, *tensors, *geometry, algorithm=algorithm)


def bind_backward(
    case: Problem, tensors: Tensors, grad_output: torch.Tensor, algorithm: str | None = None
) -> Callable[[], Sequence[torch.Tensor | None]]:
    """A call of our operator for all gradients, or of ATen's where `algorithm` is None."""
    input, weight, _ = tensors
    arguments = (
        grad_output,
        input,
        weight,
        [case.channels_out] if case.bias else None,
        [case.stride],
        [case.padding],
        [case.dilation],
        case.transposed,
        [case.output_padding],
        case.groups,
        [True, True, case.bias],
    )
    if algorithm is None:
        return functools.partial(torch.ops.aten.convolution_backward.default, *arguments)
    return functools.partial(ops.convolution_backward, *arguments, algorithm)


def bind_train(
    case: Problem, tensors: Tensors, grad_output: torch.Tensor, algorithm: str | None = None
) -> Callable[[], Sequence[torch.Tensor | None]]:
    """A call of our function or torch's, as in `bind`, and of autograd: output and gradients."""
    input, weight, bias = (
        tensor if tensor is None else tensor.detach().requires_grad_() for tensor in tensors
    )
    assert input is not None and weight is not None
    leaves = [input, weight] if bias is None else [input, weight, bias]
    missing = [None] * (bias is None)
    forward = bind(case, (input, weight, bias), algorithm)

    def call() -> Sequence[torch.Tensor | None]:
        with torch.enable_grad():
            output = forward()
            gradients = torch.autograd.grad(output, leaves, grad_output)
        return output.detach(), *gradients, *missing

    return call


def draw(case: Problem, device: torch.device) -> Tensors:
    """Random tensors of a problem, the rows of its input as far apart as it says."""
    # Parameters are small enough to be drawn on the host; inputs of 2^31 elements are not.
    size = case.dtype.itemsize
    small = replace(case, batch=1, length=case.least_length)
    _, weight, bias = compare.draw(small, device, secrets.randbits(31))
    gaps = (gap for gap in range(16) if gcd(16, (case.length + gap) * size) == case.aligned)
    apart = case.length + next(gaps, 0)
    input = torch.randn(*case.input_shape[:2], apart, dtype=case.dtype, device=device)
    return input[..., : case.length], weight, bias


def _draw_grad_output(case: Problem, device: torch.device) -> torch.Tensor:
    return torch.randn(case.output_shape, dtype=case.dtype, device=device)


def _is_exact(case: Problem, chosen: plan.Plan) -> bool:
    """Whether a plan's sums of small integers are exact: those of torch's products may not be."""
    if chosen.family == "im2col":
        return case.dtype.itemsize >= 4
    return chosen.family != "aten"


def check_integers(case: Problem, chosen: plan.Plan, device: torch.device) -> None:
    """Small integers on a reduced shape must come out exactly: that finds index errors.

    Not asked of ATen's plan nor of 16-bit im2col, whose matrix products are torch's: those may
    round on the way, or transform.
    """
    if not _is_exact(case, chosen):
        return
    small = layers.shrink(case, CHECK_FLOPS, CHECK_BYTES)
    tensors = compare.draw(small, device, secrets.randbits(31), integers=True)
    output = bind(small, tensors, chosen.name)()
    verdict = compare.compare(output, *tensors, small, exact=True)
    if not verdict.ok:
        raise WrongError(f"{chosen.name}, small integers: {verdict.reason}")


def _check_integer_gradients(
    case: Problem, plans: Sequence[plan.Plan], algorithm: str, device: torch.device
) -> None:
    """The same of the gradients of input and weight, by the plans that compute them; that of the
    bias comes with the weight's."""
    exact = [_is_exact(case, chosen) for chosen in plans]
    if not any(exact):
        return
    small = layers.shrink(case, CHECK_FLOPS, CHECK_BYTES)
    seed = secrets.randbits(31)
    tensors = compare.draw(small, device, seed, integers=True)
    grad_output = compare.draw_grad_output(small, device, seed, integers=True)
    gradients = bind_backward(small, tensors, grad_output, algorithm)()
    judged = [
        gradient if wanted else None
        for gradient, wanted in zip(gradients, (*exact, exact[1]), strict=True)
    ]
    verdicts = compare.compare_gradients(judged, grad_output, *tensors[:2], small, exact=True)
    for verdict in verdicts.values():
        if not verdict.ok:
            names = ", ".join(chosen.name for chosen in plans)
            raise WrongError(f"{names}, small integers: {verdict.reason}")


def _check_elements(
    case: Problem,
    chosen: plan.Plan,
    tensors: Tensors,
    calls: Mapping[str, Callable[[], torch.Tensor]],
    device: torch.device,
) -> dict[str, Any]:
    """Every element of the real shape must lie within its bound around fp64, and the chosen plan
    must be what ran."""
    compare.poison_allocator(case.output_elements * case.dtype.itemsize, device, len(calls))
    with _running([chosen]):
        outputs = {name: call() for name, call in calls.items()}
    parts: dict[str, list[compare.Verdict]] = {name: [] for name in calls}
    for reference in compare.references(*tensors, case):
        rows = slice(reference.first, reference.first + len(reference.y64))
        for name, output in outputs.items():
            parts[name].append(compare.check(output[rows], reference, case))
    verdicts = {name: compare.merge(verdict) for name, verdict in parts.items()}
    for name in calls.keys() - {"torch"}:
        if not verdicts[name].ok:
            raise WrongError(f"{name}: {verdicts[name].reason}")
    ours, theirs = verdicts["ours"], verdicts["torch"]
    return {
        "checked": case.output_elements,
        "error": ours.relative_l2,
        "torch_error": theirs.relative_l2,
        "peak_error": ours.peak,
        "torch_peak_error": theirs.peak,
        "torch_correct": theirs.ok,
        "less_accurate": compare.less_accurate(ours, theirs, case) or None,
    }


@contextlib.contextmanager
def _running(plans: Sequence[plan.Plan]) -> Iterator[None]:
    """Raises WrongError unless these plans run inside; ATen's are not looked for."""
    before = ops.calls()
    yield
    after = ops.calls()
    for chosen in plans:
        if chosen.family != "aten" and after[chosen.name] == before[chosen.name]:
            raise WrongError(f"ours: plan {chosen.name} was selected and another one ran")


def _check_gradients(
    case: Problem,
    plans: Sequence[plan.Plan],
    tensors: Tensors,
    grad_output: torch.Tensor,
    calls: Mapping[str, Callable[[], Sequence[torch.Tensor | None]]],
    device: torch.device,
) -> dict[str, Any]:
    """`_check_elements` for all gradients, and for the output before them if a call returns it.

    Random errors cancel, so gradients must also be as precise as their arithmetic lets them be.
    """
    largest = max(case.input_elements, case.output_elements)
    compare.poison_allocator(largest * case.dtype.itemsize, device, 2 * len(calls))
    with _running(plans):
        results = {name: call() for name, call in calls.items()}
    verdicts = {
        name: _judged(case, tensors, grad_output, result) for name, result in results.items()
    }
    reasons = {
        name: [reason for what, one in some.items() if (reason := _complaint(case, what, one))]
        for name, some in verdicts.items()
    }
    if reasons["ours"]:
        raise WrongError(f"ours: {'; '.join(reasons['ours'])}")
    ours, theirs = verdicts["ours"], verdicts["torch"]
    weaker = [
        f"{what}: {reason}"
        for what, verdict in ours.items()
        if (reason := compare.less_accurate(verdict, theirs[what], case))
    ]
    errors, torch_errors = (
        {what: verdict.relative_l2 for what, verdict in some.items()} for some in (ours, theirs)
    )
    return {
        "checked": sum(tensor.numel() for tensor in results["ours"] if tensor is not None),
        "error": max(errors.values()),
        "torch_error": max(torch_errors.values()),
        "peak_error": max(verdict.peak for verdict in ours.values()),
        "torch_peak_error": max(verdict.peak for verdict in theirs.values()),
        "torch_correct": not reasons["torch"],
        "less_accurate": "; ".join(weaker) or None,
        "errors": errors,
        "torch_errors": torch_errors,
    }


def _judged(
    case: Problem,
    tensors: Tensors,
    grad_output: torch.Tensor,
    result: Sequence[torch.Tensor | None],
) -> dict[str, compare.Verdict]:
    *outputs, grad_input, grad_weight, grad_bias = result
    verdicts = {}
    if outputs and outputs[0] is not None:
        verdicts["output"] = compare.compare(outputs[0], *tensors, case)
    gradients = (grad_input, grad_weight, grad_bias)
    return verdicts | compare.compare_gradients(gradients, grad_output, *tensors[:2], case)


def _complaint(case: Problem, what: str, verdict: compare.Verdict) -> str:
    """What is wrong with an output or a gradient, or ''."""
    if verdict.reason or what == "output":
        return verdict.reason
    rows, columns, taps = case.weight_shape
    positions = case.length if case.transposed else case.length_out
    products, elements = {
        "grad_input": (case.channels_out // case.groups * taps, case.input_elements),
        "grad_weight": (case.batch * positions, rows * columns * taps),
        "grad_bias": (case.batch * case.length_out, case.channels_out),
    }[what]
    reason = compare.imprecise(verdict, products, elements, case)
    return reason and f"{what}: {reason}"


def _times(columns: str | None, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """`columns` names the call that is im2col's, if there is one."""
    how = min(timings.keys() - {"ours", "im2col"}, key=lambda name: timings[name].median)
    ours, theirs = timings["ours"], timings[how]
    im2col = timings[columns] if columns else None
    return {
        "ours_ms": ours.median,
        "ours_spread": [ours.p10, ours.p90],
        "torch_ms": theirs.median,
        "torch_spread": [theirs.p10, theirs.p90],
        "torch_how": how,
        "im2col_ms": im2col and im2col.median,
        "im2col_spread": im2col and [im2col.p10, im2col.p90],
        "ratio": theirs.median / ours.median,
    }


def _costs(
    case: Problem,
    op: str,
    algorithm: str,
    columns: str | None,
    calls: Mapping[str, Call],
    device: torch.device,
) -> dict[str, Any]:
    tiny = replace(case, batch=1, length=case.least_length + 7 * case.stride)
    tensors = draw(tiny, device)
    grad_output = None if op == "forward" else _draw_grad_output(tiny, device)
    host = timing.host_microseconds(
        {
            "ours": _bind(tiny, op, tensors, grad_output, algorithm),
            "torch": _bind(tiny, op, tensors, grad_output, None),
        },
        device,
    )
    return {
        "host_us": host["ours"],
        "torch_host_us": host["torch"],
        "peak_bytes": timing.peak_bytes(calls["ours"], device),
        "torch_peak_bytes": timing.peak_bytes(calls["torch"], device),
        "im2col_peak_bytes": timing.peak_bytes(calls[columns], device) if columns else None,
    }


def provenance(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Where a measurement comes from: sources, commit, machine, versions and date.

    A `commit` given is believed, for sources copied away from their history.
    """
    cuda = device.type == "cuda"
    cudnn_version: Callable[[], int | None] = torch.backends.cudnn.version
    commit, dirty = (commit, None) if commit else _git_state()
    return {
        "commit": commit,
        "dirty": dirty,
        "sources_hash": ops.sources_hash(device.type),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "driver": _driver() if cuda else None,
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "torch_huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn_version() if cuda else None,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _git_state() -> tuple[str | None, bool | None]:
    # An installed copy may lie inside somebody else's checkout: ask about a file of ours.
    here = Path(__file__)
    git = ("git", "-C", str(here.parent))
    if _output_of(*git, "ls-files", "--error-unmatch", here.name) is None:
        return None, None
    changes = _output_of(*git, "status", "--porcelain", "--", str(here.parent))
    return _output_of(*git, "rev-parse", "HEAD"), None if changes is None else bool(changes)


def _driver() -> str | None:
    listed = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return listed.splitlines()[0] if listed else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
