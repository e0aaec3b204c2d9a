"""Tables and pictures from benchmark rows: the terminal's, the README's and docs/images/."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

START, END = "<!-- results:start -->", "<!-- results:end -->"
RESULTS = Path("benchmarks/results")
PICTURE = Path("docs/images/speedup.png")

EMPTY = "No results are committed yet: `fastconv1d bench` measures, `fastconv1d report` fills this."


def _layer(row: Row) -> str:
    return f"{row['layer']} ({row['scaled']})" if row["scaled"] else str(row["layer"])


def _milliseconds(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if row["correct"] is False:
            return "wrong" if name == "ours" else "–"
        if row[f"{name}_ms"] is None:
            return "–"
        low, high = row[f"{name}_spread"]
        return f"{row[f'{name}_ms']:.3g} ({low:.3g}–{high:.3g})"

    return cell


def _number(name: str, form: str, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: "–" if row[name] is None else form.format(row[name] * scale)


def _beside_torch(
    name: str, torch_name: str, form: str, scale: float = 1.0
) -> Callable[[Row], str]:
    ours, theirs = _number(name, form, scale), _number(torch_name, form, scale)
    return lambda row: "–" if row[name] is None else f"{ours(row)} / {theirs(row)}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "layer": _layer,
    "mode": lambda row: str(row["mode"]),
    "bias": lambda row: "yes" if row["bias"] else "no",
    "plan": lambda row: row["plan"] or "–",
    "ours, ms": _milliseconds("ours"),
    "torch, ms": _milliseconds("torch"),
    "im2col, ms": _milliseconds("im2col"),
    "torch ÷ ours": _number("ratio", "{:.2f}×"),
    "roofline": _number("roofline_share", "{:.0%}"),
    "error, ours / torch": _beside_torch("error", "torch_error", "{:.1e}"),
    "host µs, ours / torch": _beside_torch("host_us", "torch_host_us", "{:.1f}"),
    "peak MB, ours / torch": _beside_torch("peak_bytes", "torch_peak_bytes", "{:.0f}", 1e-6),
}
"""The columns of every table of results: header, and the cell of a row."""

LEGEND = (
    "Times are medians (10th–90th percentile) of interleaved runs; torch runs cuDNN in benchmark "
    "mode; roofline is floor ÷ ours, the floor being max(bytes ÷ copy rate, FLOPs ÷ matrix product "
    "rate) measured in the same run (mode ieee: 3 × FLOPs at the TF32 rate); error is the relative "
    "L2 distance from fp64. Every element was checked before anything was timed."
)


def machine(row: Row) -> str:
    """Where a row was measured, in one line."""
    if row["gpu"] is None:
        return f"{row['cpu']}, {row['threads']} threads, torch {row['torch']}"
    return f"{row['gpu']}, driver {row['driver']}, torch {row['torch']}, cuDNN {row['cudnn']}"


def notes(rows: Iterable[Row]) -> list[str]:
    """What a table of these rows does not say: layers not run, checks failed, weaker accuracy."""
    lines = []
    for row in rows:
        what = f"{row['layer']}, {row['mode']}, {'bias' if row['bias'] else 'no bias'}"
        if row["skipped"]:
            lines.append(f"not run: {what}: {row['skipped']}")
        elif row["correct"] is False:
            lines.append(f"WRONG: {what}: {row['failure']}")
        elif row["less_accurate"]:
            lines.append(f"accuracy: {what}: {row['less_accurate']}")
        if row["torch_correct"] is False:
            lines.append(f"torch: {what}: torch's own output is outside of the error bound")
    return lines


def read(folder: Path) -> list[dict[str, Any]]:
    """All rows of a folder's `.jsonl` files.

    Raises:
        ValueError: a line is not a JSON object.
    """
    rows = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}: expected a JSON object")
            rows.append(row)
    return rows


def newest(rows: Iterable[Row]) -> list[Row]:
    """The latest row of each case, in the order of the cases' first appearance.

    Rows of plans that were forced are left out: they speak of a plan, not of what users get.
    """
    latest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["forced"]:
            continue
        case = (machine(row), row["layer"], row["scaled"], row["op"], row["mode"], row["bias"])
        if case not in latest or row["date"] >= latest[case]["date"]:
            latest[case] = row
    return list(latest.values())


def markdown(rows: Sequence[Row], sources_hash: str) -> str:
    """The README's results section: a table for each machine, losing shapes included.

    Rows measured on other kernels than those of `sources_hash` carry a †.
    """
    chosen = newest(rows)
    if not chosen:
        return EMPTY
    parts = []
    for where in dict.fromkeys(machine(row) for row in chosen):
        here = [row for row in chosen if machine(row) == where]
        ran = [row for row in here if not row["skipped"]]
        dates = sorted({row["date"][:10] for row in ran or here})
        parts.append(f"**{where}**, measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}")
        if ran:
            lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
            for row in ran:
                cells = [cell(row) for cell in COLUMNS.values()]
                cells[0] += "" if row["sources_hash"] == sources_hash else " †"
                lines.append(" | ".join(cells))
            parts.append("\n".join(f"| {line} |" for line in lines))
        if remarks := notes(here):
            parts.append("\n".join(f"- {line}" for line in remarks))
    parts.append(LEGEND)
    if any(row["sources_hash"] != sources_hash for row in chosen):
        parts.append("† measured on other kernels than those in this tree.")
    if any(row["ratio"] is not None for row in chosen):
        parts.append(f"![Speed-up over torch, layer by layer]({PICTURE.as_posix()})")
    return "\n\n".join(parts)


def inserted(readme: str, section: str) -> str:
    """The README with this results section.

    Raises:
        ValueError: the README lacks the markers.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md has no {START} … {END}")
    return f"{before}{START}\n\n{section}\n\n{END}{after}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws each row's speed-up over torch, im2col's beside it and the roofline's limit above.

    Raises:
        ValueError: no row holds a time.
    """
    from matplotlib.figure import Figure

    timed = [row for row in rows if row["ratio"] is not None]
    if not timed:
        raise ValueError("rows hold no times, expected at least one timed row to plot")
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(timed)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(timed))
    axes.barh(places, [row["ratio"] for row in timed], height=0.6, color="#3b76af", label="ours")
    limits = [row["torch_ms"] / row["floor_ms"] for row in timed]
    axes.plot(limits, places, "|", color="black", markersize=11, label="roofline")
    columns = [
        (row["torch_ms"] / row["im2col_ms"], at)
        for at, row in zip(places, timed, strict=True)
        if row["im2col_ms"] is not None
    ]
    if columns:
        axes.plot(*zip(*columns, strict=True), "o", color="#d1605e", markersize=4, label="im2col")
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_yticks(
        places,
        [f"{row['layer']}, {row['mode']}{', bias' if row['bias'] else ''}" for row in timed],
        fontsize=7,
    )
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("speed-up over torch (torch's time ÷ ours)", fontsize=8)
    axes.set_title("; ".join(dict.fromkeys(machine(row) for row in timed)), fontsize=8)
    axes.legend(loc="lower right", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def update(root: Path, sources_hash: str, *, write: bool) -> bool:
    """Brings the README's table and the picture of a source tree in step with its results.

    Returns whether they were already; with `write` false nothing is changed. The picture counts as
    in step if it exists, since its bytes depend on the plotting library.
    """
    rows = read(root / RESULTS)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    wanted = inserted(text, markdown(rows, sources_hash))
    drawable = any(row["ratio"] is not None for row in newest(rows))
    in_step = text == wanted and (not drawable or (root / PICTURE).exists())
    if write:
        readme.write_text(wanted, encoding="utf-8")
        if drawable:
            plot(newest(rows), root / PICTURE)
    return in_step
