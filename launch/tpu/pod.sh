#!/usr/bin/env bash
# A TPU pod slice: the same command on all its workers.
#
#   launch/tpu/pod.sh setup
#   launch/tpu/pod.sh run experiments.train --workdir=/runs/big --preset=big
#   launch/tpu/pod.sh stop
#
# TPU_NAME and TPU_ZONE name a slice that stands already. `setup` copies this
# tree to every worker and makes its .venv; `run` starts the program on all of
# them, keeps it alive through preemptions and crashes, and leaves with 0 or 2
# when it is over. The workdir is a folder that all workers see. MODULE is a
# program of several processes: experiments.train, .evaluate or .translate.
set -euo pipefail

name="${TPU_NAME:?the name of the slice}"
zone="${TPU_ZONE:?its zone}"
folder=transformer_jax

usage() {
  echo 'usage: pod.sh setup | run MODULE FLAGS... | stop' >&2
  exit 2
}

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="$1"
}

setup() {
  local archive
  archive="$(mktemp --suffix=.tar.gz)"
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$name:source.tar.gz" \
    --zone="$zone" --worker=all
  rm -f "$archive"
  on_all "mkdir -p $folder && tar -xzf source.tar.gz -C $folder && cd $folder \
    && python3 -m venv .venv && .venv/bin/pip install -q \
    --constraint constraints.txt --editable '.[tpu]'"
}

run() {
  local words code count=0
  [[ $# -gt 0 ]] || usage
  # A worker's environment does not say that there are others.
  printf -v words '%q ' "$1" --distributed.detect "${@:2}"
  while true; do
    code=0
    on_all "cd $folder && exec .venv/bin/python -m $words" || code=$?
    case "$code" in
      0 | 2) exit "$code" ;;
      75) echo 'preempted and saved: started again' ;;
      *)
        count=$((count + 1))
        [[ "$count" -le "${RETRIES:-3}" ]] || exit "$code"
        echo "crashed ($code): started again, $count of ${RETRIES:-3}"
        ;;
    esac
    sleep "${PAUSE:-20}"
  done
}

stop() {
  # SIGTERM: they save and leave with 75. Interrupt `run` first.
  # A pattern that does not match the shell whose command it stands in.
  on_all "pkill --signal TERM --full '[p]ython -m experiments' || true"
}

case "${1:-}" in
  setup | stop) "$1" ;;
  run) shift && run "$@" ;;
  *) usage ;;
esac
