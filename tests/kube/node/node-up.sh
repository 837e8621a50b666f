#!/bin/bash
# node-up.sh NODE: starts a node. It is a network, mount, process, host-name and cgroup namespace with a container
# runtime, a kubelet and a kube-proxy of its own; its disk is a directory that a power cut leaves as it is.
. "$(dirname "$0")/cluster.sh"
n=$1 ns=$(node_ns "$1") disk=$KUBE_STATE/nodes/$1 ip=$(node_ip "$1")
mkdir -p "$disk"/{kubelet,containerd,cni-lib,etc-cni,opt-cni,var-lib-warren,log/pods,log/containers,sysctl}

if ! ip netns list | grep -qw "$ns"; then
  ip netns add "$ns"
  ip -n $cp_ns link add "wk-$n" type veth peer name eth0 netns "$ns"
  ip -n $cp_ns link set "wk-$n" master wk-br0 up
  ip -n "$ns" link set lo up
  ip -n "$ns" addr add "$ip/24" dev eth0
  ip -n "$ns" link set eth0 up
  ip -n "$ns" route add default via $cp_ip
  ip netns exec "$ns" sysctl -qw net.ipv4.ip_forward=1
  for other in $KUBE_NODES; do
    [ "$other" = "$n" ] || ip -n "$ns" route add "$(node_cidr "$other")" via "$(node_ip "$other")"
  done
  ip -n $cp_ns route add "$(node_cidr "$n")" via "$ip"
fi

# A cgroup of the node's own in every hierarchy, below ours; where version 2 is all there is, below the root, because no
# controller can be given on by a cgroup that has processes, as ours does.
enter_cgroups() {
  local controllers path root group
  if $unified; then
    group=$v2/$ns
    mkdir -p "$group/init"
    give_controllers "$v2"
    echo $BASHPID >"$group/cgroup.procs"
    return
  fi
  while IFS=: read -r _ controllers path; do
    case $controllers in
      "") root=$v2 ;;
      name=systemd) root=/sys/fs/cgroup/systemd ;;
      *) root=/sys/fs/cgroup/$controllers ;;
    esac
    [ -d "$root" ] || continue
    group=$root${path%/}/$ns
    mkdir -p "$group"
    if [ "$controllers" = cpuset ]; then
      cat "${group%/*}/cpuset.cpus" >"$group/cpuset.cpus"
      cat "${group%/*}/cpuset.mems" >"$group/cpuset.mems"
    fi
    echo $BASHPID >"$group/cgroup.procs"
  # Read whole before it changes under us.
  done < <(cat /proc/self/cgroup)
}
# The node's cgroup is the root of what it sees, and empty, so that the node in turn can give controllers on.
begin='exec unshare -m -u -p --fork --kill-child --propagation private bash "$@"'
! $unified || begin="echo \$\$ >$v2/$ns/init/cgroup.procs; $begin"
(
  enter_cgroups
  exec setsid nsenter --net="/run/netns/$ns" unshare -C bash -c "$begin" begin "$here/node-init.sh" "$n" \
    >"$KUBE_STATE/log/$n-init.log" 2>&1 </dev/null
) &
note "node-$n" $!
