"""verify accepts a right ModelNew and rejects each kind of wrong one, saying why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from textwrap import indent

import pytest

from fastconv1d.verify import Report, verify

REFERENCE = """
import torch
import torch.nn as nn

class Model(nn.Module):
    def __init__(self, channels_in, channels_out, kernel_size, bias=True):
        super().__init__()
        self.conv1d = nn.Conv1d(channels_in, channels_out, kernel_size, padding=1, bias=bias)

    def forward(self, x):
        return self.conv1d(x)

length = 200

def get_inputs():
    return [torch.rand(3, 8, length)]

def get_init_inputs():
    return [8, 6, 3]
"""

SUBMISSION = """
import torch
import torch.nn as nn

class ModelNew(nn.Module):
    def __init__(self, channels_in, channels_out, kernel_size, bias=True):
        super().__init__()
        self.conv1d = nn.Conv1d(channels_in, channels_out, kernel_size, padding=1, bias=bias)
        self.calls = 0
        self.kept = None

    def convolution(self, x, weight, bias):
        return torch.nn.functional.conv1d(x, weight, bias, padding=1)

    def forward(self, x):
        weight, bias = self.conv1d.weight, self.conv1d.bias
        self.calls += 1
"""


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.py"
    path.write_text(REFERENCE)
    return path


def submission(tmp_path: Path, forward: str) -> Path:
    path = tmp_path / "submission.py"
    path.write_text(SUBMISSION + indent(forward, " " * 8) + "\n")
    return path


RIGHT = {
    "the same": "return self.convolution(x, weight, bias)",
    "fp64": "return self.convolution(x.double(), weight.double(), bias.double()).to(x.dtype)",
    "taps": """
padded = torch.nn.functional.pad(x, (1, 1))
taps = [weight[:, :, k] @ padded[:, :, k : k + x.shape[2]] for k in range(3)]
return taps[0] + taps[1] + taps[2] + bias[:, None]
""",
}


@pytest.mark.parametrize("forward", RIGHT.values(), ids=RIGHT.keys())
def test_right_submissions_are_accepted(tmp_path: Path, reference: Path, forward: str) -> None:
    report = verify(reference, submission(tmp_path, forward), device="cpu", seconds=0.01)
    assert report.ok, report.reason
    assert report.worst_truth is not None and report.worst_truth < 1
    assert report.worst_reference < 1
    assert report.speedup is not None and report.speedup > 0
    assert "1e-04 |r|" in report.rule or "0.0001 |r|" in report.rule


TRANSPOSED = (
    ("nn.Conv1d(", "nn.ConvTranspose1d("),
    ("functional.conv1d", "functional.conv_transpose1d"),
)


def transpose(*paths: Path) -> None:
    """Make a convolution's reference and submission those of its transpose."""
    for path in paths:
        text = path.read_text()
        for ordinary, transposed in TRANSPOSED:
            text = text.replace(ordinary, transposed)
        path.write_text(text)


@pytest.mark.parametrize("fault", ["", "one tap off", "tap missing", "bias missing", "coarse"])
def test_transposed_convolutions_are_judged_as_well(
    tmp_path: Path, reference: Path, fault: str
) -> None:
    forward, words = WRONG[fault] if fault else (RIGHT["the same"], "")
    candidate = submission(tmp_path, forward)
    transpose(reference, candidate)
    report = verify(reference, candidate, device="cpu", seconds=0)
    assert report.ok == (not fault), report.reason
    assert words in report.reason
    assert report.worst_truth is not None


WRONG = {
    "one tap off": (
        "return self.convolution(x.roll(1, 2), weight, bias)",
        "against fp64",
    ),
    "tap missing": (
        "return self.convolution(x, weight * torch.tensor([1, 1, 0]).to(weight), bias)",
        "against fp64",
    ),
    "bias missing": ("return self.convolution(x, weight, None)", "against fp64"),
    "last position unwritten": (
        """
output = torch.full((x.shape[0], 6, x.shape[2]), float("nan"), dtype=x.dtype)
output[..., :-1] = self.convolution(x, weight, bias)[..., :-1]
return output
""",
        "output[0, 0, 199] is nan",
    ),
    "zero": ("return torch.zeros_like(self.convolution(x, weight, bias))", "against fp64"),
    "coarse": (
        "return self.convolution(x.bfloat16().float(), weight.bfloat16().float(), bias)",
        "against fp64",
    ),
    "stale": (
        """
if self.kept is None:
    self.kept = self.convolution(x, weight, bias).detach()
return self.kept.clone()
""",
        "against fp64",
    ),
    "kept by address": (
        """
self.kept = self.kept or {}
if x.data_ptr() not in self.kept:
    self.kept[x.data_ptr()] = self.convolution(x, weight, bias).detach()
return self.kept[x.data_ptr()].clone()
""",
        "against fp64",
    ),
    "one buffer for all outputs": (
        """
if self.kept is None:
    self.kept = torch.empty_like(self.convolution(x, weight, bias))
return self.kept.copy_(self.convolution(x, weight, bias).detach())
""",
        "an earlier call's output was overwritten",
    ),
    "the input's memory": (
        """
output = self.convolution(x, weight, bias).detach()
memory = x.view(-1)[: output.numel()].view(output.shape)
return memory.copy_(output)
""",
        "input's memory",
    ),
    "input modified": (
        """
output = self.convolution(x, weight, bias)
x[0, 0, 0] += 1
return output
""",
        "input 0 was modified",
    ),
    "parameter modified": (
        """
output = self.convolution(x, weight, bias)
weight.data.mul_(1)
weight.data[0, 0, 0] += 1e-9
weight.data[0, 0, 1] += 1
return output
""",
        "conv1d.weight was modified",
    ),
    "shape": ("return self.convolution(x, weight, bias)[..., 1:]", "shape"),
    "dtype": ("return self.convolution(x, weight, bias).double()", "dtype"),
    "no tensor": ("return [self.convolution(x, weight, bias)]", "is a list"),
    "exception": ("raise RuntimeError('no such kernel')", "no such kernel"),
    "right until timed": (
        """
output = self.convolution(x, weight, bias)
return output if self.calls < 5 else output * 0
""",
        "against fp64",
    ),
    "nan": (
        """
output = self.convolution(x, weight, bias).detach()
output[1, 2, 3] = float("nan")
return output
""",
        "output[1, 2, 3] is nan",
    ),
    "finished by a thread, later": (
        """
import threading, time
output = torch.zeros(x.shape[0], 6, x.shape[2])
result = self.convolution(x, weight, bias).detach()
def work():
    time.sleep(0.05)
    output.copy_(result)
threading.Thread(target=work).start()
return output
""",
        "",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_submissions_are_rejected(tmp_path: Path, reference: Path, fault: str) -> None:
    forward, reason = WRONG[fault]
    report = verify(reference, submission(tmp_path, forward), device="cpu", seconds=0.01)
    assert not report.ok
    assert reason in report.reason
    assert report.speedup is None


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bit(tmp_path: Path, reference: Path, dtype: str) -> None:
    forward = """
assert x.dtype == weight.dtype != torch.float32
return self.convolution(x.float(), weight.float(), bias.float()).to(x.dtype)
"""
    report = verify(reference, submission(tmp_path, forward), device="cpu", dtype=dtype, seconds=0)
    assert report.ok, report.reason
    assert f"of {dtype}" in report.rule
    assert report.speedup is None
    wrong = submission(tmp_path, WRONG["bias missing"][0])
    assert not verify(reference, wrong, device="cpu", dtype=dtype, seconds=0).ok


def test_other_weights_are_named(tmp_path: Path, reference: Path) -> None:
    path = submission(tmp_path, RIGHT["the same"])
    path.write_text(path.read_text().replace("        self.calls = 0", "        self.calls = 0\n"
        "        torch.nn.init.normal_(self.conv1d.weight)"))  # fmt: skip
    report = verify(reference, path, device="cpu", seconds=0)
    assert not report.ok
    assert "conv1d.weight is not the reference's" in report.reason


def test_other_modules_are_held_against_the_reference(tmp_path: Path, reference: Path) -> None:
    activated = REFERENCE.replace("return self.conv1d(x)", "return self.conv1d(x).relu()")
    reference.write_text(activated)
    right = submission(tmp_path, "return self.convolution(x, weight, bias).relu()")
    report = verify(reference, right, device="cpu", seconds=0)
    assert report.ok, report.reason
    assert report.worst_truth is None
    wrong = submission(tmp_path, "return self.convolution(x, weight, bias)")
    assert "reference" in verify(reference, wrong, device="cpu", seconds=0).reason


def test_each_trial_has_new_inputs(tmp_path: Path, reference: Path) -> None:
    path = submission(
        tmp_path,
        "Model.seen = getattr(Model, 'seen', []) + [x.flatten()[0].item()]\n"
        "assert len(set(Model.seen)) == len(Model.seen), Model.seen\n"
        "return self.convolution(x, weight, bias)",
    )
    report = verify(reference, path, device="cpu", seconds=0, trials=5)
    assert report.ok, report.reason
    assert (report.trials, verify(reference, path, device="cpu", seed=7, seconds=0).seed) == (5, 7)


def test_a_submission_sees_the_references_names_and_cannot_rebind_them(
    tmp_path: Path, reference: Path
) -> None:
    forward = "assert length == 200 and x.shape[2] == 200\n" + RIGHT["the same"]
    path = submission(tmp_path, forward)
    assert verify(reference, path, device="cpu", seconds=0).ok
    path.write_text(path.read_text().replace("length == 200", "length == 4") + "\nlength = 4\n")
    report = verify(reference, path, device="cpu", seconds=0)
    assert report.ok, report.reason


def test_nearer_to_fp64_than_the_reference(tmp_path: Path, reference: Path) -> None:
    coarse = """
class Conv1d(nn.Conv1d):
    def forward(self, x):
        return super().forward(x.bfloat16().float())
"""
    text = REFERENCE.replace("nn.Conv1d(", "Conv1d(").replace("class Model", coarse + "class Model")
    reference.write_text(text)
    report = verify(reference, submission(tmp_path, RIGHT["fp64"]), device="cpu", seconds=0)
    assert report.ok, report.reason
    worse = submission(tmp_path, WRONG["coarse"][0])
    assert not verify(reference, worse, device="cpu", seconds=0).ok


def test_within_rounding_but_far_from_the_reference(tmp_path: Path, reference: Path) -> None:
    reference.write_text(REFERENCE.replace("torch.rand(", "100 * torch.rand("))
    forward = """
exact = self.convolution(x.double(), weight.double(), bias.double())
return (exact * 1.011).to(x.dtype)
"""
    report = verify(reference, submission(tmp_path, forward), device="cpu", dtype="bf16", seconds=0)
    assert "farther from fp64" in report.reason


def test_missing_names(tmp_path: Path, reference: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("")
    assert "no ModelNew" in verify(reference, empty, device="cpu").reason
    empty.write_text("import nothing_of_this_name")
    assert "ModuleNotFoundError" in verify(reference, empty, device="cpu").reason
    empty.write_text("def broken(:")
    assert "SyntaxError" in verify(reference, empty, device="cpu").reason
    empty.write_text("")
    with pytest.raises(ValueError, match="no Model"):
        verify(empty, reference, device="cpu")
    with pytest.raises(ValueError, match="trials is 0"):
        verify(reference, reference, trials=0)
    with pytest.raises(ValueError, match="dtype is 'fp8'"):
        verify(reference, reference, dtype="fp8")


def test_a_report_is_json(tmp_path: Path, reference: Path) -> None:
    report = verify(reference, submission(tmp_path, RIGHT["fp64"]), device="cpu", seconds=0)
    assert Report(**json.loads(json.dumps(asdict(report)))) == report


SIDE_STREAM = """
stream = torch.cuda.Stream()
{before}
with torch.cuda.stream(stream):
    output = self.convolution(x, weight, bias).detach()
{after}
return output
"""
JOIN = {
    "before": "stream.wait_stream(torch.cuda.current_stream())",
    "after": "torch.cuda.current_stream().wait_stream(stream)",
}


@pytest.mark.gpu
@pytest.mark.parametrize(("before", "after"), [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_work_on_another_stream(tmp_path: Path, reference: Path, before: bool, after: bool) -> None:
    reference.write_text(REFERENCE.replace("length = 200", "length = 1000000"))
    forward = SIDE_STREAM.format(
        before=JOIN["before"] if before else "", after=JOIN["after"] if after else ""
    )
    report = verify(reference, submission(tmp_path, forward), device="cuda", seconds=0)
    assert report.ok == (before and after), report.reason


@pytest.mark.gpu
def test_an_unwritten_element_on_the_gpu(tmp_path: Path, reference: Path) -> None:
    forward = """
output = torch.empty(x.shape[0], 6, x.shape[2], device=x.device, dtype=x.dtype)
output[..., :-1] = self.convolution(x, weight, bias)[..., :-1]
return output
"""
    report = verify(reference, submission(tmp_path, forward), device="cuda", seconds=0)
    assert "is nan" in report.reason
