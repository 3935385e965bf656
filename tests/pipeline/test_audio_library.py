"""torchaudio's pure-Python part works beside whatever torch is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from interkd.kernels.errors import BackendError
from interkd.pipeline import audio_library
from interkd.pipeline.audio_library import torchaudio


def test_transforms_and_resampling_work() -> None:
    waveform = torch.sin(torch.arange(8000) * 0.05)
    assert torchaudio.functional.resample(waveform, 8000, 16000).shape == (16000,)
    mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=512, hop_length=160, n_mels=64)
    assert mel(waveform).shape == (64, 51)


def test_a_fresh_import_warns_of_nothing() -> None:
    code = "from interkd.pipeline.audio_library import torchaudio; print(torchaudio.__version__)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() == torchaudio.__version__


def test_the_stub_names_the_function_and_the_reason() -> None:
    stub = audio_library._stub_extension(reason="no libc10_cuda.so")

    @stub.fail_if_no_align  # type: ignore[untyped-decorator]
    def forced_align() -> None:
        return None

    with pytest.raises(BackendError, match=r"forced_align .*no libc10_cuda\.so"):
        forced_align()
    assert stub._load_lib("libtorchaudio") is False
