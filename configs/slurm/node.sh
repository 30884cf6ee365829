#!/bin/bash
# The ranks of one node, started by pretrain.sbatch: torchrun with one process per GPU.
# Exit code 75 if the ranks saved and stopped after SIGUSR1, as medcl3d has; torchrun itself would exit with 1.
set -uo pipefail

processes=${SLURM_GPUS_ON_NODE:-${PROCESSES_PER_NODE:-1}}
stopping=0
torchrun --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" --nproc_per_node "$processes" \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
    --no-python medcl3d pretrain "$@" &
torchrun=$!

# torchrun would die of SIGUSR1; its ranks save the current step.
trap 'stopping=1; pkill -USR1 -P "$torchrun"' USR1
wait "$torchrun"
code=$?
while kill -0 "$torchrun" 2> /dev/null; do # the signal ended `wait`, not torchrun
    wait "$torchrun"
    code=$?
done
if [ "$stopping" -eq 1 ] && [ "$code" -ne 0 ]; then
    exit 75
fi
exit "$code"
