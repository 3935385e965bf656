"""Student checkpoints: weights in safetensors, everything else in JSON, tokens beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from interkd.kernels.errors import CheckpointError
from interkd.pipeline.config import as_plain, build
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.files import write_json
from interkd.pipeline.students.config import StudentConfig
from interkd.pipeline.students.model import Student

WEIGHTS_FILE = "model.safetensors"
STUDENT_FILE = "student.json"


@dataclass(frozen=True, kw_only=True)
class LoadedStudent:
    """A student ready to run.

    Attributes:
        model: In evaluation mode, on the device asked for.
        config: Its shape.
        tokenizer: The tokenizer it was trained with.
        name: Where it came from, for reports.
        facts: What was written beside the weights: recipe, step, metrics.
    """

    model: Student
    config: StudentConfig
    tokenizer: Tokenizer
    name: str
    facts: dict[str, Any]


def save_student(
    folder: Path,
    model: Student,
    config: StudentConfig,
    tokenizer: Tokenizer,
    facts: dict[str, Any],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a self-contained checkpoint into an existing folder.

    Args:
        folder: Where the files go; publish it by a rename when all is written.
        model: The student.
        config: Its shape.
        tokenizer: Its tokenizer.
        facts: JSON-able facts kept beside the weights.
        dtype: Casts floating weights, e.g. `torch.float16` for a model to ship.
    """
    weights = {
        name: (w.to(dtype) if dtype is not None and w.is_floating_point() else w).contiguous()
        for name, w in unique_weights(model).items()
    }
    save_file(weights, folder / WEIGHTS_FILE)
    tokenizer.save(folder)
    write_json(folder / STUDENT_FILE, {"student": as_plain(config), **facts})


def unique_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model with tied weights named once, as safetensors wants it."""
    seen: set[int] = set()
    weights = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in seen:
            seen.add(id(weight))
            weights[name] = weight.detach()
    return weights


def resolve_checkpoint(path: Path, *, which: str = "best") -> Path:
    """The checkpoint folder that a path means: itself, or the best (or last) one of a run.

    Raises:
        CheckpointError: If there is none.
    """
    if (path / WEIGHTS_FILE).exists():
        return path
    pointer = path / f"{which}.json"
    if pointer.exists():
        try:
            return path / str(json.loads(pointer.read_text(encoding="utf-8"))["checkpoint"])
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{pointer} is damaged", got=str(error)) from error
    raise CheckpointError(
        f"no checkpoint at {path}",
        expected=f"a folder with {WEIGHTS_FILE}, or a training run with {which}.json",
    )


def load_student(path: Path, *, device: torch.device | str = "cpu") -> LoadedStudent:
    """Loads a student from a checkpoint folder or the best checkpoint of a training run.

    Raises:
        CheckpointError: If there is none, or its files are damaged or do not fit each other.
    """
    folder = resolve_checkpoint(Path(path))
    try:
        facts = json.loads((folder / STUDENT_FILE).read_text(encoding="utf-8"))
        config = build(StudentConfig, facts.pop("student"), where="student")
    except (OSError, KeyError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder / STUDENT_FILE} is missing or damaged", got=error
        ) from error
    tokenizer = Tokenizer.load(folder)
    model = Student(config, tokenizer.vocab_size)
    load_weights(model, folder / WEIGHTS_FILE)
    return LoadedStudent(
        model=model.to(device).eval(),
        config=config,
        tokenizer=tokenizer,
        name=str(path),
        facts=facts,
    )


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Loads weights in place, casting them to the model's own dtypes.

    Raises:
        CheckpointError: If the file is missing or damaged, or the names or shapes differ.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}", got=error) from error
    own = unique_weights(model)
    if weights.keys() != own.keys():
        odd = sorted(weights.keys() ^ own.keys())
        raise CheckpointError(f"{path} holds other weights than its student.json says", got=odd[:3])
    for name, weight in own.items():
        if weights[name].shape != weight.shape:
            raise CheckpointError(
                f"{path}: weight {name}",
                expected=tuple(weight.shape),
                got=tuple(weights[name].shape),
            )
        weight.copy_(weights[name])
