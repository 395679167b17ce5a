from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg3d.errors import LabelValueError
from medseg3d.labels import Labels, as_integers, unique_values

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
