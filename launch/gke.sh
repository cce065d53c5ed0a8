#!/usr/bin/env bash
# Trains on Google Kubernetes Engine, as a JobSet: launch/gke_jobset.yaml, filled in.
#
#   [VARIABLE=value ...] launch/gke.sh [--dry-run] CONFIG --run-dir RUN [TRAIN ARGUMENTS]
#
# Needs a cluster with the JobSet controller (v0.8 or later), the Cloud Storage FUSE driver, and a
# node pool of the accelerator. BUCKET is mounted at /runs in every pod: RUN is below /runs. One pod
# a host. If one fails all are recreated, at most RESTARTS times, and go on from the newest
# checkpoint. A pod that is evicted gets SIGTERM and GRACE seconds for a last save.
#
#   NAME         of the JobSet                                     (vlalign)
#   IMAGE        container image with vlalign in it; required
#   BUCKET       of Cloud Storage, for the runs; required
#   ACCELERATOR  the nodes' label: tpu-v6e-slice, nvidia-h100-80gb (tpu-v6e-slice)
#   TOPOLOGY     of one TPU slice                                  (4x4)
#   HOSTS        of one slice, or with GPUs                        (4)
#   CHIPS        TPU chips or GPUs of one host                     (4)
#   SLICES       of TPU; more than one is Multislice               (1)
#   RESTARTS     how often all may start again                     (20)
#   GRACE        seconds from SIGTERM to SIGKILL                   (120)
#   NAMESPACE    of Kubernetes                                     (default)
#   SERVICE_ACCOUNT  of Kubernetes, that may write to BUCKET       (default)

set -euo pipefail
NAME=${NAME:-vlalign}
IMAGE=${IMAGE:-}
BUCKET=${BUCKET:-}
ACCELERATOR=${ACCELERATOR:-tpu-v6e-slice}
TOPOLOGY=${TOPOLOGY:-4x4}
HOSTS=${HOSTS:-4}
CHIPS=${CHIPS:-4}
SLICES=${SLICES:-1}
RESTARTS=${RESTARTS:-20}
GRACE=${GRACE:-120}
NAMESPACE=${NAMESPACE:-default}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}

die() {
  echo "gke.sh: error: $* (see launch/gke.sh --help)" >&2
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
[[ $IMAGE ]] || die "IMAGE is not set"
[[ $BUCKET ]] || die "BUCKET is not set"
for name in NAME NAMESPACE SERVICE_ACCOUNT; do
  [[ ${!name} =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die "$name=${!name}: small letters, digits and hyphens"
done
for name in HOSTS CHIPS SLICES; do
  [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "$name=${!name}: expected a number from 1"
done
for name in RESTARTS GRACE; do
  [[ ${!name} =~ ^[0-9]+$ ]] || die "$name=${!name}: expected a number"
done

# Text as a JSON string, which is YAML too.
quoted() {
  [[ $1 != *[[:cntrl:]]* ]] || die "a line break or another control character in ${1@Q}"
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

listed() { # the arguments as a JSON list
  local word comma=
  printf '['
  for word in "$@"; do
    printf '%s' "$comma"
    quoted "$word"
    comma=', '
  done
  printf ']'
}

case $ACCELERATOR in
  tpu-*) # the cluster tells each pod of a slice who it is; libtpu locks more memory than pods may
    privileged=true
    resource=google.com/tpu
    selector="{cloud.google.com/gke-tpu-accelerator: $(quoted "$ACCELERATOR"), \
cloud.google.com/gke-tpu-topology: $(quoted "$TOPOLOGY")}"
    annotations='{alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}'
    environment='[]'
    ;;
  nvidia-*) # nobody does: the pods find the first one by its name
    ((SLICES == 1)) || die "SLICES=$SLICES with GPUs: set HOSTS"
    privileged=false
    resource=nvidia.com/gpu
    selector="{cloud.google.com/gke-accelerator: $(quoted "$ACCELERATOR")}"
    annotations='{}'
    environment="[{name: JAX_COORDINATOR_ADDRESS, value: \"$NAME-workers-0-0.$NAME:8476\"}, \
{name: JAX_NUM_PROCESSES, value: \"$HOSTS\"}]"
    ;;
  *) die "ACCELERATOR=$ACCELERATOR: expected tpu-... or nvidia-..." ;;
esac

manifest=$(<"$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")
fill() { manifest=${manifest//"@$1@"/"$2"}; }
fill NAME "$NAME"
fill NAMESPACE "$NAMESPACE"
fill SERVICE_ACCOUNT "$SERVICE_ACCOUNT"
fill ANNOTATIONS "$annotations"
fill RESTARTS "$RESTARTS"
fill SLICES "$SLICES"
fill HOSTS "$HOSTS"
fill GRACE "$GRACE"
fill SELECTOR "$selector"
fill RESOURCE "$resource"
fill PRIVILEGED "$privileged"
fill CHIPS "$CHIPS"
fill ENVIRONMENT "$environment"
fill IMAGE "$(quoted "$IMAGE")"
fill BUCKET "$(quoted "$BUCKET")"
fill ARGUMENTS "$(listed train "$@")" # last: it may hold anything

if [[ $dry ]]; then
  echo "kubectl create --filename=- <<'YAML'"
  echo "$manifest"
  echo "YAML"
  exit 0
fi
kubectl create --filename=- <<<"$manifest"
cat <<TEXT
to watch:  kubectl --namespace=$NAMESPACE get jobset $NAME
           kubectl --namespace=$NAMESPACE logs --follow --container=train --selector=\
jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,\
batch.kubernetes.io/job-completion-index=0
to end:    kubectl --namespace=$NAMESPACE delete jobset $NAME   (then the same command goes on)
TEXT
