# SPDX-License-Identifier: Apache-2.0
"""What the command lines share: flags of their own, `--help`, errors told in one line.

A door defines its flags in `FLAGS = cli.values()`, so that doors stand side by side in one process,
and ends in `cli.start(FLAGS, run)`.
"""

import sys
from collections.abc import Callable, Sequence

from absl import flags


def values() -> flags.FlagValues:
    """An empty set of flags with `--help`."""
    found = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Shows this list.", short_name="h", flag_values=found)
    return found


def start(
    known: flags.FlagValues, run: Callable[[], object], argv: Sequence[str] | None = None
) -> None:
    """Reads the flags and runs; whatever a user can put right ends in one line and status 2.

    Args:
      argv: program and arguments; None takes those of the process.
    """
    argv = list(sys.argv if argv is None else argv)
    flags.FLAGS(argv[:1])  # absl's own flags keep their defaults
    try:
        rest = known(argv)[1:]
        if rest:
            raise ValueError(f"unknown arguments {rest}")
        print(known.get_help()) if known["help"].value else run()
    except (flags.Error, ValueError, OSError) as err:  # OSError: a path that climbs, a full disk
        print(f"error: {err}", file=sys.stderr)
        raise SystemExit(2) from None
