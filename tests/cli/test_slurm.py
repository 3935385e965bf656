"""`interkd slurm` without a Slurm: the scripts' text, what they do in bash, mistakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from interkd.cli.main import main
from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache.claims import Claim, claim
from interkd.pipeline.cache_teacher import CacheTeacherConfig, cache_teacher
from interkd.pipeline.cluster.follow import Failure, follow
from interkd.pipeline.cluster.jobs import cache_jobs, job_name
from interkd.pipeline.cluster.profile import Profile, Resources, Stages, read_profile, time_seconds
from interkd.pipeline.cluster.script import Job, render
from interkd.pipeline.cluster.submit import Submitted, Written, command_on_nodes

EXAMPLES = Path(__file__).parents[2] / "examples" / "slurm"
Capture = pytest.CaptureFixture[str]

WHOLE_PROFILE = Profile(
    partition="gpu",
    account="speech",
    qos="normal",
    constraint="a100&nvlink",
    time="08:00:00",
    gpus=1,
    gpu_type="a100",
    cpus=8,
    memory="64G",
    sbatch=("--mail-type=FAIL",),
    prologue=("module load cuda", "source venv/bin/activate"),
    container=("apptainer", "exec", "--nv", "/images/my image.sif"),
    stages=Stages(cache_teacher=Resources(time="01:00:00", sbatch=("--exclusive",))),
)

ARRAY = r"""#!/bin/bash
#SBATCH --job-name=cache-teacher-train
#SBATCH --chdir='/data/it'"'"'s 100 %'
#SBATCH --output='/data/it'"'"'s 100 %%/slurm/logs/cache-teacher-train-%A_%a.log'
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --account=speech
#SBATCH --qos=normal
#SBATCH --constraint='a100&nvlink'
#SBATCH --time=01:00:00
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --gres=gpu:a100:1
#SBATCH --array=0-3
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --mail-type=FAIL
#SBATCH --exclusive

# Written by `interkd slurm` for the stage cache-teacher.
set -euo pipefail

# Slurm signals this shell; the running command is told to stop, once, in its own way.
stop= told= child= signals=0
tell() {
  if [[ -n $stop && -n $child && -z $told ]]; then
    told=yes
    kill -s USR2 "$child" 2>/dev/null || true
  fi
}
trap 'signals=$((signals + 1)); stop=${stop:-asked}; tell' USR1 USR2
trap 'signals=$((signals + 1)); stop=cancelled; tell' TERM

run() {
  local code=0 seen again
  if [[ -n $stop ]]; then
    code=3
  else
    "$@" &
    child=$!
    tell
    seen=$signals
    wait "$child" || code=$?
    while ((signals != seen)); do  # a signal ended the wait, not the command
      seen=$signals again=0
      wait "$child" || again=$?
      ((again == 127)) || code=$again
    done
    child=
  fi
  if [[ $stop == cancelled ]]; then exit 143; fi
  if ((code == 3)) || [[ $stop == asked && $code != 0 ]]; then
    if ((${SLURM_RESTART_COUNT:-0} < 100)); then
      echo "stopped with exit code $code: requeued"
      scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" && exit 0
    fi
    echo "stopped with exit code $code: not requeued"
  fi
  if ((code != 0)); then exit "$code"; fi
}

set +u  # the scripts of modules and conda read variables that are not set
module load cuda
source venv/bin/activate
set -u

run apptainer exec \
  --nv '/images/my image.sif' interkd cache-teacher \
  --teacher 'torchscript:my teacher.pt' \
  --out train.zarr \
  --no-wait
"""

INDEX_END = r"""
run apptainer exec \
  --nv '/images/my image.sif' interkd cache-teacher \
  --teacher 'torchscript:my teacher.pt' \
  --out train.zarr
run apptainer exec \
  --nv '/images/my image.sif' interkd cache verify train.zarr
"""

TRAINING_END = r"""
resume=
if [[ -e 'runs/it'"'"'s/config.yaml' ]]; then resume=--resume; fi
run interkd train-student \
  --config student.yaml $resume
"""

RANKS_END = r"""
resume=
if [[ -e runs/a/config.yaml ]]; then resume=--resume; fi
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
run srun \
  --ntasks=4 \
  --cpus-per-task=8 \
  --kill-on-bad-exit=0 \
  --wait=60 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS \
exec "$@"' rank interkd train-student \
  --config student.yaml $resume
""".replace("\\\nexec", "exec")


def text_of(job: Job, profile: Profile, folder: str = "/data/it's 100 %") -> str:
    where = Path(folder)
    return render(job, profile, folder=where / "slurm", workdir=where, interkd="interkd")


def run(*arguments: str) -> int:
    try:
        main(["slurm", *arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_text_of_stage_one() -> None:
    words = ["--teacher", "torchscript:my teacher.pt", "--out", "train.zarr"]
    names = ("cache-teacher-train", "index-train")
    array, index = cache_jobs(words, out=Path("train.zarr"), tasks=4, names=names)
    assert text_of(array, WHOLE_PROFILE) == ARRAY
    text = text_of(index, WHOLE_PROFILE)
    assert text.endswith(INDEX_END)
    assert "--array" not in text
    assert "#SBATCH --time=08:00:00\n" in text
    assert "#SBATCH --dependency=singleton\n" in text
    assert 'scontrol requeue "$SLURM_JOB_ID"' in text
    assert index.after == (array.name,)


def training(run: str, **changes: Any) -> Job:
    command = ("interkd", "train-student", "--config", "student.yaml")
    return Job(name="a", stage="train-student", commands=(command,), run=Path(run), **changes)


def test_text_of_training() -> None:
    text = text_of(training("runs/it's"), Profile(gpu_form="gpus-per-node", requeue=False))
    assert text.endswith(TRAINING_END)
    assert "#SBATCH --gpus-per-node=1\n" in text
    assert "#SBATCH --no-requeue\n" in text
    assert "scontrol" not in text
    text = text_of(training("runs/a"), Profile(gpus=0, signal="SIGHUP", lead_seconds=300))
    assert "gres" not in text
    assert "#SBATCH --signal=B:HUP@300\n" in text
    assert "tell' HUP USR2 USR1\n" in text


def test_text_of_training_on_several_gpus() -> None:
    text = text_of(training("runs/a"), Profile(gpus=4, cpus=8))
    assert text.endswith(RANKS_END)
    assert "#SBATCH --ntasks=4\n" in text
    assert "#SBATCH --gres=gpu:4\n" in text
    pyxis = Profile(gpus=2, container=("srun", "--container-image=interkd.sqsh"))
    text = text_of(training("runs/a"), pyxis)
    assert "run srun \\\n  --container-image=interkd.sqsh \\\n  --ntasks=2" in text
    score = Job(name="s", stage="score", commands=(("interkd", "score"),))
    assert "#SBATCH --ntasks=1\n" in text_of(score, pyxis)


@pytest.mark.parametrize("folder", ["/data/a\nb", "/data/\x1b"])
def test_a_folder_that_no_line_can_name(folder: str) -> None:
    with pytest.raises(ConfigError, match="one line of text"):
        text_of(training("runs/a"), Profile(), folder)


STAGE = """
import signal, sys, time
from pathlib import Path
told = []
signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
Path("ready").touch()
while not told and not Path("over").exists():
    time.sleep(0.01)
time.sleep(0.3)
print("told", len(told), flush=True)
sys.exit(int(sys.argv[-1]))
"""


class Shell:
    """A script in bash with a stage and an `scontrol` of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "stage.py").write_text(STAGE)
        (folder / "bin").mkdir()
        self.tool("scontrol", 'echo "$*" >>requeued')

    def tool(self, name: str, line: str) -> None:
        """Puts a command on the PATH."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)

    def run(
        self,
        *codes: int,
        signals: Sequence[signal.Signals] = (),
        array: bool = False,
        lives: int = 0,
    ) -> tuple[int, str]:
        """Runs stages that end with those codes; the script's exit code and what it said."""
        commands = tuple((sys.executable, "stage.py", str(code)) for code in codes)
        job = Job(name="a", stage="score", commands=commands, tasks=3 if array else None)
        (self.folder / "a.sbatch").write_text(text_of(job, Profile(max_requeues=2)))
        if not signals:
            (self.folder / "over").touch()
        ids = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(lives)}
        ids |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"} if array else {}
        with subprocess.Popen(
            ["bash", "a.sbatch"],
            cwd=self.folder,
            env={**os.environ, **ids, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            for number in signals:
                self.wait_for("ready")
                process.send_signal(number)
                time.sleep(0.1)
            output, _ = process.communicate(timeout=30)
        return process.returncode, output

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def requeued(self) -> str:
        path = self.folder / "requeued"
        return path.read_text().strip() if path.exists() else ""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize("code", [0, 2])
def test_a_command_that_ends_by_itself(shell: Shell, code: int) -> None:
    assert shell.run(code, 0) == (code, "told 0\n" * (1 if code else 2))
    assert shell.requeued == ""


def test_exit_code_3_requeues(shell: Shell) -> None:
    assert shell.run(3, 0)[0] == 0
    assert shell.requeued == "requeue 7"


def test_a_warning_is_passed_on_once_and_requeues_one_task(shell: Shell) -> None:
    code, output = shell.run(
        3, signals=[signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2], array=True
    )
    assert (code, output.splitlines()[0]) == (0, "told 1")
    assert shell.requeued == "requeue 7_2"


def test_a_warning_that_comes_as_the_work_is_done(shell: Shell) -> None:
    assert shell.run(0, signals=[signal.SIGUSR1]) == (0, "told 1\n")
    assert shell.requeued == ""


def test_a_warning_between_two_commands(shell: Shell) -> None:
    code, output = shell.run(0, 0, signals=[signal.SIGUSR1])
    assert (code, output.splitlines()[0]) == (0, "told 1")
    assert "told 0" not in output  # the second has not begun
    assert shell.requeued == "requeue 7"


def test_a_cancelled_job_stays_cancelled(shell: Shell) -> None:
    assert shell.run(3, signals=[signal.SIGTERM]) == (143, "told 1\n")
    assert shell.requeued == ""


def test_requeues_end(shell: Shell) -> None:
    code, output = shell.run(3, lives=2)
    assert code == 3
    assert "not requeued" in output
    assert shell.requeued == ""
    shell.tool("scontrol", "exit 1")
    assert shell.run(3)[0] == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("12:00:00", 43200),
        ("1-12", 129600),
        ("1-02:03", 93780),
        ("2-00:00:01", 172801),
        ("UNLIMITED", None),
    ],
)
def test_times_as_slurm_reads_them(text: str, seconds: int | None) -> None:
    assert time_seconds(text) == seconds


def test_a_profile_of_strings(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text("prologue: |\n  module load a\n  b=1\ncontainer: apptainer exec 'my image'\n")
    profile = read_profile(path)
    assert profile.prologue == ("module load a", "b=1")
    assert profile.container == ("apptainer", "exec", "my image")


def test_a_stage_over_the_profile() -> None:
    asked = WHOLE_PROFILE.resources("cache-teacher")
    assert (asked.time, asked.partition, asked.gpus) == ("01:00:00", "gpu", 1)
    assert asked.sbatch == ("--mail-type=FAIL", "--exclusive")
    assert command_on_nodes(WHOLE_PROFILE) == "interkd"
    assert command_on_nodes(Profile(interkd="/opt/interkd")) == "/opt/interkd"
    assert command_on_nodes(Profile()) == str(Path(sys.executable).with_name("interkd"))
    assert job_name("score", "it's a/run") == "score-it-s-a-run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", "unknown setting 'partitoin'; did you mean 'partition'?"),
        ("stages: {train: {}}", "unknown stage in"),
        ("stages: {score: {tiem: '1'}}", "unknown setting 'stages.score.tiem'"),
        ("time: 12:00:00", "YAML reads 12:00:00 as a number"),
        ("stages: {score: {time: 90}}", "quoted time"),
        ("time: tomorrow", "as Slurm has it, got 'tomorrow'"),
        ("time: '1:30'", "more than lead_seconds (120 s), got 1:30"),
        ("{time: '00:00:00'}", "the job would be told to stop as it starts"),
        ("gpus: -1", "gpus; expected at least 0, got -1"),
        ("memory: lots", "memory; expected such as 64G"),
        ("signal: USR9", "unknown signal"),
        ("signal: SIGTERM", "which must not come back"),
        ("gpu_form: gress", "did you mean 'gres'?"),
        ("sbatch: [exclusive]", "expected options such as --mail-type=END"),
        ("stages: 3", "expected a mapping"),
        ("tasks: 0", "tasks; expected at least 1"),
    ],
)
def test_profiles_that_cannot_be(text: str, message: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    score = ["--checkpoint", "a", "--manifest", "m", "--out", "b"]
    assert run("score", *score, "--profile", str(path)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def desk(tone_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a student's settings, no profile and no Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    data = {"train_manifest": str(tone_corpus.train), "dev_manifest": str(tone_corpus.dev)}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({"data": data, "out": "runs/a"}))
    return tmp_path


def cache_options(corpus: Any) -> list[str]:
    return ["--teacher", "interkd:t", "--manifest", str(corpus.train), "--out", "s.zarr"]


def test_stages_write_their_scripts(desk: Path, tone_corpus: Any, capsys: Capture) -> None:
    options = cache_options(tone_corpus)
    assert run("cache-teacher", *options, "--part-minutes", "0.1") == 0
    assert capsys.readouterr().out.splitlines() == [
        "slurm/cache-teacher-s.zarr.sbatch  (4 tasks)",
        "slurm/index-s.zarr.sbatch  (after cache-teacher-s.zarr)",
    ]
    first = (desk / "slurm" / "cache-teacher-s.zarr.sbatch").read_text()
    assert run("cache-teacher", *options, "--part-minutes", "0.1") == 0
    assert (desk / "slurm" / "cache-teacher-s.zarr.sbatch").read_text() == first
    assert run("cache-teacher", *options, "--tasks", "9") == 0  # of one part
    assert "(1 tasks)" in capsys.readouterr().out
    words = ["--config", "student.yaml", "--set", "stop_signal=SIGUSR1", "--resume"]
    assert run("train-student", *words, "--store", "s.zarr", "--folder", "jobs") == 0
    text = (desk / "jobs" / "train-student-a.sbatch").read_text()
    assert "kill -s USR1" in text
    assert "--resume $resume" not in text
    assert "-e runs/a/config.yaml" in text
    assert (desk / "jobs" / "logs").is_dir()
    words = ["--checkpoint", "runs/a", "--manifest", str(tone_corpus.dev), "--out", "scores/a b"]
    assert run("score", *words, "--name", "mine") == 0
    assert "--out 'scores/a b'" in (desk / "slurm" / "mine.sbatch").read_text()
    sweep = {"base": "student.yaml", "out": "runs", "score": {"dev": str(tone_corpus.dev)}}
    (desk / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert run("sweep", "sweep.yaml", "--jobs", "2") == 0
    text = (desk / "slurm" / "sweep-sweep.sbatch").read_text()
    assert text.endswith("interkd sweep sweep.yaml \\\n  --jobs 2\n")
    assert "kill -s TERM" in text


def test_mistakes_are_one_line_and_exit_code_2(
    desk: Path, tone_corpus: Any, capsys: Capture
) -> None:
    options = cache_options(tone_corpus)
    score = ["score", "--checkpoint", "a", "--out", "b"]
    for arguments, message in (
        (["cache-teacher", *options, "--submit"], "sbatch is not on the PATH"),
        (["cache-teacher", *options, "--wait"], "without --submit the scripts are written only"),
        (["cache-teacher", *options, "--tasks", "0"], "tasks; expected at least 1, got 0"),
        (["cache-teacher", *options, "--quantizer", "x"], "No such option"),
        (["cache-teacher", *options[:2]], "Missing option '--manifest'"),
        (["cache-teacher", *options, "--manifest", "gone"], "cannot read the manifest gone"),
        (["cache-teacher", *options, "--profile", "gone"], "cannot read gone"),
        (["train-student"], "missing setting 'data'"),
        (["train-student", "--config", "student.yaml", "--set", "epoch=1"], "'epochs'?"),
        (
            ["train-student", "--config", "student.yaml", "--set", "data.dev_manifest=gone"],
            "data.dev_manifest; expected a manifest, got no file at gone",
        ),
        (score, "give --checkpoint, --manifest and --out"),
        ([*score, "--manifest", "gone"], "no file at gone"),
        (["sweep", "gone.yaml"], "cannot read gone.yaml"),
    ):
        assert run(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def road(corpus: Any, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "demo",
        "cache": {
            "teacher": "interkd:my teacher",
            "manifest": str(corpus.train),
            "out": "s.zarr",
            "part_minutes": 0.1,
            "mass": 0.999,
        },
        "tasks": 2,
        "students": [
            {"name": "a", "config": "student.yaml"},
            {"name": "b", "config": "student.yaml", "out": "runs/b", "set": ["seed=2"]},
        ],
        "score": {"dev": str(corpus.dev), "test": str(corpus.dev)},
        **changes,
    }
    return {key: value for key, value in values.items() if value is not None}


def test_the_whole_road(desk: Path, tone_corpus: Any, capsys: Capture) -> None:
    (desk / "road.yaml").write_text(yaml.safe_dump(road(tone_corpus)))
    assert run("pipeline", "road.yaml") == 0
    assert capsys.readouterr().out.splitlines() == [
        "slurm/demo-cache.sbatch  (2 tasks)",
        "slurm/demo-index.sbatch  (after demo-cache)",
        "slurm/demo-train-a.sbatch  (after demo-index)",
        "slurm/demo-score-a.sbatch  (after demo-train-a)",
        "slurm/demo-train-b.sbatch  (after demo-index)",
        "slurm/demo-score-b.sbatch  (after demo-train-b)",
    ]
    text = (desk / "slurm" / "demo-cache.sbatch").read_text()
    assert "--teacher 'interkd:my teacher' \\\n" in text
    assert "--mass 0.999 \\\n  --part-minutes 0.1 \\\n  --no-wait\n" in text
    text = (desk / "slurm" / "demo-train-b.sbatch").read_text()
    words = (
        "--config student.yaml \\\n  --out runs/b \\\n  --store s.zarr \\\n  --set seed=2 $resume"
    )
    assert words in text
    text = (desk / "slurm" / "demo-score-b.sbatch").read_text()
    assert text.count("interkd score") == 2
    assert "--out scores/b/test" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"studens": []}, "unknown setting 'studens'; did you mean 'students'?"),
        ({"name": "a b"}, "expected letters, digits"),
        ({"cache": None}, "missing setting 'cache'"),
        ({"cache": {"teacher": "t", "manifest": "gone", "out": "s"}}, "cannot read the manifest"),
        ({"cache": {"teacher": "t", "wait": False}}, "unknown setting 'cache.wait'"),
        ({"cache": {"teacher": "t", "mas": 1}}, "did you mean 'mass'?"),
        ({"tasks": 0}, "tasks; expected at least 1"),
        ({"score": ["dev"]}, "expected split: manifest"),
        ({"score": {"dev": "gone"}}, "score.dev; expected a manifest, got no file at gone"),
        ({"students": [{"name": "a", "config": "gone.yaml"}]}, "cannot read gone.yaml"),
        ({"students": [{"name": "a", "config": "student.yaml"}] * 2}, "are named 'a'"),
        (
            {"students": [{"name": name, "config": "student.yaml"} for name in "ab"]},
            "students 'a' and 'b' have one folder; got runs/a",
        ),
        ({"sweeps": ["gone.yaml"]}, "cannot read gone.yaml"),
    ],
)
def test_roads_that_cannot_be(
    desk: Path, tone_corpus: Any, changes: dict[str, Any], message: str, capsys: Capture
) -> None:
    (desk / "road.yaml").write_text(yaml.safe_dump(road(tone_corpus, **changes)))
    assert run("pipeline", "road.yaml", "--submit") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_examples_are_a_profile_and_a_road() -> None:
    profile = read_profile(EXAMPLES / "profile.yaml")
    assert profile.partition is not None
    values = yaml.safe_load((EXAMPLES / "pipeline.yaml").read_text())
    assert set(values) == {"name", "tasks", "cache", "students", "score"}


@pytest.fixture
def queue(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A Slurm that answers what the test says."""
    monkeypatch.setenv("PATH", f"{shell.folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(shell.folder)
    return shell


def submitted(folder: Path, tasks: int | None = None) -> Submitted:
    job = Job(name="a", stage="score", commands=(("interkd", "score"),), tasks=tasks)
    number = "%j" if tasks is None else "%A_%a"
    written = Written(job=job, script=folder / "a.sbatch", log=folder / f"a-{number}.log")
    return Submitted(written=written, job_id="5")


def followed(job: Submitted) -> tuple[list[str], list[Failure]]:
    said: list[str] = []
    return said, follow([job], poll_seconds=0.01, message=said.append)


def test_an_array_is_followed_to_its_end(queue: Shell) -> None:
    line = "JobId=%s ArrayJobId=5 ArrayTaskId=%s JobState=%s Reason=%s Restarts=%s ExitCode=%s"
    looks = [
        [line % (5, "0-1", "PENDING", "Resources", 0, "0:0")],
        [line % (6, 0, "RUNNING", "None", 0, "0:0"), line % (5, 1, "RUNNING", "None", 0, "0:0")],
        [line % (6, 0, "PENDING", "BeginTime", 1, "0:0"), line % (5, 1, "FAILED", "", 0, "2:0")],
        [line % (6, 0, "COMPLETED", "None", 1, "0:0"), line % (5, 1, "FAILED", "", 0, "2:0")],
    ]
    for number, lines in enumerate(looks):
        (queue.folder / f"look-{number}").write_text("\n".join(lines) + "\n")
    queue.tool(
        "scontrol",
        "n=$(cat n 2>/dev/null || echo 0); echo $((n < 3 ? n + 1 : 3)) >n; cat look-$n",
    )
    (queue.folder / "a-5_1.log").write_text("much\ninterkd: error: the last line\n\n")
    said, failures = followed(submitted(queue.folder, tasks=2))
    assert said == [
        "a (5): pending (Resources)",
        "a (5): 2 running",
        "a (5): 1 failed, 1 pending (BeginTime), requeued 1 times",
        "a (5): 1 completed, 1 failed, requeued 1 times",
    ]
    assert [failure.reason for failure in failures] == [
        f"failed, exit code 2 (1 of 2 tasks), log {queue.folder}/a-5_1.log: "
        "interkd: error: the last line"
    ]


def test_a_job_that_slurm_has_forgotten(queue: Shell) -> None:
    queue.tool("scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    queue.tool("sacct", 'echo "5|COMPLETED|0:0"')
    assert followed(submitted(queue.folder)) == (["a (5): completed"], [])
    queue.tool("sacct", 'echo "5|CANCELLED by 0|0:15"')
    assert [f.reason for f in followed(submitted(queue.folder))[1]] == ["cancelled, exit code 143"]
    queue.tool("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert "has forgotten it" in followed(submitted(queue.folder))[1][0].reason


def test_a_controller_that_does_not_answer_for_a_while(queue: Shell) -> None:
    queue.tool(
        "scontrol",
        'if [[ ! -e up ]]; then touch up; echo "Unable to contact it" >&2; exit 1; fi\n'
        "echo JobId=5 JobState=COMPLETED Reason=None Restarts=0 ExitCode=0:0",
    )
    assert followed(submitted(queue.folder)) == (["a (5): completed"], [])


TEACHER = """
import torch
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.teachers.protocol import TeacherInfo

class Flat:
    info = TeacherInfo(
        name="flat", weights_sha256="cd" * 32, tokens=("<blk>", "a"), blank_index=0,
        sample_rate=16000, frame_formula=FrameFormula.parse("1,640,0"),
    )
    def log_probs(self, waveforms, sample_lengths):
        frames = -(-waveforms.shape[1] // 640)
        logits = torch.zeros(len(waveforms), frames, 2)
        return logits.log_softmax(-1), -(-sample_lengths // 640)

def make(*, device, precision):
    return Flat()
"""


def test_without_waiting_the_parts_of_others_are_left_to_them(desk: Path, tone_corpus: Any) -> None:
    (desk / "flat_teacher.py").write_text(TEACHER)
    options: dict[str, Any] = {
        "teacher": "python:flat_teacher:make",
        "manifest": tone_corpus.train,
        "out": desk / "s.zarr",
        "device": "cpu",
        "part_minutes": 0.1,
    }
    first = cache_teacher(CacheTeacherConfig(**options, wait=False))
    assert (first.finished, first.parts_written) == (False, first.parts)
    for part in (2, 4):
        (desk / "s.zarr" / f"part-{part:05d}.zip").unlink()
    taken = claim(desk / "s.zarr", "part-00002")
    assert isinstance(taken, Claim)
    with taken:
        second = cache_teacher(CacheTeacherConfig(**options, wait=False))
    assert (second.finished, second.parts_written) == (False, 1)
    third = cache_teacher(CacheTeacherConfig(**options))
    assert (third.finished, third.parts_written) == (True, 1)
    assert cache_teacher(CacheTeacherConfig(**options, wait=False)).finished
