#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SepGRPO, stages 4 and 5 in turn, on v5e-256; see launch/recipe.sh.
set -euo pipefail
dry=()
[[ "${1:-}" != --dry-run ]] || { dry=(--dry-run) && shift; }
exec "$(dirname "$0")/recipe.sh" "${dry[@]}" sepgrpo v5e-256 "$@"
