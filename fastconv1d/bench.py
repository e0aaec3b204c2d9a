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

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]

GPU_MODES = ("tf32", "ieee", "bf16")
CPU_MODES = ("ieee",)
CPU_FLOPS, CPU_BYTES = 2e9, 64e6
"""What a layer is cut down to on a CPU, so that a run takes seconds."""

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
    compile: bool = False,
    seconds: float = 1.0,
    commit: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Benchmarks layers and yields a row for each layer, mode, bias and plan.

    `modes` defaults to tf32, ieee and bf16 on a GPU, to ieee on a CPU; `bias` is a key of
    `BIASES`; `plans` are names for `algorithm` (default: the plan that the layer gets by itself,
    which on a CPU is ATen, so that im2col is measured there). `seconds` is the time each row's
    race lasts. Falling back to another plan is an error inside.

    Raises:
        ValueError: a mode does not exist on the device.
    """
    modes = modes or (GPU_MODES if device.type == "cuda" else CPU_MODES)
    if device.type == "cpu" and "tf32" in modes:
        raise ValueError("mode is 'tf32', expected one of ieee, bf16, fp16, fp64 on a CPU")
    gpu = Gpu.of(device) if device.type == "cuda" else None
    ceilings = timing.Ceilings(device)
    origin = provenance(device, commit)
    for layer in chosen:
        problem, scaled = _fit(layer.problem, batch, length, device)
        for mode in modes:
            for with_bias in BIASES[bias](problem):
                case = replace(problem, mode=mode, bias=with_bias, gpu=gpu)
                blank = _blank(layer, case, device, scaled, origin)
                for algorithm in plans or _default_algorithms(case):
                    row = replace(blank, forced=algorithm in plans)
                    progress(f"{layer.name}, {mode}, {'bias' if with_bias else 'no bias'}")
                    with strict(), timing.precision(mode), torch.no_grad():
                        row = _measure(row, case, algorithm, device, ceilings, compile, seconds)
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                    yield row


def _default_algorithms(case: Problem) -> tuple[str]:
    legal = plan.explain(case, "im2col")[0][1] is None
    return ("im2col",) if case.gpu is None and legal else ("",)


def _fit(
    problem: Problem, batch: int | None, length: int | None, device: torch.device
) -> tuple[Problem, str | None]:
    wanted = replace(
        problem,
        batch=problem.batch if batch is None else batch,
        length=problem.length if length is None else length,
    )
    wanted.validate()
    fitting = wanted if device.type == "cuda" else layers.shrink(wanted, CPU_FLOPS, CPU_BYTES)
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
    """An output failed the comparer."""


def _measure(
    row: Row,
    case: Problem,
    algorithm: str,
    device: torch.device,
    ceilings: timing.Ceilings,
    compile: bool,
    seconds: float,
) -> Row:
    try:
        chosen = plan.select(case, algorithm)
    except RuntimeError as error:
        return replace(row, skipped=str(error))
    by_model = bool(algorithm or config.forced_plan()) or chosen is plan.model_choice(case)
    row = replace(row, plan=chosen.name, tuned=not by_model)
    rivals = {"ours": algorithm}
    if chosen.family != "im2col" and plan.explain(case, "im2col")[0][1] is None:
        rivals["im2col"] = "im2col"
    try:
        for rival in rivals.values():
            check_integers(case, plan.select(case, rival), device)
        tensors = draw(case, device)
        calls = {name: bind(case, tensors, rival) for name, rival in rivals.items()}
        calls["torch"] = bind(case, tensors)
        checks = _check_elements(case, chosen, tensors, calls, device)
        if compile:
            calls["torch.compile"] = torch.compile(calls["torch"], dynamic=False)
        floor: dict[str, Any] = {
            "copy_gbs": ceilings.copy_gbs,
            "matmul_tflops": ceilings.matmul_tflops(case.mode),
            "floor_ms": ceilings.floor_ms(case),
        }
        times = _times(chosen, timing.race(calls, device, seconds))
        return replace(
            row,
            correct=True,
            roofline_share=floor["floor_ms"] / times["ours_ms"],
            **checks,
            **floor,
            **times,
            **_costs(case, algorithm, calls, device),
        )
    except (WrongError, RuntimeError) as error:
        return replace(row, correct=False, failure=str(error))


def bind(case: Problem, tensors: Tensors, algorithm: str | None = None) -> Call:
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


def check_integers(case: Problem, chosen: plan.Plan, device: torch.device) -> None:
    """Small integers on a reduced shape must come out exactly: that finds index errors.

    Not asked of ATen's plan nor of 16-bit im2col, whose matrix products are torch's: those may
    round on the way, or transform.
    """
    if chosen.family == "aten" or (chosen.family == "im2col" and case.dtype.itemsize < 4):
        return
    small = layers.shrink(case, CHECK_FLOPS, CHECK_BYTES)
    tensors = compare.draw(small, device, secrets.randbits(31), integers=True)
    output = bind(small, tensors, chosen.name)()
    verdict = compare.compare(output, *tensors, small, exact=True)
    if not verdict.ok:
        raise WrongError(f"{chosen.name}, small integers: {verdict.reason}")


def _check_elements(
    case: Problem,
    chosen: plan.Plan,
    tensors: Tensors,
    calls: Mapping[str, Call],
    device: torch.device,
) -> dict[str, Any]:
    """Every element of the real shape must lie within its bound around fp64, and the chosen plan
    must be what ran."""
    compare.poison_allocator(case.output_elements * case.dtype.itemsize, device, len(calls))
    before = ops.calls()[chosen.name]
    outputs = {name: call() for name, call in calls.items()}
    if chosen.family != "aten" and ops.calls()[chosen.name] == before:
        raise WrongError(f"ours: plan {chosen.name} was selected and another one ran")
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


def _times(chosen: plan.Plan, timings: Mapping[str, Timing]) -> dict[str, Any]:
    how = min(timings.keys() - {"ours", "im2col"}, key=lambda name: timings[name].median)
    ours, theirs = timings["ours"], timings[how]
    columns = ours if chosen.family == "im2col" else timings.get("im2col")
    return {
        "ours_ms": ours.median,
        "ours_spread": [ours.p10, ours.p90],
        "torch_ms": theirs.median,
        "torch_spread": [theirs.p10, theirs.p90],
        "torch_how": how,
        "im2col_ms": columns and columns.median,
        "im2col_spread": columns and [columns.p10, columns.p90],
        "ratio": theirs.median / ours.median,
    }


def _costs(
    case: Problem, algorithm: str, calls: Mapping[str, Call], device: torch.device
) -> dict[str, Any]:
    tiny = replace(case, batch=1, length=case.least_length + 7 * case.stride)
    tensors = draw(tiny, device)
    host = timing.host_microseconds(
        {
            "ours": bind(tiny, tensors, algorithm),
            "torch": bind(tiny, tensors),
        },
        device,
    )
    columns = calls["im2col" if "im2col" in calls else "ours"]
    return {
        "host_us": host["ours"],
        "torch_host_us": host["torch"],
        "peak_bytes": timing.peak_bytes(calls["ours"], device),
        "torch_peak_bytes": timing.peak_bytes(calls["torch"], device),
        "im2col_peak_bytes": timing.peak_bytes(columns, device),
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
        "sources_hash": ops.sources_hash(),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "driver": _driver() if cuda else None,
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
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
