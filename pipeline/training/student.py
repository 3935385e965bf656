"""The student that a run trains, by its settings and its recipe."""

from __future__ import annotations

from dataclasses import replace

import torch

from interkd.pipeline.students.config import StudentConfig
from interkd.pipeline.students.model import Student
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.recipes import (
    RECIPES,
    ObjectiveConfig,
    uses_intermediate_heads,
)


def trained_student(student: StudentConfig, objective: ObjectiveConfig) -> StudentConfig:
    """The student that an objective trains.

    Self-conditioned where the recipe says so; without heads that would learn nothing and only cost
    time and memory.
    """
    if RECIPES[objective.recipe].self_conditioned:
        return replace(student, self_conditioned=True)
    if uses_intermediate_heads(objective) or student.self_conditioned:
        return student
    return replace(student, head_layers=())


def require_student(config: TrainConfig) -> None:
    """Refuses a run whose student cannot be built, without memory for its weights.

    Raises:
        ConfigError: Saying which setting.
    """
    with torch.device("meta"):
        Student(trained_student(config.student, config.objective), vocab_size=2)
