from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.data.splits import read_splits
from medseg3d.errors import DatasetError, InputError
from medseg3d.training.folds import Split, check_groups, fit_splits, groups_from_csv, groups_from_pattern, make_splits, write_splits

CASES = st.dictionaries(
    st.text("abcxyz", min_size=1, max_size=4),
    st.tuples(st.sampled_from(["", "g1", "g2", "g3", "g4"]), st.frozensets(st.integers(1, 4))),
    min_size=1,
    max_size=25,
)


@settings(deadline=None)
@given(cases=CASES, num_folds=st.integers(2, 6), seed=st.integers(0, 99))
def test_every_case_is_validated_once_and_no_group_is_divided(cases, num_folds, seed) -> None:
    group_of = {name: group for name, (group, _) in cases.items() if group}
    present = {name: labels for name, (_, labels) in cases.items()}
    splits, warnings = make_splits(list(cases), labels_present=present, group_of=group_of, num_folds=num_folds, seed=seed)
    assert sorted(name for split in splits for name in split.validation) == sorted(cases)
    groups = {group_of.get(name, f"alone {name}") for name in cases}
    assert len(splits) == min(num_folds, len(groups))
    for split in splits:
        assert split.train
        assert split.validation
        if len(groups) > 1:
            assert sorted(split.train + split.validation) == sorted(cases)
            assert not {group_of.get(n, n + "!") for n in split.train} & {group_of.get(n, n + "!") for n in split.validation}
    every = {label for labels in present.values() for label in labels}
    for k, split in enumerate(splits):
        missing = every - {label for name in split.train for label in present[name]}
        told = {k for w in warnings for found in re.findall(r"no training case of folds? ([\d, ]+) has it", w) for k in found.split(", ")}
        assert bool(missing) == (str(k) in told or any(w.startswith(f"Fold {k}: no training") for w in warnings))
    again, _ = make_splits(sorted(cases, reverse=True), labels_present=present, group_of=group_of, num_folds=num_folds, seed=seed)
    assert again == splits


@given(count=st.integers(5, 60))
def test_folds_of_equal_cases_differ_by_one_case_at_most(count) -> None:
    names = [f"{k:03d}" for k in range(count)]
    splits, warnings = make_splits(names, labels_present=dict.fromkeys(names, frozenset({1})), group_of={})
    sizes = [len(split.validation) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    assert not warnings


def test_a_rare_class_is_spread_over_the_folds() -> None:
    names = [f"{k:02d}" for k in range(40)]
    present = {name: frozenset({1, 2} if name < "05" else {1}) for name in names}
    for seed in range(10):
        splits, warnings = make_splits(names, labels_present=present, group_of={}, seed=seed)
        assert all(sum(name < "05" for name in split.validation) == 1 for split in splits)
        assert not warnings


def test_another_seed_gives_other_folds() -> None:
    names = [f"{k:02d}" for k in range(30)]
    made = {make_splits(names, labels_present={}, group_of={}, seed=seed)[0] for seed in range(5)}
    assert len(made) == 5


def test_older_folds_take_in_new_cases_and_let_go_of_removed_ones() -> None:
    names = [f"{k:02d}" for k in range(10)]
    splits, _ = make_splits(names, labels_present={}, group_of={})
    assert fit_splits(splits, measured=names, all_names=names) == (splits, ())
    assert fit_splits(splits, measured=names[1:], all_names=names) == (splits, ()), "a case that cannot be read keeps its place"
    fitted, warnings = fit_splits(splits, measured=[*names[1:], "new"], all_names=[*names[1:], "new"])
    assert sorted(name for split in fitted for name in split.validation) == [*names[1:], "new"]
    assert all(sorted((*split.train, *split.validation)) == [*names[1:], "new"] for split in fitted)
    assert max(len(split.validation) for split in fitted) == 2
    assert "00" in warnings[0]
    assert "--restart" in warnings[-1]
    leaking = (Split(train=("a", "b"), validation=("b", "c")),)
    with pytest.raises(DatasetError, match="fold 0 has b in both"):
        fit_splits(leaking, measured=list("abc"), all_names=list("abc"))
    single, _ = make_splits(["a"], labels_present={}, group_of={})
    assert fit_splits(single, measured=["a", "b"], all_names=["a", "b"]) is None


def test_a_class_of_one_case_is_missing_where_that_case_is_validated() -> None:
    names = list("abcdef")
    present = {name: frozenset({1, 9} if name == "c" else {1}) for name in names}
    splits, (warning,) = make_splits(names, labels_present=present, group_of={})
    home = next(k for k, split in enumerate(splits) if "c" in split.validation)
    assert warning.startswith(f"The label value 9 is only in c: no training case of fold {home} has it; no validation case of folds")
    _, warnings = make_splits(names, labels_present=present | {"c": frozenset({1, 8, 9})}, group_of={})
    assert sum("no training case has the label values 8, 9" in warning for warning in warnings) == 1


def test_a_single_case_is_trained_and_validated_with_a_warning() -> None:
    (split,), warnings = make_splits(["a"], labels_present={}, group_of={})
    assert split.train == split.validation == ("a",)
    assert "only one case" in warnings[0]
    (split,), warnings = make_splits(["a", "b"], labels_present={}, group_of={"a": "p", "b": "p"})
    assert split.train == split.validation == ("a", "b")
    assert "one group" in warnings[0]


def test_no_cases_make_no_folds() -> None:
    with pytest.raises(InputError, match="No cases"):
        make_splits([], labels_present={}, group_of={})


def test_names_that_the_pattern_misses_are_listed() -> None:
    with pytest.raises(InputError, match=r"does not match 2 of 3 case names: x, y"):
        groups_from_pattern(["a1", "x", "y"], r"(\d+)")
    with pytest.raises(InputError, match="not a regular expression"):
        groups_from_pattern(["a"], "(")
    assert groups_from_pattern(["ab1", "cd2"], "[a-z]+") == {"ab1": "ab", "cd2": "cd"}


@pytest.mark.parametrize("text", ["case,group\na,1\nb,2\n", "\ufeffGroup;Case\r\n1;a\r\n\r\n2;b\r\n", "age, case, group\n7, a, 1\n8, b, 2"])
def test_groups_come_from_a_table(tmp_path, text) -> None:
    (tmp_path / "g.csv").write_text(text, encoding="utf-8", newline="")
    assert groups_from_csv(tmp_path / "g.csv") == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("text", "part"),
    [("", "columns"), ("name,group\na,1", "name, group"), ("case,group\na", "line 2"), ("case,group\na,1\na,2", "two groups")],
)
def test_a_wrong_table_is_explained(tmp_path, text, part) -> None:
    (tmp_path / "g.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=part):
        groups_from_csv(tmp_path / "g.csv")
    with pytest.raises(InputError, match="no such file"):
        groups_from_csv(tmp_path / "h.csv")


def test_cases_without_a_group_are_listed() -> None:
    check_groups({"a": "1", "b": "1"}, ["a"], "g.csv")
    with pytest.raises(DatasetError, match="- b"):
        check_groups({"a": "1"}, ["a", "b"], "g.csv")


def test_written_folds_come_back(tmp_path) -> None:
    splits, _ = make_splits(list("abcdefg"), labels_present={}, group_of={})
    assert read_splits(write_splits(tmp_path / "splits.json", splits), list("abcdefg")) == splits
