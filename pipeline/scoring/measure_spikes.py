"""The spikes of a model's heads beside those of a teacher cache, over a manifest."""

from __future__ import annotations

import torch

from interkd.kernels.errors import CorpusError, FingerprintError
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.batches import length_sorted_batches
from interkd.pipeline.corpus.manifest import Manifest
from interkd.pipeline.devices import cores
from interkd.pipeline.scoring.evaluate import ScorableModel
from interkd.pipeline.scoring.spikes import (
    SpikeOffsets,
    Spikes,
    compare_spikes,
    spikes,
    teacher_spikes,
)
from interkd.pipeline.training.data import compared_lengths


def measure_spike_offsets(
    model: ScorableModel,
    manifest: Manifest,
    store: TeacherStore,
    *,
    device: torch.device | str,
    max_seconds: float,
    audio_cache: AudioCache | None = None,
) -> dict[str, SpikeOffsets]:
    """Compares the spikes of every head of a model with a store's, over a manifest.

    The model runs in evaluation mode and is left in the mode in which it came. Offsets are in
    frames of the store.

    Args:
        model: On `device`, with the tokens and the frame shift of the store.
        manifest: Its utterances are all in the store.
        store: The teacher's posteriors.
        device: Where the model runs.
        max_seconds: Most audio in a batch, padding included.
        audio_cache: Decoded audio to reuse; without one the files are read.

    Returns:
        The offsets by the head's name, the final head last.

    Raises:
        CorpusError: If the manifest is empty or its audio cannot be read.
        StoreError: If the store lacks an utterance, or was made of other audio.
        CorruptStoreError: For a damaged part.
        FingerprintError: If the model has not as many tokens as the store.
        FrameCountError: See `compared_lengths`.
    """
    utterances = manifest.utterances
    if not utterances:
        raise CorpusError("a manifest without utterances has no spikes to compare")
    store.require(utterances)
    threads = min(8, cores())
    cache = AudioCache(budget_bytes=0, threads=threads) if audio_cache is None else audio_cache
    teacher: list[Spikes] = []
    heads: dict[str, list[Spikes]] = {name: [] for name in model.head_names}
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            # Longest first: what does not fit into memory fails at once.
            for batch in reversed(length_sorted_batches(utterances, max_seconds)):
                utt_ids = [utterances[index].utt_id for index in batch]
                targets = store.targets(utt_ids)
                waveforms, lengths = cache.read_batch([utterances[index] for index in batch])
                output = model(waveforms.to(device), lengths.to(device))
                compared_lengths(
                    utt_ids, output.frame_lengths.tolist(), targets.frame_lengths.tolist()
                )
                teacher += teacher_spikes(targets)
                for head_spikes, logits in zip(heads.values(), output.logits, strict=True):
                    if logits.shape[2] != targets.vocab_size:
                        raise FingerprintError(
                            f"the model's tokens are not those of {store.path}",
                            expected=f"{targets.vocab_size} of them",
                            got=logits.shape[2],
                        )
                    head_spikes += spikes(
                        logits, output.frame_lengths, blank_index=targets.blank_index
                    )
    finally:
        model.train(was_training)
    return {name: compare_spikes(head_spikes, teacher) for name, head_spikes in heads.items()}
