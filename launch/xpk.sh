#!/usr/bin/env bash
# Trains on a GKE cluster of TPUs that xpk has made, with its queue and priorities.
#
#   [VARIABLE=value ...] launch/xpk.sh [--dry-run] CONFIG --run-dir RUN [TRAIN ARGUMENTS]
#
# Needs xpk 1.0 or later and a cluster of `xpk cluster create`. STORAGE was attached to it by
# `xpk storage attach`: RUN is below its mount point. One process a host. If one fails all start
# again, at most RESTARTS times, and go on from the newest checkpoint; not after wrong input.
#
#   NAME      of the workload                            (vlalign)
#   CLUSTER   of xpk; required
#   ZONE      of the cluster; required
#   IMAGE     container image with vlalign in it; required
#   STORAGE   for the runs; required
#   PROJECT   who pays                                   (gcloud's current one)
#   TPU_TYPE  type and size of one slice                 (v6e-16)
#   SLICES    how many; more than one is Multislice      (1)
#   PRIORITY  very-low, low, medium, high, very-high     (medium)
#   RESTARTS  how often all may start again              (20)
#   GRACE     seconds from SIGTERM to SIGKILL            (120)

set -euo pipefail
NAME=${NAME:-vlalign}
CLUSTER=${CLUSTER:-}
ZONE=${ZONE:-}
IMAGE=${IMAGE:-}
STORAGE=${STORAGE:-}
PROJECT=${PROJECT:-}
TPU_TYPE=${TPU_TYPE:-v6e-16}
SLICES=${SLICES:-1}
PRIORITY=${PRIORITY:-medium}
RESTARTS=${RESTARTS:-20}
GRACE=${GRACE:-120}

die() {
  echo "xpk.sh: error: $* (see launch/xpk.sh --help)" >&2
  exit 2
}

dry=
while [[ ${1-} == -* ]]; do
  case $1 in
    --dry-run) dry=1 ;;
    --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) die "unknown option $1 before CONFIG" ;;
  esac
  shift
done
[[ $# -ge 1 ]] || die "no CONFIG"
[[ " $* " == *" --run-dir"[\ =]* ]] || die "no --run-dir RUN"
for name in CLUSTER ZONE IMAGE STORAGE; do
  [[ ${!name} ]] || die "$name is not set"
done
[[ $SLICES =~ ^[1-9][0-9]*$ ]] || die "SLICES=$SLICES: expected a number from 1"
for name in RESTARTS GRACE; do
  [[ ${!name} =~ ^[0-9]+$ ]] || die "$name=${!name}: expected a number"
done

# A host that was told to stop must not look finished: vlalign ends with 0 when it has saved.
# `exec`, because xpk sends SIGTERM to the shell that it starts the command in.
# shellcheck disable=SC2016 # the hosts expand it
guard='stopped=; trap "stopped=1; kill -TERM \$child" TERM; vlalign "$@" & child=$!; '
# shellcheck disable=SC2016
guard+='wait $child; code=$?; if [ $stopped ]; then wait $child; exit 143; fi; exit $code'
create=(
  xpk workload create --workload="$NAME" --cluster="$CLUSTER" --zone="$ZONE"
  --tpu-type="$TPU_TYPE" --num-slices="$SLICES" --docker-image="$IMAGE" --storage="$STORAGE"
  --priority="$PRIORITY" --max-restarts="$RESTARTS"
  # Beside xpk's own (42, 127 to 255): the code of a process whose fellow has failed.
  --restart-on-exit-codes=1
  --termination-grace-period-seconds="$GRACE"
  --command="exec bash -c ${guard@Q} vlalign train ${*@Q}"
)
[[ -z $PROJECT ]] || create+=(--project="$PROJECT")

if [[ $dry ]]; then
  echo "${create[*]@Q}"
  exit 0
fi
exec "${create[@]}"
