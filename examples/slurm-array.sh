#!/bin/bash
# A cohort on a Slurm cluster: a job array in which each task does every 100th case.
#
#     sbatch --array=1-100 examples/slurm-array.sh cases.csv /project/results --method calid+ --keep ed-es
#
# Submit it again to go on after time limits or failures: done cases are left out. Then, or meanwhile,
# `calid cohort status /project/results` tells how far it is and writes cohort.csv and failures.csv anew.
#SBATCH --job-name=calid
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue

set -eu
manifest=$1 results=$2
shift 2

# Exit code 3 says that some cases failed, which failures.csv tells: the task itself is done.
calid cohort "$manifest" "$results" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --workers 1 "$@" || [ $? -eq 3 ]
