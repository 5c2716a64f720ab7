# SPDX-License-Identifier: Apache-2.0
"""Trains with rewards of three servers, all on one machine: `python -m launch.served`.

Makes an environment for each server from its own requirements, writes the random weights that one
of them serves, starts the three, waits until they answer, scores a known set through them
(`thinkgen_jax.doctor`), trains with `configs/served.py`, stops the servers, and tells how much of
the rewards' time was hidden behind the device's.

The same line again goes on where the run stopped; what is made already is not made again.
`--dry-run` prints the commands. Each is printed before it runs, so that a server which died can be
started by hand while the run waits for it. What stands behind `--` goes to `train`.
"""

import argparse
import contextlib
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from configs import served
from thinkgen_jax import logs
from thinkgen_jax.rewards.remote import Client, Failed, Service

ROOT = Path(__file__).parents[1]
OURS = "launch/scorers/requirements-ours.txt"
PATIENCE = 180  # seconds a server may take to start
PHASES = ("mllm_grpo", "dit_grpo")
# Cores are shared here: what a server asks for it gets at once, while the run can draw on.
BEHIND = ("nice", "-n", "10")


class Server(NamedTuple):
    """A reward's scorer, with its own arguments, and the requirements of its environment."""

    scorer: str
    needs: tuple[str, ...]
    own: tuple[str, ...] = ()


SERVERS = {
    "word_ned": Server("ours:word_ned", (OURS, "launch/requirements-ocr.txt")),
    "miniature_robust": Server("ours:miniature_robust", (OURS,)),
    "siglip2": Server("siglip2", ("launch/scorers/requirements-siglip2.txt",), ("--model=siglip",)),
}


class Stopped(Exception):
    """One line that says why nothing goes on, and the status to end with."""

    def __init__(self, line: str, status: int = 2):
        super().__init__(line)
        self.status = status


class Place(NamedTuple):
    """Where everything lies, and whether it is only to be told."""

    folder: Path
    port: int
    here: bool  # whether servers share this environment
    dry: bool

    def python(self, name: str) -> str:
        """The interpreter of a server's environment."""
        return sys.executable if self.here else str(self.folder / "venvs" / name / "bin" / "python")

    def url(self, name: str) -> str:
        """The address of a server."""
        return f"http://127.0.0.1:{self.port + list(served.SERVED).index(name)}"


def tell(words: list[str]) -> None:
    """Prints a command as it can be typed."""
    print("$", shlex.join(words), flush=True)


def do(place: Place, words: list[str]) -> None:
    """Runs a command to its end.

    Raises:
      Stopped: when it fails; it has said why.
    """
    tell(words)
    if not place.dry and (status := subprocess.run(words, cwd=ROOT).returncode):
        raise Stopped(f"{words[2] if len(words) > 2 else words[0]} ended with status {status}")


# --- before ---


def make(place: Place, name: str) -> None:
    """Makes a server's environment, unless it was made from the same requirements."""
    needs = SERVERS[name].needs
    wanted = "".join((ROOT / path).read_text(encoding="utf-8") for path in needs)
    made = place.folder / "venvs" / name / "made-of.txt"
    if place.here or (made.exists() and made.read_text(encoding="utf-8") == wanted):
        return
    do(place, [sys.executable, "-m", "venv", str(made.parent)])
    files = [word for path in needs for word in ("-r", path)]
    do(place, [place.python(name), "-m", "pip", "install", "--quiet", *files])
    if not place.dry:
        made.write_text(wanted, encoding="utf-8")  # last: an environment cut short is made again


def start(place: Place, name: str) -> subprocess.Popen | None:
    """Starts a server; its words go to `<folder>/<name>.log`."""
    scorer, _, own = SERVERS[name]
    words = [place.python(name), "-m", "launch.reward_server", f"--scorer={scorer}"]
    words += [f"--port={place.url(name).rpartition(':')[2]}"]
    own = [word.replace("=siglip", f"={place.folder / 'siglip'}") for word in own]
    words += ["--", *own] if own else []
    tell(words)
    if place.dry:
        return None
    with (place.folder / f"{name}.log").open("w") as log:
        # A session of its own: Ctrl-C is for the run, which still asks while it commits.
        how = dict(stdout=log, stderr=log, start_new_session=True)
        return subprocess.Popen(words, cwd=ROOT, **how)


def wait(place: Place, name: str, process: subprocess.Popen) -> None:
    """Waits until a server answers.

    Raises:
      Stopped: when it ends, or takes too long.
    """
    end, service = time.monotonic() + PATIENCE, Service((place.url(name),), timeout=5.0, tries=1)
    log = place.folder / f"{name}.log"
    while True:
        with contextlib.suppress(Failed), Client(name, service) as client:
            client.health()
            if process.poll() is None:  # else it was another that answered
                return
        if process.poll() is not None or time.monotonic() > end:
            said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise Stopped(f"server {name} does not answer: {said[-1]} ({log})")
        time.sleep(0.2)


def stop(processes: dict[str, subprocess.Popen | None]) -> None:
    """Ends the servers that were started here."""
    running = [p for p in processes.values() if p is not None and p.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# --- the run ---


def urls(place: Place) -> list[str]:
    """Where both phases find the servers, where that is not where the config says."""
    if place.port == served.PORT:
        return []
    return [
        f"--config.plans.{phase}.servers.{name}.urls=('{place.url(name)}',)"
        for phase in PHASES
        for name in SERVERS
    ]


def train(place: Place, config: str, rest: list[str]) -> None:
    """Trains to the end.

    Raises:
      Stopped: when the run stops, with its status.
    """
    run = place.folder / "run"
    words = [*BEHIND, sys.executable, "-m", "thinkgen_jax.train"]
    words += [f"--config={config}", f"--workdir={run}", *urls(place), *rest]
    tell(words)
    if place.dry:
        return
    with subprocess.Popen(words, cwd=ROOT) as process:
        # Ctrl-C reaches the run by itself; others who end this process mean the run.
        before = [
            signal.signal(signal.SIGINT, lambda *_: None),
            signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
        ]
        try:
            status = process.wait()
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)
    if status:
        raise Stopped("the run stopped; the same line again goes on with it", status)


def told(rows: list[dict]) -> str:
    """What the rewards of a run cost, a line for each phase that took a step, and one for all."""
    lines, spent, unseen = [], 0.0, 0.0
    for phase in PHASES:
        found = [row for row in rows if f"{phase}/reward_seconds" in row]
        each = [(row[f"{phase}/reward_seconds"], row[f"{phase}/reward_hidden"]) for row in found]
        seconds, hidden = sum(s for s, _ in each), sum(s * share for s, share in each)
        lost = sum(row[f"{phase}/failed_groups"] for row in found)
        whole = sum(row[f"{phase}/step_seconds"] for row in found)
        if found:
            spent += seconds
            unseen += hidden
            lines.append(
                f"{phase}: {len(found)} steps in {whole:.1f} s, rewards took {seconds:.1f} s, "
                f"{hidden / seconds if seconds else 1.0:.0%} of it hidden; groups of "
                f"{lost:.4g} steps dropped"
            )
    lines.append(f"in all {unseen / spent if spent else 1.0:.0%} of {spent:.1f} s hidden")
    return "\n".join(lines)


def run(place: Place, config: str, rest: list[str]) -> None:
    """Everything, in order; whatever happens, the servers are stopped.

    Raises:
      Stopped: when something does not work, with one line.
    """
    if not place.dry:
        place.folder.mkdir(parents=True, exist_ok=True)
    for name in SERVERS:
        make(place, name)
    weights = place.folder / "siglip"
    if not (weights / "tokenizer.json").exists():  # what is written last
        do(place, [place.python("siglip2"), "-m", "launch.tiny_siglip", str(weights)])
    processes: dict[str, subprocess.Popen | None] = {}
    try:
        for name in SERVERS:
            processes[name] = start(place, name)
        for name, process in processes.items():
            if process is not None:
                wait(place, name, process)
        check = [sys.executable, "-m", "thinkgen_jax.doctor", f"--config={config}"]
        check += ["--check=rewards", f"--out={place.folder / 'check'}", *urls(place)]
        do(place, check)
        train(place, config, rest)
    finally:
        stop(processes)
    if not place.dry:
        print(told(logs.read_metrics(place.folder / "run")))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/served.py", help="or with :tiny")
    parser.add_argument("--folder", default="runs/served", help="environments, logs and the run")
    parser.add_argument("--port", type=int, default=served.PORT, help="of the first server")
    parser.add_argument("--here", action="store_true", help="servers share this environment")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    parser.add_argument("rest", nargs="*", help="behind --: flags of thinkgen_jax.train")
    args = parser.parse_args()
    place = Place(Path(args.folder).absolute(), args.port, args.here, args.dry_run)
    try:
        run(place, args.config, args.rest)
    except Stopped as err:
        print(f"error: {err}", file=sys.stderr)
        raise SystemExit(err.status) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
