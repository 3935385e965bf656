"""`torchaudio:BUNDLE_NAME`: a wav2vec2 or HuBERT ASR bundle of torchaudio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interkd.kernels.errors import TeacherError
from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.config import nearest
from interkd.pipeline.corpus.tokens import BLANK, WORD_BOUNDARY
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.students.features import frame_mask
from interkd.pipeline.teachers.protocol import TeacherInfo
from interkd.pipeline.teachers.weights import hash_weights


def bundle_names() -> list[str]:
    """Bundles with a CTC head."""
    pipelines = torchaudio.pipelines
    return sorted(
        name
        for name in dir(pipelines)
        if isinstance(getattr(pipelines, name), pipelines.Wav2Vec2ASRBundle)
    )


class TorchaudioTeacher:
    """A torchaudio ASR bundle, with weights from a local file or from torchaudio's server.

    Args:
        bundle_name: Such as `WAV2VEC2_ASR_BASE_960H`.
        weights: A state dict saved by `torch.save`; downloaded by torchaudio when None.
        device: Where it runs.
        precision: Autocast type.
    """

    def __init__(
        self,
        bundle_name: str,
        *,
        device: torch.device,
        precision: torch.dtype,
        weights: Path | None = None,
    ) -> None:
        if bundle_name not in bundle_names():
            raise TeacherError(
                f"torchaudio has no ASR bundle '{bundle_name}'",
                remedy=nearest(bundle_name, bundle_names()) or f"it has {bundle_names()}",
            )
        bundle: Any = getattr(torchaudio.pipelines, bundle_name)
        # The bundle's own get_model normalises a batch as one signal; we build the plain model and
        # normalise each utterance over its own samples, as fairseq did in training.
        self.model = torchaudio.pipelines._wav2vec2.utils._get_model(
            bundle._model_type, bundle._params
        )
        self._load(bundle, weights)
        self.model = self.model.to(device).eval()
        self.normalise = bool(bundle._normalize_waveform)
        self.precision = precision
        convolutions = bundle._params["extractor_conv_layer_config"]
        self.info = TeacherInfo(
            name=f"torchaudio:{bundle_name}",
            weights_sha256=hash_weights(self.model.state_dict().items()),
            tokens=tuple(
                label.replace("|", WORD_BOUNDARY) for label in bundle.get_labels(blank=BLANK)
            ),
            blank_index=0,
            sample_rate=int(bundle.sample_rate),
            frame_formula=FrameFormula(tuple((k, s, 0) for _, k, s in convolutions)),
            # The base models' group norm runs over time, padding included.
            padding_safe=bundle._params["extractor_mode"] == "layer_norm",
        )

    def _load(self, bundle: Any, weights: Path | None) -> None:
        try:
            if weights is None:
                state = bundle._get_state_dict(None)
            else:
                state = torch.load(weights, map_location="cpu", weights_only=True)
                if len(state.get("aux.bias", ())) > bundle._params["aux_num_out"]:
                    # The file that torchaudio downloads has unused outputs, which it strips too.
                    torchaudio.pipelines._wav2vec2.utils._remove_aux_axes(
                        state, bundle._remove_aux_axis
                    )
            self.model.load_state_dict(state)
        except Exception as error:  # torch and urllib raise a dozen kinds here
            source = weights or "torchaudio's server"
            raise TeacherError(
                f"cannot load the bundle's weights from {source}",
                got=str(error).split("\n")[0],
                remedy="--teacher-weights takes a local state dict",
            ) from error

    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Teacher.log_probs`."""
        if self.normalise:
            mask = frame_mask(sample_lengths, waveforms.shape[1])
            count = sample_lengths[:, None]
            mean = torch.where(mask, waveforms, 0.0).sum(1, keepdim=True) / count
            centred = torch.where(mask, waveforms - mean, 0.0)
            variance = centred.square().sum(1, keepdim=True) / count
            waveforms = centred * (variance + 1e-5).rsqrt()
        with torch.autocast(
            waveforms.device.type,
            dtype=torch.bfloat16,
            enabled=self.precision == torch.bfloat16,
        ):
            logits, frame_lengths = self.model(waveforms, sample_lengths)
        return logits.float().log_softmax(-1), frame_lengths
