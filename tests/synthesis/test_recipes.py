from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.synthesis.parents import Editing
from pipeline.synthesis.recipes import Recipe, lineage_of, other_recipes
from pipeline.synthesis.shards import Shard

SETTINGS = SamplerSettings("ddim", 10, Guidance(1.5), eta=0.5)
NOISE = Recipe("as asked", Path("generator"), "digest", SETTINGS)
EDITING = Editing(
    "edit", np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]), ("p0", "p1"), ("a", "b"),
    (0.3, 0.7), "box", 0.3, (), 1,
)  # fmt: skip


def generator(null_class_trained=True):
    return SimpleNamespace(spec=SimpleNamespace(null_class_trained=null_class_trained))


def others(asked=NOISE, teacher=NOISE, null_class_trained=True):
    return other_recipes(asked, teacher, generator(null_class_trained), EDITING)


def test_a_poor_class_may_try_firmer_guidance_and_edits():
    firm, edits = others()
    assert (firm.settings.guidance.weight, firm.editing) == (3.0, None)
    assert firm.settings.sampler == "ddim"
    assert (edits.settings, edits.mode) == (SETTINGS, "edit")
    assert NOISE.mode == "generate"


def test_the_students_class_tries_its_teacher():
    student = replace(NOISE, generator=Path("student"))
    assert {one.generator for one in others(student)} == {Path("generator")}


def test_edits_that_fail_are_followed_by_images_from_noise():
    asked = replace(NOISE, editing=replace(EDITING, mode="inpaint"))
    assert [(one.name, one.mode) for one in others(asked)] == [
        ("firmer guidance", "generate"),
        ("from noise", "generate"),
    ]


@pytest.mark.parametrize(("weight", "trained"), [(5.0, True), (1.5, False)])
def test_guidance_is_not_tried_where_it_is_firm_already_or_was_never_learned(weight, trained):
    teacher = replace(NOISE, settings=replace(SETTINGS, guidance=Guidance(weight)))
    (only,) = others(teacher=teacher, null_class_trained=trained)
    assert only.mode == "edit"


def test_lineage_says_how_and_from_what():
    recipes = (NOISE, replace(NOISE, editing=EDITING))
    edited = lineage_of(recipes, 7, Shard(1, 0, 3, recipe=1))
    assert edited["parent_id"] == ["p1"] * 3
    assert set(edited["strength"]) <= {0.3, 0.7}
    assert edited["mode"] == ["edit"] * 3
    plain = lineage_of(recipes, 7, Shard(1, 0, 3))
    assert plain.keys() == edited.keys()
    assert (plain["parent_id"], plain["strength"], plain["seed"]) == ([""] * 3, [1.0] * 3, [7] * 3)
    assert (plain["sampler"], plain["sampler_eta"], plain["guidance"]) == (
        ["ddim"] * 3, [0.5] * 3, [1.5] * 3,
    )  # fmt: skip
    assert "parent_id" not in lineage_of((NOISE,), 7, Shard(1, 0, 3))
