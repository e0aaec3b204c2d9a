"""The command line, in this process and as `python -m fastconv1d`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastconv1d import bench, cli, config, ops, plan, report

ROOT = Path(__file__).parent.parent
HEADER = (ROOT / "fastconv1d" / "layers.csv").read_text(encoding="utf-8").splitlines()[0]

REFERENCE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1d = nn.Conv1d(channels, 4, 3)
    def forward(self, x):
        return self.conv1d(x)

def get_inputs():
    return [torch.rand(2, 3, 20)]

def get_init_inputs():
    return [3]
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with one small convolution and its transpose."""
    file = tmp_path / "layers.csv"
    rows = [f"Test,{kind},{kind},2,8,24,3,1,1,0,1,1,1,101,here" for kind in ("conv", "transposed")]
    file.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return file


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    cli.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def test_doctor_as_a_module_prints_the_sources_hash() -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "fastconv1d", "doctor", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"FASTCONV1D_PLAN": "aten", "PYTHONPATH": path},
        check=False,
    )
    facts = json.loads(done.stdout)
    assert done.returncode == (1 if facts["cannot_build"] or facts["cache_problem"] else 0)
    assert facts["sources_hash"] == ops.sources_hash("cuda" if facts["gpu"] else "cpu")
    assert facts["torch"] == torch.__version__
    assert set(facts["environment"]) == set(config.ENVIRONMENT)
    assert facts["environment"]["FASTCONV1D_PLAN"] == "aten"
    assert facts["libraries"] and facts["fallback"]


def test_doctor_says_what_cannot_be_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "everything runs on ATen" in text and "/nowhere/c++" in text


def test_bench_checks_times_and_writes(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "rows.jsonl", tmp_path / "picture.png"
    options = ["bench", "--device", "cpu", "--quick", "--layers", str(table)]
    assert cli.main([*options, "--out", str(out), "--plot", str(picture)]) == 0
    shown = capsys.readouterr()
    assert all(header.split(",")[0] in shown.out for header in report.COLUMNS)
    assert "Test · conv" in shown.out and "Test · transposed" in shown.out
    assert "im2col" in shown.out and "not run" not in shown.out
    assert "Test · conv, ieee, bias" in shown.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = report.read(tmp_path)
    assert [row["correct"] for row in rows] == [True, True]
    assert all(row["ours_ms"] > 0 for row in rows)

    assert cli.main([*options, "--json", "--out", str(out), "--commit", "abc"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["layer"] for row in printed] == ["Test · conv", "Test · transposed"]
    assert len(report.read(tmp_path)) == 4  # appended


def test_bench_times_training(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "rows.jsonl", tmp_path / "picture.png"
    options = ["bench", "--device", "cpu", "--quick", "--layers", str(table), "--backward"]
    assert cli.main([*options, "--train", "--out", str(out), "--plot", str(picture)]) == 0
    shown = capsys.readouterr()
    assert all(header.split(",")[0] in shown.out for header in report.TRAINING_COLUMNS)
    assert report.TRAINING_LEGEND in shown.out and "im2col, ms" not in shown.out
    assert "Test · conv, ieee, bias, backward" in shown.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = report.read(tmp_path)
    assert [row["op"] for row in rows] == ["backward", "train"] * 2
    assert all(row["correct"] and row["ours_ms"] > 0 for row in rows)
    row = answer(capsys, *options, "conv")
    assert set(row["errors"]) == {"grad_input", "grad_weight", "grad_bias"}
    assert cli.main([*options, "--compile"]) == 2
    assert "compile" in capsys.readouterr().err


def test_bench_of_a_wrong_kernel_fails(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "conv1d", lambda input, *rest, **more: torch.zeros(2, 16, 101))
    assert cli.main(["bench", "conv", "--device", "cpu", "--layers", str(table)]) == 1
    shown = capsys.readouterr().out
    assert "WRONG: Test · conv" in shown and "wrong" in shown


@pytest.mark.parametrize("columns", [60, 120])
def test_results_fit_a_narrow_terminal(
    columns: int,
    table: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.console import Console

    monkeypatch.setattr(cli, "_console", lambda: Console(width=columns))
    options = ["--device", "cpu", "--quick", "--bias", "both", "--plan", "aten"]
    assert cli.main(["bench", "conv", "--layers", str(table), *options]) == 0
    lines = capsys.readouterr().out.split("Times are medians")[0].splitlines()
    assert max(map(len, lines)) <= columns
    assert sum(line.strip().startswith("torch ÷ ours") for line in lines) == (
        2 if columns == 60 else 1
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "no such layer", "--device", "cpu"], "layer is 'no such layer'"),
        (["bench", "--mode", "fp8", "--device", "cpu"], "mode is 'fp8'"),
        (["bench", "--mode", "tf32", "--device", "cpu"], "mode is 'tf32'"),
        (["bench", "--batch", "-1", "--device", "cpu"], "batch is -1"),
        (["bench", "--layers", "nowhere.csv"], "nowhere.csv"),
        (["plans", "--explain", "HiFi"], "expected one layer"),
        (["plans", "--explain", "67", "--algorithm", "magic"], "algorithm is 'magic'"),
        (["plans", "--groups", "7"], "groups"),
        (["export", "--problem", "68"], "problem is 68"),
    ],
)
def test_bad_usage_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_plans_lists_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["plan"] for row in answer(capsys, "plans")] == [row.name for row in plan.PLANS]
    assert cli.main(["plans"]) == 0
    assert all(row.name in capsys.readouterr().out for row in plan.PLANS[:1])


def test_plans_explains_a_layer_on_a_gpu_that_is_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = answer(capsys, "plans", "--explain", "67", "--gpu", "h200")
    assert [one["mode"] for one in answers] == list(config.MODES)
    [tf32] = [one for one in answers if one["mode"] == "tf32"]
    assert tf32["plan"].startswith("hopper") and tf32["output"] == [32, 128, 131070]
    why = {row["plan"]: row["why_not"] for row in tf32["candidates"]}
    assert why[tf32["plan"]] == "taken" and why["im2col"] == "runs only when asked for"

    [ampere] = answer(capsys, "plans", "--explain", "67", "--gpu", "a100", "--mode", "tf32")
    why = {row["plan"]: row["why_not"] for row in ampere["candidates"]}
    assert "needs compute capability 9.0 (wgmma), this GPU has (8, 0)" in why["hopper_128x256"]
    assert ampere["plan"].startswith("dense")

    [old] = answer(capsys, "plans", "--explain", "67", "--gpu", "t4", "--mode", "fp16")
    why = {row["plan"]: row["why_not"] for row in old["candidates"]}
    assert "8.0" in why["dense_128x128"] and not old["plan"].startswith("dense")

    [cpu] = answer(capsys, "plans", "--explain", "67", "--gpu", "none")
    assert cpu["plan"] == "simd"


def test_plans_explains_a_geometry(capsys: pytest.CaptureFixture[str]) -> None:
    geometry = ["--in-channels", 6, "--out-channels", 10, "--kernel-size", 5, "--length", 50]
    [one] = answer(
        capsys, "plans", *geometry, "--batch", 3, "--groups", 2, "--gpu", "a100", "--mode", "bf16"
    )
    assert one["input"] == [3, 6, 50] and one["weight"] == [10, 3, 5]
    assert one["output"] == [3, 10, 46]


def test_export_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model_new.py"
    facts = answer(capsys, "export", "-o", file, "--problem", 76, "--length", 99)
    assert facts["input"] == [64, 64, 99]
    assert "class ModelNew" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(("number", "channels"), [(64, 128), (74, 64), (79, 64)])
def test_transposed_problems_are_explained_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, channels: int
) -> None:
    options = ["--explain", number, "--gpu", "a100", "--mode", "bf16", "--stride", 4]
    [explained] = answer(capsys, "plans", *options, "--output-padding", 3)
    legal = [row["plan"] for row in explained["candidates"] if row["cost_us"] is not None]
    assert {"dense_64x128", "direct", "im2col", "aten"} <= set(legal)
    file = tmp_path / "model_new.py"
    facts = answer(capsys, "export", "-o", file, "--problem", number, "--length", 99)
    assert facts["output"][1] == channels and facts["weight"][1] == channels
    assert "self.conv1d_transpose" in file.read_text()
    options = ["export", "-o", str(file), "--problem", str(number), "--output-padding", "1"]
    assert cli.main([*options, "--stride", "2"]) == (0 if number == 64 else 2)


@pytest.mark.parametrize("right", [True, False])
def test_verify_gives_its_verdict(
    right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reference.py").write_text(REFERENCE, encoding="utf-8")
    submission = REFERENCE.replace("Model(", "ModelNew(")
    if not right:
        submission = submission.replace("self.conv1d(x)", "self.conv1d(x) * 1.01")
    (tmp_path / "submission.py").write_text(submission, encoding="utf-8")
    files = [str(tmp_path / "reference.py"), str(tmp_path / "submission.py")]
    options = ["--device", "cpu", "--seconds", "0.02"]
    assert cli.main(["verify", *files, *options]) == (0 if right else 1)
    assert ("PASSED" if right else "REJECTED") in capsys.readouterr().out
    facts = answer(capsys, "verify", *files, *options)
    assert facts["ok"] is right and (facts["speedup"] is not None) is right


def test_tables_say_which_extra_they_need(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert cli.main(["plans"]) == 2
    assert "pip install 'fastconv1d[cli]'" in capsys.readouterr().err
    assert answer(capsys, "plans")  # JSON needs no more than torch


def test_report_check_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"{report.START}\n{report.END}\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    (tmp_path / report.RESULTS).mkdir(parents=True)
    assert cli.main(["report", "--check", "--root", str(tmp_path)]) == 1
    assert "run `fastconv1d report`" in capsys.readouterr().out
    assert cli.main(["report", "--root", str(tmp_path)]) == 0
    assert cli.main(["report", "--check", "--root", str(tmp_path)]) == 0


def test_the_readme_lists_the_environment_variables() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = [line for line in readme.splitlines() if line.startswith("| `FASTCONV1D_")]
    assert listed == [f"| `{name}` | {meaning} |" for name, meaning in config.ENVIRONMENT.items()]


def test_doctor_without_a_home_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home folder")

    monkeypatch.setattr("fastconv1d.config.cache_dir", homeless)
    assert cli.main(["doctor", "--json"]) in (0, 1)
    told = json.loads(capsys.readouterr().out)
    assert "no home folder" in json.dumps(told)
