"""The training loop: plain PyTorch, resumable to the step, the same for students and teachers."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice

import torch

from interkd.kernels.errors import CheckpointError, ConfigError
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.batches import BatchSampler, digest_of
from interkd.pipeline.progress import Reporter
from interkd.pipeline.students.model import Student
from interkd.pipeline.training.augmentation import spec_augment
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.data import BatchLoader
from interkd.pipeline.training.inputs import open_store, parts_as_groups, read_corpus
from interkd.pipeline.training.keeper import CheckpointKeeper
from interkd.pipeline.training.log import RunLog
from interkd.pipeline.training.milestones import Milestones
from interkd.pipeline.training.objective import Objective
from interkd.pipeline.training.optimisers import learning_rate
from interkd.pipeline.training.plateau import plateau_loss
from interkd.pipeline.training.position import Position, TrainResult
from interkd.pipeline.training.ranks import Ranks
from interkd.pipeline.training.resident_audio import ResidentAudio
from interkd.pipeline.training.run_folder import (
    held_run,
    require_same_run,
    run_settings,
    withdraw_run,
)
from interkd.pipeline.training.step import TrainingStep
from interkd.pipeline.training.step_plan import plan_steps, with_batches_a_step
from interkd.pipeline.training.stop import StopRequest
from interkd.pipeline.training.student import trained_student

LOG_EVERY = 20


def train(
    config: TrainConfig, *, resume: bool = False, reporter: Reporter | None = None
) -> TrainResult:
    """Trains a student, or a teacher with the plain `ctc` recipe.

    Args:
        config: Settings; they are written to the run's folder.
        resume: Goes on from the run's last checkpoint, exactly.
        reporter: Hears of the progress.

    Returns:
        How it ended; the checkpoints are in `config.out`.

    Raises:
        InterkdError: If corpus, store, settings or checkpoint do not fit, or another process trains
            this run. A new run that has no checkpoint yet is then withdrawn, so that it can be
            started again once mended.
    """
    trainer = Trainer(config, resume=resume, reporter=reporter or Reporter())
    try:
        result = trainer.run()
    except Exception:
        trainer.close()
        if trainer.ranks.is_first and trainer.is_new and trainer.keeper.folder.is_empty:
            withdraw_run(config.out)
        raise  # without goodbye to other processes: they may wait for this one, and end with it
    finally:
        trainer.close()
    trainer.ranks.leave()
    return result


class Trainer:
    """One run: built whole and checked before the first step."""

    def __init__(self, config: TrainConfig, *, resume: bool, reporter: Reporter) -> None:
        self.ranks = Ranks.join()
        self.config = config = replace(
            config,
            student=trained_student(config.student, config.objective),
            data=with_batches_a_step(config.data, self.ranks),
        )
        self.reporter = reporter if self.ranks.is_first else Reporter()
        self.device = self.ranks.device(config.device)
        self.corpus = read_corpus(config)
        tokenizer = self.corpus.tokenizer
        torch.manual_seed(config.seed)
        self.model = Student(config.student, tokenizer.vocab_size)
        self.model.augment = spec_augment(config.spec_augment)
        self.store = open_store(config, tokenizer, self.model.frame_formula)
        self.objective = Objective(
            config.objective,
            self.model.head_names,
            tokenizer.blank_index,
            # What the loader makes fits; on a GPU a look at it would wait for every step.
            check_values=self.device.type == "cpu",
        )
        if config.compile:
            self.model.compile_layers()
        self.audio = AudioCache(int(config.data.audio_memory_gb * 2**30))
        self.sampler = BatchSampler(
            self.corpus.train.utterances,
            max_seconds=config.data.batch_seconds,
            buckets=config.data.buckets,
            seed=config.seed,
            batches_a_step=config.data.batches_a_step or 1,
            fixed_shapes=config.cuda_graphs,
            **parts_as_groups(self.store, self.corpus.train.utterances),
        )
        self.loader = BatchLoader(
            self.corpus.train,
            tokenizer,
            self.audio,
            self.model.frame_formula,
            store=self.store,
            prefetch_batches=config.data.prefetch_batches,
            threads=config.data.decode_threads,
            pin=self.device.type == "cuda",
            resident=self._resident_audio(),
            padded_samples=self.sampler.padded_samples if config.cuda_graphs else None,
            views=config.objective.views,
        )
        self._warn_of_impossible()
        self.model.to(self.device)
        self.take_step = TrainingStep(self.model, self.objective, config, self.device, self.ranks)
        self.optimiser = self.take_step.optimiser
        self.keeper = CheckpointKeeper(
            config.out,
            self.model,
            config.student,
            tokenizer,
            self.optimiser,
            epochs_to_average=config.average_epochs,
        )
        self.position = Position()
        self.is_new = True
        with ExitStack() as held:  # let go if what follows fails
            self._open_run(resume, held)
            self._held = held.pop_all()
        self.log = RunLog(
            config.out if self.ranks.is_first else None,
            self.model.head_names,
            step=self.position.step,
            epochs=self.position.epoch,
        )
        self.milestones = Milestones(
            config=config,
            model=self.model,
            objective=self.objective,
            dev=self.corpus.dev,
            audio=self.audio,
            keeper=self.keeper,
            position=self.position,
            log=self.log,
            plateau=plateau_loss(self.loader, config.objective.normalisation),
            ranks=self.ranks,
            reporter=self.reporter,
        )
        self.stop = StopRequest(config.stop_signal)
        self.stopped = False

    def _warn_of_impossible(self) -> None:
        impossible = self.loader.count_impossible()
        if impossible:
            shift = self.model.frame_formula.shift_samples
            self.reporter.message(
                f"warning: {impossible:,} of {len(self.corpus.train.utterances):,} utterances have "
                f"fewer frames of {1e3 * shift / self.config.student.features.sample_rate:g} ms "
                "than CTC needs for their text: it learns nothing from them"
            )

    def _resident_audio(self) -> ResidentAudio | None:
        """The training set in the GPU's memory, where there is a GPU and room."""
        data, utterances = self.config.data, self.corpus.train.utterances
        budget = int(data.device_memory_gb * 2**30)
        if self.device.type == "cpu" or not ResidentAudio.fits(utterances, budget):
            return None
        return ResidentAudio(utterances, self.device, threads=data.decode_threads)

    def _open_run(self, resume: bool, held: ExitStack) -> None:
        """A new run's folder, or the state of the one that is resumed; holds it."""
        settings = run_settings(
            self.config,
            corpus=[self.corpus.train.digest, self.corpus.dev.digest],
            tokens=self.corpus.tokenizer.digest,
            store=None if self.store is None else self.store.digest,
        )
        if self.ranks.is_first:
            message = self.reporter.message
            held.enter_context(held_run(self.config.out, settings, resume=resume, message=message))
        elif resume:
            require_same_run(self.config.out, settings)
        if not resume:
            self.ranks.wait()
        elif (position := self.keeper.restore()) is not None:  # else killed before the first one
            self.position, self.is_new = position, False

    def run(self) -> TrainResult:
        """Trains to the end, the time limit or a stop signal."""
        self.reporter.message(f"objective: {self.objective}")
        with self.stop.caught():
            finished = self._run_epochs()
        return TrainResult(
            run=self.config.out,
            finished=finished,
            steps=self.position.step,
            seconds=self.position.seconds,
            best_wer=self.position.best_wer,
            weights=sum(weight.numel() for weight in self.model.parameters()),
        )

    def _run_epochs(self) -> bool:
        config, position = self.config, self.position
        while position.epoch < config.epochs and not self._out_of_time():
            if not self._train_epoch():
                if self.stopped:
                    return False
                self.milestones.validate(f"step-{position.step:08d}")
                break
            position.epoch, position.batch = position.epoch + 1, 0
            averaged = (
                config.average_epochs and position.epoch > config.epochs - config.average_epochs
            )
            last = position.epoch == config.epochs or self._out_of_time()
            if last or position.epoch % config.dev_every == 0 or averaged:
                self.milestones.validate(f"epoch-{position.epoch:04d}")
        if config.average_epochs and position.step:
            self.milestones.average()
        return True

    def _train_epoch(self) -> bool:
        """One epoch, or the rest of it; False if a signal or the time limit cut it short."""
        config, position = self.config, self.position
        epoch_batches = self.sampler.batches(position.epoch)
        self._require_same_order(digest_of(epoch_batches))
        plan = plan_steps(
            epoch_batches,
            self.loader,
            self.ranks,
            batches_a_step=config.data.batches_a_step or 1,
            normalisation=config.objective.normalisation,
        )
        title = f"epoch {position.epoch + 1}/{config.epochs}"
        self.reporter.begin(title, len(plan), done=position.batch)
        self.model.train()
        started = time.monotonic()
        before = position.seconds
        steps = plan[position.batch :]
        batches = self.loader.batches([batch for step in steps for batch in step.batches])
        for step in steps:
            progress = (position.epoch + position.batch / len(plan)) / config.epochs
            if config.max_minutes is not None:
                progress = max(progress, position.seconds / (60 * config.max_minutes))
            rate = learning_rate(config.optimiser, position.step, progress)
            figures = self.take_step(
                step, list(islice(batches, len(step.batches))), rate=rate, step=position.step
            )
            position.step += 1
            position.batch += 1
            row = {"step": position.step, "epoch": position.epoch, "learning_rate": rate}
            self.log.step(row, figures)
            position.seconds = before + time.monotonic() - started
            self.reporter.advance(1, self._flush_log() if position.step % LOG_EVERY == 0 else "")
            # What clocks and signals say must hold for all processes at the same step.
            stop, due, position.seconds = self.ranks.largest(
                self.stop.asked, self.milestones.checkpoint_due, position.seconds
            )
            if stop or due:
                self._flush_log()
                self.milestones.save_last()
            if stop:  # and not the flag, which a signal may raise in this process alone
                self.stopped = True
                self.reporter.end()
                self.reporter.message(f"stopped by a signal at step {position.step}")
                return False
            if self._out_of_time() and position.batch < len(plan):
                self._flush_log()
                self.reporter.end()
                return False
        self.reporter.end()
        self._flush_log()  # waits for a GPU: what it has still to do belongs to the epoch
        (position.seconds,) = self.ranks.largest(before + time.monotonic() - started)
        return True

    def _require_same_order(self, order: str) -> None:
        """Keeps the order of an epoch that begins; refuses to go on in another one.

        Raises:
            CheckpointError: If the checkpoint was taken in an epoch of other batches, as another
                version of interkd may make them.
        """
        position = self.position
        if position.batch and position.order != order:
            raise CheckpointError(
                f"cannot go on in the middle of epoch {position.epoch + 1}: its batches are others",
                expected=position.order,
                got=order,
                remedy="resume with the version of interkd that wrote the checkpoint, or start a "
                "run of its own",
            )
        position.order = order

    def _flush_log(self) -> str:
        """Writes the pending steps and looks at the last loss, for the progress bar.

        Raises:
            ConfigError: If it or its gradient is no longer a number: nothing that follows would be.
        """
        last = self.log.flush()
        if last is None:
            return ""
        loss, gradient_norm = last
        if not math.isfinite(loss) or not math.isfinite(gradient_norm):
            raise ConfigError(
                f"the loss is {loss}, its gradient's norm {gradient_norm} at step "
                f"{self.position.step}",
                remedy="a lower optimiser.learning_rate or a longer warmup_steps, in a run of its "
                "own",
            )
        return f"loss {loss:.2f}"

    def _out_of_time(self) -> bool:
        limit = self.config.max_minutes
        return limit is not None and self.position.seconds >= 60 * limit

    def close(self) -> None:
        """Closes the log and lets go of the run."""
        self.reporter.end()
        self.log.close()
        self._held.close()
