"""Files of JSON, TOML and CSV are read in whichever UTF they are written; what no parser takes is one message."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medseg3d.data.label_names import names_beside
from medseg3d.errors import InputError, PlanError
from medseg3d.parsing import MAX_DEPTH, read_table
from medseg3d.planning.planner import load_planner
from medseg3d.records import from_plain, read_json, read_toml
from medseg3d.training.folds import groups_from_csv

Read = Callable[[Path], Any]


def labels_table(file: Path) -> dict[int, str]:
    return names_beside(file.parent)


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.fault("E", "a byte order mark, or UTF-16, in JSON, TOML or CSV", "read as UTF-8 is")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_utf_is_read(encoding: str, tmp_path: Path) -> None:
    for name, text, read, expected in (
        ("a.json", '{"Größe": 1}', read_json, {"Größe": 1}),
        ("a.toml", 'name = "Größe"', read_toml, {"name": "Größe"}),
        ("a.csv", "case;group\nGröße;1\n", groups_from_csv, {"Größe": "1"}),
        ("labels.csv", "value,name\n2,Größe\n", labels_table, {2: "Größe"}),
    ):
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert read(tmp_path / name) == expected


DEEP = 100_000
UNREADABLE: dict[str, tuple[str, Read, str]] = {
    "100,000 brackets": ("[" * DEEP, read_json, "more than 64 levels deep"),
    "100,000 brackets that close": ("[" * DEEP + "]" * DEEP, read_json, "more than 64 levels deep"),
    "100,000 objects": ('{"a":' * DEEP + "1" + "}" * DEEP, read_json, "more than 64 levels deep"),
    "65 levels of lists": ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), read_json, "more than 64 levels deep"),
    "an integer of 5,000 digits in JSON": ('{"a": ' + "9" * 5000 + "}", read_json, "a whole number of more than 4300 digits"),
    "an integer of 5,000 digits in TOML": ("a = " + "9" * 5000, read_toml, "a whole number of more than 4300 digits"),
    "100,000 brackets in TOML": ("a = " + "[" * DEEP, read_toml, "more than 64 levels deep"),
    "a TOML key of 50,000 dots": (".".join("a" * 50_000) + " = 1", read_toml, "more than 64 levels deep"),
    "a TOML table of 50,000 dots": ("[" + " . ".join(["'a'"] * 50_000) + "]", read_toml, "more than 64 levels deep"),
    "50,000 dots within a TOML table": ("a = {" + ".".join("a" * 50_000) + " = 1}", read_toml, "more than 64 levels deep"),
    "a TOML of two million characters": ("# " + "a" * 2_000_000, read_toml, "2,000,002 characters"),
    "a CSV field of 131,073 characters": ("case,group\na," + "b" * 131_073, groups_from_csv, "field larger than field limit"),
    "a CSV field of 200,000 characters, quoted": (
        'value,name\n1,"' + "b" * 200_000 + '"',
        labels_table,
        "field larger than field limit",
    ),
    "no text": ("a\udcff\udc80", read_json, "not a text in UTF-8"),
}


@pytest.mark.fault("E", "JSON, TOML and CSV that break their parsers", "one message that names the file")
@pytest.mark.parametrize("what", UNREADABLE)
def test_what_breaks_a_parser_is_one_message(what: str, tmp_path: Path) -> None:
    text, read, message = UNREADABLE[what]
    suffix = {read_json: ".json", read_toml: ".toml"}.get(read, ".csv")
    file = tmp_path / ("labels.csv" if read is labels_table else f"file{suffix}")
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    began = time.perf_counter()
    with pytest.raises(InputError, match=message) as raised:
        read(file)
    assert str(raised.value).startswith(str(file))
    assert len(str(raised.value)) < 500
    assert time.perf_counter() - began < 5


def test_a_planner_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[" + ".".join(["network"] * 100) + "]\na = 1\n", encoding="utf-8")
    with pytest.raises(PlanError, match="more than 64 levels deep"):
        load_planner(tmp_path / "my.toml")


def test_ordinary_nesting_long_words_and_dots_in_texts_are_read(tmp_path: Path) -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    (tmp_path / "a.json").write_text(deep, encoding="utf-8")
    assert json.dumps(read_json(tmp_path / "a.json")) == deep
    sentence = ". ".join(["word"] * 30)
    (tmp_path / "a.toml").write_text(f'a = "{sentence}"\nb = "{"x" * 500_000}"\n[c.d.e]\nf = 1.5\n', encoding="utf-8")
    assert read_toml(tmp_path / "a.toml")["c"] == {"d": {"e": {"f": 1.5}}}
    (tmp_path / "a.csv").write_text("a\tb\n 1 \t2\n", encoding="utf-8")
    assert read_table(tmp_path / "a.csv") == [["a", "b"], ["1", "2"]]


def test_a_message_does_not_repeat_a_key_of_a_megabyte() -> None:
    with pytest.raises(InputError) as raised:
        from_plain({"x" * 1_000_000: "no number"}, dict[str, int], "file")
    assert len(str(raised.value)) < 500


def test_a_text_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(InputError, match="2 GiB; expected a text of at most 1 GiB"):
        read_json(tmp_path / "a.json")
