"""A teacher of 1,000 BPE tokens on 40 ms frames: a small CTC head on a frozen TorchScript encoder.

    interkd prepare SPEECH/train.jsonl --out bpe/train --train bpe --vocab-size 1000 \
        --frame-shift-ms 40
    interkd prepare SPEECH/dev.jsonl --out bpe/dev --tokens bpe/train --frame-shift-ms 40
    python benchmarks/cache/bpe_teacher.py train bpe/train bpe/dev --encoder ENCODER.pt \
        --vectors vectors --out bpe-teacher --minutes 15
    cd benchmarks/cache
    INTERKD_BPE_TEACHER=../../bpe-teacher interkd cache-teacher ../../bpe/train/manifest.jsonl \
        --teacher python:bpe_teacher:make ...

ENCODER.pt is TorchScript with `log_mel(waveforms, lengths)` and `encode_mel(mel, frame_lengths)`,
one vector of 512 each 20 ms. Its vectors of a manifest are made once and kept in the folder
`vectors` as `NAME-h.npy` (float16) and `NAME-n.npy` (frames of each utterance), NAME being the
name of the manifest's folder. Two of them make one 40 ms frame; the odd last one is followed by
zeros. The learning rate falls as a cosine of the clock, so a rerun gives a similar head, not the
same one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from encoder_vectors import ENCODER_SHIFT, ENCODER_WIDTH, Encoder, Vectors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from interkd.kernels.ctc import ctc_loss
from interkd.kernels.errors import TeacherError
from interkd.pipeline.corpus.batches import length_sorted_batches
from interkd.pipeline.corpus.manifest import Manifest, read_manifest
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.scoring.decode import greedy_decode
from interkd.pipeline.scoring.error_rates import Unit, count_errors
from interkd.pipeline.teachers.protocol import TeacherInfo
from interkd.pipeline.teachers.weights import hash_weights

FORMULA = FrameFormula(((1, ENCODER_SHIFT, 0), (1, 2, 0)))
BATCH_FRAMES = 2500  # of 40 ms: 100 s of audio a step
WARMUP = 0.05  # share of the clock


class Block(nn.Module):
    """Adds a depthwise convolution over time, then two linear layers of the channels."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        # Padding is zeroed before every convolution: an utterance's batch does not matter.
        mixed = self.mix((hidden * valid).transpose(1, 2)).transpose(1, 2)
        change: Tensor = self.down(self.dropout(F.gelu(self.up(self.norm(mixed)))))
        return hidden + change


class Head(nn.Module):
    """Vectors `(B, T, 512)`, zeros past their lengths, to logits `(B, ceil(T / 2), V)`."""

    def __init__(
        self, vocab_size: int, width: int = 320, kernel: int = 11, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * ENCODER_WIDTH)
        self.input_dropout = nn.Dropout(dropout)
        self.project = nn.Linear(2 * ENCODER_WIDTH, width)
        self.blocks = nn.ModuleList([Block(width, kernel, dropout) for _ in range(2)])
        self.output_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocab_size)
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()
            self.output.bias[0] = math.log(4 * vocab_size)  # the blank begins at 0.8

    def forward(self, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        batch, frames, width = vectors.shape
        pairs = F.pad(vectors, (0, 0, 0, frames % 2)).reshape(batch, -1, 2 * width)
        frame_lengths = (lengths + 1) // 2
        places = torch.arange(pairs.shape[1], device=pairs.device)
        valid = (places < frame_lengths[:, None])[..., None].to(pairs.dtype)
        hidden = F.gelu(self.project(self.input_dropout(self.norm(pairs))))
        for block in self.blocks:
            hidden = block(hidden, valid)
        return self.output(self.output_norm(hidden)), frame_lengths


class BpeTeacher:
    """The encoder and the head, as `interkd cache-teacher` takes them."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        if not (folder / "head.json").is_file():
            raise TeacherError(
                f"no BPE teacher in '{folder}'",
                remedy="set INTERKD_BPE_TEACHER to the folder that bpe_teacher.py train wrote",
            )
        facts = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        tokens = Tokenizer.load(folder).tokens
        self.encoder = Encoder(Path(facts["encoder"]), device)
        self.head = Head(len(tokens)).to(device).eval()
        self.head.load_state_dict(load_file(folder / "head.safetensors", device=str(device)))
        model = self.encoder.model
        weights = [*model.named_parameters(), *model.named_buffers()]
        weights += [(f"head.{name}", value) for name, value in self.head.state_dict().items()]
        self.info = TeacherInfo(
            name=f"bpe_teacher:{folder.name}",
            weights_sha256=hash_weights(weights),
            tokens=tokens,
            blank_index=0,
            sample_rate=16000,
            frame_formula=FORMULA,
        )

    @torch.inference_mode()
    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        logits, frame_lengths = self.head(*self.encoder.vectors(waveforms, sample_lengths))
        return logits.log_softmax(-1), frame_lengths


def make(device: torch.device, precision: torch.dtype) -> BpeTeacher:
    """The teacher of the folder that `INTERKD_BPE_TEACHER` names; always in float32."""
    return BpeTeacher(Path(os.environ.get("INTERKD_BPE_TEACHER", "bpe-teacher")), device)


def train(args: argparse.Namespace) -> None:
    """Trains the head on kept vectors for a time; writes it and the dev set's error rates."""
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.load(args.train)
    manifest, dev = (read_manifest(folder / "manifest.jsonl") for folder in (args.train, args.dev))
    vectors = Vectors(manifest, args.vectors, args.encoder)
    targets = [torch.tensor(tokenizer.encode(u.text)) for u in manifest.utterances]
    seconds = BATCH_FRAMES * FORMULA.shift_samples / manifest.sample_rate
    batches = length_sorted_batches(manifest.utterances, seconds)
    head = Head(tokenizer.vocab_size)
    optimiser = torch.optim.AdamW(head.parameters(), lr=args.rate, betas=(0.9, 0.98))
    begin, epoch, step, clock = time.monotonic(), 0, 0, 0.0
    while clock < 1:
        losses = []
        for number in torch.randperm(len(batches)).tolist():
            clock = (time.monotonic() - begin) / (60 * args.minutes)
            if clock >= 1:
                break
            factor = min(clock / WARMUP, 0.5 + 0.5 * math.cos(math.pi * clock))
            optimiser.param_groups[0]["lr"] = args.rate * max(factor, 1e-3)
            rows = batches[number]
            logits, frame_lengths = head(*vectors.batch(rows))
            lengths = torch.tensor([len(targets[row]) for row in rows])
            padded = nn.utils.rnn.pad_sequence([targets[row] for row in rows], batch_first=True)
            loss = ctc_loss(logits, padded, frame_lengths, lengths).sum() / lengths.sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
            step += 1
            if step % 50 == 0:
                print(f"step {step} clock {clock:.3f} loss {np.mean(losses[-50:]):.3f}", flush=True)
        epoch += 1
        rates = evaluate(head, dev, Vectors(dev, args.vectors, args.encoder), tokenizer)
        print(f"epoch {epoch} {rates}", flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        save_file(head.state_dict(), args.out / "head.safetensors")
        facts = {"encoder": str(args.encoder.resolve()), "steps": step, **rates}
        (args.out / "head.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
        tokenizer.save(args.out)


@torch.inference_mode()
def evaluate(
    head: Head, manifest: Manifest, vectors: Vectors, tokenizer: Tokenizer
) -> dict[str, float]:
    """Percent of words and characters wrong, decoded greedily."""
    head.eval()
    texts = [""] * len(manifest)
    for rows in length_sorted_batches(manifest.utterances, 100.0):
        for row, ids in zip(
            rows, greedy_decode(*head(*vectors.batch(rows)), blank_index=0), strict=True
        ):
            texts[row] = tokenizer.decode(ids)
    head.train()
    spoken = [u.text for u in manifest.utterances]
    units: dict[str, Unit] = {"dev_wer": "word", "dev_cer": "character"}
    return {name: count_errors(spoken, texts, unit=unit).rate for name, unit in units.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    command = parser.add_subparsers(required=True).add_parser("train", help="train the head")
    command.add_argument("train", type=Path, help="folder of the prepared training set")
    command.add_argument("dev", type=Path, help="folder of the prepared development set")
    command.add_argument("--encoder", type=Path, required=True, help="TorchScript file")
    command.add_argument("--vectors", type=Path, required=True, help="folder of kept vectors")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--minutes", type=float, default=15.0)
    command.add_argument("--rate", type=float, default=2e-3)
    command.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args)


if __name__ == "__main__":
    main()
