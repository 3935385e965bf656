"""CUDA graphs of the step: the numbers of the step itself, whatever varies within a shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interkd.kernels.ctc_distill import ctc_distill_loss
from interkd.kernels.sparse import SparsePosteriors
from interkd.kernels.token_distill import TokenSupport, token_distill_loss
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.progress import Reporter
from interkd.pipeline.students import jasper
from interkd.pipeline.students.config import StudentConfig
from interkd.pipeline.training import step, trainer
from interkd.pipeline.training.config import OptimiserConfig, SpecAugmentConfig, TrainConfig
from interkd.pipeline.training.data import Batch
from interkd.pipeline.training.graphed_step import refill, with_room
from interkd.pipeline.training.recipes import ObjectiveConfig
from tests.students import FEATURES, JASPER, conformer, losses, save_untaught, training

STUDENTS = {
    "conformer": conformer(32, dropout=0.0),
    "jasper-mini": StudentConfig(
        encoder="jasper-mini", features=FEATURES, head_layers=(3,), jasper=JASPER
    ),
}


@pytest.fixture(scope="module")
def store(tone_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Posteriors of a teacher that never learnt anything."""
    root = tmp_path_factory.mktemp("untaught")
    save_untaught(root, STUDENTS["conformer"], tone_corpus.tokens)
    out = root / "store.teacher.zarr"
    cache_teacher(
        CacheTeacherConfig(
            teacher=f"interkd:{root}", manifest=tone_corpus.train, out=out, device="cpu"
        )
    )
    return out


def settings(corpus: Any, store: Path, out: Path, **changes: Any) -> TrainConfig:
    config = training(
        corpus,
        out,
        data={"batch_seconds": 9.0},
        store=store,
        student=STUDENTS["conformer"],
        objective=ObjectiveConfig(),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=5),
        epochs=5,
        dev_every=5,
        cuda_graphs=True,
    )
    return replace(config, **changes)


# torch.compile's own, when it looks at what the layers are given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32 matrix multiplication")
@pytest.mark.parametrize("encoder", sorted(STUDENTS))
@pytest.mark.parametrize("recipe", ["ctc", "inter-kd", "guided", "mass3-ntdk", "inter-kd-cr"])
@pytest.mark.parametrize(("compiled", "batches_a_step"), [(False, 1), (True, 1), (False, 2)])
def test_graphs_train_as_the_step_does(
    tone_corpus: Any,
    store: Path,
    tmp_path: Path,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    encoder: str,
    recipe: str,
    compiled: bool,
    batches_a_step: int,
) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA graphs need --device cuda")
    if (compiled or batches_a_step > 1) and recipe != "inter-kd":
        pytest.skip("once a student is enough")
    student = STUDENTS[encoder]
    if compiled:  # what torch makes, with dropout of its own
        monkeypatch.setattr(jasper, "has_fast_norm_activation", lambda _: False)
    else:
        student = replace(student, jasper=replace(student.jasper, dropout=0.1))
    augment = SpecAugmentConfig(time_width=0, frequency_width=0) if recipe.endswith("cr") else None
    config = settings(
        tone_corpus,
        store,
        tmp_path / "graphs",
        student=student,
        objective=ObjectiveConfig(recipe=recipe),
        spec_augment=augment,
        device=str(device),
        compile=compiled,
    )
    config = replace(config, data=replace(config.data, batches_a_step=batches_a_step))
    trainer.train(config)
    monkeypatch.setattr(
        step, "GraphedStep", lambda run, stream: lambda batch: run(batch.to(stream.device))
    )
    monkeypatch.setattr(step, "GraphedCall", lambda function, stream: function)
    trainer.train(replace(config, out=tmp_path / "steps", compile=False))
    graphs, steps = losses(tmp_path / "graphs"), losses(tmp_path / "steps")
    assert len(graphs) == len(steps) >= 10
    torch.testing.assert_close(torch.tensor(graphs), torch.tensor(steps), rtol=2e-2, atol=0)


def test_fixed_shapes_recur_and_hold_every_utterance(
    tone_corpus: Any, store: Path, tmp_path: Path
) -> None:
    config = settings(tone_corpus, store, tmp_path / "run", device="cpu")
    run = trainer.Trainer(config, resume=False, reporter=Reporter())
    try:
        shapes, heard = [], []
        for epoch in range(2):
            plan = run.sampler.batches(epoch)
            batches = [run.loader.load(indexes) for indexes in plan]
            shapes.append({(len(b.sample_lengths), b.longest, *b.targets.shape) for b in batches})
            heard.append(sorted(index for indexes in plan for index in indexes))
            for batch in batches:
                waveforms = batch.audio()
                assert waveforms.shape == (len(batch.sample_lengths), batch.longest)
                assert waveforms.numel() <= 9 * 16000
    finally:
        run.close()
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) <= 4  # three buckets, what the last leaves over
    assert heard[0] == heard[1] == list(range(len(run.corpus.train.utterances)))


def test_posteriors_with_room_are_the_posteriors(
    tone_corpus: Any, store: Path, device: torch.device
) -> None:
    opened = TeacherStore.open(store)
    ids = list(opened.utterance_ids)
    first, second = opened.targets(ids[:3]), opened.targets(ids[3:6])
    column = torch.zeros(3, dtype=torch.int64)
    batch = Batch(
        utterances=(),
        waveforms=None,
        sample_lengths=column,
        sample_starts=None,
        longest=1,
        targets=column[:, None],
        target_lengths=column,
        teacher=first,
    )
    roomy = with_room(batch).teacher
    assert isinstance(roomy, SparsePosteriors)
    roomy = roomy.to(device)
    for teacher in (first, second):
        refill(roomy, teacher)
        frames = int(teacher.frame_lengths.max())
        torch.manual_seed(0)
        logits = torch.randn(3, frames, teacher.vocab_size, device=device)
        for selection in ("all", "symmetric(1)"):
            options: dict[str, Any] = {"ctc_weights": [0.0], "selection": selection}
            lengths = teacher.frame_lengths.to(device)
            got, expected = (
                ctc_distill_loss(
                    [logits],
                    teacher=posteriors,
                    compared_lengths=lengths,
                    check_values=False,
                    **options,
                ).total
                for posteriors in (roomy, teacher.to(device))
            )
            torch.testing.assert_close(got, expected)
        support = TokenSupport(
            tokens=torch.full((3, frames), 2, device=device),
            weights=torch.ones(3, frames, device=device),
        )
        torch.testing.assert_close(
            token_distill_loss(logits, roomy, support, lengths),
            token_distill_loss(logits, teacher.to(device), support, lengths),
        )
    assert len(roomy.tokens) % 16 == 0
    assert len(roomy.entry_offsets) % 16 == 1
