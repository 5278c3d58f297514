#!/usr/bin/env bash
# Test with several processes: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of test.py]
# For several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT on each of them.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT PROCESSES [options of test.py]" >&2; exit 2; }
config=$1 checkpoint=$2 processes=$3
shift 3

rendezvous=(--standalone) # one machine: torchrun finds a free port
if [ "${NNODES:-1}" != 1 ] || [ -n "${PORT:-}" ]; then
    rendezvous=(--nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}"
        --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node="$processes" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
