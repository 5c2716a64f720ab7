#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Stage 2, pretrain, on v5p-64 (SLICE=v6e-64 for the other); see launch/recipe.sh.
set -euo pipefail
dry=()
[[ "${1:-}" != --dry-run ]] || { dry=(--dry-run) && shift; }
exec "$(dirname "$0")/recipe.sh" "${dry[@]}" pretrain "${SLICE:-v5p-64}" "$@"
