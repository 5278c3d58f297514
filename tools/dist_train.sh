#!/usr/bin/env bash
# Train with several processes: tools/dist_train.sh CONFIG PROCESSES [options of train.py]
# For several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT on each of them.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG PROCESSES [options of train.py]" >&2; exit 2; }
config=$1 processes=$2
shift 2

rendezvous=(--standalone) # one machine: torchrun finds a free port
if [ "${NNODES:-1}" != 1 ] || [ -n "${PORT:-}" ]; then
    rendezvous=(--nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}"
        --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node="$processes" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
