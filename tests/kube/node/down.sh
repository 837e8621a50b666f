#!/bin/bash
# Removes the cluster, whatever state it is in, with everything that it kept.
. "$(dirname "$0")/cluster.sh"
mkdir -p "$KUBE_STATE/pids"
failed=0
for file in "$KUBE_STATE"/pids/node-*; do
  [ ! -e "$file" ] || bash "$here/node-down.sh" "${file##*/node-}" || failed=1
done
# Nodes whose pid was never noted, or noted and lost.
for ns in $(ip netns list | awk '$1 ~ /^wk-n[0-9]+$/ {print $1}'); do bash "$here/node-down.sh" "${ns#wk-}" || failed=1; done
parts="kube-scheduler kube-controller-manager kube-apiserver etcd"
for part in $parts; do ! pid=$(pid_of $part) || kill -TERM "$pid"; done
ended() { for part in $parts; do ! pid_of "$part" >/dev/null || return 1; done; }
wait_until 3 "the control plane to end" ended 2>/dev/null || true
for part in $parts; do ! pid=$(pid_of $part) || kill -KILL "$pid"; done
for ns in $(ip netns list | awk '$1 ~ /^wk-(n[0-9]+|cp)$/ {print $1}'); do ip netns del "$ns"; done
rm -rf "$KUBE_STATE"
exit $failed
