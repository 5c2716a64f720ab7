# SPDX-License-Identifier: Apache-2.0
"""What a compiled program's text tells: collectives, kernels, copies.

* A collective is hidden when the compiler runs it beside arithmetic: it is split into a start and a
  done, or lies in asynchronous fusions. All others are exposed: the device waits for them.
* One collective may stand in several fusions: one that starts it, those it passes beside, and one
  that waits for its end; they have its channel in common and are counted once.
* What is called by the body of a loop is in a loop; the text does not tell how often it runs.
* Scheduled text of TPU programs is meant; on CPU and GPU it reads alike.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2}
BYTES |= {"s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1, "f8e4m3fn": 1, "f8e5m2": 1}
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?%?([\w.\-, %]+)\}?")
LOOP = re.compile(r"(?:body|condition)=%?([\w.\-]+)")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
OPERATION = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
CHANNEL = re.compile(r"channel_id=(\d+)")
NAMED = re.compile(r'op_name="([^"]*)"')
HIDDEN = "async_collective"  # in the name of a fusion that runs beside others
KERNEL = "tpu_custom_call"
BACKWARD = "transpose("  # in the name of what the backward pass computes


@dataclass(frozen=True)
class Operation:
    """One instruction.

    Attributes:
      kind: opcode, without "-start".
      size: bytes of its result on one device.
      source: name of the JAX operation it comes from; of a kernel, its own.
    """

    kind: str
    size: int
    in_loop: bool
    is_hidden: bool
    source: str

    @property
    def is_backward(self) -> bool:
        """Whether it is part of a backward pass."""
        return BACKWARD in self.source


def operations(text: str) -> list[Operation]:
    """Collectives, kernels ("kernel") and copies ("copy") of a program."""
    rooms = computations(text)
    loops = _reachable(rooms, {name for body in rooms.values() for name in _loops(body)})
    found: dict[tuple, Operation] = {}
    for room, body in rooms.items():
        for number, line in enumerate(body):
            match = OPERATION.match(line)
            kind = _kind(match.group(3), line) if match else None
            if not kind:
                continue
            name, result, opcode = match.groups()
            source, channel = NAMED.search(line), CHANNEL.search(line)
            key = (kind, channel.group(1)) if channel else (room, number)
            hidden = opcode.endswith("-start") or HIDDEN in room
            if key in found and not hidden:
                continue
            told = name if kind == "kernel" or not source else source.group(1)
            found[key] = Operation(kind, _size(result, opcode), room in loops, hidden, told)
    return list(found.values())


def summary(text: str) -> dict:
    """Counts and bytes of collectives by kind, kernels, and the largest copies.

    `exposed_share` is the part of the collectives' bytes, in loops where there are any, that the
    device waits for; `backward_gathers` are the exposed all-gathers inside loops of the backward
    pass: (bytes, source).
    """
    found = operations(text)
    moves = [op for op in found if op.kind in KINDS]
    looped = [op for op in moves if op.in_loop] or moves
    waiting = sum(op.size for op in looped if not op.is_hidden)
    copies = sorted((op for op in found if op.kind == "copy"), key=lambda op: -op.size)
    return {
        "collectives": {
            kind: {
                "hidden": sum(op.is_hidden for op in moves if op.kind == kind),
                "exposed_in_loops": _exposed(moves, kind, True),
                "exposed_at_entry": _exposed(moves, kind, False),
            }
            for kind in KINDS
            if any(op.kind == kind for op in moves)
        },
        "exposed_share": waiting / max(sum(op.size for op in looped), 1),
        "backward_gathers": [
            (op.size, op.source)
            for op in moves
            if op.kind == "all-gather" and op.in_loop and op.is_backward and not op.is_hidden
        ],
        "kernels": sum(op.kind == "kernel" for op in found),
        "attention_kernels": sum(op.kind == "kernel" and "splash" in op.source for op in found),
        "copies": [(op.size, op.source) for op in copies[:3]],
    }


def _exposed(moves: list[Operation], kind: str, in_loop: bool) -> int:
    return sum(op.kind == kind and op.in_loop == in_loop and not op.is_hidden for op in moves)


def computations(text: str) -> dict[str, list[str]]:
    """Instructions of every computation by its name."""
    rooms: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            current = rooms.setdefault(head.group(1), [])
        elif line.rstrip() == "}":  # a kernel's description has lines that only begin so
            current = None
        elif current is not None:
            current.append(line.strip())
    return rooms


def _loops(body: list[str]) -> Iterator[str]:
    for line in body:
        if " while(" in line:
            yield from LOOP.findall(line)


def _reachable(rooms: dict[str, list[str]], start: set[str]) -> set[str]:
    """These computations and all that they call."""
    seen, rest = set(), list(start)
    while rest:
        name = rest.pop()
        if name in seen or name not in rooms:
            continue
        seen.add(name)
        for line in rooms[name]:
            for group in CALLED.findall(line):
                rest += [part.strip(" %") for part in group.split(",")]
    return seen


def _kind(opcode: str, line: str) -> str | None:
    plain = opcode.removesuffix("-start")
    if plain in (*KINDS, "copy"):
        return plain
    return "kernel" if opcode == "custom-call" and KERNEL in line else None


def _size(result: str, opcode: str) -> int:
    """Bytes of a result; of a started one its last large part, which is what arrives."""
    parts = [
        BYTES.get(kind, 0) * math.prod(int(n) for n in sides.split(",") if n)
        for kind, sides in ARRAY.findall(result)
    ]
    if opcode.endswith("-start"):
        return max(parts, default=0)
    return sum(parts)
