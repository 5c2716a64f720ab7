#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures the stages of the nano system and prints one table: the runs of launch/nano.sh, then
# reinforcement from the shipped weights with three seeds, MLLM alone and both policies in turn. Goes
# on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

out=runs/stages
mkdir -p "$out"

measure() { # measure FILE RUN COUNT
  [ -s "$out/$1.json" ] || python -m thinkgen_jax.evaluate --checkpoint="$2" --count="$3" \
    --scenarios=composition,reasoning,text,edit,reasoning_edit --out="$out/$1.json"
}

files=()
for stage in align pretrain finetune; do
  measure "$stage" "runs/$stage-nano" 128
  files+=("$out/$stage.json")
done
for stage in mllm_grpo sepgrpo; do
  for seed in 0 1 2; do
    python -m thinkgen_jax.train --config="configs/$stage.py" --seed="$seed" \
      --workdir="runs/$stage-nano-$seed"
    measure "$stage.$seed" "runs/$stage-nano-$seed" 256
    files+=("$out/$stage.$seed.json")
  done
done
python -m launch.stages "${files[@]}"
