# SPDX-License-Identifier: Apache-2.0
"""One smoke of every recipe in miniature; the main job has its own file, test_main_job.py."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from thinkgen_jax import logs, recipe, sharding, train
from thinkgen_jax.data import prompt_sets

CONFIGS = Path(__file__).parents[1] / "configs"
APART = ("__init__", "common", "sepgrpo", "own", "served")  # data/test_corpus, launch/test_served
RECIPES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in APART)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_takes_two_steps(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    workdir = train.run(config, tmp_path / name)
    rows = logs.read_metrics(workdir)
    assert [row["step"] for row in rows] == [1, 2]
    losses = [v for row in rows for k, v in row.items() if k.endswith("/loss")]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_prompt_sets_are_rewarded_by_scenario_and_change_no_shape():
    """The released system's batches are as large with them as with the miniature world."""

    def read(argument):
        config = importlib.import_module("configs.sepgrpo").get_config(argument)
        recipe.check_phases(config)
        return dict(recipe.plans(config))

    usual, asked = read("thinkgen"), read("thinkgen,prompts=sets")
    for name, plan in asked.items():
        own = set(plan.scenario_rewards)
        assert {s for stream in plan.streams for s in stream.scenarios} == own
        assert not plan.rewards and [one.kind for one in plan.sets] == ["jsonl"]
        shapes = [[(s.pictures, s.length) for s in p.streams] for p in (usual[name], plan)]
        assert shapes[0] == shapes[1]
    assert set(asked["mllm_grpo"].scenario_rewards) == set(prompt_sets.MIX)
    assert "siglip2" in asked["mllm_grpo"].servers and "siglip2" not in asked["dit_grpo"].servers


def test_scenarios_of_prompt_sets_may_have_any_name():
    config = importlib.import_module("configs.dit_grpo").get_config("tiny,prompts=sets")
    for name, streams in (("poster", config.plans.dit_grpo.streams),):
        with streams.unlocked():
            streams.a_drawn.scenarios = {name: 1.0}
    recipe.check_phases(config)
    config.plans.dit_grpo.sets = {}
    with pytest.raises(ValueError, match=r"scenarios \['poster'\] of config"):
        recipe.check_phases(config)


def test_drawing_without_guidance_is_measured_where_it_is_trained():
    def asked(name, argument):
        config = importlib.import_module(f"configs.{name}").get_config(argument)
        return "thinking, temperature 1, no guidance" in recipe.modes(config)

    assert asked("sepgrpo", "nano") and asked("dit_grpo", "nano")
    assert not asked("sepgrpo", "nano,rl=plain") and not asked("mllm_grpo", "nano")


def test_what_does_not_learn_is_kept_in_half_the_bytes_if_it_is_told_to():
    config = importlib.import_module("configs.sepgrpo").get_config("tiny")
    config.frozen_dtype = "bfloat16"
    with jax.set_mesh(sharding.make_mesh()):
        setup, states = recipe.load(config, logs.setup())
    for tree in ("mllm", "dit"):
        assert {x.dtype.name for x in jax.tree.leaves(setup.references[tree])} == {"bfloat16"}
        assert {x.dtype.name for x in jax.tree.leaves(states[tree].params)} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(setup.frozen["vae"])} == {"float32"}
    config.frozen_dtype = "float8"
    with pytest.raises(ValueError, match="config.frozen_dtype 'float8' is not one of"):
        recipe.frozen_dtype(config)
