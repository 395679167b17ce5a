"""The options of every command, said once: frozen records whose fields carry type, default, range, unit and meaning.

A record is put together from parts: a ``RunOptions`` is a ``PlanningOptions`` and a ``TrainingOptions``. A new option is a field
here, and the code that obeys it: the parser, the keywords in Python and ``docs/reference/command-line.md`` follow.
"""

from medseg3d.options.comparing import CompareOptions
from medseg3d.options.correcting import CorrectOptions, ProposeOptions
from medseg3d.options.dicom import DicomOptions, OutputType, SegmentationType
from medseg3d.options.distilling import DistillOptions
from medseg3d.options.listening import ListenOptions
from medseg3d.options.measuring import MeasureOptions, StructureOptions
from medseg3d.options.option import Field, Option, Options, arguments_of, fields_of
from medseg3d.options.planning import DatasetOptions, PlanningOptions, PlanOptions, PreprocessOptions
from medseg3d.options.prediction import (
    ExportOptions,
    FoldChoice,
    LevelOptions,
    MemberOptions,
    MirroringOptions,
    ModelOptions,
    PredictOptions,
    ProbabilityFormat,
    SelectOptions,
)
from medseg3d.options.reproducing import ReproduceOptions
from medseg3d.options.resources import CasesOptions, DeviceOptions, OutputOptions, SeedOptions
from medseg3d.options.run import RunOptions
from medseg3d.options.serving import ServeOptions, ServerOptions
from medseg3d.options.slurm import SlurmOptions
from medseg3d.options.training import BatchOptions, FindLrOptions, TrainingOptions, TrainOptions, TuningOptions, ValidateOptions

__all__ = [
    "BatchOptions",
    "CasesOptions",
    "CompareOptions",
    "CorrectOptions",
    "DatasetOptions",
    "DeviceOptions",
    "DicomOptions",
    "DistillOptions",
    "ExportOptions",
    "Field",
    "FindLrOptions",
    "FoldChoice",
    "LevelOptions",
    "ListenOptions",
    "MeasureOptions",
    "MemberOptions",
    "MirroringOptions",
    "ModelOptions",
    "Option",
    "Options",
    "OutputOptions",
    "OutputType",
    "PlanOptions",
    "PlanningOptions",
    "PredictOptions",
    "PreprocessOptions",
    "ProbabilityFormat",
    "ProposeOptions",
    "ReproduceOptions",
    "RunOptions",
    "SeedOptions",
    "SegmentationType",
    "SelectOptions",
    "ServeOptions",
    "ServerOptions",
    "SlurmOptions",
    "StructureOptions",
    "TrainOptions",
    "TrainingOptions",
    "TuningOptions",
    "ValidateOptions",
    "arguments_of",
    "fields_of",
]
