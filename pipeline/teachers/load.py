"""A teacher from its SPEC on the command line."""

from __future__ import annotations

from pathlib import Path

import torch

from interkd.kernels.errors import ConfigError, TeacherError
from interkd.pipeline.config import nearest
from interkd.pipeline.teachers.interkd import InterkdTeacher
from interkd.pipeline.teachers.protocol import Teacher
from interkd.pipeline.teachers.python_factory import make_python_teacher
from interkd.pipeline.teachers.torchaudio_bundle import TorchaudioTeacher
from interkd.pipeline.teachers.torchscript import TorchScriptTeacher

KINDS = ("interkd", "torchscript", "torchaudio", "python")
IN_FILES = {"interkd": "a checkpoint", "torchscript": "a TorchScript file"}


def load_teacher(
    spec: str, *, device: torch.device, precision: torch.dtype, weights: Path | None = None
) -> Teacher:
    """The teacher that a SPEC names.

    Args:
        spec: `interkd:CHECKPOINT`, `torchscript:FILE`, `torchaudio:BUNDLE_NAME` or
            `python:MODULE:FACTORY`.
        device: Where it runs.
        precision: `torch.float32`, or `torch.bfloat16` for autocast.
        weights: Local weights of a torchaudio bundle.

    Raises:
        TeacherError: If there is no such kind or it cannot be loaded.
    """
    kind, _, target = spec.partition(":")
    if kind not in KINDS or not target:
        raise TeacherError(
            f"unknown teacher '{spec}'",
            expected=" | ".join(f"{kind}:..." for kind in KINDS),
            remedy=nearest(kind, KINDS),
        )
    if weights is not None and kind != "torchaudio":
        raise ConfigError("--teacher-weights is for torchaudio bundles", got=spec)
    if kind == "interkd":
        return InterkdTeacher(target, device=device, precision=precision)
    if kind == "torchscript":
        return TorchScriptTeacher(target, device=device, precision=precision)
    if kind == "torchaudio":
        return TorchaudioTeacher(target, device=device, precision=precision, weights=weights)
    return make_python_teacher(target, device=device, precision=precision)
