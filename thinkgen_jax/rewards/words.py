# SPDX-License-Identifier: Apache-2.0
"""Words that can be read in a picture, against those that were asked for.

Rewards, all of the quoted words of the prompt and in [0, 1]:
  word_accuracy  CVTG-2K's: share of the wanted words that were read; further words cost nothing
  word_f1        F1 of wanted and read words, each counting as often as it stands there; the one to
                 train on, for mere recall rewards spraying words
  word_ned       CVTG-2K's NED: how near the best read word is to each wanted one
  ocr            Flow-GRPO's: edit distance of all that was read to the text in double quotes

and of what was written instead of drawn:
  reflection_ned how near the repair instruction is to a right one, `meta["repairs"]`; by another
                 reading, `reflection_ned_ocr`, how near what the repaired picture says is to the
                 words that it should say

* Text is read by RapidOCR (PP-OCR on onnxruntime; its models come inside the wheel), an optional
  extra. It is not the reader of the benchmark (PaddleOCR 2): every result names the reader.
* RapidOCR keeps the flags of a call for all later ones, so all of them are given at every call.

Source: TextCrafter evaluation (CVTG-2K); flow_grpo@ac4c86e flow_grpo/ocr.py.
"""

import difflib
import importlib.metadata
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from thinkgen_jax.rewards import facts
from thinkgen_jax.structs import Request, Sample

EXTRA = "launch/requirements-ocr.txt"
# Short side from which a picture is no small one, and pixels that the short side of small and of
# other pictures is enlarged to before text is looked for. At 128 words of 10 and 14-pixel fonts are
# misread in pictures of 64 pixels, at 256 those of 8-pixel fonts in 256; what RapidOCR takes unless
# told, 736, reads no more than these and a core needs 240 ms for it, not 45 (256) or 75 (384).
SMALL, SIDES = 128, (256, 384)
READERS = 4  # pictures that are read at the same time, where there are as many cores
NO_WORDS = "no words between single quotes"


class Match(NamedTuple):
    """CVTG-2K's counts of one picture: words asked for, found, and each one's similarity."""

    total: int
    correct: int
    similarities: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Share of the wanted words that were read."""
        return self.correct / self.total

    @property
    def ned(self) -> float:
        """Mean similarity of the wanted words; 1 is perfect."""
        return float(np.mean(self.similarities))


# --- rules ---


def wanted(prompt: str) -> list[str]:
    """Words between single quotes, lower-cased, punctuation kept.

    An apostrophe opens or closes a quote, as in the benchmark's parser; 9 of its 2000 prompts have
    one.
    """
    return [w for quoted in re.findall("'(.*?)'", prompt) for w in quoted.lower().split()]


def split(lines: Sequence[str]) -> list[str]:
    """Lines that were read as lower-cased words."""
    return [word for line in lines for word in line.lower().split()]


def match(words: Sequence[str], lines: Sequence[str]) -> Match:
    """CVTG-2K's comparison of wanted words with lines that were read.

    A read word may serve several wanted ones. The word a similarity is taken to is the one that
    `difflib` finds closest, which need not be the nearest in edit distance.
    """
    found = split(lines)
    similarities = []
    for word in words:
        near = difflib.get_close_matches(word, found, n=1, cutoff=0) if found else []
        other = near[0] if near else ""
        # The benchmark's own small constant; an empty word is as far away as can be.
        length = max(len(word), len(other)) + 1e-5
        similarities.append(1 - Levenshtein.distance(word, other) / length)
    return Match(len(words), sum(word in found for word in words), tuple(similarities))


def f1(words: Sequence[str], lines: Sequence[str]) -> float:
    """F1 of two bags of words; 1 when nothing was wanted and nothing read."""
    left, right = Counter(words), Counter(split(lines))
    shared, both = (left & right).total(), left.total() + right.total()
    return 2 * shared / both if both else 1.0


def quoted(prompt: str) -> str:
    """The text between the first pair of double quotes, "" where there is none."""
    parts = prompt.split('"')
    return parts[1] if len(parts) > 2 else ""


def nearness(target: str, lines: Sequence[str]) -> float:
    """Flow-GRPO's OCR reward: 1 - edit distance / length of the target, spaces and case aside.

    A target that stands anywhere in what was read is right.

    Raises:
      ValueError: for a target without a character.
    """
    target = target.replace(" ", "").lower()
    if not target:
        raise ValueError('reward ocr: the prompt has no text between double quotes ("...")')
    found = "".join(lines).replace(" ", "").lower()
    distance = 0 if target in found else min(Levenshtein.distance(found, target), len(target))
    return 1 - distance / len(target)


def distance(a: str, b: str) -> int:
    """Edit distance of two strings."""
    return Levenshtein.distance(a, b)


def similarity(a: str, b: str) -> float:
    """1 - edit distance over the longer length; 1 for two empty strings."""
    return Levenshtein.normalized_similarity(a, b)


def nearest(said: str, rights: Sequence[str]) -> float:
    """Similarity to the nearest of several right sentences, case and spaces aside.

    Raises:
      ValueError: for no right sentence.
    """
    if not rights:
        raise ValueError("reward reflection_ned: meta['repairs'] holds no right instruction")

    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    return max(similarity(plain(said), plain(right)) for right in rights)


# --- reading ---

_own = threading.local()  # the readers of each thread, by their short side


def _engine(side: int):
    """This thread's reader that enlarges short sides to `side` pixels, loaded once.

    Raises:
      ValueError: where the extra is not installed.
    """
    if side in (own := vars(_own)):
        return own[side]
    try:
        from rapidocr import RapidOCR
    except ImportError as err:
        raise ValueError(f"reading words needs RapidOCR: pip install -r {EXTRA}") from err
    # One core a reader: pictures are read side by side, and beside the programs of the device.
    threads = "EngineConfig.onnxruntime.intra_op_num_threads"
    engine = RapidOCR(params={"Global.log_level": "error", "Det.limit_side_len": side, threads: 1})
    logging.getLogger("RapidOCR").propagate = False  # it repeats every empty picture
    own[side] = engine
    return engine


def reader() -> str:
    """Name and version of what reads, to stand beside every result; refuses as `read`."""
    _threads().submit(_engine, SIDES[0]).result()  # loaded where it will read
    small, other = SIDES
    version = importlib.metadata.version("rapidocr")
    return f"rapidocr {version}, short side {small} or {other}"


def read(image: np.ndarray) -> list[str]:
    """Lines of text in a picture, in the order they were found.

    To look for text, pictures are enlarged until their short side has 256 pixels, or 384 where it
    has 128 itself; they are never shrunk below that.

    Raises:
      ValueError: where RapidOCR is not installed.
    """
    engine = _engine(SIDES[min(image.shape[:2]) >= SMALL])
    # Flags of a call stay behind in the engine: it is no other thread's, and all flags are given.
    found = engine(image[..., ::-1], use_det=True, use_cls=True, use_rec=True)
    return [text for text in (found.txts or ()) if text]


def read_all(images: Iterable[np.ndarray]) -> list[list[str]]:
    """What `read` finds in each picture; several are read at the same time."""
    return list(_threads().map(read, images))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), thread_name_prefix="words")


def lacks_words(request: Request) -> str:
    """What `word_*` miss in a request, "" for nothing."""
    return "" if wanted(request.prompt) else NO_WORDS


def lacks_repaired_words(request: Request) -> str:
    """What `reflection_ned_ocr` misses in a request, "" for nothing."""
    return "" if _repaired_words(request) else NO_WORDS


def lacks_text(request: Request) -> str:
    """What `ocr` misses in a request, "" for nothing."""
    return "" if quoted(request.prompt).strip() else "no text between double quotes"


def lacks_repairs(request: Request) -> str:
    """What `reflection_ned` misses in a request, "" for nothing."""
    return "" if facts.of(request).get("repairs") else "no meta['repairs']"


def rate_accuracy(samples: Sequence[Sample]) -> np.ndarray:
    """CVTG-2K word accuracy of every picture, float32 [N]."""
    return _rate(samples, lambda words, lines: match(words, lines).accuracy)


def rate_f1(samples: Sequence[Sample]) -> np.ndarray:
    """F1 of wanted and read words, float32 [N]."""
    return _rate(samples, f1)


def rate_ned(samples: Sequence[Sample]) -> np.ndarray:
    """CVTG-2K NED of every picture, float32 [N]."""
    return _rate(samples, lambda words, lines: match(words, lines).ned)


def rate_ocr(samples: Sequence[Sample]) -> np.ndarray:
    """Flow-GRPO's OCR reward of every picture, float32 [N]."""
    texts = [quoted(s.request.prompt) for s in samples]
    found = [nearness(*one) for one in zip(texts, _lines(samples), strict=True)]
    return np.asarray(found, np.float32)


def rate_reflection_words(samples: Sequence[Sample]) -> np.ndarray:
    """CVTG-2K NED of every repaired picture, float32 [N].

    Wanted are the words of `meta["words"]`; without them those that the prompt quotes.
    """
    return _rate(samples, lambda words, lines: match(words, lines).ned, _repaired_words)


def rate_reflection(samples: Sequence[Sample]) -> np.ndarray:
    """How near every instruction is to a right repair, float32 [N]."""
    rights = [facts.of(s.request).get("repairs", ()) for s in samples]
    found = [nearest(s.instruction, right) for s, right in zip(samples, rights, strict=True)]
    return np.asarray(found, np.float32)


def _quoted_words(request: Request) -> list[str]:
    return wanted(request.prompt)


def _repaired_words(request: Request) -> list[str]:
    said = facts.of(request).get("words")
    return wanted(request.prompt) if said is None else split(said)


def _rate(
    samples: Sequence[Sample],
    rule: Callable,
    of: Callable[[Request], list[str]] = _quoted_words,
) -> np.ndarray:
    asked = [of(s.request) for s in samples]
    for sample, words in zip(samples, asked, strict=True):
        if not words:
            raise ValueError(f"{sample.request.prompt!r} has {NO_WORDS}")
    return np.asarray([rule(*one) for one in zip(asked, _lines(samples), strict=True)], np.float32)


def _lines(samples: Sequence[Sample]) -> list[list[str]]:
    for sample in samples:
        if sample.image is None:
            raise ValueError(f"{sample.request.prompt!r}: there is no picture to read")
    return read_all([sample.image for sample in samples])
