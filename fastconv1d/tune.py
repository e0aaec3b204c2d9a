"""The tuner: times every plan that can run a convolution, and stores the fastest one's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastconv1d import bench, compare, ops, plan, timing, tuned, verify
from fastconv1d.layers import Layer
from fastconv1d.problem import MODE_DTYPES, Gpu, Problem, row_alignment
from fastconv1d.timing import Timing

FINALISTS = 3
"""Plans that race each other again, with the model's, after the first race of all."""


@dataclass(frozen=True, slots=True)
class Case:
    """One convolution to tune, and what it is called."""

    name: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Result:
    """What was found out about one convolution: times in ms by plan, and who did not race, and why.

    `best` is the fastest plan's name, None if none ran; `wrong` are the plans whose output failed
    the comparer, `failed` those that did not run. torch's own convolution races whatever its
    accuracy, for it is what runs without us; `inaccurate` says what the comparer finds wrong.
    """

    case: Case
    model_plan: str
    best: str | None
    times: Mapping[str, Timing]
    wrong: Mapping[str, str]
    failed: Mapping[str, str]
    inaccurate: str

    @property
    def model_ms(self) -> float | None:
        """The time of the plan that the cost model would take."""
        return self.times[self.model_plan].median if self.model_plan in self.times else None

    @property
    def best_ms(self) -> float | None:
        """The fastest plan's time."""
        return self.times[self.best].median if self.best else None

    @property
    def gain(self) -> float | None:
        """The time of the model's plan over that of the fastest one."""
        return self.model_ms / self.best_ms if self.model_ms and self.best_ms else None

    def row(self) -> dict[str, Any]:
        """The result as one flat JSON object."""
        return {
            "layer": self.case.name,
            "geometry": tuned.geometry(self.case.problem),
            "model_plan": self.model_plan,
            "model_ms": self.model_ms,
            "best_plan": self.best,
            "best_ms": self.best_ms,
            "gain": self.gain,
            "times_ms": {name: timing.median for name, timing in self.times.items()},
            "wrong": dict(self.wrong),
            "failed": dict(self.failed),
            "inaccurate": self.inaccurate,
        }


# --- what to tune -------------------------------------------------------------------------------


def cases_of(
    chosen: Sequence[Layer], modes: Sequence[str], device: torch.device, bias: str = "layer"
) -> list[Case]:
    """The distinct convolutions of layers in these modes (default: as `fastconv1d bench`)."""
    modes = modes or (bench.GPU_MODES if device.type == "cuda" else bench.CPU_MODES)
    gpu = Gpu.of(device) if device.type == "cuda" else None
    return _distinct(
        Case(layer.name, replace(layer.problem, mode=mode, bias=with_bias, gpu=gpu))
        for layer in chosen
        for mode in modes
        for with_bias in bench.BIASES[bias](layer.problem)
    )


def cases_of_model(path: Path, modes: Sequence[str], device: torch.device) -> list[Case]:
    """The distinct 1-D convolutions that a KernelBench file's Model runs on its own inputs.

    Each is tuned in the arithmetic that the model runs it in, or in `modes` if there are any.
    Raises: ValueError if the file lacks a name, or the model runs no such convolution.
    """
    names = verify.load_reference(path)
    model = verify.build_model(names["Model"], names).to(device)
    inputs = [
        value.to(device) if isinstance(value, torch.Tensor) else value
        for value in names["get_inputs"]()
    ]
    with torch.no_grad(), Recorder() as recorder:
        model(*inputs)
    if not recorder.problems:
        raise ValueError(f"{path} runs no 1-D convolution, expected a Model that does")
    return _distinct(
        Case(f"{path.stem} · {_described(problem)}", _in_mode(problem, mode))
        for problem in recorder.problems
        for mode in modes or [problem.mode]
    )


class Recorder(TorchDispatchMode):
    """Notes the 1-D convolutions that run inside, torch's and ours, forward and transposed."""

    OPERATORS = (torch.ops.aten.convolution.default, ops.convolution)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.problems: list[Problem] = []

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        """Runs the operator, having looked at its arguments."""
        if function in self.OPERATORS and arguments[0].dim() == 3:
            self._note(*arguments[:9])
        return function(*arguments, **(keywords or {}))

    def _note(self, input: torch.Tensor, *rest: Any) -> None:
        try:
            problem = Problem.from_tensors(input, *rest)
        except ValueError:
            return  # torch will say what is wrong, or run what is not ours
        self.problems.append(replace(problem, row_alignment=row_alignment(input)))


def _distinct(cases: Iterator[Case]) -> list[Case]:
    # Problems of one bucket get one plan; an empty batch needs none.
    first: dict[Problem, Case] = {}
    for case in cases:
        if case.problem.batch:
            first.setdefault(case.problem.bucketed(), case)
    return list(first.values())


def _in_mode(problem: Problem, mode: str) -> Problem:
    """The problem in another mode, with the layout that its input would have in that dtype."""
    size, new_size = problem.dtype.itemsize, MODE_DTYPES[mode].itemsize
    aligned = min(16, problem.row_alignment * new_size // size)
    return replace(problem, mode=mode, row_alignment=aligned)


def _described(problem: Problem) -> str:
    words = [f"{problem.channels_in}->{problem.channels_out} k{problem.kernel_size}"]
    for letter, value in (("s", problem.stride), ("d", problem.dilation), ("g", problem.groups)):
        words += [f"{letter}{value}"] if value > 1 else []
    words += ["transposed"] if problem.transposed else []
    return " ".join([*words, f"of {problem.batch}x{problem.length}"])


# --- tuning -------------------------------------------------------------------------------------


def run(
    cases: Sequence[Case],
    device: torch.device,
    *,
    seconds: float = 1.0,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Result]:
    """Tunes each case and yields what was found; `seconds` is the time that a case's races last."""
    for case in cases:
        progress(f"{case.name}, {case.problem.mode}")
        with bench.strict(), timing.precision(case.problem.mode), torch.no_grad():
            result = _tune(case, device, seconds)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield result


def store(result: Result) -> None:
    """Stores the fastest plan, if any ran, for processes to come.

    Raises: OSError where the file cannot be written.
    """
    if result.best is None or result.best_ms is None:
        return
    choice = tuned.Choice(
        plan=result.best,
        ms=result.best_ms,
        model_plan=result.model_plan,
        model_ms=result.model_ms,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    problem = result.case.problem
    place = tuned.context(problem.gpu, plan.hash_for(problem.gpu))
    tuned.store({place: {tuned.geometry(problem): choice}})


def _tune(case: Case, device: torch.device, seconds: float) -> Result:
    problem, model = case.problem, plan.model_choice(case.problem).name
    tensors = bench.draw(problem, device)
    calls: dict[str, timing.Call] = {}
    wrong, failed, inaccurate = {}, {}, ""
    for candidate, why_not, _ in plan.explain(problem):
        if why_not is not None:
            continue
        try:
            reason = _why_wrong(problem, candidate, tensors, device)
        except RuntimeError as error:  # it does not build, or memory is short
            failed[candidate.name] = str(error)
            continue
        if reason and candidate.family == "aten":
            inaccurate = reason
        elif reason:
            wrong[candidate.name] = reason
            continue
        calls[candidate.name] = bench.bind(problem, tensors, candidate.name)
    times: dict[str, Timing] = {}
    best = None
    if calls:
        # All race first, in few rounds where one of them is slow; then the best and the model's.
        times = timing.race(calls, device, seconds / 2)
        ranked = sorted(times, key=lambda name: times[name].median)
        final = {name: calls[name] for name in calls if name in (*ranked[:FINALISTS], model)}
        decisive = timing.race(final, device, seconds / 2)
        times |= decisive
        best = min(decisive, key=lambda name: decisive[name].median)
    return Result(case, model, best, times, wrong, failed, inaccurate)


def _why_wrong(
    problem: Problem, candidate: plan.Plan, tensors: bench.Tensors, device: torch.device
) -> str:
    """What is wrong with a plan's output, to its last element, or ''."""
    try:
        bench.check_integers(problem, candidate, device)
    except bench.WrongError as error:
        return str(error)
    compare.poison_allocator(problem.output_elements * problem.dtype.itemsize, device, 1)
    before = ops.calls()[candidate.name]
    output = bench.bind(problem, tensors, candidate.name)()
    if candidate.family != "aten" and ops.calls()[candidate.name] == before:
        return "another plan ran"
    return compare.compare(output, *tensors, problem).reason
