#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles the released system's recipes for slices of TPUs and keeps the numbers in
# launch/topologies/<recipe>-<slice>.json; `python -m launch.topologies` prints them as tables.
#
#   launch/topologies.sh [--dry-run] [SLICE ...]       e.g. launch/topologies.sh v5p-64
#
# The first three slices compile what learns at full effort, the others everything fast. Five minutes
# to half an hour a slice; PREFIX, if set, stands before every command. h100-8 and h200-8, one host
# with eight GPUs, are compiled where they are named and need the packages of requirements-cuda.txt
# instead.
set -euo pipefail
cd "$(dirname "$0")/.."

run=()
if [[ "${1:-}" == --dry-run ]]; then
  run=(echo)
  shift
fi
[[ -z "${PREFIX:-}" ]] || run+=("$PREFIX")
thorough="v5p-64 v6e-64 v5e-256"
slices=("$@")
[[ ${#slices[@]} -gt 0 ]] || slices=(v5p-64 v6e-64 v5e-256 v5p-128 v6e-256 tpu7x-32)

status=0
for slice in "${slices[@]}"; do
  mesh=$slice recipes=(sepgrpo finetune)
  [[ $slice != h[12]00-8 ]] || mesh=gpu-8 recipes=(sepgrpo)
  for recipe in "${recipes[@]}"; do
    full=()
    [[ " $thorough " != *" $slice "* ]] || full=("--full=mllm_step,text_step,dit_step,flow_step")
    "${run[@]}" python -m thinkgen_jax.compile --config="configs/$recipe.py:thinkgen,mesh=$mesh" \
      --topology="$slice" --quick "${full[@]}" \
      --json="launch/topologies/$recipe-$slice.json" || status=$?
  done
done
exit "$status"
