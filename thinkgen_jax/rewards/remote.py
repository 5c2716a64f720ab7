# SPDX-License-Identifier: Apache-2.0
"""The one HTTP client: rewards and judges that live elsewhere.

Two kinds of peers, both spoken to in JSON:
  reward server  `launch/reward_server.py`; `Client.score` sends samples, gets one number each
  judge          any OpenAI-compatible endpoint; `Client.chat` sends words and pictures, gets words

* A request has a time limit as a whole, answers a limit in bytes; after a fault it is tried again,
  at the next replica, then with growing pauses. What is left after the last try is `Failed`.
* Every request has a connection of its own, which is cut at the end of its time: the library's own
  limits start anew with every byte that a slow peer sends.
* While the last request ended without any answer in time, others ask every replica but once: each
  of a hundred groups would else wait for all the tries of a server that hangs.
* An answer is believed only if it is whole: the right count of finite numbers inside the bounds,
  from the reward and version that `/health` named at the start.
* A refusal that would be repeated (400, 401, 403, 404, 413, 422) is not tried again.
* Pictures travel as PNG: a reward sees what was drawn, not what JPEG made of it.
"""

import base64
import contextlib
import io
import itertools
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from thinkgen_jax.rewards import facts
from thinkgen_jax.structs import Sample
from thinkgen_jax.world.exercise import Item

FINAL = (400, 401, 403, 404, 413, 422)  # the same request would be refused again
LONGEST_PAUSE = 30.0  # seconds
SAID = 200  # characters of a peer's words that an error repeats
TOLERANCE = 1e-5  # rounding beyond the declared bounds
OPENED = ("connection.connect_tcp.complete", "connection.start_tls.complete")
LOCAL = {"all://127.0.0.1": None, "all://localhost": None}  # never through a proxy


class Failed(Exception):
    """No usable answer after every try; the message is one line with the cause."""


class _Late(ValueError):
    """A try that ran out of time."""


class Unavailable(ValueError):
    """Too many answers failed: the run stops, to be gone on with later."""


@dataclass(frozen=True)
class Service:
    """Where a reward or a judge lives and how it is spoken to.

    Attributes:
      urls: replicas, e.g. ("http://127.0.0.1:8100",); of a judge with its "/v1".
      model: the judge's name at its endpoint; "" for a reward server.
      key: environment variable with the judge's API key; unset sends none.
      timeout: seconds one try may take in all.
      tries: tries of one request.
      backoff: seconds before the first try that no fresh replica is left for; doubles each time.
      workers: requests under way at a time.
      limit: most bytes of an answer.
      floor, ceiling: bounds of a reward that the table does not know.
    """

    urls: tuple[str, ...]
    model: str = ""
    key: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    tries: int = 5
    backoff: float = 1.0
    workers: int = 4
    limit: int = 2**24
    floor: float = 0.0
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        if not self.urls or not all(u.startswith(("http://", "https://")) for u in self.urls):
            raise ValueError(f"urls = {self.urls}: want at least one http:// or https:// address")
        if any("@" in url.partition("://")[2].partition("/")[0] for url in self.urls):
            # They are told in logs and kept in a run's config.
            raise ValueError("urls: a name or password does not belong in an address, see key")
        for name, least in (("timeout", 0.001), ("tries", 1), ("backoff", 0), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")
        if not self.floor < self.ceiling:
            raise ValueError(f"floor = {self.floor}, ceiling = {self.ceiling}: must rise")


class Client:
    """Open connections to one service. Close it, or use it as a context manager."""

    def __init__(self, name: str, service: Service):
        self.name = name
        self.service = service
        self.stated: dict | None = None  # reward and version, once `health` was asked
        self._turn, self._closed = itertools.count(), threading.Event()
        self._hangs = False  # whether the last request ran out of time at every try
        key = os.environ.get(service.key) if service.model else None
        headers = {"accept-encoding": "identity"}  # nothing that unpacks to gigabytes
        headers |= {"authorization": f"Bearer {key}"} if key else {}
        alone = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(
            timeout=service.timeout, headers=headers, mounts=LOCAL, limits=alone
        )
        self._pool = ThreadPoolExecutor(service.workers, thread_name_prefix=name)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops what is waiting and closes the connections."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    def submit(self, function: Callable, *args: object) -> Future:
        """Runs a function beside the caller, at most `workers` at a time."""
        return self._pool.submit(function, *args)

    def call(self, path: str, payload: Mapping | None, read: Callable[[Any], Any]) -> Any:
        """One request, tried until an answer can be read.

        Args:
          path: below the address, e.g. "/score".
          payload: body; None makes it a GET.
          read: from the parsed answer to what is wanted; ValueError for an answer that is wrong.

        Raises:
          Failed: when no try led to an answer.
        """
        service, cause, late = self.service, "no try", 0
        first, tries = next(self._turn), self.service.tries
        tries = min(tries, len(service.urls)) if self._hangs else tries
        for n in range(tries):
            if n >= len(service.urls):
                pause = service.backoff * 2 ** (n - len(service.urls))
                if self._closed.wait(min(pause, LONGEST_PAUSE)):
                    break  # nobody waits for the answer any more
            url = service.urls[(first + n) % len(service.urls)].rstrip("/") + path
            try:
                found = read(_parse(self._exchange(url, payload)))
                self._hangs = False
                return found
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as err:
                cause = f"{url}: {_line(err) or type(err).__name__}"
                late += isinstance(err, _Late)
        self._hangs = late == tries
        raise Failed(f"{self.name}: {cause} ({tries} tries)")

    def score(
        self,
        samples: Sequence[Sample],
        *,
        floor: float,
        ceiling: float,
        read: Callable[[list], list] = list,
    ) -> tuple[np.ndarray, list]:
        """Scores float32 [N] of samples by a reward server, and what it says beside each.

        Args:
          read: from the list of details to what is wanted; ValueError where they do not say it.

        Raises:
          Failed: when no try led to as many finite numbers inside the bounds, from the reward and
            version that `health` found.
        """

        def whole(answer: Any) -> tuple[np.ndarray, list]:
            scores = _numbers(answer, "scores", len(samples))
            if self.stated is not None and (told := _stated(answer)) != self.stated:
                raise ValueError(f"the answer is of {told}, at the start it was {self.stated}")
            bad = [x for x in scores if not floor - TOLERANCE <= x <= ceiling + TOLERANCE]
            if bad:
                raise ValueError(f"score {bad[0]}, declared are [{floor}, {ceiling}]")
            details = answer.get("details") or [None] * len(samples)
            if not isinstance(details, list) or len(details) != len(samples):
                raise ValueError(f"details are not {len(samples)}")
            return np.asarray(scores, np.float32), read(details)

        return self.call("/score", {"samples": [encode(s) for s in samples]}, whole)

    def health(self) -> list[dict]:
        """What every replica says of itself; from now on answers of others are none.

        Raises:
          Failed: when one does not answer, or they do not serve the same.
        """
        found = []
        for url in self.service.urls:
            alone = Client(self.name, Service((url,), timeout=self.service.timeout, tries=1))
            with alone:
                found.append(alone.call("/health", None, _mapping))
        about = {json.dumps(_stated(one)) for one in found}
        if len(about) > 1:
            raise Failed(f"{self.name}: replicas serve different things: {sorted(about)}")
        self.stated = _stated(found[0])
        return found

    def chat(
        self,
        text: str,
        images: Sequence[np.ndarray],
        read: Callable[[str], Any],
        *,
        system: str = "",
        **options: object,
    ) -> Any:
        """Asks a judge once, and again while its answer cannot be read.

        Args:
          images: shown behind the words, in order.
          read: from the answer's words to what is wanted; ValueError where they do not say it.
          options: fields of the request, e.g. temperature, max_tokens.

        Raises:
          Failed: when no try led to an answer that says what is wanted.
        """
        content = [{"type": "text", "text": text}]
        for image in images:
            url = f"data:image/png;base64,{png(image)}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        payload = {"model": self.service.model, "messages": messages, **options}
        return self.call("/chat/completions", payload, lambda answer: read(_words(answer)))

    def _exchange(self, url: str, payload: Mapping | None) -> bytes:
        """One try: the bytes of the answer, within the limits of time and size."""
        end, opened = time.monotonic() + self.service.timeout, []

        def watch(event: str, info: Mapping) -> None:
            opened.extend([info["return_value"]] if event in OPENED else [])

        timer = threading.Timer(self.service.timeout, _cut, (opened,))
        timer.daemon = True
        timer.start()
        try:
            return self._receive(url, payload, watch)
        except httpx.HTTPError as err:
            if time.monotonic() < end and not isinstance(err, httpx.TimeoutException):
                raise
            limit = f"no whole answer within {self.service.timeout:g} s"
            raise _Late(f"timed out: {limit}") from err
        finally:
            timer.cancel()

    def _receive(self, url: str, payload: Mapping | None, watch: Callable) -> bytes:
        method, body = ("GET", None) if payload is None else ("POST", payload)
        how = dict(json=body, extensions={"trace": watch})
        with self._http.stream(method, url, **how) as response:
            whole = bytearray()
            for chunk in response.iter_raw():
                whole += chunk
                if len(whole) > self.service.limit:
                    raise ValueError(f"the answer is longer than {self.service.limit} bytes")
            if response.status_code != 200:
                said = f"status {response.status_code}: {_line(whole.decode(errors='replace'))}"
                if response.status_code in FINAL:
                    raise Failed(f"{self.name}: {url}: {said}")
                raise ValueError(said)
            return bytes(whole)


def encode(sample: Sample) -> dict:
    """A sample as JSON: words, pictures as PNG, and of `facts` what JSON or PNG can hold.

    An exercise of the miniature world travels as what it is made from.
    """
    request = sample.request
    meta = {name: _plain(value) for name, value in facts.of(request).items()}
    return {
        "prompt": request.prompt,
        "instruction": sample.instruction,
        "image": None if sample.image is None else png(sample.image),
        "references": [png(image) for image in request.images],
        "meta": {name: value for name, value in meta.items() if value is not None},
        "seed": request.seed,
    }


def png(image: np.ndarray) -> str:
    """A uint8 picture as PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _cut(opened: Sequence) -> None:
    """Ends connections, so that whoever reads from them stops waiting."""
    for stream in opened:
        with contextlib.suppress(OSError):  # it has ended already
            stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _plain(value: object) -> object:
    """The value as JSON knows it, a picture as {"png": ...}; None for what it does not know."""
    if isinstance(value, Item):
        return None if value.place is None else value.place._asdict()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        return {"png": png(value)}
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return None
    return value


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:
        said = _line(body[:SAID].decode(errors="replace"))
        raise ValueError(f"the answer is no JSON: {said!r}") from err


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _mapping(answer: Any) -> dict:
    if not isinstance(answer, dict):
        raise ValueError(f"the answer is no object but {type(answer).__name__}")
    return answer


def _stated(answer: Mapping) -> dict:
    return {name: answer.get(name) for name in ("reward", "version")}


def _numbers(answer: Any, name: str, count: int) -> list[float]:
    found = _mapping(answer).get(name)
    if not isinstance(found, list) or len(found) != count:
        length = len(found) if isinstance(found, list) else "no"
        raise ValueError(f"{length} {name} for {count} samples")
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} hold {value!r}, no number")
        if isinstance(value, int) and abs(value) > 2**53 or not math.isfinite(value):
            raise ValueError(f"{name} hold {_line(value)}")
    return [float(value) for value in found]


def _words(answer: Any) -> str:
    try:
        words = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as err:
        raise ValueError(f"no answer in {_line(json.dumps(answer))}") from err
    if not isinstance(words, str) or not words.strip():
        raise ValueError("the answer is empty")
    return words


def _line(said: object) -> str:
    return " ".join(str(said).split())[:SAID]
