"""Run small problems of every kernel library under NVIDIA's compute-sanitizer, on the GPU here.

    PYTHONPATH=. python tests/sanitize.py [--tools memcheck ...] [--libraries dense_tf32 ...]

Each library is compiled with a small program around it, without torch: so every allocation is
cudaMalloc's own, and nothing but our kernels runs. The results are judged as well. The exit status
is 0 where no tool complains and every output is right.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fastconv1d import build, plan
from kernel_runs import EMULATION, FEW, execute, harness, library_runs

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
LIBRARIES = tuple(name for name in plan.kernels("90a") if "binding" not in name)


def compile_harness(library: str, architecture: str, folder: Path) -> Path:
    """The program that runs a library's kernels."""
    toolkit = build.find_compiler(architecture).toolkit
    assert toolkit is not None
    source, program = folder / f"{library}.cu", folder / library
    source.write_text(harness(library))
    gencode = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [str(toolkit.nvcc), *build.NVCC_FLAGS, gencode, f"-I{build.CSRC}", f"-I{EMULATION}"]
    subprocess.run([*command, source, "-o", program], check=True)
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    arguments = parser.parse_args()
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    architecture = build.arch_of(torch.cuda.get_device_capability())

    clean = True
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(8) as pool:
        folder = Path(name)
        programs = {
            library: pool.submit(compile_harness, library, architecture, folder)
            for library in arguments.libraries
            if library in plan.kernels(architecture)
        }
        for library, compiled in programs.items():
            program = compiled.result()
            for tool in arguments.tools:
                # racecheck follows no order through two barriers, as that of reading a stage, of
                # copying to it again and of clearing a part of it: where a stage was not cleared
                # before, it reports a race. ThreadSanitizer follows it, see test_sanitized.
                runs = library_runs(library, FEW, clears=tool != "racecheck")
                command = [sanitizer, "--tool", tool, "--error-exitcode", "86", program]
                outcome = execute(command, runs, folder / f"{library}_{tool}")
                good = outcome.returncode == 0 and not outcome.complaints
                print(f"{library:12} {tool:10} {len(runs):3} runs  {'clean' if good else 'WRONG'}")
                if not good:
                    clean = False
                    print(outcome.log[:4000], *outcome.complaints[:5], sep="\n")
    return 0 if clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
