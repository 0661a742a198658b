"""torch.compile, where it pays within the length of a run."""

import shutil
from typing import Literal, cast

import torch
from torch import nn

from pipeline.errors import InputError

_PAYING_STEPS = 2000  # on CUDA; compilation takes the time of several hundred steps there


def compile_network(
    model: nn.Module, choice: Literal["auto", "always", "never"], steps: int, device: torch.device
) -> nn.Module:
    """Return the network to call in training: `model`, or a compiled one that shares its weights.

    auto compiles on CUDA, in runs of at least 2,000 steps; on a processor never, since there the
    compilation of minutes won less than it cost (docs/log.md).

    Raises:
        InputError: always was asked for on a processor, and there is no C++ compiler.
    """
    if choice == "never" or (choice == "auto" and (device.type != "cuda" or steps < _PAYING_STEPS)):
        return model
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise InputError(
            "train.compile = always needs a C++ compiler on this machine: apt-get install g++, "
            "or set train.compile = auto"
        )
    return cast("nn.Module", torch.compile(model, dynamic=False))
