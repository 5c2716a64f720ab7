# SPDX-License-Identifier: Apache-2.0
"""Tensors one at a time: what is alive, where it lands, what is written."""

import json
import tracemalloc
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from tests.hf import released
from tests.hf.reference import to_hf, to_jax
from tests.hf.released import assert_trees_equal
from tests.toy import SYSTEM as TINY
from thinkgen_jax import parts, sharding
from thinkgen_jax.hf import dit, streams
from thinkgen_jax.hf.rules import flatten, heads_in, heads_out, keep, linear
from thinkgen_jax.hf.streams import Entry

BF16 = ml_dtypes.bfloat16
LAYERS, WIDTH = 6, 256
TABLE = (
    linear("layers/w/kernel", "blocks.{i}.w"),
    heads_in("layers/q/kernel", "blocks.{i}.q", heads=4),
    keep("embed", "embed"),
    linear("head", "head"),
)
SHAPES = {
    "layers": {
        "w": {"kernel": np.empty((LAYERS, WIDTH, 2 * WIDTH))},
        "q": {"kernel": np.empty((LAYERS, WIDTH, 4, WIDTH // 4))},
    },
    "embed": np.empty((8 * WIDTH, WIDTH)),
    "head": np.empty((WIDTH, 8 * WIDTH)),
}


def big_tensors(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {f"blocks.{i}.w": (2 * WIDTH, WIDTH) for i in range(LAYERS)}
    shapes |= {f"blocks.{i}.q": (WIDTH, WIDTH) for i in range(LAYERS)}
    shapes |= {"embed": (8 * WIDTH, WIDTH), "head": (8 * WIDTH, WIDTH)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    file = tmp_path_factory.mktemp("big") / "model.safetensors"
    save_file(big_tensors(), file)
    return file


def tracked(entries):
    """The same entries as copies in memory, and the most of them, in bytes, alive at one time."""
    alive, peak = {}, [0]

    def read(entry):
        array = entry.read().copy()
        alive[id(array)] = array.nbytes
        weakref.finalize(array, alive.pop, id(array))
        peak[0] = max(peak[0], sum(alive.values()))
        return array

    # A default argument binds the entry of this turn.
    return {k: e._replace(read=lambda e=e: read(e)) for k, e in entries.items()}, peak


PLACES = {
    "host": None,
    "one device": lambda: SingleDeviceSharding(jax.devices()[1]),
    "a mesh": lambda: NamedSharding(sharding.make_mesh(fsdp=2, tensor=2), P()),
}


@pytest.mark.parametrize("name", PLACES)
def test_one_tensor_is_in_flight(big, name):
    place = PLACES[name] and PLACES[name]()
    entries, peak = tracked(streams.scan(big)[0])
    largest = max(entry.nbytes for entry in entries.values())
    tree = streams.load(entries, TABLE, SHAPES, place=place)
    assert peak[0] <= 1.15 * largest
    assert_trees_equal(tree, to_jax(big_tensors(), TABLE, SHAPES))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_host_holds_the_parameters_and_one_tensor(big, dtype):
    entries, _ = streams.scan(big)
    largest = max(entry.nbytes for entry in entries.values())
    tracemalloc.start()
    tree = streams.load(entries, TABLE, SHAPES, dtype=dtype)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    placed = sum(leaf.nbytes for leaf in flatten(tree).values())
    assert placed <= after < placed + 100_000
    assert peak - placed < 0.15 * largest  # files are mapped: not even one tensor is copied


def test_devices_get_one_piece_after_another(big):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    place = {
        "layers": {
            "w": {"kernel": NamedSharding(mesh, P(None, "fsdp", "tensor"))},
            "q": {"kernel": NamedSharding(mesh, P("fsdp", None, "tensor"))},
        },
        "embed": NamedSharding(mesh, P(("fsdp", "tensor"))),
        "head": NamedSharding(mesh, P()),
    }
    entries, _ = streams.scan(big)
    largest = max(entry.nbytes for entry in entries.values())
    tracemalloc.start()
    tree = streams.load(entries, TABLE, SHAPES, place=lambda path: flatten(place)[path])
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # What remains is the parameters': these devices may keep the host's copy as theirs.
    assert peak - after < 1.15 * largest
    assert_trees_equal(tree, to_jax(big_tensors(), TABLE, SHAPES))
    for path, leaf in flatten(tree).items():
        assert leaf.sharding == flatten(place)[path]
    assert tree["embed"].addressable_shards[0].data.shape == (2 * WIDTH, WIDTH)


def test_the_rules_of_the_house_place_a_whole_tree(tmp_path):
    tensors = released.weights("transformer")
    del tensors["prepad_mask"]
    save_file(tensors, tmp_path / "m.safetensors")
    shapes, table = parts.shapes(TINY, "dit"), dit.rules(TINY.dit)
    place = sharding.infer(shapes, sharding.make_mesh(fsdp=2))
    entries, _ = streams.scan(tmp_path / "m.safetensors")
    tree = streams.load(entries, table, shapes, dtype="bfloat16", place=place)
    want = {k: x.astype(BF16) for k, x in flatten(to_jax(tensors, table, shapes)).items()}
    assert_trees_equal(tree, want)
    assert flatten(tree)["layers/attn/to_q/kernel"].sharding.spec == P(None, "fsdp", None, "tensor")


def test_a_stack_of_mixed_kinds_takes_the_widest():
    tensors = big_tensors(BF16)
    tensors["blocks.2.w"] = tensors["blocks.2.w"].astype(np.float32) / 3
    entries = {name: streams.entry_of(x) for name, x in tensors.items()}
    tree = streams.load(entries, TABLE, SHAPES)
    kinds = {path: leaf.dtype for path, leaf in flatten(tree).items()}
    assert kinds.pop("layers/w/kernel") == np.float32 and set(kinds.values()) == {np.dtype(BF16)}
    np.testing.assert_array_equal(tree["layers"]["w"]["kernel"][2], tensors["blocks.2.w"].T)


@pytest.mark.parametrize("shape", [(600, 700), (8, 3), (1, 5)])
@pytest.mark.parametrize("kind", [linear, lambda a, b: heads_out(a, b, heads=1)])
def test_strips_copy_everything(shape, kind):
    array = np.random.default_rng(0).normal(size=shape)
    source = kind("a", "b").to_ours(array)
    target = np.full(source.shape, np.nan, np.float32)
    streams._copy(target, source)
    np.testing.assert_array_equal(target, source.astype(np.float32))


def test_lazy_arrays_are_views_of_the_file(big):
    lazy = streams.Lazy(streams.scan(big)[0])
    assert set(lazy) == set(big_tensors()) and len(lazy) == 14
    assert not lazy["embed"].flags.owndata and not lazy["embed"].flags.writeable
    np.testing.assert_array_equal(lazy["embed"], big_tensors()["embed"])
    assert lazy.entries["embed"].shape == (8 * WIDTH, WIDTH)
    assert lazy.entries["embed"].nbytes == 8 * WIDTH * WIDTH * 4
    with pytest.raises(KeyError):
        lazy["tail"]


# --- back -----------------------------------------------------------------------------------------


def test_released_tensors_equal_the_plain_way():
    params = to_jax(big_tensors(BF16), TABLE, SHAPES)
    lazy = streams.Lazy(streams.released(params, TABLE))
    released.assert_same_tensors(
        {k: np.ascontiguousarray(x) for k, x in lazy.items()}, to_hf(params, TABLE)
    )
    on_device = jax.tree.map(jax.numpy.asarray, params)
    lazy = streams.Lazy(streams.released(on_device, TABLE, dtype="float32"))
    assert lazy["blocks.1.w"].dtype == np.float32
    np.testing.assert_array_equal(lazy["blocks.1.w"], big_tensors(BF16)["blocks.1.w"])


def test_released_refuses_what_the_table_does_not_know():
    params = to_jax(big_tensors(), TABLE, SHAPES)
    del params["embed"]
    with pytest.raises(ValueError, match="(?s)no parameter embed.*no rule for more"):
        streams.released({**params, "more": np.zeros(1)}, TABLE)


SMALL = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4).astype(BF16),
    "c": np.array(7, np.int64),
    "d": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
    "e": np.zeros((0, 3), np.float32),
}


def test_a_written_file_is_the_librarys_own(tmp_path):
    entries = {name: streams.entry_of(x) for name, x in SMALL.items()}
    streams.writer(entries, {"format": "pt"})(tmp_path / "ours")
    plain = {name: np.ascontiguousarray(x) if x.ndim else x for name, x in SMALL.items()}
    save_file(plain, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_writing_casts_and_holds_one_tensor(tmp_path):
    entries = streams.released(to_jax(big_tensors(), TABLE, SHAPES), TABLE, dtype="bfloat16")
    largest = max(entry.nbytes for entry in entries.values())
    tracemalloc.start()
    streams.writer(entries, {})(tmp_path / "m.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.15 * largest
    got = load_file(tmp_path / "m.safetensors")
    released.assert_same_tensors(got, {k: x.astype(BF16) for k, x in big_tensors().items()})


def test_shards_are_bounded_and_in_order():
    sizes = dict(a=3, b=3, c=9, d=1)
    entries = {name: Entry((size,), np.dtype(np.int8), None) for name, size in sizes.items()}
    cut = streams.shards(entries, "m", 6)
    names = [f"m-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert cut == dict(zip(names, (["a", "b"], ["c"], ["d"]), strict=True))
    assert streams.shards(entries, "m", 16) == {"m.safetensors": list("abcd")}


def test_headers_are_read(tmp_path):
    save_file({"x": np.zeros(2)}, tmp_path / "m.safetensors", {"who": "test"})
    assert streams.metadata(tmp_path / "m.safetensors") == {"who": "test"}
    save_file({"x": np.zeros(2)}, tmp_path / "m.safetensors")
    assert streams.metadata(tmp_path / "m.safetensors") == {}
    index = {"weight_map": {"x": "m.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    entries, faults = streams.scan(tmp_path / "m.safetensors.index.json")
    assert set(entries) == {"x"} and faults == []
