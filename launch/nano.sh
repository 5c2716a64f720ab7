#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains the shipped nano weights from nothing, stage by stage: several hours on two quiet cores.
# Every line goes on where it was stopped, so the whole script may be started again at any time. On an
# accelerator give the DiT larger batches, made by processes of their own: BATCH=192 WORKERS=12, and
# the same again when it is started again.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -n "${WORKERS:-}" ] && [ -z "${BATCH:-}" ]; then
  echo "error: WORKERS is set without BATCH" >&2
  exit 2
fi

# Memory that stays with the process, in huge pages: a CPU step of the DiT is a tenth faster or more.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=4294967296 \
  MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456

train() { python -m thinkgen_jax.train --config="configs/$1.py" "${@:2}"; }

# The autoencoder learns details first, then to do with codes that noise may blur: what the DiT has to
# draw becomes simpler. Whole pictures come last, their group norms differ from those of cut-outs.
train nano_vae
train nano_vae --workdir=runs/nano_vae_soft --config.start.vae=runs/nano_vae-nano \
  --config.plans.vae_sft.loss.kl=0.04 --config.steps=2000 \
  --config.optim.vae.lr=1.5e-3 --config.optim.vae.total_steps=2000
train nano_vae --workdir=runs/nano_vae_whole --config.start.vae=runs/nano_vae_soft \
  --config.plans.vae_sft.loss.kl=0.03 --config.plans.vae_sft.crop=0 --config.steps=400 \
  --config.optim.vae.lr=6e-4 --config.optim.vae.total_steps=400 --config.optim.vae.warmup_steps=20
# Faint shapes on dark ground come last: the decoder alone learns on, the codes stay what they are.
train nano_vae --workdir=runs/nano_vae_decoder --config.start.vae=runs/nano_vae_whole \
  --config.plans.vae_sft.loss.kl=0.03 --config.plans.vae_sft.crop=0 --config.steps=1100 \
  --config.plans.vae_sft.streams.a.scenarios.composition=0.65 \
  --config.plans.vae_sft.streams.a.scenarios.text=0.15 \
  --config.plans.vae_sft.streams.a.scenarios.edit=0.2 \
  --config.optim.vae.trainable="('decoder',)" \
  --config.optim.vae.lr=1.2e-3 --config.optim.vae.total_steps=1100 --config.optim.vae.warmup_steps=20
python -m thinkgen_jax.convert --vae=runs/nano_vae_decoder --out=thinkgen_jax/assets/nano

train nano_mllm
larger=()
if [ -n "${BATCH:-}" ]; then
  larger=(--config.plans.flow_sft.batch="$BATCH" --config.plans.flow_sft.workers="${WORKERS:-0}")
fi
train nano_dit "${larger[@]}" ${BATCH:+--config.plans.flow_sft.pool=1}
train align "${larger[@]}"
train pretrain "${larger[@]}"
train finetune "${larger[@]}"
# What a reference picture shows is copied cleanly only after long practice: on, half of it edits.
mix=--config.plans.flow_sft.streams
train finetune --workdir=runs/finetune_edits --config.start.dit=runs/finetune-nano "${larger[@]}" \
  --config.steps=4300 --config.optim.dit.total_steps=4300 --config.optim.dit.lr=1.3e-3 \
  "$mix.a_words.weight=0.30" "$mix.b_edited.weight=0.47" "$mix.c_context.weight=0.05" \
  "$mix.d_thought.weight=0.18"
python -m thinkgen_jax.convert --mllm=runs/nano_mllm-nano --dit=runs/finetune_edits \
  --out=thinkgen_jax/assets/nano
