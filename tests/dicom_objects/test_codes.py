"""From names of labels to codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

from medseg3d.dicom_objects.codes import CATEGORIES, SIDE_CODES, CodeTable, _table, read_codes
from medseg3d.dicom_objects.structured_report import IMAGING, PROCEDURES, VOLUME
from medseg3d.errors import InputError


def test_every_code_stands_in_the_tables_of_dicom_with_its_meaning() -> None:
    known = {scheme: {code: [] for entries in found.values() for code in entries} for scheme, found in concepts.items()}
    for scheme, found in concepts.items():
        for entries in found.values():
            for code, (meaning, _) in entries.items():
                known[scheme][code].append(meaning)
    codes = [each.code for each in _table().values()] + [*CATEGORIES.values(), *SIDE_CODES.values(), *PROCEDURES.values(), IMAGING, VOLUME]
    wrong = [code for code in codes if code.meaning not in known[code.scheme].get(code.value, [])]
    assert not wrong


@pytest.mark.parametrize(
    ("name", "code", "side", "region"),
    [
        ("Liver", "10200004", None, None),
        ("kidney_left", "64033007", "Left", None),
        ("LKidney", "64033007", "Left", None),
        ("left ventricle", "87878005", None, None),
        ("vertebrae_L3", "36470004", None, None),
        ("rib_right_4", "113197003", "Right", None),
        ("kidney tumor", "108369006", None, "Kidney"),
        ("cyst of left kidney", "367643001", "Left", "Kidney"),
        ("whole tumor", "108369006", None, None),
    ],
)
def test_known_names_have_their_code(name: str, code: str, side: str | None, region: str | None) -> None:
    found = CodeTable().structure(name)
    assert (found.code.value, found.side and found.side.meaning, found.region and found.region.meaning) == (code, side, region)


def test_an_unknown_name_has_a_private_code_of_its_own() -> None:
    one, other = CodeTable().structure("Frobnicator"), CodeTable().structure("Frobnicator 2")
    assert one.is_private
    assert one.code.meaning == "Frobnicator"
    assert one.code.value != other.code.value


def test_a_table_of_codes_goes_before_ours(tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    rows = ("name,code,scheme,meaning,kind,side", "Shell,X-1,99CLINIC,Outer shell,lesion,right", "liver,X-2,99CLINIC,My liver,,")
    path.write_text("\n".join(rows), "utf-8")
    table = read_codes(path)
    assert table.structure("shell").category == CATEGORIES["lesion"]
    assert table.structure("shell").side == SIDE_CODES["right"]
    assert table.structure("Liver").code.value == "X-2"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name,code,meaning\na,1,b\n", "column scheme"),
        ("name,code,scheme,meaning\na,,SCT,b\n", "row 2: code is empty"),
        ("name,code,scheme,meaning\na,12345678901234567,SCT,b\n", "at most 16"),
        ("name,code,scheme,meaning,kind\na,1,SCT,b,organ\n", "kind is 'organ'"),
        ("name,code,scheme,meaning,side\na,1,SCT,b,up\n", "side is 'up'"),
    ],
)
def test_a_table_that_says_no_codes_is_refused_with_its_row(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=what):
        read_codes(path)
