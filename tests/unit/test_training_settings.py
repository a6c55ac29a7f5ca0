"""Training recipes: contradictions are found before anything starts, all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddscale import recipes
from ddscale.training import deepspeed_config
from ddscale.training.settings import PretrainRecipe

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes" / "pretrain").glob("*.yaml"))


def recipe(**changes):
    tree = {
        "stage": "pretrain",
        "run": "runs/test",
        "model": {"preset": "demo"},
        "data": {"stores": ["store"]},
        "global_batch_size": 64,
        "micro_batch_size": 8,
        "steps": 100,
        **changes,
    }
    return recipes.check(tree, PretrainRecipe, "recipe")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_on_one_rank_or_as_many_as_its_batch_allows(path):
    loaded = recipes.load(path, PretrainRecipe)
    assert loaded.problems_at(loaded.global_batch_size // loaded.micro_batch_size) == []


def test_the_paper_and_its_released_code_differ_in_the_mask_and_each_recipe_says_so():
    by_name = {path.stem: path for path in SHIPPED}
    assert recipes.load(by_name["dreamdiffusion"], PretrainRecipe).model.mask_ratio == 0.75
    assert recipes.load(by_name["dreamdiffusion-released-code"], PretrainRecipe).model.mask_ratio == 0.1
    for name in ("dreamdiffusion", "dreamdiffusion-released-code"):
        assert "0.75" in by_name[name].read_text()
        assert "0.1" in by_name[name].read_text()


def test_all_contradictions_are_reported_at_once():
    with pytest.raises(recipes.RecipeError) as caught:
        recipe(
            micro_batch_size=7,
            schedule={"warmup_steps": 1000},
            data={"stores": ["store"], "window_samples": 256},
            deepspeed={"train_batch_size": 32, "zero_optimisation": {"stage": 2}},
        )
    message = str(caught.value)
    assert "global_batch_size 64 is not a multiple of micro_batch_size 7" in message
    assert "warm-up takes 1000 steps, the run has 100" in message
    assert "data.window_samples is 256, but model.n_samples is 512" in message
    assert "deepspeed.train_batch_size is 32, but `global_batch_size` is 64" in message
    assert "Did you mean `zero_optimization`?" in message


@pytest.mark.parametrize(
    ("section", "names"),
    [
        (
            {"train_micro_batch_size_per_gpu": 4},
            ["train_micro_batch_size_per_gpu is 4", "`micro_batch_size` is 8"],
        ),
        ({"gradient_clipping": 0.5}, ["gradient_clipping is 0.5", "`clip` is 1.0"]),
        ({"zero_optimization": {"stage": 3}}, ["zero_optimization.stage is 3", "`zero_stage` is 1"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled is True", "`precision` is fp32"]),
        ({"optimizer": {"type": "Lion"}}, ["deepspeed.optimizer", "`optimiser`"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["deepspeed.scheduler", "`schedule`"]),
    ],
)
def test_a_deepspeed_section_that_contradicts_the_recipe_names_both_keys(section, names):
    with pytest.raises(recipes.RecipeError) as caught:
        recipe(deepspeed=section)
    assert all(name in str(caught.value) for name in names)


def test_a_deepspeed_section_that_repeats_the_recipe_or_leaves_it_to_it_is_fine():
    given = {
        "train_batch_size": 64,
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000},
        "fp16": {"enabled": False},
    }
    built = deepspeed_config.build(recipe(deepspeed={**given, "gradient_accumulation_steps": "auto"}), 2)
    assert built["gradient_accumulation_steps"] == 4
    assert built["zero_optimization"]["reduce_bucket_size"] == 1000


def test_accumulation_that_contradicts_the_number_of_ranks_is_named_when_that_is_known():
    settings = recipe(deepspeed={"gradient_accumulation_steps": 2})
    assert deepspeed_config.build(settings, 4)["gradient_accumulation_steps"] == 2
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps is 2.*over 2 ranks.*is 4"):
        deepspeed_config.build(settings, 2)


def test_a_batch_that_cannot_be_shared_by_the_ranks_says_which_could():
    (problem,) = recipe().problems_at(3)
    assert "64 is not a multiple of micro_batch_size 8 x 3 ranks = 24" in problem
    assert "use global_batch_size 72" in problem
    assert recipe(global_batch_size=72).problems_at(3) == []


def test_bf16_adds_up_its_micro_batches_in_float32_where_deepspeed_can():
    def settings(stage):
        return recipe(precision="bf16", zero_stage=stage)

    for stage in (2, 3):
        assert deepspeed_config.build(settings(stage), 2)["data_types"] == {"grad_accum_dtype": "fp32"}
        assert deepspeed_config.warnings(settings(stage), 2) == []
    for stage in (0, 1):
        assert "data_types" not in deepspeed_config.build(settings(stage), 2)
        assert "zero_stage 2 adds them in float32" in deepspeed_config.warnings(settings(stage), 2)[0]
        assert deepspeed_config.warnings(settings(stage), 8) == []
