# Read by every script here: names, addresses, and what several of them do. `cargo xtask kube` sets where things are:
#   KUBE_PARTS   what was built: bin/, cni/, images/
#   KUBE_STATE   what a running cluster keeps: keys, etcd, the nodes' disks, logs, pids
#   KUBE_NODES   the nodes, e.g. "n1 n2"
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${KUBE_PARTS:?run this by cargo xtask kube}" "${KUBE_STATE:?}" "${KUBE_NODES:=n1 n2}"
bin=$KUBE_PARTS/bin pki=$KUBE_STATE/pki
export PATH=$bin:$PATH
# What kubectl and helm know of an API server belongs to this cluster: another one had the same address and other kinds.
export KUBECACHEDIR=$KUBE_STATE/discovery

cp_ns=wk-cp
cp_ip=10.99.0.1 service_cidr=10.96.0.0/16 pod_cidr=10.244.0.0/16 dns_ip=10.96.0.10
node_ns() { echo "wk-$1"; }
node_ip() { echo "10.99.0.$((10 + ${1#n}))"; }
node_cidr() { echo "10.244.${1#n}.0/24"; }

# The version-2 hierarchy of the machine: the only one, or the one beside version 1.
v2=/sys/fs/cgroup
[ -d /sys/fs/cgroup/unified ] && v2=/sys/fs/cgroup/unified
# Whether it is the only one.
unified=true
! grep -qv '^0::' /proc/self/cgroup || unified=false

# Lets the cgroups below a directory have every controller that it has.
give_controllers() {
  local controller
  for controller in $(cat "$1/cgroup.controllers"); do
    echo "+$controller" >"$1/cgroup.subtree_control" || say "$1 cannot give $controller on"
  done
}

say() { echo "kube: $*" >&2; }

# wait_until SECONDS WHAT COMMAND...: asks ten times a second.
wait_until() {
  local tries=$(($1 * 10)) what=$2
  shift 2
  for ((i = 0; i < tries; i++)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.1
  done
  say "waited in vain for $what; logs are in $KUBE_STATE/log"
  return 1
}

# Starts something that outlives this script, in the control plane's network, and notes its pid and its start time: a
# pid alone may be somebody else's by the time it is read.
start() {
  local name=$1
  shift
  setsid ip netns exec "$cp_ns" "$@" >"$KUBE_STATE/log/$name.log" 2>&1 </dev/null &
  note "$name" $!
}
born() { cut -d' ' -f22 "/proc/$1/stat" 2>/dev/null || true; }
note() { echo "$2 $(born "$2")" >"$KUBE_STATE/pids/$1"; }

# The pid of what was started under a name, if it is that process still.
pid_of() {
  local pid since
  read -r pid since 2>/dev/null <"$KUBE_STATE/pids/$1" || return 1
  [ -n "$since" ] && [ "$(born "$pid")" = "$since" ] && echo "$pid"
}

# Kills a part of the control plane, and keeps how it was started for `start_again`.
stop() {
  local pid
  pid=$(pid_of "$1") || { say "$1 is not running"; return 1; }
  cp "/proc/$pid/cmdline" "$KUBE_STATE/$1.args"
  kill -KILL "$pid"
  wait_until 10 "the end of $1" is_gone "$pid"
}
is_gone() { ! [ -e "/proc/$1/exe" ]; }
start_again() {
  local words
  mapfile -d '' -t words <"$KUBE_STATE/$1.args"
  start "$1" "${words[@]}"
}

kubectl() { KUBECONFIG=$KUBE_STATE/admin.conf ip netns exec "$cp_ns" "$bin/kubectl" "$@"; }

# Runs a command inside a node's namespaces.
in_node() {
  local pid
  pid=$(pid_of "node-$1") || { say "node $1 is not running"; return 1; }
  pid=$(pgrep -P "$pid" | head -1)
  shift
  nsenter -t "$pid" -m -u -n -p -C "$@"
}
