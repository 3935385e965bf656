"""Teachers: each adapter on a real model of its kind, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from interkd.kernels.errors import ConfigError, TeacherError
from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.students.checkpoint import save_student
from interkd.pipeline.students.config import ConformerConfig, StudentConfig
from interkd.pipeline.students.model import Student
from interkd.pipeline.teachers.load import load_teacher
from interkd.pipeline.teachers.protocol import Teacher

CPU = torch.device("cpu")
TOKENS = ["<blk>", "▁", "A", "B"]


class StridedModel(nn.Module):
    """Frames of `kernel` samples every `shift`, with `padding` zeros at both ends."""

    def __init__(self, kernel: int, shift: int, padding: int) -> None:
        super().__init__()
        self.shift, self.kernel, self.padding = shift, kernel, padding
        self.convolution = nn.Conv1d(1, len(TOKENS), kernel, shift, padding)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.convolution(waveforms[:, None]).transpose(1, 2)
        frames = torch.div(
            lengths + 2 * self.padding - self.kernel, self.shift, rounding_mode="floor"
        )
        return scores.log_softmax(-1), frames + 1


def write_script(folder: Path, model: nn.Module) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    torch.jit.script(model).save(str(folder / "teacher.pt"))  # type: ignore[no-untyped-call]
    return folder / "teacher.pt"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize(
    ("kernel", "shift", "padding"), [(1, 320, 0), (400, 160, 0), (400, 320, 200), (512, 640, 256)]
)
def test_torchscript_formula_is_measured(
    tmp_path: Path, kernel: int, shift: int, padding: int
) -> None:
    model = StridedModel(kernel, shift, padding)
    file = write_script(tmp_path, model)
    teacher = load_teacher(f"torchscript:{file}", device=CPU, precision=torch.float32)
    truth = FrameFormula(((kernel, shift, padding),))
    for samples in [kernel, 999, 16000, 16001, 16319, 16320, 123457]:
        assert teacher.info.frame_formula.count(samples) == truth.count(samples)
    assert teacher.info.frame_formula.shift_samples == shift
    assert teacher.info.tokens == tuple(TOKENS)
    assert isinstance(teacher, Teacher)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_weights_hash_is_of_the_weights(tmp_path: Path) -> None:
    hashes: list[str] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        file = write_script(tmp_path / f"{len(hashes)}", StridedModel(400, 320, 0))
        info = load_teacher(f"torchscript:{file}", device=CPU, precision=torch.float32).info
        hashes.append(info.weights_sha256)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_frozen_teachers_are_told_apart(tmp_path: Path) -> None:
    hashes = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = tmp_path / f"{seed}"
        file = write_script(folder, StridedModel(400, 320, 0))
        frozen = torch.jit.freeze(torch.jit.load(str(file)).eval())  # type: ignore[no-untyped-call]
        torch.jit.save(frozen, str(file))
        info = load_teacher(f"torchscript:{file}", device=CPU, precision=torch.float32).info
        hashes.add(info.weights_sha256)
    assert len(hashes) == 2


def test_broken_torchscript_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no TorchScript file"):
        load_teacher(f"torchscript:{tmp_path}/x.pt", device=CPU, precision=torch.float32)
    (tmp_path / "x.pt").write_bytes(b"not a model")
    with pytest.raises(TeacherError, match=r"no tokens\.txt"):
        load_teacher(f"torchscript:{tmp_path}/x.pt", device=CPU, precision=torch.float32)
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS))
    with pytest.raises(TeacherError, match="is not a TorchScript file"):
        load_teacher(f"torchscript:{tmp_path}/x.pt", device=CPU, precision=torch.float32)


def test_interkd_teacher_is_the_checkpoints_final_head(tmp_path: Path) -> None:
    config = StudentConfig(
        conformer=ConformerConfig(dim=16, layers=2, attention_heads=2, feed_forward_dim=16)
    )
    tokenizer = Tokenizer.from_characters(["ABC"])
    student = Student(config, tokenizer.vocab_size).eval()
    save_student(tmp_path, student, config, tokenizer, {})
    teacher = load_teacher(f"interkd:{tmp_path}", device=CPU, precision=torch.float32)
    waveforms, lengths = 0.1 * torch.randn(2, 9000), torch.tensor([9000, 8000])
    log_probs, frames = teacher.log_probs(waveforms, lengths)
    output = student(waveforms, lengths)
    assert torch.equal(log_probs, output.logits[-1].log_softmax(-1))
    assert frames.tolist() == [teacher.info.frame_formula.count(n) for n in (9000, 8000)]
    assert teacher.info.tokens == tokenizer.tokens


@pytest.mark.slow
@pytest.mark.parametrize("bundle_name", ["WAV2VEC2_ASR_BASE_960H", "HUBERT_ASR_LARGE"])
def test_torchaudio_bundle_with_local_weights(tmp_path: Path, bundle_name: str) -> None:
    """Random weights of the real architecture (a few layers of the large one, for memory)."""
    bundle = getattr(torchaudio.pipelines, bundle_name)
    parameters = bundle._params
    shortened = {**parameters, "encoder_num_layers": 2}
    torch.manual_seed(0)
    build = torchaudio.pipelines._wav2vec2.utils._get_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "_params", shortened)
        torch.save(build(bundle._model_type, shortened).state_dict(), tmp_path / "weights.pt")
        teacher = load_teacher(
            f"torchaudio:{bundle_name}",
            device=CPU,
            precision=torch.float32,
            weights=tmp_path / "weights.pt",
        )
    large = bundle_name == "HUBERT_ASR_LARGE"
    assert teacher.info.padding_safe == large
    assert teacher.info.tokens[:3] == ("<blk>", "▁", "E")
    assert teacher.info.frame_formula.shift_samples == 320
    lengths = torch.tensor([8000, 6000])
    waveforms = 0.1 * torch.randn(2, 8000)
    waveforms[1, 6000:] = 0
    log_probs, frames = teacher.log_probs(waveforms, lengths)
    assert frames.tolist() == [teacher.info.frame_formula.count(n) for n in (8000, 6000)]
    torch.testing.assert_close(log_probs.logsumexp(-1), torch.zeros(log_probs.shape[:2]))
    if large:  # alone and padded, the same
        alone, _ = teacher.log_probs(waveforms[1:, :6000], lengths[1:])
        torch.testing.assert_close(alone[0], log_probs[1, : int(frames[1])], rtol=0, atol=1e-3)


def test_torchaudio_refuses_other_weights(tmp_path: Path) -> None:
    torch.save({"odd": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match="WAV2VEC2_ASR_BASE_960H"):
        load_teacher("torchaudio:WAV2VEC2_ASR_BASE_960", device=CPU, precision=torch.float32)
    with pytest.raises(TeacherError, match="cannot load the bundle's weights"):
        load_teacher(
            "torchaudio:WAV2VEC2_ASR_BASE_960H",
            device=CPU,
            precision=torch.float32,
            weights=tmp_path / "w.pt",
        )


FACTORY = """
import torch
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.teachers.protocol import TeacherInfo

class Mine:
    def __init__(self):
        self.info = TeacherInfo(name="mine", weights_sha256="0" * 64, tokens=("<blk>", "A"),
            blank_index=0, sample_rate=16000, frame_formula=FrameFormula(((1, 320, 0),)))
    def log_probs(self, waveforms, sample_lengths):
        frames = (sample_lengths + 319) // 320
        return torch.full((len(frames), int(frames.max()), 2), 0.5).log(), frames

def good(device, precision):
    return Mine()

def bad(device, precision):
    return 3
"""


def test_python_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_teacher_module.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    teacher = load_teacher("python:my_teacher_module:good", device=CPU, precision=torch.float32)
    assert teacher.info.name == "mine"
    for target, match in (
        ("my_teacher_module:bad", "returned a int"),
        ("my_teacher_module:none", "cannot import"),
        ("no_such_module:good", "cannot import"),
        ("my_teacher_module", "expected python:MODULE:FACTORY"),
    ):
        with pytest.raises(TeacherError, match=match):
            load_teacher(f"python:{target}", device=CPU, precision=torch.float32)


def test_unknown_specs_name_the_nearest() -> None:
    with pytest.raises(TeacherError, match="did you mean 'torchscript'"):
        load_teacher("torchscrip:x.pt", device=CPU, precision=torch.float32)
    with pytest.raises(ConfigError, match="for torchaudio bundles"):
        load_teacher("interkd:x", device=CPU, precision=torch.float32, weights=Path("w"))
