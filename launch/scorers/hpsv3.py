# SPDX-License-Identifier: Apache-2.0
"""Human preference by HPSv3, for the reward `hpsv3`, in an environment of its own.

    python -m launch.reward_server --scorer=hpsv3 --batch=4 -- --checkpoint=HPSv3.safetensors

The package `hpsv3` and its instruction text are used as they come. The score is (mu - 5) / 10, cut
to [-1, 1], of the model's mean mu, which has no bounds (SD2 -0.2, FLUX-dev 10.4 on its own
benchmark); mu and sigma stand beside it. The text is `meta["description"]`, else the prompt: not
the instruction, which the policy writes itself.

* Not run here: its weights are not at hand. Argument names changed between versions of the package,
  so they are given by keyword and a version that does not know them is refused at the start.
"""

import argparse
import inspect
import math
import tempfile
from pathlib import Path

ABOUT = {
    **{"reward": "hpsv3", "version": "1", "floor": -1.0, "ceiling": 1.0},
    **{"sees": "meta description, else the prompt"},
}
MIDDLE, SPAN = 5.0, 10.0
NAMES = {"prompts", "image_paths"}


def load(args):
    """Loads the model; refuses a package whose `reward` has other arguments."""
    from hpsv3 import HPSv3RewardInferencer

    parser = argparse.ArgumentParser(prog="--scorer=hpsv3 --")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--device", default="cuda")
    own = parser.parse_args(args)
    model = HPSv3RewardInferencer(device=own.device, checkpoint_path=own.checkpoint)
    known = set(inspect.signature(model.reward).parameters)
    if not known >= NAMES:
        raise SystemExit(f"error: hpsv3's reward() takes {sorted(known)}, want {sorted(NAMES)}")
    return model


def scaled(mu):
    """The model's mean on a scale that other rewards can be added to; NaN stays NaN."""
    if math.isnan(mu):
        return mu
    return max(-1.0, min(1.0, (mu - MIDDLE) / SPAN))


def score(model, samples):
    """One number a sample; pictures go through files, which is how the package takes them."""
    from PIL import Image

    texts = [str(s["meta"].get("description") or s["prompt"]) for s in samples]
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{n}.png") for n in range(len(samples))]
        for path, sample in zip(paths, samples, strict=True):
            Image.fromarray(sample["image"]).save(path)
        found = model.reward(prompts=texts, image_paths=paths)
    pairs = [(float(row[0]), float(row[1])) for row in found]
    return [(scaled(mu), {"mu": mu, "sigma": sigma}) for mu, sigma in pairs]
