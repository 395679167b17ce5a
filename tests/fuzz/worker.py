"""The process that meets the files: a line of JSON names one, a line of JSON says what became of it.

It may take a fixed amount of memory above what it holds when it begins, so that a file cannot take the machine.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from medseg3d.errors import CaseFailure, MedsegError


def main() -> None:
    """Answer until the input ends; arguments: MiB above the baseline, and ``torch`` where models are loaded."""
    limit_mib, with_torch = int(sys.argv[1]), "torch" in sys.argv
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what native code prints is no answer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.getLogger("medseg3d").setLevel(logging.CRITICAL)
    _warm(with_torch)
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + limit_mib * 2**20, resource.RLIM_INFINITY))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _warm(with_torch: bool) -> None:
    """Import what would be imported by the first file, so that it does not count as the file's memory."""
    import medseg3d.images.dicom
    import medseg3d.images.dicom_seg
    import medseg3d.images.nifti
    import medseg3d.workflows.doctor
    import medseg3d.workflows.plan

    if with_torch:
        import torch

        import medseg3d.workflows.predict  # noqa: F401

        torch.set_num_threads(1)


def _answer(task: dict[str, str]) -> dict[str, str]:
    try:
        message = CALLS[task["call"]](Path(task["folder"]), task)
    except MedsegError as error:
        return {"outcome": "refused", "message": str(error)[:500]}
    except MemoryError as error:
        if "of memory are free" in str(error):  # our own refusal, before anything was allocated
            return {"outcome": "refused", "message": str(error)}
        return {"outcome": "memory", "message": traceback.format_exc()[-2000:]}
    except Exception:  # whatever it is, it is counted
        return {"outcome": "traceback", "message": traceback.format_exc()[-3000:]}
    return {"outcome": "refused" if message else "read", "message": message}


def _image(folder: Path, task: dict[str, str]) -> str:
    from medseg3d import images

    path = folder / task["file"]
    path = path.parent if path.suffix == ".dcm" else path
    images.read_header(path)
    images.read_image(path)
    return ""


def _dataset(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.data.open_dataset import open_dataset

    return _reasons(open_dataset(folder).failures)


def _planner(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.planning import load_planner

    load_planner(str(folder / task["file"]))
    return ""


def _groups(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.training.folds import groups_from_csv

    groups_from_csv(folder / task["file"])
    return ""


def _label_names(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.data.label_names import names_beside

    names_beside(folder)
    return ""


def _listen(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.listening.rules import read_rules

    read_rules(folder / task["file"])
    return ""


def _codes(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.dicom_objects.codes import read_codes

    read_codes(folder / task["file"])
    return ""


def _model(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.models.loading import load_model

    load_model(folder / task["file"], device="cpu")
    return ""


def _plan_file(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.work_folder import WorkFolder

    WorkFolder(folder).read_plan()
    return ""


def _fingerprint_file(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.workflows.plan import plan_from_fingerprint

    plan_from_fingerprint(folder / task["file"])
    return ""


def _doctor(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.workflows.doctor import doctor

    report = doctor(folder, fix=task["call"] == "fix", num_workers=1)
    found = [finding.message for finding in report.findings if finding.severity == "error"]
    return _checked("; ".join(found))


def _plan(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.workflows.plan import plan

    return _reasons(plan(folder, jobs=1).failures)


def _predict(folder: Path, task: dict[str, str]) -> str:
    from medseg3d.options import PredictOptions
    from medseg3d.workflows.predict import predict

    source = folder / task["source"]
    result = predict(source, folder / "predicted", PredictOptions(device="cpu", tta="off"), model=Path(task["model"]))
    return _reasons(result.failures)


def _reasons(failures: tuple[CaseFailure, ...]) -> str:
    return _checked("; ".join(failure.reason for failure in failures))


def _checked(reasons: str) -> str:
    if "a defect of medseg3d" in reasons:
        raise AssertionError(reasons)
    return reasons


CALLS: dict[str, Callable[[Path, dict[str, str]], str]] = {
    "image": _image,
    "dataset": _dataset,
    "planner": _planner,
    "groups": _groups,
    "label names": _label_names,
    "listen": _listen,
    "codes": _codes,
    "model": _model,
    "plan file": _plan_file,
    "fingerprint file": _fingerprint_file,
    "doctor": _doctor,
    "fix": _doctor,
    "plan": _plan,
    "predict": _predict,
}

if __name__ == "__main__":
    main()
