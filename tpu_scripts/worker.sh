#!/usr/bin/env bash
# What the other scripts do on a worker, where this file arrives with the checkout; nobody needs to call it by hand.
#
#   worker.sh install                           ~/opd_jax.tar.gz -> ~/opd_jax and its .venv
#   worker.sh train WAIT RESTARTS PAUSE ARG...  starts the trainer, and waits WAIT seconds to report a failure
#   worker.sh stop INT|TERM                     ends it: interrupted, or saved at the next step
#   worker.sh status SLICE                      one line about the last run
#   worker.sh log|follow LINES                  prints the log of the last run, and follows it
#
# logs/ has one log a run and latest.log, and of the last run: pid, its leader; trainer, the process that trains; restarts,
# how often that was started again; stop, once somebody has asked it to end; status, once it has ended; and a lock that
# the run holds for as long as any process of it lives.

set -euo pipefail

main() {
  cd ~/opd_jax
  mkdir -p logs
  if [[ $1 != run ]]; then exec 9>>logs/lock; fi # a run has inherited it, locked, from train
  case $1 in
    install) install ;;
    train) train "${@:2}" ;;
    run) run "${@:2}" ;;
    stop) stop "$2" ;;
    status) status "$2" ;;
    log) log "$2" ;;
    follow) follow "$2" ;;
    *) die "worker.sh does not know $1." ;;
  esac
}

install() {
  flock --nonblock 9 || busy
  if [[ -f .files ]]; then xargs -d '\n' rm -f -- <.files; fi # files that a later commit has deleted
  tar -xzf ~/opd_jax.tar.gz
  tar -tzf ~/opd_jax.tar.gz | sed '/\/$/d' >.files
  rm ~/opd_jax.tar.gz
  make_venv
  .venv/bin/python -m pip install --quiet --editable '.[tpu]'
  .venv/bin/python -c 'import jax, opd_jax; print(f"opd_jax {opd_jax.__version__} with jax {jax.__version__} is installed")'
}

# A release of 3.11 or newer that can make environments; Ubuntu 22.04 has 3.10 and a release candidate of 3.11.
make_venv() {
  local python usable='import sys, ensurepip; sys.exit(sys.version_info < (3, 11, 0, "final"))'
  if .venv/bin/python -c "$usable" 2>/dev/null; then return; fi
  rm -rf .venv
  for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c "$usable" 2>/dev/null; then
      "$python" -m venv .venv
      return
    fi
  done
  { python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --python 3.12 .venv; } ||
    die "There is no Python 3.11 or newer on $HOSTNAME, and uv could not fetch one; install one and run setup.sh again."
}

train() {
  local seconds=$1 log tenths
  shift
  [[ -x .venv/bin/python ]] || die "opd_jax is not installed on $HOSTNAME; run setup.sh first."
  flock --nonblock 9 || busy
  log=$(date -u +%Y%m%d-%H%M%S).log
  rm -f logs/pid logs/trainer logs/restarts logs/stop logs/status
  ln -sfn "$log" logs/latest.log
  # A shell without a terminal hands an ignored SIGINT down, and Python would never hear --stop.
  PYTHONUNBUFFERED=1 env --default-signal=INT setsid --fork bash tpu_scripts/worker.sh run "$@" >>"logs/$log" 2>&1 </dev/null
  for ((tenths = 10 * seconds; tenths > 0; tenths--)); do
    sleep 0.1
    if [[ -f logs/status ]]; then
      tail -n 20 logs/latest.log
      ended
      exit "$(<logs/status)"
    fi
  done
  printf 'Running on %s%s; the log is ~/opd_jax/logs/%s.\n' "$HOSTNAME" "$(restarted)" "$log"
}

# The leader of the run's own session: outlives the ssh connection and the trainer, and starts that again.
run() {
  local restarts=$1 pause=$2 status count=0 left
  shift 2
  printf '%s\n' $$ >logs/pid
  trap : INT TERM
  while :; do
    status=0
    # shellcheck disable=SC2016  # the inner shell, which becomes the trainer, expands $$ and $@
    bash -c 'printf "%s\n" $$ >logs/trainer; exec .venv/bin/python -m opd_jax.train "$@"' trainer "$@" || status=$?
    rm -f logs/trainer
    if [[ -f logs/stop ]] || ((count == restarts)) || ! resumable "$status"; then break; fi
    count=$((count + 1))
    printf '%s\n' "$count" >logs/restarts
    printf 'worker.sh: status %s (%s); start %s of %s of the same command in %s seconds.\n' \
      "$status" "$(meaning "$status")" "$count" "$restarts" "$pause"
    for ((left = pause; left > 0; left--)); do
      if [[ -f logs/stop ]]; then break 2; fi
      sleep 1 || true
    done
  done
  printf '%s\n' "$status" >logs/status.new
  mv logs/status.new logs/status
}

# Whether the same command resumes the run: the trainer left for that, or died of a signal that no user sent.
resumable() { (($1 == 75 || ($1 > 128 && $1 <= 192 && $1 != 130))); }

meaning() {
  case $1 in
    0) printf finished ;;
    2) printf 'wrong input' ;;
    3) printf 'finished, nothing learned' ;;
    75) printf 'left to be resumed' ;;
    130) printf interrupted ;;
    *) if (($1 > 128 && $1 <= 192)); then printf 'died of signal %s' $(($1 - 128)); else printf failed; fi ;;
  esac
}

stop() {
  local pid told='' seconds=60
  if [[ $1 == TERM ]]; then seconds=900; fi # the step, and then the checkpoint
  if flock --nonblock 9; then
    printf 'No run is in progress on %s.\n' "$HOSTNAME"
    return
  fi
  [[ -f logs/pid && ! -f logs/status ]] || die "No run is in progress on $HOSTNAME, but setup.sh may be."
  touch logs/stop # first: a trainer that ends now is not started again
  while :; do
    pid=$(cat logs/trainer 2>/dev/null || true)
    # Again a second later for an interrupt: the trainer saves after the first, and leaves at once after the second.
    if [[ -n $pid && ($pid != "$told" || $1 == INT) ]]; then
      told=$pid
      # The trainer passes a SIGTERM on to a process of its own; a SIGINT it leaves to the terminal, which tells all.
      if [[ $1 == INT ]]; then pid=-$(<logs/pid); fi
      kill "-$1" -- "$pid" 2>/dev/null || true
    fi
    if flock --timeout 1 9; then break; fi
    ((seconds-- > 0)) || die "The run on $HOSTNAME did not end in time; kill -KILL -- -$(<logs/pid) there ends it."
  done
  ended
}

status() {
  local state last=''
  if [[ ! -e logs/latest.log ]]; then
    state='never started a run'
  else
    last=$(tail -n 1 logs/latest.log)
    if [[ -f logs/status ]]; then
      state="ended with status $(<logs/status) ($(meaning "$(<logs/status)"))"
    elif flock --nonblock 9; then
      state='was killed'
    else
      state=running
    fi
  fi
  last=${last##*$'\r'} # of a progress bar what is shown
  printf '%s %s: %s%s%s\n' "$1" "$HOSTNAME" "$state" "$(restarted)" "${last:+: ${last:0:200}}"
}

restarted() {
  if [[ -f logs/restarts ]]; then printf ', started again %s time(s)' "$(<logs/restarts)"; fi
}

busy() { die "A run, or setup.sh, is in progress on $HOSTNAME; logs.sh shows a run and launch.sh --stop ends it."; }

log() {
  [[ -e logs/latest.log ]] || die "No run was started on $HOSTNAME yet."
  tail -n "$1" logs/latest.log
}

follow() {
  [[ -e logs/latest.log && -e logs/pid ]] || die "No run was started on $HOSTNAME yet."
  tail -n "$1" --pid="$(<logs/pid)" --sleep-interval=0.5 -f logs/latest.log
  ended
}

ended() {
  if [[ -f logs/status ]]; then
    printf 'The run on %s ended with status %s (%s)%s.\n' "$HOSTNAME" "$(<logs/status)" "$(meaning "$(<logs/status)")" "$(restarted)" >&2
  else
    printf 'The run on %s was killed.\n' "$HOSTNAME" >&2
  fi
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

main "$@"
exit # before bash reads on: install has replaced this file
