# SPDX-License-Identifier: Apache-2.0
"""What the data says of a request beside its words: what a reward may want to know."""

from collections.abc import Mapping

from thinkgen_jax.structs import Request, Sample


def of(request: Request) -> Mapping:
    """Everything the data says: what its prompt set noted for rewards, then `meta` itself.

    A prompt set's item is `meta["item"]` and keeps its notes in `reward`.
    """
    noted = getattr(request.meta.get("item"), "reward", None)
    return {**(noted if isinstance(noted, Mapping) else {}), **request.meta}


def scenario(request: Request) -> str:
    """The kind of task, as the item of a prompt set or of the miniature world says; "" for none."""
    return getattr(request.meta.get("item"), "scenario", "")


def described(sample: Sample) -> str:
    """The words a picture is held against: a resolved description where the data has one."""
    return str(of(sample.request).get("description") or sample.request.prompt)
