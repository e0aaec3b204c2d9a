"""Train a small dilated TCN to predict the next sample of noisy sums of sinusoids.

    python examples/train_tcn.py --backend fastconv1d       # one run
    python examples/train_tcn.py --compare                  # three seeds of torch beside ours

Both backends start from the same weights and see the same signals. With --small it runs on a CPU,
where fastconv1d's plan is torch's own convolution.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastconv1d

BACKENDS: dict[str, type[nn.Conv1d]] = {"torch": nn.Conv1d, "fastconv1d": fastconv1d.Conv1d}
SEEDS = 3  # of each backend that --compare trains
WARM_UP = 5  # steps that compile, search and allocate; their times do not count
LAST = 10  # steps whose mean is called the final loss


@dataclass(frozen=True)
class Sizes:
    """Of the model and its batches; the default keeps a GPU busy with convolutions."""

    channels: int = 256
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    batch: int = 16
    length: int = 16384


SMALL = Sizes(channels=16, dilations=(1, 2, 4, 8), batch=4, length=512)


class Block(nn.Module):
    """x + relu(convolution of x)"""

    def __init__(self, conv: type[nn.Conv1d], channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu_()


class TCN(nn.Module):
    """(batch, 1, length) to a prediction of each position's sample `ahead` positions later.

    A prediction sees `ahead - 1` positions before and after its own. Padding both sides and
    predicting further ahead is as causal as padding the past alone, and spares a copy a layer.
    """

    def __init__(self, conv: type[nn.Conv1d], sizes: Sizes) -> None:
        super().__init__()
        self.ahead = sum(sizes.dilations) + 1
        self.layers = nn.Sequential(
            conv(1, sizes.channels, 1),
            *(Block(conv, sizes.channels, dilation) for dilation in sizes.dilations),
            conv(sizes.channels, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def signals(sizes: Sizes, generator: torch.Generator) -> Tensor:
    """(batch, 1, length): four sinusoids each, of periods from 8 to 256 samples, and noise."""

    def uniform(low: float, high: float) -> Tensor:
        shape = (sizes.batch, 4, 1)
        values = torch.rand(shape, generator=generator, device=generator.device)
        return low + (high - low) * values

    position = torch.arange(sizes.length, device=generator.device)
    radians = 2 * torch.pi * (position / 2 ** uniform(3, 8) + uniform(0, 1))
    waves = (uniform(0.2, 0.6) * radians.sin()).sum(dim=1, keepdim=True)
    return waves + 0.05 * torch.randn(waves.shape, generator=generator, device=generator.device)


@dataclass(frozen=True)
class Run:
    """What one training gave: the loss of each step, and the median time of one."""

    backend: str
    seed: int
    losses: list[float]
    step_ms: float

    @property
    def final(self) -> float:
        """The mean loss of the last steps."""
        return statistics.fmean(self.losses[-LAST:])


def stamp(device: torch.device) -> Any:
    """A moment of the device's: an event that it passes, or the clock's time on a CPU."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start: Any, end: Any) -> float:
    """From one stamp to another; the device has passed both."""
    elapsed: float = (end - start) * 1e3 if isinstance(end, float) else start.elapsed_time(end)
    return elapsed


def train(
    backend: str,
    seed: int,
    sizes: Sizes,
    device: torch.device,
    steps: int,
    bf16: bool = False,
    every: int = 0,
    say: Callable[[str], None] = print,
) -> Run:
    """Trains with Adam for some steps, and tells the loss after each `every` of them (0: never)."""
    torch.manual_seed(seed)
    model = TCN(BACKENDS[backend], sizes).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator(device).manual_seed(seed)
    losses, stamps = [], []
    for step in range(1, steps + 1):
        signal = signals(sizes, generator)
        start = stamp(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            predicted = model(signal)
        error = predicted[..., : -model.ahead].float() - signal[..., model.ahead :]
        loss = error.square().mean()
        loss.backward()
        optimizer.step()
        stamps.append((start, stamp(device)))
        losses.append(loss.detach())
        if every and step % every == 0:
            say(f"{backend}, seed {seed}, step {step}: loss {float(loss.detach()):.5f}")
    curve = torch.stack(losses).tolist()  # waits for the device
    times = [milliseconds(*pair) for pair in stamps]
    return Run(backend, seed, curve, statistics.median(times[WARM_UP:] or times))


def largest_gap(theirs: Sequence[Run], ours: Sequence[Run]) -> tuple[int, float, float]:
    """The step up to which the mean losses are furthest apart, how far, and how far apart torch's
    own seeds are there. All are running means, since single batches differ more than runs do."""

    def curves(runs: Sequence[Run]) -> Tensor:
        losses = torch.tensor([run.losses for run in runs], dtype=torch.float64)
        return losses.unfold(1, window, 1).mean(dim=2)

    window = min(LAST, len(theirs[0].losses))
    torchs = curves(theirs)
    gaps = (torchs.mean(dim=0) - curves(ours).mean(dim=0)).abs()
    at = int(gaps.argmax())
    spread = float(torchs[:, at].max() - torchs[:, at].min())
    return at + window, float(gaps[at]), spread


def show(theirs: Sequence[Run], ours: Sequence[Run]) -> None:
    """The table of --compare, and what follows from it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"final loss: mean of the last {LAST} steps", title_justify="left")
    for header in ("seed", "torch", "fastconv1d", "torch, ms/step", "fastconv1d, ms/step"):
        table.add_column(header, justify="right")
    for torchs, own in zip(theirs, ours, strict=True):
        losses = (f"{torchs.final:.5f}", f"{own.final:.5f}")
        table.add_row(str(own.seed), *losses, f"{torchs.step_ms:.2f}", f"{own.step_ms:.2f}")
    means = (f"{statistics.fmean(run.final for run in runs):.5f}" for runs in (theirs, ours))
    table.add_row("mean", *means)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    step, gap, spread = largest_gap(theirs, ours)
    print(
        f"Mean losses of {LAST} steps and {len(theirs)} seeds are {gap:.2g} apart at most, at step "
        f"{step}, where torch's seeds are {spread:.2g} apart: "
        f"{'within' if gap <= spread else 'OUTSIDE OF'} the spread."
    )
    medians = [statistics.median(run.step_ms for run in runs) for runs in (theirs, ours)]
    print(
        f"A step takes {medians[0]:.2f} ms with torch and {medians[1]:.2f} ms with fastconv1d: "
        f"{medians[0] / medians[1]:.2f}×."
    )


def write(path: Path, runs: Iterable[Run]) -> None:
    """The losses of runs as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["backend", "seed", "step", "loss"])
        for run in runs:
            for step, loss in enumerate(run.losses, start=1):
                lines.writerow([run.backend, run.seed, step, loss])


def main(argv: Sequence[str] | None = None) -> int:
    """Trains once, or compares; 1 if a comparison finds ours outside of torch's spread."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=list(BACKENDS), default="fastconv1d")
    parser.add_argument("--compare", action="store_true", help="both backends, three seeds each")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="the first one, with --compare")
    parser.add_argument("--every", type=int, default=50, help="steps from one line to the next")
    parser.add_argument("--bf16", action="store_true", help="under autocast (default: fp32)")
    parser.add_argument("--small", action="store_true", help="a size for CPUs")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the losses to it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps is {arguments.steps}, expected at least 1")
    torch.backends.cudnn.benchmark = True
    device = torch.device(arguments.device)

    def run(backend: str, seed: int) -> Run:
        sizes = SMALL if arguments.small else Sizes()
        return train(backend, seed, sizes, device, arguments.steps, arguments.bf16, arguments.every)

    if not arguments.compare:
        one = run(arguments.backend, arguments.seed)
        print(f"final loss {one.final:.5f}, median step {one.step_ms:.2f} ms")
        runs, status = [one], 0
    else:
        seeds = range(arguments.seed, arguments.seed + SEEDS)
        # In turn: a change of clocks hits both.
        pairs = [(run("torch", seed), run("fastconv1d", seed)) for seed in seeds]
        theirs, ours = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        show(theirs, ours)
        _, gap, spread = largest_gap(theirs, ours)
        runs, status = [*theirs, *ours], int(not gap <= spread)
    if arguments.csv:
        write(arguments.csv, runs)
    return status


if __name__ == "__main__":
    sys.exit(main())
