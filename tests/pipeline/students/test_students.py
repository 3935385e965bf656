"""Students: lengths, weights, and utterances that never feel their batch's padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interkd.kernels.errors import CheckpointError, ConfigError
from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.students import jasper
from interkd.pipeline.students.checkpoint import load_student, save_student
from interkd.pipeline.students.config import (
    ConformerConfig,
    FeatureConfig,
    JasperConfig,
    StudentConfig,
)
from interkd.pipeline.students.cut import cut_student
from interkd.pipeline.students.features import LogMel
from interkd.pipeline.students.model import Student
from tests.students import JASPER

SMALL = {
    "conformer": StudentConfig(
        conformer=ConformerConfig(
            dim=16, layers=3, attention_heads=2, feed_forward_dim=32, convolution_kernel=7
        )
    ),
    "jasper-mini": StudentConfig(
        encoder="jasper-mini",
        jasper=replace(JASPER, stride=2),
    ),
}


@pytest.mark.parametrize("encoder", sorted(SMALL))
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_frame_formula_is_what_the_model_does(
    encoder: str, stride: int, device: torch.device
) -> None:
    config = SMALL[encoder]
    config = replace(
        config,
        conformer=replace(config.conformer, stride=stride),
        jasper=replace(config.jasper, stride=stride),
    )
    student = Student(config, 5).to(device).eval()
    samples = [400, 1600, 3199, 3200, 3201, 16000, 16001]
    output = student(
        torch.zeros(len(samples), max(samples), device=device),
        torch.tensor(samples, device=device),
    )
    assert output.frame_lengths.tolist() == [student.frame_formula.count(n) for n in samples]
    assert output.logits[-1].shape[1] == max(output.frame_lengths.tolist())
    assert student.frame_formula.shift_samples == 160 * stride


@pytest.mark.parametrize("encoder", sorted(SMALL))
def test_padding_never_reaches_an_utterance(encoder: str, device: torch.device) -> None:
    torch.manual_seed(0)
    student = Student(SMALL[encoder], 7).to(device).eval()
    for norm in student.modules():
        if isinstance(norm, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.bias.data.normal_()
    lengths = torch.tensor([16000, 7001, 12345], device=device)
    waveforms = 0.1 * torch.randn(3, 20000, device=device)  # noise behind the lengths
    together = student(waveforms, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = student(waveforms[row : row + 1, :length], lengths[row : row + 1])
        frames = int(alone.frame_lengths[0])
        assert frames == int(together.frame_lengths[row])
        tolerance = 2e-5 if device.type == "cpu" else 2e-3  # convolutions run in TF32 there
        for one, many in zip(alone.logits, together.logits, strict=True):
            torch.testing.assert_close(one[0, :frames], many[row, :frames], rtol=0, atol=tolerance)


def test_frozen_norms_are_left_as_they_are(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(jasper, "has_fast_norm_activation", lambda _: True)
    student = Student(SMALL["jasper-mini"], 7).to(device).train()
    norms = [norm for norm in student.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    student(torch.randn(2, 4000, device=device), torch.tensor([4000, 3000], device=device))
    assert all(norm.running_mean is not None and not norm.running_mean.any() for norm in norms)


@pytest.mark.parametrize("self_conditioned", [False, True])
def test_the_kernel_after_a_convolution_trains_the_same_student(
    self_conditioned: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    torch.manual_seed(0)
    config = replace(SMALL["jasper-mini"], self_conditioned=self_conditioned)
    start = Student(config, 7).state_dict()
    waveforms, lengths = 0.1 * torch.randn(3, 8000), torch.tensor([8000, 4001, 6345])
    found = []
    for kernel in (True, False):
        monkeypatch.setattr(jasper, "has_fast_norm_activation", lambda _, kernel=kernel: kernel)
        student = Student(config, 7)
        student.load_state_dict(start)
        student.to(device).train()
        logits = student(waveforms.to(device), lengths.to(device)).logits
        torch.manual_seed(1)
        weights = [torch.randn(head.shape).to(device) for head in logits]
        torch.autograd.backward(logits, weights)
        norms = {name: x for name, x in student.named_buffers() if "running" in name}
        gradients = {name: weight.grad for name, weight in student.named_parameters()}
        found.append((list(logits), gradients, norms))
    assert all(gradient is not None for gradient in found[0][1].values())
    tolerance = 1e-4 if device.type == "cpu" else 5e-3  # convolutions run in TF32 there
    torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=tolerance)


def test_jasper_mini_has_the_papers_weights_and_heads() -> None:
    config = StudentConfig(encoder="jasper-mini", features=FeatureConfig(mels=64))
    student = Student(config, 29)
    assert len(student.encoder.layers) == 33
    assert student.head_names == ("layer18", "layer24", "layer30", "final")
    assert student.weight_counts[-1] == 8_188_893  # OpenSeq2Seq's jasper-Mini at 29 outputs


def test_weight_counts_rise_and_leave_out_other_heads() -> None:
    student = Student(SMALL["conformer"], 11)
    heads = sum(p.numel() for p in student.heads[:-1].parameters())
    total = sum(p.numel() for p in student.parameters())
    assert student.weight_counts[-1] == total - heads
    assert list(student.weight_counts) == sorted(student.weight_counts)


@pytest.mark.parametrize("layers", [(0, 1), (2, 9), (2, 1), (3,)])
def test_impossible_heads_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="head_layers"):
        Student(replace(SMALL["conformer"], head_layers=layers), 5)


def test_jasper_counts_the_way_around_a_block_with_its_block() -> None:
    config = replace(SMALL["jasper-mini"], head_layers=(2,))
    student = Student(config, 5)
    first, second = student.encoder.layers[0], student.encoder.layers[1]
    expected = sum(p.numel() for module in (first, second) for p in module.parameters())
    assert student.weight_counts[0] == expected + 16 * 5 + 5
    with pytest.raises(ConfigError, match="odd sizes"):
        JasperConfig(block_kernels=(12,), block_channels=(8,))


@pytest.mark.parametrize("head", ["layer2", "layer5", "layer6"])
def test_jasper_cut_at_a_head_says_what_the_head_says(head: str, device: torch.device) -> None:
    torch.manual_seed(0)
    config = replace(SMALL["jasper-mini"], head_layers=(2, 5, 6))
    student = Student(config, 5).to(device).eval()
    waveforms = 0.1 * torch.randn(2, 16000, device=device)
    lengths = torch.tensor([16000, 7001], device=device)
    place = student.head_names.index(head)
    shorter = cut_student(student, head).to(device)
    whole, cut = student(waveforms, lengths), shorter(waveforms, lengths)
    assert len(cut.logits) == place + 1
    assert all(torch.equal(a, b) for a, b in zip(cut.logits, whole.logits, strict=False))
    assert len(shorter.encoder.layers) == int(head.removeprefix("layer"))
    # The way around a block that ends behind the head is not there either.
    assert shorter.weight_counts == student.weight_counts[: place + 1]


@pytest.mark.parametrize("last", [0, 100])
def test_a_last_layer_that_is_not_there_is_refused(last: int) -> None:
    for config in SMALL.values():
        with pytest.raises(ConfigError, match=r"student\.last_layer.*from 1 to"):
            Student(replace(config, last_layer=last), 5)


def test_shared_heads_are_one_layer() -> None:
    student = Student(replace(SMALL["conformer"], shared_heads=True), 5)
    assert len({id(head) for head in student.heads}) == 1


def test_even_kernels_are_their_formulas(device: torch.device) -> None:
    config = SMALL["jasper-mini"]
    even = replace(config.jasper, stem_kernel=6, dilated_kernel=4, stride=1)
    student = Student(replace(config, jasper=even), 5).to(device).eval()
    samples = torch.tensor([16000, 8000], device=device)
    output = student(torch.zeros(2, 16000, device=device), samples)
    assert output.frame_lengths.tolist() == [student.frame_formula.count(n) for n in (16000, 8000)]


def test_self_conditioning_needs_intermediate_heads() -> None:
    with pytest.raises(ConfigError, match="self_conditioned"):
        Student(replace(SMALL["conformer"], head_layers=(), self_conditioned=True), 5)


@pytest.mark.parametrize("encoder", sorted(SMALL))
def test_fed_back_posteriors_are_the_papers_equation(encoder: str, device: torch.device) -> None:
    """What the second head says changes by what the first says, and by nothing in the padding."""
    torch.manual_seed(0)
    config = replace(SMALL[encoder], head_layers=(1, 2), self_conditioned=True)
    student = Student(config, 7).to(device).eval()
    lengths = torch.tensor([16000, 9000], device=device)
    waveforms = 0.1 * torch.randn(2, 16000, device=device)
    seen: list[torch.Tensor] = []

    def at_layer(layer: int, x: torch.Tensor) -> torch.Tensor:
        """Equation 9 of Nozaki & Komatsu, written out."""
        logits = student.heads[len(seen)](x) if layer in student.head_layers else None
        if logits is None:
            return x
        seen.append(logits)
        if len(seen) == 3:
            return x
        fed_back: torch.Tensor = student.feedback[0](torch.softmax(logits, 2))
        return x + fed_back

    with torch.no_grad():
        student.encoder(*student.augmented_features(waveforms, lengths), at_layer)
        output = student(waveforms, lengths)
        alone = student(waveforms[1:, :9000], lengths[1:])
    for got, expected in zip(output.logits, seen, strict=True):
        torch.testing.assert_close(got, expected)
    frames = int(alone.frame_lengths[0])
    tolerance = 2e-5 if device.type == "cpu" else 2e-3
    for one, many in zip(alone.logits, output.logits, strict=True):
        torch.testing.assert_close(one[0, :frames], many[1, :frames], rtol=0, atol=tolerance)
    plain = Student(replace(config, self_conditioned=False), 7)
    fed_back = sum(p.numel() for p in student.feedback.parameters())
    heads = [sum(p.numel() for p in head.parameters()) for head in student.heads]
    assert student.weight_counts == (
        plain.weight_counts[0],
        plain.weight_counts[1] + fed_back + heads[0],
        plain.weight_counts[2] + fed_back + heads[0] + heads[1],
    )


def test_views_repeat_the_batch(device: torch.device) -> None:
    torch.manual_seed(0)
    student = Student(SMALL["conformer"], 7).to(device).eval()
    lengths = torch.tensor([16000, 9000], device=device)
    waveforms = 0.1 * torch.randn(2, 16000, device=device)
    once, twice = student(waveforms, lengths), student(waveforms, lengths, views=2)
    assert twice.frame_lengths.tolist() == once.frame_lengths.tolist() * 2
    torch.testing.assert_close(twice.logits[-1][2:], once.logits[-1], rtol=0, atol=2e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_checkpoint_round_trip(tmp_path: Path, shared: bool) -> None:
    config = replace(SMALL["conformer"], shared_heads=shared)
    tokenizer = Tokenizer.from_characters(["AB C"])
    student = Student(config, tokenizer.vocab_size).eval()
    save_student(tmp_path, student, config, tokenizer, {"step": 3})
    loaded = load_student(tmp_path)
    assert loaded.tokenizer == tokenizer
    assert loaded.facts == {"step": 3}
    waveforms, lengths = torch.randn(1, 8000), torch.tensor([8000])
    for a, b in zip(
        student(waveforms, lengths).logits,
        loaded.model(waveforms, lengths).logits,
        strict=True,
    ):
        assert torch.equal(a, b)


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    config, tokenizer = SMALL["conformer"], Tokenizer.from_characters(["AB"])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_student(tmp_path)
    save_student(tmp_path, Student(config, tokenizer.vocab_size), config, tokenizer, {})
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_student(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "student.json").write_text('{"student": {"encoder": "conformer"}}')
    with pytest.raises(CheckpointError, match="weight"):
        load_student(tmp_path)


def test_features_are_torchaudios(device: torch.device) -> None:
    """Against torchaudio's MelSpectrogram on the same zero-padded signal."""
    config = FeatureConfig(mels=40)
    features = LogMel(config).to(device)
    waveforms = 0.1 * torch.randn(1, 16000, device=device)
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate=16000, n_fft=512, win_length=400, hop_length=160, n_mels=40, center=False
    ).to(device)
    expected = mel(torch.nn.functional.pad(waveforms, (256, 256))).add(1e-6).log()
    expected = (expected - expected.mean(2, keepdim=True)) / expected.var(
        2, keepdim=True, correction=0
    ).add(1e-5).sqrt()
    got, lengths = features(waveforms, torch.tensor([16000], device=device))
    assert lengths.tolist() == [101]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)
