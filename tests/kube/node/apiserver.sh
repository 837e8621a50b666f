#!/bin/bash
# apiserver.sh off|on: stops the API server, or starts it as it ran. Whoever talks to it is refused meanwhile.
. "$(dirname "$0")/cluster.sh"
kept=$KUBE_STATE/kube-apiserver.args
case $1 in
  off)
    pid=$(pid_of kube-apiserver) || { say "the API server is not running"; exit 1; }
    cp "/proc/$pid/cmdline" "$kept"
    kill -KILL "$pid"
    ;;
  on)
    mapfile -d '' -t words <"$kept"
    start kube-apiserver "${words[@]}"
    wait_until 60 "the API server" kubectl get --raw /readyz
    ;;
esac
