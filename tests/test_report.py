"""Tables and pictures of results: nothing hidden, nothing stale unmarked, README in step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastconv1d import bench, layers, plan, report

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


def shaped(**changes: Any) -> dict[str, Any]:
    """A row of a layer whose shape is another one."""
    row = sample()
    transposed = changes.pop("transposed", False)
    return {**row, "transposed": transposed, "shape": {**row["shape"], **changes}}


def cells(text: str, layer: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {layer}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def drawn(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], **options: Any) -> Any:
    """The figure that `report.plot` would save."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    report.plot(rows, Path("nowhere.png"), **options)
    [figure] = figures
    return figure


def marks(axes: Any) -> list[tuple[float, float, bool]]:
    """Where a panel's marks are, and whether they are hollow."""
    lines = [line for line in axes.get_lines() if line.get_marker() not in ("None", "")]
    return [
        (*line.get_xdata(), *line.get_ydata(), line.get_markerfacecolor() == "white")
        for line in lines
    ]


def test_a_row_becomes_a_line_in_full_and_a_short_one() -> None:
    text = report.details([sample()], "now")
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
    assert "NVIDIA H200, driver 580.1" in text and "2026-01-02" in text and report.LEGEND in text

    text = report.markdown([sample()], "now")
    assert cells(text, "layer") == list(report.SHORT_COLUMNS)
    assert cells(text, "KernelBench") == [
        "KernelBench-L1-67 · conv_standard_1D",
        "tf32",
        "dense_128x128",
        "1",
        "2.5",
        "2.50×",
        "75%",
    ]
    assert "NVIDIA H200, driver 580.1" in text and "2026-01-02" in text
    assert all(f"]({file.as_posix()})" in text for file, _ in report.PICTURES.values())


@pytest.mark.parametrize("page", [report.markdown, report.details])
def test_rows_of_other_kernels_are_marked(page: Any) -> None:
    assert "†" not in page([sample()], "now")
    text = page([sample()], "later")
    assert cells(text, "KernelBench")[0].endswith("†") and "other kernels" in text
    if page is report.markdown:
        mixed = page([sample(), sample(mode="bf16", sources_hash="later")], "later")
        assert cells(text, "dense")[0] == cells(mixed, "dense")[0] == "dense †"
        assert cells(page([sample()], "now"), "dense")[0] == "dense"


def test_losing_wrong_and_skipped_rows_stay() -> None:
    rows = [
        sample(layer="Loser", ratio=0.5),
        sample(layer="Wrong", correct=False, failure="output[0, 0, 1] is 1", ours_ms=None),
        sample(layer="Later", correct=None, skipped="transposed"),
        sample(layer="Rough", less_accurate="error is 3, expected at most 2"),
        sample(layer="Theirs", torch_correct=False),
    ]
    full, short = report.details(rows, "now"), report.markdown(rows, "now")
    assert cells(full, "Loser")[7] == "0.50×" and cells(short, "Loser")[5] == "**0.50×**"
    assert cells(full, "Wrong")[4:7] == ["wrong", "–", "–"]
    assert cells(short, "Wrong")[3:5] == ["wrong", "–"]
    for text in (full, short):
        assert "- WRONG: Wrong, tf32, no bias: output[0, 0, 1] is 1" in text
        assert "- not run: Later, tf32, no bias: transposed" in text
        assert "- accuracy: Rough" in text
    assert "- torch: Theirs, tf32" in full and "- torch: Theirs" not in short
    assert "- rows where torch's own output is outside of the error bound: 1" in short


def test_means_are_geometric_by_kind_and_mode() -> None:
    rows = [
        sample(layer="A", ratio=2.0),
        sample(layer="B", ratio=8.0),
        sample(layer="B", ratio=3.0, mode="bf16"),
        shaped(groups=64, channels_out=64) | {"layer": "C", "ratio": 0.25},
        sample(layer="D", ratio=None, correct=False, failure="wrong"),
    ]
    text = report.markdown(rows, "now")
    assert cells(text, "torch ÷ ours") == ["torch ÷ ours", "layers", "tf32", "bf16"]
    assert cells(text, "dense") == ["dense", "2", "4.00× (2.00–8.00)", "3.00× (3.00–3.00)"]
    assert cells(text, "depthwise") == ["depthwise", "1", "0.25× (0.25–0.25)", "–"]
    assert cells(text, "all")[:3] == ["all", "3", "1.59× (0.25–8.00)"]
    assert "| grouped" not in text


def test_the_worst_is_told_first() -> None:
    rows = [
        sample(layer="A", ratio=0.7, bias=True),
        sample(layer="A", ratio=0.9, plan="aten"),
        sample(layer="B", ratio=1.0, plan="aten"),
        sample(layer="C", ratio=2.0),
    ]
    text = report.markdown(rows, "now")
    assert "- slowest against torch: A, bias, tf32, on plan `dense_128x128`: 0.70×" in text
    assert "- rows slower than torch: 2 of 4, 1 run by ATen" in text
    assert "- rows that ATen runs: 2 of 4" in text
    assert cells(text, "A, no bias")[2] == "aten" and cells(text, "B")[0] == "B"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "dense"),
        ({"dilation": 8}, "dense"),
        ({"kernel_size": 1}, "pointwise or strided"),
        ({"stride": 2}, "pointwise or strided"),
        ({"transposed": True, "stride": 2}, "transposed"),
        ({"groups": 4}, "grouped"),
        ({"groups": 64, "channels_out": 64}, "depthwise"),
        ({"groups": 64, "channels_out": 64, "transposed": True}, "depthwise"),
        ({"channels_in": 1, "stride": 5}, "first or last layer"),
        ({"channels_in": 4}, "first or last layer"),
        ({"channels_out": 1, "transposed": True}, "first or last layer"),
    ],
)
def test_kinds_of_layers(changes: dict[str, Any], kind: str) -> None:
    assert report.kind(shaped(**changes)) == kind and kind in report.KINDS


def test_every_layer_of_the_table_is_of_some_kind() -> None:
    rows = [
        shaped(
            **{name: getattr(layer.problem, name) for name in bench.SHAPE},
            transposed=layer.problem.transposed,
        )
        for layer in layers.load()
    ]
    assert {report.kind(row) for row in rows} == set(report.KINDS)


def test_the_newest_row_of_a_case_counts_and_plans_forced_or_tuned_do_not() -> None:
    rows = [
        sample(ratio=3.0, date="2026-02-01T00:00:00+00:00"),
        sample(ratio=2.0, date="2026-01-01T00:00:00+00:00"),
        sample(ratio=9.0, date="2026-03-01T00:00:00+00:00", forced=True),
        sample(ratio=9.0, date="2026-03-01T00:00:00+00:00", tuned=True),
        sample(ratio=4.0, date="2026-01-01T00:00:00+00:00", bias=True),
        sample(ratio=5.0, date="2026-01-01T00:00:00+00:00", gpu="NVIDIA H100"),
    ]
    assert [row["ratio"] for row in report.newest(rows)] == [3.0, 4.0, 5.0]
    with_pages = sample(ratio=1.5, date="2026-04-01T00:00:00+00:00", torch_huge_pages=True)
    assert [row["ratio"] for row in report.newest([*rows, with_pages])] == [3.0, 4.0, 5.0, 1.5]
    threads = [sample(gpu=None, cpu="Zen", threads=n, ratio=float(n)) for n in (1, 2)]
    assert [row["ratio"] for row in report.newest([*threads, *threads])] == [1.0, 2.0]
    older = {"torch": "2.9", "driver": "570.1", "commit": "abc", "date": "2025-01-01T00:00:00"}
    assert [row["ratio"] for row in report.newest([*rows, sample(**older)])] == [3.0, 4.0, 5.0]
    old = {key: value for key, value in rows[0].items() if key != "tuned"}
    assert report.newest([old]) == [old]  # written before there was a tuner


def test_rows_of_two_versions_are_told_apart_in_the_heading() -> None:
    rows = [sample(), sample(mode="bf16", torch="3.0", date="2026-05-01T00:00:00+00:00")]
    [heading] = [
        line for line in report.markdown(rows, "now").splitlines() if "measured 20" in line
    ]
    assert f"torch {torch.__version__}" in heading and "torch 3.0" in heading
    assert heading.endswith("measured 2026-01-02 to 2026-05-01")


def test_pictures_hold_every_timed_row_at_its_layers_place(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        shaped(groups=64, channels_out=64) | {"layer": "deep", "ratio": 0.5},
        sample(layer="wide", ratio=2.0),
        sample(layer="wide", ratio=3.0, mode="bf16", plan="aten"),
        sample(layer="wide", ratio=4.0, gpu="NVIDIA H100", sources_hash="old"),
        sample(layer="none", ratio=None),
    ]
    figure = drawn(monkeypatch, rows, sources_hash="now")
    first, second = figure.axes
    places = dict(
        zip(
            [label.get_text() for label in first.get_yticklabels()], first.get_yticks(), strict=True
        )
    )
    assert sorted(places, key=places.__getitem__) == ["dense", "wide", "depthwise", "deep"]
    wide, deep = places["wide"], places["deep"]
    assert marks(first) == [(2.0, wide, False), (3.0, wide, True), (0.5, deep, False)]
    assert marks(second) == [(4.0, wide, False)]
    assert first.get_title() == "NVIDIA H200" and second.get_title() == "NVIDIA H100 †"
    assert first.get_xscale() == "log" and first.get_xlim() == second.get_xlim()
    low, high = first.get_xlim()
    assert low < 0.5 and high > 4

    figure = drawn(monkeypatch, rows, quantity="roofline_share")
    assert {mark[0] for axes in figure.axes for mark in marks(axes)} == {0.75}


def test_long_names_keep_their_bias_in_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [sample(layer="x" * 99), sample(layer="x" * 99, bias=True)]
    [axes] = drawn(monkeypatch, rows).axes
    labels = [label.get_text() for label in axes.get_yticklabels()][1:]
    assert [len(label) for label in labels] == [report.LABEL] * 2
    assert labels[0].endswith("…, no bias") and labels[1].endswith("…, bias")


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
    for missing in [report.DETAILS, *(file for file, _ in report.PICTURES.values())]:
        content = (tmp_path / missing).read_bytes()
        assert content.startswith(b"# Results" if missing is report.DETAILS else b"\x89PNG")
        (tmp_path / missing).unlink()
        assert not report.update(tmp_path, "now", write=False)
        report.update(tmp_path, "now", write=True)
        assert report.update(tmp_path, "now", write=False)
    (tmp_path / report.DETAILS).write_text("# Results\n", encoding="utf-8")
    assert not report.update(tmp_path, "now", write=False)


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="results:start"):
        report.inserted("# nothing here", "table")


def training(**changes: Any) -> dict[str, Any]:
    """A row of a layer's gradients."""
    blank = {"op": "backward", "plan": "hopper + grad_dense", "im2col_ms": None, "ratio": 1.5}
    return sample(**{**blank, **changes})


def test_training_has_sections_of_its_own() -> None:
    alone = [sample(ratio=3.0)]
    rows = [*alone, training(), training(mode="bf16", ratio=0.5), training(op="train", ratio=2.0)]
    text = report.details(rows, "now")
    before, backward, train = text.split("## ")
    without = report.details(alone, "now")
    assert before.strip() == without.strip() and "##" not in without
    assert backward.startswith("All gradients\n\n![All gradients](images/backward.png)")
    assert train.startswith("Forward and backward\n\n![Forward and backward](images/train.png)")
    lines = [line for line in backward.splitlines() if line.startswith("| KernelBench")]
    assert len(lines) == 2 and "hopper + grad_dense" in lines[0] and "0.50×" in lines[1]
    assert cells(train, "layer") == list(report.TRAINING_COLUMNS)
    assert cells(train, "all") == ["all", "1", "2.00× (2.00–2.00)"]
    assert report.TRAINING_LEGEND in train and "†" not in text
    assert "†" in report.details([*alone, training(sources_hash="old")], "now")


def test_the_readme_sums_training_up() -> None:
    alone = [sample(ratio=3.0)]
    rows = [
        *alone,
        training(layer="A", ratio=2.0),
        training(layer="B", ratio=0.5),
        training(layer="A", mode="bf16", ratio=4.0),
        training(layer="C", ratio=None, correct=False, failure="grad_weight[0] is 1"),
    ]
    without, text = report.markdown(alone, "now"), report.markdown(rows, "now")
    added = [line for line in text.splitlines() if line not in without.splitlines()]
    assert added == [
        "- all gradients, torch ÷ ours: tf32 1.00×, bf16 4.00× (geometric means of 2 layers); "
        "slowest: B, tf32, on `hopper + grad_dense`: 0.50×; slower than torch: 1 of 3 rows",
        "- WRONG: C, tf32, no bias, backward: grad_weight[0] is 1",
    ]
    assert "gradients" not in without
    stale = report.markdown([*alone, training(op="train", sources_hash="old")], "now")
    assert "forward and backward, torch ÷ ours: tf32 1.50×" in stale and "1 rows †" in stale


def test_rows_of_training_alone_are_reported() -> None:
    for page in (report.markdown, report.details):
        text = page([training()], "now")
        assert "1.50×" in text and "NVIDIA H200" in text and "speedup.png" not in text


def test_pictures_and_tables_tell_ops_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [training(layer="A"), training(layer="A", op="train")]
    [axes] = drawn(monkeypatch, rows, title="All").axes
    labels = [label.get_text() for label in axes.get_yticklabels()][1:]
    assert labels == ["A, backward", "A, train"]
    assert list(report.columns(rows))[:2] == ["layer", "op"]
    assert report.columns([sample()]) == report.COLUMNS


def test_update_draws_training_where_there_is_some(tmp_path: Path) -> None:
    (tmp_path / report.RESULTS).mkdir(parents=True)
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.START}\n{report.END}\n", encoding="utf-8")
    rows = [sample(), training(), training(op="train", ratio=None)]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / report.RESULTS / "h200.jsonl").write_text(text, encoding="utf-8")
    report.update(tmp_path, "now", write=True)
    assert report.update(tmp_path, "now", write=False)
    drawn, missing = (tmp_path / file for _, file in report.TRAINING.values())
    assert drawn.read_bytes().startswith(b"\x89PNG") and not missing.exists()
    drawn.unlink()
    assert not report.update(tmp_path, "now", write=False)


def test_nothing_to_plot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no times"):
        report.plot([sample(ratio=None)], tmp_path / "a.png")


def test_this_readme_is_in_step_with_the_committed_rows() -> None:
    assert report.update(ROOT, plan.sources_hashes(), write=False), "run `fastconv1d report`"
