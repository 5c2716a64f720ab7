#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SepGRPO on one host with eight GPUs of 80 GB; RUNS/ThinkGen is a released folder.
#
#   RUNS=... launch/sepgrpo-gpu-8.sh [--dry-run] [flags of thinkgen_jax.train ...]
#
# An eighth of the prompts of a slice, see configs/sepgrpo.py. On several hosts, or as several
# processes of some GPUs each, see "Several hosts" of launch/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
run=()
[[ "${1:-}" != --dry-run ]] || { run=(echo) && shift; }
[[ -n "${RUNS:-}" ]] || { echo "error: RUNS must be set" >&2 && exit 2; }
exec "${run[@]}" python -m thinkgen_jax.train --config=configs/sepgrpo.py:thinkgen,mesh=gpu-8 \
  --checkpoint="$RUNS/ThinkGen" --workdir="$RUNS/sepgrpo" "$@"
