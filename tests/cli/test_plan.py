"""What a plan says, with numbers worked out by hand, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from interkd.cli.main import main
from interkd.cli.plan import plan_command
from interkd.kernels.errors import ConfigError
from interkd.pipeline.corpus.manifest import Utterance, read_manifest, write_manifest
from interkd.pipeline.planning.costs import Plan, make_plan
from interkd.pipeline.planning.run_speed import read_run_speed
from interkd.pipeline.planning.settings import PlanConfig
from tests.properties import examples

SPEEDS = ["--teacher-rtf", "3600", "--student-speed", "1800"]


def plan_json(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(plan_command, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.output)
    return values


def write_corpus(folder: Path, *seconds: float) -> Path:
    folder.mkdir(exist_ok=True)
    utterances = [
        Utterance(
            utt_id=f"utt{index}",
            audio_path=folder / f"utt{index}.flac",
            samples=round(length * 16000),
            sample_rate=16000,
            text="A",
            audio_hash=f"{index:032x}",
            source_rate=16000,
        )
        for index, length in enumerate(seconds)
    ]
    write_manifest(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


def write_run(folder: Path, manifest: Path, *rows: dict[str, Any], **changes: Any) -> Path:
    folder.mkdir()
    values = {
        "data": {"train_manifest": str(manifest)},
        "store": "train.teacher.zarr",
        "epochs": 40,
        "corpus": [read_manifest(manifest).digest, "dev"],
        **changes,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "log.jsonl").write_text(lines, encoding="utf-8")
    return folder


def steps(count: int, per_epoch: int) -> list[dict[str, Any]]:
    return [{"step": n + 1, "epoch": n // per_epoch, "loss": 1.0} for n in range(count)]


def validation(step: int, epochs: int, seconds: float) -> dict[str, Any]:
    return {"step": step, "epochs_done": epochs, "seconds": seconds, "dev_wer": {"final": 9.0}}


def test_a_thousand_hours_by_hand() -> None:
    plan = plan_json("--hours", "1000", "--epochs", "36", "--gpu-price", "2", *SPEEDS)
    # 1,000 h are 180 million frames of 20 ms; docs/results.md: 1,002 files, 1,003 inodes, 160 MB
    assert plan["frames"] == 180_000_000
    assert plan["store_bytes"] == 159_480_000
    assert (plan["parts"], plan["files"], plan["inodes"]) == (1000, 1002, 1003)
    # 1,000 h at 3,600 times real time; 36 epochs of 1,000 h at 1,800
    assert plan["caching_hours"] == pytest.approx(1 / 3.6)
    assert plan["student_hours"] == pytest.approx(20)
    one, five, twenty = plan["costs"]
    assert [cost["students"] for cost in plan["costs"]] == [1, 5, 20]
    # online: the teacher 36 times a student, 10 h each
    assert one["cached_hours"] == pytest.approx(20.2777778)
    assert one["online_hours"] == pytest.approx(30)
    assert one["saved_hours"] == pytest.approx(9.7222222)
    assert five["cached_hours"] == pytest.approx(100.2777778)
    assert five["online_hours"] == pytest.approx(150)
    assert five["factor"] == pytest.approx(150 / 100.2777778)
    assert twenty["cached_hours"] == pytest.approx(400.2777778)
    assert twenty["online_hours"] == pytest.approx(600)
    assert twenty["saved_price"] == pytest.approx(2 * 199.7222222)
    assert plan["break_even_epochs"] == 1
    assert plan["pays_from_epoch"] == 2


def test_what_was_measured_comes_out() -> None:
    # docs/results.md: the 9.73 h of 3,255 utterances took 1,553,240 bytes in 12 files
    arguments = ["--hours", "9.738", *SPEEDS]
    assert plan_json(*arguments)["store_bytes"] == pytest.approx(1_553_240, rel=0.002)
    counted = plan_json(*arguments, "--utterances", "3255")
    assert counted["store_bytes"] == pytest.approx(1_553_240, rel=0.002)
    assert counted["files"] == 12
    assert plan_json("--hours", "0.54", *SPEEDS)["files"] == 3


def test_short_utterances_cost_more() -> None:
    # 1 h is 180,000 frames: 0.761 bytes each, and 67 bytes for each of 1,800 utterances
    plan = plan_json("--hours", "1", "--utterances", "1800", *SPEEDS)
    assert plan["store_bytes"] == 136_980 + 120_600
    assert plan["bytes_per_frame"] == pytest.approx(1.431)


def test_the_measured_bytes_are_of_time_and_the_given_ones_of_frames() -> None:
    arguments = ["--hours", "100", "--frame-shift-ms", "40", *SPEEDS]
    plan = plan_json(*arguments)
    assert plan["frames"] == 9_000_000
    assert plan["store_bytes"] == 15_948_000
    assert plan["bytes_per_frame"] == pytest.approx(1.772)
    assert plan_json(*arguments, "--bytes-per-frame", "2")["store_bytes"] == 18_000_000


def test_parts() -> None:
    plan = plan_json("--hours", "100", "--part-minutes", "30", *SPEEDS)
    assert (plan["parts"], plan["files"]) == (200, 202)
    assert plan_json("--hours", "0.01", *SPEEDS)["parts"] == 1
    assert plan_json("--hours", "100", "--utterances", "7", *SPEEDS)["parts"] == 7


def test_a_timing_is_a_speed() -> None:
    plan = plan_json(
        *("--hours", "10", "--teacher-timing", "7200", "4", "--student-speed", "100"),
        *("--cache-overhead", "2.5", "--epochs", "4", "--students", "1,2"),
    )
    assert plan["teacher_rtf"] == 1800
    assert plan["forward_hours"] == pytest.approx(10 / 1800)
    assert plan["caching_hours"] == pytest.approx(25 / 1800)
    assert plan["costs"][0]["online_hours"] == pytest.approx(40 / 1800 + 0.4)
    assert [cost["break_even_epochs"] for cost in plan["costs"]] == [2.5, 1.25]
    assert plan["pays_from_epoch"] == 3


@given(
    hours=st.floats(0.1, 1e5),
    teacher=st.floats(1, 1e5),
    student=st.floats(1, 1e5),
    overhead=st.floats(1, 8),
)
@settings(max_examples=examples(50))
def test_the_first_epoch_that_pays(
    hours: float, teacher: float, student: float, overhead: float
) -> None:
    def saved(epochs: int) -> float:
        plan = make_plan(
            PlanConfig(
                hours=hours,
                teacher_rtf=teacher,
                student_speed=student,
                cache_overhead=overhead,
                epochs=epochs,
                students=(1,),
            )
        )
        assert plan.pays_from_epoch == first
        return plan.costs[0].saved_hours / plan.forward_hours

    first = int(overhead) + 1
    tolerance = 1e-6 * (1 + teacher / student)
    assert saved(first) > -tolerance
    assert saved(first - 1) < tolerance


def test_one_epoch_does_not_pay() -> None:
    plan = plan_json("--hours", "10", "--epochs", "1", "--cache-overhead", "2", *SPEEDS)
    one, five, _ = plan["costs"]
    assert one["saved_hours"] == pytest.approx(-10 / 3600)
    assert one["factor"] < 1
    assert five["saved_hours"] == pytest.approx(3 * 10 / 3600)


def test_of_a_manifest(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, *[15.0] * 480)  # two hours
    plan = plan_json("--manifest", str(manifest), *SPEEDS)
    assert plan["hours"] == 2
    assert plan["utterances"] == 480
    assert plan["store_bytes"] == round(0.761 * 360_000 + 67 * 480)
    assert plan["parts"] == 2
    # parts are as stage one plans them: one utterance is never split
    one = write_corpus(tmp_path / "one", 7200.0)
    assert plan_json("--manifest", str(one), *SPEEDS)["parts"] == 1


def test_the_tables() -> None:
    arguments = ["--hours", "1000", "--epochs", "36", "--gpu-price", "2", *SPEEDS]
    result = CliRunner().invoke(plan_command, arguments, catch_exceptions=False)
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert lines[:6] == [
        "audio 1,000.00 h",
        "store 0.159 GB",
        "bytes a frame 0.886",
        "files, inodes 1,002, 1,003",
        "teacher once (caching) 0.278 GPU h",
        "a student, 36 epochs 20.0 GPU h",
    ]
    assert "1 20.3 30.0 9.72 1.48 40.56 60.00 19.44" in lines
    assert "20 400 600 200 1.50 800.56 1,200.00 399.44" in lines
    assert "Break-even of one student, in epochs: 1; with 2 or more the cache is cheaper." in (
        result.output.replace("\n", " ")
    )
    bullets = result.output.replace("\n", " ")
    for assumption in plan_json(*arguments)["assumptions"]:
        assert assumption.split("(")[0] in " ".join(bullets.split())
    without = CliRunner().invoke(plan_command, arguments[:4] + SPEEDS)
    assert "price" not in without.output


def test_every_given_number_is_among_the_assumptions() -> None:
    plan = plan_json(
        *("--hours", "12", "--utterances", "99", "--teacher-timing", "7201", "4.5"),
        *("--cache-overhead", "2.25", "--student-speed", "1234", "--part-minutes", "33"),
        *("--bytes-per-frame", "0.77"),
    )
    text = " ".join(plan["assumptions"])
    for number in ("7,201 s", "4.5 GPU", "2.25 times", "1,234 s", "33 minutes", "0.77 bytes"):
        assert number in text


class TestRun:
    """A student's speed from the folder of a run."""

    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Path:
        return write_corpus(tmp_path / "data", *[10.0] * 60)  # 600 s

    def speed(self, run: Path) -> float:
        return read_run_speed(run).audio_per_second

    def test_whole_epochs(self, tmp_path: Path, manifest: Path) -> None:
        rows = [*steps(8, 4), validation(8, 2, 3.0), *steps(16, 4)[8:], validation(16, 4, 6.0)]
        run = write_run(tmp_path / "run", manifest, *rows, validation(16, 4, 6.0))
        assert self.speed(run) == pytest.approx(400)  # 4 x 600 s in 6 s
        plan = plan_json("--hours", "10", "--teacher-rtf", "1", "--student-run", str(run))
        assert plan["student_speed"] == pytest.approx(400)
        assert plan["epochs"] == 40
        assert plan["student_hours"] == pytest.approx(1)
        assert "0.67 h in 6 s" in " ".join(plan["assumptions"])
        arguments = ["--hours", "10", "--teacher-rtf", "1", "--student-run", str(run)]
        assert plan_json(*arguments, "--epochs", "4")["student_hours"] == pytest.approx(0.1)

    def test_an_epoch_cut_short_counts_by_its_steps(self, tmp_path: Path, manifest: Path) -> None:
        run = write_run(tmp_path / "run", manifest, *steps(10, 4), validation(10, 2, 5.0))
        assert self.speed(run) == pytest.approx(2.5 * 600 / 5)

    def test_several_processes_count_each(self, tmp_path: Path, manifest: Path) -> None:
        four = {**validation(8, 2, 3.0), "processes": 4}
        two = {**validation(16, 4, 6.0), "processes": 2}  # resumed on fewer
        run = write_run(tmp_path / "run", manifest, *steps(8, 4), four, *steps(16, 4)[8:], two)
        assert self.speed(run) == pytest.approx(4 * 600 / (3 * 4 + 3 * 2))

    def test_a_log_without_steps(self, tmp_path: Path, manifest: Path) -> None:
        run = write_run(tmp_path / "run", manifest, validation(8, 2, 4.0))
        assert self.speed(run) == pytest.approx(300)

    def test_a_line_that_was_cut_is_left_out(self, tmp_path: Path, manifest: Path) -> None:
        run = write_run(tmp_path / "run", manifest, *steps(8, 4), validation(8, 2, 4.0))
        with (run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 9, "epo')
        assert self.speed(run) == pytest.approx(300)

    def test_a_run_without_a_store_is_told(self, tmp_path: Path, manifest: Path) -> None:
        run = write_run(tmp_path / "run", manifest, validation(8, 2, 4.0), store=None)
        plan = plan_json("--hours", "10", "--teacher-rtf", "1", "--student-run", str(run))
        assert "read no teacher cache" in " ".join(plan["assumptions"])

    def test_the_manifest_given_may_be_the_runs_own(self, tmp_path: Path, manifest: Path) -> None:
        run = write_run(tmp_path / "run", manifest, validation(8, 2, 4.0))
        moved = manifest.rename(tmp_path / "moved.jsonl")
        assert read_run_speed(run, read_manifest(moved)).audio_per_second == pytest.approx(300)
        with pytest.raises(ConfigError, match="stand where the run was started"):
            read_run_speed(run)

    def test_a_changed_corpus_is_refused(self, tmp_path: Path, manifest: Path) -> None:
        run = write_run(tmp_path / "run", manifest, validation(8, 2, 4.0))
        write_corpus(manifest.parent, 1.0, 2.0)
        with pytest.raises(ConfigError, match="has changed since"):
            read_run_speed(run)

    @pytest.mark.parametrize("rows", [[], steps(3, 4), [validation(3, 0, 2.0)], [{"step": 1}]])
    def test_no_finished_epoch(
        self, tmp_path: Path, manifest: Path, rows: list[dict[str, Any]]
    ) -> None:
        with pytest.raises(ConfigError, match="cannot tell the run's speed"):
            read_run_speed(write_run(tmp_path / "run", manifest, *rows))

    def test_not_a_run(self, tmp_path: Path, manifest: Path) -> None:
        with pytest.raises(ConfigError, match=r"no training log .*; expected log\.jsonl"):
            read_run_speed(tmp_path)
        run = write_run(tmp_path / "run", manifest, validation(8, 2, 4.0))
        (run / "config.yaml").write_text("data: {}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="expected settings of a training run"):
            read_run_speed(run)
        (run / "config.yaml").unlink()
        with pytest.raises(ConfigError, match="cannot read"):
            read_run_speed(run)


HOURS = ["--hours", "10"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SPEEDS, "plan of manifest and hours; expected exactly one of the two, got neither"),
        ([*HOURS, "--manifest", "m", *SPEEDS], "got manifest and hours"),
        ([*HOURS, "--student-speed", "1"], "teacher_rtf and teacher_timing; expected exactly one"),
        ([*HOURS, "--teacher-timing", "1", "1", *SPEEDS], "got teacher_rtf and teacher_timing"),
        ([*HOURS, "--teacher-rtf", "1"], "student_speed and student_run; expected exactly one"),
        ([*HOURS, "--student-run", "r", *SPEEDS], "got student_speed and student_run"),
        (["--hours", "0", *SPEEDS], "plan.hours; expected above 0, got 0.0"),
        (["--hours", "-3", *SPEEDS], "plan.hours; expected above 0, got -3.0"),
        (["--hours", "nan", *SPEEDS], "plan.hours; expected above 0, got nan"),
        (["--hours", "inf", *SPEEDS], "plan.hours; expected above 0, got inf"),
        ([*HOURS, "--utterances", "0", *SPEEDS], "plan.utterances; expected at least 1"),
        (
            [*HOURS, "--teacher-rtf", "0", "--student-speed", "1"],
            "plan.teacher_rtf; expected above",
        ),
        ([*HOURS, "--teacher-rtf", "1", "--student-speed", "-1"], "plan.student_speed; expected"),
        (
            [*HOURS, "--teacher-timing", "9", "0", "--student-speed", "1"],
            "plan.teacher_timing; expected above 0",
        ),
        ([*HOURS, *SPEEDS, "--frame-shift-ms", "0"], "plan.frame_shift_ms; expected above 0"),
        ([*HOURS, *SPEEDS, "--bytes-per-frame", "0"], "plan.bytes_per_frame; expected above 0"),
        ([*HOURS, *SPEEDS, "--part-minutes", "0"], "plan.part_minutes; expected above 0"),
        ([*HOURS, *SPEEDS, "--epochs", "0"], "plan.epochs; expected at least 1, got 0"),
        ([*HOURS, *SPEEDS, "--students", "1,0"], "plan.students; expected at least 1, got (1, 0)"),
        ([*HOURS, *SPEEDS, "--students", "1,x"], "--students; expected whole numbers joined by"),
        ([*HOURS, *SPEEDS, "--students", ""], "--students; expected whole numbers joined by"),
        ([*HOURS, *SPEEDS, "--gpu-price", "-1"], "plan.gpu_price; expected above 0"),
        ([*HOURS, *SPEEDS, "--cache-overhead", "0.5"], "plan.cache_overhead; expected at least 1"),
        (["--manifest", "none.jsonl", *SPEEDS], "cannot read the manifest none.jsonl"),
        (["--manifest", "empty.jsonl", *SPEEDS], "empty.jsonl holds no utterances"),
        (["--manifest", "empty.jsonl", "--utterances", "3", *SPEEDS], "plan.utterances; expected"),
        ([*HOURS, "--teacher-rtf", "1", "--student-run", "."], "no training log in ."),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    with pytest.raises(ConfigError):
        CliRunner().invoke(plan_command, arguments, catch_exceptions=False)
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_of_the_library() -> None:
    config = PlanConfig(hours=1, teacher_rtf=3600, student_speed=3600, epochs=10, students=(3,))
    plan = make_plan(config)
    assert isinstance(plan, Plan)
    assert plan.costs[0].online_hours == pytest.approx(60 / 3600)
    with pytest.raises(ConfigError, match=r"plan\.students; expected at least one"):
        PlanConfig(hours=1, teacher_rtf=1, student_speed=1, students=())
