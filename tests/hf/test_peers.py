# SPDX-License-Identifier: Apache-2.0
"""Folders between us and the libraries that write and read them: same numbers, same tokens.

Tiny networks with random weights, float32. Runs where torch, diffusers and peft are installed.
"""

import json
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.hf import released
from thinkgen_jax import parts
from thinkgen_jax.data import images, prompts
from thinkgen_jax.data.images import VisionSpec
from thinkgen_jax.hf import adapters, export, folders
from thinkgen_jax.models.mllm import Mllm
from thinkgen_jax.models.vae import Vae
from thinkgen_jax.sampling import decode

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
transformers = pytest.importorskip("transformers")

MAJOR = int(transformers.__version__.split(".")[0])
ATOL = 1e-4
IMAGE, START, END, STOP = 90, 88, 89, 91  # token ids
# Other dims than the stored fixtures', and no two that could be mixed up unseen.
QWEN = dict(
    text_config=dict(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        rope_theta=5_000_000.0,
        rope_scaling=dict(mrope_section=[4, 2, 2], rope_type="default", mrope_interleaved=True),
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=STOP,
    ),
    vision_config=dict(
        depth=4,
        hidden_size=48,
        intermediate_size=80,
        num_heads=4,
        patch_size=4,
        temporal_patch_size=2,
        spatial_merge_size=2,
        out_hidden_size=64,
        num_position_embeddings=64,
        deepstack_visual_indexes=[1, 2],
    ),
    image_token_id=IMAGE,
    vision_start_token_id=START,
    vision_end_token_id=END,
    tie_word_embeddings=False,
)
VISION = VisionSpec(patch=4, temporal=2, merge=2, min_pixels=64, max_pixels=4096)
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 24, 3), dtype=np.uint8)


@lru_cache(maxsize=1)
def qwen():
    """A random official network; rotary tables and norms are made as it makes them."""
    torch.manual_seed(0)
    config = transformers.Qwen3VLConfig(**QWEN)
    model = transformers.Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def row():
    """A prompt with a picture between words."""
    count = images.merged_tokens(PICTURE, VISION)
    return [3, 17, START, *[IMAGE] * count, END, 40, 41, 42]


def ours_of(folder):
    """Our network and parameters of a Qwen3-VL folder."""
    system = folders.read_system(folder)
    tree = folders.read_tree(folder, system, "mllm", shapes=parts.shapes(system, "mllm"))
    return system, Mllm(system.mllm), jax.tree.map(jnp.asarray, tree)


def ours_prompt(ids):
    prompt = prompts.assemble(
        [ids], length=len(ids), image_id=IMAGE, pictures=[(PICTURE,)], vision=VISION
    )
    return jax.tree.map(jnp.asarray, prompt)


def theirs_input(model, ids):
    """The same prompt as the library takes it; later versions ask which tokens are of pictures."""
    patches, grid = images.vision_patches(PICTURE, VISION)
    given = dict(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values=torch.tensor(patches),
        image_grid_thw=torch.tensor([[1, *grid]]),
    )
    if MAJOR >= 5:
        given["mm_token_type_ids"] = (given["input_ids"] == IMAGE).long()
    return given


def assert_same_network(folder, model):
    """Logits of a prompt with a picture, and what both write after it."""
    _, mllm, params = ours_of(folder)
    ids, new = row(), 12
    with torch.no_grad():
        given = theirs_input(model, ids)
        want = model(**given).logits.float().numpy()
        written = model.generate(**given, max_new_tokens=new, do_sample=False)[0, len(ids) :]
    prompt = ours_prompt(ids)
    hidden = mllm.apply({"params": params}, prompt).hidden
    got = mllm.apply({"params": params}, hidden, method="logits")
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)
    out = decode.sample(
        mllm, params, prompt, jax.random.key(0), max_new_tokens=new, stop_id=STOP, temperature=0.0
    )
    count = int(np.asarray(out.segments).sum())
    assert np.asarray(out.ids)[0, :count].tolist() == written.tolist()[:count]
    assert count == len(written)


# --- Qwen3-VL ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What the library writes."""
    folder = tmp_path_factory.mktemp("qwen")
    qwen().save_pretrained(folder)
    return folder


def test_a_folder_of_transformers_gives_its_numbers(saved):
    assert_same_network(saved, qwen())


@pytest.mark.parametrize("spelling", [4, 5])
def test_our_folder_loads_in_transformers(saved, tmp_path, spelling):
    """Written without a source; the config in either spelling of the rotary fields."""
    if spelling > MAJOR:
        pytest.skip("this transformers reads the older spelling alone")
    system, _, params = ours_of(saved)
    export.write_folder(tmp_path, system, {"mllm": params}, plain=True)
    file = tmp_path / "config.json"
    config = respelled(json.loads(file.read_text()), spelling)
    file.write_text(json.dumps(config))
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    for name, tensor in qwen().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert_same_network(tmp_path, model)


def respelled(config, spelling):
    """A config with its rotary fields as transformers 4 or 5 writes them."""
    text = config["text_config"]
    rope = {**(text.pop("rope_scaling", None) or {}), **(text.pop("rope_parameters", None) or {})}
    rope["rope_theta"] = text.pop("rope_theta", rope.get("rope_theta"))
    if spelling == 5:
        return {**config, "text_config": {**text, "rope_parameters": rope}}
    theta = rope.pop("rope_theta")
    return {**config, "text_config": {**text, "rope_scaling": rope, "rope_theta": theta}}


def test_tied_embeddings_travel(tmp_path):
    torch.manual_seed(1)
    tied = {"tie_word_embeddings": True}  # versions look in one place or the other
    text = {**QWEN["text_config"], **tied}
    config = transformers.Qwen3VLConfig(**{**QWEN, **tied, "text_config": text})
    model = transformers.Qwen3VLForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    assert_same_network(tmp_path / "theirs", model)
    system, _, params = ours_of(tmp_path / "theirs")
    assert system.mllm.tie_word_embeddings and "lm_head" not in params
    export.write_folder(tmp_path / "ours", system, {"mllm": params}, plain=True)
    again = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    assert_same_network(tmp_path / "ours", again)


# --- AutoencoderKL ---


def flux_like(diffusers):
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 24, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def assert_same_autoencoder(folder, model):
    system = folders.read_system(folder)
    tree = folders.read_tree(folder, system, "vae", shapes=parts.shapes(system, "vae"))
    vae, params = Vae(system.vae), jax.tree.map(jnp.asarray, tree)
    side = 6 * system.vae.factor
    pixels = RNG.uniform(-1, 1, (2, side, side + system.vae.factor, 3))
    with torch.no_grad():
        wide = torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)
        mean = model.encode(wide).latent_dist.mean
        painted = model.decode(mean).sample
    latents = vae.apply({"params": params}, jnp.asarray(pixels, jnp.float32), method="encode")
    want = (mean - model.config.shift_factor) * model.config.scaling_factor
    np.testing.assert_allclose(latents, want.permute(0, 2, 3, 1), rtol=0, atol=ATOL)
    got = vae.apply({"params": params}, latents, method="decode")
    np.testing.assert_allclose(got, painted.permute(0, 2, 3, 1), rtol=0, atol=ATOL)


def test_autoencoders_travel_both_ways(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers")
    model = flux_like(diffusers)
    source = released.omnigen2(tmp_path / "theirs")
    for old in (source / "vae").iterdir():
        old.unlink()
    model.save_pretrained(source / "vae")
    transformer = json.loads((source / "transformer" / "config.json").read_text())
    transformer["in_channels"] = model.config.latent_channels
    (source / "transformer" / "config.json").write_text(json.dumps(transformer))
    assert_same_autoencoder(source, model)

    system = folders.read_system(source)
    tree = folders.read_tree(source, system, "vae", shapes=parts.shapes(system, "vae"))
    export.write_folder(tmp_path / "ours", system, {"vae": tree})
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours" / "vae").eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


# --- adapters ---


def test_adapters_travel_both_ways(saved, tmp_path):
    """An adapter that PEFT writes merges here as it does there; ours loads and merges there."""
    peft = pytest.importorskip("peft", reason="compares with PEFT")
    settings = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"])
    base = transformers.Qwen3VLForConditionalGeneration.from_pretrained(saved)
    adapted = peft.get_peft_model(base, settings)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    adapted.save_pretrained(tmp_path / "theirs")
    adapter = adapters.read_adapter(tmp_path / "theirs")
    system = folders.read_system(saved)
    shapes = parts.shapes(system, "mllm")
    tree = folders.read_tree(saved, system, "mllm", shapes=shapes, adapter=adapter)
    export.write_folder(tmp_path / "merged", system, {"mllm": tree}, plain=True)
    merged = adapted.merge_and_unload().eval()
    assert_same_network(tmp_path / "merged", merged)

    adapters.write_adapter(tmp_path / "ours", adapter)
    base = transformers.Qwen3VLForConditionalGeneration.from_pretrained(saved)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").merge_and_unload()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=1e-6)
