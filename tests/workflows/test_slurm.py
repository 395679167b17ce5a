"""The jobs that are written for Slurm, run by a stand-in for ``sbatch`` in the order in which they are submitted."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from medseg3d.commandline.cli import main
from medseg3d.errors import InputError
from medseg3d.options import TrainingOptions, TrainOptions, arguments_of
from medseg3d.workflows.slurm import slurm

SBATCH = """#!/bin/bash
# runs a job at once, each task of an array, and refuses it where a job that it depends on is not known or failed
number=$(($(ls "$JOBS" | wc -l) + 1))
for word in "$@"; do
  case "$word" in --dependency=*)
    for job in $(echo "${word#*afterok:}" | tr : ' '); do
      [ "$(cat "$JOBS/$job")" = 0 ] || { echo "job $job did not end well" >&2; exit 1; }
    done ;;
  esac
done
file="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-//p' "$file")
code=0
for task in $(seq 0 "${last:-0}"); do SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_JOB_ID=$number bash "$file" > /dev/null || code=1; done
echo $code > "$JOBS/$number"
echo "$number;cluster"
"""


@pytest.fixture(scope="module")
def planned(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with a plan."""
    root = Path(shutil.copytree(tiny_source, tmp_path_factory.mktemp("slurm") / "Balls"))
    assert main(["plan", str(root), "--planner", str(root / "tiny.toml"), "-q"]) == 0
    return root


def submitted(submit: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """What ``submit.sh`` does where ``sbatch`` is the stand-in."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(SBATCH, encoding="utf-8")
    (tmp_path / "bin/sbatch").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "JOBS": str(tmp_path / "jobs")}
    return subprocess.run([submit], env=environment, capture_output=True, encoding="utf-8", check=False)


def note(tmp_path: Path, *, failing: str = "none", code: int = 2) -> str:
    """A command that notes its words; it ends with ``code`` where it is called with the word ``failing``."""
    file = tmp_path / "note"
    file.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/said\nfor word in "$@"; do [ "$word" != {failing} ] || exit {code}; done\n', encoding="utf-8"
    )
    file.chmod(0o755)
    return str(file)


def test_one_fold_is_a_job_and_each_stage_waits_for_the_one_before(planned: Path, tmp_path: Path) -> None:
    made = slurm(planned, output=tmp_path / "files", command=note(tmp_path), folds=[0, 1], epochs=7, predict_jobs=2, sbatch="--account=a")
    done = submitted(made.submit, tmp_path)
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in (tmp_path / "said").read_text(encoding="utf-8").splitlines()]
    assert [words[0] for words in said] == ["preprocess", "train", "train", "select", "predict", "predict", "report"]
    assert said[0][said[0].index("-c") + 1 :] == ["3d_fullres"]  # what is trained, and not the plan's 2d as well
    assert [words[words.index("--fold") + 1] for words in said[1:3]] == ["0", "1"]
    assert all("--epochs 7" in " ".join(words) for words in said[1:3])
    assert [words[words.index("--part") + 1] for words in said[4:6]] == ["1/2", "2/2"]
    assert all("#SBATCH --account=a\n" in job.read_text(encoding="utf-8") for job in made.jobs)


def test_options_stand_as_they_were_given_and_blanks_in_names_are_quoted(planned: Path, tmp_path: Path) -> None:
    given = {"sbatch": "-p gpu --comment='two words'", "sbatch_train": "--gres gpu:1"}
    made = slurm(planned, output=tmp_path / "it's here", command="medseg3d", folds=[0], **given)
    lines = made.jobs[1].read_text(encoding="utf-8").splitlines()
    words = [shlex.split(line.removeprefix("#SBATCH ")) for line in lines if line.startswith("#SBATCH ")]
    assert ["-p", "gpu", "--comment=two words"] in words
    assert ["--gres", "gpu:1"] in words
    assert [f"--output={tmp_path}/it's here/train-3d_fullres-%A_%a.log"] in words


def test_nothing_is_submitted_after_a_fold_that_failed(planned: Path, tmp_path: Path) -> None:
    made = slurm(planned, output=tmp_path / "files", command=note(tmp_path, failing="1"), folds=[0, 1])
    done = submitted(made.submit, tmp_path)
    assert done.returncode == 1
    assert "did not end well" in done.stderr
    assert "select" not in (tmp_path / "said").read_text(encoding="utf-8")


@pytest.mark.fault("B", "a case that fails in a job of Slurm (exit 3)", "the jobs behind it run all the same; its log lists the case")
@pytest.mark.parametrize("verb", ["preprocess", "train", "predict"])
def test_jobs_go_on_where_only_some_cases_failed(planned: Path, tmp_path: Path, verb: str) -> None:
    made = slurm(planned, output=tmp_path / "files", command=note(tmp_path, failing=verb, code=3), folds=[0, 1])
    done = submitted(made.submit, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text(encoding="utf-8").splitlines()[-1].startswith("report")


def test_a_training_whose_time_is_over_saves_and_is_queued_again(planned: Path, tmp_path: Path) -> None:
    training = tmp_path / "train"
    training.write_text(f"#!/bin/bash\ntrap 'exit 143' TERM\ntouch {tmp_path}/began\nwhile true; do sleep 0.05; done\n", encoding="utf-8")
    training.chmod(0o755)
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/queued\n', encoding="utf-8")
    (tmp_path / "scontrol").chmod(0o755)
    made = slurm(planned, output=tmp_path / "files", command=str(training), folds=[0])
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "5"}
    with subprocess.Popen(["bash", made.jobs[1]], env=environment) as job:
        while not (tmp_path / "began").exists():
            assert job.poll() is None
        job.send_signal(10)  # SIGUSR1, as --signal=B:USR1 sends it
        assert job.wait(timeout=20) == 143
    assert (tmp_path / "queued").read_text(encoding="utf-8") == "requeue 5_0\n"


def test_without_a_plan_there_are_no_folds_to_write(tiny: Path) -> None:
    with pytest.raises(InputError, match="Run medseg3d plan first"):
        slurm(tiny)


def test_options_become_the_words_that_give_them() -> None:
    options = TrainOptions(epochs=3, hours=0.5, restart=True, devices="cpu:2")
    words = arguments_of(options, TrainingOptions)
    assert words == ["--epochs", "3", "--hours", "0.5", "--devices", "cpu:2", "--restart"]
    assert arguments_of(TrainOptions(), TrainOptions) == []


@pytest.mark.slow
def test_the_jobs_end_in_a_report(tiny: Path, tmp_path: Path) -> None:
    assert main(["plan", str(tiny), "--planner", str(tiny / "tiny.toml"), "-q"]) == 0
    assert main(["slurm", str(tiny), "--folds", "0", "1", "--epochs", "1", "-q"]) == 0
    done = submitted(tiny / "medseg3d-work/slurm/submit.sh", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tiny / "medseg3d-work/report.html").exists()
    assert len(list((tiny / "medseg3d-work/predictions").glob("*.nii.gz"))) == 2
