#!/usr/bin/env bash
# Trains with several processes on this machine.
#
#   [VARIABLE=value ...] launch/local.sh [--dry-run] CONFIG --run-dir RUN [TRAIN ARGUMENTS]
#
# One process drives all GPUs of a machine by itself: use this to rehearse a cluster, or where one
# process a GPU is wanted (process I then has GPU I). SIGTERM and Ctrl-C go to all processes as
# SIGTERM: they save and stop. If one dies the others are ended, and all start again from the newest
# checkpoint. Process 0's output comes as it is, the others' with their number in front.
#
#   PROCESSES  how many                                          (2)
#   RESTARTS   how often all are started again after a failure   (3)
#   GRACE      seconds from SIGTERM to SIGKILL                   (120)
#   VLALIGN    the command                                       (vlalign)

set -euo pipefail
PROCESSES=${PROCESSES:-2}
RESTARTS=${RESTARTS:-3}
GRACE=${GRACE:-120}
VLALIGN=${VLALIGN:-vlalign}

die() {
  echo "local.sh: error: $* (see launch/local.sh --help)" >&2
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
for name in PROCESSES RESTARTS GRACE; do
  [[ ${!name} =~ ^[0-9]+$ ]] || die "$name=${!name}: expected a number"
done
((PROCESSES > 0)) || die "PROCESSES=$PROCESSES: at least 1"

command=("$VLALIGN" train "$@")
pids=()
stopped=

settings() { # of process $1, with coordinator port $2
  echo "JAX_COORDINATOR_ADDRESS=127.0.0.1:$2 JAX_NUM_PROCESSES=$PROCESSES JAX_PROCESS_ID=$1" \
    "JAX_LOCAL_DEVICE_IDS=$1"
}

if [[ $dry ]]; then
  for ((i = 0; i < PROCESSES; i++)); do
    echo "env $(settings "$i" PORT) ${command[*]@Q} &"
  done
  echo "wait; after a failure again, at most $RESTARTS times"
  exit 0
fi

free_port() {
  local port
  while port=$((20000 + RANDOM % 12000)); do
    # Taken, if something answers.
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

signal_all() {
  for pid in "${pids[@]}"; do
    kill "-$1" "$pid" 2>/dev/null || true
  done
}

# Ends what still runs: SIGTERM, and SIGKILL after GRACE seconds.
end_all() {
  signal_all TERM
  local end=$((SECONDS + GRACE))
  while any_alive && ((SECONDS < end)); do sleep 0.2; done
  signal_all KILL
}

any_alive() {
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then return 0; fi
  done
  return 1
}

# Starts all and waits: the exit code is 0 if all ended well, else the first failure's.
run_once() {
  local port code=0 i pid prefix
  port=$(free_port)
  pids=()
  for ((i = 0; i < PROCESSES; i++)); do
    prefix=
    ((i == 0)) || prefix="[$i] "
    # shellcheck disable=SC2046 # settings are words
    env $(settings "$i" "$port") "${command[@]}" \
      > >(exec sed -u "s/^/$prefix/") 2> >(exec sed -u "s/^/$prefix/" >&2) &
    pids+=($!)
  done
  local left=("${pids[@]}")
  while ((${#left[@]} && code == 0)); do
    sleep 0.2
    for i in "${!left[@]}"; do
      pid=${left[i]}
      if ! kill -0 "$pid" 2>/dev/null; then
        unset "left[i]"
        wait "$pid" || { code=$? && break; }
      fi
    done
    # Whoever was told to stop saves first.
    [[ -z $stopped ]] || { end_all && break; }
  done
  end_all
  return "$code"
}

# Background processes of a script ignore SIGINT: both signals become SIGTERM.
trap 'stopped=1; signal_all TERM' TERM INT

for ((attempt = 0; ; attempt++)); do
  code=0
  run_once || code=$?
  if [[ $stopped ]]; then
    echo "local.sh: stopped; the same command goes on" >&2
    exit 143
  fi
  ((code != 0)) || exit 0
  case $code in # wrong input, or no such command: it would be so again
    2 | 126 | 127) exit "$code" ;;
  esac
  if ((attempt >= RESTARTS)); then
    echo "local.sh: a process ended with exit code $code; no restart is left" >&2
    exit "$code"
  fi
  echo "local.sh: a process ended with exit code $code; restart $((attempt + 1)) of $RESTARTS" >&2
done
