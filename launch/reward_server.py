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
  full queue says 503, a body over the limit 413, garbage 400, an error of the scorer 500.
* Pictures are opened while there is room in the queue, and never more pixels at a time than
  `MAX_SHOWN`: small files can unpack to gigabytes.
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


class Job:
    """One request's samples, and where its answer goes."""

    def __init__(self, samples):
        self.samples, self.done = samples, threading.Event()
        self.answer, self.error, self.abandoned = None, None, False


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
            self._score([job for job in jobs if not job.abandoned])
            jobs = []

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
                jobs[0].done.set()
            return
        for job in jobs:
            job.answer, rows = rows[: len(job.samples)], rows[len(job.samples) :]
            job.done.set()

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


def picture(text, left=MAX_SHOWN):
    """A picture from PNG in base64, uint8 [height, width, 3].

    `left` are the pixels that the request may still unpack to.
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
    return np.asarray(image.convert("RGB"))


def parse(body):
    """Samples of a request with their pictures opened; ValueError for what is none."""
    asked = json.loads(body)
    if not isinstance(asked, dict) or not isinstance(asked.get("samples"), list):
        raise ValueError('want {"samples": [...]}')
    out, shown = [], 0

    def opened(text):
        nonlocal shown
        image = picture(text, MAX_SHOWN - shown)
        shown += image.shape[0] * image.shape[1]
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
    return out


def handler(work, about, patience):
    """The class that answers requests of one server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120  # seconds a connection may idle or dawdle

        def do_GET(self):
            if self.path != "/health":
                return self.say(404, {"error": f"no {self.path}; there are /health and /score"})
            self.say(200, {**about, "status": "ok", "waiting": work.queue.qsize()})

        def do_POST(self):
            length = self.headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MAX_BODY:
                self.close_connection = True  # its body stays unread
                return self.say(413, {"error": f"want content-length of at most {MAX_BODY}"})
            body = self.rfile.read(int(length))
            if self.path != "/score":
                return self.say(404, {"error": f"no {self.path}; there are /health and /score"})
            if work.queue.full():  # before the pictures take memory
                return self.say(503, {"error": "the queue is full"})
            try:
                job = Job(parse(body))
            except Exception as err:  # whatever a picture decoder finds in garbage
                return self.say(400, {"error": f"no request: {type(err).__name__}: {err}"})
            try:
                work.queue.put_nowait(job)
            except queue.Full:
                return self.say(503, {"error": "the queue is full"})
            if not job.done.wait(patience):
                job.abandoned = True
                return self.say(503, {"error": f"not scored within {patience} s"})
            if job.error is not None:
                return self.say(500, {"error": job.error})
            scores, details = [row[0] for row in job.answer], [row[1] for row in job.answer]
            names = {name: about[name] for name in ("reward", "version")}
            self.say(200, {"scores": scores, "details": details, **names})

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

    return Handler


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
    work = Work(scorer, state, batch=batch, waiting=waiting)
    about = {"sees": "", **scorer.ABOUT}
    server = ThreadingHTTPServer((host, port), handler(work, about, patience))
    server.daemon_threads, server.work = True, work
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
