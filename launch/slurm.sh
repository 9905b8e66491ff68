#!/usr/bin/env bash
set -euo pipefail
usage='usage: bash launch/slurm.sh [options] CONFIG --workdir=FOLDER [flags of edf_jax.main]

Queues a run under SLURM: an array of jobs, each of which trains its part of the experts into one
store, and a job that distils, evaluates and reports once all of them are done. A job that runs out
of its time, or is preempted, saves and is queued again. Run again, it continues.

  --parts=N       jobs of the array (default 1)
  --gpus=G        of each job, on each node (default 1; 0 runs on CPUs)
  --nodes=M       of the distillation (default 1); its processes find each other
  --time=LIMIT    of each job (default 12:00:00); a run may take longer
  --store=FOLDER  where experts go (default: experts beside the workdir, shared by runs there)
  --sbatch=FLAGS  more flags of sbatch, such as --sbatch="--partition=gpu --mem=64G"
  --dry_run       print the jobs, queue nothing

  bash launch/slurm.sh --parts=8 configs/imagenette.py:ipc10 --workdir=runs/nette10 \
    --config.data.path=/data/imagenet

Folders must be on a file system that all nodes see. EDF_PYTHON=/path/to/python is used instead of
.venv.'

parts=1 gpus=1 nodes=1 limit=12:00:00 store="" more="" config="" workdir="" dry="" parallel="" flags=()
for argument in "$@"; do
  value=${argument#*=}
  case "$argument" in
    -h | --help) echo "$usage"; exit 0 ;;
    --parts=*) parts=$value ;;
    --gpus=*) gpus=$value ;;
    --nodes=*) nodes=$value ;;
    --time=*) limit=$value ;;
    --store=*) store=$value ;;
    --sbatch=*) more=$value ;;
    --dry_run) dry=yes ;;
    --workdir=*) workdir=$value ;;
    --config=*) config=$value ;;
    --config.parallel.*) parallel=given; flags+=("$argument") ;;
    -*) flags+=("$argument") ;;
    *) if [ -n "$config" ]; then echo "slurm.sh: what is $argument? (see --help)" >&2; exit 2; fi
      config=$argument ;;
  esac
done
if [ -z "$config" ] || [ -z "$workdir" ]; then echo "$usage" >&2; exit 2; fi
for count in "$parts" "$gpus" "$nodes"; do
  if ! [[ "$count" =~ ^[0-9]+$ ]]; then echo "slurm.sh: $count is no number" >&2; exit 2; fi
done

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ -z "$dry" ]; then
  make_environment
  install_for_gpus "$gpus"
fi
store=${store:-$(dirname "$workdir")/experts}
workdir=${workdir%/}
logs=$workdir-logs
run=("$venv_python" -m edf_jax.main "--config=$config" "--config.experts.dir=$store"
  ${flags[@]+"${flags[@]}"})
common=(--parsable "--time=$limit" --signal=TERM@120 --requeue --open-mode=append --ntasks-per-node=1)
if [ "$gpus" -gt 0 ]; then common+=("--gpus-per-node=$gpus"); fi
read -r -a given <<<"$more"
common+=(${given[@]+"${given[@]}"})

# submit NAME REST_OF_COMMAND [flags of sbatch]: a job's number on standard output.
submit() {
  local name=$1 rest=$2 script
  shift 2
  script="#!/usr/bin/env bash
export SRUN_CPUS_PER_TASK=\${SLURM_CPUS_PER_TASK:-1}
srun $(printf '%q ' "${run[@]}")$rest
status=\$?
# Stopped in time (143 is by SIGTERM before Python could hear it), or by the loss of a node: the same
# command continues.
case \$status in
  75 | 143) scontrol requeue \"\$SLURM_JOB_ID\" ;;
  76 | 134) [ \"\${SLURM_RESTART_COUNT:-0}\" -ge 20 ] || scontrol requeue \"\$SLURM_JOB_ID\" ;;
esac
exit \$status"
  set -- "${common[@]}" "--job-name=edf-$name" "--output=$logs/$name-%j.txt" "$@"
  if [ -n "$dry" ]; then
    printf 'sbatch %s <<END\n%s\nEND\n' "$*" "$script" >&2
    echo "JOB-$name"
  else
    sbatch "$@" <<<"$script"
  fi
}

[ -n "$dry" ] || mkdir -p "$logs"
part="--stage=experts --config.experts.part=\"\$SLURM_ARRAY_TASK_ID/$parts\""
part+=" --workdir=$(printf %q "$workdir")-part-\"\$SLURM_ARRAY_TASK_ID\""
experts=$(submit experts "$part" "--array=1-$parts" --nodes=1)
devices=$((gpus * nodes))
rest="--workdir=$(printf %q "$workdir")"
if [ "$devices" -gt 1 ] && [ -z "$parallel" ]; then rest+=" --config.parallel.data=$devices"; fi
distill=$(submit distill "$rest" "--nodes=$nodes" "--dependency=afterok:${experts%%;*}")
echo "experts: job ${experts%%;*}; then distillation: job ${distill%%;*}; their lines: $logs"
