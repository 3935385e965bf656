"""Random problems of a shape: logits, transcripts and a peaky sparse teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interkd.kernels.sparse import SparsePosteriors

MOST_KEPT = 16
# Largest difference from torch in float64; bfloat16 and float16 round what they return.
GRADIENT_TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}


@dataclass(frozen=True)
class Shape:
    """Heads, utterances, frames, tokens with the blank, target tokens."""

    heads: int
    batch: int
    frames: int
    vocab_size: int
    targets: int

    def __str__(self) -> str:
        return f"H{self.heads} B{self.batch} T{self.frames} V{self.vocab_size} U{self.targets}"


@dataclass(frozen=True)
class Example:
    """A problem, and the teacher once more in the form that plain torch code gathers with.

    Attributes:
        shape: Its sizes.
        targets: int64 `(B, U)`.
        frame_lengths: int64 `(B,)`.
        target_lengths: int64 `(B,)`.
        teacher: 1 to 16 entries a frame.
        owner: Frame of each entry, int64 `(E,)`.
        tokens: int64 `(E,)`.
        probs: float `(E,)`.
        tail: Mass not kept, float `(N,)`.
        negative_entropy: Of kept tokens and tail, summed.
    """

    shape: Shape
    targets: Tensor
    frame_lengths: Tensor
    target_lengths: Tensor
    teacher: SparsePosteriors
    owner: Tensor
    tokens: Tensor
    probs: Tensor
    tail: Tensor
    negative_entropy: Tensor

    def logits(self, dtype: torch.dtype) -> list[Tensor]:
        """New random logits `(B, T, V)` a head."""
        s = self.shape
        return [
            torch.randn(
                s.batch, s.frames, s.vocab_size, device=self.targets.device, dtype=dtype
            ).requires_grad_()
            for _ in range(s.heads)
        ]

    def to_float64(self) -> Example:
        """The teacher in float64, for an exact gradient."""
        return replace(
            self,
            probs=self.probs.double(),
            tail=self.tail.double(),
            negative_entropy=self.negative_entropy.double(),
        )

    def move_bytes(self, heads: list[Tensor]) -> None:
        """Reads every logit twice and writes as much once, and nothing else."""
        for head in heads:
            data = head.detach()
            data.view(-1).amax()
            data.clone()


def make_example(shape: Shape, device: torch.device) -> Example:
    """A problem whose utterances are all of full length."""
    frames, most = shape.batch * shape.frames, min(MOST_KEPT, shape.vocab_size)
    log_probs = torch.empty(frames, most, device=device)
    tokens = torch.empty(frames, most, dtype=torch.int64, device=device)
    for start in range(0, frames, 4096):
        rows = slice(start, min(start + 4096, frames))
        posteriors = 4 * torch.randn(rows.stop - start, shape.vocab_size, device=device)
        log_probs[rows], tokens[rows] = posteriors.log_softmax(-1).topk(most, 1)
    counts = torch.randint(1, most + 1, (frames,), device=device)
    kept = torch.arange(most, device=device) < counts[:, None]
    teacher = SparsePosteriors(
        frame_offsets=torch.arange(shape.batch + 1, device=device) * shape.frames,
        entry_offsets=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        tokens=tokens[kept].int(),
        log_probs=log_probs[kept],
        vocab_size=shape.vocab_size,
    )
    owner = torch.repeat_interleave(counts)
    exact = teacher.log_probs.double()
    mass = torch.zeros(frames, dtype=torch.float64, device=device).index_add(0, owner, exact.exp())
    tail = (1 - mass).clamp(min=1e-12)
    return Example(
        shape=shape,
        targets=torch.randint(1, shape.vocab_size, (shape.batch, shape.targets), device=device),
        frame_lengths=torch.full((shape.batch,), shape.frames, device=device),
        target_lengths=torch.full((shape.batch,), shape.targets, device=device),
        teacher=teacher,
        owner=owner,
        tokens=teacher.tokens.long(),
        probs=exact.exp().float(),
        tail=tail.float(),
        negative_entropy=((exact.exp() * exact).sum() + (tail * tail.log()).sum()).float(),
    )
