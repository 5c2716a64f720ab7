#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A slice of Cloud TPUs: ask for it, set it up, run a module on all its workers, give it back.
#
#   launch/tpu.sh [--dry-run] create NAME SLICE      queue a slice and wait until it is there
#   launch/tpu.sh [--dry-run] setup NAME             copy this folder to all workers and install
#   launch/tpu.sh [--dry-run] run NAME MODULE ...    python -m MODULE ... on all workers at once
#   launch/tpu.sh [--dry-run] train NAME SLICE ...   all of it, again after every preemption, until
#                                                    thinkgen_jax.train has ended; ... are its flags
#   launch/tpu.sh [--dry-run] delete NAME            give it back
#
# Environment: PROJECT and ZONE; SPOT=1 for preemptible capacity; RUNTIME for another image;
# ATTEMPTS, how often `train` starts anew (20); PAUSE, seconds between looks at a request (30); GRACE,
# seconds after which a slice that was taken away is known to be (60). --dry-run prints what would be
# executed.
#
# The folder a run works in (--workdir) and the weights it starts from must be the same place on all
# workers, a mounted bucket or a network disk, and must outlive the slice.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '3,20s/^# \{0,1\}//p' "$0"; }

do_it() {
  if [[ "$dry" == 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Names of the cloud: v5e slices are called v5litepod; every kind has an image of its own.
accelerator() {
  case "$1" in
    v5e-*) echo "v5litepod-${1#v5e-}" ;;
    v5p-* | v6e-* | tpu7x-*) echo "$1" ;;
    *) echo "error: no slice is called $1; e.g. v5p-64, v6e-64, v5e-256" >&2 && return 2 ;;
  esac
}

image() {
  case "$1" in
    v5e-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# `set -e` rests inside the conditions of `train`: whatever may fail says so itself. 3: the request was
# accepted and ended without a slice.
create() {
  local name=$1 slice=$2 kind spot=()
  kind=$(accelerator "$slice") || return 2
  [[ "$dry" == 1 || "$(state "$name")" != ACTIVE ]] || return 0 # it is still there: the same line again
  [[ "${SPOT:-0}" == 0 ]] || spot=(--spot)
  do_it gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$kind" --runtime-version="${RUNTIME:-$(image "$slice")}" "${spot[@]}" ||
    return 1
  until [[ "$dry" == 1 || "$(state "$name")" == ACTIVE ]]; do
    case "$(state "$name")" in
      FAILED | SUSPENDED) echo "error: the request for $name ended: $(state "$name")" >&2 && return 3 ;;
    esac
    sleep "${PAUSE:-30}"
  done
}

state() {
  gcloud compute tpus queued-resources describe "$1" "${where[@]}" --format='value(state.state)' \
    2>/dev/null || echo ABSENT
}

on_all() {
  local name=$1
  shift
  do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$*"
}

setup() {
  local name=$1 python=${PYTHON:-python3.11}
  on_all "$name" "rm -rf thinkgen_jax && mkdir -p thinkgen_jax" || return 1
  do_it gcloud compute tpus tpu-vm scp --recurse thinkgen_jax configs launch requirements.txt \
    "$name:thinkgen_jax/" "${where[@]}" --worker=all || return 1
  on_all "$name" "cd thinkgen_jax && $python -m venv .venv && .venv/bin/pip install --quiet" \
    "-r requirements.txt -r launch/requirements-tpu.txt"
}

run() {
  local name=$1 module=$2 words=()
  shift 2
  local word
  for word in "$@"; do words+=("$(printf '%q' "$word")"); done
  on_all "$name" "cd thinkgen_jax && .venv/bin/python -m $module ${words[*]}"
}

delete() {
  do_it gcloud compute tpus queued-resources delete "$1" "${where[@]}" --force --quiet
}

# The same line goes on from the last commit: after a preemption everything is simply done again. A
# run that ended by itself, well or with an error of its own, is not repeated.
train() {
  local name=$1 slice=$2 attempt status
  shift 2
  for ((attempt = 1; attempt <= ${ATTEMPTS:-20}; attempt++)); do
    status=0
    create "$name" "$slice" || status=$?
    [[ "$status" == 0 || "$status" == 3 ]] || return "$status"
    if [[ "$status" == 0 ]] && setup "$name" &&
      run "$name" thinkgen_jax.train --distributed "$@"; then
      delete "$name"
      return 0
    fi
    sleep "${GRACE:-60}" # the first worker may be gone before the slice is said to be
    if [[ "$(state "$name")" == ACTIVE ]]; then
      echo "error: the run ended by itself, $name is still there" >&2
      return 1
    fi
    echo "attempt $attempt of ${ATTEMPTS:-20}: $name is gone; once more" >&2
    delete "$name" || true
  done
  return 1
}

dry=0
if [[ "${1:-}" == --dry-run ]]; then
  dry=1
  shift
fi
command=${1:-}
shift || true
where=(--project="${PROJECT:-}" --zone="${ZONE:-}")
case "$command:$#" in
  create:2 | setup:1 | delete:1) ;;
  run:* | train:*) [[ $# -ge 2 ]] || { usage >&2 && exit 2; } ;;
  *) usage >&2 && exit 2 ;;
esac
if [[ -z "${PROJECT:-}" || -z "${ZONE:-}" ]]; then
  echo "error: PROJECT and ZONE must be set" >&2
  exit 2
fi
"$command" "$@"
