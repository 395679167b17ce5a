"""dataset.json: the outputs of a network and their region class order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg3d.errors import InputError
from medseg3d.labels import Labels
from medseg3d.models.nnunet.labels import Description, labels_of, read_description

Json = dict[str, Any]


def read(folder: Path, document: Json) -> tuple[Description, Labels]:
    path = folder / "dataset.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    description = read_description(path)
    return description, labels_of(description, path)


def test_output_channels_are_the_values_whatever_the_order_in_the_file(tmp_path: Path, dataset: Json) -> None:
    _, labels = read(tmp_path, dataset | {"labels": {"right": 2, "background": 0, "left": [1]}})
    assert (labels.names, labels.values, labels.num_outputs) == (("background", "left", "right"), (0, 1, 2), 3)
    assert labels.pairs == ((1, 2),)


def test_channels_come_in_numeric_order_under_either_name(tmp_path: Path, dataset: Json) -> None:
    names = {str(number): f"c{number}" for number in (10, 9, 0, *range(1, 9))}
    for key in ("channel_names", "modality"):
        document = {k: v for k, v in dataset.items() if k != "channel_names"} | {key: names}
        assert read(tmp_path, document)[0].channels == tuple(f"c{number}" for number in range(11))


def test_an_ignore_label_is_never_predicted(tmp_path: Path, dataset: Json) -> None:
    dataset["labels"]["ignore"] = 3
    description, labels = read(tmp_path, dataset)
    assert labels.values == (0, 1, 2)
    assert description.foreground_values == (1, 2)


def test_regions_keep_the_class_order_of_the_file(tmp_path: Path, dataset: Json) -> None:
    dataset |= {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
    }
    _, labels = read(tmp_path, dataset)
    assert labels == Labels(
        names=("background", "whole", "core", "enhancing"), values=(0, 1, 2, 3), regions=((1, 2, 3), (2, 3), (3,)), ignore=4
    )
    assert labels.num_outputs == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 3}}, "without gaps"),
        ({"labels": {"a": 1}}, '"background": 0'),
        ({"labels": {"background": 1, "a": 0}}, '"background": 0'),
        ({"labels": {"background": 0, "a": "1?"}}, "labels"),
        ({"labels": {"background": 0, "a": [1, 2]}}, r"regions_class_order is \(\)"),
        ({"labels": {"background": 0, "a": [1, 2]}, "regions_class_order": [1, 2]}, "each of the 1 regions"),
        ({"channel_names": {}}, "channel_names"),
    ],
)
def test_what_nnunet_could_not_have_trained_is_refused(change: Json, message: str, tmp_path: Path, dataset: Json) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, dataset | change)
