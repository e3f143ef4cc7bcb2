#!/bin/bash
# raycap on Slurm: a batch job that starts Ray on all nodes of its allocation and runs a sweep on them.
#
# Lines marked FILL need a decision from you: set the value, then remove the mark. `raycap cluster check FILE` lists the marks
# that are left, and all other faults. Submit the job from a folder that all nodes share: sbatch FILE
#
# The job ends itself before its time limit, and when Slurm preempts it: trials save checkpoints, and the job is queued again.
# It continues from there. Finished trials are not trained again.
#SBATCH --job-name=raycap
#SBATCH --partition=gpu # FILL: a partition with GPUs; one whose jobs may be preempted is suitable
#SBATCH --nodes=2 # FILL: number of nodes
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8 # FILL: CPUs of each node
#SBATCH --gres=gpu:1 # FILL: GPUs of each node; remove the line if trials use none
#SBATCH --mem=32G # FILL: memory of each node
#SBATCH --time=04:00:00 # FILL: time limit of the job
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=raycap-%j.log
#SBATCH --signal=B:USR1@120

# FILL below: the environment with raycap, in a folder that all nodes share.
source /my-shared-folder/raycap/.venv/bin/activate # FILL

# Slurm sends USR1 before it ends or preempts the job, and `scancel` sends TERM: the run saves its trials and ends.
trap 'preempted=yes; kill $run 2> /dev/null' USR1
trap 'kill $run 2> /dev/null' TERM

# Ray listens on the network of the nodes and requires this token. It is only in the environment of the job's processes.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
address=$(getent ahostsv4 "$SLURMD_NODENAME" | awk '{ print $1; exit }')
port=$((20000 + 3 * (SLURM_JOB_ID % 3000))) # and the two after it; several jobs can share a node
export RAY_AUTH_TOKEN RAY_ADDRESS=$address:$port RAY_TMPDIR=/tmp/raycap-$SLURM_JOB_ID OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# The first node, on which this script runs, has the head. Only the user can open the folder with Ray's sockets and logs.
start_ray='
  export RAY_AUTH_MODE=token
  rm -rf "$RAY_TMPDIR" && mkdir -m 700 "$RAY_TMPDIR" || exit 1
  port=${RAY_ADDRESS##*:} join="--address=$RAY_ADDRESS"
  if [ "$SLURM_PROCID" = 0 ]; then
    join="--head --node-ip-address=${RAY_ADDRESS%:*} --port=$port --ray-client-server-port=$((port + 1))"
  fi
  until ray start $join --dashboard-agent-listen-port=$((port + 2)) --num-cpus="$SLURM_CPUS_ON_NODE" \
      --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block || [ "$SLURM_PROCID" = 0 ]; do
    sleep 5 # the head does not accept other nodes yet
  done'
srun --quiet --ntasks="$SLURM_NNODES" --output="raycap-$SLURM_JOB_ID-ray.log" bash -c "$start_ray" &
ray=$!
raycap cluster wait "$SLURM_NNODES" || exit # Slurm stops what still runs when the script ends

# The run stops five minutes before the job's time limit.
end=$(date -d "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %e)" +%s)
stop=$((end - 300))

# FILL below: the spec of the sweep, and the folder that all nodes share.
raycap run specs/one_hop.yaml storage=file:///my-shared-folder/runs tracking.uri=sqlite:////my-shared-folder/mlflow.db --budget $((stop - $(date +%s)))s & # FILL
run=$!
if [[ -n $preempted ]]; then kill "$run"; fi
while kill -0 "$run" 2> /dev/null; do wait "$run"; done # a signal ends `wait`
wait "$run"
code=$?

kill "$ray" 2> /dev/null
wait "$ray" 2> /dev/null
srun --quiet --ntasks="$SLURM_NNODES" rm -rf "$RAY_TMPDIR"
# Exit codes of a run: 3 if the budget is spent, 130 after an interruption.
if [[ $code = 130 && -n $preempted ]] || [[ $code = 3 && $(date +%s) -ge $stop ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
