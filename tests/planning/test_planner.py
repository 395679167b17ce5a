"""Planner files: presets load, user files extend them, and what is wrong is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from medseg3d.errors import PlanError
from medseg3d.planning import load_planner, planner_names

ROOT = Path(__file__).parents[2]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_preset_loads_and_is_named_after_its_file() -> None:
    assert {"default", "nnunet_plain", "nnunet_resenc_m", "nnunet_resenc_l", "nnunet_resenc_xl"} <= set(planner_names())
    assert {"small", "residual_m", "residual_l", "residual_xl"} <= set(planner_names())
    for name in planner_names():
        assert load_planner(name).name == name
        assert load_planner(name).description


def test_our_presets_keep_the_cap_of_the_batch() -> None:
    for name in ("default", "residual_m", "residual_l", "residual_xl"):
        assert load_planner(name).batch.max_dataset_share == 0.05


def test_every_number_of_a_preset_has_a_reason_beside_it() -> None:
    for path in (ROOT / "planners").glob("*.toml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            is_number = "=" in line and not line.startswith(("#", "extends", "description", "family"))
            assert not is_number or "# " in line, f"{path.name}: {line}"


def test_the_tables_of_the_readme_are_those_of_the_records() -> None:
    spec = importlib.util.spec_from_file_location("planner_keys", ROOT / "scripts/planner_keys.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.with_tables(page) == page, "run python scripts/planner_keys.py --write-docs"
    assert "| `batch.max_dataset_share` | 0.05 | number above 0 | Largest share of all training voxels in one batch. |" in page
    assert "`beta` 0.7 (0.01 to 1): weight of false negatives" in page


def test_a_file_changes_only_what_it_gives(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", 'extends = "residual_l"\n[memory]\ngpu_memory_gb = 12\n')
    mine, parent = load_planner(path), load_planner("residual_l")
    assert mine.name == "mine"
    assert mine.memory.gpu_memory_gb == 12
    assert mine.memory.reference_3d == parent.memory.reference_3d
    assert mine.network == parent.network
    beside = load_planner(write(tmp_path / "child.toml", 'extends = "mine.toml"\n[batch]\nmin_size = 4\n'))
    assert (beside.memory.gpu_memory_gb, beside.batch.min_size) == (12, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "default"\nwidht = 3\n', r"unknown key 'widht' in the file\. It may hold .*network"),
        (
            'extends = "default"\n[network]\nbase_feature = 16\n',
            r"unknown key 'base_feature' in \[network\]\. Did you mean base_features\? It may hold base_features",
        ),
        ('extends = "default"\nnetwork = 3\n', "network must be a table"),
        (
            'extends = "default"\n[network]\nfamily = "wide_net"\n',
            "network.family: There is no network 'wide_net'; known are ",
        ),
        ('extends = "default"\n[lowres]\nspacing_step = 1.0\n', r"lowres\.spacing_step: expected greater than 1, found 1\.0"),
        ('extends = "default"\n[training]\nepochs = "many"\n', "training.epochs"),
        ('extends = "wrong.toml"\n', "extends itself"),
        ('extends = "defualt"\n', r"no planner 'defualt'\. Did you mean default\? The presets are "),
        ("[batch]\nmin_size = 2\n", 'missing .*batch.max_dataset_share.* or says extends = "default"'),
        ("[batch\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_what_would_be_right(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        load_planner(write(tmp_path / "wrong.toml", text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no such planner file"):
        load_planner(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nwarmup = 1.0", r"training\.warmup: expected less than 1, found 1\.0"),
        ("[spacing]\npercentile = 101", r"spacing\.percentile: expected less than or equal to 100, found 101"),
        ("[network]\nkernel_edge = 4", "network: kernel_edge is 4, expected an odd number"),
        ("[network]\nmax_stages = 1", "network: max_stages is 1, expected at least 2, or 0 for no cap"),
        ("[network]\nencoder_blocks = []", r"network\.encoder_blocks: .* at least 1 item"),
        ("[network]\ndecoder_blocks = [2, 0]", r"network\.decoder_blocks\.1: expected greater than or equal to 1, found 0"),
        ("[memory]\nreference_2d = 0", r"memory\.reference_2d: expected greater than or equal to 1, found 0"),
        ("[batch]\nmax_dataset_share = 0", r"batch\.max_dataset_share: expected greater than 0, found 0"),
        ("[lowres]\npatch_share = 1.0", r"lowres\.patch_share: expected less than 1, found 1\.0"),
        ("[training]\ncycles = 0", r"training\.cycles: .* greater than or equal to 1, found 0"),
        ("[training.layer_learning_rates]\nencoder = -1.0", r"layer_learning_rates\.encoder: .* greater than or equal to 0, found -1"),
        ('[network]\nfamily = "vnet"\n[network.options]\nhead = "large"', "head is 'large', expected one of 'convolved', 'pointwise'"),
        ('[network]\nfamily = "u2net"\n[network.options]\nspeed = 3', "u2net does not know speed"),
    ],
)
def test_numbers_that_cannot_train_are_refused(tmp_path, text, message):
    file = tmp_path / "wrong.toml"
    file.write_text(f'extends = "default"\n{text}\n')
    with pytest.raises(PlanError, match=message):
        load_planner(file)


def test_another_family_or_loss_does_not_inherit_options(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "unet_3d"\n[training]\nloss = "tversky"\nloss_options = { alpha = 0.4 }\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n[network]\nfamily = "vnet"\n[training]\nloss = "dice_ce"\n')
    first, second = load_planner(tmp_path / "a.toml"), load_planner(tmp_path / "b.toml")
    assert first.training.loss_options == {"alpha": 0.4}
    assert first.network.options["padding"] == "valid"
    assert second.training.loss_options == second.network.options == {}
