# SPDX-License-Identifier: Apache-2.0
"""What the command lines share: flags of their own, `--help`, errors told in one line.

A door defines its flags in `FLAGS = cli.values()`, so that doors stand side by side in one process,
and ends in `cli.start(FLAGS, run)`. Training shares its flags with absl and takes `parse` alone.
"""

import gc
import sys
from collections.abc import Callable, Sequence

from absl import flags


def values() -> flags.FlagValues:
    """An empty set of flags with `--help`."""
    found = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Shows this list.", short_name="h", flag_values=found)
    return found


def parse(known: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Reads the flags, and the config file where one is named; returns what is left of the words.

    Raises:
      SystemExit: 2, after one line, for what is wrong with them.
    """
    try:
        rest = known(argv)
        if "config" in known:
            getattr(known["config"].value, "name", None)  # a file that cannot be read says so now
        return rest
    except AttributeError as err:  # ml_collections names the last part of the key
        named = [a for a in argv if a.startswith("--config.") and str(err).strip("\"'") in a]
        print(f"error: {' '.join(named) or err}: the config has no such key", file=sys.stderr)
    except (flags.Error, ValueError, TypeError, OSError) as err:
        lines = [line.strip() for line in str(err).splitlines() if line.strip()]
        print(f"error: {lines[-1] if lines else type(err).__name__}", file=sys.stderr)
    raise SystemExit(2)


def collect_rarely() -> None:
    """Looks for garbage seldom, and never among what has been imported.

    Tracing makes millions of small objects that live; to look through them takes an eighth of the
    time until a first step.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def start(
    known: flags.FlagValues,
    run: Callable[[], object],
    argv: Sequence[str] | None = None,
    *,
    interrupted: str = "interrupted",
) -> None:
    """Reads the flags and runs; whatever a user can put right ends in one line and status 2.

    Args:
      argv: program and arguments; None takes those of the process.
      interrupted: the line that Ctrl-C ends in, with status 130.
    """
    argv = list(sys.argv if argv is None else argv)
    flags.FLAGS(argv[:1])  # absl's own flags keep their defaults
    rest = parse(known, argv)[1:]
    collect_rarely()
    try:
        if rest:
            raise ValueError(f"unknown arguments {rest}")
        print(known.get_help()) if known["help"].value else run()
    except (flags.Error, ValueError, OSError) as err:  # OSError: a path that climbs, a full disk
        print(f"error: {err}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from None
