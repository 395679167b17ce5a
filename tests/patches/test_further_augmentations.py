"""An augmentation of an extension is drawn and applied after all others, and changes none of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg3d.errors import PlanError
from medseg3d.extensions import forget_extensions, use_extension
from medseg3d.patches.augmentation import AugmentationDraw, Batch, augment, augmentation_policy, draw_augmentation
from medseg3d.patches.further_augmentations import further_augmentations
from medseg3d.planning import load_planner
from medseg3d.planning.loss_rules import providers_of

PATCH = (4, 6, 5)
TEXT = """
from medseg3d.losses import NumberOption
from medseg3d.patches.further_augmentations import Augmentation


def draw(rng, options):
    return rng.uniform(1, 2) if rng.random() < options["probability"] else None


def apply(image, labels, factor):
    return image * factor, labels.clamp(max=1)


AUGMENTATIONS = {
    "scaled": Augmentation(
        meaning="all values times a factor",
        draw=draw,
        apply=apply,
        options={"probability": NumberOption(default=0.5, minimum=0, maximum=1, meaning="share of samples")},
    )
}
"""


@pytest.fixture(autouse=True)
def extension(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "scaled.py"
    path.write_text(TEXT, encoding="utf-8")
    use_extension(path)
    yield path
    forget_extensions()


def test_the_draws_of_the_others_are_those_without_it() -> None:
    plain = augmentation_policy(PATCH, num_channels=2, mirror_axes=(0, 1, 2))
    more = replace(plain, further=further_augmentations({"scaled": {}}))
    draws = [[draw_augmentation(policy, np.random.default_rng(seed)) for seed in range(40)] for policy in (plain, more)]
    assert [replace(draw, further=()) for draw in draws[1]] == draws[0]
    drawn = [draw.further[0] for draw in draws[1]]
    assert 8 < sum(each is None for each in drawn) < 32
    assert all(1 <= each <= 2 for each in drawn if each is not None)  # type: ignore[operator]


def test_it_is_applied_to_the_samples_that_drew_it() -> None:
    policy = augmentation_policy(PATCH, num_channels=1, mirror_axes=(), further=further_augmentations({"scaled": {"probability": 1}}))
    batch = Batch(
        image=torch.randn(2, 1, *PATCH),
        labels=torch.randint(0, 4, (2, *PATCH), dtype=torch.int16),
        names=("a", "b"),
        draws=(AugmentationDraw(further=(None,)), AugmentationDraw(further=(1.5,), mirror=(1,))),
        crops=(None, None),
    )
    image, labels = augment(batch, policy, torch.device("cpu"))
    assert torch.equal(image[0], batch.image[0])
    assert torch.equal(labels[0], batch.labels[0].long())
    assert torch.equal(image[1], 1.5 * batch.image[1].flip(2))
    assert torch.equal(labels[1], batch.labels[1].flip(1).clamp(max=1).long())


def planner_file(folder: Path, table: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'extends = "default"\n{table}\n', encoding="utf-8")
    return path


def test_a_planner_names_it_and_its_provider_is_noted(tmp_path: Path, extension: Path) -> None:
    planner = load_planner(planner_file(tmp_path, "[training.augmentations.scaled]\nprobability = 0.25"))
    assert planner.training.augmentations == {"scaled": {"probability": 0.25}}
    assert providers_of(planner.training) == {"scaled": use_extension(extension).provider}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[training.augmentations.scaled]\nspeed = 1", "training.augmentations.scaled: it has no option 'speed'; it has probability"),
        ("[training.augmentations.scaled]\nprobability = 2", "probability is 2.*, must be a number from 0 to 1"),
        ("[training.augmentations.turned]", "training.augmentations: There is no augmentation 'turned'; known are scaled"),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_the_files_name(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(PlanError, match=rf"mine\.toml: .*{message}"):
        load_planner(planner_file(tmp_path, table))


def test_a_plan_that_needs_it_says_where_it_is_from() -> None:
    forget_extensions()
    with pytest.raises(
        PlanError, match=r"needs the augmentation 'scaled' of the extension scaled.py: name it with --extension scaled.py, in Python with"
    ):
        further_augmentations({"scaled": {}}, {"scaled": "file scaled.py 0123456789ab"})
