"""No zip leaves anything but plain files in its folder."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.errors import InputError
from medseg3d.unpack import MAX_MEMBERS, unpack

LIMIT = 2**20


def archive_of(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_come_out_as_they_went_in_without_what_systems_add(tmp_path: Path) -> None:
    members = [("a/b.dcm", b"1" * 5000), ("c.dcm", b""), (".DS_Store", b"x"), ("__MACOSX/._b", b"x"), ("a/DICOMDIR", b"x")]
    found = unpack(archive_of(tmp_path / "x.zip", *members), tmp_path / "x", max_bytes=LIMIT)
    assert files_below(tmp_path / "x") == {"a/b.dcm": b"1" * 5000, "c.dcm": b""}
    assert found == (tmp_path / "x/a/b.dcm", tmp_path / "x/c.dcm")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "\\x", "..\\x", "C:\\x", "c:x", "a\nb", "a" * 300, "a/" * 600 + "x"])
def test_a_name_that_leads_out_of_the_folder_or_is_odd_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="nothing was unpacked"):
        unpack(archive_of(tmp_path / "x.zip", ("fine.dcm", b"1"), (name, b"2")), tmp_path / "deep/x", max_bytes=LIMIT)
    assert set(files_below(tmp_path)) == {"x.zip"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_a_device_is_refused(tmp_path: Path, kind: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        member = zipfile.ZipInfo("link.dcm")
        member.external_attr = (kind | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(InputError, match="is a link or a device"):
        unpack(tmp_path / "x.zip", tmp_path / "x", max_bytes=LIMIT)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = archive_of(tmp_path / "x.zip", *[(f"{k}.dcm", bytes(LIMIT // 3)) for k in range(4)])
    assert bomb.stat().st_size < LIMIT / 100
    with pytest.raises(InputError, match="unpacks to more than the 1 MiB"):
        unpack(bomb, tmp_path / "x", max_bytes=LIMIT)
    assert not (tmp_path / "x").exists()


def test_a_bomb_that_lies_about_its_size_is_damaged(tmp_path: Path) -> None:
    bomb = archive_of(tmp_path / "x.zip", ("a.dcm", bytes(LIMIT)))
    content = bomb.read_bytes().replace(struct.pack("<I", LIMIT), struct.pack("<I", 10))
    bomb.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        unpack(bomb, tmp_path / "x", max_bytes=100)
    assert sum(len(data) for data in files_below(tmp_path / "x").values()) <= 100


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for k in range(MAX_MEMBERS + 1):
            archive.writestr(str(k), b"")
    with pytest.raises(InputError, match=f"expected at most {MAX_MEMBERS}"):
        unpack(tmp_path / "x.zip", tmp_path / "x", max_bytes=LIMIT)


def test_a_list_of_members_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    entry = b"PK\1\2" + bytes(42)
    count = 2**18
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, count * len(entry), 0, 0)
    (tmp_path / "x.zip").write_bytes(entry * count + end)
    with pytest.raises(InputError, match="lists too many members"):
        unpack(tmp_path / "x.zip", tmp_path / "x", max_bytes=LIMIT)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bound_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(InputError, match="rare method"):
        unpack(archive_of(tmp_path / "x.zip", ("a", bytes(1000)), method=method), tmp_path / "x", max_bytes=LIMIT)


@pytest.mark.parametrize("names", [("a", "b\\c", "b/c"), ("a/b", "a")])
def test_two_members_of_one_name_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="same name"):
        unpack(archive_of(tmp_path / "x.zip", *[(name, b"x") for name in names]), tmp_path / "x", max_bytes=LIMIT)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(archive_of(tmp_path / "x.zip", ("a", b"x")).read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + offset] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        unpack(tmp_path / "x.zip", tmp_path / "x", max_bytes=LIMIT)


@given(st.lists(st.text(alphabet="ab./\\:\0 é", min_size=1, max_size=12), max_size=4))
def test_whatever_the_names_nothing_lies_outside(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as text:
        root = Path(text).resolve()
        archive = archive_of(root / "x.zip", *[(name, b"1") for name in sorted({name.split("\0")[0] for name in names} - {""})])
        try:
            found = unpack(archive, root / "deep/inside", max_bytes=LIMIT)
        except InputError:
            found = ()
        assert {str(path.relative_to(root)) for path in found} | {"x.zip"} == set(files_below(root))
        assert all(path.resolve().is_relative_to(root / "deep/inside") for path in found)


def _sound() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.dcm", b"one" * 100)
        archive.writestr("a/2.dcm", b"two" * 100)
    return buffer.getvalue()


SOUND = _sound()


@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 20))
def test_a_damaged_zip_is_an_input_error(changes: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(SOUND)
    for place, value in changes:
        content[place] = value
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        (root / "x.zip").write_bytes(content[: len(content) - cut])
        with contextlib.suppress(InputError):
            unpack(root / "x.zip", root / "x", max_bytes=LIMIT)
        assert all(len(data) <= LIMIT for data in files_below(root).values())
