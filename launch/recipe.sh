#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains one stage of the released system on a slice of Cloud TPUs.
#
#   launch/recipe.sh [--dry-run] RECIPE SLICE [flags of thinkgen_jax.train ...]
#
#   RECIPE   align | pretrain | finetune (1-3), mllm_grpo | dit_grpo (4, 5), sepgrpo (4 and 5)
#   SLICE    v5p-64 | v5p-128 | v6e-64 | v6e-256 | v5e-256
#
# RUNS is the shared folder of runs and weights: RUNS/ThinkGen and RUNS/Qwen3-VL, RUNS/OmniGen2 are
# released folders, RUNS/<recipe> is each run's. A stage starts where the one before it ended; the
# reinforcement stages start from RUNS/finetune, or with START=released from RUNS/ThinkGen.
# DATA is what stages 1-3 learn from, e.g. "RUNS/captions/*.tar@9,RUNS/edits.jsonl@1", see
# --config.data; not needed where the flags name pictures themselves.
# NAME is the slice's name (thinkgen-<recipe>); PROJECT, ZONE, PREPARE, SPOT, ATTEMPTS and the others
# as in launch/tpu.sh.
set -euo pipefail
here=$(dirname "$0")

dry=()
if [[ "${1:-}" == --dry-run ]]; then
  dry=(--dry-run)
  shift
fi
if [[ $# -lt 2 || -z "${RUNS:-}" ]]; then
  sed -n '3,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
recipe=$1 slice=$2
shift 2
case "$slice" in
  v5p-64 | v5p-128 | v6e-64 | v6e-256 | v5e-256) ;;
  *) echo "error: no mesh is known for $slice" >&2 && exit 2 ;;
esac

mllm=$RUNS/Qwen3-VL vae=$RUNS/OmniGen2
case "$recipe" in
  align) dit=$RUNS/OmniGen2 ;;
  pretrain) dit=$RUNS/align ;;
  finetune) dit=$RUNS/pretrain ;;
  mllm_grpo | sepgrpo) dit=$RUNS/finetune ;;
  dit_grpo) dit=$RUNS/finetune mllm=$RUNS/mllm_grpo ;;
  *) echo "error: no recipe is called $recipe" >&2 && exit 2 ;;
esac
start=("--config.start.mllm=$mllm" "--config.start.dit=$dit" "--config.start.vae=$vae")
data=()
case "$recipe" in
  align | pretrain | finetune)
    if [[ -n "${DATA:-}" ]]; then
      data=("--config.data=$DATA")
    elif [[ " $*" != *" --config.data="* && " $*" != *" --config.plans.flow_sft.corpus."* ]]; then
      echo "error: $recipe learns from real pictures: DATA must be set, see launch/recipe.sh" >&2
      exit 2
    fi
    ;;
esac
[[ "${START:-}" != released ]] || start=("--checkpoint=$RUNS/ThinkGen")

exec "$here/tpu.sh" "${dry[@]}" train "${NAME:-thinkgen-${recipe//_/-}}" "$slice" \
  "--config=configs/$recipe.py:thinkgen,mesh=$slice" "--workdir=$RUNS/$recipe" "${start[@]}" \
  "${data[@]}" "$@"
