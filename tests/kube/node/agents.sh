#!/bin/bash
# agents.sh NODE: within a node, starts its kubelet and its kube-proxy again as they ran. Pods are not touched.
. "$(dirname "$0")/cluster.sh"
for part in kubelet kube-proxy; do
  pid=$(pgrep -o -f "^$bin/$part ")
  mapfile -d '' -t words <"/proc/$pid/cmdline"
  kill -KILL "$pid"
  wait_until 10 "the end of $part" is_gone "$pid"
  (
    [ $part = kube-proxy ] || echo $BASHPID >"$v2/kubelet/cgroup.procs"
    exec setsid "${words[@]}" >>"$KUBE_STATE/log/$1-${part#kube-}.log" 2>&1 </dev/null
  ) &
done
