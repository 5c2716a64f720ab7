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
* Classes are told apart by number, never by the model's own names: the benchmark renames three of
  COCO's 80, models spell others in their own way ("motorbike", "tvmonitor") or not at all
  ("LABEL_16").

Source: geneval@af4902f evaluation/evaluate_images.py; mmdet 2 Mask2Former head.
"""

import argparse
from pathlib import Path

import numpy as np

ABOUT = {
    **{"reward": "geneval detections (HF Mask2Former)", "version": "2"},
    **{"floor": 0.0, "ceiling": 1.0, "sees": "meta include, exclude"},
}
# The benchmark's names of COCO's classes in the order of the detector's head: the 80 that are used,
# numbered without gaps. COCO's own ids run from 1 to 90 with gaps; heads that keep them (DETR's 91)
# or know stuff as well (133 of panoptic ones) have another order, and are refused by their size.
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane"),
    *("bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird"),
    *("cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat"),
    *("baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon"),
    *("bowl", "banana", "apple", "sandwich", "orange"),
    *("broccoli", "carrot", "hot dog", "pizza", "donut"),
    *("cake", "chair", "couch", "potted plant", "bed"),
    *("dining table", "toilet", "tv", "laptop", "computer mouse"),
    *("tv remote", "computer keyboard", "cell phone", "microwave", "oven"),
    *("toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
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
    check(state["detector"].config.id2label)
    # Other weights are another detector, whose answers are not mixed with these.
    ABOUT.update(version=f"2, {Path(own.detector).name}, {Path(own.clip).name}")
    return state


def check(labels):
    """Refuses a detector whose classes are others: a wrong name is a wrong score without a word.

    Args:
      labels: the model's names by number; unknown ones are no fault, known ones elsewhere are.
    """
    if len(labels) != len(CLASSES):
        raise ValueError(
            f"--detector: the model has {len(labels)} classes, want COCO's {len(CLASSES)} "
            f"(an instance segmenter, no panoptic one)"
        )
    moved = {n: said for n, said in labels.items() if said in CLASSES and CLASSES[int(n)] != said}
    if moved:
        raise ValueError(f"--detector: {moved} are not where COCO's order has them")


def score(state, samples):
    """Detections of the classes that each sample's metadata names."""
    with state["torch"].no_grad():
        return [(0.0, _one(state, s["image"], s["meta"])) for s in samples]


def _one(state, image, meta):
    clauses = [*meta.get("include", ()), *meta.get("exclude", ())]
    asked = {clause["class"] for clause in clauses}
    unknown = sorted(asked.difference(CLASSES))
    if unknown:  # looked for in vain they would count as absent
        raise ValueError(f"metadata asks for classes {unknown}, none of COCO's {len(CLASSES)}")
    colored = {clause["class"] for clause in clauses if "color" in clause}
    found = {}
    for name, box, confidence, mask in detect(state, image):
        if name in asked:
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
        CLASSES,
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
