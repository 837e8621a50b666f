#!/bin/bash
# node-init.sh NODE: runs as the first process of a node.
. "$(dirname "$0")/cluster.sh"
n=$1 disk=$KUBE_STATE/nodes/$1
hostname "$n"
mount -t proc proc /proc

umount -R /sys 2>/dev/null || umount -l /sys
mount -t sysfs sysfs /sys
if ! $unified; then
  mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
  while IFS=: read -r _ controllers _; do
    case $controllers in
      "") at=unified kind=(-t cgroup2) ;;
      name=systemd) at=systemd kind=(-t cgroup -o none,name=systemd) ;;
      *) at=$controllers kind=(-t cgroup -o "$controllers") ;;
    esac
    mkdir -p "/sys/fs/cgroup/$at"
    mount "${kind[@]}" cgroup "/sys/fs/cgroup/$at"
  done </proc/self/cgroup
else
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  give_controllers /sys/fs/cgroup
fi
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || true

# The node's disk in the places where its programs look for it; /run is empty after every start.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns
while read -r part at; do
  mkdir -p "$at"
  mount --bind "$disk/$part" "$at"
done <<END
kubelet /var/lib/kubelet
containerd /var/lib/containerd
cni-lib /var/lib/cni
var-lib-warren /var/lib/warren
etc-cni /etc/cni/net.d
opt-cni /opt/cni/bin
log/pods /var/log/pods
log/containers /var/log/containers
END

# kubelet sets these for the whole machine: it gets files of the node's own to write to.
while IFS== read -r name value; do
  file=$disk/sysctl/${name//\//_}
  echo "$value" >"$file"
  mount --bind "$file" "/proc/sys/$name"
done <<END
vm/overcommit_memory=1
vm/panic_on_oom=0
kernel/panic=10
kernel/panic_on_oops=1
kernel/keys/root_maxkeys=1000000
kernel/keys/root_maxbytes=25000000
END
mount --make-rshared /

cp -u "$KUBE_PARTS"/cni/* /opt/cni/bin/
printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' >"$disk/resolv.conf"
[ -n "$(ls /etc/cni/net.d)" ] || cat >/etc/cni/net.d/10-bridge.conflist <<END
{
  "cniVersion": "0.4.0",
  "name": "bridge",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "$(node_cidr "$n")"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
END

cat >"$disk/containerd.toml" <<END
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "warren.test/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "$bin/runc"
END
# The machine may withhold the right to raise a process's claim to memory (CAP_SYS_RESOURCE), hence oomScoreAdj and the gate.
cat >"$disk/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /
failSwapOn: false
failCgroupV1: false
oomScoreAdj: 0
clusterDNS: [$dns_ip]
clusterDomain: cluster.local
resolvConf: $disk/resolv.conf
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
podCIDR: $(node_cidr "$n")
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
maxPods: 250
featureGates: {KubeletInUserNamespace: true}
nodeStatusUpdateFrequency: 5s
syncFrequency: 5s
fileCheckFrequency: 5s
END
cat >"$disk/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
clientConnection: {kubeconfig: $KUBE_STATE/proxy.conf}
clusterCIDR: $pod_cidr
hostnameOverride: $n
mode: ${KUBE_PROXY_MODE:-iptables}
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {masqueradeAll: false, minSyncPeriod: 100ms, syncPeriod: 30s}
END

"$bin/containerd" -c "$disk/containerd.toml" >"$KUBE_STATE/log/$n-containerd.log" 2>&1 &
ctr=("$bin/ctr" -n k8s.io)
wait_until 30 "containerd" "${ctr[@]}" version
for image in "$KUBE_PARTS"/images/*.tar; do
  mark=$disk/containerd/imported-$(stat -c %Y-%s "$image")-${image##*/}
  [ -f "$mark" ] || { "${ctr[@]}" images import --snapshotter overlayfs "$image" && touch "$mark"; }
done
# A cgroup of kubelet's own, as on a node that systemd runs: its probes are told from other processes by it.
mkdir -p "$v2/kubelet"
(
  echo $BASHPID >"$v2/kubelet/cgroup.procs"
  exec "$bin/kubelet" --config="$disk/kubelet.yaml" --kubeconfig="$KUBE_STATE/kubelet-$n.conf" \
    --hostname-override="$n" --node-ip="$(node_ip "$n")" --root-dir=/var/lib/kubelet --cert-dir=/var/lib/kubelet/pki \
    --tls-cert-file="$pki/node-$n.crt" --tls-private-key-file="$pki/node-$n.key" --v=2
) >"$KUBE_STATE/log/$n-kubelet.log" 2>&1 &
"$bin/kube-proxy" --config="$disk/proxy.yaml" --v=2 >"$KUBE_STATE/log/$n-proxy.log" 2>&1 &

# Reaps what the container runtime leaves, until the node is switched off.
set +e
trap 'exit 0' TERM
while :; do
  wait -n 2>/dev/null
  sleep 1
done
