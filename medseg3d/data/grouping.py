"""Which cases belong to one patient: names in, with what is known of the images, groups out that no fold may divide.

A name is a patient and what varies within one: a side, a time point, a phase, a visit, a sequence. Which words vary is known or shows over
all names. Where nothing tells patients from cases (``case_001`` to ``case_200``), there are no groups.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.errors import InputError
from medseg3d.records import read_json
from medseg3d.wording import counted, listed

MIN_GROUPS = 5
"""As many as there are folds; fewer would leave folds out."""
LARGEST_SHARE = 0.3
"""Of the cases in one group: a larger one would make the folds unequal, and is a site or a scanner rather than a patient."""
MOST_VARIANTS = 10
"""Different words at the end of names that may tell the images of a patient apart, where nothing says what they mean."""

SIDES = "l|r|left|right|lh|rh|lt|rt|os|od|links|rechts"
PHASES = (
    "ed|es|ved|ves|dia|sys|diast|syst|diastole|systole|diastolic|systolic|pre|post|native|nc|ncct|art|arterial|ven|venous|pv|pvp|portal|"
    "delay|delayed|early|late|insp|exp|inspiration|expiration|inspiratory|expiratory|inhale|exhale|in|out|inphase|outphase|opposed|rest|"
    "nativ|arteriell|venoes|portalvenoes|spaet|stress|base|baseline|bl|follow|followup|fu|initial|final|before|after|preop|postop|intraop|prior|current"
)
SEQUENCES = (
    "t1|t2|t1w|t2w|t1c|t1ce|t1gd|t1n|t2f|t2s|flair|dwi|adc|swi|pd|pdw|stir|dixon|ct|cta|cbct|mr|mri|mra|pet|dce|asl|tof|lge|cine|t2star|"
    "t1in|t1out|t2spir|space|tse|fse|gre|mprage|vibe|haste|dess|trufi|bssfp|epi"
)
VISITS = (
    "v|visit|ses|session|t|tp|time|timepoint|point|scan|run|acq|rep|repeat|repetition|day|d|week|wk|w|month|mo|m|year|yr|y|fu|followup|up|"
    "frame|fr|phase|ph|echo|series|ser|study|exam|st|part|slab|stack|view|ga|pma|age"
)
COPIES = "aug|augmented|rot|rotated|flip|flipped|shift|scale|scaled|noise"
"""What was made of one image, with a number."""
DATE = r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
DAY_FIRST = r"(?:0[1-9]|[12]\d|3[01])[-_.](?:0[1-9]|1[0-2])[-_.](?:19|20)\d\d"
PIECES = "x|y|z|row|col|crop|tile|patch|block|roi"
"""Of one image that was cut up; only glued to their number and behind another word, as ``tile_3`` may be an image of its own."""
_KNOWN = re.compile(
    rf"{SIDES}|{PHASES}|{SEQUENCES}|(?:{VISITS})\d{{1,4}}|(?:study|ses|series|scan|acq)?{DATE}|"
    rf"(?:{COPIES})\d{{1,4}}|\d{{1,3}}(?:percent|pct|%)"
)
_AGE = re.compile(r"\d{1,3}(?:m|mo|w|wk|y|yr)")
"""Months, weeks or years; only behind another word, as what stands behind ``18w`` may be a specimen of that age."""
_PIECE = re.compile(rf"(?:{PIECES})\d{{1,4}}")
_COUNTED = re.compile(VISITS)
_GLUED = re.compile(rf"(.*\d)(l|r|left|right|lh|rh|os|od|ed|es|pre|post|[a-e]|s\d{{1,2}}|(?:{VISITS})\d{{1,4}})|(l|r|left|right)(\d+)")
_TIME = r"(?:[01]\d|2[0-3])[0-5]\d[0-5]\d"
_NAME_AND_YEAR = re.compile(r"([^\W\d_]{2,})((?:19|20)\d\d)")
_CHECKSUM = re.compile(r"(?=.*[a-f])[0-9a-f]{8,}")
"""A part of a UUID or a pseudonym: the letter at its end says nothing."""
_PATIENT = re.compile("patient|pat|pt|p|subject|subj|sub|s|person|volunteer|participant|mouse|rat|animal")
_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)(?=_|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """``group_of`` names the patient of each case; it is empty where there is nothing to group. ``note`` says in a sentence what was found;
    it is a warning where ``is_doubtful``: there seem to be patients, but they cannot be kept together by default."""

    group_of: Mapping[str, str]
    note: str = ""
    is_doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What tells images that are one another's copies, or of one patient: by case, a digest of the voxels and numbers that describe the
    intensities (their logarithms, so that a difference is a ratio). Either may be empty."""

    contents: Mapping[str, str]
    intensities: Mapping[str, tuple[float, ...]]


NOTHING_KNOWN = Likeness(contents={}, intensities={})


def find_groups(names: Sequence[str], likeness: Likeness = NOTHING_KNOWN) -> Grouping:
    """The patients of the cases, by their names, by the order of their numbers, and by images that are the same.

    >>> find_groups([f"p{n}_{phase}" for n in range(5) for phase in ("ED", "ES")]).group_of["p3_ES"]
    'p3'
    """
    names = sorted(set(names))
    by_name, why = _by_name(names), "by their names"
    if not by_name:
        by_name, why = _by_order(names, likeness.intensities), "by their order, as every other case is like the one before it"
    copies = {name: likeness.contents[name] for name in names if likeness.contents.get(name)}
    group_of = _joined(names, by_name, copies)
    if not by_name and group_of:
        why = "as images are the same"
    multiple = _multiple(group_of)
    if not multiple:
        return _people_or_places(names)
    patients = len(set(group_of.values()))
    example = next(iter(multiple.values()))
    looks = f"{counted(len(names), 'case')} look like {counted(patients, 'patient')} {why} ({listed(example, most=3)})"
    if not _is_usable(group_of):
        reason = "they are not kept together, as that would leave fewer than five folds or very unequal ones"
        return Grouping(group_of={}, note=f"{looks}; {reason}. If they are patients, give --groups or --group-pattern.", is_doubtful=True)
    return Grouping(group_of=group_of, note=f"{looks}; each patient stays in one fold. --no-groups undoes it.")


def divided(group_of: Mapping[str, str], folds: Iterable[tuple[Sequence[str], Sequence[str]]]) -> dict[str, tuple[int, str, str]]:
    """Groups on both sides of a fold (training, validation): the first such fold, with a case of either side."""
    found: dict[str, tuple[int, str, str]] = {}
    for number, (training, validation) in enumerate(folds):
        trained = {group_of[name]: name for name in training if name in group_of}
        for name in validation:
            group = group_of.get(name)
            if group in trained and name != trained[group] and set(training) != set(validation):
                found.setdefault(group, (number, trained[group], name))
    return found


def divided_message(group_of: Mapping[str, str], folds: Iterable[tuple[Sequence[str], Sequence[str]]], *, source: str) -> str:
    """One sentence where folds have images of a patient on both sides; empty where they have none."""
    found = divided(group_of, folds)
    if not found:
        return ""
    number, trained, validated = next(iter(found.values()))
    patients = len(set(group_of.values()))
    return (
        f"{source}: {len(found)} of what look like {counted(patients, 'patient')} are on both sides of a fold (fold {number} trains on "
        f"{trained} and validates on {validated}), so the validation is too good."
    )


def shared_patients(training: Sequence[str], test: Sequence[str]) -> str:
    """One sentence where names tell patients who have images on both sides of training and test; empty where they tell none."""
    group_of = find_groups([*training, *test]).group_of
    found = divided(group_of, [(training, test)])
    if not found:
        return ""
    _, trained, tested = next(iter(found.values()))
    patients, verb = counted(len(found), "patient"), "has" if len(found) == 1 else "have"
    where = f"images in training and test ({trained} and {tested})"
    return f"what looks like {patients} {verb} {where}, so the test score is too good"


# --- by name


def recorded_patients(splits: Path) -> dict[str, str]:
    """The patient of each case as ``splits.json`` of a work folder says it, those of the names where an older file is silent.

    Empty where no patient has several images, and where the file is missing or damaged.
    """
    try:
        stored = read_json(splits)
    except InputError:
        return {}
    if not isinstance(stored, dict):
        return {}
    patients = stored.get("patients")
    if not isinstance(patients, dict):
        folds = [fold for fold in stored.get("folds") or [] if isinstance(fold, dict)]
        names = {str(name) for fold in folds for side in ("train", "validation") for name in fold.get(side) or []}
        patients = find_groups(sorted(names)).group_of if stored.get("grouping") not in ("given", "off") else {}
    is_shared = len(set(patients.values())) < len(patients)
    return {str(case): str(patient) for case, patient in patients.items()} if is_shared else {}


def _by_name(names: Sequence[str]) -> dict[str, str]:
    """The patient in each name; empty where the names tell none."""
    subjects = {name: match[1] for name in names if (match := _SUBJECT.search(name))}
    if len(subjects) == len(names):
        return subjects if _multiple(subjects) else {}
    words = {name: _words(name) for name in names}
    for keys in (_without_known(words), _without_last(words), _without_accession(words), _continued(words)):
        if keys:
            return {name: "_".join(key) for name, key in keys.items()}
    return {}


Words = tuple[str, ...]


def _words(name: str) -> Words:
    """The words of a name in lower case; a date is one word, and so is a letter that is glued to a number (``12L``, ``p3t2``).

    >>> _words("acdc_002_ED"), _words("p01L"), _words("002_S_0413_2006-05-02")
    (('acdc', '002', 'ed'), ('p01', 'l'), ('002', 's', '0413', '20060502'))
    """
    text = re.sub(rf"(?<!\d){DAY_FIRST}(?!\d)", lambda match: "".join(re.split(r"\D", match[0])[::-1]), name.lower())
    text = re.sub(rf"(?<!\d)({DATE})(?:[-_.t]{_TIME})?(?!\d)", lambda match: re.sub(r"\D", "", match[1]), text)
    found: list[str] = []
    for word in re.split(r"[\s_\-.]+", text):
        is_whole = _CHECKSUM.fullmatch(word) or (_KNOWN.fullmatch(word) and not _GLUED.fullmatch(word))
        glued = None if is_whole else _GLUED.fullmatch(word) or _NAME_AND_YEAR.fullmatch(word)
        parts = [part for part in (glued.groups() if glued else (word,)) if part]  # groups of the other way to read it are None
        found += [re.sub(r"^s(?=\d)", "ses", part) if place else part for place, part in enumerate(parts)]
    return tuple(found)


def _without_known(words: Mapping[str, Words]) -> dict[str, Words]:
    """The words without those that are known to vary within a patient, a place after the other while patients are left.

    The place with the fewest different words goes first: in ``m01_t1`` the mouse is the patient, not the month.
    """
    keys, removed = dict(words), set[int]()
    places = [place for place in range(max(map(len, words.values()))) if _is_known_to_vary(words, place)]
    variants = {place: len({own[place] for own in words.values() if len(own) > place}) for place in places}
    while True:
        for place in sorted(set(places) - removed, key=variants.__getitem__):
            trial = {name: tuple(w for p, w in enumerate(own) if p not in removed | {place}) for name, own in words.items()}
            is_more = not removed or (variants[place] <= MOST_VARIANTS and _is_usable({name: "_".join(key) for name, key in trial.items()}))
            if all(trial.values()) and _says_patients(trial) and is_more:
                keys, removed = trial, removed | {place}
                break
        else:
            break
    if removed or len(places) < 2:
        return keys if removed else {}
    keys = {
        name: tuple(w for p, w in enumerate(own) if p not in places) for name, own in words.items()
    }  # each study has a series of its own
    return keys if all(keys.values()) and _says_patients(keys) else {}


MOST_OTHER_WORDS = 0.1
"""Share of the names that may have another word at a place that varies: one that nobody foresaw, or none."""


def _is_known_to_vary(words: Mapping[str, Words], place: int) -> bool:
    there = [own for own in words.values() if len(own) > place]
    known = sum(_is_variant(own, place) for own in there)
    return bool(there) and len(there) - known <= MOST_OTHER_WORDS * len(there)


def _is_variant(own: Words, place: int) -> bool:
    """A known word, or a number after a word that counts: visit 2; or one digit behind that: visit 2-1."""
    if place > 1 and len(own[place]) == 1 and own[place].isdigit() and own[place - 1].isdigit():
        return _is_variant(own, place - 1)
    if _KNOWN.fullmatch(own[place]) or (place > 0 and (_PIECE.fullmatch(own[place]) or _AGE.fullmatch(own[place]))):
        return True
    return place > 0 and own[place].isdigit() and len(own[place]) < 4 and _COUNTED.fullmatch(own[place - 1]) is not None


def _says_patients(keys: Mapping[str, Words]) -> bool:
    """Some patients have several images, and there is more than one patient for them."""
    sizes = Counter(keys.values())
    return 1 < len(sizes) < len(keys)


LEAST_SHARED, LEAST_SHARED_NUMBERS = 0.5, 0.02
"""Share of the cases that must have a sibling where names end in words that nobody knows; in small numbers, as most have one scan."""
LARGEST_NUMBER = 20
LONGEST_WORD = 8
LEAST_OF_UID = 6
"""Numbers in an identifier of DICOM: the root of an organization alone has about four."""
MOST_SCANS = 4
"""Of each of five people or more whose names hold no digit: more images of each of as many words are rather those of an organ or a site."""


def _without_last(words: Mapping[str, Words]) -> dict[str, Words]:
    """The words without the last, where a few words end the names of many patients: one of at most 20 numbers, a year, or a short word.

    Many means twice as many as there are such words, as ``1_1`` to ``10_10`` may number anything; not where the names begin with patient.
    """
    ends = {own[-1] for own in words.values()}
    if not 2 <= len(ends) <= MOST_VARIANTS or min(map(len, words.values())) < 2:
        return {}
    keys = {name: own[:-1] for name, own in words.items()}
    sizes = Counter(keys.values())
    shared = sum(size for size in sizes.values() if size > 1) / len(keys)
    numbers = _numbers(ends)
    if numbers:
        is_numbered = any(map(_is_numbered, sizes))  # else names of people, or of organs
        is_people = shared >= LEAST_SHARED and max(sizes.values()) <= MOST_SCANS
        is_few = max(numbers) - min(numbers) <= LARGEST_NUMBER
        is_counted = is_few and (
            min(numbers) <= 1 or (min(numbers) % 100 <= 1 and max(sizes.values()) <= MOST_SCANS)
        )  # from 0 or 1 on; from 100 or 1001
        if _are_years(numbers):
            is_meant = is_people and is_numbered
        else:
            is_meant = is_counted and (shared >= LEAST_SHARED_NUMBERS if is_numbered else is_people)
    else:
        is_meant = max(map(len, ends)) <= LONGEST_WORD and shared >= LEAST_SHARED
    is_named = all(_PATIENT.fullmatch(word) for word in {re.sub(r"\d+$", "", key[0]) for key in sizes})
    return keys if is_meant and len(sizes) >= max(MIN_GROUPS, 0 if is_named else 2 * len(ends)) else {}


def _people_or_places(names: Sequence[str]) -> Grouping:
    """No groups; there is a message where names and years may be those of people (``mueller_2019``) or of places (``bern_2019``)."""
    words = {name: _words(name) for name in names}
    keys = {name: "_".join(own[:-1]) for name, own in words.items()}
    sizes = Counter(keys.values())
    are_years = _are_years(_numbers({own[-1] for own in words.values()}))
    if (
        not are_years
        or "" in sizes
        or any(map(_is_numbered, sizes))
        or len(sizes) < MIN_GROUPS
        or max(sizes.values()) > MOST_SCANS
        or sum(size for size in sizes.values() if size > 1) < LEAST_SHARED * len(names)
    ):
        return Grouping(group_of={})
    example = listed(next(iter(_multiple(keys).values())), most=3)
    looks = (
        f"{counted(len(names), 'case')} may be of {counted(len(sizes), 'patient')}, or of as many places, by names and years ({example})"
    )
    note = f"{looks}; they are not kept together. If they are patients, give --groups or --group-pattern."
    return Grouping(group_of={}, note=note, is_doubtful=True)


def _numbers(ends: Iterable[str]) -> list[int]:
    """The numbers that words end in; empty where one ends in none, or where other words stand before them."""
    matches = [re.fullmatch(r"(.*?)(\d{1,9})", end) for end in ends]
    found = [match for match in matches if match]
    return [int(match[2]) for match in found] if len(found) == len(matches) and len({match[1] for match in found}) == 1 else []


def _are_years(numbers: Sequence[int]) -> bool:
    return bool(numbers) and all(1900 <= number < 2100 for number in numbers)


def _is_numbered(key: Iterable[str]) -> bool:
    return any(char.isdigit() for word in key for char in word)


def _without_accession(words: Mapping[str, Words]) -> dict[str, Words]:
    """The words before a long number of each examination's own (an accession number, a time), which stands behind that of a patient.

    Identifiers of DICOM are numbers alone, of devices as well.
    """
    if all(len(own) >= LEAST_OF_UID and all(word.isdigit() for word in own) for own in words.values()):
        return {}
    for place in range(1, min(map(len, words.values()))):
        keys = {name: own[:place] for name, own in words.items()}
        sizes = Counter(keys.values())
        owners = {(own[place], keys[name]) for name, own in words.items()}
        are_long = all(re.fullmatch(r"\d{6,}", own[place]) for own in words.values()) and len({number for number, _ in owners}) == len(
            owners
        )
        are_numbered = all(map(_is_numbered, sizes))  # else sites
        is_meant = are_long and are_numbered and len(owners) <= MOST_SCANS * len(sizes)
        if is_meant and len(sizes) >= MIN_GROUPS and _says_patients(keys):
            return keys
    return {}


def _continued(words: Mapping[str, Words]) -> dict[str, Words]:
    """The words without what stands behind the whole name of another case: ``p1`` and ``p1_2``, ``scan7`` and ``scan7_flip``."""
    there = set(words.values())
    keys = {}
    for name, own in words.items():
        stems = (own[:length] for length in range(1, len(own)) if own[:length] in there)
        keys[name] = next(stems, own)
    return keys if _is_usable({name: "_".join(key) for name, key in keys.items()}) and _says_patients(keys) else {}


# --- by order and by content


LEAST_AGREEMENT, LEAST_RATIO, LEAST_SIGMAS = 0.75, 2.0, 4.5
"""How often a case must be more like its twin than its next neighbor, by what factor at the median, and how many standard deviations above
chance: Hippocampus, which holds the two sides of each subject one after the other, has 0.88, 3.5 and 6.6."""


def _by_order(names: Sequence[str], intensities: Mapping[str, tuple[float, ...]]) -> dict[str, str]:
    """Pairs 1 and 2, 3 and 4, … (or 2 and 3, …) of numbered cases, where all over the dataset these are more alike than 2 and 3, …"""
    numbered = {int(match[2]): name for name in names if (match := re.fullmatch(r"(.*?)(\d+)", name))}
    stems = {re.sub(r"\d+$", "", name) for name in names}
    if len(stems) != 1 or len(numbered) != len(names) or any(name not in intensities for name in names):
        return {}
    steps = {n: _distance(intensities[numbered[n]], intensities[numbered[n + 1]]) for n in numbered if n + 1 in numbered}
    for parity in (1, 0):
        within = np.array([step for n, step in steps.items() if n % 2 == parity])
        between = np.array([step for n, step in steps.items() if n % 2 != parity])
        if not (len(within) and len(between)):
            continue
        agreement = float((within[:, None] < between[None]).mean())
        by_chance = ((len(within) + len(between) + 1) / (12 * len(within) * len(between))) ** 0.5  # of Mann and Whitney's statistic
        is_sure = agreement >= max(LEAST_AGREEMENT, 0.5 + LEAST_SIGMAS * by_chance)
        if is_sure and np.median(between) >= LEAST_RATIO * np.median(within):
            return {name: f"pair {(n + parity) // 2}" for n, name in numbered.items()}
    return {}


def _distance(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return float(np.abs(np.subtract(one, other)).mean())


def _joined(names: Sequence[str], by_name: Mapping[str, str], copies: Mapping[str, str]) -> dict[str, str]:
    """Groups by name, joined where they share an image; cases without a group by name are one each. Empty where nothing joins."""
    group_of = {name: by_name.get(name, name) for name in names}
    owner: dict[str, str] = {}
    renamed: dict[str, str] = {}

    def root(group: str) -> str:
        while group in renamed:
            group = renamed[group]
        return group

    for name, content in copies.items():
        first, own = root(owner.setdefault(content, group_of[name])), root(group_of[name])
        if first != own:
            renamed[own] = first
    joined = {name: root(group) for name, group in group_of.items()}
    return joined if len(set(joined.values())) < len(names) else {}


def _multiple(group_of: Mapping[str, str]) -> dict[str, list[str]]:
    """The groups with several cases, in the order of their names."""
    members: dict[str, list[str]] = {}
    for name in sorted(group_of):
        members.setdefault(group_of[name], []).append(name)
    return {group: own for group, own in members.items() if len(own) > 1}


def _is_usable(group_of: Mapping[str, str]) -> bool:
    sizes = Counter(group_of.values())
    return len(sizes) >= MIN_GROUPS and max(sizes.values()) <= max(2, LARGEST_SHARE * len(group_of))
