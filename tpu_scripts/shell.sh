# Shared by every script of this directory: how flags are read, and how commands are shown and run.
#
# A script sources this file or tpu.sh, replaces `own_flag` by one for flags of its own, and reads its arguments. Its
# opening comment is its --help. Kept to what bash 3.2 knows, which is what a Mac has.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is read by the scripts

common_flags='  --dry-run        print the commands, quoted for pasting, and run nothing
  --help           this text'

name='' dry_run=0
rest=() # what follows --

own_flag() { return 1; }    # sets what a flag of this script says, or returns 1
shared_flag() { return 1; } # the same for the flags that a group of scripts shares

read_flags() {
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit
        ;;
      --dry-run) dry_run=1 ;;
      --name=*) name=${1#*=} ;;
      --)
        shift
        rest=("$@")
        break
        ;;
      *)
        if ! own_flag "$1" && ! shared_flag "$1"; then
          if [[ $1 == --name ]] || own_flag "$1=" || shared_flag "$1="; then die "Write $1=VALUE, with an equals sign."; fi
          die "${0##*/} does not know $1; ${0##*/} --help lists its flags."
        fi
        ;;
    esac
    shift
  done
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

# need_number FLAG VALUE LEAST
need_number() {
  if [[ ! $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3)); then die "$1=$2 is not a whole number of $3 or more."; fi
}

need_tool() {
  ((dry_run)) || command -v "$1" >/dev/null || die "$1 is not on PATH: $2, or add --dry-run to see the commands."
}

need_arguments() {
  ((${#rest[@]})) || die "Give the trainer's arguments after --: -- --config=configs/popd.py --workdir=$1."
}

no_arguments() {
  ((!${#rest[@]})) || die "$1 takes nothing after --."
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

# What to do about an error that people often meet: ends the script with a sentence, or says nothing.
advise() { :; }

# The same as run, but asks `advise` about what a command that failed said on stderr.
attempt() {
  local errors message status=0
  if ((dry_run)); then
    quote "$@"
    return
  fi
  note "+ $(quote "$@")"
  errors=$(mktemp)
  { "$@" 2>&1 >&3 | tee "$errors" >&2; } 3>&1 || status=$?
  message=$(<"$errors")
  rm -f "$errors"
  if ((status)); then advise "$message"; fi
  return "$status"
}

# Sets workdir to what the trainer's arguments say; empty where they do not.
find_workdir() {
  local word previous=''
  workdir=''
  for word in "${rest[@]}"; do
    case $previous in --workdir | -workdir) workdir=$word ;; esac
    case $word in --workdir=* | -workdir=*) workdir=${word#*=} ;; esac
    previous=$word
  done
}
