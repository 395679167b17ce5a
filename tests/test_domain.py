"""Which datasets a work folder serves, and which of them a command means."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg3d.domain import Domain, domain_folder, domain_of, domains_of, read_domains, write_domains
from medseg3d.errors import InputError
from medseg3d.work_folder import WorkFolder


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A work folder of Heart and Liver, which Lung joined."""
    folder = WorkFolder(tmp_path / "work")
    folder.root.mkdir()
    domains = [
        Domain(name=name, dataset=tmp_path / name, folder=domain_folder(folder, name), configuration="2d", is_added=name == "Lung")
        for name in ("Heart", "Liver", "Lung")
    ]
    write_domains(folder, "2d", domains)
    assert list(read_domains(folder)) == domains
    return folder.root


def test_an_ordinary_work_folder_has_one_domain_without_a_name(tmp_path: Path) -> None:
    (only,) = domains_of(tmp_path, None)
    assert only == domain_of(tmp_path, None)
    assert (only.name, only.configuration, only.folder.root) == (None, None, tmp_path / "medseg3d-work")
    assert only.named("done") == "done"
    with pytest.raises(InputError, match="is no work folder of several datasets"):
        domains_of(tmp_path, None, "Heart")


def test_a_command_means_all_domains_or_the_one_that_is_named_or_whose_dataset_is_given(shared: Path) -> None:
    assert [domain.name for domain in domains_of(Path(), shared)] == ["Heart", "Liver", "Lung"]
    assert [domain.name for domain in domains_of(Path(), shared, "Liver")] == ["Liver"]
    (found,) = domains_of(shared.parent / "x" / ".." / "Lung", shared)
    assert found == domain_of(Path(), shared, "Lung")
    assert (found.is_added, found.configuration, found.named("done")) == (True, "2d", "Lung: done")
    assert found.folder.root == shared / "domains" / "Lung"


def test_one_domain_is_that_of_the_current_folder_and_never_guessed(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"work: serves Heart, Liver, Lung\. Say which one is meant"):
        domain_of(Path(), shared)
    with pytest.raises(InputError, match="serves Heart, Liver, Lung"):
        domains_of(shared.parent / "Spleen", shared)
    with pytest.raises(InputError, match="no domain 'Spleen'; the domains are Heart, Liver, Lung"):
        domain_of(Path(), shared, "Spleen")
    (shared.parent / "Liver").mkdir()
    monkeypatch.chdir(shared.parent / "Liver")
    assert domain_of(Path(), shared).name == "Liver"
