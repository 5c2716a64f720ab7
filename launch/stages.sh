#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures the stages of the nano system and prints tables: the runs of launch/nano.sh, then the
# main job from the shipped weights with three seeds. Stage 4 is its MLLM before the DiT of stage 3,
# stage 5 both of its trees. Then what the runs measured themselves. Goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

out=runs/stages
mkdir -p "$out"

measure() { # measure FILE RUN COUNT [FLAGS...]
  [ -s "$out/$1.json" ] || python -m thinkgen_jax.evaluate --checkpoint="$2" --count="$3" \
    --scenarios=composition,reasoning,text,edit --out="$out/$1.json" "${@:4}"
}

files=()
for stage in align pretrain; do
  measure "$stage" "runs/$stage-nano" 128
  files+=("$out/$stage.json")
done
measure finetune runs/finetune_edits 256
files+=("$out/finetune.json")
for seed in 0 1 2; do
  python -m thinkgen_jax.train --config=configs/sepgrpo.py --seed="$seed" \
    --workdir="runs/sepgrpo-nano-$seed"
  measure "mllm_grpo.$seed" "runs/sepgrpo-nano-$seed" 256 --start=dit
  measure "dit_grpo.$seed" "runs/sepgrpo-nano-$seed" 256
done
files+=("$out"/mllm_grpo.?.json "$out"/dit_grpo.?.json)
python -m launch.stages "${files[@]}"
python -m launch.effects runs/sepgrpo-nano-?
