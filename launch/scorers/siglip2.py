# SPDX-License-Identifier: Apache-2.0
"""How near an edited picture is to what it should be, for the reward `siglip2`.

    python -m launch.reward_server --scorer=siglip2 -- --model=FOLDER [--device=cuda]

FOLDER is a local copy of a SigLIP2 of fixed resolution, e.g. google/siglip2-so400m-patch14-384.
With a picture `meta["target"]` the score is the gain over the source: (cos(out, target) -
cos(source, target)) / (1 - cos(source, target)), cut to [-1, 1]: a source handed back earns 0.
Without a source it is cos(out, target); without a target the probability that description and
picture belong together.
"""

import argparse
import math

ABOUT = {
    **{"reward": "siglip2", "version": "1", "floor": -1.0, "ceiling": 1.0},
    **{"sees": "meta description, else the prompt, where meta has no target"},
}
SMALL = 1e-3  # keeps the gain finite where the source is the target


def load(args):
    """Loads the model from a local folder."""
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

    parser = argparse.ArgumentParser(prog="--scorer=siglip2 --")
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cpu")
    own = parser.parse_args(args)
    return {
        "torch": torch,
        "device": own.device,
        "model": SiglipModel.from_pretrained(own.model, local_files_only=True)
        .to(own.device)
        .eval(),
        "looks": AutoImageProcessor.from_pretrained(own.model, local_files_only=True),
        "words": AutoTokenizer.from_pretrained(own.model, local_files_only=True),
    }


def score(state, samples):
    """One number a sample, see the head of this file."""
    with state["torch"].no_grad():
        return [_one(state, sample) for sample in samples]


def gain(out, source):
    """The share of the way from source to target, in [-1, 1], from two cosines with the target."""
    return limited((out - source) / (1 - source + SMALL))


def limited(value):
    """The value cut to [-1, 1]; NaN stays NaN, which `min` and `max` alone would make 1."""
    return value if math.isnan(value) else max(-1.0, min(1.0, value))


def _one(state, sample):
    drawn, target = _seen(state, sample["image"]), sample["meta"].get("target")
    if target is None:
        return _belongs(state, drawn, sample["meta"].get("description") or sample["prompt"])
    target = _seen(state, target)
    near = float(drawn @ target)
    if not sample["references"]:
        return limited(near), {"cos": near}  # rounding leads beyond 1
    source = float(_seen(state, sample["references"][0]) @ target)
    return gain(near, source), {"cos": near, "cos of the source": source}


def _belongs(state, drawn, text):
    model = state["model"]
    length = model.config.text_config.max_position_embeddings
    how = dict(padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    inputs = state["words"]([text.lower()], **how).to(state["device"])
    told = _unit(model.get_text_features(input_ids=inputs["input_ids"]))
    logit = drawn @ told * model.logit_scale.exp() + model.logit_bias
    return float(logit.sigmoid()), {"logit": float(logit)}


def _seen(state, image):
    inputs = state["looks"](images=image, return_tensors="pt").to(state["device"])
    return _unit(state["model"].get_image_features(**inputs))


def _unit(out):
    """The first row at length 1, of a tensor or of what transformers 5 wraps around it."""
    row = (out if hasattr(out, "norm") else out.pooler_output)[0]
    return row / row.norm()
