# SPDX-License-Identifier: Apache-2.0
"""How near an edited picture is to what it should be, for the reward `siglip2`.

    python -m launch.reward_server --scorer=siglip2 -- --model=FOLDER [--mode=auto] [--device=cuda]

FOLDER is a local copy of a SigLIP2 of fixed resolution, e.g. google/siglip2-so400m-patch14-384. In
[-1, 1], by mode, with the target picture `meta["target"]` and the source, the first reference:
  gain  (cos(out, target) - cos(source, target)) / (1 - cos(source, target)): a source handed back
        earns 0
  img   cos(out, target), which a source handed back has nearly all of
  dir   cos(out - source, target - source): did it go the right way; no way at all earns 0
  txt   the probability that description and picture belong together
  auto  gain; img where there is no source; txt where there is no target
"""

import argparse
import math

ABOUT = {
    **{"reward": "siglip2", "version": "1", "floor": -1.0, "ceiling": 1.0},
    **{"sees": "meta description, else the prompt, where meta has no target"},
}
SMALL = 1e-3  # keeps the gain finite where the source is the target
MODES = {"auto": (), "gain": ("target", "source"), "img": ("target",)}  # and what each needs
MODES |= {"dir": ("target", "source"), "txt": ()}


def load(args):
    """Loads the model from a local folder."""
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

    parser = argparse.ArgumentParser(prog="--scorer=siglip2 --")
    parser.add_argument("--model", required=True)
    parser.add_argument("--mode", choices=sorted(MODES), default="auto")
    parser.add_argument("--device", default="cpu")
    own = parser.parse_args(args)
    if own.mode != "auto":  # other numbers are another version
        sees = "meta description, else the prompt" if own.mode == "txt" else ""
        ABOUT.update(version=f"1 {own.mode}", sees=sees)
    return {
        "torch": torch,
        "mode": own.mode,
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


def chosen(mode, has):
    """The mode of a sample that has "target", "source", both or none of them.

    Raises:
      ValueError: when it lacks what the mode needs.
    """
    if mode == "auto":
        return "txt" if "target" not in has else "gain" if "source" in has else "img"
    missing = [name for name in MODES[mode] if name not in has]
    if missing:
        raise ValueError(f"--mode={mode}: a sample has no {' and no '.join(missing)} picture")
    return mode


def _one(state, sample):
    pictures = {"target": sample["meta"].get("target")}
    pictures["source"] = sample["references"][0] if sample["references"] else None
    pictures = {name: image for name, image in pictures.items() if image is not None}
    mode, drawn = chosen(state["mode"], pictures), _seen(state, sample["image"])
    if mode == "txt":
        return _belongs(state, drawn, sample["meta"].get("description") or sample["prompt"])
    target = _seen(state, pictures["target"])
    near = float(drawn @ target)
    if mode == "img":
        return limited(near), {"cos": near}  # rounding leads beyond 1
    source = _seen(state, pictures["source"])
    if mode == "dir":
        return limited(_same_way(drawn - source, target - source)), {"cos": near}
    start = float(source @ target)
    return gain(near, start), {"cos": near, "cos of the source": start}


def _same_way(went, right):
    """Cosine of two ways, 0 where one of them is none."""
    length = float(went.norm() * right.norm())
    return float(went @ right) / length if length > SMALL**2 else 0.0 * length  # NaN stays NaN


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
