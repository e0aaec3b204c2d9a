"""The exported file: in step with its sources, fit for KernelBench's evaluator, right on a GPU."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.cpp_extension import CUDA_HOME

from fastconv1d import build, layers
from fastconv1d.export import SIGNATURES, export, source
from fastconv1d.problem import Problem
from fastconv1d.verify import verify
from kernel_runs import IN_CI

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = Problem(4, 24, 40, 501, 5, stride=2, padding=3, dilation=2, groups=2, bias=True)
UPSAMPLED = Problem(
    4, 24, 40, 301, 5, stride=2, padding=3, output_padding=1, groups=2, transposed=True, bias=True
)
# Of a kind that torch computes in TF32, where it may; others it may compute in fp32 all the same.
LIKE_67 = Problem(4, 64, 128, 4098, 3)
LIKE_64 = Problem(4, 128, 128, 4096, 3, transposed=True)


def number_of(problem: Problem) -> int:
    """The KernelBench problem whose constructor can say it."""
    return 64 if problem.transposed else 67


def exported(problem: Problem, arch: str = "90a") -> str:
    return source(problem, number_of(problem), arch)


def reference(problem: Problem) -> str:
    """The example's reference for problem 67 or 64 with another layer in it."""
    number = number_of(problem)
    text = (EXAMPLES / f"reference_{number}.py").read_text()
    for name, value in (
        ("batch_size", problem.batch),
        ("in_channels", problem.channels_in),
        ("out_channels", problem.channels_out),
        ("kernel_size", problem.kernel_size),
        ("length", problem.length),
    ):
        text, count = re.subn(rf"^{name} = \d+$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1
    geometry = [problem.stride, *(getattr(problem, name) for name in SIGNATURES[number])]
    return text.replace("kernel_size]", f"kernel_size, {', '.join(map(str, geometry))}]")


def execute(*texts: str) -> dict[str, Any]:
    """Run sources one after the other in one namespace, as KernelBench does: there is no file, and
    the submission finds (and may rebind) the reference's names."""
    names: dict[str, Any] = {}
    for text in texts:
        exec(compile(text, "<string>", "exec"), names)
    assert "__file__" not in names
    return names


def test_the_example_is_in_step(tmp_path: Path) -> None:
    export(tmp_path / "model_new.py")
    made, committed = tmp_path / "model_new.py", EXAMPLES / "model_new_67.py"
    assert made.read_text() == committed.read_text(), (
        "run: fastconv1d export --problem 67 -o examples/model_new_67.py"
    )


# KernelBench's static rules for CUDA submissions (src/kernelbench/kernel_static_checker.py): a
# pattern that is an error, or a warning, where it is found outside of comments. One warning is left
# out: conversions to fp16 in an fp32 submission, which a file that serves fp16 too must contain.
ERRORS = {
    "a fallback": r"\btry\s*:|\bexcept\s*:|\bexcept\s+\w",
    "the word pass": r"\bpass\b",
    "a clock replaced": r"(cuda\.Event(\.record|\.elapsed_time)?|synchronize|time\.\w+)\s*=[^=]",
    "threads": r"\b(import|from)\s+(threading|multiprocessing)\b|concurrent\.futures|PoolExecutor",
    "a tensor subclass": r"_make_subclass|class\s+\w+.*\((torch\.)?Tensor\)|Tensor\.__new__",
}
WARNINGS = {
    "layers of torch": r"torch\.nn\.(?!(Module|[Pp]arameter|Parameter\w+|Module\w+|init)\b)",
    "functions of torch": r"\bF\.(conv|linear|relu|gelu|softmax)|nn\.functional\.\w"
    r"|torch\.(mm|bmm|matmul|einsum|conv\w*|linear|relu|clamp)\b",
    "streams": r"cuda\.Stream\s*\(|torch\.cuda\.stream|\.wait_stream|\.record_stream",
}
REQUIRED = {
    "a kernel": r"__global__",
    "its compilation": r"load_inline|cpp_extension",
    "what only kernels use": r"\b(threadIdx|blockIdx)\.|__syncthreads\s*\(",
}


def static_faults(text: str, forbidden: dict[str, str]) -> list[str]:
    """What the rules say of a submission; both Python's and C++'s comments are cut off first."""
    code = "\n".join(re.split("#|//", line)[0] for line in text.splitlines())
    missing = [name for name, pattern in REQUIRED.items() if not re.search(pattern, code)]
    return missing + [name for name, pattern in forbidden.items() if re.search(pattern, code)]


@pytest.mark.parametrize("problem", SIGNATURES)
def test_static_rules(tmp_path: Path, problem: int) -> None:
    export(tmp_path / "model_new.py", problem)
    text = (tmp_path / "model_new.py").read_text()
    assert static_faults(text, ERRORS | WARNINGS) == []
    assert not re.search(r"\b(pass|except|__file__|__future__)\b", text), "not in comments either"
    assert "fastconv1d" not in "".join(re.findall(r"^(?:import|from).*$", text, re.MULTILINE))
    cuda = re.search(r'^CUDA_SOURCE = r"""$(.*?)^"""$', text, re.MULTILINE | re.DOTALL)
    assert cuda is not None
    assert "torch" not in cuda[1] and "//" not in cuda[1] and '#include "' not in text


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("    try:", "a fallback"),
        ("    pass", "the word pass"),
        ("import threading", "threads"),
        ("torch.cuda.Event.record = print", "a clock replaced"),
        ("class Lazy(torch.Tensor): ...", "a tensor subclass"),
        ("torch.cuda.Stream()", "streams"),
        ("torch.conv1d(x, w)", "functions of torch"),
    ],
)
def test_static_rules_see_faults(line: str, fault: str) -> None:
    text = (EXAMPLES / "model_new_67.py").read_text()
    assert static_faults(f"{text}\n{line}\n", ERRORS | WARNINGS) == [fault]


def test_static_rules_want_a_kernel() -> None:
    assert static_faults("", ERRORS) == list(REQUIRED)


@pytest.mark.parametrize("number", SIGNATURES)
def test_kernelbench_namespace_and_weights(tmp_path: Path, number: int) -> None:
    export(tmp_path / "model_new.py", number)
    original = (EXAMPLES / f"reference_{number}.py").read_text()
    alone = execute(original)
    names = execute(original, (tmp_path / "model_new.py").read_text())
    assert names["get_init_inputs"]() == alone["get_init_inputs"]()
    for name in alone:
        if name not in ("__builtins__", "__doc__", "Model", "get_inputs", "get_init_inputs"):
            assert names[name] == alone[name] or name in ("torch", "nn"), f"{name} was rebound"
    models = []
    for cls in (alone["Model"], names["ModelNew"]):
        torch.manual_seed(42)
        models.append(cls(*alone["get_init_inputs"]()))
    expected, actual = (model.state_dict() for model in models)
    [name] = expected
    assert list(actual) == [name]
    assert torch.equal(actual[name], expected[name])
    models[1].load_state_dict(expected)


@pytest.mark.parametrize("problem", [SMALL, UPSAMPLED])
def test_inputs_are_those_of_the_reference(problem: Problem) -> None:
    shapes = []
    for text in (reference(problem), exported(problem)):
        torch.manual_seed(3)
        names = execute(text)
        [inputs] = names["get_inputs"]()
        shapes.append((names["get_init_inputs"](), inputs.sum().item(), inputs.shape))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("problem", [SMALL, UPSAMPLED])
@pytest.mark.parametrize(
    "arguments",
    [(8, 12, 5), (8, 12, 5, 2, 3, 1, 4, True), (6, 6, 1, 1, 0, 0, 6), (4, 4, 3, 1, 0, 1, 1, True)],
)
def test_weights_are_those_of_torch(arguments: tuple[Any, ...], problem: Problem) -> None:
    names = execute(reference(problem), exported(problem))
    models: list[nn.Module] = []
    for cls in (names["Model"], names["ModelNew"]):
        torch.manual_seed(9)
        models.append(cls(*arguments))
    expected, actual = (model.state_dict() for model in models)
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert [p.requires_grad for p in models[1].parameters()] == [True] * len(expected)


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "model_new.py"
    with pytest.raises(ValueError, match="problem is 65"):
        export(path, 65)
    with pytest.raises(ValueError, match=r"padding is 1.* problem 76"):
        export(path, 76, padding=1)
    with pytest.raises(ValueError, match="multiple of groups=3"):
        export(path, groups=3)
    with pytest.raises(ValueError, match=r"dilation is 2.* problem 64"):
        export(path, 64, dilation=2)
    with pytest.raises(ValueError, match="output_padding is 1, expected less than stride=1"):
        export(path, 64, output_padding=1)
    with pytest.raises(ValueError, match="is a transposed one, problem 67 expected an ordinary"):
        source(Problem(1, 4, 4, 10, 3, transposed=True), 67)
    with pytest.raises(ValueError, match="is an ordinary one, problem 79 expected a transposed"):
        source(SMALL, 79)
    assert not path.exists()
    model = execute(source(SMALL, 67))["ModelNew"]
    with pytest.raises(ValueError, match="in_channels is 9, expected a multiple of groups=2"):
        model(9, 8, 3, groups=2)
    with pytest.raises(RuntimeError, match="input is on cpu"):
        model(4, 8, 3)(torch.zeros(1, 4, 10))


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "model_new.py"
    problem = export(path, in_channels=16, out_channels=48, length=99, batch_size=2, bias=True)
    assert problem == Problem(2, 16, 48, 99, 3, bias=True)
    names = execute(path.read_text())
    assert names["get_init_inputs"]() == [16, 48, 3, 1, 0, 1, 1, True]
    assert names["get_inputs"]()[0].shape == (2, 16, 99)
    assert export(path, 76, dilation=1, stride=1).stride == 1
    assert execute(path.read_text())["get_init_inputs"]() == [64, 128, 3]
    problem = export(path, 64, stride=2, output_padding=1, length=99, batch_size=2)
    assert problem == Problem(
        2, 128, 128, 99, 3, stride=2, output_padding=1, transposed=True, bias=False
    )
    assert execute(path.read_text())["get_init_inputs"]() == [128, 128, 3, 2, 0, 1]


# A deliberately wrong copy each: what to write in place of what.
COMMON_FAULTS: dict[str, tuple[str, str]] = {
    "bias missing": ("bias.has_value() ? bias->const_data_ptr() : nullptr", "nullptr"),
    "zero output": ("*geometry, tf32)\n", "*geometry, tf32).zero_()\n"),
}
FAULTS: dict[str, tuple[Problem, str, str]] = {
    "one tap off": (SMALL, "1, a.kernel_size, -a.padding,", "1, a.kernel_size, 1 - a.padding,"),
    "last position unwritten": (SMALL, ", 0, 1, a.length_out}", ", 0, 1, a.length_out - 1}"),
    "one tap off, transposed": (
        UPSAMPLED, "(r + a.padding - phase.first_tap", "(r + a.stride + a.padding - phase.first_tap"
    ),
    "last phase unwritten": (UPSAMPLED, "smaller(a.stride, a.length_out) : 1", "a.stride - 1 : 1"),
    **{
        f"{name}, {'transposed' if problem.transposed else 'ordinary'}": (problem, *texts)
        for name, texts in COMMON_FAULTS.items()
        for problem in (SMALL, UPSAMPLED)
    },
}  # fmt: skip


def wrong_copy(fault: str) -> tuple[Problem, str]:
    """A problem, and its exported file with one fault in it."""
    problem, right, wrong = FAULTS[fault]
    text = exported(problem)
    assert text.count(right) == 1
    return problem, text.replace(right, wrong)


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_copies_can_be_made(fault: str) -> None:
    execute(wrong_copy(fault)[1])


@pytest.mark.parametrize(
    ("number", "arch"), [(67, "90a"), (79, "80"), *([] if IN_CI else [(76, "80")])]
)
def test_its_kernels_compile(tmp_path: Path, number: int, arch: str) -> None:
    """The kernels of all modes, which nvcc needs no torch for."""
    try:
        toolkit = build.find_compiler(arch).toolkit
    except build.BuildError as error:
        pytest.skip(f"no kernel was compiled: {error}")
    assert toolkit is not None
    [layer] = layers.find([str(number)], layers.load())
    text = source(layer.problem, number, arch)
    found = re.search(r'^CUDA_SOURCE = r"""(.*?)^"""', text, re.DOTALL | re.MULTILINE)
    assert found
    file = tmp_path / "kernels.cu"
    file.write_text(found[1])
    gencode = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    # In CI as far as ptxas, which takes most of the time and has seen these kernels elsewhere.
    kind = "-ptx" if IN_CI else "-fatbin"
    command = [str(toolkit.nvcc), *build.NVCC_FLAGS, gencode, kind, str(file)]
    process = subprocess.run(
        [*command, "-o", str(file.with_suffix(".fatbin"))], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.skipif(
    torch.version.cuda is None or CUDA_HOME is None, reason="needs torch with CUDA, and nvcc"
)
@pytest.mark.parametrize("problem", [SMALL, UPSAMPLED])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_it_compiles_and_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], problem: Problem
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    arch = "80" if capability == (8, 0) else "90a"
    operator = execute(exported(problem, arch))["compiled_operator"](0)
    assert "Tensor? bias" in str(operator._schema)


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., Any]:
    """Runs `verify` on the GPU on an exported file, which may be changed first."""

    def run(text: str, problem: Problem, **options: Any) -> Any:
        (tmp_path / "reference.py").write_text(reference(problem))
        (tmp_path / "model_new.py").write_text(text)
        return verify(
            tmp_path / "reference.py", tmp_path / "model_new.py", device="cuda", **options
        )

    return run


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "problem"),
    [
        ("fp32", LIKE_67),
        ("bf16", LIKE_67),
        ("bf16", SMALL),
        ("fp16", SMALL),
        ("fp32", LIKE_64),
        ("bf16", UPSAMPLED),
        ("fp16", UPSAMPLED),
    ],
)
def test_verify_accepts_it(check: Callable[..., Any], dtype: str, problem: Problem) -> None:
    report = check(exported(problem), problem, dtype=dtype, seconds=0.1)
    assert report.ok, report.reason
    assert report.worst_reference < 1


@pytest.mark.gpu
@pytest.mark.parametrize("problem", [SMALL, UPSAMPLED])
def test_verify_accepts_fp32_accurate_results(
    check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, problem: Problem
) -> None:
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    report = check(exported(problem), problem, seconds=0)
    assert report.ok, report.reason
    assert "of ieee" in report.rule


@pytest.mark.gpu
@pytest.mark.parametrize("fault", FAULTS)
def test_verify_rejects_wrong_copies(check: Callable[..., Any], fault: str) -> None:
    problem, text = wrong_copy(fault)
    report = check(text, problem, seconds=0)
    assert not report.ok
    assert "against fp64" in report.reason


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("problem", "arguments"),
    [
        (SMALL, (24, 40, 5, 2, 3, 2, 2, True)),
        (SMALL, (3, 5, 1)),
        (SMALL, (16, 16, 9, 1, 4, 1, 16, True)),
        (SMALL, (1, 7, 200, 16, 99)),
        (UPSAMPLED, (24, 40, 5, 2, 3, 1, 2, True)),
        (UPSAMPLED, (16, 16, 9, 3, 4, 2, 16, True)),
        (UPSAMPLED, (1, 7, 200, 16, 99)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training(problem: Problem, arguments: tuple[Any, ...], dtype: torch.dtype) -> None:
    names = execute(reference(problem), exported(problem))
    outputs, gradients = [], []
    for cls in (names["Model"], names["ModelNew"]):
        torch.manual_seed(1)
        model = cls(*arguments).to("cuda", dtype)
        x = torch.rand(2, arguments[0], 300, device="cuda", dtype=dtype).transpose(0, 1)
        x = x.contiguous().transpose(0, 1).requires_grad_()
        output = model(x)
        output.backward(
            torch.linspace(-1, 1, output.numel(), device="cuda").view_as(output).to(dtype)
        )
        outputs.append(output)
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    tolerance = 2e-3 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(outputs[1], outputs[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(gradients[1], gradients[0], atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", [LIKE_67, LIKE_64])
def test_in_kernelbenchs_evaluator(problem: Problem) -> None:
    original, submission = reference(problem), exported(problem)
    names = execute(original)
    model_class, get_inputs = names["Model"], names["get_inputs"]
    arguments = names["get_init_inputs"]()
    exec(compile(submission, "<string>", "exec"), names)
    with torch.no_grad():
        models = []
        for cls in (model_class, names["ModelNew"]):
            torch.manual_seed(42)
            models.append(cls(*arguments).to("cuda"))
        for seed in range(3):
            torch.manual_seed(seed)
            inputs = [x.to("cuda") for x in get_inputs()]
            expected, actual = (model(*inputs) for model in models)
            torch.cuda.synchronize()
            assert torch.allclose(expected, actual, atol=1e-4, rtol=1e-4)
