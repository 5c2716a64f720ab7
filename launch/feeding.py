# SPDX-License-Identifier: Apache-2.0
"""What feeding costs: `python -m launch.feeding` makes photographs and counts pictures a second.

Pictures of several sizes are written as JPEG, then batches are made of them as a stage would, in
this process and in workers. The last lines say how many cores a step waits for, from the operations
of the released DiT and a share of a chip's peak; the chip itself is not asked.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from thinkgen_jax import parts
from thinkgen_jax.data import feeding
from thinkgen_jax.data.batches import Shape
from thinkgen_jax.data.corpus import Corpus, Source
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets

SIZES = ((1024, 1024), (768, 1024), (1200, 800), (1080, 1920))  # (height, width) of the files
# Forward of the released DiT with 256 text tokens, and one backward as two more. A step also runs
# the frozen networks, and what remat computes again: leaving them out makes a step look faster.
FORWARD = {512: 8.7e12, 1024: 34e12}
PEAK = 459e12  # of a v5p, bfloat16, a second; its makers' figure
CHIPS, CORES = 4, 208  # of a v5p host; its makers' figures
SHARE = 0.4  # of the peak; a good step


def write(folder: Path, count: int) -> Path:
    """Writes pictures with the detail of photographs, and their JSONL."""
    lines = []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        rng = np.random.default_rng(number)
        image = np.zeros((height, width, 3), np.float32)
        for cells in (4, 16, 64, 256):  # each finer detail half as strong, as in nature
            noise = rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            image += np.asarray(layer, np.float32) * (2 / cells**0.5)
        image = (255 * image / image.max()).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number}.jpg", quality=90)
        words = "a photograph of many things that lie upon each other " * 3
        lines.append(json.dumps({"instruction": words, "output_image": f"{number}.jpg"}))
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rate(path: Path, *, side: int, workers: int, batch: int, count: int) -> tuple[float, float]:
    """Pictures a second, after the workers have started, and a second of this process's cores.

    The second number is what others on the machine do not change; without workers it is the rate of
    one core.
    """
    system = presets.get("nano")
    shape = Shape(assets.load_text(parts.ASSETS, system), None, 0)
    corpus = Corpus((Source("jsonl", str(path)),), side * side, length=384)
    feed, _ = feeding.feed(
        corpus, shape, multiple=16, tokens=16, size=batch, drop=0.1, workers=workers
    )
    for _ in range(2 + 2 * workers):  # starting, and what was made ahead meanwhile
        next(feed)
    begun, busy = time.monotonic(), time.process_time()
    for _ in range(count // batch):
        next(feed)
    made = count // batch * batch
    return made / (time.monotonic() - begun), made / (time.process_time() - busy)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=64, help="files to write")
    parser.add_argument("--count", type=int, default=192, help="pictures to read a measurement")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # workers ask grain's flags
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), args.pictures)
        size = np.mean([p.stat().st_size for p in Path(folder).glob("*.jpg")]) / 1e3
        print(f"{args.pictures} JPEG files of {SIZES}, {size:.0f} kB each; {os.cpu_count()} cores")
        for side in FORWARD:
            how = dict(side=side, batch=args.batch, count=args.count)
            _, core = rate(path, workers=0, **how)
            print(f"{side:5} pixels: {core:7.1f} pictures a core's second")
            for workers in args.workers:
                found, _ = rate(path, workers=workers, **how)
                print(f"      {workers} workers: {found:7.1f} pictures/s")
            needed = CHIPS * SHARE * PEAK / (3 * FORWARD[side])
            print(
                f"      a v5p host at {SHARE:.0%} of its peak takes {needed:.1f} pictures/s: "
                f"{needed / core:.1f} of its {CORES} cores, were they as fast as this one"
            )


if __name__ == "__main__":
    main()
