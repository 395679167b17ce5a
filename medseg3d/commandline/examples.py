"""What each command is typed like, and which page of the documentation is about it; both stand in its ``--help``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """``lines`` are commands as they are typed, each with what it does after a ``#``; ``page`` is a file of the documentation."""

    page: str
    lines: tuple[str, ...]


USAGES: Mapping[str, Usage] = {
    "run": Usage(
        "start.md",
        (
            "medseg3d run Liver  # ask for names where there are none, then everything up to the report",
            "medseg3d run Liver --dry-run  # only say what would be done, how long it takes, and how much disk",
            "medseg3d run Liver --hours 8  # all training within eight hours",
            "medseg3d run Liver --planner small --folds 0 --hours 0.5  # a first impression without a GPU",
            "medseg3d run Liver Spleen -w organs  # two datasets that share one network",
        ),
    ),
    "plan": Usage(
        "concepts/fingerprint-and-plan.md",
        (
            "medseg3d plan Liver --explain  # the reason for each number, and which networks suit the dataset",
            "medseg3d plan Liver --gpu-memory 24 --planner residual_m",
            "medseg3d plan Liver --labels 1=liver,2=tumor --channels CT",
            "medseg3d plan --fingerprint fingerprint.json  # without images",
        ),
    ),
    "preprocess": Usage(
        "concepts/data-flow.md",
        (
            "medseg3d preprocess Liver",
            "medseg3d preprocess Liver -c 3d_fullres --jobs 4 --max-ram 16",
        ),
    ),
    "train": Usage(
        "concepts/training.md",
        (
            "medseg3d train Liver --fold 0",
            "medseg3d train Liver --fold 0 --hours 2 --init model.medseg3d  # begin with the weights of a model",
            "medseg3d train Liver --fold all --epochs 200  # on every case, without validation",
        ),
    ),
    "validate": Usage("concepts/evaluation.md", ("medseg3d validate Liver --fold 0", "medseg3d validate Liver --fold 0 --tta off")),
    "find-lr": Usage("concepts/training.md", ("medseg3d find-lr Liver --fold 0",)),
    "select": Usage("concepts/evaluation.md", ("medseg3d select Liver",)),
    "compare": Usage(
        "how-to/compare-networks.md",
        ("medseg3d compare default small -d Liver --hours 1", "medseg3d compare default residual_m unet_plus_plus -d Liver --epochs 50"),
    ),
    "predict": Usage(
        "how-to/predict.md",
        (
            "medseg3d predict Liver -i new_images -o label_maps",
            "medseg3d predict -m liver.medseg3d -i scan.nii.gz -o labels.nii.gz",
            "medseg3d predict -m liver.medseg3d -i dicom_folder -o label_maps --tta off  # faster",
        ),
    ),
    "evaluate": Usage(
        "reference/metrics.md",
        ("medseg3d evaluate label_maps references", "medseg3d evaluate a.nii.gz b.nii.gz --json"),
    ),
    "propose": Usage(
        "how-to/correct.md",
        (
            "medseg3d propose Liver -i scans  # the ten scans most worth annotating, with predictions to start from",
            "medseg3d propose Liver -i scans -n 25 --diversity 0.8",
        ),
    ),
    "correct": Usage(
        "how-to/correct.md",
        (
            "medseg3d correct Liver  # what lies in Liver/corrections",
            "medseg3d correct Liver -i new_scans --hours 1  # also images that had no label before",
        ),
    ),
    "measure": Usage(
        "how-to/measure.md",
        (
            "medseg3d measure label_maps images  # volumes, places and intensities as CSV and JSON",
            "medseg3d measure label_maps --distances tumor:vessel  # the gap between two structures",
            "medseg3d measure seg.nii.gz scan.nii.gz --json",
        ),
    ),
    "distill": Usage(
        "how-to/distill.md",
        (
            "medseg3d distill Liver -m Liver/medseg3d-work -o LiverSoft  # a dataset for the student",
            "medseg3d distill Liver -m liver.medseg3d -o LiverSoft --share 0.3",
        ),
    ),
    "doctor": Usage("how-to/bad-data.md", ("medseg3d doctor Liver", "medseg3d doctor Liver --fix  # what was there before is kept")),
    "demo": Usage("start.md", ("medseg3d demo phantom", "medseg3d demo phantom --dicom")),
    "report": Usage("concepts/evaluation.md", ("medseg3d report Liver",)),
    "export": Usage(
        "how-to/share.md",
        ("medseg3d export Liver -o liver.medseg3d  # one file to share", "medseg3d export Liver -o liver.onnx"),
    ),
    "import": Usage(
        "how-to/nnunet-models.md",
        ("medseg3d import nnunet Dataset003_Liver -c 3d_fullres -o liver.medseg3d",),
    ),
    "info": Usage("how-to/share.md", ("medseg3d info liver.medseg3d", "medseg3d info Liver --json")),
    "serve": Usage(
        "how-to/serve.md",
        (
            "medseg3d serve liver.medseg3d  # then open the address that it prints",
            "medseg3d serve liver.medseg3d --port 9000 --device cuda",
        ),
    ),
    "listen": Usage(
        "how-to/hospital.md",
        (
            "medseg3d listen night.toml  # until Ctrl+C",
            "medseg3d listen night.toml --once  # what is there now, then end",
        ),
    ),
    "reproduce": Usage("how-to/track.md", ("medseg3d reproduce Liver/medseg3d-work",)),
    "slurm": Usage("how-to/cluster.md", ("medseg3d slurm Liver",)),
    "docs": Usage(
        "reference/command-line.md",
        (
            "medseg3d docs  # the pages that came with the package",
            "medseg3d docs predict  # a page, by its name or a command's",
            "medseg3d docs messages#the-disk  # a section of one",
        ),
    ),
    "completion": Usage(
        "reference/command-line.md",
        (
            'eval "$(medseg3d completion bash)"  # in ~/.bashrc',
            "medseg3d completion fish > ~/.config/fish/completions/medseg3d.fish",
        ),
    ),
}
"""By command, in the order of ``--help``."""


def examples_of(verb: str) -> str:
    """The end of a command's ``--help``."""
    usage = USAGES.get(verb)
    if usage is None:
        return ""
    lines = [line.partition("  # ") for line in usage.lines]
    shown = [f"  {command}" + (f"\n      {what}" if what else "") for command, _, what in lines]
    return "\n".join(["examples:", *shown, "", f"more: medseg3d docs {usage.page.removesuffix('.md').rpartition('/')[2]}"])
