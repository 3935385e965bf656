"""CTC's first plateau: a student that has learnt how frequent each token is, and nothing else.

How long plain CTC stays there is luck, and it may be for a whole run (docs/results.md).
"""

from __future__ import annotations

import torch

from interkd.pipeline.training.data import BatchLoader

MIN_STEPS = 1000  # sooner every student is there
MIN_WER = 90.0
NEAR = 0.95


def plateau_loss(loader: BatchLoader, normalisation: str) -> float:
    """CTC loss of a student that says the tokens' frequencies in every frame, in nats.

    That is the entropy of a token times the tokens, without the little that placing them costs.

    Args:
        loader: Has the training set's targets.
        normalisation: What the loss is of: see `ObjectiveConfig`.

    Returns:
        The loss an utterance, frame or token; 0 without transcripts.
    """
    tokens = torch.cat([*loader.targets, torch.empty(0, dtype=torch.int64)])
    if not len(tokens):
        return 0.0
    shares = tokens.bincount().double() / len(tokens)
    nats = float(torch.special.entr(shares).sum()) * len(tokens)
    return nats * loader.views / loader.size(range(len(loader.targets)), normalisation)


def is_on_plateau(*, step: int, loss: float, plateau: float, dev_wer: float) -> bool:
    """Whether a head is still there.

    Args:
        step: Steps made.
        loss: The head's CTC loss in training of late.
        plateau: `plateau_loss`; 0 says no.
        dev_wer: The head's WER on dev, %.
    """
    late = step >= MIN_STEPS and dev_wer >= MIN_WER
    return late and plateau > 0 and loss >= NEAR * plateau
