# Shared by the scripts for TPU VMs: their flags, what gcloud says of a TPU of one slice or of several, and ssh to it.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is read by the scripts
# shellcheck source=tpu_scripts/shell.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

common_flags="Flags of every script for TPU VMs:
  --name=NAME      the name of the TPU (required)
  --zone=ZONE      its zone (required)
  --project=ID     its project; default: the project of gcloud's configuration
  --type=TYPE      v5litepod-8, v6e-8, v5p-8, ...; create.sh makes it, the others refuse a TPU of another type
  --slices=N       slices that one run trains on together; create.sh makes them, the others refuse another number
  --version=V      runtime version; create.sh chooses by the type, the others refuse a TPU with another version
$common_flags"

zone='' project='' type='' version='' slices=''
where=()           # --zone and --project, as gcloud takes them
nodes=() states=() # the slices by gcloud's names, and the state of each
request_state=''   # of the queued request, where there is one and no single TPU
assumed=1          # whether --dry-run takes it that the TPU is there
gcloud_tries=1     # how often a question is asked to which gcloud has no answer
interval=15        # seconds between two questions

shared_flag() {
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    *) return 1 ;;
  esac
}

parse() {
  read_flags "$@"
  [[ -n $name && -n $zone ]] || die "Give the TPU's name and zone: ${0##*/} --name=NAME --zone=ZONE."
  is_name "$name" || die "--name=$name is not a TPU name: lower-case letters, digits and dashes, a letter first, at most 63."
  if [[ -n $type ]]; then
    [[ $type != v5e-* ]] || die "--type=$type is written v5litepod-${type#*-}."
    [[ $type =~ ^v[0-9]+[a-z]*-[1-9][0-9]*$ ]] || die "--type=$type is not a TPU type such as v5litepod-8 or v6e-8."
  fi
  if [[ -n $slices ]]; then need_number --slices "$slices" 1; fi
  where=("--zone=$zone")
  if [[ -n $project ]]; then where+=("--project=$project"); fi
  here="--name=$name ${where[*]}"
  remedy="delete it first: delete.sh $here."
  need_tool gcloud 'install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install)'
}

# ask GROUP VERB ARG...: sets `answer` to what gcloud says; empty where the thing is not there, and under --dry-run. Any
# other failure, as often as gcloud_tries says, ends the script with gcloud's message and status.
ask() {
  local command=(gcloud compute tpus "$@") errors message status try
  answer=''
  if ((dry_run)); then
    quote "${command[@]}"
    return
  fi
  errors=$(mktemp)
  for ((try = 1; ; try++)); do
    status=0
    answer=$("${command[@]}" 2>"$errors") || status=$?
    message=$(<"$errors")
    if ((!status)); then break; fi
    answer=''
    if [[ $message == *NOT_FOUND* ]]; then break; fi
    note "$message"
    if ((try >= gcloud_tries)); then
      rm -f "$errors"
      exit "$status"
    fi
    sleep "$interval"
  done
  rm -f "$errors"
}

# Sets found to 1 and tpu_* to what gcloud says of the TPU of that name, or found to 0.
look_at_tpu() {
  ask tpu-vm describe "$name" "${where[@]}" \
    '--format=value[separator="|"](state,acceleratorType,runtimeVersion,networkEndpoints.len(),queuedResource.basename(),labels.opd-jax)'
  found=$((${#answer} > 0))
  IFS='|' read -r tpu_state tpu_type tpu_version tpu_workers tpu_request tpu_label <<<"$answer"
}

# The same of the queued request: found, request_*, and the type and version that it asks for. A request for several
# slices has one specification with a count, and later perhaps one for each slice.
look_at_request() {
  ask queued-resources describe "$name" "${where[@]}" \
    '--format=value[separator="|"](state.state,tpu.nodeSpec.len(),tpu.nodeSpec[0].multisliceParams.nodeCount,tpu.nodeSpec[].node.labels.opd-jax.list(),tpu.nodeSpec[0].node.acceleratorType,tpu.nodeSpec[0].node.runtimeVersion,state.failedData.error.message)'
  found=$((${#answer} > 0))
  local specifications count
  IFS='|' read -r request_state specifications count request_labels tpu_type tpu_version request_error <<<"$answer"
  request_slices=${count:-$specifications}
}

# look_at_slices COUNT: fills nodes and states by asking once for all of them.
look_at_slices() {
  local i node state workers
  for ((i = 0; i < $1; i++)); do
    nodes[i]=$name-$i
    states[i]='not there'
  done
  ask tpu-vm list "${where[@]}" "--filter=labels.opd-jax=$name" \
    '--format=value[separator="|"](name.basename(),state,networkEndpoints.len())'
  tpu_workers=0
  while IFS='|' read -r node state workers; do
    for ((i = 0; i < $1; i++)); do
      if [[ $node != "${nodes[i]}" ]]; then continue; fi
      states[i]=$state
      if ((workers > tpu_workers)); then tpu_workers=$workers; fi
    done
  done <<<"$answer"
}

# Fills nodes and states, ready (how many are) and lost (which never will be again). Of a single TPU that is there the
# request is not asked for; where nothing is there, nodes is empty, and so is request_state unless there is a request.
look() {
  nodes=() states=() request_state='' request_labels='' request_error='' tpu_type='' tpu_version='' tpu_label='' tpu_request=''
  if ((${slices:-1} == 1)); then
    look_at_tpu
    if ((found || (dry_run && assumed))); then nodes=("$name") states=("$tpu_state"); fi
  fi
  if ((!${#nodes[@]})); then
    look_at_request
    if ((dry_run && assumed)); then request_slices=$slices; fi
    if ((${request_slices:-0} > 1)); then look_at_slices "$request_slices"; fi
  fi
  local i
  ready=0 lost='' coming=''
  for ((i = 0; i < ${#nodes[@]}; i++)); do
    case ${states[i]} in
      READY) ready=$((ready + 1)) ;;
      PREEMPTED | TERMINATED | STOPPED | HIDDEN | UNKNOWN) lost+="${lost:+, }${nodes[i]} ${states[i]}" ;;
      *) coming+="${coming:+, }${nodes[i]} ${states[i]}" ;;
    esac
  done
}

there() { ((${#nodes[@]})) || [[ -n $request_state ]]; }

all_ready() { ((${#nodes[@]} && ready == ${#nodes[@]})); }

# Whether every part of it has the label that create.sh sets.
only_label() {
  local label labels=${request_labels:-$tpu_label}
  [[ -n $labels ]] || return 1
  for label in ${labels//,/ }; do
    [[ $label == "$name" ]] || return 1
  done
}

# What is there, as the beginning of a sentence.
situation() {
  if [[ -z $request_state ]]; then
    printf 'The TPU %s is %s' "$name" "${states[0]}"
  else
    printf 'The queued request %s is %s' "$name" "$request_state"
    if ((${#nodes[@]})); then printf ' with %s of %s slices READY' "$ready" "${#nodes[@]}"; fi
    local others=$lost${lost:+${coming:+, }}$coming
    if [[ -n $others && ($ready != 0 || -n $lost) ]]; then printf ' (%s)' "$others"; fi
  fi
}

# Ends the script where the TPU is not what --type, --version and --slices say; its argument ends the sentence.
expect() {
  local kind="The TPU $name" count=${#nodes[@]}
  if [[ -n $request_state ]]; then kind="The queued request $name" count=$request_slices; fi
  [[ -z $type || $type == "$tpu_type" ]] || die "$kind is a $tpu_type, not a $type$1"
  [[ -z $version || $version == "$tpu_version" ]] || die "$kind runs $tpu_version, not $version$1"
  [[ -z $slices ]] || ((slices == count)) || die "$kind has $count slice(s), not $slices$1"
}

# Ends the script where the TPU, a slice of it, or the request is gone for good.
refuse_lost() {
  case $request_state in
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      die "$(situation)${request_error:+ ($request_error)}, and brings no TPU any more; $remedy"
      ;;
  esac
  if [[ -z $lost ]]; then return; fi
  if ((${#nodes[@]} > 1)); then die "$(situation), and what was taken away does not come back; $remedy"; fi
  case ${states[0]} in
    PREEMPTED | TERMINATED) die "The TPU $name was taken away (${states[0]}) and cannot be restarted; $remedy" ;;
    *) die "$(situation), not READY, and stays so; gcloud compute tpus tpu-vm start $name ${where[*]} may help, or $remedy" ;;
  esac
}

need_there() {
  there || die "There is no TPU $name in $zone; create.sh makes one."
}

# Ends the script with a sentence unless every slice is there, ready, and what the flags say.
need_ready() {
  look
  if ((dry_run)); then return; fi
  need_there
  expect .
  refuse_lost
  all_ready || die "$(situation), not READY; wait.sh $here waits for it."
}

# on_workers NODE WHICH COMMAND...: the command on worker WHICH, or all, of a slice, in the home directory there.
on_workers() {
  local node=$1 which=$2 status=0
  shift 2
  run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" "--worker=$which" "--command=$(quote "$@")" || status=$?
  if ((status == 127)); then note "error: opd_jax is not installed on the TPU $node; run setup.sh first."; fi
  return "$status"
}

# on_slices FUNCTION ARG...: FUNCTION NODE ARG... for every slice, all at once. Returns the first status that is not 0.
on_slices() {
  local node pid pids=() status result=0 function=$1
  shift
  if ((dry_run || ${#nodes[@]} == 1)); then
    for node in "${nodes[@]}"; do "$function" "$node" "$@" || return; done
    return
  fi
  set -m # a process group each, which Ctrl-C would not reach
  for node in "${nodes[@]}"; do
    "$function" "$node" "$@" </dev/null &
    pids+=($!)
  done
  trap 'kill -- "${pids[@]/#/-}" 2>/dev/null; exit 130' INT TERM
  for pid in "${pids[@]}"; do
    status=0
    wait "$pid" || status=$?
    if ((!result)); then result=$status; fi
  done
  trap - INT TERM
  set +m
  return "$result"
}
