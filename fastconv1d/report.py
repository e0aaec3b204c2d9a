"""Tables and pictures from benchmark rows: the terminal's, the README's and those of docs/."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

START, END = "<!-- results:start -->", "<!-- results:end -->"
RESULTS = Path("benchmarks/results")
DETAILS = Path("docs/results.md")

PICTURES = {
    "ratio": (Path("docs/images/speedup.png"), "speed-up over torch (torch's time ÷ ours)"),
    "roofline_share": (Path("docs/images/roofline.png"), "share of the roofline (floor ÷ ours)"),
}
"""The field that each picture shows, its file and its caption."""

TRAINING = {
    "backward": ("All gradients", Path("docs/images/backward.png")),
    "train": ("Forward and backward", Path("docs/images/train.png")),
}
"""The ops that have sections of their own in docs/results.md: their titles and pictures."""

FEW_CHANNELS = 4
"""Channels on one side, at most, of what is called a first or last layer."""

KINDS = (
    "dense",
    "pointwise or strided",
    "transposed",
    "grouped",
    "depthwise",
    "first or last layer",
)
"""What `kind` answers with, in the order of tables and pictures."""

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


def _median(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if row["correct"] is False:
            return "wrong" if name == "ours" else "–"
        return "–" if row[f"{name}_ms"] is None else f"{row[f'{name}_ms']:.3g}"

    return cell


def _ratio(row: Row) -> str:
    text = _number("ratio", "{:.2f}×")(row)
    return f"**{text}**" if _loses(row) else text


def _loses(row: Row) -> bool:
    return row["ratio"] is not None and row["ratio"] < 1


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
"""The columns of the terminal's table and of docs/results.md: header, and the cell of a row."""

TRAINING_COLUMNS = {name: cell for name, cell in COLUMNS.items() if name != "im2col, ms"}
"""The same for rows of `TRAINING`, which im2col does not race for."""

SHORT_COLUMNS: dict[str, Callable[[Row], str]] = {
    "layer": _layer,
    "mode": COLUMNS["mode"],
    "plan": COLUMNS["plan"],
    "ours, ms": _median("ours"),
    "torch, ms": _median("torch"),
    "torch ÷ ours": _ratio,
    "roofline": COLUMNS["roofline"],
}
"""The columns of the README's table; ratios below 1 are bold."""

LEGEND = (
    "Times are medians (10th–90th percentile) of interleaved runs, a GPU's own; torch runs cuDNN "
    "in benchmark mode; roofline is floor ÷ ours, the floor being max(bytes ÷ copy rate, FLOPs ÷ "
    "matrix product rate) measured in the same run (mode ieee: 3 × FLOPs at the TF32 rate); error "
    "is the relative L2 distance from fp64. Every element was checked before anything was timed."
)

TRAINING_LEGEND = (
    "All gradients are those of input, weight and, where the layer has one, bias: our "
    "`convolution_backward` against ATen's. Forward and backward go through autograd on both "
    "sides. The floor of all gradients has the bytes of the output's gradient, input and weight "
    "read once and of all gradients written, and the FLOPs of two convolutions; for forward and "
    "backward, the layer's own floor is added. Plans are those of the input's gradient + the "
    "weight's, the layer's own before them; the error is the largest of all results'. Older "
    "rows of forward and backward have the host's time in them where that was longer."
)


def columns(rows: Iterable[Row]) -> dict[str, Callable[[Row], str]]:
    """The terminal's columns for rows of any op."""
    if all(row["op"] == "forward" for row in rows):
        return COLUMNS
    layer, *rest = TRAINING_COLUMNS.items()
    return dict([layer, ("op", lambda row: str(row["op"])), *rest])


def what(row: Row) -> str:
    """Which case a row speaks of, in words."""
    bias, op = "bias" if row["bias"] else "no bias", row["op"]
    return ", ".join([row["layer"], row["mode"], bias, *([op] if op != "forward" else [])])


def machine(row: Row) -> str:
    """Where a row was measured, in one line."""
    if row["gpu"] is None:
        pages = " with huge pages" if row.get("torch_huge_pages") else ""
        return f"{_processor(row)}, torch {row['torch']}{pages}"
    return f"{row['gpu']}, driver {row['driver']}, torch {row['torch']}, cuDNN {row['cudnn']}"


def notes(rows: Iterable[Row]) -> list[str]:
    """What a table of these rows does not say: layers not run, checks failed, weaker accuracy."""
    lines = []
    for row in rows:
        if row["skipped"]:
            lines.append(f"not run: {what(row)}: {row['skipped']}")
        elif row["correct"] is False:
            lines.append(f"WRONG: {what(row)}: {row['failure']}")
        elif row["less_accurate"]:
            lines.append(f"accuracy: {what(row)}: {row['less_accurate']}")
        if row["torch_correct"] is False:
            result = "output is" if row["op"] == "forward" else "results are"
            lines.append(f"torch: {what(row)}: torch's own {result} outside of the error bound")
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
    """The latest row of each case on each GPU, in the order of the cases' first appearance.

    Rows of plans that were forced or tuned are left out: they speak of a plan, not of what users
    get.
    """
    latest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["forced"] or row.get("tuned"):
            continue
        case = (_device(row), row["layer"], row["scaled"], row["op"], row["mode"], row["bias"])
        if case not in latest or row["date"] >= latest[case]["date"]:
            latest[case] = row
    return list(latest.values())


def kind(row: Row) -> str:
    """Which of `KINDS` a row's layer is of."""
    shape = row["shape"]
    groups, channels = shape["groups"], (shape["channels_in"], shape["channels_out"])
    if groups > 1:
        return "depthwise" if groups == channels[0] else "grouped"
    if min(channels) <= FEW_CHANNELS:
        return "first or last layer"
    if row["transposed"]:
        return "transposed"
    simple = shape["kernel_size"] > 1 and shape["stride"] == 1
    return "dense" if simple else "pointwise or strided"


def _device(row: Row) -> str:
    # Beside another torch, a row is another case.
    pages = ", torch with huge pages" if row.get("torch_huge_pages") else ""
    return f"{row['gpu'] or _processor(row)}{pages}"


def _processor(row: Row) -> str:
    return f"{row['cpu']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}"


def _by_device(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for device in dict.fromkeys(map(_device, rows)):
        yield device, [row for row in rows if _device(row) == device]


def _by_class(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows of GPUs, and those of CPUs, which have pictures of their own, with words to say so."""
    yield "", [row for row in rows if row["gpu"] is not None]
    yield " on CPUs", [row for row in rows if row["gpu"] is None]


def _picture(file: Path, where: str) -> Path:
    return file.with_stem(f"{file.stem}-cpu") if where else file


def _measured(rows: Sequence[Row]) -> str:
    """On what and when, in bold and plain words."""
    dates = sorted({row["date"][:10] for row in rows})
    machines = "; ".join(dict.fromkeys(map(machine, rows)))
    return f"**{machines}**, measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in body)


def _rows_table(
    columns: Mapping[str, Callable[[Row], str]],
    rows: Sequence[Row],
    sources_hash: Collection[str],
    name: Callable[[Row], str],
) -> str:
    def cells(row: Row) -> list[str]:
        stale = "" if row["sources_hash"] in sources_hash else " †"
        return [name(row) + stale, *(cell(row) for cell in list(columns.values())[1:])]

    return _table(list(columns), map(cells, rows))


def _namer(rows: Sequence[Row], most: int | None = None) -> Callable[[Row], str]:
    """Names layers, telling their bias and op where rows hold several, in `most` characters if
    need be."""
    biases: dict[str, set[bool]] = {}
    several = len({row["op"] for row in rows}) > 1
    for row in rows:
        biases.setdefault(_layer(row), set()).add(row["bias"])

    def name(row: Row) -> str:
        layer, end = _layer(row), ""
        if len(biases[layer]) > 1:
            end = ", bias" if row["bias"] else ", no bias"
        if several:
            end += f", {row['op']}"
        if most and len(layer) + len(end) > most:
            layer = layer[: most - len(end) - 1].rstrip() + "…"
        return layer + end

    return name


def _sorted_by_kind(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: KINDS.index(kind(row)))


def _means(rows: Sequence[Row], sources_hash: Collection[str]) -> str:
    """The geometric mean of the ratio, by kind and mode, between the least and the greatest."""
    timed = [row for row in rows if row["ratio"] is not None]
    modes = list(dict.fromkeys(row["mode"] for row in timed))

    def cell(some: Sequence[Row]) -> str:
        ratios = [row["ratio"] for row in some]
        if not ratios:
            return "–"
        return f"{geometric_mean(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"

    def line(name: str, some: Sequence[Row]) -> list[str]:
        stale = "" if all(row["sources_hash"] in sources_hash for row in some) else " †"
        by_mode = [cell([row for row in some if row["mode"] == mode]) for mode in modes]
        return [name + stale, str(len({row["layer"] for row in some})), *by_mode]

    lines = [line(one, some) for one in KINDS if (some := [r for r in timed if kind(r) == one])]
    return _table(["torch ÷ ours", "layers", *modes], [*lines, line("all", timed)])


def _findings(rows: Sequence[Row]) -> list[str]:
    """What a reader should know of rows before their table: how bad it gets, and how often."""
    timed = [row for row in rows if row["ratio"] is not None]
    lines = []
    if timed:
        slowest, name = min(timed, key=lambda row: row["ratio"]), _namer(timed)
        losing = [row for row in timed if _loses(row)]
        of_aten = sum(row["plan"] == "aten" for row in timed)
        losing_aten = sum(row["plan"] == "aten" for row in losing)
        lines = [
            f"slowest against torch: {name(slowest)}, {slowest['mode']}, on plan "
            f"`{slowest['plan']}`: {slowest['ratio']:.2f}×",
            f"rows slower than torch: {len(losing)} of {len(timed)}, {losing_aten} run by ATen",
            f"rows that ATen runs: {of_aten} of {len(timed)}",
        ]
    outside = sum(row["torch_correct"] is False for row in rows)
    if outside:
        lines.append(f"rows where torch's own output is outside of the error bound: {outside}")
    return lines + [line for line in notes(rows) if not line.startswith("torch: ")]


def _of(rows: Iterable[Row], op: str) -> list[Row]:
    return [row for row in rows if row["op"] == op]


def _summaries(rows: Sequence[Row], sources_hash: Collection[str]) -> list[str]:
    """A line for each op of `TRAINING` that rows hold times of: how fast by mode, and how bad."""
    lines = []
    for op, (title, _) in TRAINING.items():
        timed = [row for row in _of(rows, op) if row["ratio"] is not None]
        if not timed:
            continue
        means = []
        for mode in dict.fromkeys(row["mode"] for row in timed):
            ratios = [row["ratio"] for row in timed if row["mode"] == mode]
            means.append(f"{mode} {geometric_mean(ratios):.2f}×")
        slowest = min(timed, key=lambda row: row["ratio"])
        stale = "" if all(row["sources_hash"] in sources_hash for row in timed) else " †"
        lines.append(
            f"{title.lower()}, torch ÷ ours: {', '.join(means)} (geometric means of "
            f"{len({row['layer'] for row in timed})} layers); slowest: {_namer(timed)(slowest)}, "
            f"{slowest['mode']}, on `{slowest['plan']}`: {slowest['ratio']:.2f}×; slower than "
            f"torch: {sum(map(_loses, timed))} of {len(timed)} rows{stale}"
        )
    remarks = notes(row for row in rows if row["op"] != "forward")
    return lines + [line for line in remarks if not line.startswith("torch: ")]


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


DAGGER = "† measured on other kernels than those in this tree."


def markdown(rows: Sequence[Row], sources_hash: Collection[str]) -> str:
    """The README's results section: means, findings and a short table for each GPU.

    Rows measured on other kernels than those of `sources_hash` carry a †.
    """
    chosen = newest(rows)
    if not chosen:
        return EMPTY
    parts = []
    tables = []
    for device, here in _by_device(chosen):
        parts.append(_measured([row for row in here if not row["skipped"]] or here))
        forward = _of(here, "forward")
        ran = _sorted_by_kind(row for row in forward if not row["skipped"])
        if any(row["ratio"] is not None for row in ran):
            parts.append(_means(ran, sources_hash))
        if findings := _findings(forward) + _summaries(here, sources_hash):
            parts.append(_lines(findings))
        if ran:
            table = _rows_table(SHORT_COLUMNS, ran, sources_hash, _namer(ran))
            summary = f"<details><summary>Layer by layer on {device}</summary>"
            tables.append(f"{summary}\n\n{table}\n\n</details>")
    if any(row["ratio"] is not None for row in _of(chosen, "forward")):
        parts += [
            f"![{caption}, layer by layer{where}]({file.as_posix()})"
            for where, some in _by_class(_of(chosen, "forward"))
            for file, caption in ((_picture(file, where), text) for file, text in PICTURES.values())
            if any(row["ratio"] is not None for row in some)
        ]
    parts += tables
    parts.append(
        "Means are geometric, over layers, with the least and the greatest in brackets. Times are "
        "medians of interleaved runs, a GPU's own; roofline is floor ÷ ours. "
        f"[{DETAILS.as_posix()}]({DETAILS.as_posix()}) has every row in full: spread, im2col's "
        "times, errors, host time, memory."
    )
    if any(row["sources_hash"] not in sources_hash for row in chosen):
        parts.append(DAGGER)
    return "\n\n".join(parts)


def details(rows: Sequence[Row], sources_hash: Collection[str]) -> str:
    """docs/results.md: every column of every row that counts, and all remarks."""
    parts = ["# Results", "Made by `fastconv1d report` from the rows in benchmarks/results."]
    chosen = newest(rows)
    parts += _sections(_of(chosen, "forward"), COLUMNS, sources_hash)
    parts.append(LEGEND if chosen else EMPTY)
    for op, (title, picture) in TRAINING.items():
        if some := _of(chosen, op):
            parts.append(f"## {title}")
            parts += [
                f"![{title}{where}](images/{_picture(picture, where).name})"
                for where, here in _by_class(some)
                if any(row["ratio"] is not None for row in here)
            ]
            parts += _sections(some, TRAINING_COLUMNS, sources_hash)
    if any(row["op"] != "forward" for row in chosen):
        parts.append(TRAINING_LEGEND)
    if any(row["sources_hash"] not in sources_hash for row in chosen):
        parts.append(DAGGER)
    return "\n\n".join(parts) + "\n"


def _sections(
    rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]], sources_hash: Collection[str]
) -> Iterator[str]:
    """Where rows of one op were measured, their tables by kind, and remarks; means where they are
    not the README's."""
    for _, here in _by_device(rows):
        ran = _sorted_by_kind(row for row in here if not row["skipped"])
        yield _measured(ran or here)
        if here[0]["op"] != "forward" and any(row["ratio"] is not None for row in ran):
            yield _means(ran, sources_hash)
        for one in KINDS:
            if some := [row for row in ran if kind(row) == one]:
                yield f"{one.capitalize()}:"
                yield _rows_table(columns, some, sources_hash, _layer)
        if remarks := notes(here):
            yield _lines(remarks)


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


# --- pictures -----------------------------------------------------------------------------------

MARKERS = {
    "tf32": ("o", "#0072b2"),
    "ieee": ("s", "#d55e00"),
    "bf16": ("^", "#009e73"),
    "fp16": ("v", "#cc79a7"),
    "fp64": ("D", "#555555"),
}
"""A mode's shape and colour; the colours are told apart by the colour-blind too."""

LABEL = 46
"""Characters of a layer's name that pictures have room for."""


def plot(
    rows: Sequence[Row],
    path: Path,
    quantity: str = "ratio",
    sources_hash: Collection[str] = (),
    title: str = "",
) -> None:
    """Draws a field of `PICTURES`, a line of marks for each layer, a panel for each GPU.

    A `title` goes before the caption.

    Panels that hold rows of other kernels than those of `sources_hash` carry a †.

    Raises:
        ValueError: no row holds a time.
    """
    from matplotlib.figure import Figure

    timed = _sorted_by_kind(row for row in rows if row[quantity] is not None)
    if not timed:
        raise ValueError("rows hold no times, expected at least one timed row to plot")
    name, shortened = _namer(timed), _namer(timed, LABEL)
    labels: dict[str, str] = {}  # of layers, by their names
    places: dict[str, float] = {}  # likewise, from the top down
    headings: dict[str, float] = {}  # of kinds
    line = 0.0
    for row in timed:
        if kind(row) not in headings:
            line += 0.6 if headings else 0
            headings[kind(row)] = line
            line += 1
        if name(row) not in places:
            labels[name(row)], places[name(row)] = shortened(row), line
            line += 1
    panels = list(_by_device(timed))
    figure = Figure(figsize=(2.8 + 3.4 * max(len(panels), 1.5), 1.5 + 0.165 * line))
    figure.set_layout_engine("constrained")
    ticks = [*headings.values(), *places.values()]
    for number, (device, here) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        _set_scale(axes, quantity, [row[quantity] for row in timed])
        _draw(axes, here, quantity, [places[name(row)] for row in here])
        axes.set_ylim(line - 0.3, -0.7)
        axes.set_yticks(ticks, [*headings, *labels.values()] if number == 1 else [""] * len(ticks))
        for label in axes.get_yticklabels()[: len(headings)]:
            label.set_fontweight("bold")
        axes.tick_params(labelsize=7, labeltop=True)
        axes.tick_params(axis="y", length=0)
        stale = sources_hash and any(row["sources_hash"] not in sources_hash for row in here)
        axes.set_title(device + (" †" if stale else ""), fontsize=8, fontweight="bold")
    modes = [mode for mode in MARKERS if any(row["mode"] == mode for row in timed)]
    handles = [_mark(mode, False) for mode in modes] + [_mark("", True)]
    caption = ": ".join(filter(None, (title, PICTURES[quantity][1])))
    figure.legend(
        handles, [*modes, "hollow: ATen runs it"], loc="outside upper center",
        ncols=len(handles), fontsize=7.5, title=caption, title_fontsize=9, frameon=False,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _set_scale(axes: "Axes", quantity: str, values: Sequence[float]) -> None:
    """The horizontal axis, the same in every panel; torch or the roofline is a line at 1."""
    least, most = min(values), max(values)
    if quantity == "ratio":
        axes.set_xscale("log")
        low, high = min(0.8, least / 1.1), max(2.0, most * 1.1)
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 50) if low <= t <= high]
        axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.axvspan(low, 1, color="#f6dede", linewidth=0, zorder=0)
    else:
        low, high = 0, max(1.05, most * 1.05)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlim(low, high)
    axes.axvline(1, color="black", linewidth=0.8, zorder=1)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _draw(axes: "Axes", rows: Sequence[Row], quantity: str, places: Sequence[float]) -> None:
    """One GPU's marks, each at its layer's place, those of a layer on one line."""
    values = [row[quantity] for row in rows]
    for place in set(places):
        there = [value for value, at in zip(values, places, strict=True) if at == place]
        axes.plot([min(there), max(there)], [place] * 2, color="#bbbbbb", linewidth=1, zorder=2)
    for row, value, place in zip(rows, values, places, strict=True):
        mark = _mark(row["mode"], row["plan"] == "aten")
        mark.set_data([value], [place])
        axes.add_line(mark)


def _mark(mode: str, hollow: bool) -> Any:
    from matplotlib.lines import Line2D

    shape, color = MARKERS.get(mode, ("o", "#555555"))
    face = "white" if hollow else color
    return Line2D(
        [], [], linestyle="", marker=shape, markersize=4.5, color=color, markerfacecolor=face,
        zorder=3,
    )  # fmt: skip


def update(root: Path, sources_hash: Collection[str], *, write: bool) -> bool:
    """Brings a source tree's README, docs/results.md and pictures in step with its results.

    Returns whether they were already; with `write` false nothing is changed. A picture counts as
    in step if it exists, since its bytes depend on the plotting library.
    """
    rows = read(root / RESULTS)
    readme, full = root / "README.md", root / DETAILS
    text = readme.read_text(encoding="utf-8")
    wanted = {
        readme: inserted(text, markdown(rows, sources_hash)),
        full: details(rows, sources_hash),
    }
    present = {file: file.read_text(encoding="utf-8") if file.exists() else None for file in wanted}
    pictures = _pictures(newest(rows))
    drawn = all((root / file).exists() for file, *_ in pictures)
    in_step = present == wanted and drawn
    if write:
        full.parent.mkdir(parents=True, exist_ok=True)
        for file, content in wanted.items():
            file.write_text(content, encoding="utf-8")
        for picture, some, quantity, title in pictures:
            plot(some, root / picture, quantity, sources_hash, title)
    return in_step


def _pictures(chosen: Sequence[Row]) -> list[tuple[Path, list[Row], str, str]]:
    """The file, rows, field and title of each picture that rows hold times for."""
    pictures = []
    for where, here in _by_class(chosen):
        forward = _of(here, "forward")
        for quantity, (file, _) in PICTURES.items():
            pictures.append((_picture(file, where), forward, quantity, ""))
        for op, (title, file) in TRAINING.items():
            pictures.append((_picture(file, where), _of(here, op), "ratio", title))
    return [one for one in pictures if any(row["ratio"] is not None for row in one[1])]
