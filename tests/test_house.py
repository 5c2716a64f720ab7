# SPDX-License-Identifier: Apache-2.0
"""The house rules: who may import whom and what, where print is allowed, how long a room may be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT, HEAD = Path(__file__).parents[1], "# SPDX-License-Identifier: Apache-2.0\n"
FOLDERS = ("thinkgen_jax", "configs", "launch", "tests")
DOORS = ("train", "generate", "evaluate", "convert", "compile", "demo", "precompute", "doctor")
DESK = {"sharding", "checkpoint", "optim", "logs", "report", "cache", "xla"}
TOOLS = DESK | {"data", "world", "rewards"}
BODIES = {"structs", "models", "sharding", "checkpoint", "optim", "logs"}
BELOW = {"structs", "models", "sampling", "steps", "hf", "hosts"} | TOOLS
ROADS = {"parts", "learned", "pipeline", "rollout", "scoring", "phases", "bench"}
FLOORS = {  # room: the rooms it may import beside itself
    **{"__init__": set(), "cli": set(), "structs": set(), "models": {"structs", "sharding"}},
    **{room: {"structs"} for room in TOOLS},
    **{"data": {"structs", "world"}, "rewards": {"structs", "world"}},
    **{"sampling": BODIES, "steps": BODIES | {"sampling"}, "hf": BODIES | {"data"}},
    **{
        "parts": BELOW,
        "pipeline": BELOW | {"parts", "learned"},
        "bench": BELOW | {"parts", "pipeline"},
    },
    **{"rollout": BELOW | {"parts", "pipeline"}, "scoring": BELOW},
    "phases": BELOW | {"parts", "rollout", "scoring"},
    **{
        "hosts": {"structs", "sharding"},
        "flops": {"structs", "models"},
        "aot": BELOW | ROADS | {"flops"},
    },
    # Before the doors: what their configs mean.
    **{
        "learned": BELOW | {"parts"},
        "starts": BELOW | {"parts", "learned"},
        "recipe": BELOW | ROADS | {"starts"},
    },
    **{door: BELOW | ROADS | {"starts", "recipe", "cli", "flops", "aot"} for door in DOORS},
}
FENCES = {  # third-party package: beginnings of the paths, below the package, that may import it
    **{"flax": ("models/",), "optax": ("optim.py", "steps/"), "orbax": ("checkpoint.py",)},
    **{"grain": ("data/",), "absl": (*DOORS, "cli.py"), "safetensors": ("hf/",)},
    **{"ml_collections": (*DOORS, "recipe.py", "starts.py")},
    **{"transformers": ("data/text.py",), "tokenizers": ("data/text.py",)},
    **{"tensorflow_datasets": ("data/",), "pyarrow": ("data/",), "array_record": ("data/",)},
    **{
        "scipy": ("world/", "data/", "bench/text_rules.py"),
        "PIL": ("world/", "data/", "logs.py", "rewards/remote.py"),
    },
    **{"matplotlib": ("report.py",), "tensorboardX": ("logs.py",), "tqdm": ("logs.py",)},
    **{"httpx": ("rewards/remote.py",), "rapidfuzz": ("rewards/words.py",)},
    **{"rapidocr": ("rewards/words.py",), "wandb": ("logs.py",)},
    **{"pickle": ("bench/risebench.py",)},  # which only writes
    **{name: () for name in ("torch", "cloudpickle", "dill", "Levenshtein")},
}
PRINTERS = (*DOORS, "cli.py", "world/gates.py", "world/attacks.py", "world/calibrate.py")
WITHOUT_JAX = ("data/", "world/")
OPTIONAL = {"rapidocr", "wandb"}  # named in launch/requirements-*.txt
DISTRIBUTIONS = {
    **{"PIL": "pillow", "absl": "absl-py", "orbax": "orbax-checkpoint"},
    **{"tensorflow_datasets": "tensorflow-datasets"},
}
TOP = {*FOLDERS, "README.md", "LICENSE", "requirements.txt"}
DOTS = {".ci", ".gitignore", ".pytest.ini", ".ruff.toml"}
MACHINE = re.compile(r"(?<![\w.})])/" + r"(work|tmp|root|home|Users)/\w")


def imports(path, tree):
    """Absolute dotted names of all a module imports, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.split("/")[: -node.level] if node.level else []
            start = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*start, alias.name]) for alias in node.names)


def import_faults(path, tree):
    package, _, inside = path.partition("/")
    room = inside.split("/")[0].removesuffix(".py")
    if package == "thinkgen_jax" and room not in FLOORS:
        yield f"no floor is known for {room}"
    for name in imports(path, tree):
        root, other = (name.split(".") + [""])[:2]
        if root == "thinkgen_jax" and package == "configs":
            yield "configs import nothing of the package"
        elif root == package == "thinkgen_jax" and other != "__version__":
            if other not in {room, *FLOORS.get(room, ())}:
                yield f"{room} may not import {other}"
        elif package == "thinkgen_jax" and not inside.startswith(FENCES.get(root, "")):
            yield f"{root} is not imported here"
        elif package == "thinkgen_jax" and root == "jax" and inside.startswith(WITHOUT_JAX):
            yield "the host side knows no jax"
        if name.startswith("jax.experimental.shard_map"):
            yield f"{name} is deprecated"


def word_faults(path, tree):
    package, _, inside = path.partition("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            if any(ast.unparse(item.context_expr).endswith("mesh") for item in node.items):
                yield "with mesh: use jax.set_mesh"
        elif isinstance(node, ast.Call):
            if any(word.arg == "allow_pickle" for word in node.keywords):
                yield "allow_pickle"
            if package == "thinkgen_jax" and not inside.startswith(PRINTERS):
                if ast.unparse(node.func) == "print":
                    yield "print below the doors"
        elif isinstance(node, ast.FunctionDef):
            limit = 120 if node.name == "main" and inside.startswith(DOORS) else 60
            length = node.end_lineno - node.lineno + 1
            if length > limit:
                yield f"{node.name} has {length} lines, at most {limit}"


def faults(path, text):
    tree = ast.parse(text)
    found = [*import_faults(path, tree), *word_faults(path, tree)]
    found += [] if text.startswith(HEAD) else ["line 1 is not the licence"]
    found += ["more than 600 lines"] if text.count("\n") > 600 else []
    return [f"{path}: {fault}" for fault in found]


def sources():
    files = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
    return [(str(p.relative_to(ROOT)), p.read_text()) for p in files]


def tracked():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return listing.stdout.splitlines() or pytest.skip("not a git checkout")


def test_every_file_keeps_the_rules():
    found = sum((faults(*source) for source in sources()), [])
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "code", "fault"),
    [
        ("models/x.py", "from thinkgen_jax.steps import grpo", "models may not import steps"),
        ("sampling/x.py", "import thinkgen_jax.steps.grpo", "sampling may not import steps"),
        ("models/x.py", "from ..steps import grpo", "models may not import steps"),
        ("pipeline.py", "from thinkgen_jax import train", "pipeline may not import train"),
        ("attic.py", "", "no floor is known for attic"),
        ("steps/x.py", "from flax import linen", "flax is not imported here"),
        ("hf/x.py", "def f():\n    import pickle", "pickle is not imported here"),
        ("world/x.py", "import jax", "the host side knows no jax"),
        ("models/x.py", "from jax.experimental import shard_map", "deprecated"),
        ("train.py", "with self.mesh:\n    pass", "use jax.set_mesh"),
        ("train.py", "np.load('x', allow_pickle=True)", "allow_pickle"),
        ("phases.py", "print(1)", "print below the doors"),
        ("logs.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines, at most 60"),
        ("logs.py", "\n" * 600, "more than 600 lines"),
        ("train.py", "from jax import set_mesh\nwith set_mesh(mesh):\n    print(1)", None),
        ("models/x.py", "from .layers import Norm", None),
    ],
)
def test_every_rule_can_fail(path, code, fault):
    found = faults(f"thinkgen_jax/{path}", HEAD + code)
    assert (len(found) == 1 and fault in found[0]) if fault else not found, found


def test_requirements_name_every_import():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    named = {re.match(r"[\w-]+", line)[0].lower() for line in lines if line[:1] not in ("", "#")}
    ours = [source for source in sources() if source[0].startswith(FOLDERS[:2])]
    roots = {n.split(".")[0] for path, text in ours for n in imports(path, ast.parse(text))}
    needed = roots - sys.stdlib_module_names - set(FOLDERS) - OPTIONAL
    assert {DISTRIBUTIONS.get(root, root).lower() for root in needed} <= named


def test_top_level_stays_small():
    assert {name.split("/")[0] for name in tracked()} <= TOP | DOTS


def test_no_machine_paths():
    assert MACHINE.search("see /" + "home/me") and not MACHINE.search("a/" + "home/me")
    binary = (".safetensors", ".png", ".gif", ".npz")
    files = [name for name in tracked() if not name.endswith(binary) and (ROOT / name).is_file()]
    assert [n for n in files if MACHINE.search((ROOT / n).read_text(errors="ignore"))] == []
