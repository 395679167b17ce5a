from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg3d.data.reading import label_values
from medseg3d.errors import LabelValueError
from medseg3d.fingerprint.describe_labels import describe_labels
from medseg3d.labels import Labels, as_integers, unique_values, value_counts

VALUES = st.lists(st.integers(-300, 70_000).filter(bool), min_size=1, max_size=12, unique=True)


@settings(deadline=None)
@given(values=VALUES, data=st.data())
def test_decoding_gives_back_what_was_encoded(values, data) -> None:
    labels = Labels(names=tuple(str(v) for v in (0, *values)), values=(0, *values))
    file = data.draw(hnp.arrays(np.int32, (3, 4, 5), elements=st.sampled_from(labels.values)))
    indices = labels.encode(file, "x")
    assert indices.dtype == labels.index_dtype
    assert indices.max(initial=0) < labels.num_classes
    back = labels.decode(indices)
    np.testing.assert_array_equal(back, file)
    assert back.dtype == labels.value_dtype
    np.testing.assert_array_equal(labels.encode(file.astype(np.float64), "x"), indices)


@given(hnp.arrays(st.sampled_from([np.uint8, np.int16, np.int32, np.uint16]), (2, 3, 4)))
def test_unique_values_are_numpys(array) -> None:
    assert unique_values(array) == np.unique(array).tolist()


def test_undeclared_values_are_listed_with_the_file() -> None:
    labels = Labels(names=("background", "a"), values=(0, 7))
    with pytest.raises(LabelValueError, match=r"case\.nii\.gz: label values \[3, 255\] are not in the list \[0, 7\]"):
        labels.encode(np.array([[[0, 7, 3, 255]]]), "case.nii.gz")


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_values_between_integers_are_refused(value) -> None:
    with pytest.raises(LabelValueError, match="whole numbers"):
        as_integers(np.array([1.0, value]), "x")


@pytest.mark.fault("B", "label values of 2^40, negative or far apart", "looked up in a sorted list; memory stays that of the image")
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64, np.uint32])
def test_values_far_apart_are_encoded_without_a_table(dtype) -> None:
    large = 614454277 if dtype == np.uint32 else 2**40
    labels = Labels(names=("background", "b", "a"), values=(0, large, 5))
    array = np.zeros((4, 8, 8), dtype)
    array[1], array[2] = large, 5
    tracemalloc.start()
    indices = labels.encode(label_values(Path("x"), array), "x")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert [int(i) for i in indices[:, 0, 0]] == [0, 1, 2, 0]
    np.testing.assert_array_equal(labels.decode(indices), array.astype(np.int64))
    described = describe_labels(label_values(Path("x"), array), (1.0, 1.0, 1.0))
    assert {value: label.voxels for value, label in described.items()} == {5: 64, large: 64}


def test_negative_values_far_apart_are_encoded() -> None:
    labels = Labels(names=("background", "a", "b"), values=(0, -(2**40), 2**40))
    array = np.array([[[0, -(2**40), 2**40]]])
    assert labels.encode(array, "x").tolist() == [[[0, 1, 2]]]


@pytest.mark.fault("B", "a label map of thousands of values (an image, numbered objects)", "one message; memory stays that of the image")
@pytest.mark.parametrize("factor", [1, 2**20])
def test_thousands_of_values_are_no_label_map(factor) -> None:
    array = np.arange(20_000, dtype=np.int64).reshape(20, 20, 50) * factor
    for find in (unique_values, value_counts):
        with pytest.raises(LabelValueError, match="x: more than 4096 different values, so no label map"):
            find(array, "x")


def test_undeclared_values_are_not_listed_without_end() -> None:
    labels = Labels(names=("background", "a"), values=(0, 7))
    with pytest.raises(LabelValueError) as error:
        labels.encode(np.arange(4000).reshape(1, 40, 100), "x")
    assert "and 3988 more" in str(error.value)


def test_values_beyond_64_bits_are_refused() -> None:
    with pytest.raises(LabelValueError, match="too large"):
        as_integers(np.array([0, 2**63 + 5], np.uint64), "x")
