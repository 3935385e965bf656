"""The student that a recipe trains, and what is refused before anything begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import build, read_yaml
from interkd.pipeline.students.config import StudentConfig
from interkd.pipeline.students.model import Student
from interkd.pipeline.training.config import DataConfig, TrainConfig
from interkd.pipeline.training.recipes import ObjectiveConfig
from interkd.pipeline.training.student import require_student, trained_student


def settings(recipe: str, student: StudentConfig) -> TrainConfig:
    path = Path("absent")
    return TrainConfig(
        data=DataConfig(train_manifest=path, dev_manifest=path),
        out=path,
        student=student,
        objective=ObjectiveConfig(recipe=recipe),
    )


def test_recipe_decides_about_the_heads() -> None:
    heads = StudentConfig(head_layers=(4, 8))
    fed_back = replace(heads, self_conditioned=True)
    for recipe, student, trained in (
        ("inter-kd", heads, heads),
        ("ctc", heads, replace(heads, head_layers=())),
        ("self-conditioned", heads, fed_back),
        ("ctc", fed_back, fed_back),
    ):
        assert trained_student(student, ObjectiveConfig(recipe=recipe)) == trained


def test_student_that_cannot_be_built_is_refused() -> None:
    widths = StudentConfig(encoder="jasper-mini", head_layers=(4, 28))
    require_student(settings("inter-kd", widths))
    with pytest.raises(ConfigError, match=r"^student.self_conditioned; .* got \[256, 512\]"):
        require_student(settings("self-conditioned", widths))
    deep = StudentConfig(encoder="jasper-mini", head_layers=(40,))
    require_student(settings("ctc", deep))  # has no head there
    with pytest.raises(ConfigError, match=r"^student.head_layers; .* got \[40\]"):
        require_student(settings("inter-ctc", deep))


def test_settings_to_start_from_make_a_student() -> None:
    config = build(TrainConfig, read_yaml(Path(__file__).parents[3] / "examples" / "student.yaml"))
    require_student(config)
    student = Student(trained_student(config.student, config.objective), vocab_size=29)
    assert student.head_names == ("layer4", "layer8", "final")
    assert student.frame_formula.shift_samples == 320  # 20 ms, as `prepare` takes where not told
    assert 8e6 < student.weight_counts[-1] < 9e6
