"""Lists of labels and label maps that mean something else than they say: names, values and voxels in, findings out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg3d.data.side_names import phrases
from medseg3d.errors import LabelValueError
from medseg3d.labels import Labels
from medseg3d.wording import counted, listed

BACKGROUND_NAMES = phrases(
    "background, back ground, bg, bkg, backgrnd, background label, background and others, clear label, clear, none, nothing, "
    "no label, nolabel, null, zero, empty, exterior, outside, outer, air, rest, other, others, everything else, remainder, "
    "unlabeled, unlabelled, unknown, undefined, void, normal, healthy, non tumor, non tumour, no tumor, no tumour, "
    "non lesion, no lesion, no structure, not a structure, 0, label 0, class 0, hintergrund, fond, arriere plan, "
    "arrière plan, fondo, sfondo, fundo, achtergrond, bakgrund, baggrund, bakgrunn, tausta, tlo, tło, pozadi, pozadí, "
    "hatter, háttér, arka plan, фон, тло, 背景, 배경, latar belakang"
)
"""What the value 0 may be called, in words with single spaces."""
SURE_BACKGROUND_NAMES = phrases("background, back ground, hintergrund, arriere plan, arrière plan, sfondo, achtergrond, 背景, 배경, фон")
"""What no other value may be called."""
IGNORE_NAMES = phrases(
    "ignore, ignored, ignore label, ignore region, void, unlabeled, unlabelled, not labeled, not labelled, unannotated, "
    "not annotated, non annotated, not segmented, unsegmented, dont care, don't care, do not care"
)
"""Voxels that nobody has looked at are no structure that a network could learn."""
DOUBTFUL_NAMES = phrases("unknown, undefined, uncertain, unclassified, unassigned, unspecified")


def spoken(name: str) -> str:
    """A name in lower case, its words with single spaces between.

    >>> spoken(" Not_annotated "), spoken("non-tumor")
    ('not annotated', 'non tumor')
    """
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def name_findings(named: Mapping[int, str]) -> list[str]:
    """What is wrong with a list of label values and their names, a sentence each: 0 is the background, and nothing else is.

    >>> name_findings({0: "background", 1: "liver"})
    []
    """
    findings = []
    if 0 in named and spoken(named[0]) not in BACKGROUND_NAMES and "background" not in spoken(named[0]).split():
        findings.append(
            f"the label {named[0]!r} has the value 0, which is always the background: no voxel of it could be learned. Give it another "
            'value in the label files and here, and list "background": 0'
        )
    findings += [
        f"the label {name!r} has the value {value}, but the background is always 0: it would be trained as a structure. Give the voxels "
        'without a label the value 0 in the label files, and list "background": 0; if it is a structure, call it otherwise'
        for value, name in sorted(named.items())
        if value != 0 and spoken(name) in SURE_BACKGROUND_NAMES
    ]
    findings += [f"the label with the value {value} has no name" for value, name in sorted(named.items()) if not name.strip()]
    names: dict[str, list[int]] = {}
    for value, name in sorted(named.items()):
        names.setdefault(" ".join(name.split()), []).append(value)
    findings += [
        f"the values {' and '.join(map(str, values))} have the same name {name!r}; results are told by their names, so each needs its own"
        for name, values in names.items()
        if len(values) > 1 and name
    ]
    return findings


def is_ignore_label(name: str, value: int, values: Collection[int] = ()) -> bool:
    """Whether a label stands for voxels that nobody has annotated; value 0 is the background whatever it is called.

    That is a telling name, or one that says no more than a value that is a marker among ``values``: ``"255": 255``.

    >>> is_ignore_label("ignore", 3), is_ignore_label("255", 255, {0, 1, 255}), is_ignore_label("255", 255, {0, 255})
    (True, True, False)
    """
    return value != 0 and (spoken(name) in IGNORE_NAMES or (name.strip() == str(value) and value in marker_values(values)))


def name_doubts(named: Mapping[int, str]) -> list[str]:
    """A sentence for each name that may not be that of a structure."""
    return [
        f"The label {name!r} (value {value}) is trained as a structure like any other. If it marks voxels that nobody has annotated, leave "
        "such cases out or annotate them."
        for value, name in sorted(named.items())
        if value != 0 and spoken(name) in DOUBTFUL_NAMES
    ]


def repeated_keys(text: str) -> list[str]:
    """The keys that stand twice in one object of a JSON text, of which reading keeps only the last; empty for text that is no JSON.

    >>> repeated_keys('{"labels": {"liver": 1, "liver": 2}}')
    ['liver']
    """
    found: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> None:
        keys = [key for key, _ in pairs]
        found.extend(key for key in dict.fromkeys(keys) if keys.count(key) > 1)

    try:
        json.loads(text, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return []
    return found


# --- values that nobody has declared


MARKERS = (-1, -100, 254, 255, 32767, 65535)
"""Values that programs write where nobody has annotated, or that NumPy wraps -1 to."""


LARGEST_FIRST_LABEL = 20
"""Labels are counted from 1; what begins higher is a shade of gray."""


def marker_values(values: Collection[int]) -> tuple[int, ...]:
    """Values that more probably mean "not annotated" than a structure: below 0, or 255 and the like far beyond the others.

    A mask of 0 and 255 is a mask, and values in even steps up to 255 are shades of gray that somebody drew with.

    >>> marker_values({0, 1, 2, 255}), marker_values({0, 255}), marker_values({0, 127, 255}), marker_values({0, 1, -1})
    ((255,), (), (), (-1,))
    """
    others = [value for value in values if value not in (0, *MARKERS) and value > 0]
    if not others or min(others) > LARGEST_FIRST_LABEL:
        return ()
    return tuple(sorted(value for value in values if value < 0 or (value in MARKERS and value > 2 * max(others) + 1)))


def ignore_hint(unknown: Collection[int], labels: Labels) -> str:
    """What to add to a message about values that are not listed, where they may be those of voxels that nobody has annotated.

    >>> ignore_hint([255], Labels(names=("background", "liver"), values=(0, 1)))
    '; if 255 marks voxels that nobody has annotated, list "ignore": 255'
    """
    markers = marker_values({*unknown, *labels.file_values})
    is_one = labels.ignore is None and len(unknown) == 1 and set(unknown) <= set(markers)
    return f'; if {markers[0]} marks voxels that nobody has annotated, list "ignore": {markers[0]}' if is_one else ""


def marker_message(markers: Sequence[int]) -> str:
    """What such values may be, and what to do."""
    values = f"the label value{'s' if len(markers) > 1 else ''} {', '.join(map(str, markers))} beside small ones"
    return (
        f"{values}: that usually marks voxels nobody has annotated, which no network can learn, or is a mask of 0 and 255 among masks of 0 "
        "and 1. Annotate such cases completely, give the mask the value of the others, or leave them out; if it is a structure, name it "
        f"(--labels {markers[0]}=NAME, or labels.csv beside the images)"
    )


# --- voxels


MOST_LABELS_TRUSTED = 20
"""A label map with fewer values is believed without a look at its voxels."""
LEAST_EQUAL_NEIGHBORS = 0.4
"""Share of neighboring labelled voxels with the same value. Parcels of 30 voxels still have 0.6; images stay below 0.3."""


def refuse_image(labels: np.ndarray, source: str, *, num_values: int) -> None:
    """Raise :class:`LabelValueError` for a label map that is an image: many values, and neighbors that seldom agree.

    The most frequent value beside 0 does not count: the air around a body is even in an image as well.
    """
    if num_values > MOST_LABELS_TRUSTED and equal_neighbors(labels) < LEAST_EQUAL_NEIGHBORS:
        raise LabelValueError(
            f"{source}: the label map holds {counted(num_values, 'value')}, and neighboring voxels seldom have the same: it looks like an "
            "image. Put the case's label map in its place."
        )


def equal_neighbors(labels: np.ndarray) -> float:
    """The share of face neighbors with the same value, among those that are both labelled; 1 where there are none.

    The most frequent value does not count.
    """
    sample = labels[tuple(slice(max(0, (n - LARGEST_LOOK) // 2), (n + LARGEST_LOOK) // 2 + 1) for n in labels.shape)]
    flat: np.ndarray = sample.ravel()
    values, places = np.unique(flat[flat != 0], return_inverse=True)
    if not values.size:
        return 1.0
    dense = np.zeros(flat.shape, np.int64)
    dense[flat != 0] = places + 1
    most = int(np.bincount(places).argmax()) + 1
    dense = dense.reshape(sample.shape)
    equal = total = 0
    for axis in range(dense.ndim):
        first, second = np.delete(dense, -1, axis), np.delete(dense, 0, axis)
        both = (first > 0) & (second > 0) & (first != most) & (second != most)
        total += int(both.sum())
        equal += int((both & (first == second)).sum())
    return equal / total if total else 1.0


LARGEST_LOOK = 96
"""Voxels along each axis of the middle part that is looked at: a million voxels tell an image from a label map."""


# --- a background that is not 0


MOST_OF_AN_IMAGE = 0.8
"""A structure that fills more of its images than this share is rather what lies around all structures: a body that touches all sides
of its image fills less."""
USUAL_SHARE = 0.5
"""Of a label that is no such structure in the other cases."""
MIN_CASES_TO_CALL_INVERTED = 4
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """How much of a case its labels fill, by value; without the background, whose share is the rest."""

    name: str
    shares: Mapping[int, float]


def absent_background(cases: Sequence[Filled]) -> str:
    """What to do where no voxel of any case is background and one value fills most of the images; empty where all is well.

    >>> absent_background([Filled(name="a", shares={1: 0.9, 2: 0.1})])[:52]
    'no label map holds 0, which is the background, and 1'
    """
    if not cases or any(sum(case.shares.values()) < 1 - ROUNDING for case in cases):
        return ""
    value, share = _fullest(cases)
    if share <= USUAL_SHARE:
        return ""
    return (
        f"no label map holds 0, which is the background, and {value} fills {share:.0%} of the images: it would be trained as a structure. "
        f"Write 0 for the background in the label files; if {value} is a structure, name it (--labels {value}=NAME, or labels.csv beside "
        "the images)"
    )


def background_doubts(cases: Sequence[Filled], names: Mapping[int, str]) -> tuple[str, ...]:
    """A sentence for each value that may be the background, in all cases or in some of them."""
    known = [case for case in cases if case.shares]
    if not known:
        return ()
    value, share = _fullest(known)
    if share > MOST_OF_AN_IMAGE:
        return (
            f"The label {names.get(value, value)} (value {value}) fills {share:.0%} of the images, in the median. If that is what lies "
            "around the structures, it should have the value 0, which is always the background.",
        )
    usual = {value: float(np.median([case.shares.get(value, 0.0) for case in known])) for case in known for value in case.shares}
    inverted = [
        case.name for case in known if any(share > MOST_OF_AN_IMAGE and usual[value] < USUAL_SHARE for value, share in case.shares.items())
    ]
    if not inverted or len(known) < MIN_CASES_TO_CALL_INVERTED:
        return ()
    return (
        f"One label fills more than {MOST_OF_AN_IMAGE:.0%} of {listed(inverted, most=5)}, and less than {USUAL_SHARE:.0%} of most other "
        "cases: background and structure may be exchanged there. Look at these label maps.",
    )


def _fullest(cases: Sequence[Filled]) -> tuple[int, float]:
    """The value that fills most of the images, in the median, and how much."""
    medians = {value: float(np.median([case.shares.get(value, 0.0) for case in cases])) for case in cases for value in case.shares}
    value = max(sorted(medians), key=lambda each: medians[each])
    return value, medians[value]


# --- rare values


LEAST_SPREAD = 4
"""Objects by which the fullest case exceeds the emptiest one where values number objects."""


def numbers_objects(values: Sequence[Sequence[int]]) -> bool:
    """Whether the values of each case are 1, 2, … to another last one: sorted values per case, without background.

    >>> numbers_objects([[1, 2], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]), numbers_objects([[1, 2], [1, 2], [1, 2, 3]])
    (True, False)
    """
    lasts = {own[-1] for own in values if own}
    is_counted = all(list(own) == list(range(1, len(own) + 1)) for own in values)
    return is_counted and len(lasts) >= 3 and max(lasts) - min(lasts) >= LEAST_SPREAD


MIN_CASES_TO_CALL_RARE = 4
"""With fewer cases, one case with a label is nothing to wonder at."""
MIN_VOXELS = 20
"""Of a label over all cases: a stroke of the mouse leaves fewer, an organ or a lesion that is worth training leaves more."""
MOST_RARE_TOLD = 3
"""More rare values than this are told in one sentence: they are no slips, they mean something else."""


def rare_labels(voxels: Mapping[str, Mapping[int, int]]) -> tuple[str, ...]:
    """One sentence for each label that may be a slip of the mouse; ``voxels`` are counted per case and label value, without background.

    That is a label in a single case of four or more, or one with fewer than 20 voxels in all cases together. Many of them are told in one
    sentence: then values number objects, case by case, or a file is no label map. To be asked where no list of labels says which
    values are meant.
    """
    if numbers_objects([sorted(counts) for counts in voxels.values()]):
        most = max(max(counts, default=0) for counts in voxels.values())
        return (
            f"The label values of each case run from 1 to another number (up to {most}), as where values number objects case by case. A "
            "value must mean the same structure in all cases: give all objects of a kind one value, or list the labels in a dataset.json.",
        )
    warnings = []
    rare = []
    for value in sorted({value for counts in voxels.values() for value in counts}):
        cases = sorted(name for name, counts in voxels.items() if value in counts)
        total = sum(voxels[name][value] for name in cases)
        if total < MIN_VOXELS or (len(cases) == 1 and len(voxels) >= MIN_CASES_TO_CALL_RARE):
            rare.append((value, cases))
            warnings.append(
                f"The label value {value} occurs in {len(cases)} of {counted(len(voxels), 'case')} ({listed(cases)}), with "
                f"{counted(total, 'voxel')} in all. If it is meant, write a dataset.json that lists the labels; if not, correct the "
                f"label {'file' if len(cases) == 1 else 'files'}."
            )
    if len(rare) <= MOST_RARE_TOLD:
        return tuple(warnings)
    owners = sorted({name for _, cases in rare for name in cases})
    return (
        f"{len(rare)} label values occur in one case only or in a few voxels ({listed([str(value) for value, _ in rare], most=8)}; in "
        f"{listed(owners, most=5)}). A value must mean the same structure in all cases: values that number objects case by case cannot be "
        "learned. Correct these files, or write a dataset.json that lists the labels that are meant.",
    )
