"""What plans take on the CPU: functions of a Problem, in µs."""

from __future__ import annotations

import torch

from fastconv1d.problem import Problem


def simd(problem: Problem) -> float:
    """Our kernels'."""
    return problem.flops / 50e3 / torch.get_num_threads()


def aten(problem: Problem) -> float:
    """torch's own convolution's."""
    return problem.flops / 25e3 / torch.get_num_threads()


def grad_simd(problem: Problem) -> float:
    """Our kernels', for the gradient of the weight."""
    return problem.flops / 50e3 / torch.get_num_threads()


def grad_aten(problem: Problem) -> float:
    """torch's, for the gradient of the weight."""
    return problem.flops / 25e3 / torch.get_num_threads()
