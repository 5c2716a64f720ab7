# SPDX-License-Identifier: Apache-2.0
"""What has no peer: forwards per training picture, memory of log-probabilities, the first step."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from launch import iterations
from launch.contests import Outcome
from thinkgen_jax import logs
from thinkgen_jax.models import presets
from thinkgen_jax.models.mllm import Mllm, init_params
from thinkgen_jax.sampling import decode
from thinkgen_jax.structs import Prompt

ROOT = Path(__file__).parents[1]
MIB = 2**20
PATIENCE = 600  # seconds that a first step may take


def logprob_memory(size: str, how: Mapping, count: int) -> Outcome:
    """Temporary memory of the compiled log-probabilities by size of the vocabulary, in MiB.

    Nothing is run: the compiler says what a program needs. The gradient of an embedding of V rows
    is a result, not temporary.
    """
    del count
    rows, length = how["batch"], how["length"]
    more = {}
    for vocab in how["vocabularies"]:
        cfg = dataclasses.replace(presets.get(size).mllm, vocab_size=vocab)
        mllm = Mllm(cfg)
        params = jax.eval_shape(lambda cfg=cfg: init_params(cfg, jax.random.key(0)))
        place = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        prompt = Prompt(place, place, jax.ShapeDtypeStruct((3, rows, length), jnp.int32))

        def logprobs(params, prompt, mllm=mllm):
            return decode.logprobs(mllm, params, prompt)

        def loss(params, prompt, logprobs=logprobs):
            return jnp.sum(logprobs(params, prompt))

        for name, program in (("forward", logprobs), ("backward", jax.grad(loss))):
            found = jax.jit(program).lower(params, prompt).compile().memory_analysis()
            more[f"{name} {vocab}"] = round(found.temp_size_in_bytes / MIB, 1)
    return Outcome([], [], more)


def first_step(size: str, how: Mapping, count: int) -> Outcome:
    """Seconds from the command to the first step's metrics, without and with compiled programs."""
    del size, count
    with tempfile.TemporaryDirectory() as folder:
        cold = _until_first_step(Path(folder), "cold", how)
        warm = _until_first_step(Path(folder), "warm", how)
    return Outcome([], [], {"cold_s": round(cold, 1), "warm_s": round(warm, 1), "x": cold / warm})


def _until_first_step(folder: Path, name: str, how: Mapping) -> float:
    """Runs the main job in a process of its own until the row of step 1 is written.

    Raises:
      ValueError: when the process ends, or takes too long, before there is one.
    """
    words = [sys.executable, "-m", "thinkgen_jax.train", "--config=configs/sepgrpo.py"]
    words += [f"--workdir={folder / name}", "--config.steps=1"]
    words += [f"--config.evaluate.count={how['evaluate']}"]
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    metrics, output = folder / name / logs.METRICS, folder / f"{name}.txt"
    begun = time.monotonic()
    with output.open("wb") as sink:
        process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=sink, stderr=sink)
        try:
            while not _has_step(metrics):
                if process.poll() is not None or time.monotonic() - begun > PATIENCE:
                    raise ValueError(f"no first step: {output.read_text(errors='replace')[-800:]}")
                time.sleep(0.05)
            return time.monotonic() - begun
        finally:
            process.kill()
            process.wait()


def _has_step(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return any(json.loads(line).get("step") == 1 for line in lines if line.endswith("\n"))


def forward_equivalents(size: str, how: Mapping, count: int) -> Outcome:
    """DiT forwards per training picture, as the phase itself counts them, by plan.

    A backward pass counts as two forwards, a guided step as two forwards of which one is trained.
    The formula stands where the phase takes it from; a phase that does not count says so here.
    """
    del count
    more = {}
    for name, changes in how["recipes"].items():
        plan = {"silent": 1.0, "window": (0, 0), **changes}
        metrics: dict = {}
        iterations.runner(iterations.job("dit_grpo", size, how, plan), metrics)()
        counted = metrics.get("forward_equivalents")
        more[name] = "not counted by the phase" if counted is None else float(counted)
    return Outcome([], [], more)
