# SPDX-License-Identifier: Apache-2.0
"""What is where, for the reward and the benchmark `geneval`: Mask2Former and CLIP of transformers.

    python -m launch.reward_server --scorer=geneval -- --detector=FOLDER --clip=FOLDER
    [--device=cuda]

FOLDER are local copies of facebook/mask2former-swin-small-coco-instance and openai/
clip-vit-large-patch14. Answers are detections, {class: [[left, top, right, bottom, confidence,
colour], ...]}; the rules that make scores of them live in `thinkgen_jax/rewards/geneval.py`.

* These are not the weights of the official detector (mmdet): call the numbers "GenEval (HF
  detector)".
* Masks are thresholded at the picture's own size, as the official detector does it; the library's
  own post-processing goes over 384 x 384.
* Classes are told apart by number: the benchmark renames three of COCO's 80.

Source: geneval@af4902f evaluation/evaluate_images.py; mmdet 2 Mask2Former head.
"""

import argparse

import numpy as np

ABOUT = {
    **{"reward": "geneval detections (HF Mask2Former)", "version": "1"},
    **{"floor": 0.0, "ceiling": 1.0, "sees": "meta include, exclude"},
}
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
COLORS = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
TEMPLATES = ("a photo of a {c} {n}", "a photo of a {c}-colored {n}", "a photo of a {c} object")
LEAST = 0.3  # confidence below which no rule looks
BEST = 100  # queries and classes kept
GRAY = 0x99  # what lies outside an object's mask when its colour is asked


def load(args):
    """Loads detector and colour classifier from local folders."""
    import torch
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        CLIPModel,
        Mask2FormerForUniversalSegmentation,
    )

    parser = argparse.ArgumentParser(prog="--scorer=geneval --")
    parser.add_argument("--detector", required=True)
    parser.add_argument("--clip", required=True)
    parser.add_argument("--device", default="cpu")
    own = parser.parse_args(args)
    local = dict(local_files_only=True)
    make = Mask2FormerForUniversalSegmentation.from_pretrained
    state = {
        "torch": torch,
        "device": own.device,
        "detector": make(own.detector, **local).to(own.device).eval(),
        "processor": AutoImageProcessor.from_pretrained(own.detector, use_fast=False, **local),
        "clip": CLIPModel.from_pretrained(own.clip, **local).to(own.device).eval(),
        "words": AutoTokenizer.from_pretrained(own.clip, **local),
        "looks": AutoImageProcessor.from_pretrained(own.clip, use_fast=False, **local),
        "heads": {},
    }
    names = state["detector"].config.id2label
    state["names"] = [RENAMED.get(names[n], names[n]) for n in range(len(names))]
    return state


def score(state, samples):
    """Detections of the classes that each sample's metadata names."""
    with state["torch"].no_grad():
        return [(0.0, _one(state, s["image"], s["meta"])) for s in samples]


def _one(state, image, meta):
    clauses = [*meta.get("include", ()), *meta.get("exclude", ())]
    colored = {clause["class"] for clause in clauses if "color" in clause}
    found = {}
    for name, box, confidence, mask in detect(state, image):
        if name in {clause["class"] for clause in clauses}:
            color = _color(state, image, box, mask, name) if name in colored else ""
            found.setdefault(name, []).append([*map(float, box), float(confidence), color])
    return found


def detect(state, image):
    """Yields (class, box, confidence, mask at the picture's size), the best first."""
    torch, (height, width) = state["torch"], image.shape[:2]
    inputs = state["processor"](images=image, return_tensors="pt").to(state["device"])
    out = state["detector"](**inputs)
    return instances(
        torch,
        out.class_queries_logits[0],
        out.masks_queries_logits[0],
        state["names"],
        height,
        width,
    )


def instances(torch, classes, masks, names, height, width):
    """Detections from the raw output of one picture: class logits [Q, C + 1], mask logits [Q, h,
    w].

    A mask is where its logit is above 0 at the picture's size; its confidence is the class's
    probability times the mean sigmoid inside; its box is the tight one.
    """
    probabilities = classes.softmax(-1)[:, :-1]
    count = min(BEST, probabilities.numel())
    values, places = probabilities.flatten().topk(count)
    kept = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        query, number = divmod(place, probabilities.shape[1])
        if value <= LEAST:
            break  # what follows is less sure still
        size = dict(size=(height, width), mode="bilinear", align_corners=False)
        logits = torch.nn.functional.interpolate(masks[query][None, None], **size)[0, 0]
        mask = logits > 0
        if not mask.any():
            continue
        confidence = value * float(logits.sigmoid()[mask].mean())
        rows, columns = torch.where(mask)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        kept.append((names[number], [int(x) for x in box], confidence, mask.cpu().numpy()))
    return sorted((k for k in kept if k[2] > LEAST), key=lambda one: -one[2])


def _color(state, image, box, mask, name):
    """The colour CLIP sees in an object on gray."""
    torch = state["torch"]
    if name not in state["heads"]:
        state["heads"][name] = torch.stack([_head(state, name, color) for color in COLORS])
    cut = np.where(mask[..., None], image, np.uint8(GRAY))
    left, top, right, bottom = box
    cut = np.ascontiguousarray(cut[top:bottom, left:right])
    inputs = state["looks"](images=cut, return_tensors="pt").to(state["device"])
    seen = _features(state["clip"].get_image_features(**inputs))[0]
    return COLORS[int((state["heads"][name] @ (seen / seen.norm())).argmax())]


def _head(state, name, color):
    said = [template.format(c=color, n=name) for template in TEMPLATES]
    inputs = state["words"](said, padding=True, return_tensors="pt").to(state["device"])
    told = _features(state["clip"].get_text_features(**inputs))
    mean = (told / told.norm(dim=-1, keepdim=True)).mean(0)
    return mean / mean.norm()


def _features(out):
    """A tensor, or what transformers 5 wraps around it."""
    return out if hasattr(out, "norm") else out.pooler_output
