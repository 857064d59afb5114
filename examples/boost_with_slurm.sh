#!/bin/bash
#SBATCH --array=0-15
#SBATCH --gpus=1
#SBATCH --requeue
# Boost a dataset as a Slurm array: job i of n does the i-th part, and all share one journal, a folder that every machine sees
# or a URL such as s3://bucket/run/. A job that dies is requeued and asks only what the journal does not hold.
#
#  sbatch examples/boost_with_slurm.sh raw.jsonl my-org/my-booster /shared/journal/
#
# When the jobs are done, the same script without Slurm puts the rows together; it makes a call only for rows that failed:
#
#  bash examples/boost_with_slurm.sh raw.jsonl my-org/my-booster /shared/journal/ --out boosted.parquet
#
# Further options of `midb boost`, such as --engine vllm or --base-url, go at the end of both lines: the same in both, so that
# the journal knows the answers.
set -eu
source=$1 model=$2 journal=$3
shift 3
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  set -- --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
fi
exec midb boost "$source" --model "$model" --journal "$journal" "$@"
