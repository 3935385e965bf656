"""The size of a teacher cache against what it loses: a table of ways to keep posteriors.

    python benchmarks/cache/bench_cache_size.py --teacher torchscript:ENCODER.pt \
        --manifest chars/train/manifest.jsonl --posteriors posteriors/chars --json chars.json
    cd benchmarks/cache
    INTERKD_BPE_TEACHER=../../bpe-teacher python bench_cache_size.py \
        --teacher python:bpe_teacher:make --manifest ../../bpe/train/manifest.jsonl --every 4 \
        --posteriors ../../posteriors/bpe --json ../../bpe.json

The posteriors folder keeps `log_probs.npy`, float32 `(N, V)`, and `frame_lengths.npy`; where they
stand, no teacher is run. `--every K` takes every K-th utterance.

Columns: bytes a frame and per 20 ms; entries a frame, the blank among them; KL of the teacher
from the store with the tokens not kept as one bucket (mean and 99th percentile, nats a frame) and
with its mass spread evenly; frames whose best token is the teacher's; WER of the store decoded
greedily; squared distance a frame; mean over utterances of the degrees between the gradients on a
student's logits from store and teacher, for KL (bucket) and for L2 (even tail). Bytes are those of
the payload columns, compressed part by part (an hour of audio each); a line below gives a whole
store on disk, written by `StoreWriter`. A rest of 0 counts as 1e-7 in the divergences.

Predicted before the first run with BPE tokens (1,000, frames of 40 ms; the characters' dev set was
known: 1.00 bytes a frame at the default), in bytes a frame: half of the frames are sure blanks and
cost 0.1; the others a code (0.8), and about 0.8 entries of a token (1.2) and a fraction (0.6).
mass 0.9, 0.95, 0.98, 0.99, 0.995, 0.999 at angle5: 1.1, 1.3, 1.5, 1.6, 1.9, 2.6; a bit more of
quantiser: + 0.15 to 0.3. Version 1 (the blank as an entry, a count, weaker compression), 0.99 and
0.999: 3.3 and 5.0; less 0.15 a bit. Dense float16 (1,000 noisy values of 1.7): 1,700; top 8: 25;
bit-packed: 18; 12 draws (as mass 0.9, but the blank an entry and counts of noise): 1.8.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from context_entropy import context_estimates
from store_on_disk import store_on_disk
from store_quality import DenseFrames, angles, student_logits
from store_rows import COMPRESSORS, DEFAULT, all_rows

from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.plan import PartPlan, plan_parts
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.batches import length_sorted_batches
from interkd.pipeline.corpus.manifest import Utterance, read_manifest
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.scoring.error_rates import count_errors
from interkd.pipeline.teachers.load import load_teacher

Array = npt.NDArray[Any]
ELEMENTS_AT_ONCE = 1 << 22
NUMBERS = (
    "{:8.3f} {:7.3f} {:8.2f}  {:9.2e} {:10.2e} {:8.1e} {:7.3f} {:8.2f} {:8.1e} {:7.2f} {:7.2f}"
)
MEASURES = ("kl_bucket", "kl_uniform", "squared")


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """A part to measure: the posteriors' folder, its first frame, its utterances' frames."""

    folder: Path
    first_frame: int
    lengths: Array
    seed: int


def run_teacher(spec: str, utterances: Sequence[Utterance], folder: Path) -> None:
    """Keeps the teacher's log-probabilities, utterance after utterance."""
    teacher = load_teacher(spec, device=torch.device("cpu"), precision=torch.float32)
    count = teacher.info.frame_formula.count
    lengths = np.array([count(u.samples) for u in utterances])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "log_probs.part"
    shape = (int(starts[-1]), len(teacher.info.tokens))
    kept = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    audio = AudioCache(0)
    with torch.inference_mode():
        for rows in length_sorted_batches(utterances, 160.0):
            batch = audio.read_batch([utterances[row] for row in rows])
            for row, log_probs in zip(rows, teacher.log_probs(*batch)[0], strict=True):
                kept[starts[row] : starts[row + 1]] = log_probs[: lengths[row]].numpy()
    kept.flush()
    np.save(folder / "frame_lengths.npy", lengths)
    part.rename(folder / "log_probs.npy")


def measure_part(job: PartJob) -> dict[str, Any]:
    """Every row of one part: sizes, qualities and best tokens, and the default's columns."""
    torch.set_num_threads(1)
    frames = int(job.lengths.sum())
    whole = np.load(job.folder / "log_probs.npy", mmap_mode="r")
    utterances = np.repeat(np.arange(len(job.lengths)), job.lengths)
    rows = list(all_rows())
    columns: dict[str, list[dict[str, Array]]] = {row.name: [] for row in rows}
    qualities: dict[str, list[dict[str, Array]]] = {row.name: [] for row in rows}
    dense_norms, teacher_best = [], []
    step = max(1, ELEMENTS_AT_ONCE // whole.shape[1])
    for block, start in enumerate(range(0, frames, step)):
        stop = min(start + step, frames)
        values = np.array(whole[job.first_frame + start : job.first_frame + stop])
        log_probs = torch.from_numpy(values)
        dense = DenseFrames(log_probs, student_logits(log_probs, 1000 * job.seed + block))
        dense_norms.append((dense.kl_norm, dense.l2_norm))
        teacher_best.append(values.argmax(1))
        for row in rows:
            encoded = row.encode(log_probs)
            columns[row.name].append(encoded.columns)
            quality = vars(dense.compare(encoded))
            entries = np.diff(encoded.offsets)
            qualities[row.name].append({**quality, "best": encoded.best, "entries": entries})
    kl_norm, l2_norm = (np.concatenate(c) for c in zip(*dense_norms, strict=True))
    result: dict[str, Any] = {"teacher_best": np.concatenate(teacher_best), "rows": {}}
    for row in rows:
        joined = _join(columns[row.name])
        q = _join(qualities[row.name])
        compress = COMPRESSORS[row.compressor]
        result["rows"][row.name] = {
            "bytes": sum(compress(column) for column in joined.values()),
            "entries": q["entries"].sum(),
            "kl_angle": angles(q["kl_dot"], q["kl_norm"], kl_norm, utterances),
            "l2_angle": angles(q["l2_dot"], q["l2_norm"], l2_norm, utterances),
            "best": q["best"],
            **{name: q[name].astype(np.float32) for name in MEASURES},
        }
        if row.name == DEFAULT:
            result["columns"] = joined
            result["compressors"] = {
                name: {column: size(values) for column, values in joined.items()}
                for name, size in COMPRESSORS.items()
            }
            result["contexts"] = context_estimates(
                joined,
                np.cumsum(job.lengths) - job.lengths,
                levels=get_quantiser("angle5").levels,
                vocab_size=whole.shape[1],
            )
    return result


def _join(pieces: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def word_error_rate(
    best: Array, lengths: Array, utterances: Sequence[Utterance], tokenizer: Tokenizer
) -> float:
    """Percent; the best path of every utterance."""
    starts = np.cumsum(lengths) - lengths
    is_new = np.ones(len(best), dtype=bool)
    is_new[1:] = best[1:] != best[:-1]
    is_new[starts] = True
    kept = is_new & (best != tokenizer.blank_index)
    before = np.concatenate([[0], np.cumsum(kept)])
    ids = best[kept].tolist()
    texts = [
        tokenizer.decode(ids[before[start] : before[start + length]])
        for start, length in zip(starts, lengths, strict=True)
    ]
    return count_errors([u.text for u in utterances], texts).rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", help="SPEC, as interkd cache-teacher takes it")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="take every K-th utterance")
    parser.add_argument("--posteriors", type=Path, required=True, help="folder to keep or reuse")
    parser.add_argument("--jobs", type=int, default=1, help="processes, a part each")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    utterances = read_manifest(args.manifest).utterances[:: args.every]
    tokenizer = Tokenizer.load(args.manifest.parent)
    if not (args.posteriors / "log_probs.npy").exists():
        if args.teacher is None:
            parser.error(f"no log_probs.npy in {args.posteriors}, and no --teacher to make it")
        run_teacher(args.teacher, utterances, args.posteriors)
    lengths = np.load(args.posteriors / "frame_lengths.npy").astype(np.int64)
    if len(lengths) != len(utterances):
        parser.error(f"{len(lengths)} utterances in {args.posteriors}, {len(utterances)} expected")
    frames = int(lengths.sum())
    seconds = [u.duration for u in utterances]
    frame_ms = 10 * round(100 * sum(seconds) / frames)

    ids, hashes = zip(*((u.utt_id, u.audio_identity) for u in utterances), strict=True)
    plan = PartPlan(utt_ids=ids, audio_hashes=hashes, parts=tuple(plan_parts(ids, seconds)))
    starts = np.cumsum(lengths) - lengths
    jobs = [
        PartJob(
            folder=args.posteriors,
            first_frame=int(starts[positions.start]),
            lengths=lengths[positions.start : positions.stop],
            seed=index,
        )
        for index, positions in enumerate(plan.parts)
    ]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(measure_part, jobs))

    teacher_best = np.concatenate([part["teacher_best"] for part in parts])
    teacher_wer = word_error_rate(teacher_best, lengths, utterances, tokenizer)
    hours = sum(seconds) / 3600
    print(
        f"{len(utterances)} utterances, {hours:.2f} h, {frames} frames of {frame_ms} ms, "
        f"V {tokenizer.vocab_size}, {len(parts)} parts; the teacher's WER {teacher_wer:.2f} %\n"
    )
    titles = "B/frame  B/20ms  entries  KL bucket     (99 %)  KL even  best %    WER %"
    print(f"{'row':<28} {titles}  squared  KL deg  L2 deg")
    table = []
    for row in all_rows():
        pieces = [part["rows"][row.name] for part in parts]
        joined = _join([{name: p[name] for name in (*MEASURES, "best")} for p in pieces])
        same = float((joined["best"] == teacher_best).mean())
        wer = teacher_wer
        if same < 1:
            wer = word_error_rate(joined["best"], lengths, utterances, tokenizer)
        size = sum(p["bytes"] for p in pieces) / frames
        line = {
            "row": row.name,
            "compressor": row.compressor,
            "bytes_per_frame": size,
            "bytes_per_20_ms": size * 20 / frame_ms,
            "entries": float(sum(p["entries"] for p in pieces)) / frames,
            "kl_bucket": float(joined["kl_bucket"].mean(dtype=np.float64)),
            "kl_bucket_p99": float(np.quantile(joined["kl_bucket"], 0.99)),
            "kl_even": float(joined["kl_uniform"].mean(dtype=np.float64)),
            "same_best": same,
            "wer": wer,
            "squared": float(joined["squared"].mean(dtype=np.float64)),
            "kl_degrees": float(np.concatenate([p["kl_angle"] for p in pieces]).mean()),
            "l2_degrees": float(np.concatenate([p["l2_angle"] for p in pieces]).mean()),
        }
        table.append(line)
        numbers = list(line.values())[2:]
        numbers[6] = 100 * same
        print(f"{row.name:<27} " + NUMBERS.format(*numbers), flush=True)

    print(f"\n{DEFAULT}, bytes a frame")
    names = ("blank", "token", "fraction")
    compressors = {
        way: {n: sum(p["compressors"][way][n] for p in parts) / frames for n in names}
        for way in COMPRESSORS
    }
    contexts = {
        f"adaptive order 0{', contexts' * bool(i)}": {
            n: sum(p["contexts"][n][i] for p in parts) / frames for n in names
        }
        for i in range(2)
    }
    for way, sizes in (compressors | contexts).items():
        columns = "  ".join(f"{name} {size:.4f}" for name, size in sizes.items())
        print(f"{way:<28} {sum(sizes.values()):.4f}  ({columns})")
    stored = [part["columns"] for part in parts]
    files = store_on_disk(plan, utterances, lengths, stored, tokenizer.tokens)
    disk = {kind: size / frames for kind, size in files.items()}
    text = "  ".join(f"{kind} {size:.4f}" for kind, size in disk.items())
    print(f"{'store on disk':<28} {sum(disk.values()):.4f}  ({text})")
    if args.json:
        content = {
            "hours": hours,
            "frames": frames,
            "frame_ms": frame_ms,
            "vocab_size": tokenizer.vocab_size,
            "teacher_wer": teacher_wer,
            "rows": table,
            "default": {"compressors": compressors, "contexts": contexts, "store": disk},
        }
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
