# SPDX-License-Identifier: Apache-2.0
"""PyTorch's side of the speed comparison: official numbers, and the same work as ours.

Runs where torch, transformers and diffusers are installed.
"""

import importlib
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import assert_golden, cases
from tests.models import test_dit as golden_dit
from tests.toy import SYSTEM, tiny

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
pytest.importorskip("transformers", reason="compares with transformers, which is not installed")
pytest.importorskip("diffusers", reason="compares with diffusers, which is not installed")

from launch import contests, iterations, measure, speed  # noqa: E402
from launch.peers import dit as peer_dit  # noqa: E402
from launch.peers import flow as peer_flow  # noqa: E402
from launch.peers import flow_grpo, models, token_grpo  # noqa: E402
from thinkgen_jax import rollout  # noqa: E402
from thinkgen_jax.data import prompts  # noqa: E402
from thinkgen_jax.models.packing import pack_ragged, unpack  # noqa: E402
from thinkgen_jax.optim import OptimConfig  # noqa: E402
from thinkgen_jax.sampling import flow  # noqa: E402
from thinkgen_jax.sampling.flow import Guidance  # noqa: E402
from thinkgen_jax.steps import dit_grpo, mllm_grpo, state  # noqa: E402
from thinkgen_jax.steps.dit_grpo import DitGrpoConfig  # noqa: E402
from thinkgen_jax.steps.mllm_grpo import MllmGrpoConfig  # noqa: E402
from thinkgen_jax.steps.state import Learner  # noqa: E402
from thinkgen_jax.structs import Thoughts, Trajectory  # noqa: E402

ATOL = 1e-4
LEARNER = Learner(OptimConfig(lr=1e-3, warmup_steps=0, b2=0.999, weight_decay=0.01))


@pytest.fixture(autouse=True)
def two_threads():
    """Threads of other tests' size: the suite runs several of these at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=1)
def nets():
    """PyTorch's three networks with the tiny system's weights."""
    _, params = tiny()
    dit = peer_dit.of_tree(SYSTEM.dit, params.dit)
    return models.mllm_of(SYSTEM, params.mllm), dit, models.vae_of(SYSTEM, params.vae)


def pseudo(built, *words):
    """Prompts with an empty thought, right-padded."""
    rows = [built.text.pseudo(text) for text in words]
    return jax.tree.map(jnp.asarray, prompts.assemble(rows, length=max(map(len, rows)) + 2))


# --- networks ---


@pytest.mark.parametrize("name", "abcdef")
def test_velocity_equals_official(name):
    """All golden cases: ragged text, no, one or two references, targets of several sizes."""
    model = peer_dit.of_tree(golden_dit.CFG, golden_dit.official())
    latents, references = golden_dit.case_inputs(name)
    arrays, tensor = golden_dit.ARRAYS, models.tensor
    target = models.pictures_of(pack_ragged([[x] for x in latents], patch=2))
    refs = None
    if any(references):
        packed = pack_ragged(references, patch=2)
        refs = peer_dit.Pictures(*map(tensor, packed))
    text = peer_dit.Text(tensor(arrays[f"{name}.text"]), tensor(arrays[f"{name}.text_mask"]) > 0)
    with torch.inference_mode():
        out = model(target, tensor(arrays[f"{name}.timestep"]), text, refs).numpy()
    for i, x in enumerate(latents):
        h, w = x.shape[:2]
        got = np.moveaxis(np.asarray(unpack(jnp.asarray(out[i : i + 1]), patch=2, h=h, w=w)), -1, 1)
        if f"{name}.output" in arrays:
            want, key = arrays[f"{name}.output"][i], f"{name}.output"
        else:
            want, key = arrays[f"{name}.output.{i}"], f"{name}.output.{i}"
        atol = golden_dit.META["arrays"][key]["suggested_atol"]
        np.testing.assert_allclose(got[0], want, rtol=0, atol=atol)


def test_text_without_padding_needs_no_mask():
    """The same velocity with a mask that hides nothing, and with words behind the mask."""
    model = nets()[1]
    rng = np.random.default_rng(0)
    states = models.tensor(rng.standard_normal((2, 6, SYSTEM.dit.condition_dim), np.float32))
    noise = models.tensor(rng.standard_normal((2, 12, SYSTEM.dit.token_dim), np.float32))
    target, t = peer_dit.Pictures(noise, models.grid_places(3, 4, 2), None), torch.full((2,), 0.4)
    mask = torch.arange(9)[None] < torch.tensor([[6], [6]])
    junk = torch.cat([states, torch.full((2, 3, states.shape[-1]), 9.0)], dim=1)
    with torch.inference_mode():
        plain = model(target, t, peer_dit.Text(states, None))
        padded = model(target, t, peer_dit.Text(junk, mask))
    torch.testing.assert_close(plain, padded, rtol=0, atol=ATOL)


def test_condition_states_equal_ours():
    """Rows of different lengths, cut behind the mark, with and without the last token."""
    built, params = tiny()
    prompt = pseudo(built, "a red ring", "two blue squares and a cross")
    for drop in (False, True):
        want = built.encoder.condition(params.mllm, prompt, drop_last=drop)
        with torch.no_grad():
            got, valid = models.condition(
                nets()[0],
                *models.rows_of(prompt),
                close_id=built.text.close_id,
                most=SYSTEM.instruction_tokens,
                drop_last=drop,
            )
        want = models.text_of(want)
        assert valid.all() and torch.equal(got.mask, want.mask)
        shown = got.mask[..., None]
        torch.testing.assert_close(got.states * shown, want.states * shown, rtol=0, atol=ATOL)


def test_sampling_and_pictures_equal_ours():
    built, params = tiny()
    condition = built.encoder.condition(params.mllm, pseudo(built, "a red ring", "a cross"))
    away = rollout.negative_condition(built, params.mllm, Guidance(text=3.0))
    noise, (h, w) = rollout.initial_noise(built, jax.random.key(3), 2), built.grid()
    target = rollout._places(built, 2)._replace(tokens=noise)
    grid = flow.times(3, latent_pixels=h * w)
    want = flow.sample(
        built.dit,
        params.dit,
        target,
        condition,
        away,
        None,
        jnp.asarray(grid),
        guidance=Guidance(text=3.0),
    )
    texts = models.text_of(condition), models.repeat(models.text_of(away), 2)
    got = peer_flow.sample(nets()[1], models.pictures_of(target), *texts, grid.tolist(), 3.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=10 * ATOL)
    with torch.inference_mode():
        images = models.decode_pixels(nets()[2], got, patch=2, h=h, w=w)
    ours = rollout.decode_pixels(built, params.vae, want)
    assert np.abs(images.astype(int) - ours).max() <= 1  # where rounding to uint8 decides


# --- iterations ---


@pytest.mark.parametrize("step", [0, 5, 9])
def test_stochastic_steps_equal_official(step):
    """The fixture's sigma and v are 1 - t and -u here."""
    arrays, meta = cases("flow_grpo")
    grid = (1 - arrays["sde.sigmas"].astype(np.float64)).tolist()
    x, u = torch.tensor(arrays["sde.sample"]), -torch.tensor(arrays["sde.velocity"])
    mean, std, diffusion = flow_grpo.transition(x, u, grid, step, meta["config"]["noise_level"])
    key = f"sde.step{step}"
    assert_golden("flow_grpo", f"{key}.mean", mean)
    assert_golden("flow_grpo", f"{key}.std_dev_t", np.full((3, 1, 1, 1), diffusion))
    after = mean + std * torch.tensor(arrays["sde.noise"])
    assert_golden("flow_grpo", f"{key}.log_prob", flow_grpo.logprob(after, mean, std))


def test_path_advantages():
    """Group means 0.4 and 0.3; the spread is the batch's."""
    rewards = np.array([0.1, 0.7, 0.4, 0.2], np.float32)
    got = flow_grpo.advantages(rewards, 2).numpy()
    spread = rewards.std() + 1e-4
    np.testing.assert_allclose(got, np.array([-0.3, 0.3, 0.1, -0.1]) / spread, rtol=1e-5)


def settings(**changes):
    """What both peers are told at tiny size."""
    built, _ = tiny()
    h, w = built.grid()
    grid = flow.times(4, latent_pixels=h * w).tolist()
    common = dict(
        **iterations.optimizer_settings(LEARNER),
        group=2,
        scale=2.0,
        grid=grid,
        close_id=built.text.close_id,
        most=SYSTEM.instruction_tokens,
        patch=2,
        h=h,
        w=w,
    )
    return common | changes


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_path_update_equals_ours(scale):
    """A rollout of the peer's, learned from by both sides: loss, gradient and new parameters."""
    built, params = tiny()
    mllm, dit, vae = nets()
    noise = [0.0, 0.7, 0.7, 0.0]
    how = flow_grpo.Settings(
        **settings(scale=scale), noise=noise, steps=[1, 2], clip=1e-4, kl=0.5, limit=5.0
    )
    dit = peer_dit.of_tree(SYSTEM.dit, params.dit)
    condition = built.encoder.condition(params.mllm, pseudo(built, "a red ring", "a cross"))
    negative = rollout.negative_condition(built, params.mllm, Guidance(text=scale))
    away = None if negative is None else models.text_of(negative)
    net = flow_grpo.peer(mllm, dit, vae, away, how)
    with torch.no_grad():  # so that the reference is another network and the KL term counts
        for weight in net.reference.parameters():
            weight.mul_(1.02)
    generator = torch.Generator().manual_seed(0)
    start = models.tensor(rollout.initial_noise(built, jax.random.key(5), 2))
    path = flow_grpo.rollout(
        net,
        how,
        start,
        models.text_of(condition),
        lambda shape: torch.randn(shape, generator=generator),
    )
    path = path._replace(advantages=torch.tensor([1.5, -0.5]))

    cfg = DitGrpoConfig(clip=1e-4, kl=0.5, guidance=Guidance(text=scale))
    first, last = how.steps[0], how.steps[-1] + 2
    given = Trajectory(
        latents=jnp.asarray(path.latents.numpy()[first:last]),
        times=jnp.asarray(how.grid[first:last], jnp.float32),
        second=jnp.float32(how.grid[1]),
        noise=jnp.float32(0.7),
        old=jnp.asarray(path.old.numpy()),
        target=rollout._places(built, 2),
        condition=condition,
        references=None,
        advantages=jnp.asarray(path.advantages.numpy()),
        weights=jnp.ones(2),
    )
    old = dit_grpo.make_logprobs(built.dit, cfg)(params.dit, given, negative)
    np.testing.assert_allclose(path.old, old, rtol=0, atol=2e-5)
    reference = jax.tree.map(lambda x: 1.02 * x, params.dit)
    begin = state.create(jax.tree.map(jnp.copy, params.dit), LEARNER)
    after, metrics = dit_grpo.make_step(built.dit, LEARNER, cfg)(begin, reference, given, negative)
    theirs = flow_grpo.update(net, how, path)
    trees = (peer_dit.tensors_of(SYSTEM.dit, tree) for tree in (params.dit, after.params))
    found = iterations.same_update(metrics, theirs, *trees, dict(dit.named_parameters()))
    assert len(found) == 3 and float(metrics["kl"]) > 1e-4


def test_token_update_equals_ours():
    """Responses that PyTorch samples, learned from by both sides."""
    built, params = tiny()
    how = token_grpo.Settings(
        **settings(),
        new_tokens=6,
        stop_id=built.text.stop_id,
        pad_id=0,
        temperature=1.0,
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=3.0,
        kl=0.3,
    )
    _, dit, vae = nets()
    mllm = models.mllm_of(SYSTEM, params.mllm)
    net = token_grpo.peer(mllm, dit, vae, None, how)
    rows = [built.text.think(words) for words in ("a ring", "two crosses and a ring")]
    torch.manual_seed(0)
    ids, mask, first = token_grpo.write(net, how, rows)
    assert ids.shape[0] == 4 and mask[:, first].all()
    assert ids[2, first - len(rows[1]) : first].tolist() == rows[1]

    lists = [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]
    prompt = prompts.assemble(lists, length=max(map(len, lists)) + 3)
    prompt = jax.tree.map(jnp.asarray, prompt)
    read = np.repeat([len(row) for row in rows], how.group)[:, None]
    places = np.arange(prompt.ids.shape[1])[None]
    seen = jnp.asarray((places >= read) & (np.asarray(prompt.segments) > 0))
    cfg = MllmGrpoConfig(kl=0.3)
    old = mllm_grpo.make_logprobs(built.mllm, cfg)(params.mllm, prompt, seen)
    ref = jnp.where(seen, old - 0.1, 0.0)
    advantages = jnp.asarray([0.7, -0.7, -1.2, 1.2])
    given = Thoughts(prompt, seen, old, ref, advantages)
    begin = state.create(jax.tree.map(jnp.copy, params.mllm), LEARNER)
    after, metrics = mllm_grpo.make_step(built.mllm, LEARNER, cfg)(begin, given)

    wide, shown = models.rows_of(prompt)
    length = wide.shape[1]
    tensors = [models.tensor(a)[:, 1:length] for a in (old, ref)]
    with torch.no_grad():
        new = token_grpo.logprobs(mllm, how, wide, shown, length - 1)
    response = models.tensor(seen)[:, :length]
    np.testing.assert_allclose(new[response[:, 1:]], tensors[0][response[:, 1:]], atol=ATOL)
    batch = token_grpo.Rows(wide, shown, response, *tensors, models.tensor(advantages))
    theirs = token_grpo.update(net, how, batch)
    learnt = {name: w for name, w in mllm.named_parameters() if w.grad is not None}
    trees = (iterations._released(built, tree, learnt) for tree in (params.mllm, after.params))
    assert len(iterations.same_update(metrics, theirs, *trees, learnt)) == 3


# --- rows ---


def test_every_row_has_a_function():
    for row in speed.ROWS.values():
        module, _, function = row.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


PATHS = dict(prompts=2, group=2, steps=3, pixels=32, parts=2, warm=0)


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        (contests.writing, dict(group=2, tokens=4)),
        (iterations.paths, PATHS | dict(recipe=dict(window=(1, 2), scale=1.0))),
        (iterations.thoughts, PATHS),
    ],
)
def test_both_sides_of_a_row_agree(function, settings):
    """Rows raise where ours and PyTorch's differ; tiny networks with random weights."""
    found = function("tiny", settings, 1)
    assert len(found.pairs) == 1 and min(found.pairs[0]) > 0 and found.agreed


# --- measuring ---


def test_a_peer_that_differs_is_refused():
    assert measure.agree("x", 1e-6, 1e-5) == "x 1e-06 <= 1e-05"
    for bad in (1e-4, float("nan")):
        with pytest.raises(ValueError, match="x: ours and PyTorch's differ by"):
            measure.agree("x", bad, 1e-5)
    with pytest.raises(ValueError, match="shapes differ"):
        measure.gap(np.zeros(2), np.zeros((2, 1)))


def test_summary_of_pairs():
    """Ratios 2, 3 and 8: the median is 3; the best runs, 1 s and 3 s, give 3."""
    runs = (2.0, 4.0, 1.0, 1.0), (1.0, 3.0, 1.0, 5.0), (1.0, 8.0, 2.0, 4.0)
    found = measure.summary([measure.Pair(*run) for run in runs])
    assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (3.0, 2.0, 8.0)
    assert found["ratio_best"] == 3.0 and found["ratio_cpu"] == 2.0 and found["pairs"] == 3


def test_sides_take_turns():
    order = []
    measure.pairs(lambda: order.append("o"), lambda: order.append("t"), 3, repeat=2)
    assert "".join(order) == "oott" + "ttoo" + "oott"
