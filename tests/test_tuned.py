"""Tuned plans: the store survives anything, selection honours it, the command fills it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import forget_tuned
from fastconv1d import bench, cli, ops, plan, tune, tuned
from fastconv1d.problem import Gpu, Problem
from fastconv1d.tuned import Choice

ROOT = Path(__file__).parent.parent
H200 = Gpu("NVIDIA H200", (9, 0), 132)
LAYER = Problem(32, 64, 128, 131072, 3, mode="tf32", gpu=H200)
SMALL = Problem(2, 8, 16, 101, 3, padding=1, bias=True)
HEADER = (ROOT / "fastconv1d" / "layers.csv").read_text(encoding="utf-8").splitlines()[0]


def choice(name: str, ms: float = 1.0) -> Choice:
    return Choice(name, ms, "hopper_128x256", 2.0, "2026-01-02T03:04:05+00:00")


def keep(name: str, problem: Problem = LAYER, sources_hash: str | None = None) -> None:
    """Store a plan's name for a problem, and have the next selection read it."""
    place = tuned.context(problem.gpu, sources_hash or plan.hash_for(problem.gpu))
    tuned.store({place: {tuned.geometry(problem): choice(name)}})
    forget_tuned()


# ---------------------------------------------------------------------------------- the store


def test_what_is_stored_is_read_back_and_added_to(tuned_file: Path) -> None:
    tuned.store({"a": {"x": choice("aten"), "y": choice("direct")}})
    tuned.store({"a": {"x": choice("im2col")}, "b": {"x": choice("aten", 0.5)}})
    assert tuned.choices() == {
        "a": {"x": choice("im2col"), "y": choice("direct")},
        "b": {"x": choice("aten", 0.5)},
    }
    assert sorted(path.name for path in tuned_file.parent.iterdir()) == ["tuned.json", "tuned.lock"]


def test_contexts_written_last_are_kept(tuned_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "MOST_CONTEXTS", 2)
    for place in "abac":
        tuned.store({place: {"x": choice("aten")}})
    assert list(tuned.choices()) == ["a", "c"]


WRITER = """
import sys, time
from pathlib import Path
from fastconv1d import tuned
number, folder = int(sys.argv[1]), Path(sys.argv[2])
(folder / f"ready-{number}").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
for index in range(20):
    choice = tuned.Choice("aten", float(index), "aten", None, "")
    tuned.store({"place": {f"{number} {index}": choice}})
"""


def test_writers_in_several_processes_lose_nothing(tmp_path: Path, tuned_file: Path) -> None:
    environment = {**os.environ, "FASTCONV1D_CACHE_DIR": str(tuned_file.parent)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(number), str(tmp_path)],
            env=environment | {"PYTHONPATH": path},
        )
        for number in range(4)
    ]
    while len(list(tmp_path.glob("ready-*"))) < len(writers):
        assert all(writer.poll() is None for writer in writers)
    (tmp_path / "go").touch()
    assert [writer.wait(timeout=60) for writer in writers] == [0] * len(writers)
    assert len(tuned.choices()["place"]) == 4 * 20


BROKEN = {
    "empty": b"",
    "cut off": b'{"place": {"x": {"plan": "at',
    "no text": b"\xff\xfe",
    "a list": b"[1, 2]",
    "no geometry": b'{"place": 1}',
    "no choice": b'{"place": {"x": {"plan": "aten"}}}',
    "a plan that is no name": json.dumps(
        {"place": {"x": {"plan": [], "ms": 1, "model_plan": "", "model_ms": 1, "date": ""}}}
    ).encode(),
    "times that are none": json.dumps(
        {"place": {"x": {"plan": "", "ms": "1", "model_plan": "", "model_ms": 1, "date": ""}}}
    ).encode(),
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_gives_one_warning_and_is_written_anew(
    content: bytes, tuned_file: Path
) -> None:
    tuned_file.parent.mkdir(parents=True, exist_ok=True)
    tuned_file.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"not used: .*tuned\.json holds no") as caught:
        assert plan.select(LAYER).family == "hopper"
        assert plan.select(replace(LAYER, length=99)).family != ""
    assert len(caught) == 1
    assert tuned.status(None, "")["problem"]
    keep("direct")
    assert plan.select(LAYER).name == "direct" and tuned.status(None, "")["problem"] is None


def test_a_file_that_cannot_be_read_gives_one_warning(tuned_file: Path) -> None:
    tuned_file.mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="Is a directory") as caught:
        assert plan.select(LAYER).family == "hopper"
    assert len(caught) == 1


def test_without_a_home_folder_there_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(tuned, "path", nowhere)
    with pytest.warns(RuntimeWarning, match="home directory") as caught:
        assert plan.select(LAYER).family == "hopper"
    assert len(caught) == 1


def test_a_folder_that_cannot_be_written_to_is_an_error_of_storing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for folder in (Path("/proc/fastconv1d"), tmp_path / "file" / "folder"):
        monkeypatch.setattr(tuned, "path", lambda folder=folder: folder / "tuned.json")
        forget_tuned()
        with pytest.raises(OSError):
            tuned.store({"place": {"x": choice("aten")}})
    monkeypatch.setattr(tuned, "path", lambda: Path("/proc/fastconv1d/tuned.json"))
    forget_tuned()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan.select(LAYER).family == "hopper"


def test_a_file_is_never_seen_half_written(
    tuned_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.store({"a": {"x": choice("aten")}})
    before = tuned_file.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        tuned.store({"a": {"y": choice("aten")}})
    assert tuned_file.read_bytes() == before
    assert not list(tuned_file.parent.glob(".tuned-*"))


# -------------------------------------------------------------------------------- selection


def test_a_tuned_plan_comes_first_and_the_others_after_it() -> None:
    order = plan.candidates(LAYER)
    keep("dense_64x128")
    assert plan.select(LAYER).name == "dense_64x128"
    assert sorted(row.name for row in plan.candidates(LAYER)) == sorted(row.name for row in order)
    assert plan.model_choice(LAYER) is order[0]


def test_a_plan_that_only_runs_when_asked_for_can_be_tuned() -> None:
    keep("im2col")
    assert plan.select(LAYER).name == "im2col" and plan.candidates(LAYER)[-1].name != "im2col"


def test_a_choice_holds_for_its_bucket() -> None:
    keep("direct")
    # 131072 is the largest length of its bucket, of which rows are 16-byte aligned.
    assert plan.select(replace(LAYER, length=131072 - 4, batch=31)).name == "direct"
    for change in ({"length": 131072 - 1}, {"length": 131072 + 4}, {"batch": 30}, {"bias": True}):
        assert plan.select(replace(LAYER, **change)).name != "direct", change


@pytest.mark.parametrize("forced", ["algorithm", "environment"])
def test_what_is_asked_for_goes_first(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep("direct")
    if forced == "environment":
        monkeypatch.setenv("FASTCONV1D_PLAN", "aten")
    assert plan.select(LAYER, "aten" if forced == "algorithm" else "").name == "aten"
    assert plan.candidates(LAYER, "aten")[1].name == "direct"


def test_a_gradient_that_was_tuned_is_computed_by_itself() -> None:
    depthwise = Problem(8, 64, 64, 4096, 4, padding=3, groups=64, mode="bf16", gpu=LAYER.gpu)
    of_weight = plan.select(depthwise, gradient=True)
    assert plan.in_one_pass(of_weight, depthwise)
    keep("direct", depthwise.adjoint)
    assert not plan.in_one_pass(of_weight, depthwise)


@pytest.mark.parametrize("name", ["hopper_128x256", "no such plan"])
def test_a_plan_that_cannot_run_is_not_taken(name: str) -> None:
    ampere = replace(LAYER, gpu=Gpu("NVIDIA A100", (8, 0), 108))
    before = plan.candidates(ampere)
    keep(name, ampere)
    assert plan.candidates(ampere) == before and plan.tuned_choice(ampere) is None


def test_stale_choices_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    keep("direct", sources_hash="of other kernels")
    assert plan.select(LAYER).name != "direct"
    keep("direct")
    assert plan.select(LAYER).name == "direct"
    assert plan.select(replace(LAYER, gpu=replace(H200, name="NVIDIA H100"))).name != "direct"
    for module, name in ((torch, "__version__"), (torch.backends.cudnn, "version")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, "0.1" if name == "__version__" else lambda: 1)
            forget_tuned()
            assert plan.select(LAYER).name != "direct", name


PROCESS = """
import sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, arguments: event == "open" and opened.append(str(arguments[0])))
import torch
import fastconv1d
from fastconv1d import ops, tuned

tuned.path = lambda: Path(sys.argv[1])

def read():
    return sum(name.endswith("tuned.json") for name in opened)

at_import = read()
weight, bias = torch.ones(16, 8, 3), torch.ones(16)
for length in (101, 97, 333):
    fastconv1d.conv1d(torch.ones(2, 8, length), weight, bias, padding=1)
print(at_import, read(), ops.calls()["im2col"])
"""


def test_a_process_reads_once_at_its_first_selection_and_follows(tuned_file: Path) -> None:
    keep("im2col", SMALL)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", PROCESS, str(tuned_file)]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # 101 and 97 are of one bucket, for which im2col was stored; 333 is not.
    assert done.stdout.split() == ["0", "1", "2"]


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of a convolution, its transpose, and one more of the first one's bucket."""
    file = tmp_path / "layers.csv"
    rows = [
        f"Test,{name},{kind},2,8,16,3,1,1,0,1,1,1,{length},here"
        for name, kind, length in (
            ("first", "conv", 101),
            ("second", "transposed", 101),
            ("third", "conv", 97),
        )
    ]
    file.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return file


def tuned_rows(
    capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0
) -> list[dict[str, Any]]:
    """The rows that a quick `tune` on the CPU prints."""
    capsys.readouterr()
    options = ["--device", "cpu", "--seconds", "0.02", "--json"]
    assert cli.main(["tune", *map(str, arguments), *options]) == status
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_tune_times_every_plan_and_stores_the_fastest(
    table: Path, tuned_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tuned_rows(capsys, "--layers", table)
    assert [row["layer"] for row in rows] == ["Test · first", "Test · second"]
    for row in rows:
        assert (
            set(row["times_ms"]) == {"simd", "im2col", "aten"}
            and not row["wrong"]
            and not row["failed"]
        )
        assert row["model_plan"] == "simd" and row["model_ms"] == row["times_ms"]["simd"]
        assert row["best_ms"] == min(row["times_ms"].values())
        assert row["gain"] == pytest.approx(row["model_ms"] / row["best_ms"])
    forget_tuned()
    [stored] = tuned.choices().values()
    assert [one.plan for one in stored.values()] == [row["best_plan"] for row in rows]
    assert tuned.status(None, plan.sources_hash("cpu", forward=True))["choices"] == 2
    best = rows[0]["best_plan"]
    assert plan.select(SMALL).name == plan.select(replace(SMALL, length=97)).name == best

    found = plan.tuned_choice(SMALL)
    options = "--batch 2 --in-channels 8 --out-channels 16 --length 101 --kernel-size 3 --padding 1"
    options += " --bias --gpu none"
    assert cli.main(["plans", *options.split(), "--json"]) == 0
    [explained] = json.loads(capsys.readouterr().out)
    assert found and explained["plan"] == best == explained["tuned"]["plan"]
    why = {row["plan"]: row["why_not"] for row in explained["candidates"]}
    assert f"tuned on {found.date[:10]}, {found.ms:.3g} ms" in why[best]
    assert cli.main(["plans", *options.split(), "--algorithm", "aten", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tuned"] is None


def test_a_dry_run_stores_nothing_and_shows_a_table(
    table: Path, tuned_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["first", "--layers", str(table), "--device", "cpu", "--seconds", "0.02"]
    assert cli.main(["tune", *options, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert all(word in shown.out for word in ("Test · first", "gain", "×", "fastest plan"))
    assert "fastconv1d: Test · first, ieee" in shown.err
    assert not tuned_file.exists()


def test_a_wrong_plan_is_told_and_not_stored(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench.conv1d

    def wrong(*arguments: Any, algorithm: str = "") -> torch.Tensor:
        return right(*arguments, algorithm=algorithm) * (1.001 if algorithm == "im2col" else 1)

    monkeypatch.setattr(bench, "conv1d", wrong)
    [row] = tuned_rows(capsys, "first", "--layers", table, status=1)
    assert "im2col" in row["wrong"] and set(row["times_ms"]) == {"simd", "aten"}
    forget_tuned()
    [stored] = tuned.choices().values()
    assert [one.plan for one in stored.values()] == [row["best_plan"]]


def test_a_plan_that_does_not_run_is_told_and_the_others_race(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench.conv1d

    def fails(*arguments: Any, algorithm: str = "") -> torch.Tensor:
        if algorithm == "im2col":
            raise RuntimeError("no compiler")
        return right(*arguments, algorithm=algorithm)

    monkeypatch.setattr(bench, "conv1d", fails)
    [row] = tuned_rows(capsys, "first", "--layers", table)
    assert row["failed"] == {"im2col": "no compiler"}
    assert row["best_plan"] in ("simd", "aten")


def test_a_store_that_fails_is_told_after_all_is_shown(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "path", lambda: Path("/proc/fastconv1d/tuned.json"))
    options = ["--layers", str(table), "--device", "cpu", "--seconds", "0.02"]
    assert cli.main(["tune", *options]) == 1
    shown = capsys.readouterr()
    assert "Test · second" in shown.out
    assert shown.err.count("the plans are not stored") == 1


def test_torch_races_whatever_its_accuracy(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench.conv1d

    def rough(*arguments: Any, algorithm: str = "") -> torch.Tensor:
        return right(*arguments, algorithm=algorithm) * (1.001 if algorithm == "aten" else 1)

    monkeypatch.setattr(bench, "conv1d", rough)
    [row] = tuned_rows(capsys, "first", "--layers", table)
    assert set(row["times_ms"]) == {"simd", "im2col", "aten"} and "output" in row["inaccurate"]


MODEL = """
import torch
from torch import nn
from torch.nn import functional as F

import fastconv1d

class Model(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv1d(channels, 8, 3, padding="same", dilation=2)
        self.twice = nn.Conv1d(8, 8, 5, padding=2, groups=4, bias=False)
        self.up = nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1, output_padding=1)
        self.ours = fastconv1d.Conv1d(6, 6, 1)
        self.image = nn.Conv2d(1, 1, 3)

    def forward(self, x):
        y = self.ours(self.up(self.twice(self.twice(self.first(x)))))
        self.image(y.unsqueeze(1))
        F.conv1d(y[0], torch.ones(2, 6, 3))
        return F.conv1d(y.half()[:, :, 1:-2], torch.ones(3, 6, 3).half(), stride=3)

def get_inputs():
    return [torch.rand(2, 3, 20)]

def get_init_inputs():
    return [3]
"""


def test_a_models_convolutions_are_recorded(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(MODEL, encoding="utf-8")
    cases = tune.cases_of_model(file, [], torch.device("cpu"))
    assert [case.problem for case in cases] == [
        Problem(2, 3, 8, 20, 3, padding=2, dilation=2, bias=True),
        Problem(2, 8, 8, 20, 5, padding=2, groups=4),
        Problem(2, 8, 6, 20, 4, stride=2, padding=1, output_padding=1, transposed=True, bias=True),
        Problem(2, 6, 6, 41, 1, bias=True),
        Problem(1, 6, 2, 41, 3),
        Problem(2, 6, 3, 38, 3, stride=3, mode="fp16", row_alignment=2),
    ]
    assert cases[2].name == "model · 8->6 k4 s2 transposed of 2x20"
    both = tune.cases_of_model(file, ["ieee", "fp64"], torch.device("cpu"))
    assert {case.problem.mode for case in both} == {"ieee", "fp64"} and len(both) == 12
    # Rows an odd number of elements apart are so in any dtype.
    assert [case.problem.row_alignment for case in both[-2:]] == [4, 8]


def test_tune_of_a_model_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.py"
    file.write_text(MODEL, encoding="utf-8")
    rows = tuned_rows(capsys, "--model", file)
    assert len(rows) == 6 and all(row["best_plan"] for row in rows)
    assert set(rows[-1]["times_ms"]) == {"simd", "aten"}  # fp16: no im2col on the CPU


def test_inputs_are_drawn_with_the_rows_as_far_apart_as_recorded() -> None:
    for problem in (SMALL, *(replace(SMALL, row_alignment=aligned) for aligned in (4, 8, 16))):
        input, _, _ = bench.draw(problem, torch.device("cpu"))
        assert input.shape == (2, 8, 101)
        noted = replace(problem, row_alignment=tune.row_alignment(input))
        assert noted.aligned == problem.aligned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no layer is given"),
        (["67", "--model", "model.py"], "both --model and layers"),
        (["67", "--dtypes", "fp8"], "mode is 'fp8'"),
        (["67", "--dtypes", "tf32"], "mode is 'tf32'"),
        (["no such layer"], "layer is 'no such layer'"),
        (["--model", "nowhere.py"], "nowhere.py"),
    ],
)
def test_bad_usage_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", *arguments, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_convolutions_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    text = "import torch\nModel = torch.nn.ReLU\nget_init_inputs = list\n"
    file.write_text(text + "def get_inputs():\n    return [torch.ones(2)]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="runs no 1-D convolution"):
        tune.cases_of_model(file, [], torch.device("cpu"))


def test_a_benchmark_says_that_a_plan_was_tuned() -> None:
    layer = bench.Layer("Test", "small", SMALL, "here")
    keep("im2col", SMALL)
    options: dict[str, Any] = {"device": torch.device("cpu"), "seconds": 0.02}
    [row] = bench.run([layer], plans=[""], **options)
    assert (row.plan, row.tuned) == ("im2col", True)
    [row] = bench.run([layer], plans=["im2col"], **options)
    assert (row.plan, row.tuned) == ("im2col", False)


def test_doctor_tells_of_the_file(tuned_file: Path) -> None:
    here = None if not torch.cuda.is_available() else Gpu.of(torch.device("cuda"))
    keep("direct", replace(SMALL, gpu=here))
    keep("direct", LAYER, "of other kernels")
    facts = cli.diagnosis()["tuned"]
    assert facts == {
        "file": str(tuned_file),
        "choices": 1,
        "choices of other GPUs, kernels or versions": 1,
        "problem": None,
    }
    assert ops.sources_hash() == plan.sources_hash()
    assert len(plan.sources_hashes()) == 4
