# SPDX-License-Identifier: Apache-2.0
"""Writes any source of pictures as ArrayRecord shards or as a TensorFlow Datasets data set.

    python -m launch.repack --source=web/*.parquet --columns instruction=caption \
        --kind=array_record --out=packed

Both are read record by record in any order, which Parquet and slow disks full of small files are
not. Sizes of pictures are written beside them, so that the result is measured at once. Records that
cannot be read are left out and listed.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from thinkgen_jax.data import builder, corpus, packed

SHARD = 4096  # records of an ArrayRecord file


def run(args: argparse.Namespace) -> tuple[Path, int, dict[str, str]]:
    """Writes everything; returns where, how many records, and what was left out.

    Raises:
      ValueError: when the source cannot be opened, or something lies in the way.
    """
    (found,) = corpus.parse_sources(args.source)
    columns = tuple(tuple(pair.split("=", 1)) for pair in args.columns)
    if any(len(pair) != 2 for pair in columns):
        raise ValueError(f"--columns {args.columns}: want field=column")
    source = corpus.open_source(replace(found, columns=columns))
    skipped: dict[str, str] = {}

    def skip(index: int, why: str) -> None:
        skipped[source.name(index)] = why

    out = Path(args.out)
    if args.kind == "tfds":
        path = builder.build(source, out, name=args.name, skip=skip)
        return path, len(source) - len(skipped), skipped
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ValueError(f"--out={out} is not empty")

    def elements(first: int) -> Iterator[bytes]:
        for index in range(first, min(first + SHARD, len(source))):
            try:
                element = packed.pack(source[index])
            except ValueError as err:
                skip(index, str(err))
                continue
            yield element

    firsts = range(0, len(source), SHARD)
    names = [out / f"{number:05}.array_record" for number in range(len(firsts))]
    counts = [packed.write_shard(n, elements(f)) for n, f in zip(names, firsts, strict=True)]
    return out, sum(counts), skipped


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="as config.data names one")
    parser.add_argument("--columns", nargs="*", default=[], help="field=column, ...")
    parser.add_argument("--kind", choices=("array_record", "tfds"), default="array_record")
    parser.add_argument("--name", default="records", help="of the data set (tfds)")
    parser.add_argument("--out", required=True, help="folder")
    try:
        path, count, skipped = run(parser.parse_args())
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        raise SystemExit(2) from None
    for name, why in skipped.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    print(f"{count} records in {path}, {len(skipped)} left out")


if __name__ == "__main__":
    main()
