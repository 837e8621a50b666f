#!/bin/bash
# node-down.sh NODE: cuts a node's power. Its disk stays.
. "$(dirname "$0")/cluster.sh"
ns=$(node_ns "$1")
! pid=$(pid_of "node-$1") || kill -KILL "$pid"
rm -f "$KUBE_STATE/pids/node-$1"
groups() { find /sys/fs/cgroup -depth -type d \( -path "*/$ns" -o -path "*/$ns/*" \) 2>/dev/null || true; }
for group in $(groups | grep "/$ns\$"); do
  [ ! -f "$group/cgroup.kill" ] || echo 1 >"$group/cgroup.kill"
done
for _ in $(seq 50); do
  for group in $(groups); do rmdir "$group" 2>/dev/null || true; done
  [ -n "$(groups)" ] || exit 0
  sleep 0.1
done
say "cgroups of node $1 are still there: $(groups | tr '\n' ' ')"
exit 1
