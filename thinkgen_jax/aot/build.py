# SPDX-License-Identifier: Apache-2.0
"""One program compiled and judged, and what a whole config holds at once.

* The verdict is the compiler's own peak against the memory it lets programs use; a program that it
  refuses for lack of memory does not fit. Other refusals are errors, not verdicts.
* What lives beside a program is added: learning trees, the optimizer of the one whose phase it is,
  frozen trees, references, and the other arguments of its phase, which a rollout keeps until the
  update. A cache of keys and values lives inside the program that writes.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import jax

from thinkgen_jax import phases, xla
from thinkgen_jax.aot import hlo, programs, slices, work
from thinkgen_jax.aot.programs import Job, Program
from thinkgen_jax.aot.slices import Slice
from thinkgen_jax.structs import Tree

GIB = 2**30
FITS, TIGHT, TOO_BIG = "FITS", "TIGHT", "DOES NOT FIT"
VERDICTS = (FITS, TIGHT, TOO_BIG)
HEADROOM = 0.9  # share of the usable memory beyond which a fit is called tight


@dataclass(frozen=True)
class Result:
    """What became of one program; sizes in GiB of one device, times in seconds.

    Attributes:
      peak: the compiler's peak; None where it refused.
      beside: what lives on the device beside the program's own arguments.
      bound: parts of the estimated least time of a call.
      text: what the compiled text shows, see `hlo.summary`; empty for a refused program.
    """

    program: str
    verdict: str
    peak: float | None
    arguments: float
    temporary: float
    code: float
    beside: float
    usable: float
    seconds: float
    quick: bool
    flops: float
    bound: dict
    text: dict = field(default_factory=dict)
    refusal: str = ""

    @property
    def need(self) -> float:
        """Memory in use while it runs; infinite for a refused program."""
        return math.inf if self.peak is None else self.peak + self.beside


def nbytes(tree: Tree) -> int:
    """Bytes of a placed tree on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.numpy.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "sharding") and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def residents(job: Job) -> dict[str, float]:
    """GiB of one device that every resident tree takes, by name."""
    return {name: nbytes(tree) / GIB for name, tree in programs.resident(job).items()}


def awake(held: Mapping[str, float], tree: str) -> float:
    """GiB of one device that live there while this tree learns; other optimizers sleep."""
    mine = programs.OPTIMIZER + tree
    return sum(
        size
        for name, size in held.items()
        if name == mine or not name.startswith(programs.OPTIMIZER)
    )


def most(held: Mapping[str, float], trees: Iterable[str]) -> float:
    """The most of `awake` for any of these trees."""
    return max(awake(held, tree) for tree in trees)


def compile_program(
    job: Job,
    name: str,
    machine: Slice,
    held: Mapping[str, float],
    *,
    quick: bool,
    headroom: float = HEADROOM,
) -> Result:
    """Compiles one program of a job.

    Args:
      held: what lives on the device, see `residents`.
      quick: compile fast; memory is right within a percent, schedules and overlap are not.
      headroom: share of the memory beyond which a fit is called tight.
    """
    phase = programs.phase_of(job, name)
    program = programs.table(job)[name]()
    begun = time.monotonic()
    options = slices.QUICK if quick else {} if machine.kind == "h100" else xla.OVERLAP
    options = {**options, **xla.NEEDED.get(machine.kind, {})}
    own = nbytes((program.args, program.kwargs)) / GIB
    if name.endswith("_step"):
        held = {k: v for k, v in held.items() if not k.startswith(programs.MERGED)}
    beside = awake(held, phases.LEARNS[phase]) + _phase_arguments(job, phase) - own
    compiled, refusal = _compile(program, dict(options))
    seconds = time.monotonic() - begun
    needed = work.WORK[name](job, phase)
    text, peak, sizes = {}, None, (own, 0.0, 0.0)
    if compiled is not None:
        stats, text = compiled.memory_analysis(), hlo.summary(compiled.as_text())
        peak = stats.peak_memory_in_bytes / GIB
        numbers = (
            stats.argument_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.generated_code_size_in_bytes,
        )
        sizes = tuple(number / GIB for number in numbers)
    # A quick schedule hides nothing, so what it shows of waiting is no lower bound.
    waited = 0.0 if quick else text.get("exposed_share", 1.0)
    least = work.bound(needed, machine.chip, machine.count, waited)
    usable = machine.chip.hbm
    return Result(
        name,
        verdict(None if peak is None else peak + beside, usable, headroom),
        peak,
        *sizes,
        beside,
        usable,
        seconds,
        quick,
        needed.flops,
        {**least._asdict(), "total": least.total},
        text,
        refusal,
    )


def verdict(need: float | None, usable: float, headroom: float = HEADROOM) -> str:
    """FITS, TIGHT (beyond the headroom) or DOES NOT FIT."""
    if need is None or need > usable:  # None, or infinite: the compiler refused
        return TOO_BIG
    return FITS if need <= headroom * usable else TIGHT


def _compile(program: Program, options: dict):
    """The compiled program; or None and the compiler's line when the memory is not enough.

    Raises:
      jax.errors.JaxRuntimeError: for any other refusal.
    """
    lowered = program.function.lower(*program.args, **program.kwargs)
    try:
        return lowered.compile(compiler_options=options), ""
    except jax.errors.JaxRuntimeError as err:
        lines = str(err).splitlines()
        wanted = [line for line in lines if "hbm" in line.lower() and "memory" in line.lower()]
        if "RESOURCE_EXHAUSTED" in str(err) and wanted:
            return None, wanted[0].strip()[:200]
        raise


def _phase_arguments(job: Job, phase: str) -> float:
    """GiB of a rollout's arrays that its phase keeps: its programs' arguments that are no trees.

    What several programs share counts once: arrays of one shape and type are taken to be one.
    """
    found: dict[tuple, int] = {}
    for make in programs.PROGRAMS[phase].values():
        for leaf in jax.tree.leaves(make(job, phase).loose):
            if hasattr(leaf, "sharding"):
                found[(leaf.shape, str(leaf.dtype))] = nbytes(leaf)
    return sum(found.values()) / GIB


def as_dict(result: Result) -> dict:
    """For JSON."""
    return {**asdict(result), "need": None if result.peak is None else result.need}
