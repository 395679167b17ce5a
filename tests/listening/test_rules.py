"""The file that says what a listener does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medseg3d.errors import InputError
from medseg3d.listening.rules import Channel, read_rules
from medseg3d.records import to_plain

GOOD = """
[receive]
port = 11112
folder = "inbox"

[[rule]]
name = "liver"
model = "liver.medseg3d"
modality = "CT"
outputs = ["dicom-seg", "dicom-sr"]
send_to = ["pacs"]

[[destination]]
name = "pacs"
host = "127.0.0.1"
port = 4242
"""


def written(folder: Path, text: str) -> Path:
    """The file, with the model that it names beside it."""
    (folder / "liver.medseg3d").touch()
    path = folder / "night.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_begin_where_the_file_lies(tmp_path: Path) -> None:
    rules = read_rules(written(tmp_path, GOOD))
    assert (rules.receive.folder, rules.rule[0].model) == (tmp_path / "inbox", tmp_path / "liver.medseg3d")
    assert rules.rule[0].outputs == ("dicom-seg", "dicom-sr")


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("port = 11112\nfolder", "fodler", "fodler"),
        ('port = 11112\nfolder = "inbox"', "", "names nothing to listen to"),
        ("port = 11112", 'port = 11112\nhost = "0.0.0.0"', "name the AE titles"),
        ('modality = "CT"', 'description = "("', "no regular expression"),
        ('send_to = ["pacs"]', 'send_to = ["pax"]', "sends to 'pax'"),
        ('host = "127.0.0.1"', 'host = "127.0.0.1"\nfolder = "out"', "expected one of host"),
        ('"dicom-sr"]', '"dicom-rt"]', "dicom-rtstruct"),
        ("liver.medseg3d", "other.medseg3d", "not there"),
        ("port = 11112", 'port = 11112\ntls_key = "key.pem"', "without tls_certificate"),
        ('host = "127.0.0.1"', 'host = "127.0.0.1"\ntls_trusted = "ca.pem"', "without tls = true"),
        ('host = "127.0.0.1"\nport = 4242', 'folder = "out"\ntls = true', "tls goes with host"),
        (
            "[[destination]]",
            '[[rule.channel]]\nname = "T1"\n[[rule.channel]]\nname = "T1"\n[[destination]]',
            "two channels are called 'T1'",
        ),
        ("[[destination]]", '[[rule.channel]]\nname = "T1"\nexclude = "("\n[[destination]]', "exclude is no regular expression"),
    ],
)
def test_what_is_wrong_is_named(before: str, after: str, what: str, tmp_path: Path) -> None:
    assert before in GOOD
    with pytest.raises(InputError, match=what):
        read_rules(written(tmp_path, GOOD.replace(before, after)))


def test_certificates_lie_beside_the_file_and_stand_for_a_list_of_callers(tmp_path: Path) -> None:
    tls = 'host = "0.0.0.0"\ntls_certificate = "own.pem"\ntls_trusted = "/etc/ca.pem"'
    receive = read_rules(written(tmp_path, GOOD.replace("port = 11112", f"port = 11112\n{tls}"))).receive
    assert (receive.tls_certificate, receive.tls_key, receive.tls_trusted) == (tmp_path / "own.pem", None, Path("/etc/ca.pem"))


def test_a_rule_of_an_earlier_version_keeps_its_digest(tmp_path: Path) -> None:
    rule = read_rules(written(tmp_path, GOOD)).rule[0]
    assert "channel" not in to_plain(rule)
    with_channel = replace(rule, channel=(Channel(name="T1"),))
    assert with_channel.digest != rule.digest


def test_a_rule_that_changes_has_another_digest(tmp_path: Path) -> None:
    first = read_rules(written(tmp_path, GOOD)).rule[0]
    other = read_rules(written(tmp_path, GOOD.replace('"CT"', '"MR"'))).rule[0]
    assert first.digest != other.digest
