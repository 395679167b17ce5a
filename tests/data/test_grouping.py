"""Which names tell patients, which do not, and what order and equal images add."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from medseg3d.data.grouping import Likeness, divided, divided_message, find_groups, shared_patients


def names(pattern: str, *varying: object) -> list[str]:
    """``names("p{}_{}", range(2), ("ED", "ES"))``: all combinations."""
    return [pattern.format(*values) for values in product(*(list(v) for v in varying))]  # type: ignore[call-overload]


TWENTY = range(1, 21)
PATIENTS = {
    "phases": (names("acdc_{:03d}_{}", TWENTY, ("ED", "ES")), 20),
    "frames": ([f"patient{p:03d}_frame{f:02d}" for p in TWENTY for f in (1, 8 + p % 5)], 20),
    "sides before": (names("{1}_{0:03d}", TWENTY, ("left", "right")), 20),
    "sides glued": (names("knee{:02d}{}", TWENTY, "LR"), 20),
    "hemispheres": (names("s{:02d}-{}", TWENTY, ("lh", "rh")), 20),
    "visits": (names("anna{}_visit_{}", TWENTY, (1, 2, 3)), 20),
    "visits glued": (names("P{:02d}_V{:02d}", TWENTY, (1, 2)), 20),
    "weeks of mice": (names("m{:02d}_w{}", TWENTY, (4, 8)), 20),
    "time points": (names("x{}.t{}", TWENTY, range(4)), 20),
    "before and after": (names("{}_{}", ("anna", "bert", "carl", "dora", "emil", "fred"), ("pre", "post")), 6),
    "names of people": (names("{}_{}", ("anna", "bert", "carl", "dora", "emil"), (1, 2)), 5),
    "dates": (names("002_S_{:04d}_2006-{:02d}-02", TWENTY, (1, 5)), 20),
    "dates without dashes": (names("pat{}_2019{:02d}11", TWENTY, (2, 12)), 20),
    "BIDS": (names("sub-{:02d}_ses-{}_T1w", TWENTY, ("a", "b")), 20),
    "runs of BIDS": (names("sub-x{:02d}_run-{}_bold", TWENTY, (1, 2)), 20),
    "sequences": (names("pt{}_{}", TWENTY, ("T1", "T2", "FLAIR")), 20),
    "phases of contrast": (names("case{}_{}", TWENTY, ("art", "pv", "late")), 20),
    "days of a study": (names("OAS{}_MR_d{:04d}", range(30001, 30021), (129, 843)), 20),
    "scans of some": ([f"BraTS-GLI-{p:05d}-{s:03d}" for p in range(40) for s in range(1 + (p % 4 == 0))], 40),
    "scans of a few": ([f"BraTS-GLI-{p:05d}-{s:03d}" for p in range(60) for s in range(1 + (p in (7, 31)))], 60),
    "sequences of the liver": (names("{}_{}", TWENTY, ("T1in", "T1out")), 20),
    "words of its own": (names("{}_{}", TWENTY, ("coronal", "sagittal")), 20),
    "numbers of patients": (names("patient_{}_{}", range(1, 8), range(1, 6)), 7),
    "lesions": (names("p{:02d}_lesion{}", TWENTY, (1, 2, 3)), 20),
    "letters": (names("{:03d}_{}", TWENTY, "AB"), 20),
    "glued times": (names("p{}t{}", TWENTY, (1, 2)), 20),
    "glued sessions": (names("sub{:02d}ses{}", TWENTY, (1, 2)), 20),
    "glued sides before": (names("{1}{0:03d}", TWENTY, "LR"), 20),
    "volunteers of sites": (names("site{}_v{:02d}_{}", "AB", TWENTY, ("ED", "ES")), 40),
    "spaces": (names("Patient {} left", TWENTY) + names("Patient {} right", TWENTY), 20),
    "days first": ([f"p{p:02d}_1{p % 10}.0{1 + p % 9}.{year}" for p in TWENTY for year in (2019, 2020)], 20),
    "eyes glued": (names("p{:02d}{}", TWENTY, ("od", "os")), 20),
    "breathing": (names("pat{:02d}_{}percent", TWENTY, (0, 50, 90)), 20),
    "contrast in German": (names("pat{:02d}_{}", TWENTY, ("nativ", "arteriell", "venoes")), 20),
    "accession numbers": ([f"{10000 + p}_{987654000 + 7 * p + 131 * s}" for p in TWENTY for s in range(1 + p % 3)], 20),
    "times in seconds": ([f"{p:04d}_{1500000000 + 77 * p + 100000 * s}" for p in TWENTY for s in (0, 1)], 20),
    "a second visit of some": ([f"{p:03d}{end}" for p in TWENTY for end in ("", "_2")[: 1 + p % 2]], 20),
    "augmented copies": (names("scan{:03d}{}", TWENTY, ("", "_flip", "_rot")), 20),
    "pieces": (names("vol{:03d}_x{}_y{}", TWENTY, (0, 1), (0, 1)), 20),
    "names of our own DICOM intake": ([f"P{p:02d}_Study2024{m:02d}11_Series{2 + m}" for p in TWENTY for m in (1, 2)], 20),
    "sessions glued short": (names("p{:02d}s{}", TWENTY, (1, 2)), 20),
    "scans of a week": ([f"Patient-{p:03d}_week-{w:03d}-{s}" for p in TWENTY for w in (0, 12) for s in range(1, 2 + (p == 3))], 20),
    "pseudonyms and dates": (
        names("psma_{}_{}", ("0a1b2c3d4e", "9f8e7d6c5b", "aa11bb22cc", "1234567890", "ffeeddccbb"), ("2018-04-16", "2019-05-01")),
        5,
    ),
    "parts of UUIDs": ([f"{p:08x}-aaaa-{phase}" for p in range(12340, 12360) for phase in ("venous", "arterial")], 20),
    "sequences of some words": (names("{}_{}", TWENTY, ("t1", "t2", "t2_SPACE")), 20),
    "months glued": (names("{}_{}", range(9000000, 9000020), ("00m_LEFT", "24m_LEFT", "00m_RIGHT")), 20),
    "studies of years": (names("p{:02d}_study{}", TWENTY, (2019, 2021)), 20),
    "years of numbered people": (names("p{:02d}_{}", TWENTY, (2019, 2021)), 20),
    "numbers of patient and scan": ([f"{10000 + p}_{1000 + s}" for p in TWENTY for s in range(1 + (p % 4 == 0))], 20),
    "angles of copies": (names("case{:03d}_rot{}", TWENTY, (0, 90, 180)), 20),
    "weeks of pregnancy": (names("feta{:03d}_ga{}", TWENTY, (24, 30)), 20),
    "dates with times": ([f"{1234500 + p}_20200{1 + s}03_1{s}2233" for p in TWENTY for s in (1, 2)], 20),
    "series of accession numbers": (
        [f"{1234500 + p}_{70000000 + 13 * p + 7 * s}_{series}" for p in TWENTY for s in (1, 2) for series in (3, 5)],
        20,
    ),
    "follow-ups": ([f"{p:03d}_{visit}" for p in TWENTY for visit in ("baseline", "followup_1", "followup_2")], 20),
}
NO_PATIENTS = {
    "sites and subjects from 1001 on": names("{:02}_{}", range(20), range(1001, 1009)),
    "sites and subjects from 101 on": names("site{:02}_{}", range(20), range(101, 109)),
    "cases": names("case_{:03d}", range(1, 201)),
    "numbers": names("{}", range(200)),
    "Decathlon": names("hippocampus_{:03d}", range(60)),
    "letters before": names("s{:04d}", range(100)),
    "scans": names("scan_{}", range(60)),
    "visits alone": names("v{:02d}", range(60)),
    "numbers that look like years": names("volume_{}", range(1990, 2050)),
    "checksums": [f"{p:08x}" for p in range(123456, 123516)],
    "years and days": [f"2020{m:02d}{d:02d}" for m in range(1, 9) for d in range(1, 9)],
    "groups of animals": [f"tg4510_tp3_{n}_201305{10 + n}_{('WT', 'UT', 'TT')[n % 3]}" for n in range(18)],
    "genotypes": [f"{n:03d}_{('WT', 'KO')[n % 2]}" for n in range(40)],
    "phases of others": [f"{('ED', 'ES')[n % 2]}_{n:03d}" for n in range(40)],
    "sites": names("site{}_{:03d}", range(4), range(30)),
    "organs": names("{}_{:03d}", ("liver", "spleen", "colon"), range(30)),
    "many organs": names("{}_{}", ("liver", "spleen", "colon", "heart", "aorta"), range(6)),
    "two digits": names("{}_{}", range(10), range(10)),
    "one sequence": names("IXI{:03d}-Guys-T1", range(60)),
    "accession numbers of sites": [f"{('MGH', 'LMU')[n % 2]}_{900000 + n}" for n in range(60)],
    "accession numbers of batches": [f"batch{n % 3}_{900000 + n}" for n in range(60)],
    "specimens of an age": names("{}w_{:02d}", (18, 22, 26, 30, 34, 40), range(8)),
    "identifiers of DICOM": [f"1.2.840.113704.{d}.{300000 + 17 * n}.{n}" for d in range(1, 9) for n in range(4 * d, 4 * d + 4)],
    "tiles": names("tile{}_{}", range(7), range(7)),
    "a few": ["brats_0001", "brats_0002", "brats_0004"],
    "people": ["anna", "bert", "carl"],
    "one": ["a"],
}


@pytest.mark.fault("A2", "several images of a patient, told by their names", "one group per patient, which no fold divides")
@pytest.mark.parametrize("what", PATIENTS)
def test_names_tell_patients(what: str) -> None:
    cases, patients = PATIENTS[what]
    found = find_groups(cases)
    assert len(set(found.group_of.values())) == patients
    assert f"{len(cases)} cases look like {patients} patients" in found.note
    assert "--no-groups" in found.note
    assert not found.is_doubtful


@pytest.mark.fault("A2", "names that number cases, sites, organs or groups of animals", "no groups, no message")
@pytest.mark.parametrize("what", NO_PATIENTS)
def test_names_of_cases_tell_nothing(what: str) -> None:
    found = find_groups(NO_PATIENTS[what])
    assert (dict(found.group_of), found.note) == ({}, "")


@pytest.mark.fault("A2", "names and years, which may be those of people or of places", "no groups, but a message that asks for --groups")
@pytest.mark.parametrize("pattern", ["{}_{}", "{}{}"])
def test_people_and_places_with_years_are_mentioned_only(pattern: str) -> None:
    for words in (("mueller", "weber", "becker", "koch", "wolf"), ("bern", "basel", "genf", "chur", "zug")):
        found = find_groups(names(pattern, words, (2018, 2019)))
        assert found.is_doubtful
        assert not found.group_of
        assert "10 cases may be of 5 patients, or of as many places" in found.note
    assert find_groups(names(pattern, ("bern", "basel"), range(2015, 2021))).note == ""
    assert find_groups(["bern_2019", "bern_2020", *names(pattern, ("basel", "genf", "chur", "zug", "thun"), (2019,))]).note == ""


@pytest.mark.fault("A2", "fewer than five patients with many images each", "no groups, but a message that asks for --groups")
def test_too_few_patients_are_mentioned_only() -> None:
    found = find_groups(names("p{}_t{}", range(3), range(10)))
    assert found.is_doubtful
    assert not found.group_of
    assert "give --groups" in found.note


def test_a_patient_with_most_of_the_images_is_no_group() -> None:
    found = find_groups([*names("p1_t{}", range(20)), *names("p{}_t1", range(2, 9))])
    assert found.is_doubtful
    assert not found.group_of


def test_the_order_of_names_does_not_matter() -> None:
    cases, _ = PATIENTS["phases"]
    assert find_groups(cases[::-1]).group_of == find_groups(cases).group_of


def numbered(count: int, *, is_paired: bool, seed: int = 0) -> Likeness:
    """Intensities of 1, 2, …: drawn for each, or for 1 and 2, 3 and 4, … together, and a little noise."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.normal(5, 1, (count // 2, 3)), 2, axis=0) if is_paired else rng.normal(5, 1, (count, 3))
    values = levels + rng.normal(0, 0.1, levels.shape)
    return Likeness(contents={}, intensities={f"case_{n:03d}": tuple(v) for n, v in enumerate(values, 1)})


@pytest.mark.fault(
    "A2", "numbered cases of which 1 and 2, 3 and 4, … are of one patient", "one group per pair, where the intensities show it"
)
def test_twins_in_a_row_are_found_by_their_intensities() -> None:
    likeness = numbered(60, is_paired=True)
    found = find_groups(list(likeness.intensities), likeness)
    assert found.group_of["case_001"] == found.group_of["case_002"] != found.group_of["case_003"]
    assert len(set(found.group_of.values())) == 30
    assert "by their order" in found.note


def test_intensities_without_pairs_make_none() -> None:
    for seed in range(50):
        likeness = numbered(60, is_paired=False, seed=seed)
        assert not find_groups(list(likeness.intensities), likeness).group_of


@pytest.mark.fault("A2", "one image under two names", "both are in one fold")
def test_equal_images_are_one_group() -> None:
    cases = names("case_{:03d}", range(20))
    contents = {name: name for name in cases} | {"case_007": "case_003", "case_011": ""}
    found = find_groups(cases, Likeness(contents=contents, intensities={}))
    assert found.group_of["case_007"] == found.group_of["case_003"]
    assert len(set(found.group_of.values())) == 19
    assert "images are the same" in found.note


def test_equal_images_join_patients() -> None:
    cases, _ = PATIENTS["phases"]
    found = find_groups(cases, Likeness(contents={"acdc_001_ED": "x", "acdc_002_ES": "x"}, intensities={}))
    assert found.group_of["acdc_001_ES"] == found.group_of["acdc_002_ED"]


def test_patients_on_both_sides_are_named_with_a_fold() -> None:
    group_of = {"a1": "a", "a2": "a", "b1": "b", "b2": "b"}
    folds = [(["a1", "a2"], ["b1", "b2"]), (["a1", "b1", "b2"], ["a2"])]
    assert divided(group_of, folds) == {"a": (1, "a1", "a2")}
    assert "fold 1 trains on a1 and validates on a2" in divided_message(group_of, folds, source="splits.json")
    assert divided_message(group_of, folds[:1], source="splits.json") == ""
    assert divided(group_of, [(["a1", "a2"], ["a1", "a2"])]) == {}


@pytest.mark.fault("A2", "a patient with images in training and among the test images", "doctor warns, naming one of each")
def test_patients_in_training_and_test_are_named() -> None:
    cases, _ = PATIENTS["phases"]
    training = [name for name in cases if name != "acdc_007_ES"]
    assert "1 patient has images in training and test (acdc_007_ED and acdc_007_ES)" in shared_patients(training, ["acdc_007_ES"])
    assert shared_patients(cases, [name.replace("acdc", "other") for name in cases]) == ""
    assert shared_patients(names("case_{:03d}", range(20)), names("case_{:03d}", range(20, 30))) == ""
