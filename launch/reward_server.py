# SPDX-License-Identifier: Apache-2.0
"""Serves one reward over HTTP: `python -m launch.reward_server --scorer=hpsv3 --port=8100`.

A scorer is a file of `launch/scorers/` (or any path), loaded as Python: load only what you trust.
It needs its own requirements file and nothing of ours, so that each server lives in an environment
of its own; only `--scorer=ours:NAME`, a reward of `thinkgen_jax.rewards`, needs the package.
A scorer has
  load(args)       -> state         what takes long, once; args are those behind `--`
  score(state, samples) -> list     one number, or (number, detail), for each sample
  ABOUT            {"reward", "version", "floor", "ceiling", "sees"}

  POST /score   {"samples": [{"prompt", "instruction", "image", "references", "meta", "seed"}, ...]}
                -> {"scores": [...], "details": [...], "reward", "version"}; PNG in base64
  GET  /health  -> ABOUT and what waits

* A run refuses a server whose ABOUT names another reward than its config, and, once begun, every
  answer of another reward or version than it began with: change `version` when scores change.
* Requests wait in a bounded queue; one thread takes as many samples at once as a batch holds. A
  full queue says 503 before a body is read, a body over the limit 413, garbage 400, an error of the
  scorer 500.
* What all requests hold together, bodies that are read and parsed and pictures that are opened, is
  at most `MAX_HELD`; beyond it they are told 503, to come again. Each has at most `MAX_SHOWN`
  pixels: small files can unpack to gigabytes.
* Nothing but JSON is read, and no pickle is anywhere.
* The standard library serves: the environments of scorers are crowded and old enough.
"""

import argparse
import base64
import importlib.util
import io
import json
import math
import queue
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SCORERS = Path(__file__).parent / "scorers"
MAX_BODY = 2**28  # bytes of a request
MAX_PIXELS = 2**24  # of a picture
MAX_SHOWN = 2**27  # pixels of a request
MAX_HELD = 2**31  # bytes of all requests; more than any one of them may have
COPIES = 3  # of a body while it is parsed: its bytes, the text of them, the words in that
CHANNELS = 3  # bytes of an opened pixel
DROPPED = 2**16  # bytes of an unread body at a time


class Full(Exception):
    """There is no room for a request now; there may be later."""


class Memory:
    """Bytes that all requests may hold together."""

    def __init__(self, limit):
        self.left, self.lock = limit, threading.Lock()

    def change(self, count):
        """Takes `count` bytes, gives back where it is negative; `Full` where they are not there."""
        with self.lock:
            if count > self.left:
                raise Full("the memory for requests is full")
            self.left -= count


class Share:
    """What one request holds of the memory."""

    def __init__(self, memory):
        self.memory, self.held = memory, 0

    def hold(self, count):
        """Holds `count` bytes from now on."""
        self.memory.change(count - self.held)
        self.held = count


class Job:
    """One request's samples, and where its answer goes."""

    def __init__(self, samples, share):
        self.samples, self.share, self.done = samples, share, threading.Event()
        self.answer, self.error, self.abandoned = None, None, False

    def finish(self):
        """Lets go of the pictures and says that there is an answer, or that nobody wants one."""
        self.samples = None
        self.share.hold(0)
        self.done.set()


class Work:
    """The queue and the one thread that scores; close it to end the thread."""

    def __init__(self, scorer, state, *, batch, waiting):
        self.scorer, self.state, self.batch = scorer, state, batch
        self.queue, self.ended = queue.Queue(waiting), threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def close(self):
        self.ended.set()
        self.thread.join(5)

    def _run(self):
        held, jobs = None, []
        while not self.ended.is_set():
            try:
                jobs, held = [held or self.queue.get(timeout=0.2)], None
                while held is None:  # what waits already shares a batch
                    held = self.queue.get_nowait()
                    if sum(len(job.samples) for job in (*jobs, held)) <= self.batch:
                        jobs.append(held)
                        held = None
            except queue.Empty:
                pass
            wanted = [job for job in jobs if not job.abandoned]
            for job in set(jobs) - set(wanted):
                job.finish()
            self._score(wanted)
            jobs, wanted = [], []  # their pictures are not kept until the next ones come

    def _score(self, jobs):
        """Scores jobs together; if that fails each alone, so that one bad sample spoils one job."""
        if not jobs:
            return
        try:
            rows = self._rows([s for job in jobs for s in job.samples])
        except Exception as err:  # the scorer's own, whatever it is: it goes to the client
            if len(jobs) > 1:
                for job in jobs:
                    self._score([job])
            else:
                jobs[0].error = f"{type(err).__name__}: {err}"
                jobs[0].finish()
            return
        for job in jobs:
            job.answer, rows = rows[: len(job.samples)], rows[len(job.samples) :]
            job.finish()

    def _rows(self, samples):
        out = []
        for start in range(0, len(samples), self.batch):
            part = samples[start : start + self.batch]
            found = list(self.scorer.score(self.state, part))
            if len(found) != len(part):
                raise RuntimeError(f"the scorer gave {len(found)} scores for {len(part)} samples")
            out += found
        rows = [row if isinstance(row, tuple) else (row, None) for row in out]
        for score, detail in rows:
            if not math.isfinite(score):
                raise RuntimeError(f"the scorer gave {score}")
            json.dumps(detail, allow_nan=False)  # now, for the answer is too late to refuse it
        return [(float(score), detail) for score, detail in rows]


def picture(text, left=MAX_SHOWN, hold=lambda size: None):
    """A picture from PNG in base64, uint8 [height, width, 3].

    `left` are the pixels that the request may still unpack to; `hold` is told how many bytes they
    take, before they do.
    """
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
    most = min(MAX_PIXELS, left)
    if image.width * image.height > most:
        raise ValueError(
            f"a picture of {image.size} pixels: want at most {MAX_PIXELS} in one and {MAX_SHOWN} "
            f"in a request, {most} are left"
        )
    hold(CHANNELS * image.width * image.height)
    return np.asarray(image.convert("RGB"))


def parse(body, share=None):
    """Samples of a request with their pictures opened; ValueError for what is none.

    `share` holds the copies of the body already, and in the end what the samples take.
    """
    asked = json.loads(body)
    if not isinstance(asked, dict) or not isinstance(asked.get("samples"), list):
        raise ValueError('want {"samples": [...]}')
    out, shown, words = [], 0, len(body)
    share = share or Share(Memory(math.inf))

    def opened(text):
        nonlocal shown, words
        image = picture(text, MAX_SHOWN - shown, lambda size: share.hold(share.held + size))
        shown, words = shown + image.shape[0] * image.shape[1], words - len(text)
        return image

    for sample in asked["samples"]:
        meta = {
            name: opened(value["png"])
            if isinstance(value, dict) and set(value) == {"png"}
            else value
            for name, value in sample.get("meta", {}).items()
        }
        out.append(
            {
                "prompt": str(sample["prompt"]),
                "instruction": str(sample.get("instruction", "")),
                "image": opened(sample["image"]) if sample.get("image") else None,
                "references": [opened(x) for x in sample.get("references", ())],
                "meta": meta,
                "seed": int(sample.get("seed", 0)),
            }
        )
    share.hold(CHANNELS * shown + words)  # the files that the pictures came from are gone
    return out


class Handler(BaseHTTPRequestHandler):
    """Answers requests of a server that has `work`, `about`, `patience` and `memory`."""

    protocol_version = "HTTP/1.1"
    timeout = 120  # seconds a connection may idle or dawdle

    def do_GET(self):
        if self.path != "/health":
            return self.say(404, {"error": f"no {self.path}; there are /health and /score"})
        self.say(
            200, {**self.server.about, "status": "ok", "waiting": self.server.work.queue.qsize()}
        )

    def do_POST(self):
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True  # its body stays unread
            return self.say(413, {"error": f"want content-length of at most {MAX_BODY}"})
        if self.path != "/score":
            return self.refuse(404, f"no {self.path}; there are /health and /score", length)
        if self.server.work.queue.full():  # before the body takes memory
            return self.refuse(503, "the queue is full", length)
        share = Share(self.server.memory)
        try:
            share.hold(COPIES * int(length))
        except Full as err:
            return self.refuse(503, str(err), length)
        try:
            job = self.enqueue(int(length), share)
        except Full as err:
            return self.say(503, {"error": str(err)})
        except (TimeoutError, ConnectionError):  # half a body: nobody is there to be told
            raise
        except Exception as err:  # whatever a picture decoder finds in garbage
            return self.say(400, {"error": f"no request: {type(err).__name__}: {err}"})
        patience = self.server.patience
        if not job.done.wait(patience):
            job.abandoned = True
            return self.say(503, {"error": f"not scored within {patience} s"})
        if job.error is not None:
            return self.say(500, {"error": job.error})
        scores, details = [row[0] for row in job.answer], [row[1] for row in job.answer]
        names = {name: self.server.about[name] for name in ("reward", "version")}
        self.say(200, {"scores": scores, "details": details, **names})

    def enqueue(self, length, share):
        """Reads the body, opens what is in it and lets it wait; without a job holds nothing."""
        try:
            job = Job(parse(self.rfile.read(length), share), share)
            self.server.work.queue.put_nowait(job)
        except queue.Full:
            share.hold(0)
            raise Full("the queue is full") from None
        except BaseException:
            share.hold(0)
            raise
        return job

    def refuse(self, status, why, length):
        """Says no at once; what is sent all the same is dropped, or it would drown the no."""
        self.say(status, {"error": why})
        self.wfile.flush()
        left = int(length)
        while left:
            got = len(self.rfile.read(min(left, DROPPED)))
            left -= got or left

    def say(self, status, answer):
        body = json.dumps(answer, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *args):
        if not str(args[1] if len(args) > 1 else "").startswith("2"):
            print(time.strftime("%H:%M:%S"), form % args, flush=True)


def load(name):
    """A scorer by its name in `launch/scorers/`, by its path, or as `ours:NAME`."""
    path = SCORERS / f"{name}.py" if "/" not in name and ":" not in name else Path(name)
    if name.startswith("ours:"):
        path = SCORERS / "ours.py"
    if not path.exists():
        known = sorted(p.stem for p in SCORERS.glob("*.py"))
        raise SystemExit(f"error: --scorer={name}: no file {path}; known are {known} and ours:NAME")
    spec = importlib.util.spec_from_file_location(f"scorer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(scorer, state, *, host, port, batch, waiting, patience):
    """A server that listens; its caller runs `serve_forever` and closes `server.work`.

    Raises ValueError for a batch or queue that could hold nothing.
    """
    for name, value in (("batch", batch), ("waiting", waiting)):
        if value < 1:
            raise ValueError(f"--{name}={value}: must be at least 1")
    server = ThreadingHTTPServer((host, port), Handler)
    server.work = Work(scorer, state, batch=batch, waiting=waiting)
    server.about, server.memory = {"sees": "", **scorer.ABOUT}, Memory(MAX_HELD)
    server.daemon_threads, server.patience = True, patience
    return server


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scorer", required=True, help="name, path, or ours:NAME")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--batch", type=int, default=16, help="samples scored at once")
    parser.add_argument("--waiting", type=int, default=64, help="requests that may wait")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds a request may take")
    parser.add_argument("rest", nargs="*", help="behind --: the scorer's own arguments")
    args = parser.parse_args()
    scorer = load(args.scorer)
    own = (
        [args.scorer.removeprefix("ours:"), *args.rest] if args.scorer[:5] == "ours:" else args.rest
    )
    how = dict(batch=args.batch, waiting=args.waiting, patience=args.patience)
    try:
        server = serve(scorer, scorer.load(own), host=args.host, port=args.port, **how)
    except (ValueError, OSError, ImportError, OverflowError) as err:
        where = f"--scorer={args.scorer} --host={args.host} --port={args.port}"
        raise SystemExit(f"error: {where}: {err}") from None
    stop = lambda *_: threading.Thread(target=server.shutdown).start()  # noqa: E731
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    host, port = server.server_address[:2]
    print(f"{scorer.ABOUT['reward']} {scorer.ABOUT['version']} at http://{host}:{port}", flush=True)
    server.serve_forever()
    server.work.close()


if __name__ == "__main__":
    main()
