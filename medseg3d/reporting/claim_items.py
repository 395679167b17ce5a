"""The items of the CLAIM 2024 checklist, and what an answer to one is."""

from __future__ import annotations

from dataclasses import dataclass

Answers = dict[int, tuple[str, str]]
"""By item: what files say, and what they do not say of what the item asks; empty where it is answered in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item: its ``answer`` is empty where only authors know; ``add`` is what they add to it. ``study`` is what they said already."""

    number: int
    section: str
    topic: str
    answer: str = ""
    add: str = ""
    study: str = ""

    @property
    def status(self) -> str:
        """``filled`` by what the software knows, ``filled by study.toml``, ``filled in part`` or ``authors``."""
        if self.answer and not self.add:
            return "filled"
        if self.study:
            return "filled by study.toml"
        return "filled in part" if self.answer else "authors"

    @property
    def text(self) -> str:
        """Both answers."""
        return " ".join(part for part in (self.answer, self.study) if part)


TOPICS: tuple[tuple[str, str], ...] = (
    ("Title", "The kind of AI method is named"),
    ("Abstract", "Structured summary of design, methods, results and conclusions"),
    ("Introduction", "Background, and the intended use and role of the method"),
    ("Introduction", "Aims, objectives and hypotheses"),
    ("Study design", "Prospective or retrospective"),
    ("Study design", "Goal of the study"),
    ("Data", "Sources of the data"),
    ("Data", "Criteria of inclusion and exclusion"),
    ("Data", "Preprocessing"),
    ("Data", "Choice of parts of the data"),
    ("Data", "De-identification"),
    ("Data", "Handling of missing data"),
    ("Data", "Acquisition of the images"),
    ("Reference standard", "Definition of the method"),
    ("Reference standard", "Rationale for choosing it"),
    ("Reference standard", "Who annotated, with which qualification and tools"),
    ("Reference standard", "Annotation of the test set"),
    ("Reference standard", "Variability within and between annotators, and how it was handled"),
    ("Partitions", "How data were assigned to partitions"),
    ("Partitions", "Level at which partitions are disjoint"),
    ("Testing data", "Intended sample size"),
    ("Model", "Detailed description of the model"),
    ("Model", "Software, libraries and versions"),
    ("Model", "Initialization of the parameters"),
    ("Training", "Details of the training"),
    ("Training", "How the final model was selected"),
    ("Training", "Ensembling"),
    ("Evaluation", "Metrics"),
    ("Evaluation", "Measures of uncertainty and significance"),
    ("Evaluation", "Robustness or sensitivity"),
    ("Evaluation", "Explainability or interpretability"),
    ("Evaluation", "Evaluation on internal data"),
    ("Evaluation", "Testing on external data"),
    ("Evaluation", "Registration of a clinical trial"),
    ("Results, data", "Numbers of patients or images included and excluded"),
    ("Results, data", "Characteristics of the cases in each partition"),
    ("Results, performance", "Performance with its uncertainty, on all partitions"),
    ("Results, performance", "Estimates of diagnostic performance and their precision"),
    ("Results, performance", "Analysis of failures"),
    ("Discussion", "Limitations"),
    ("Discussion", "Implications for practice, intended use"),
    ("Other", "Where the full protocol or further technical details are"),
    ("Other", "Availability of software, model and data"),
    ("Other", "Funding and its role"),
)
"""Section and topic of items 1 to 44."""
