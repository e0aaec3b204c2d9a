"""The command line: bench, tune, export, verify, plans, doctor, report."""

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastconv1d import (
    bench,
    build,
    config,
    export,
    layers,
    plan,
    report,
    tune,
    tuned,
    verify,
)
from fastconv1d.problem import Gpu, Problem

if TYPE_CHECKING:
    from rich.console import Console

SIMULATED = {
    "h200": export.TARGETS["90a"],
    "a100": export.TARGETS["80"],
    "t4": Gpu("Tesla T4", (7, 5), 40),
    "none": None,
}
"""What `plans --gpu` can pretend to run on; none is the CPU."""

OVERRIDES = {
    "batch": "batch",
    "in_channels": "channels_in",
    "out_channels": "channels_out",
    "length": "length",
    "kernel_size": "kernel_size",
    "stride": "stride",
    "padding": "padding",
    "output_padding": "output_padding",
    "dilation": "dilation",
    "groups": "groups",
}
"""Geometry options, and the field of `Problem` that each replaces."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 all well, 1 a check failed, 2 bad usage."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except (ValueError, OSError, build.BuildError) as error:
        print(f"fastconv1d: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("rich", "matplotlib"):
            raise
        print(
            f"fastconv1d: tables and pictures need {error.name}; install it with "
            "pip install 'fastconv1d[cli]', or ask for --json",
            file=sys.stderr,
        )
        return 2


# --- bench ------------------------------------------------------------------------------------


def _bench(arguments: argparse.Namespace) -> int:
    table = layers.load(arguments.layers)
    selectors = arguments.layer or (["all"] if arguments.layers else ["67"])
    device = torch.device(arguments.device)
    operations = [op for op in ("backward", "train") if getattr(arguments, op)] or ["forward"]
    rows = []
    with _progress() as progress, _appended(arguments.out) as append:
        for row in bench.run(
            layers.find(selectors, table),
            device=device,
            modes=_modes(arguments.mode, device),
            bias=arguments.bias,
            plans=arguments.plan,
            batch=arguments.batch,
            length=arguments.length,
            operations=operations,
            compile=arguments.compile,
            seconds=0.2 if arguments.quick else 1.0,
            commit=arguments.commit,
            progress=progress,
        ):
            rows.append(row.flat())
            line = json.dumps(rows[-1], ensure_ascii=False)
            append(line)
            if arguments.json:
                print(line, flush=True)
    if not arguments.json:
        _show_results(rows)
    if arguments.plot and any(row["correct"] for row in rows):
        report.plot(rows, arguments.plot)
    return 1 if any(row["correct"] is False for row in rows) else 0


def _modes(text: str, device: torch.device) -> list[str]:
    fp32 = ["ieee"] if device.type == "cpu" else ["tf32", "ieee"]
    modes: list[str] = []
    for word in filter(None, text.split(",")):
        if word != "fp32" and word not in config.MODES:
            raise ValueError(f"mode is {word!r}, expected fp32 or one of {', '.join(config.MODES)}")
        modes += fp32 if word == "fp32" else [word]
    return list(dict.fromkeys(modes))


@contextlib.contextmanager
def _appended(path: Path | None) -> Iterator[Callable[[str], None]]:
    if path is None:
        yield lambda line: None
        return
    with path.open("a", encoding="utf-8") as file:
        yield lambda line: print(line, file=file, flush=True)


@contextlib.contextmanager
def _progress(total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A status line on a terminal, or a bar of `total` steps, each begun by a call; plain lines
    elsewhere. On stderr, so that --json stays clean."""
    with contextlib.suppress(ModuleNotFoundError):
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

        console = Console(stderr=True)
        if console.is_terminal and total is None:
            with console.status("starting …") as status:
                yield status.update
            return
        if console.is_terminal:
            columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(SpinnerColumn(), *columns, console=console) as bar:
                task, steps = bar.add_task("starting …", total=total), itertools.count()
                yield lambda text: bar.update(task, description=text, completed=next(steps))
                bar.update(task, completed=total)
            return
    yield lambda text: print(f"fastconv1d: {text}", file=sys.stderr, flush=True)


def _show_results(rows: Sequence[Mapping[str, Any]]) -> None:
    if ran := [row for row in rows if not row["skipped"]]:
        title = report.machine(ran[0])
        rates = [row["copy_gbs"] for row in ran if row["copy_gbs"]]
        if rates:
            title += f"; copy {rates[0]:.0f} GB/s"
        columns = report.columns(ran)
        cells = [[cell(row) for cell in columns.values()] for row in ran]
        headers = list(columns)
        width = _console().width
        if width >= 160:
            _show(title, headers, cells)
        else:
            # A narrow terminal: the table lies on its side, as many layers a time as fit.
            count = max(1, (width - 25) // 25)
            for first in range(0, len(cells), count):
                names, *lines = zip(headers, *cells[first : first + count], strict=True)
                _show(title, names, lines)
        print(report.LEGEND)
        if any(row["op"] != "forward" for row in ran):
            print(report.TRAINING_LEGEND)
    for line in report.notes(rows):
        print(line)


# --- tune -------------------------------------------------------------------------------------


def _tune(arguments: argparse.Namespace) -> int:
    device = torch.device(arguments.device)
    modes = _modes(arguments.dtypes, device)
    if device.type == "cpu" and "tf32" in modes:
        raise ValueError("mode is 'tf32', expected one of ieee, bf16, fp16, fp64 on a CPU")
    if arguments.model:
        if arguments.layer or arguments.layers:
            raise ValueError("both --model and layers are given, expected one of them")
        cases = tune.cases_of_model(arguments.model, modes, device)
    else:
        if not (arguments.layer or arguments.layers):
            raise ValueError("no layer is given, expected some, --layers FILE or --model FILE.py")
        table = layers.find(arguments.layer or ["all"], layers.load(arguments.layers))
        cases = tune.cases_of(table, modes, device, arguments.bias)
    results = []
    unstored = ""
    with _progress(len(cases)) as progress:
        options = {"seconds": arguments.seconds, "progress": progress}
        for result in tune.run(cases, device, **options):
            results.append(result)
            if not (arguments.dry_run or unstored):
                try:
                    tune.store(result)
                except OSError as error:
                    unstored = str(error)
            if arguments.json:
                print(json.dumps(result.row(), ensure_ascii=False), flush=True)
    if not arguments.json:
        where = "stored nowhere" if arguments.dry_run or unstored else f"stored in {tuned.path()}"
        _show_tuned(f"fastest plans, {where}", results)
    for result in results:
        what = f"{result.case.name}, {result.case.problem.mode}"
        notes = {f"WRONG: {what}, {name}": text for name, text in result.wrong.items()}
        notes |= {f"did not run: {what}, {name}": text for name, text in result.failed.items()}
        if result.inaccurate:
            notes[f"torch: {what}"] = result.inaccurate
        for title, text in notes.items():
            print(f"fastconv1d: {title}: {text}", file=sys.stderr)
    if unstored:
        print(f"fastconv1d: the plans are not stored: {unstored}", file=sys.stderr)
    return 1 if unstored or any(result.wrong for result in results) else 0


def _show_tuned(title: str, results: Sequence[tune.Result]) -> None:
    rows = [
        [
            result.case.name,
            result.case.problem.mode,
            result.model_plan,
            _milliseconds(result.model_ms),
            result.best or "–",
            _milliseconds(result.best_ms),
            "–" if result.gain is None else f"{result.gain:.2f}×",
        ]
        for result in results
    ]
    headers = ["layer", "mode", "the model's plan", "ms", "fastest plan", "ms", "gain"]
    _show(title, headers, rows)


def _milliseconds(time: float | None) -> str:
    return "–" if time is None else f"{time:.3g}"


# --- export and verify ------------------------------------------------------------------------


def _export(arguments: argparse.Namespace) -> int:
    overrides = {name: getattr(arguments, name) for name in OVERRIDES}
    overrides["batch_size"] = overrides.pop("batch")
    problem = export.export(
        arguments.output,
        arguments.problem,
        arch=arguments.arch,
        bias=arguments.bias,
        **overrides,
    )
    shapes = {
        "file": str(arguments.output),
        "problem": arguments.problem,
        "arch": arguments.arch,
        "input": problem.input_shape,
        "weight": problem.weight_shape,
        "output": problem.output_shape,
        "bias": problem.bias,
    }
    _print_values(f"exported problem {arguments.problem}", shapes, arguments.json)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        progress(f"verifying {arguments.submission} against {arguments.reference}")
        verdict = verify.verify(
            arguments.reference,
            arguments.submission,
            trials=arguments.trials,
            dtype=arguments.dtype,
            device=arguments.device,
            seed=arguments.seed,
            seconds=arguments.seconds,
        )
    values = asdict(verdict) | {"speedup": verdict.speedup}
    _print_values("PASSED" if verdict.ok else "REJECTED", values, arguments.json)
    return 0 if verdict.ok else 1


# --- plans ------------------------------------------------------------------------------------


def _plans(arguments: argparse.Namespace) -> int:
    gpu = _gpu(arguments.gpu)
    given = {
        field: getattr(arguments, name)
        for name, field in OVERRIDES.items()
        if getattr(arguments, name) is not None
    }
    if arguments.explain is None and not given:
        rows = [_described(row) for row in plan.PLANS]
        if arguments.json:
            print(json.dumps(rows, indent=2))
        else:
            headers = list(rows[0])
            _show("plans", headers, [[str(row[name]) for name in headers] for row in rows])
        return 0
    known = layers.find([arguments.explain or "67"], layers.load())
    if len(known) > 1:
        names = "; ".join(layer.name for layer in known)
        raise ValueError(f"--explain is {arguments.explain!r}, expected one layer, not {names}")
    problem = replace(known[0].problem, gpu=gpu, **given)
    problem = replace(problem, bias=problem.bias if arguments.bias is None else arguments.bias)
    problem.validate()
    modes = [arguments.mode] if arguments.mode else ["ieee"] if gpu is None else list(config.MODES)
    explained = [_explained(replace(problem, mode=mode), arguments.algorithm) for mode in modes]
    if arguments.json:
        print(json.dumps(explained, indent=2))
        return 0
    for answer in explained:
        _show(
            f"{known[0].name}, {answer['mode']}, on {gpu.name if gpu else 'the CPU'}: "
            f"{answer['plan'] or 'no plan'}",
            ["plan", "cost, µs (model)", "why not"],
            [[row["plan"], _text(row["cost_us"]), row["why_not"]] for row in answer["candidates"]],
        )
    return 0


def _described(row: plan.Plan) -> dict[str, Any]:
    return {
        "plan": row.name,
        "family": row.family,
        "modes of the tensor-core tile": ", ".join(row.tiles) or "–",
        "chosen by itself": "yes" if row.automatic else "no, only when asked for",
    }


def _explained(problem: Problem, algorithm: str) -> dict[str, Any]:
    rows = plan.explain(problem, algorithm)
    legal = any(why_not is None for _, why_not, _ in rows)
    chosen = plan.select(problem, algorithm) if legal else None
    tuned_choice = None if algorithm or config.forced_plan() else plan.tuned_choice(problem)
    taken = _tuned(tuned_choice) if tuned_choice else "taken"
    return {
        "mode": problem.mode,
        "input": problem.input_shape,
        "weight": problem.weight_shape,
        "output": problem.output_shape,
        "plan": chosen and chosen.name,
        "candidates": [
            {
                "plan": row.name,
                "cost_us": None if why_not else round(cost, 1),
                "why_not": (
                    taken if row is chosen else why_not or _outdone(row, problem, tuned_choice)
                ),
            }
            for row, why_not, cost in rows
        ],
        "tuned": tuned_choice and asdict(tuned_choice),
    }


def _tuned(choice: tuned.Choice) -> str:
    model = f"the model's {choice.model_plan} took {_milliseconds(choice.model_ms)} ms"
    return f"taken: tuned on {choice.date[:10]}, {choice.ms:.3g} ms; {model}"


def _outdone(row: plan.Plan, problem: Problem, choice: tuned.Choice | None) -> str:
    if choice:
        return f"{choice.plan} was tuned for it"
    if not row.automatic:
        return "runs only when asked for"
    return "slower by the model" if problem.gpu else "torch's own CPU kernels are faster"


def _gpu(name: str | None) -> Gpu | None:
    if name is not None:
        return SIMULATED[name]
    return Gpu.of(torch.device("cuda")) if torch.cuda.is_available() else None


# --- doctor and report ------------------------------------------------------------------------


def diagnosis() -> dict[str, Any]:
    """What `doctor` tells: machine, versions, compilers, cache, libraries and what falls back."""
    gpu = _gpu(None)
    arch = build.arch_of(gpu.capability) if gpu else "cpu"
    facts = bench.provenance(torch.device("cuda" if gpu else "cpu"))
    built = build.status(arch)
    built["cannot_build"] = built.pop("problem")
    built.pop("sources_hash")  # of csrc/ alone: provenance counts the generated glue in
    entries = built.pop("entries")
    if gpu is None:
        fallback = "no GPU: kernels for this processor, and ATen where it is faster"
        needed = list(plan.CPU_LIBRARIES)
    else:
        fallback = "nothing but what a plan leaves to ATen"
        needed = list(plan.libraries(arch))
    if built["cannot_build"]:
        fallback = f"everything runs on ATen: {built['cannot_build']}"
    return {
        **facts,
        "capability": gpu and gpu.capability,
        "arch": arch,
        "fp32_mode": config.fp32_mode() if gpu else "ieee",
        **built,
        "libraries": {name: _built(name, arch, entries) for name in needed},
        "fallback": fallback,
        "tuned": tuned.status(gpu, plan.hash_for(gpu)),
        "environment": {name: os.environ.get(name) for name in config.ENVIRONMENT},
    }


def _built(name: str, arch: str, entries: Sequence[Mapping[str, Any]]) -> str:
    archs = ("cuda", arch) if name == "binding_cuda" else (arch,)
    ages = [entry["age"] for entry in entries if entry["name"] == name and entry["arch"] in archs]
    return f"in the cache, {min(ages) / 3600:.1f} h old" if ages else "built when first needed"


def _doctor(arguments: argparse.Namespace) -> int:
    facts = diagnosis()
    _print_values("fastconv1d doctor", facts, arguments.json)
    return 1 if facts["cannot_build"] or facts["cache_problem"] else 0


def _report(arguments: argparse.Namespace) -> int:
    in_step = report.update(arguments.root, plan.sources_hashes(), write=not arguments.check)
    stale = arguments.check and not in_step
    if arguments.json:
        print(json.dumps({"in_step": in_step}))
    elif stale:
        print(
            "README.md, docs/results.md or a picture is out of step with benchmarks/results: "
            "run `fastconv1d report`"
        )
    return 1 if stale else 0


# --- tables -----------------------------------------------------------------------------------


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    # A file or pipe has no width: wide enough for one line a row.
    return console if console.is_terminal else Console(width=220)


def _show(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    _console().print(table)


def _print_values(title: str, values: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += [[f"{name}: {key}", _text(item)] for key, item in value.items()]
        else:
            rows.append([name, _text(value)])
    _show(title, ["", ""], rows)


def _text(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, (list, tuple)):
        separator = "\n" if value and isinstance(value[0], str) else ", "
        return separator.join(map(str, value)) or "–"
    return str(value)


# --- arguments --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastconv1d", description="1-D convolution on its own CUDA kernels."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=run)
        sub.add_argument("--json", action="store_true", help="JSON instead of a table")
        return sub

    default_device = "cuda" if torch.cuda.is_available() else "cpu"

    sub = command("bench", _bench, "check layers against fp64, then race them against torch")
    sub.add_argument(
        "layer", nargs="*", help="KernelBench number, part of a layer's name, or all (default: 67)"
    )
    sub.add_argument("--layers", type=Path, metavar="FILE", help="another layer table (CSV)")
    sub.add_argument(
        "--mode",
        "--dtype",
        default="",
        help="comma-separated: tf32, ieee, bf16, fp16, fp64, or fp32 for the first two "
        "(default: tf32,ieee,bf16 on a GPU, ieee on a CPU)",
    )
    sub.add_argument(
        "--bias", choices=list(bench.BIASES), default="layer", help="default: as the layer has it"
    )
    sub.add_argument("--batch", type=int, help="of each layer; kept where there is no GPU, too")
    sub.add_argument("--length", type=int, help="likewise")
    sub.add_argument(
        "--plan",
        action="append",
        default=[],
        metavar="NAME",
        help="measure this plan or family instead of the one chosen; may be repeated",
    )
    sub.add_argument(
        "--backward", action="store_true", help="time all gradients instead of the layer's output"
    )
    sub.add_argument(
        "--train", action="store_true", help="time forward and backward through autograd instead"
    )
    sub.add_argument("--compile", action="store_true", help="let torch.compile race too (slow)")
    sub.add_argument("--quick", action="store_true", help="fewer repetitions")
    sub.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of the speed-ups")
    sub.add_argument("--out", type=Path, metavar="FILE", help="append the rows to this JSONL file")
    sub.add_argument("--commit", help="commit to record, instead of what git says")
    sub.add_argument("--device", choices=("cuda", "cpu"), default=default_device)

    sub = command("tune", _tune, "time every plan that can run a layer, and store the fastest")
    sub.add_argument("layer", nargs="*", help="KernelBench number, part of a layer's name, or all")
    sub.add_argument("--layers", type=Path, metavar="FILE", help="another layer table (CSV)")
    sub.add_argument(
        "--model",
        type=Path,
        metavar="FILE.py",
        help="the 1-D convolutions that this file's Model runs; as for verify, it has Model, "
        "get_inputs and get_init_inputs",
    )
    sub.add_argument(
        "--dtypes",
        "--mode",
        default="",
        help="as bench's --mode (default: bench's; with --model, what the model runs in)",
    )
    sub.add_argument(
        "--bias", choices=list(bench.BIASES), default="layer", help="default: as the layer has it"
    )
    sub.add_argument(
        "--seconds", type=float, default=1.0, help="time to spend on timing a layer (default: 1)"
    )
    sub.add_argument("--dry-run", action="store_true", help="store nothing")
    sub.add_argument("--device", choices=("cuda", "cpu"), default=default_device)

    sub = command("export", _export, "write one convolution as a self-contained ModelNew file")
    numbers = ", ".join(map(str, export.SIGNATURES))
    sub.add_argument(
        "--problem", type=int, default=67, help=f"of KernelBench level 1: {numbers} (default: 67)"
    )
    sub.add_argument("-o", "--output", type=Path, default=Path("model_new.py"))
    sub.add_argument(
        "--arch",
        choices=list(export.TARGETS),
        default="90a",
        help="for this architecture and, with the portable kernel, newer ones (default: 90a)",
    )
    _add_geometry(sub)

    sub = command("verify", _verify, "compare and race a submission against its reference")
    sub.add_argument("reference", type=Path)
    sub.add_argument("submission", type=Path)
    sub.add_argument("--trials", type=int, default=3, help="fresh inputs to compare on")
    sub.add_argument("--dtype", choices=list(verify.DTYPES), default="fp32")
    sub.add_argument("--seed", type=int, help="of the inputs (default: drawn)")
    sub.add_argument("--seconds", type=float, default=1.0, help="time to spend on timing, 0: none")
    sub.add_argument("--device", choices=("cuda", "cpu"), default=default_device)

    sub = command("plans", _plans, "the table of plans; which one a convolution gets, and why")
    sub.add_argument("--explain", metavar="LAYER", help="KernelBench number or part of a name")
    sub.add_argument("--mode", choices=config.MODES, help="default: all of the device's")
    sub.add_argument("--algorithm", default="", help="explain this plan or family only")
    sub.add_argument(
        "--gpu", choices=list(SIMULATED), help="pretend to run on it (default: this machine)"
    )
    _add_geometry(sub)

    command("doctor", _doctor, "what is installed, what is built, what would fall back and why")

    sub = command(
        "report",
        _report,
        "bring README, docs/results.md and pictures in step with benchmarks/results",
    )
    sub.add_argument("--check", action="store_true", help="change nothing; status 1 if out of step")
    sub.add_argument("--root", type=Path, default=Path(), help="source tree (default: here)")
    return parser


def _add_geometry(parser: argparse.ArgumentParser) -> None:
    for name in OVERRIDES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    parser.add_argument("--bias", action=argparse.BooleanOptionalAction, default=None)
