# SPDX-License-Identifier: Apache-2.0
"""A TensorFlow Datasets builder for our records: byte features, which need no TensorFlow.

    builder.build(source, "datasets", name="my_pictures", skip=print)

writes `datasets/my_pictures/1.0.0`; `{"kind": "tfds", "path": "datasets/my_pictures/1.0.0"}` reads
it. Pictures are kept as the bytes of their files and decoded by us.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from thinkgen_jax.data import packed

VERSION = "1.0.0"
_BYTES = tfds.features.Tensor(shape=(), dtype=np.object_)
_SIZE = tfds.features.Tensor(shape=(2,), dtype=np.int32)
FEATURES = {
    "id": np.str_,
    "task_type": np.str_,
    "instruction": np.str_,
    "input_images": tfds.features.Sequence(_BYTES),
    "output_image": _BYTES,
    "output_size": _SIZE,
    "input_sizes": tfds.features.Sequence(_SIZE),
}


class Records(tfds.core.GeneratorBasedBuilder):  # TFDS knows no other way than to inherit
    """Records of one of our sources, in their order."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, source, skip: Callable, *, name: str, data_dir: str):
        self.source, self.skip, self.name = source, skip, name
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures with instructions: task, words, references, target.",
            features=tfds.features.FeaturesDict(FEATURES),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(len(self.source)):
            try:
                fields = packed.fields_of(self.source[index])
            except ValueError as err:
                self.skip(index, str(err))
                continue
            sizes = np.asarray(fields["input_sizes"], np.int32).reshape(-1, 2)
            yield index, {**fields, "input_sizes": sizes}


def build(
    source,
    folder: str | Path,
    *,
    name: str = "records",
    skip: Callable[[int, str], None],
) -> Path:
    """Writes a source as a TFDS data set; returns the folder of its version.

    Args:
      source: anything of `corpus.open_source`.
      folder: where data sets lie, `data_dir` in the words of TFDS.
      name: of the data set, lower case with underscores.
      skip: told index and reason of every record that cannot be read.

    Raises:
      ValueError: when the folder holds a data set of this name already; TFDS would keep that.
    """
    built = Records(source, skip, name=name, data_dir=str(folder))
    if Path(built.data_path).exists():
        raise ValueError(f"{built.data_path} exists; remove it, or choose another name than {name}")
    built.download_and_prepare()
    return Path(built.data_path)
