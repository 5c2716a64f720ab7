# SPDX-License-Identifier: Apache-2.0
"""Commits: everything a run needs to go on, saved as one directory that appears at once.

A commit lies in `<workdir>/checkpoints/<step>/` and holds three items: `state` (arrays: trees that
learn, with optimizer state and EMA), `data` (JSON: where every data stream stands) and `meta`
(JSON: phase cursor, config, versions). It is written beside its final place and renamed when
complete, so a process killed at any moment leaves the commits before it untouched.

- The last `keep` commits and the best one stay; others go after a newer one is in place.
- `files.json`, added to a complete commit, lists its files and sizes: a cut-off copy is told.
- Sub-trees load alone (`restore_subtree`), so that nobody reads an optimizer he does not need.
- Whatever does not fit is refused with the first offending paths, before anything is read.
- `data` and `meta` are written by the first process only: they must be equal on all of them.
"""

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from thinkgen_jax.structs import Tree

FORMAT = "thinkgen_jax/1"  # marks a directory as ours; the number grows when the items change
FOLDER = "checkpoints"
MANIFEST = "files.json"
SHOWN = 5  # offending paths an error lists
GIB = 2**30


def _is_told(record: logging.LogRecord) -> bool:
    """Drops what the saving library logs; what matters of it arrives here as an exception."""
    return "orbax" not in record.pathname


# A filter and not a level: absl sets the level of its logger again when it parses the flags.
logging.getLogger("absl").addFilter(_is_told)


@dataclass(frozen=True)
class Commit:
    """What a commit holds.

    Attributes:
      step: Number of finished steps.
      state: The saved pytree, placed as asked for.
      data: Position of every data stream, as given to `save`.
      meta: What else was given to `save`.
    """

    step: int
    state: Tree
    data: dict
    meta: dict


class Checkpoints:
    """The commits of one working directory, open for reading and writing.

    Use as a context manager: leaving it waits for the save under way. Left-overs of a save that was
    killed are removed on entry.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2):
        """Opens `<workdir>/checkpoints`, making it where it is absent.

        Args:
          workdir: Folder of the run.
          keep: Latest commits that stay, at least 1; the one with the highest score stays beside.

        Raises:
          ValueError: `keep` is below 1, or the folder cannot be written.
        """
        if keep < 1:
            raise ValueError(f"config.checkpoint.keep={keep}: at least 1 commit must stay")
        self.folder = Path(workdir).absolute() / FOLDER
        self._keep = keep
        self._checkpointer = self._open()
        self._pending: tuple[int, Any] | None = None

    def _open(self) -> ocp.training.Checkpointer:
        ensure_space(self.folder, 0)
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep = policies.AnyPreservationPolicy([policies.LatestN(self._keep), best])
        try:
            return ocp.training.Checkpointer(
                self.folder,
                context=_context(),
                preservation_policy=keep,
                cleanup_tmp_directories=True,
            )
        except Exception as err:  # the library's errors have no common type
            raise _damaged(self.folder, err) from err

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the complete commits, ascending."""
        return tuple(commit.step for commit in self._checkpointer.checkpoints)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete commit, or None."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """Step of the commit with the highest score, or None when none has one."""
        scored = [(c.metrics["score"], c.step) for c in self._checkpointer.checkpoints if c.metrics]
        return max(scored)[1] if scored else None

    def save(
        self,
        step: int,
        state: Tree,
        *,
        data: Mapping,
        meta: Mapping,
        finite: bool = True,
        score: float | int | None = None,
    ) -> bool:
        """Starts one atomic commit; the arrays may be donated as soon as this returns.

        Args:
          step: Number of finished steps. A step that is already committed is left as it is.
          state: Pytree of arrays, e.g. `{"mllm": TrainState, "dit": TrainState}`.
          data: JSON-able position of the data streams.
          meta: JSON-able rest: phase cursor, resolved config, versions.
          finite: Whether `state` is known to be finite, see `is_finite`.
          score: Higher is better; the best-scored commit is kept. None is never the best.

        Returns:
          Whether a commit was started.

        Raises:
          ValueError: the state is not finite, or this or the previous commit could not be written.
          TypeError: `data` or `meta` is not JSON-able.
        """
        if not finite:
            raise ValueError(f"step {step}: the state holds NaN or infinity; it is not committed")
        self.wait()
        if step in self.steps:
            return False
        items = {
            "state": state,
            "data": json.loads(json.dumps(dict(data))),
            "meta": json.loads(json.dumps({**meta, "format": FORMAT, "step": step})),
        }
        metrics = None if score is None else {"score": float(score)}
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, items, force=True, metrics=metrics
            )
        except Exception as err:
            raise self._failed(step, err) from err
        self._pending = (step, response)
        return True

    def wait(self) -> None:
        """Returns when the commit under way is complete.

        Raises:
          ValueError: it could not be written (full disk, folder gone); the ones before it stand.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
            if jax.process_index() == 0:
                _write_manifest(self.folder / str(step))
        except Exception as err:
            raise self._failed(step, err) from err

    def restore(self, step: int, abstract: Tree) -> Commit:
        """Reads a whole commit into the given structure, types and placement.

        Args:
          step: One of `steps`.
          abstract: Pytree of `jax.ShapeDtypeStruct`; without sharding a leaf goes to the first
            device.

        Raises:
          ValueError: missing, foreign, damaged, or of another structure, shape or dtype.
        """
        return _load(find(self.folder / str(step)), abstract)

    def close(self) -> None:
        """Waits for the save under way and lets go of the folder."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def _failed(self, step: int, err: Exception) -> ValueError:
        with contextlib.suppress(Exception):  # it would tell the same error at every later call
            self._checkpointer.close()
        self._checkpointer = self._open()
        free = shutil.disk_usage(self.folder).free / GIB
        return ValueError(
            f"{self.folder}: the commit of step {step} could not be written ({free:.2f} GiB free); "
            f"latest complete commit: {self.latest_step}. Cause: {_first_line(err)}"
        )


def find(path: str | Path) -> Path:
    """Resolves a run, its `checkpoints` folder or one commit to a commit (the latest).

    Raises:
      ValueError: nothing there, no complete commit, or not one of ours.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise ValueError(f"--checkpoint={path}: no such directory")
    commit = path
    if not (path / "meta").is_dir() and not (path / MANIFEST).is_file():
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        steps = [p for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()]
        if not steps:
            raise ValueError(f"--checkpoint={path}: holds no commit of this program")
        commit = max(steps, key=lambda p: int(p.name))
    read_meta(commit)
    return commit


def has_commit(workdir: str | Path) -> bool:
    """Whether a run has committed anything, damaged or not."""
    folder = Path(workdir) / FOLDER
    return folder.is_dir() and any(p.name.isdecimal() for p in folder.iterdir())


def read_meta(commit: Path) -> dict:
    """Reads a commit's `meta` without touching its arrays.

    Raises:
      ValueError: it is incomplete, or another program wrote it.
    """
    _check_manifest(commit)
    try:
        # Read past the library: it reports a file of another kind in a page of tracebacks.
        meta = json.loads((commit / "meta" / "data.json").read_text())
    except (OSError, ValueError) as err:
        raise _damaged(commit, err) from err
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"--checkpoint={commit}: not a commit of this program (want {FORMAT!r})")
    return meta


def meta_of(path: str | Path) -> dict:
    """The `meta` of a run's latest commit, or of one commit; errors as `find`'s."""
    return read_meta(find(path))


def describe(path: str | Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Lists the arrays of a commit: `/`-joined path to shape and dtype, nothing is read.

    Raises:
      ValueError: missing, foreign or damaged.
    """
    return _by_path(_saved(find(path)))


def learned(path: str | Path) -> dict[str, str]:
    """What others start from: of each tree that learned, the running average or the parameters.

    Returns:
      Tree to the name of the sub-tree, for `restore_subtree`.

    Raises:
      ValueError: missing, foreign or damaged.
    """
    held = {tuple(name.split("/")[:2]) for name in describe(path)}
    kinds = ("params", "ema")  # the later wins
    return {tree: f"{tree}/{kind}" for kind in kinds for tree, k in sorted(held) if k == kind}


def sources(path: str | Path, *, start: Sequence[str] = ()) -> dict[str, str]:
    """Where the trees of a run's system are: in the run itself, or where it took them from.

    Args:
      start: trees wanted as they were at the start of the run.

    Returns:
      Tree to folder, or to "assets"; trees that were random and never learned are left out.

    Raises:
      ValueError: missing, foreign or damaged.
    """
    taken = meta_of(path).get("start", {})
    known = {tree: source for tree, source in taken.items() if source != "random"}
    own = {tree: str(Path(path).absolute()) for tree in learned(path) if tree not in start}
    return {**known, **own}


def restore_subtree(
    path: str | Path,
    names: Sequence[str],
    abstract: Mapping[str, Tree] | None = None,
    *,
    place: Callable[[Tree], Tree] | None = None,
) -> dict[str, Tree]:
    """Reads only the named sub-trees of a commit, e.g. `("mllm/params", "dit/ema")`.

    Args:
      path: A run, its `checkpoints` folder, or one commit.
      names: `/`-joined paths of sub-trees below the state.
      abstract: The wanted structure of each name; dtype and placement follow it. Without it, arrays
        keep their dtype and go to the first device.
      place: Shardings of a sub-tree by its abstract arrays, e.g. `sharding.infer` on a mesh; above
        `abstract`'s. Needed on several hosts, and where one device cannot hold the whole.

    Returns:
      Name to sub-tree, in plain dicts where `abstract` does not say otherwise.

    Raises:
      ValueError: missing, foreign, damaged, without one of the names, or of other dims.
    """
    commit = find(path)
    saved = _saved(commit)
    wanted: dict = {}
    for name in names:
        node = saved
        for part in name.split("/"):
            node = node.get(part) if isinstance(node, dict) else None
        if not jax.tree.leaves(node):
            raise ValueError(f"--checkpoint={commit}: holds no {name!r}")
        if abstract is not None:
            _compare(commit, _by_path(node, name), _by_path(abstract[name], name), dtypes=False)
            node = abstract[name]
        if place is not None:
            node = jax.tree.map(
                lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
                node,
                place(node),
            )
        _put(wanted, name.split("/"), jax.tree.map(_placed, node))
    context = _context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            state = ocp.load_checkpointables(commit, {"state": wanted})["state"]
    except Exception as err:
        raise _damaged(commit, err) from err
    return {name: _get(state, name.split("/")) for name in names}


def restore_learned(
    path: str | Path,
    tree: str,
    abstract: Tree | None = None,
    *,
    place: Callable[[Tree], Tree] | None = None,
) -> Tree:
    """Reads what others start from of one tree: its running average, or its parameters.

    Args:
      abstract, place: see `restore_subtree`.

    Raises:
      ValueError: as `restore_subtree`.
    """
    name = learned(path).get(tree, f"{tree}/params")
    wanted = None if abstract is None else {name: abstract}
    return restore_subtree(path, [name], wanted, place=place)[name]


def ensure_space(path: str | Path, nbytes: int, *, flag: str = "--workdir") -> None:
    """Makes a folder and checks that it can be written and has room.

    Args:
      path: Folder to be written to.
      nbytes: Bytes needed at the same time, e.g. `nbytes(state) * (keep + 2)`: the latest ones, the
        best and the one under way.
      flag: What the user calls the folder.

    Raises:
      ValueError: the folder cannot be made or written, or has less room.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"1")
            file.flush()
        free = shutil.disk_usage(path).free
    except OSError as err:
        raise ValueError(f"{flag}={path}: cannot be written: {err.strerror or err}") from err
    if free < nbytes:
        raise ValueError(
            f"{flag}={path}: {nbytes / GIB:.2f} GiB needed for commits, {free / GIB:.2f} GiB free"
        )


def nbytes(tree: Tree) -> int:
    """Bytes of all arrays (or their abstract twins) of a pytree, before compression."""
    return sum(int(np.prod(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def is_finite(tree: Tree) -> bool:
    """Whether no floating-point array of `tree` holds NaN or infinity; waits for the device."""
    return bool(_all_finite(tree))


@jax.jit
def _all_finite(tree: Tree) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(x)) for x in floats] or [True]))


def _load(commit: Path, abstract: Tree) -> Commit:
    _compare(commit, _by_path(_saved(commit)), _by_path(abstract), dtypes=True)
    items = {"state": jax.tree.map(_placed, abstract), "data": None, "meta": None}
    try:
        with _context():
            loaded = ocp.load_checkpointables(commit, items)
    except Exception as err:
        raise _damaged(commit, err) from err
    meta = loaded["meta"]
    return Commit(step=meta["step"], state=loaded["state"], data=loaded["data"], meta=meta)


def _context() -> ocp.Context:
    registry = ocp.handlers.local_registry()
    # Without this a dict of integers is taken for arrays, and costs ten files instead of one.
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _saved(commit: Path) -> Tree:
    try:
        with _context():
            saved = ocp.checkpointables_metadata(commit).metadata["state"]
    except Exception as err:
        raise _damaged(commit, err) from err
    if not jax.tree.leaves(saved):  # what an unreadable listing looks like
        raise _damaged(commit, "the list of its arrays cannot be read")
    return saved


def _write_manifest(commit: Path) -> None:
    if not commit.is_dir():
        return  # already removed by a later decision on what to keep
    sizes = {str(p.relative_to(commit)): p.stat().st_size for p in _files(commit)}
    temporary = commit / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(sizes, indent=1, sort_keys=True))
    temporary.replace(commit / MANIFEST)


def _check_manifest(commit: Path) -> None:
    """A kill right after a commit leaves no listing; the library then finds the damage itself."""
    try:
        sizes = json.loads((commit / MANIFEST).read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as err:
        raise _damaged(commit, err) from err
    found = {str(p.relative_to(commit)): p.stat().st_size for p in _files(commit)}
    for name, size in sizes.items():
        if found.get(name) != size:
            raise _damaged(commit, f"{name}: {found.get(name, 'no file')} of {size} bytes")


def _files(commit: Path) -> list[Path]:
    return [p for p in commit.rglob("*") if p.is_file() and not p.name.startswith(MANIFEST)]


def _by_path(tree: Tree, prefix: str = "") -> dict[str, jax.ShapeDtypeStruct]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [
        "/".join(([prefix] if prefix else []) + [_name(key) for key in path]) for path, _ in leaves
    ]
    return {
        n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, (_, x) in zip(names, leaves, strict=True)
    }


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _compare(commit: Path, saved: dict, wanted: dict, *, dtypes: bool) -> None:
    def tell(side: dict, name: str) -> str:
        return f"{side[name].shape} {side[name].dtype}" if name in side else "absent"

    def differs(name: str) -> bool:
        if name not in saved or name not in wanted:
            return True
        a, b = saved[name], wanted[name]
        return a.shape != b.shape or (dtypes and a.dtype != b.dtype)

    names = [name for name in [*wanted, *(n for n in saved if n not in wanted)] if differs(name)]
    if names:
        some = [f"{n}: saved {tell(saved, n)}, wanted {tell(wanted, n)}" for n in names[:SHOWN]]
        more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
        head = f"--checkpoint={commit}: {len(names)} arrays do not fit this run's config.model"
        raise ValueError(f"{head}: {'; '.join([*some, *more])}")


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _put(tree: dict, parts: Sequence[str], value: Tree) -> None:
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
    tree[parts[-1]] = value


def _get(tree: dict, parts: Sequence[str]) -> Tree:
    for part in parts:
        tree = tree[part]
    return tree


def _damaged(commit: Path, cause: Exception | str) -> ValueError:
    text = cause if isinstance(cause, str) else _first_line(cause)
    return ValueError(
        f"--checkpoint={commit}: damaged or cut short ({text}). Move this folder aside to go on "
        "from the commit before it"
    )


def _first_line(err: Exception) -> str:
    return f"{type(err).__name__}: {str(err).splitlines()[0][:200] if str(err) else ''}"
