"""The store of tuned plans: which plan `fastconv1d tune` found to be the fastest, and where.

A JSON file, `config.cache_dir() / "tuned.json"`, of two levels:

    {context: {geometry: {"plan": …, "ms": …, "model_plan": …, "model_ms": …, "date": …}}}

A context is all that times depend on beside the problem: the GPU, the kernels' sources, torch and
cuDNN. A geometry is a bucketed problem, so an entry speaks of all lengths near the one measured.
What other sources or versions left there is never found, and makes room in the end.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fastconv1d import build, config
from fastconv1d.problem import Gpu, Problem

MOST_CONTEXTS = 32
"""Contexts that the file keeps: those written last."""

_GEOMETRY = [field.name for field in fields(Problem) if field.name != "gpu"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest plan of a problem, beside the one of the cost model; medians in ms, UTC date."""

    plan: str
    ms: float
    model_plan: str
    model_ms: float | None
    date: str


Choices = Mapping[str, Mapping[str, Choice]]
"""Choices by context, then by geometry."""


def path() -> Path:
    """The file."""
    return config.cache_dir() / "tuned.json"


def context(gpu: Gpu | None, sources_hash: str) -> str:
    """What a choice holds for: GPU or CPU, the kernels' sources, torch's and cuDNN's version."""
    cudnn: Any = torch.backends.cudnn
    machine = f"{gpu.name}, cuDNN {cudnn.version()}" if gpu else "CPU"
    return f"{machine}, torch {torch.__version__}, kernels {sources_hash}"


def geometry(problem: Problem) -> str:
    """The bucketed problem, by name and value; its GPU is the context's."""
    bucketed = problem.bucketed()
    return " ".join(f"{name}={getattr(bucketed, name)}" for name in _GEOMETRY)


@lru_cache(maxsize=1)
def choices() -> Choices:
    """All that is stored, read once in a process; nothing, after one warning, from a bad file."""
    try:
        return _read()
    except (OSError, ValueError, RuntimeError) as error:  # the last where there is no home folder
        text = f"fastconv1d: tuned plans are not used: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return {}


def store(found: Choices) -> None:
    """Add choices to the file, or replace those it has; safe beside other writers.

    A file that cannot be understood is written anew. Raises: OSError if the folder or the file
    cannot be written to.
    """
    file = path()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(f"{file} is read-only")
    with build.lock(file.with_suffix(".lock"), f"writes {file.name}") as ours:
        if not ours:
            raise TimeoutError(f"{file} is locked by another process")
        try:
            merged = {place: dict(stored) for place, stored in _read().items()}
        except ValueError:
            merged = {}
        for place, stored in found.items():
            merged[place] = merged.pop(place, {}) | dict(stored)  # moves it to the end: the newest
        kept = list(merged.items())[-MOST_CONTEXTS:]
        plain = {
            place: {key: asdict(choice) for key, choice in stored.items()} for place, stored in kept
        }
        _replace(file, json.dumps(plain, indent=1, ensure_ascii=False))


def status(gpu: Gpu | None, sources_hash: str) -> dict[str, Any]:
    """What `doctor` tells: the file, how many choices hold here, how many do not, what is wrong."""
    stored: Choices = {}
    file, problem = "", None
    try:
        file = str(path())
        stored = _read()
    except (OSError, ValueError, RuntimeError) as error:  # the last as in `choices`
        problem = str(error)
    here = len(stored.get(context(gpu, sources_hash), {}))
    return {
        "file": file,
        "choices": here,
        "choices of other GPUs, kernels or versions": sum(map(len, stored.values())) - here,
        "problem": problem,
    }


def _read() -> Choices:
    """Raises: OSError; ValueError if the file is not what `store` writes."""
    file = path()
    try:
        return {
            place: {key: _choice(choice) for key, choice in stored.items()}
            for place, stored in json.loads(file.read_text(encoding="utf-8")).items()
        }
    except FileNotFoundError:
        return {}
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} holds no choices of plans: {error}") from error


def _choice(values: dict[str, Any]) -> Choice:
    choice = Choice(**values)
    times = choice.ms, choice.model_ms or 0.0
    names = choice.plan, choice.model_plan, choice.date
    if not all(isinstance(time, (int, float)) for time in times):
        raise TypeError(f"times are {times}, expected numbers")
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"plans and date are {names}, expected strings")
    return choice


def _replace(file: Path, content: str) -> None:
    descriptor, aside = tempfile.mkstemp(prefix=".tuned-", dir=file.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(content)
        os.replace(aside, file)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
