"""The training example: it learns, it is causal, and its comparison tells alike from unlike."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastconv1d

FILE = Path(__file__).parent.parent / "examples" / "train_tcn.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tcn", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_tcn"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def tiny(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(example, "SMALL", example.Sizes(8, (1, 2, 4), 4, 128))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other longer than they compute
    yield
    torch.set_num_threads(threads)


def test_a_run_learns_and_writes_its_losses(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "losses.csv"
    options = ["--small", "--device", "cpu", "--steps", "60", "--every", "20", "--csv", str(file)]
    assert example.main(options) == 0
    printed = capsys.readouterr().out
    assert printed.count("fastconv1d, seed 0, step") == 3 and "median step" in printed
    with file.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 61)]
    losses = [float(row["loss"]) for row in rows]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_cpu_both_backends_learn_the_same(example: ModuleType, bf16: bool) -> None:
    device = torch.device("cpu")
    runs = [
        example.train(backend, 3, example.SMALL, device, 8, bf16) for backend in example.BACKENDS
    ]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=0.02 if bf16 else 1e-4)
    other = example.train("torch", 4, example.SMALL, device, 8, bf16)
    assert other.losses != runs[0].losses


def test_the_backend_is_the_one_asked_for(example: ModuleType) -> None:
    for backend, kind in {"torch": torch.nn.Conv1d, "fastconv1d": fastconv1d.Conv1d}.items():
        model = example.TCN(example.BACKENDS[backend], example.SMALL)
        convs = [module for module in model.modules() if isinstance(module, torch.nn.Conv1d)]
        assert len(convs) == 5 and {type(module) for module in convs} == {kind}


def test_predictions_do_not_see_what_they_predict(example: ModuleType) -> None:
    model = example.TCN(torch.nn.Conv1d, example.SMALL)
    x = torch.randn(1, 1, 64)
    changed = x.clone()
    changed[..., 40:] += 1
    before, after = model(x), model(changed)
    first = int((before != after).flatten().nonzero()[0])
    assert first == 40 - model.ahead + 1  # the prediction of sample 40 + 1 sees sample 40


def test_comparing_prints_losses_spread_and_speed(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "losses.csv"
    options = ["--small", "--device", "cpu", "--compare", "--steps", "12", "--csv", str(file)]
    assert example.main(options) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("seed", "mean", "fastconv1d, ms/step", "within the"))
    assert "apart at most" in printed and "×." in printed
    with file.open(encoding="utf-8") as lines:
        pairs = {(row["backend"], row["seed"]) for row in csv.DictReader(lines)}
    assert pairs == {(one, seed) for one in ("torch", "fastconv1d") for seed in "012"}


def test_what_learns_otherwise_is_outside_of_the_spread(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(fastconv1d.Conv1d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = super().forward(input)
            return output + output.detach()  # half of the gradients

    monkeypatch.setitem(example.BACKENDS, "fastconv1d", Wrong)
    options = ["--small", "--device", "cpu", "--compare", "--steps", "12"]
    assert example.main(options) == 1
    assert "OUTSIDE OF the spread" in capsys.readouterr().out


def test_the_largest_gap_is_found(example: ModuleType) -> None:
    def run(*losses: float) -> object:
        return example.Run("", 0, [loss for loss in losses for _ in range(example.LAST)], 1.0)

    theirs, ours = [run(4, 1.0), run(4, 3.0)], [run(4, 2.5), run(4, 2.5)]
    step, gap, spread = example.largest_gap(theirs, ours)
    assert (step, gap, spread) == (2 * example.LAST, 0.5, 2.0)
