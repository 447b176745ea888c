# Shared by the scripts of this directory: the flags that all of them know, and how gcloud is called.
#
# A script sources this file, may replace `own_flag` for flags of its own, and calls `parse "$@"`. Its opening comment is
# its --help. Kept to what bash 3.2 knows, which is what a Mac has.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is read by the scripts

common_flags='Flags of every script:
  --name=NAME      the name of the TPU (required)
  --zone=ZONE      its zone (required)
  --project=ID     its project; default: the project of gcloud'\''s configuration
  --type=TYPE      v5litepod-8, v6e-8, v5p-8, ...; create.sh makes it, the others refuse a TPU of another type
  --version=V      runtime version; create.sh chooses by the type, the others refuse a TPU with another version
  --dry-run        print the commands, quoted for pasting, and run nothing
  --help           this text'

name='' zone='' project='' type='' version='' dry_run=0
rest=()  # what follows --
where=() # --zone and --project, as gcloud takes them

own_flag() { return 1; }

parse() {
  local script=${0##*/}
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit
        ;;
      --dry-run) dry_run=1 ;;
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      --name | --zone | --project | --type | --version) die "Write $1=VALUE, with an equals sign." ;;
      --)
        shift
        rest=("$@")
        break
        ;;
      *) own_flag "$1" || die "$script does not know $1; $script --help lists its flags." ;;
    esac
    shift
  done
  [[ -n $name && -n $zone ]] || die "Give the TPU's name and zone: $script --name=NAME --zone=ZONE."
  is_name "$name" || die "--name=$name is not a TPU name: lower-case letters, digits and dashes, a letter first, at most 63."
  if [[ -n $type ]]; then
    [[ $type != v5e-* ]] || die "--type=$type is written v5litepod-${type#*-}."
    [[ $type =~ ^v[0-9]+[a-z]*-[1-9][0-9]*$ ]] || die "--type=$type is not a TPU type such as v5litepod-8 or v6e-8."
  fi
  where=("--zone=$zone")
  if [[ -n $project ]]; then where+=("--project=$project"); fi
  if ((!dry_run)) && ! command -v gcloud >/dev/null; then
    die "gcloud is not on PATH: install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install), or add --dry-run to see the commands."
  fi
}

usage() {
  sed -n -e 1d -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"
  printf '\n%s\n' "$common_flags"
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

note() { printf '%s\n' "$*" >&2; }

is_name() {
  local LC_ALL=C # so that a-z are the 26 letters
  [[ $1 =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]]
}

# The arguments as one line that any POSIX shell reads back as the same arguments.
quote() {
  local LC_ALL=C single="'" escaped="'\\''" line='' word
  for word in "$@"; do
    case $word in
      '' | =* | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//$single/$escaped}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command after showing it, or only prints it under --dry-run. Its exit status ends the script if it is not 0.
run() {
  if ((dry_run)); then
    quote "$@"
  else
    note "+ $(quote "$@")"
    "$@"
  fi
}

# look KIND FIELDS: sets `answer` to the fields of the tpu-vm or queued-resources of that name, joined by |; empty where
# there is none, and under --dry-run. Any other failure ends the script with gcloud's message and status.
look() {
  local command=(gcloud compute tpus "$1" describe "$name" "${where[@]}" "--format=value[separator=\"|\"]($2)")
  local errors message status=0
  answer=''
  if ((dry_run)); then
    quote "${command[@]}"
    return
  fi
  errors=$(mktemp)
  answer=$("${command[@]}" 2>"$errors") || status=$?
  message=$(<"$errors")
  rm -f "$errors"
  if ((status)); then
    answer=''
    if [[ $message != *NOT_FOUND* ]]; then
      note "$message"
      exit "$status"
    fi
  fi
}

# Sets found to 1 and tpu_* to what gcloud says of the TPU, or found to 0.
look_at_tpu() {
  look tpu-vm 'state,acceleratorType,runtimeVersion,networkEndpoints.len(),queuedResource.basename(),labels.opd-jax'
  found=$((${#answer} > 0))
  IFS='|' read -r tpu_state tpu_type tpu_version tpu_workers tpu_request tpu_label <<<"$answer"
}

# Sets found to 1 and request_* to what gcloud says of the queued request, or found to 0.
look_at_request() {
  look queued-resources 'state.state,tpu.nodeSpec.len(),tpu.nodeSpec[0].node.labels.opd-jax'
  found=$((${#answer} > 0))
  IFS='|' read -r request_state request_nodes request_label <<<"$answer"
}

# Ends the script with a sentence unless the TPU is there, ready, and what --type and --version say.
need_ready() {
  look_at_tpu
  if ((dry_run)); then return; fi
  ((found)) || die "There is no TPU $name in $zone; create.sh makes one, and create.sh --queued says how far a queued one is."
  [[ $tpu_state == READY ]] || die "The TPU $name is $tpu_state, not READY."
  [[ -z $type || $type == "$tpu_type" ]] || die "The TPU $name is a $tpu_type, not a $type."
  [[ -z $version || $version == "$tpu_version" ]] || die "The TPU $name runs $tpu_version, not $version."
}

# on_workers WHICH COMMAND...: the command on worker WHICH, or all, in the home directory there.
on_workers() {
  local which=$1
  shift
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$which" "--command=$(quote "$@")" || {
    local status=$?
    if ((status == 127)); then note "error: opd_jax is not installed on the TPU $name; run setup.sh first."; fi
    exit "$status"
  }
}
