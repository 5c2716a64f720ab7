# SPDX-License-Identifier: Apache-2.0
"""How a request becomes a picture: read, think, refine, draw; and a picture, words.

Variants are arguments. Without references a picture is drawn from words alone; with one it is an
edit and keeps its size; with several it is in-context. `reflect` shows the drawn picture to the
MLLM, which says what to repair; `understand` stops after the words.

* Thinking and not thinking end in the same teacher-forced pass that training uses (`words`).
* A batch may mix everything. Rows are grouped by what they share and padded to a few sizes, so that
  few programs are compiled. What a row becomes does not depend on its neighbours, unless thoughts
  are sampled.
* What we do otherwise than the release and can be switched stands in `presets.as_released`.

Source: paper 3; ThinkGen@7388ad5 pipelines/pipeline_thinkgen.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from thinkgen_jax.data import images as opening
from thinkgen_jax.data.images import Source
from thinkgen_jax.parts import Parts
from thinkgen_jax.pipeline import loading
from thinkgen_jax.pipeline.pictures import Job, paint, plan
from thinkgen_jax.pipeline.settings import Settings, check, default
from thinkgen_jax.pipeline.words import Reading, read, respond
from thinkgen_jax.structs import Params, Request, Result

CHECK = "{}. check the picture"  # what a reflection asks about its own picture
SOUND = "no change"  # an instruction that begins so leaves the picture as it is

Message = Mapping[str, object]  # {"type": "text" or "image", "value": words or a picture}


class ThinkGen:
    """A loaded system, ready to draw and to answer.

    Attributes:
      parts: networks and words.
      params: their parameters.
      settings: what holds where a call does not say otherwise.
    """

    def __init__(self, parts: Parts, params: Params, settings: Settings | None = None):
        self.parts = parts
        self.params = params
        self.settings = settings or default(parts.system)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        dtype: str = "float32",
        parity: bool = False,
        marker: str | None = None,
        start: Sequence[str] = (),
    ) -> "ThinkGen":
        """Loads the shipped weights, a folder like them, or a run; see `loading.load`."""
        how = dict(dtype=dtype, parity=parity, marker=marker, start=start)
        return cls(*loading.load(path, **how))

    def generate_image(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[Source] = (),
        *,
        think: bool = True,
        task: str = "draw",
        size: tuple[int, int] | None = None,
        seed: int = 0,
        **settings: object,
    ) -> Result:
        """Draws one picture; `generate_images` draws several.

        Args:
          prompt: words, or messages: texts are joined by a space, pictures go before `images`.
          images: references, at most five; anything `data.images.open_picture` opens.
          think: let the MLLM reason first.
          task: "draw" or "reflect".
          size: (height, width) of the answer.
          seed: of noise and sampled thoughts.
          settings: fields of `Settings`.

        Raises:
          ValueError: for anything that cannot be drawn, see `settings.check`.
        """
        how = dict(think=think, task=task, size=size, seed=seed)
        return self.generate_images(prompt, images, count=1, **how, **settings)[0]

    def generate_images(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[Source] = (),
        *,
        count: int,
        think: bool = True,
        task: str = "draw",
        size: tuple[int, int] | None = None,
        seed: int = 0,
        **settings: object,
    ) -> list[Result]:
        """Draws `count` pictures of one prompt, seeds counting up; see `generate_image`.

        Greedy thoughts are the same for all of them and thought once.
        """
        if count < 1 or (count > 1 and task == "understand"):
            raise ValueError(f"count = {count}: want at least 1, and 1 with task 'understand'")
        request, notes = self.request(prompt, images, task=task, think=think, size=size, seed=seed)
        copies = [replace(request, seed=seed + n) for n in range(count)]
        return [_noted(result, notes) for result in self.generate(copies, **settings)]

    def generate_text(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[Source] = (),
        *,
        seed: int = 0,
        **settings: object,
    ) -> str:
        """Answers a question, usually about pictures."""
        request, _ = self.request(prompt, images, task="understand", seed=seed)
        return self.generate([request], **settings)[0].instruction

    def generate(self, requests: Sequence[Request], **settings: object) -> list[Result]:
        """Answers a batch; see the function of the same name."""
        chosen = {**vars(self.settings), **{k: v for k, v in settings.items() if v is not None}}
        return generate(self.parts, self.params, requests, default(self.parts.system, **chosen))

    @staticmethod
    def request(
        prompt: str | Sequence[Message], images: Sequence[Source] = (), **fields: object
    ) -> tuple[Request, tuple[str, ...]]:
        """Makes a request of what a user hands in, and tells what was changed about pictures."""
        said, sources = prompt, list(images)
        if not isinstance(prompt, str):
            said = " ".join(str(m["value"]) for m in _of(prompt, "text"))
            sources = [m["value"] for m in _of(prompt, "image")] + sources
        pictures = [opening.open_picture(source) for source in sources]
        notes = [
            f"picture {i}: {note}" for i, p in enumerate(pictures, start=1) for note in p.notes
        ]
        return Request(said, tuple(p.image for p in pictures), **fields), tuple(notes)


def generate(
    parts: Parts, params: Params, requests: Sequence[Request], settings: Settings | None = None
) -> list[Result]:
    """Answers requests of any kind and number, in their order.

    Raises:
      ValueError: for a request that cannot be answered; then none is.
    """
    settings = settings or default(parts.system)
    for request in requests:
        check(request, parts.system)
    results: dict[int, Result] = {}
    for task, function in {"draw": draw, "reflect": reflect, "understand": understand}.items():
        index = [i for i, r in enumerate(requests) if r.task == task]
        found = function(parts, params, [requests[i] for i in index], settings)
        results.update(zip(index, found, strict=True))
    return [results[i] for i in range(len(requests))]


def draw(
    parts: Parts, params: Params, requests: Sequence[Request], settings: Settings
) -> list[Result]:
    """Draws one picture per request."""
    alike = [_asks(request, i, settings) for i, request in enumerate(requests)]
    first: dict[tuple, Request] = {}
    for key, request in zip(alike, requests, strict=True):
        first.setdefault(key, request)
    found = dict(zip(first, read(parts, params.mllm, list(first.values()), settings), strict=True))
    jobs = [plan(parts.system, r, found[key]) for r, key in zip(requests, alike, strict=True)]
    painted = paint(parts, params, jobs, settings)
    return [_result(image, job) for image, job in zip(painted, jobs, strict=True)]


def _asks(request: Request, place: int, settings: Settings) -> tuple:
    """What a reading depends on: requests that ask the same share one, unless it is sampled."""
    sampled = place if settings.temperature and request.think else None
    return request.prompt, request.think, tuple(map(id, request.images)), sampled


def reflect(
    parts: Parts, params: Params, requests: Sequence[Request], settings: Settings
) -> list[Result]:
    """Draws, looks at the picture, says what is wrong and draws again, until nothing is."""
    results = draw(parts, params, requests, settings)
    active = list(range(len(requests)))
    for _ in range(settings.rounds):
        checks = [_check(requests[i], results[i]) for i in active]
        readings = read(parts, params.mllm, checks, settings)
        flawed = [n for n, reading in enumerate(readings) if not _is_sound(reading)]
        jobs = [plan(parts.system, checks[n], readings[n]) for n in flawed]
        painted = dict(zip(flawed, paint(parts, params, jobs, settings), strict=True))
        for n, (i, reading) in enumerate(zip(active, readings, strict=True)):
            results[i] = _after_round(results[i], reading, painted.get(n))
        active = [active[n] for n in flawed]
    return results


def understand(
    parts: Parts, params: Params, requests: Sequence[Request], settings: Settings
) -> list[Result]:
    """Answers questions: `instruction` holds the answer, `text` the whole response."""

    def form(words: str, tokens: list[int]) -> list[int]:
        return parts.text.question(words, pictures=tokens)

    out = []
    for written in respond(parts, params.mllm, requests, settings, form):
        for response, warnings in zip(written.responses, written.warnings, strict=True):
            before, behind, closed = parts.text.split(response)
            thought, answer = (before, behind) if closed else ("", before)
            text = parts.text.decode(response)
            out.append(Result(None, thought, answer, text, _line(warnings)))
    return out


def _check(request: Request, result: Result) -> Request:
    """The question about a drawn picture."""
    return replace(
        request,
        prompt=CHECK.format(request.prompt.rstrip(" .")),
        images=(result.image,),
        think=True,
        size=result.image.shape[:2],
    )


def _is_sound(reading: Reading) -> bool:
    return reading.instruction.strip().lower().startswith(SOUND)


def _after_round(before: Result, reading: Reading, image: np.ndarray | None) -> Result:
    """Adds what a round of reflection said; with a new picture, its instruction too."""
    return Result(
        image=before.image if image is None else image,
        thought=_lines(before.thought, reading.thought),
        instruction=before.instruction if image is None else reading.instruction,
        text=_lines(before.text, reading.text),
        warning=_line((before.warning, *reading.warnings)),
        valid=before.valid if image is None else reading.valid,
    )


def _result(image: np.ndarray, job: Job) -> Result:
    read = job.reading
    warning = _line((*read.warnings, *job.notes))
    return Result(image, read.thought, read.instruction, read.text, warning, read.valid)


def _noted(result: Result, notes: Sequence[str]) -> Result:
    return replace(result, warning=_line((*notes, result.warning)))


def _line(warnings: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, warnings)))


def _lines(*texts: str) -> str:
    return "\n".join(filter(None, texts))


def _of(messages: Sequence[Message], kind: str) -> list[Message]:
    """Messages of one kind.

    Raises:
      ValueError: when a message is of no known kind or has no value.
    """
    for message in messages:
        if message.get("type") not in ("text", "image") or "value" not in message:
            raise ValueError(f"a message needs type 'text' or 'image' and a value, not {message}")
    return [message for message in messages if message["type"] == kind]
