"""A smaller student out of a trained one: what runs up to one of its heads."""

from __future__ import annotations

from dataclasses import replace

import torch

from interkd.pipeline.config import one_of
from interkd.pipeline.students.checkpoint import unique_weights
from interkd.pipeline.students.model import Student


def cut_student(student: Student, head: str) -> Student:
    """The student up to a head, which becomes its final one; the heads before it stay.

    Args:
        student: A trained student; left as it is.
        head: One of its `head_names`.

    Returns:
        A student of its own, in evaluation mode, whose logits are those of the other's heads.

    Raises:
        ConfigError: If there is no such head.
    """
    one_of("head", head, student.head_names)
    place = student.head_names.index(head)
    config = replace(
        student.config,
        head_layers=student.head_layers[:place],
        last_layer=student.head_layers[place],
        # Nothing is fed back before the first head.
        self_conditioned=student.config.self_conditioned and place > 0,
    )
    vocab_size = next(student.heads[0].parameters()).shape[0]
    shorter = Student(config, vocab_size).eval()
    weights = student.state_dict()
    with torch.no_grad():
        for name, weight in unique_weights(shorter).items():
            weight.copy_(weights[name])
    return shorter
