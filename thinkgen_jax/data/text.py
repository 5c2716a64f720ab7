# SPDX-License-Identifier: Apache-2.0
"""Tokenizer and templates: how a request becomes token ids, and a response words again.

Forms of a request, after system and user turn:
  think        `<|im_start|>assistant\\n<think>\\n`, for the MLLM to continue
  pseudo-CoT   `<|im_start|>assistant\\n<think>\\n</think>` + instruction, read in one pass;
               supervised stages, no-think inference and negative prompts use it
  question     user turn alone (no system prompt) and `<|im_start|>assistant\\n`

Turns are written as the tokenizer's own chat template says, where it has one; that of the Thinking
models opens a thought before an answer, too. The form above is what it comes to otherwise.

* Each picture stands as `<|vision_start|><|image_pad|><|vision_end|>` before the user's words.
  Where the MLLM gets its pixels, the pad is repeated once per merged token.
* The nano tokenizer is byte-level BPE over the miniature world's sentences; runs of capitals and
  digits are spelled character by character, so that unseen words can be written on signs.

Source: ThinkGen@7388ad5 (templates, verbatim); Qwen3-VL chat template.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

START, END = "<|im_start|>", "<|im_end|>"
VISION_START, IMAGE_PAD, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
OPEN, CLOSE = "<think>", "</think>"
# Order is part of the nano models: their configs name these ids.
SPECIAL = ("<|endoftext|>", START, END, VISION_START, VISION_END, IMAGE_PAD, "<|video_pad|>")
TAKEN = (OPEN, START, END, VISION_START, VISION_END, IMAGE_PAD)  # mean something else already


class Text:
    """A tokenizer with the templates of one system.

    Attributes:
      system: system prompt of requests for pictures.
      marker: token behind which the instruction stands, `</think>` in the release; one that the
        tokenizer does not have, such as `<INS>`, is added to it and takes the next free id.
      close_id, stop_id, image_id: ids of the marker, of `<|im_end|>` and of `<|image_pad|>`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, system: str, marker: str = CLOSE):
        self.tokenizer = tokenizer
        self.system = system
        self.marker = marker
        check_marker(marker)
        if len(self.encode(marker)) != 1:
            tokenizer.add_tokens([AddedToken(marker, special=False)])
        self._check_template()
        self.close_id = self._special(marker)
        self.stop_id = self._special(END)
        self.image_id = self._special(IMAGE_PAD)

    def encode(self, text: str) -> list[int]:
        """Token ids of a string; special tokens in it are recognised."""
        # Not verbose: what is too long for the model is cut and told by those who ask.
        return self.tokenizer.encode(text, add_special_tokens=False, verbose=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The string again, special tokens kept."""
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def think(self, prompt: str, *, pictures: Sequence[int] = ()) -> list[int]:
        """Ids up to the opened thought; `pictures` holds each picture's merged tokens."""
        return self.encode(self._head(prompt, pictures) + f"{START}assistant\n{OPEN}\n")

    def pseudo(self, instruction: str, *, images: int = 0) -> list[int]:
        """Ids of the pseudo-CoT form; pictures are placeholders without pixels."""
        mark = placeholder(1) * images
        head = self._head(instruction, (1,) * images)
        opened = f"{START}assistant\n{OPEN}\n" if self.marker == CLOSE else f"{START}assistant\n"
        return self.encode(head + opened + self.marker + mark + instruction)

    def question(self, prompt: str, *, pictures: Sequence[int] = ()) -> list[int]:
        """Ids of an understanding request."""
        user = dict(role="user", content=_with_pictures(prompt, pictures))
        return self.encode(self._turns([user], answer=True))

    def response(self, thought: str, instruction: str) -> list[int]:
        """What a perfect MLLM writes behind `think`, end token included."""
        return self.encode(f"{thought}\n{self.marker}\n\n{instruction}{END}")

    def answer(self, words: str) -> list[int]:
        """What a perfect MLLM writes behind `question`, end token included."""
        return self.encode(words + END)

    def split(self, ids: Sequence[int]) -> tuple[str, str, bool]:
        """Takes a response apart: (thought, instruction, whether the marker is there)."""
        ids = [i for i in ids if i != self.stop_id]
        if self.close_id not in ids:
            return self.decode(ids).strip(), "", False
        cut = ids.index(self.close_id)
        return self.decode(ids[:cut]).strip(), self.decode(ids[cut + 1 :]).strip(), True

    def _head(self, prompt: str, pictures: Sequence[int]) -> str:
        system = dict(role="system", content=self.system)
        user = dict(role="user", content=_with_pictures(prompt, pictures))
        return self._turns([system, user], answer=False)

    def _turns(self, turns: Sequence[dict[str, str]], *, answer: bool) -> str:
        """A conversation as one string; with `answer`, up to where the assistant goes on."""
        if self.tokenizer.chat_template is None:
            said = "".join(f"{START}{t['role']}\n{t['content']}{END}\n" for t in turns)
            return said + f"{START}assistant\n" * answer
        # Rendered in a sandbox by transformers: a template is data of the folder, not its code.
        return self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=answer
        )

    def _check_template(self) -> None:
        """Refuses a chat template that fails, or changes the words it is given."""
        probe = placeholder(1) + "two words "
        user = dict(role="user", content=probe)
        try:
            forms = [self._head(probe, ()), self._turns([user], answer=True)]
        except Exception as error:  # a template may fail in any way
            raise ValueError(f"the tokenizer's chat template fails: {error}") from error
        for said in forms:
            if f"{START}user\n{probe}{END}\n" not in said:
                raise ValueError(
                    f"the tokenizer's chat template does not keep the user's words between "
                    f"{START}user and {END}: {said[-200:]!r}"
                )

    def _special(self, token: str) -> int:
        ids = self.encode(token)
        if len(ids) != 1:
            raise ValueError(f"the tokenizer has no token {token!r}")
        return ids[0]


def check_marker(marker: str) -> None:
    """Refuses what cannot stand before an instruction.

    Raises:
      ValueError: for anything but a tag, and for tags that have a meaning already.
    """
    if not re.fullmatch(r"<[^<>\s]+>", marker) or marker in TAKEN:
        taken = ", ".join(TAKEN)
        raise ValueError(f"marker {marker!r} (--marker, config.marker): want <NAME>, not {taken}")


def check_words(words: str, flag: str, *, marker: str = CLOSE) -> None:
    """Refuses a user's words that are no text, or in which a token stands that the templates use.

    Args:
      flag: where the words are from, for errors.

    Raises:
      ValueError: naming the words and the token.
    """
    try:
        words.encode("utf-8")
    except UnicodeEncodeError as err:  # JSON can spell it, and a byte that is not UTF-8 becomes it
        raise ValueError(f"{flag}={words!r:.60} is no text: half a surrogate pair") from err
    for token in (*SPECIAL, marker):
        if token in words:
            raise ValueError(f"{flag}={words!r:.60} holds {token}, which has a meaning of its own")


def _with_pictures(prompt: str, pictures: Sequence[int]) -> str:
    """The user's words behind the places of the pictures."""
    return "".join(placeholder(n) for n in pictures) + prompt


def placeholder(count: int) -> str:
    """One picture in a prompt, of `count` merged tokens (1 without pixels)."""
    return VISION_START + IMAGE_PAD * count + VISION_END


def load(folder: str | Path, *, system: str, marker: str = CLOSE) -> Text:
    """Reads a tokenizer folder; remote code is never run.

    Raises:
      ValueError: when the folder has no tokenizer, or it lacks a special token.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"no tokenizer.json in {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    old = folder / "chat_template.json"  # where processors kept it before chat_template.jinja
    if tokenizer.chat_template is None and old.is_file():
        tokenizer.chat_template = json.loads(old.read_text(encoding="utf-8"))["chat_template"]
    try:
        return Text(tokenizer, system=system, marker=marker)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def train(corpus: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns the nano tokenizer; deterministic for a given corpus."""
    tokenizer = Tokenizer(models.BPE())
    spelled = pre_tokenizers.Split(Regex("[A-Z0-9]"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spelled, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True) for t in SPECIAL]
    thinking = [AddedToken(t, special=False) for t in (OPEN, CLOSE)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special + thinking,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    frame = ["system\nyou draw.", "user\n", "assistant\n"] * 1000  # the templates' own words
    tokenizer.train_from_iterator([*corpus, *frame], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=SPECIAL[0], model_max_length=1024
    )
