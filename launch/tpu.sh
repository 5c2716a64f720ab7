#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A slice of Cloud TPUs: ask for it, set it up, run a module on all its workers, give it back.
#
#   launch/tpu.sh [--dry-run] create NAME SLICE      queue a slice and wait until it is there
#   launch/tpu.sh [--dry-run] setup NAME             prepare all workers, copy this folder, install
#   launch/tpu.sh [--dry-run] run NAME MODULE ...    python -m MODULE ... on all workers at once
#   launch/tpu.sh [--dry-run] train NAME SLICE ...   all of it, again after every preemption, until
#                                                    thinkgen_jax.train has ended; ... are its flags
#   launch/tpu.sh [--dry-run] delete NAME            give it back
#
# Environment: PROJECT and ZONE; SPOT=1 for preemptible capacity; RUNTIME for another image; PYTHON,
# the workers' interpreter (python3.11, fetched where it is missing); ATTEMPTS, how often `train`
# starts anew (20); PAUSE, seconds between looks at a request (30); GRACE, seconds after which a slice
# that was taken away is known to be (60). --dry-run prints what would be executed.
#
# The folder a run works in (--workdir) and the weights and pictures it reads must be the same place on
# all workers, a mounted bucket or a network disk, and must outlive the slice. A new slice has no such
# place: PREPARE is a command that `setup` runs on every worker first, and again where the slice is
# still there, e.g. for a network disk
#
#   PREPARE='sudo mkdir -p /mnt/runs && { mountpoint -q /mnt/runs || sudo mount HOST:/runs /mnt/runs; }'
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '3,/^set/s/^# \{0,1\}//p' "$0"; }

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

# `set -e` rests inside the conditions of `train`: whatever may fail says so itself. A request under
# way is waited for, one that ended before is made anew. 3: it ended while it was waited for.
create() {
  local name=$1 slice=$2 kind found asked=0
  kind=$(accelerator "$slice") || return 2
  if [[ "$dry" == 1 ]]; then
    request "$name" "$slice" "$kind"
    return
  fi
  while true; do
    found=$(state "$name") || return 1
    case "$found:$asked" in
      ACTIVE:*) return 0 ;;
      ABSENT:0)
        request "$name" "$slice" "$kind" || return 1
        asked=1
        ;;
      FAILED:0 | SUSPENDED:0) delete "$name" || return 1 ;;
      ABSENT:1 | FAILED:1 | SUSPENDED:1)
        echo "error: the request for $name ended: $found" >&2
        return 3
        ;;
    esac
    sleep "${PAUSE:-30}"
  done
}

request() {
  local name=$1 slice=$2 kind=$3 spot=()
  [[ "${SPOT:-0}" == 0 ]] || spot=(--spot)
  do_it gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$kind" --runtime-version="${RUNTIME:-$(image "$slice")}" "${spot[@]}"
}

# The state of a request, ABSENT where there is none. A cloud that does not answer is asked again, and
# then is an error: a slice that nobody could see may well be there.
state() {
  local name=$1 found said tries
  said=$(mktemp)
  for ((tries = 0; tries < 5; tries++)); do
    if found=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
      --format='value(state.state)' 2>"$said"); then
      rm -f "$said"
      echo "$found"
      return 0
    elif grep -qE 'NOT_FOUND|was not found' "$said"; then
      rm -f "$said"
      echo ABSENT
      return 0
    fi
    sleep "${PAUSE:-30}"
  done
  echo "error: the state of $name is not known; gcloud said: $(tail -n 3 "$said")" >&2
  rm -f "$said"
  return 1
}

on_all() {
  local name=$1
  shift
  do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$*"
}

# The images may have an older Python; uv fetches one without asking for more rights.
setup() {
  local name=$1 python=${PYTHON:-python3.11} made
  [[ -z "${PREPARE:-}" ]] || on_all "$name" "$PREPARE" || return 1
  on_all "$name" "rm -rf thinkgen_jax && mkdir -p thinkgen_jax" || return 1
  do_it gcloud compute tpus tpu-vm scp --recurse thinkgen_jax configs launch requirements.txt \
    "$name:thinkgen_jax/" "${where[@]}" --worker=all || return 1
  made="if $python -c 'import ensurepip'; then $python -m venv .venv"
  made+="; else python3 -m pip install --quiet --user uv"
  made+=" && python3 -m uv venv --seed --python $python .venv; fi"
  on_all "$name" "cd thinkgen_jax && { $made; } && .venv/bin/pip install --quiet" \
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
  local name=$1 slice=$2 attempt status found
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
    found=$(state "$name") || return 1
    if [[ "$found" == ACTIVE ]]; then
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
