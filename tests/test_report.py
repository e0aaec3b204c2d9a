"""Tables and pictures of results: nothing hidden, nothing stale unmarked, README in step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastconv1d import bench, layers, ops, report

ROOT = Path(__file__).parent.parent


def sample(**changes: Any) -> dict[str, Any]:
    """A complete row, as if measured on a GPU."""
    [layer] = layers.find(["67"], layers.load())
    device = torch.device("cpu")
    blank = bench._blank(layer, layer.problem, device, None, bench.provenance(device))
    measured = {
        "plan": "dense_128x128",
        "mode": "tf32",
        "device": "cuda",
        "gpu": "NVIDIA H200",
        "driver": "580.1",
        "cudnn": 91900,
        "sources_hash": "now",
        "date": "2026-01-02T03:04:05+00:00",
        "correct": True,
        "error": 2.8e-4,
        "torch_error": 2.9e-4,
        "ours_ms": 1.0,
        "ours_spread": [0.9, 1.1],
        "torch_ms": 2.5,
        "torch_spread": [2.4, 2.6],
        "im2col_ms": 6.0,
        "im2col_spread": [5.5, 6.5],
        "ratio": 2.5,
        "floor_ms": 0.75,
        "roofline_share": 0.75,
        "host_us": 4.0,
        "torch_host_us": 5.0,
        "peak_bytes": 2_147_000_000,
        "torch_peak_bytes": 3_000_000_000,
    }
    return {**blank.flat(), **measured, **changes}


def cells(text: str, layer: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {layer}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_becomes_a_line() -> None:
    text = report.markdown([sample()], "now")
    assert cells(text, "layer") == list(report.COLUMNS)
    assert cells(text, "KernelBench") == [
        "KernelBench-L1-67 · conv_standard_1D",
        "tf32",
        "no",
        "dense_128x128",
        "1 (0.9–1.1)",
        "2.5 (2.4–2.6)",
        "6 (5.5–6.5)",
        "2.50×",
        "75%",
        "2.8e-04 / 2.9e-04",
        "4.0 / 5.0",
        "2147 / 3000",
    ]
    assert "NVIDIA H200, driver 580.1" in text and "2026-01-02" in text


def test_rows_of_other_kernels_are_marked() -> None:
    assert "†" not in report.markdown([sample()], "now")
    text = report.markdown([sample()], "later")
    assert cells(text, "KernelBench")[0].endswith("†") and "other kernels" in text


def test_losing_wrong_and_skipped_rows_stay() -> None:
    rows = [
        sample(layer="Loser", ratio=0.5),
        sample(layer="Wrong", correct=False, failure="output[0, 0, 1] is 1", ours_ms=None),
        sample(layer="Later", correct=None, skipped="transposed"),
        sample(layer="Rough", less_accurate="error is 3, expected at most 2"),
    ]
    text = report.markdown(rows, "now")
    assert cells(text, "Loser")[7] == "0.50×"
    assert cells(text, "Wrong")[4:7] == ["wrong", "–", "–"]
    assert "- WRONG: Wrong, tf32, no bias: output[0, 0, 1] is 1" in text
    assert "- not run: Later, tf32, no bias: transposed" in text
    assert "- accuracy: Rough" in text


def test_the_newest_row_of_a_case_counts_and_forced_plans_do_not() -> None:
    rows = [
        sample(ratio=3.0, date="2026-02-01T00:00:00+00:00"),
        sample(ratio=2.0, date="2026-01-01T00:00:00+00:00"),
        sample(ratio=9.0, date="2026-03-01T00:00:00+00:00", forced=True),
        sample(ratio=4.0, date="2026-01-01T00:00:00+00:00", bias=True),
    ]
    assert [row["ratio"] for row in report.newest(rows)] == [3.0, 4.0]


def test_reading_names_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(sample())}\n{{oops\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2"):
        report.read(tmp_path)


def test_update_brings_a_tree_in_step(tmp_path: Path) -> None:
    (tmp_path / report.RESULTS).mkdir(parents=True)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n", encoding="utf-8")
    assert not report.update(tmp_path, "now", write=False)
    assert "old" in readme.read_text(encoding="utf-8")
    report.update(tmp_path, "now", write=True)
    assert report.EMPTY in readme.read_text(encoding="utf-8")
    assert report.update(tmp_path, "now", write=False)

    line = json.dumps(sample())
    (tmp_path / report.RESULTS / "h200.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert not report.update(tmp_path, "now", write=False)
    report.update(tmp_path, "now", write=True)
    assert report.update(tmp_path, "now", write=False)
    assert not report.update(tmp_path, "later", write=False)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "2.50×" in text
    assert (tmp_path / report.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="results:start"):
        report.inserted("# nothing here", "table")


def test_nothing_to_plot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no times"):
        report.plot([sample(ratio=None)], tmp_path / "a.png")


def test_this_readme_is_in_step_with_the_committed_rows() -> None:
    assert report.update(ROOT, ops.sources_hash(), write=False), "run `fastconv1d report`"
