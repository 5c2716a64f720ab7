# SPDX-License-Identifier: Apache-2.0
"""Writes a SigLIP of tiny random weights: `python -m launch.tiny_siglip FOLDER`.

It looks and reads as `--scorer=siglip2` wants and knows nothing, which is enough to see a run
through whose scores come from such a model. Needs `launch/scorers/requirements-siglip2.txt`.
"""

import json
import sys
from pathlib import Path

SIDE, LENGTH = 32, 64  # pixels, characters
LETTERS = " 'abcdefghijklmnopqrstuvwxyz0123456789"


def write(folder: Path, seed: int = 0):
    """Writes the model with its picture and word processors; returns the model."""
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(seed)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    table = {word: n for n, word in enumerate(("[PAD]", "[UNK]", *LETTERS))}
    config = transformers.SiglipConfig(
        text_config=dict(**sizes, vocab_size=len(table), max_position_embeddings=LENGTH),
        vision_config=dict(**sizes, image_size=SIDE, patch_size=8),
    )
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(folder)
    looks = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(looks), encoding="utf-8")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="[UNK]"))
    each = tokenizers.Regex(".")
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split(each, behavior="isolated")
    names = dict(pad_token="[PAD]", unk_token="[UNK]", eos_token="[UNK]")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return model


if __name__ == "__main__":
    write(Path(sys.argv[1]))
