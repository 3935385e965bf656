"""`python:MODULE:FACTORY`: the user's own teacher, of any framework."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from interkd.kernels.errors import TeacherError
from interkd.pipeline.teachers.protocol import Teacher, TeacherInfo


def make_python_teacher(target: str, *, device: torch.device, precision: torch.dtype) -> Teacher:
    """Calls `FACTORY(device=..., precision=...)` of a module found from the working folder.

    Args:
        target: `MODULE:FACTORY`.
        device: Where the caller's tensors will be.
        precision: What the caller asked for; the factory may do as it likes.

    Raises:
        TeacherError: If it cannot be imported or is not a `Teacher`.
    """
    module_name, _, factory_name = target.partition(":")
    if not module_name or not factory_name:
        raise TeacherError(f"teacher python:{target}", expected="python:MODULE:FACTORY")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise TeacherError(f"cannot import teacher python:{target}", got=error) from error
    teacher = factory(device=device, precision=precision)
    if not isinstance(teacher, Teacher) or not isinstance(teacher.info, TeacherInfo):
        raise TeacherError(
            f"python:{target} returned a {type(teacher).__name__}",
            expected="an object with .info (TeacherInfo) and .log_probs (see docs/teachers.md)",
        )
    return teacher
