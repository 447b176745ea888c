#!/usr/bin/env bash
# Prints a JobSet that runs `python -m opd_jax.train` on TPU slices of a GKE cluster, one pod a host, or applies it.
#
#   tpu_scripts/gke.sh --name=opd --type=v6e --topology=4x4 --slices=2 --image=REGION-docker.pkg.dev/PROJECT/opd/jax:1 \
#       --apply -- --config=configs/popd.py:paper --workdir=gs://bucket/popd
#
# What follows -- are the trainer's arguments, passed on exactly; paths are those of the image, in which `python` has to
# know opd_jax. The pods' service account needs access to the bucket. The manifest goes to stdout, so it can be looked at,
# changed, or put into a namespace: tpu_scripts/gke.sh ... | kubectl -n TEAM apply -f -
#
# A pod that the trainer left to be resumed (status 75: the pod was told to go, or another was lost) is made again, as
# often as it takes. One that dies otherwise makes the whole JobSet start again, --restarts times at most. A wrong input
# (2) or an interrupt (130) ends the JobSet at once. Delete the JobSet (kubectl delete jobset NAME) before applying it
# with other arguments.
#
#   --name=NAME         of the JobSet (required)
#   --type=TYPE         v4, v5e, v5p, v6e or tpu7x (required)
#   --topology=AxB      of a slice, or AxBxC; as the node pool was made (required)
#   --chips=N           of a host; default: 4, or the whole slice if that is smaller
#   --slices=N          default: 1
#   --image=IMAGE       the container (required)
#   --restarts=N        default: 3
#   --grace=SECONDS     for saving, between the notice that a pod has to go and its end; default: 600
#   --apply             give it to kubectl, or run xpk, instead of printing
#   --xpk               the same run as an `xpk workload create`, which counts a resumed run as a restart
#   --cluster=NAME      for xpk (required there)
#   --zone=ZONE         for xpk; default: that of gcloud's configuration
#   --project=ID        for xpk; default: that of gcloud's configuration

set -euo pipefail
# shellcheck source=tpu_scripts/shell.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

type='' topology='' chips='' slices=1 image='' restarts=3 grace=600 apply=0 xpk=0 cluster='' zone='' project=''

own_flag() {
  case $1 in
    --type=*) type=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --apply) apply=1 ;;
    --xpk) xpk=1 ;;
    --cluster=*) cluster=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    *) return 1 ;;
  esac
}

advise() {
  case $1 in
    *'no matches for kind'*) die 'The cluster knows no JobSet: install it (https://jobset.sigs.k8s.io/docs/installation/).' ;;
    *immutable*) die "The JobSet $name is there with other arguments; delete it first: kubectl delete jobset $name." ;;
  esac
}

# A string as JSON, which YAML reads too, for a field in which Kubernetes expands $(NAME) and takes $$ for $.
json() {
  local LC_ALL=C i char text=''
  for ((i = 0; i < ${#1}; i++)); do
    char=${1:i:1}
    case ${1:i:3} in
      '$'*) text+='$$' ;;
      '"'* | "\\"*) text+="\\$char" ;;
      $'\xc2\x85'*) text+='\u0085' i=$((i + 1)) ;; # line ends to YAML, as are the next two
      $'\xe2\x80\xa8') text+='\u2028' i=$((i + 2)) ;;
      $'\xe2\x80\xa9') text+='\u2029' i=$((i + 2)) ;;
      [[:cntrl:]]*)
        printf -v char '\\u%04x' "'$char"
        text+=$char
        ;;
      *) text+=$char ;;
    esac
  done
  printf '"%s"' "$text"
}

json_list() {
  local word line=''
  for word in "$@"; do line+="${line:+, }$(json "$word")"; done
  printf '[%s]' "$line"
}

manifest() {
  local annotations=''
  if ((hosts > 1)); then
    annotations='
  annotations: # each slice on a node pool of its own
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool'
  fi
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: "$name"$annotations
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob # a wrong input, nothing learned, an interrupt
            onExitCodes:
              containerName: trainer
              operator: In
              values: [2, 3, 130]
          - action: Ignore # left to be resumed
            onExitCodes:
              containerName: trainer
              operator: In
              values: [75]
          - action: Ignore
            onPodConditions:
            - type: DisruptionTarget
              status: "True"
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $grace
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology
            containers:
            - name: trainer
              image: "$image"
              command: $(json_list "${trainer[@]}")
              args: $(json_list "${rest[@]}")
              resources:
                limits:
                  google.com/tpu: $chips
END
}

# xpk pastes the command into a line of bash in a manifest: one line, and $ as in the manifest above.
xpk_command() {
  local line dollar='$' two="\$\$"
  printf -v line '%q ' exec "${trainer[@]}" "${rest[@]}"
  line=${line//$dollar/$two}
  printf '%s' "${line% }"
}

read_flags "$@"
[[ -n $name && -n $type && -n $topology && -n $image ]] ||
  die "Give gke.sh --name=NAME --type=TYPE --topology=AxB --image=IMAGE; --help explains them."
if ! is_name "$name" || ((${#name} > 40)); then
  die "--name=$name is not a JobSet name: lower-case letters, digits and dashes, a letter first, at most 40."
fi
[[ $image =~ ^[A-Za-z0-9._/:@-]+$ ]] || die "--image=$image is not the name of an image."
case $type in
  v4) accelerator=tpu-v4-podslice xpk_type=v4 ;;
  v5e) accelerator=tpu-v5-lite-podslice xpk_type=v5litepod ;;
  v5p) accelerator=tpu-v5p-slice xpk_type=v5p ;;
  v6e) accelerator=tpu-v6e-slice xpk_type=v6e ;;
  tpu7x) accelerator=tpu7x xpk_type=tpu7x ;;
  *) die "--type=$type is not one of v4, v5e, v5p, v6e and tpu7x." ;;
esac
[[ $topology =~ ^[1-9][0-9]{0,2}x[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})?$ ]] || die "--topology=$topology is not of the form 4x4 or 2x2x2."
total=$((${topology//x/*}))
if [[ -z $chips ]]; then chips=$((total < 4 ? total : 4)); fi
need_number --chips "$chips" 1
need_number --slices "$slices" 1
need_number --restarts "$restarts" 0
need_number --grace "$grace" 0
((total % chips == 0)) || die "A slice of $topology has $total chips, which hosts of $chips (--chips) do not make."
hosts=$((total / chips))
need_arguments gs://BUCKET/NAME
find_workdir
if [[ -n $workdir && $workdir != *://* ]]; then die "--workdir=$workdir goes with the pod: give --workdir=gs://BUCKET/PATH."; fi
trainer=(python -u -m opd_jax.train)

if ((xpk)); then
  [[ -n $cluster ]] || die "--xpk needs --cluster=NAME."
  command=(xpk workload create "--cluster=$cluster")
  if [[ -n $zone ]]; then command+=("--zone=$zone"); fi
  if [[ -n $project ]]; then command+=("--project=$project"); fi
  command+=("--workload=$name" "--tpu-type=$xpk_type-$topology" "--num-slices=$slices" "--docker-image=$image"
    "--max-restarts=$restarts" --restart-on-exit-codes=75 "--termination-grace-period-seconds=$grace"
    "--command=$(xpk_command)")
  if ((!apply)); then dry_run=1; fi
  need_tool xpk 'install it with pip install xpk'
  run "${command[@]}"
elif ((!apply)); then
  manifest
elif ((dry_run)); then
  printf "kubectl apply -f - <<'END'\n%s\nEND\n" "$(manifest)"
else
  need_tool kubectl 'install it with gcloud components install kubectl'
  manifest | attempt kubectl apply -f -
fi
