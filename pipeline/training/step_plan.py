"""What each optimiser step of an epoch is made of, the same in every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from interkd.kernels.errors import ConfigError
from interkd.pipeline.training.config import DataConfig
from interkd.pipeline.training.data import BatchLoader
from interkd.pipeline.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One optimiser step.

    Attributes:
        batches: Utterances of each batch that this process takes.
        places: Each batch's place among all of the step's: what its randomness depends on.
        denominator: What the losses of ALL the step's batches are divided by, at least 1.
    """

    batches: tuple[Sequence[int], ...]
    places: tuple[int, ...]
    denominator: int


def plan_steps(
    batches: Sequence[Sequence[int]],
    loader: BatchLoader,
    ranks: Ranks,
    *,
    batches_a_step: int,
    normalisation: str,
) -> list[StepPlan]:
    """The steps of an epoch.

    Every process knows all batches of a step, so what its loss is divided by needs no talk.

    Args:
        batches: Of the epoch; their number divides by `batches_a_step`.
        loader: Counts frames and tokens.
        ranks: Which batches are this process's.
        batches_a_step: Over all processes.
        normalisation: See `ObjectiveConfig`.
    """
    steps = []
    for first in range(0, len(batches), batches_a_step):
        step = batches[first : first + batches_a_step]
        places = tuple(range(ranks.rank, batches_a_step, ranks.world_size))
        steps.append(
            StepPlan(
                batches=tuple(step[place] for place in places),
                places=places,
                denominator=max(1, sum(loader.size(batch, normalisation) for batch in step)),
            )
        )
    return steps


def with_batches_a_step(data: DataConfig, ranks: Ranks) -> DataConfig:
    """The settings with a number where they left it to the number of processes.

    Raises:
        ConfigError: If the processes cannot share a step's batches evenly.
    """
    batches = data.batches_a_step or ranks.world_size
    if batches % ranks.world_size:
        raise ConfigError(
            "data.batches_a_step",
            expected=f"a multiple of the {ranks.world_size} processes",
            got=batches,
        )
    return replace(data, batches_a_step=batches)
