"""Sparse divergence and its gradient with torch, reading the teacher's CSR, on any device.

Only the compared frames are gathered, `(M, V)`. Classes are few: they stand padded as `(M, K)`
in float64, K the most entries of a frame, which keeps every reduction in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interkd.kernels.sparse import SparsePosteriors


def divergence_and_gradient(
    logits: Tensor,
    teacher: SparsePosteriors,
    frame_lengths: Tensor,
    selected: Tensor,
    divergence: str,
    tail: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Loss float64 `(B,)` and its gradient on the logits, float32 or better `(B, T, V)`."""
    batch, frames, vocab_size = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    entries = _gather(teacher, frame_lengths, selected, frames)
    rows = logits.reshape(-1, vocab_size)[entries.rows].to(dtype)
    frame_losses = {"bucket": _bucket, "uniform": _uniform, "renormalise": _renormalise}[tail]
    row_loss, row_gradient = frame_losses(rows, entries, divergence, temperature)

    frame_loss = row_loss.new_zeros(batch * frames)
    frame_loss[entries.rows] = row_loss
    gradient = row_gradient.new_zeros(batch * frames, vocab_size)
    gradient[entries.rows] = row_gradient
    return frame_loss.reshape(batch, frames).sum(1), gradient.reshape(logits.shape)


@dataclass(frozen=True, kw_only=True)
class _Entries:
    """The compared frames and their entries.

    Attributes:
        rows: Row of each frame in `(B * T, V)`, int64 `(M,)`.
        owner: Frame of each entry, int64 `(E,)`.
        slot: Place of each entry within its frame, int64 `(E,)`.
        token: Token of each entry, int64 `(E,)`.
        log_probs: Teacher, float64 `(M, K)`, -inf where a frame has fewer entries.
        rest: Tokens not kept, int64 `(M,)`.
        tail_mass: 1 less the kept mass, at least 0, float64 `(M,)`.
    """

    rows: Tensor
    owner: Tensor
    slot: Tensor
    token: Tensor
    log_probs: Tensor
    rest: Tensor
    tail_mass: Tensor

    def padded(self, values: Tensor) -> Tensor:
        """Values of the entries `(E,)` as float64 `(M, K)`, -inf where there is none."""
        padded = torch.full_like(self.log_probs, -torch.inf)
        padded[self.owner, self.slot] = values.double()
        return padded


def _gather(
    teacher: SparsePosteriors, frame_lengths: Tensor, selected: Tensor, frames: int
) -> _Entries:
    device = teacher.tokens.device
    starts = teacher.frame_offsets[:-1]
    utterance = torch.repeat_interleave(teacher.frame_lengths)
    frame = torch.arange(len(selected), device=device)
    time = frame - starts[utterance]
    compared = ((time < frame_lengths[utterance]) & selected).nonzero().squeeze(1)
    counts = teacher.entry_offsets.diff()[compared]
    owner = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(owner), device=device) - first[owner]
    entry = teacher.entry_offsets[compared][owner] + slot
    width = max(1, int(counts.max())) if len(counts) else 1
    log_probs = torch.full((len(compared), width), -torch.inf, dtype=torch.float64, device=device)
    log_probs[owner, slot] = teacher.log_probs[entry].double()
    return _Entries(
        rows=utterance[compared] * frames + time[compared],
        owner=owner,
        slot=slot,
        token=teacher.tokens[entry].long(),
        log_probs=log_probs,
        rest=teacher.vocab_size - counts,
        tail_mass=(1 - log_probs.exp().sum(1)).clamp(min=0),
    )


def _bucket(
    rows: Tensor, entries: _Entries, divergence: str, temperature: float
) -> tuple[Tensor, Tensor]:
    kept_logits = entries.padded(rows[entries.owner, entries.token])
    others = rows  # gathered for this call, so the kept tokens can be struck out in place
    others[entries.owner, entries.token] = -torch.inf
    peak = others.amax(1, keepdim=True)
    others = torch.where(peak == -torch.inf, 0.0, others.sub_(peak).exp_())
    total = others.sum(1, keepdim=True)
    tail_logit = peak.double() + total.double().log()
    log_tail = torch.where(entries.rest > 0, entries.tail_mass.log(), -torch.inf)
    teacher = torch.cat([entries.log_probs, log_tail[:, None]], 1)
    student = torch.cat([kept_logits, tail_logit], 1)
    loss, slope = _classes(teacher, student, divergence, temperature)
    tail_slope = torch.where(total > 0, slope[:, -1:].to(rows.dtype) / total, 0.0)
    gradient = others.mul_(tail_slope)
    gradient[entries.owner, entries.token] = slope[entries.owner, entries.slot].to(rows.dtype)
    return loss, gradient


def _renormalise(
    rows: Tensor, entries: _Entries, divergence: str, temperature: float
) -> tuple[Tensor, Tensor]:
    student = entries.padded(rows[entries.owner, entries.token])
    loss, slope = _classes(entries.log_probs, student, divergence, temperature)
    gradient = torch.zeros_like(rows)
    gradient[entries.owner, entries.token] = slope[entries.owner, entries.slot].to(rows.dtype)
    return loss, gradient


def _classes(
    teacher: Tensor, student: Tensor, divergence: str, temperature: float
) -> tuple[Tensor, Tensor]:
    """Loss `(M,)` and its gradient on the class logits `(M, C)`; -inf where there is no class."""
    log_p = (teacher / temperature).log_softmax(1)
    log_q = (student / temperature).log_softmax(1)
    p, q = log_p.exp(), log_q.exp()
    if divergence == "kl":
        loss = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1)
        slope = (q - p) / temperature
    else:
        error = q - p
        loss = error.square().sum(1)
        slope = 2 * q * (error - (q * error).sum(1, keepdim=True)) / temperature
    massless = teacher.amax(1) == -torch.inf
    return loss.masked_fill(massless, 0), slope.masked_fill(massless[:, None], 0)


def _uniform(
    rows: Tensor, entries: _Entries, divergence: str, temperature: float
) -> tuple[Tensor, Tensor]:
    log_each = (entries.tail_mass / entries.rest.clamp(min=1)).log() / temperature
    log_each = torch.where(entries.rest > 0, log_each, -torch.inf)[:, None]
    rest = entries.rest[:, None]
    kept_scores = entries.log_probs / temperature
    normaliser = torch.cat([kept_scores, log_each + rest.log()], 1).logsumexp(1, keepdim=True)
    massless = normaliser == -torch.inf
    normaliser = normaliser.masked_fill(massless, 0)
    log_p, log_each = kept_scores - normaliser, log_each - normaliser
    p, each = log_p.exp(), log_each.exp()
    kept = (entries.owner, entries.token)
    p_kept = p[entries.owner, entries.slot].to(rows.dtype)

    log_q = rows.div_(temperature).log_softmax(1)
    q = log_q.exp()
    error = q - each.to(rows.dtype)
    error[kept] = q[kept] - p_kept
    if divergence == "kl":
        log_q_kept = entries.padded(log_q[kept])
        log_q[kept] = 0
        tail_log_q = log_q.sum(1, dtype=torch.float64)[:, None]
        loss = torch.where(p > 0, p * (log_p - log_q_kept), 0.0).sum(1)
        loss = loss + torch.where(each > 0, each * (rest * log_each - tail_log_q), 0.0)[:, 0]
        gradient = error.div_(temperature)
    else:
        loss = error.square().sum(1, dtype=torch.float64)
        slope = (q * error).sum(1, keepdim=True)
        gradient = error.sub_(slope).mul_(q).mul_(2 / temperature)
    return loss.masked_fill(massless[:, 0], 0), gradient.masked_fill_(massless, 0)
