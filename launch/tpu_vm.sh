#!/usr/bin/env bash
# Trains on Cloud TPU VMs, taken from the queue of queued resources.
#
#   [VARIABLE=value ...] launch/tpu_vm.sh [--dry-run] CONFIG --run-dir RUN [TRAIN ARGUMENTS]
#
# Creates the queued resource NAME (or uses it, if it is there), waits for it, installs vlalign on
# every host, mounts BUCKET at ~/runs there, and runs one process a host, in your shell: run this in
# tmux on a machine that stays on. RUN is below runs/. After a failure it starts again, and creates
# the TPU anew if it was preempted. SIGTERM and Ctrl-C let the hosts save and stop. The TPU is
# deleted when the run has finished, and only then: it costs until you delete it.
#
#   NAME         of the queued resource                        (vlalign)
#   ZONE         where; required
#   BUCKET       of Cloud Storage, for the runs; required
#   PROJECT      who pays                                      (gcloud's current one)
#   ACCELERATOR  type and size of one slice                    (v6e-16)
#   RUNTIME      software version of the TPU VM                (v2-alpha-tpuv6e)
#   SLICES       how many; more than one is Multislice         (1)
#   SPOT         1: cheap and preemptible                      (0)
#   PACKAGE      what pip installs                             (vlalign[tpu])
#   RESTARTS     how often to start again                      (20)

set -euo pipefail
NAME=${NAME:-vlalign}
ZONE=${ZONE:-}
BUCKET=${BUCKET:-}
PROJECT=${PROJECT:-}
ACCELERATOR=${ACCELERATOR:-v6e-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv6e}
SLICES=${SLICES:-1}
SPOT=${SPOT:-0}
PACKAGE=${PACKAGE:-vlalign[tpu]}
RESTARTS=${RESTARTS:-20}

die() {
  echo "tpu_vm.sh: error: $* (see launch/tpu_vm.sh --help)" >&2
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
[[ $ZONE ]] || die "ZONE is not set"
[[ $BUCKET ]] || die "BUCKET is not set"
[[ $SLICES =~ ^[1-9][0-9]*$ ]] || die "SLICES=$SLICES: expected a number from 1"
[[ $RESTARTS =~ ^[0-9]+$ ]] || die "RESTARTS=$RESTARTS: expected a number"
[[ $SPOT == [01] ]] || die "SPOT=$SPOT: 0 or 1"

where=(--zone="$ZONE")
[[ -z $PROJECT ]] || where+=(--project="$PROJECT")
queue=(gcloud compute tpus queued-resources)
nodes=(--node-id="$NAME")
((SLICES == 1)) || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
spot=()
((SPOT == 0)) || spot=(--spot)

create=("${queue[@]}" create "$NAME" "${where[@]}" "${nodes[@]}"
  --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${spot[@]}")
describe=("${queue[@]}" describe "$NAME" "${where[@]}" "--format=value(state.state)")
delete=("${queue[@]}" delete "$NAME" "${where[@]}" --force --quiet)
on_all=("${queue[@]}" ssh "$NAME" "${where[@]}" --node=all --worker=all)

# uv brings the Python that vlalign needs; the TPU's own is older.
setup="python3 -m pip install --quiet --user uv \
&& ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ~/vlalign \
&& ~/.local/bin/uv pip install --quiet --python ~/vlalign ${PACKAGE@Q} \
&& mkdir -p ~/runs && { mountpoint -q ~/runs || gcsfuse --implicit-dirs ${BUCKET@Q} ~/runs; }"
# A host that was told to stop must not look finished: vlalign ends with 0 when it has saved.
# shellcheck disable=SC2016 # the hosts expand it
guard='stopped=; trap "stopped=1; kill -TERM \$child" TERM; ~/vlalign/bin/vlalign "$@" & child=$!; '
# shellcheck disable=SC2016
guard+='wait $child; code=$?; if [ $stopped ]; then wait $child; exit 143; fi; exit $code'
train="exec bash -c ${guard@Q} vlalign train ${*@Q} --coordinator auto"

if [[ $dry ]]; then
  echo "${create[*]@Q}"
  echo "${describe[*]@Q} # every 30 s, until ACTIVE"
  echo "${on_all[*]@Q} --command=${setup@Q}"
  echo "${on_all[*]@Q} --command=${train@Q}"
  echo "${delete[*]@Q} # when the run has finished"
  exit 0
fi

state() { "${describe[@]}" 2>/dev/null || true; }

provide() { # creates the TPU if need be, and waits until it is there
  local now
  while true; do
    now=$(state)
    case $now in
      ACTIVE) break ;;
      "") "${create[@]}" || return ;;
      FAILED | SUSPENDED) "${delete[@]}" || return ;;
      *)
        echo "tpu_vm.sh: $NAME is $now" >&2
        sleep 30
        ;;
    esac
  done
  "${on_all[@]}" --command="$setup"
}

stopped=
# shellcheck disable=SC2329 # the trap calls it
stop() {
  stopped=1
  "${on_all[@]}" --command="pkill -TERM -f 'vlalign train' || true" || true
}
trap stop TERM INT

for ((attempt = 0; attempt <= RESTARTS; attempt++)); do
  code=0
  if provide; then
    # In the background, where Ctrl-C does not cut the connection: the hosts save first.
    "${on_all[@]}" --command="$train" &
    child=$!
    wait "$child" || code=$?
    [[ -z $stopped ]] || wait "$child" || true
  else
    code=1
  fi
  if [[ $stopped ]]; then
    echo "tpu_vm.sh: stopped; the same command goes on. The TPU still costs; to delete it:" >&2
    echo "${delete[*]@Q}" >&2
    exit 143
  fi
  if ((code == 0)); then
    "${delete[@]}"
    exit 0
  fi
  ((code != 2)) || break # wrong input: it would be wrong again
  echo "tpu_vm.sh: exit code $code" >&2
  sleep 10
done
echo "tpu_vm.sh: given up with exit code $code. The TPU still costs; to delete it:" >&2
echo "${delete[*]@Q}" >&2
exit "$code"
