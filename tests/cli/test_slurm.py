"""`interkd slurm` without a Slurm: the scripts' text, what they do in bash, mistakes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from interkd.cli.main import main
from interkd.kernels.errors import ClusterError, ConfigError
from interkd.pipeline.cache.claims import Claim, claim
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.cluster import follow as follow_module
from interkd.pipeline.cluster import submit as submit_module
from interkd.pipeline.cluster.follow import Failure, follow
from interkd.pipeline.cluster.jobs import cache_jobs, job_name, score_job
from interkd.pipeline.cluster.profile import Profile, Resources, Stages, read_profile, time_seconds
from interkd.pipeline.cluster.road import read_road
from interkd.pipeline.cluster.script import Job, render
from interkd.pipeline.cluster.submit import (
    Submitted,
    Written,
    command_on_nodes,
    submit,
    write_scripts,
)

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
  local code=0 seen again pause
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
      if [[ -z $stop ]] && ((SECONDS < 60)); then
        echo "stopped with exit code $code, unasked and soon: waiting a minute"
        sleep 60 || true
        if [[ $stop == cancelled ]]; then exit 143; fi
      fi
      echo "stopped with exit code $code: requeued"
      for pause in 2 4 8 16 0; do  # a busy Slurm may refuse
        scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" && exit 0
        sleep "$pause" || true
        if [[ $stop == cancelled ]]; then exit 143; fi
      done
    fi
    echo "stopped with exit code $code: not requeued;" \
      "submit it again, it goes on where it stopped"
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
# What follows would begin anew, so a warning does not stop it: it may yet end in time.
warned() {
  echo "warned, and going on: this work keeps no progress;" \
    "if the job ends at its time limit, raise time (stages: index)"
}
trap 'signals=$((signals + 1)); warned' USR1 USR2
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
unset SLURM_EXPORT_ENV
run srun \
  --ntasks=4 \
  --cpus-per-task=8 \
  --kill-on-bad-exit=0 \
  --wait=60 bash -c 'gpu=$SLURM_LOCALID; [[ ${CUDA_VISIBLE_DEVICES:-,} == *,* ]] || gpu=0; \
RANK=$SLURM_PROCID LOCAL_RANK=$gpu WORLD_SIZE=$SLURM_NTASKS exec "$@"' rank interkd train-student \
  --config student.yaml $resume
""".replace("\\\nRANK", "RANK")


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
    array, index = cache_jobs(
        words, out=Path("train.zarr"), tasks=4, names=names, profile=WHOLE_PROFILE
    )
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
    score = score_job([()], name="s")
    assert "#SBATCH --ntasks=1\n" in text_of(score, pyxis)
    by_task = replace(pyxis, gpu_form="gpus-per-task", gpu_type="a100")
    assert "#SBATCH --gpus-per-task=a100:1\n" in text_of(training("runs/a"), by_task)
    assert "#SBATCH --gpus-per-task=a100:1\n" in text_of(score, by_task)
    by_task = replace(by_task, stages=Stages(score=Resources(gpus=2)))
    assert "#SBATCH --gpus-per-task=a100:2\n" in text_of(score, by_task)


def stage_one(profile: Profile, *words: str) -> tuple[str, str]:
    names = ("cache", "index")
    array, index = cache_jobs(words, out=Path("s.zarr"), tasks=2, names=names, profile=profile)
    return text_of(array, profile), text_of(index, profile)


def test_stage_one_on_several_gpus() -> None:
    array, index = stage_one(Profile(gpus=4))
    assert "#SBATCH --gres=gpu:4\n" in array
    assert array.endswith("run interkd cache-teacher \\\n  --devices all \\\n  --no-wait\n")
    assert "#SBATCH --gres=gpu:1\n" in index
    assert "--devices" not in index
    for words in (["--device", "cuda:1"], ["--device=cpu"], ["--cluster", "local"]):
        assert "--devices" not in stage_one(Profile(gpus=4), *words)[0]
    for words in (["--devices", "cuda:0,cuda:1"], ["--devices=cuda:0,cuda:1"]):
        array, index = stage_one(Profile(gpus=4), *words, "--mass", "1")
        assert array.count("--devices") == 1
        assert "--devices" not in index
        assert "--mass 1" in index
    stages = Stages(cache_teacher=Resources(gpus=1), index=Resources(gpus=2))
    array, index = stage_one(Profile(gpus=4, stages=stages))
    assert "--devices" not in array
    assert "#SBATCH --gres=gpu:2\n" in index
    assert "--devices all" in index
    array, index = stage_one(Profile(gpus=0))
    assert "--gres" not in array + index
    assert "--gres" not in stage_one(Profile(gpus=None))[1]


@pytest.mark.parametrize(
    ("sweep", "student", "words", "expected"),
    [
        ({}, {}, [], "--devices cuda:0,cuda:1,cuda:2 \\\n  --jobs 3"),
        ({"jobs": 6}, {}, [], "--devices cuda:0,cuda:1,cuda:2"),
        ({}, {}, ["--jobs", "2"], "--jobs 2 \\\n  --devices cuda:0,cuda:1,cuda:2"),
        ({}, {}, ["--devices", "cuda:0"], "--devices cuda:0"),
        ({}, {"device": "cpu"}, [], ""),
    ],
)
def test_a_sweep_on_several_gpus(
    desk: Path,
    tone_corpus: Any,
    sweep: dict[str, Any],
    student: dict[str, Any],
    words: list[str],
    expected: str,
) -> None:
    write_sweep(desk, tone_corpus, sweep, objective={"recipe": "ctc"}, **student)
    (desk / "p.yaml").write_text("gpus: 3\n")
    assert run("sweep", "sweep.yaml", *words, "--profile", "p.yaml") == 0
    text = (desk / "slurm" / "sweep-sweep.sbatch").read_text()
    assert "#SBATCH --gres=gpu:3\n" in text
    assert text.partition("interkd sweep sweep.yaml")[2].strip(" \\\n") == expected
    (desk / "p.yaml").write_text("gpus: 1\n")
    assert run("sweep", "sweep.yaml", "--profile", "p.yaml") == 0
    assert "--devices" not in (desk / "slurm" / "sweep-sweep.sbatch").read_text()


def test_a_container_of_srun_has_the_cores_of_the_job() -> None:
    stages = Stages(score=Resources(cpus=3))
    profile = Profile(cpus=8, container=("srun", "--container-image=i.sqsh"), stages=stages)
    score = Job(name="s", stage="score", commands=(("interkd", "score"),))
    assert text_of(score, profile).endswith(
        "unset SLURM_EXPORT_ENV\nrun srun \\\n  --container-image=i.sqsh \\\n  --ntasks=1 \\\n"
        "  --cpus-per-task=3 interkd score\n"
    )


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
        self.tool("sleep", 'echo "$*" >>slept')

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
        if not signals:
            (self.folder / "over").touch()
        ids = {"SLURM_RESTART_COUNT": str(lives)}
        ids |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"} if array else {}
        return self.run_job(job, Profile(max_requeues=2), ids, signals=signals)

    def run_job(
        self,
        job: Job,
        profile: Profile,
        environment: Mapping[str, str],
        *,
        signals: Sequence[signal.Signals] = (),
    ) -> tuple[int, str]:
        """Runs the script of a job; its exit code and what it said."""
        (self.folder / "a.sbatch").write_text(text_of(job, profile))
        ids = {"SLURM_JOB_ID": "7", **environment}
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

    def answers(self, name: str, *answers: str) -> None:
        """Puts a command on the PATH that says something else each time, in the end the last."""
        for number, answer in enumerate(answers):
            (self.folder / f"{name}-{number}").write_text(answer)
        last = len(answers) - 1
        self.tool(
            name,
            f"n=$(cat {name}-n 2>/dev/null || echo 0)\n"
            f"echo $((n < {last} ? n + 1 : {last})) >{name}-n; source ./{name}-$n",
        )

    def lines(self, name: str) -> list[str]:
        """What the test's own commands noted in a file."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def requeued(self) -> str:
        return "\n".join(self.lines("requeued"))


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


def test_a_job_that_stops_at_once_waits_before_it_is_requeued(shell: Shell) -> None:
    """Such as a sweep whose runs another one holds: else it lives and dies every few seconds."""
    code, output = shell.run(3)
    assert (code, shell.lines("slept")) == (0, ["60"])
    assert "unasked and soon: waiting a minute" in output
    shell.tool("sleep", "kill -TERM $PPID")
    (shell.folder / "requeued").unlink()
    assert shell.run(3)[0] == 143
    assert shell.requeued == ""


@pytest.mark.parametrize("lasting", [0, 1])
def test_work_that_would_begin_anew_is_not_stopped_by_a_warning(shell: Shell, lasting: int) -> None:
    """Scoring, and the verification after an index."""
    show = ("bash", "-c", "touch ready; /bin/sleep 1; exit 2")
    commands = (("true",),) * lasting + (show, ("true",))
    job = Job(name="a", stage="score", commands=commands, lasting=lasting)
    code, output = shell.run_job(job, Profile(), {}, signals=[signal.SIGUSR1, signal.SIGUSR2])
    assert code == 2
    told = "warned, and going on: this work keeps no progress; if the job ends at its time limit, "
    assert output == 2 * f"{told}raise time (stages: score)\n"
    assert shell.requeued == ""
    (shell.folder / "ready").unlink()
    assert shell.run_job(job, Profile(), {}, signals=[signal.SIGTERM])[0] == 143


def test_an_index_that_is_stopped_at_its_parts_goes_on(shell: Shell) -> None:
    command = (sys.executable, "stage.py", "3")
    job = Job(name="a", stage="index", commands=(command, ("true",)), lasting=1)
    assert shell.run_job(job, Profile(), {}, signals=[signal.SIGUSR1])[0] == 0
    assert shell.requeued == "requeue 7"


def test_stages_that_keep_nothing_are_known() -> None:
    assert "scontrol" not in text_of(score_job([()], name="s"), Profile())
    assert "if ((code == 3))" in stage_one(Profile())[1]


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
    assert shell.lines("slept") == []


def test_a_requeue_that_slurm_refuses_at_first(shell: Shell) -> None:
    shell.tool("sleep", 'echo "$*" >>slept; kill -TERM $$')  # as a signal to all of a job does
    refusal = 'echo "Job/step already completing or completed" >&2; exit 1'
    shell.answers("scontrol", refusal, refusal, 'echo "$*" >>requeued')
    assert shell.run(3)[0] == 0
    assert shell.requeued == "requeue 7"
    assert shell.lines("slept") == ["60", "2", "4"]


def test_a_requeue_that_slurm_refuses_for_good(shell: Shell) -> None:
    shell.tool("scontrol", 'echo "$*" >>tried; echo "Access/permission denied" >&2; exit 1')
    code, output = shell.run(3)
    assert code == 3
    assert "Access/permission denied" in output
    assert output.splitlines()[-1] == (
        "stopped with exit code 3: not requeued; submit it again, it goes on where it stopped"
    )
    assert shell.lines("tried") == ["requeue 7"] * 5


def test_a_job_cancelled_between_two_tries_to_requeue_stays_cancelled(shell: Shell) -> None:
    shell.tool("scontrol", 'echo "$*" >>tried; kill -TERM $PPID; exit 1')
    assert shell.run(3)[0] == 143
    assert shell.lines("tried") == ["requeue 7"]


@pytest.mark.parametrize(
    ("visible", "local_rank"), [("0,1", 1), ("0", 0), ("3", 0), ("GPU-8a,GPU-8b", 1), (None, 1)]
)
def test_a_rank_takes_a_gpu_that_it_sees(
    shell: Shell, visible: str | None, local_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    bound = "" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
    shell.tool(
        "srun",
        "while [[ $1 == --* ]]; do shift; done\n"
        f'SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NTASKS=2 {bound} exec "$@"',
    )
    show = ("bash", "-c", 'echo "$RANK $LOCAL_RANK $WORLD_SIZE ${SLURM_EXPORT_ENV-all}"')
    job = Job(name="a", stage="train-student", commands=(show,), run=Path("runs/a"))
    code, output = shell.run_job(job, Profile(gpus=2), {"SLURM_EXPORT_ENV": "NONE"})
    assert (code, output) == (0, f"1 {local_rank} 2 all\n")


def test_paths_of_the_profile_are_expanded_on_the_node(shell: Shell) -> None:
    shell.tool("inside", 'printf "<%s>" "$@"; echo')
    profile = Profile(
        prologue=("export IMAGES='/my images'",),
        container=("inside", "--bind", "~/data:/data", "--bind=$WORK/a b", "${IMAGES}/$1 *.sif"),
        interkd="~/venv/bin/interkd",
    )
    job = Job(name="s", stage="score", commands=(("interkd", "score", "--out", "~/$WORK"),))
    text = text_of(job, profile).replace(" interkd ", ' "$HOME"/venv/bin/interkd ')
    assert 'run inside \\\n  --bind "$HOME"/data:/data \\\n' in text
    (shell.folder / "b.sbatch").write_text(text)
    home, work = "/home/it's me", "/the work"
    env = {**os.environ, "HOME": home, "WORK": work, "PATH": f"{shell.folder}/bin:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "b.sbatch"], cwd=shell.folder, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        f"<--bind><{home}/data:/data><--bind={work}/a b></my images/$1 *.sif>"
        f"<{home}/venv/bin/interkd><score><--out><~/$WORK>\n"
    )


def test_what_no_shell_expands_is_expanded_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WORK", "/my work")
    (tmp_path / "p.yaml").write_text(
        "sbatch: [--mail-user=$USER_NAME@x.org]\nstages: {score: {sbatch: ['--error=$WORK/%j']}}\n"
    )
    with pytest.raises(ConfigError, match="the variable USER_NAME is not set"):
        read_profile(Path("~/p.yaml"))
    monkeypatch.setenv("USER_NAME", "me")
    options = read_profile(Path("~/p.yaml")).resources("score").sbatch
    assert options == ("--mail-user=me@x.org", "--error='/my work'/%j")
    road = {
        "name": "a",
        "folder": "~/slurm",
        "cache": {"teacher": "torchscript:~/t.pt", "manifest": "${WORK}/m", "out": "~/s.zarr"},
        "students": [{"name": "s", "config": "s.yaml", "set": ["data.tokenizer=$WORK/t"]}],
    }
    (tmp_path / "road.yaml").write_text(yaml.safe_dump(road))
    read = read_road(tmp_path / "road.yaml")
    assert (read.folder, read.cache.out) == (tmp_path / "slurm", tmp_path / "s.zarr")
    assert (read.cache.teacher, str(read.cache.manifest)) == (
        f"torchscript:{tmp_path}/t.pt",
        "/my work/m",
    )
    assert read.students[0].set == ("data.tokenizer=/my work/t",)
    job = Job(name="s", stage="score", commands=(("interkd", "score"),))
    (written,) = write_scripts([job], Profile(), Path("~/my slurm"))
    assert written.script == tmp_path / "my slurm" / "s.sbatch"
    assert f"--output='{tmp_path}/my slurm/logs/s-%j.log'" in written.script.read_text()


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
    """A working folder with a student's settings and two teachers, no profile and no Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    data = {"train_manifest": str(tone_corpus.train), "dev_manifest": str(tone_corpus.dev)}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({"data": data, "out": "runs/a"}))
    for teacher in ("t", "my teacher"):
        (tmp_path / teacher).mkdir()
    return tmp_path


def write_sweep(desk: Path, corpus: Any, changes: dict[str, Any], **student: Any) -> None:
    """Writes `sweep.yaml` over the desk's student, which departs from it in some settings."""
    base = yaml.safe_load((desk / "student.yaml").read_text())
    (desk / "base.yaml").write_text(yaml.safe_dump({**base, **student}))
    sweep = {"base": "base.yaml", "out": "runs", "score": {"dev": str(corpus.dev)}, **changes}
    (desk / "sweep.yaml").write_text(yaml.safe_dump(sweep))


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
    (desk / "s.zarr").mkdir()
    assert run("train-student", *words, "--store", "s.zarr", "--folder", "jobs") == 0
    text = (desk / "jobs" / "train-student-a.sbatch").read_text()
    assert "kill -s USR1" in text
    assert "--resume $resume" not in text
    assert "-e runs/a/config.yaml" in text
    assert (desk / "jobs" / "logs").is_dir()
    words = ["--checkpoint", "runs/a", "--manifest", str(tone_corpus.dev), "--out", "scores/a b"]
    assert run("score", *words, "--name", "mine") == 0
    assert "--out 'scores/a b'" in (desk / "slurm" / "mine.sbatch").read_text()
    write_sweep(desk, tone_corpus, {}, store="s.zarr")
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
        (
            ["cache-teacher", *options, "--teacher", "torcscript:t.pt"],
            "unknown kind of teacher; expected interkd | python | torchaudio | torchscript, "
            "got 'torcscript'; did you mean 'torchscript'?",
        ),
        (["cache-teacher", *options, "--teacher", "interkd:"], "expected interkd:..., got"),
        (
            ["cache-teacher", *options, "--teacher", "torchscript:gone.pt"],
            "teacher torchscript:gone.pt; expected a TorchScript file, got nothing at gone.pt; ",
        ),
        (
            ["train-student", "--config", "student.yaml"],
            "recipe 'inter-kd' learns from a teacher; expected a teacher cache",
        ),
        (
            ["train-student", "--config", "student.yaml", "--store", "gone.zarr"],
            "store; expected a teacher cache, got nothing at gone.zarr; make it with",
        ),
    ):
        assert run(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_a_sweep_without_the_store_that_it_needs(
    desk: Path, tone_corpus: Any, capsys: Capture
) -> None:
    runs = [{"name": "ctc", "set": {"objective": {"recipe": "ctc"}}}, {"name": "kd"}]
    write_sweep(desk, tone_corpus, {"runs": runs})
    (desk / "road.yaml").write_text(yaml.safe_dump(road(tone_corpus, sweeps=["sweep.yaml"])))
    for arguments in (["sweep", "sweep.yaml"], ["pipeline", "road.yaml"]):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert "run 'kd': recipe 'inter-kd' learns from a teacher; expected" in error
    write_sweep(desk, tone_corpus, {"runs": runs}, store="other.zarr")
    for arguments in (["sweep", "sweep.yaml"], ["pipeline", "road.yaml"]):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert "run 'kd': store; expected a teacher cache, got nothing at" in error
    assert not (desk / "slurm").exists()


def test_a_sweep_is_looked_at_as_far_as_it_will_run(
    desk: Path, tone_corpus: Any, capsys: Capture
) -> None:
    runs = [{"name": "ctc", "set": {"objective": {"recipe": "ctc"}}}, {"name": "kd"}]
    write_sweep(desk, tone_corpus, {"runs": runs})
    assert run("sweep", "sweep.yaml", "--only", "ctc") == 0
    assert run("sweep", "sweep.yaml", "--list") == 0
    assert run("sweep", "sweep.yaml", "--only", "nothing") == 2
    assert "no run fits 'nothing'" in capsys.readouterr().err
    write_sweep(desk, tone_corpus, {"runs": runs[:1], "teacher": {"dev": "gone.trn"}})
    assert run("sweep", "sweep.yaml") == 2
    assert "teacher.dev: there is no gone.trn" in capsys.readouterr().err
    assert run("sweep", "sweep.yaml", "--after", "7") == 0


def test_the_index_has_no_gpu_of_the_arrays(desk: Path, tone_corpus: Any) -> None:
    options = cache_options(tone_corpus)
    for device, kept in (("cuda:1", False), ("cpu", True)):
        for words in (["--device", device], [f"--device={device}"]):
            assert run("cache-teacher", *options, *words) == 0
            array, index = (
                (desk / "slurm" / f"{name}-s.zarr.sbatch").read_text()
                for name in ("cache-teacher", "index")
            )
            assert device in array
            assert (device in index) == kept


def test_a_store_that_an_earlier_job_makes(desk: Path, tone_corpus: Any) -> None:
    write_sweep(desk, tone_corpus, {}, store="s.zarr")
    (desk / "road.yaml").write_text(yaml.safe_dump(road(tone_corpus, sweeps=["sweep.yaml"])))
    assert run("pipeline", "road.yaml") == 0
    assert run("sweep", "sweep.yaml", "--after", "7") == 0
    words = ["train-student", "--config", "student.yaml", "--store", "s.zarr"]
    assert run(*words, "--after", "7") == 0
    words = ["cache-teacher", *cache_options(tone_corpus), "--teacher", "interkd:comes"]
    assert run(*words, "--after", "7") == 0


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
        (
            {"cache": {"teacher": "interkd:t", "manifest": "gone", "out": "s"}},
            "cannot read the manifest",
        ),
        ({"cache": {"teacher": "t", "wait": False}}, "unknown setting 'cache.wait'"),
        ({"cache": {"teacher": "t", "mas": 1}}, "did you mean 'mass'?"),
        (
            {"cache": {"teacher": "torcscript:nope.pt", "manifest": "m", "out": "s"}},
            "did you mean 'torchscript'?",
        ),
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


def plain(state: str) -> str:
    """A job as scontrol shows it."""
    return f"JobId=5 JobState={state} Reason=None Restarts=0 ExitCode=0:0"


def saying(*lines: str) -> str:
    """The line of bash that says so."""
    return f"printf '%s\\n' {shlex.join(lines)}"


def followed(job: Submitted) -> tuple[list[str], list[Failure]]:
    said: list[str] = []
    return said, follow([job], poll_seconds=0.01, message=said.append)


def test_an_array_is_followed_to_its_end(queue: Shell) -> None:
    line = "JobId=%s ArrayJobId=5 ArrayTaskId=%s JobState=%s Reason=%s Restarts=%s ExitCode=%s"
    looks = [
        [line % (5, "0-1%1", "PENDING", "Resources", 0, "0:0")],
        [line % (6, 0, "RUNNING", "None", 0, "0:0"), line % (5, 1, "RUNNING", "None", 0, "0:0")],
        [line % (6, 0, "PENDING", "BeginTime", 1, "0:0"), line % (5, 1, "FAILED", "", 0, "2:0")],
        [line % (6, 0, "COMPLETED", "None", 1, "0:0"), line % (5, 1, "FAILED", "", 0, "2:0")],
    ]
    queue.answers("scontrol", *(saying(*lines) for lines in looks))
    (queue.folder / "a-5_1.log").write_text("much\ninterkd: error: the last line\n\n")
    said, failures = followed(submitted(queue.folder, tasks=2))
    assert said == [
        "a (5): 2 pending (Resources)",
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
    assert followed(submitted(queue.folder)) == (
        [
            "Slurm's controller does not answer; got Unable to contact it; still waiting",
            "a (5): completed",
        ],
        [],
    )


def test_a_host_that_cannot_ask_the_controller(desk: Path) -> None:
    with pytest.raises(ClusterError, match="scontrol is not on the PATH; the jobs are in the"):
        followed(submitted(desk))


def test_a_controller_that_hangs_for_a_while(queue: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "_ANSWER_SECONDS", 0.5)
    queue.answers("scontrol", "exec /bin/sleep 60", saying(plain("COMPLETED")))
    said, failures = followed(submitted(queue.folder))
    assert "scontrol does not answer" in said[0]
    assert (said[1:], failures) == (["a (5): completed"], [])


@pytest.mark.parametrize(
    "state",
    [
        *("SUSPENDED", "STAGE_OUT", "SIGNALING", "RESV_DEL_HOLD", "REQUEUE_FED", "REQUEUE_HOLD"),
        *("SPECIAL_EXIT", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL", "POWER_UP_NODE"),
        *("EXPEDITING", "COMPLETING", "A_STATE_OF_TOMORROW"),
    ],
)
def test_a_state_that_is_no_end(queue: Shell, state: str) -> None:
    queue.answers("scontrol", *[saying(plain(state))] * 3, saying(plain("COMPLETED")))
    assert followed(submitted(queue.folder)) == (
        [f"a (5): {state.lower()}", "a (5): completed"],
        [],
    )


@pytest.mark.parametrize(
    "state",
    [
        *("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "TIMEOUT"),
    ],
)
def test_a_state_that_is_an_end(queue: Shell, state: str) -> None:
    queue.answers("scontrol", saying(plain(state)))
    assert [failure.reason for failure in followed(submitted(queue.folder))[1]] == [state.lower()]


FORGOTTEN = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'


def task(number: int, state: str, code: int = 0) -> str:
    ids = f"JobId={6 + number} ArrayJobId=5 ArrayTaskId={number}"
    return f"{ids} JobState={state} ExitCode={code}:0"


def test_a_task_that_failed_and_is_forgotten_before_the_others_end(queue: Shell) -> None:
    queue.answers(
        "scontrol",
        saying(task(0, "FAILED", 2), task(1, "RUNNING")),
        saying(task(1, "RUNNING")),
        saying(task(1, "COMPLETED")),
        FORGOTTEN,
    )
    said, failures = followed(submitted(queue.folder, tasks=2))
    assert said == ["a (5): 1 failed, 1 running", "a (5): 1 completed, 1 failed"]
    assert [failure.reason for failure in failures] == ["failed, exit code 2 (1 of 2 tasks)"]


@pytest.mark.parametrize(
    ("sacct", "reasons"),
    [
        ("5_0|COMPLETED|0:0\n5_1|RUNNING|0:0", []),
        ("5_0|TIMEOUT|0:0\n5_1|RUNNING|0:0", ["timeout (1 of 2 tasks)"]),
        ("5_1|RUNNING|0:0", ["Slurm has forgotten it"]),
        ("5_[0-1]|PENDING|0:0", ["Slurm has forgotten it"]),  # it lags, but not for ever
    ],
)
def test_a_task_that_is_forgotten_before_its_end_was_seen(
    queue: Shell, sacct: str, reasons: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_module, "_ACCOUNTING_SECONDS", 0.2)
    queue.answers(
        "scontrol",
        saying(task(0, "RUNNING"), task(1, "RUNNING")),
        *[saying(task(1, "RUNNING"))] * 30,
        saying(task(1, "COMPLETED")),
    )
    queue.tool("sacct", saying(sacct))
    failures = followed(submitted(queue.folder, tasks=2))[1]
    assert [failure.reason.partition(",")[0] for failure in failures] == reasons


def test_accounting_that_lags_behind(queue: Shell) -> None:
    queue.tool("scontrol", FORGOTTEN)
    silent = 'echo "Connection refused" >&2; exit 1'
    queue.answers("sacct", silent, saying("5|RUNNING|0:0"), saying("5|COMPLETED|0:0"))
    assert followed(submitted(queue.folder)) == (["a (5): unknown", "a (5): completed"], [])


def test_a_job_whose_end_was_seen_once_may_be_forgotten(queue: Shell) -> None:
    queue.answers("scontrol", saying(plain("COMPLETED")), "echo Job 5 not found; exit 1")
    assert followed(submitted(queue.folder)) == (["a (5): completed"], [])


def test_an_answer_that_says_nothing_of_the_job_is_no_end(queue: Shell) -> None:
    queue.answers("scontrol", "true", "printf '\\xff\\n'", saying(plain("FAILED")))
    said, failures = followed(submitted(queue.folder))
    assert said[1:] == ["a (5): failed"]
    assert len(failures) == 1


@pytest.mark.parametrize(
    ("output", "job_id", "cluster"),
    [
        ("5", "5", None),
        ("5;north", "5", "north"),
        ("Welcome!\n * 12 GPU hours left\n\n  5\nSee you.", "5", None),
        ("Submitted batch job 5", "5", None),
        ("Submitted batch job 5 on cluster north", "5", "north"),
    ],
)
def test_the_number_in_what_sbatch_says(
    queue: Shell,
    output: str,
    job_id: str,
    cluster: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue.tool("sinfo", "exit 1")
    queue.tool("sbatch", f'echo "$LC_ALL" >locale; {saying(output)}')
    queue.tool("scontrol", f'echo "$*" >>asked; {saying(plain("COMPLETED"))}')
    monkeypatch.delenv("LC_ALL", raising=False)
    (job,) = submit([submitted(queue.folder).written], Profile())
    assert (job.job_id, job.cluster) == (job_id, cluster)
    assert queue.lines("locale") == [""]  # the job's, which is the user's
    assert followed(job)[1] == []
    option = "" if cluster is None else f"--clusters={cluster} "
    assert queue.lines("asked")[0] == f"{option}--oneliner show job 5"


@pytest.mark.parametrize(
    ("sbatch", "message"),
    [
        ("echo hello", "expected one line JOBID or JOBID;CLUSTER, got 'hello'; the job may be in"),
        ("echo 5; echo 6", r"got '5\n6'"),
        ('echo "sbatch: error: no" >&2; exit 1', "sbatch refuses a.sbatch; got no; mend the"),
        ("exec /bin/sleep 60", "0.5 seconds; the job may be in the queue all the same"),
    ],
)
@pytest.mark.parametrize("scancel", [True, False])
def test_a_road_that_cannot_be_submitted_whole_is_taken_back(
    queue: Shell, sbatch: str, message: str, scancel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit_module, "_ANSWER_SECONDS", 0.5)
    queue.tool("sinfo", "exit 1")
    queue.answers("sbatch", "echo '4;north'", sbatch)
    queue.tool("scancel", f'echo "$*" >>cancelled; exit {0 if scancel else 1}')
    job = submitted(Path()).written
    with pytest.raises(ClusterError) as caught:
        submit([replace(job, job=replace(job.job, name="first")), job], Profile())
    assert message in str(caught.value)
    assert queue.lines("cancelled") == ["--clusters=north 4"]
    last = "were cancelled again" if scancel else "in vain: scancel --clusters=north 4"
    assert str(caught.value).endswith(last)


@pytest.mark.parametrize("option", ["--clusters=north", "-M north", "-p gpu", "--qos=long"])
def test_a_limit_that_sbatch_options_may_change_is_left_to_slurm(queue: Shell, option: str) -> None:
    queue.tool("sinfo", "echo 'debug* 10:00'")
    queue.tool("sbatch", "echo 5")
    job = submitted(queue.folder).written
    with pytest.raises(ConfigError, match="at most 10:00") as caught:
        submit([job], Profile(time="01:00:00"))
    assert "a short time does" not in str(caught.value)  # scoring would begin anew
    sweep = replace(job, job=replace(job.job, stage="sweep"))
    with pytest.raises(ConfigError, match="a short time does"):
        submit([sweep], Profile(time="01:00:00"))
    assert len(submit([job], Profile(time="01:00:00", sbatch=(option,)))) == 1


def test_workers_are_waited_for_while_slurm_does_not_answer(queue: Shell) -> None:
    from interkd.pipeline.cluster.dask_check import SlurmCheck

    cluster = SimpleNamespace(
        scheduler_info={"workers": {}}, workers={"a": SimpleNamespace(job_id="5")}
    )
    said: list[str] = []
    check = SlurmCheck(cluster, queue.folder, said.append)
    queue.tool("squeue", 'echo "Unable to contact slurm controller" >&2; exit 1')
    for _ in range(10):
        check()
    assert said == [
        "Slurm's controller does not answer; got Unable to contact slurm controller; still waiting"
    ]
    queue.tool("squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    for _ in range(3):
        check()
    with pytest.raises(ClusterError, match="every Slurm job ended"):
        check()


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
