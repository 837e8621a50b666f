#!/bin/bash
# The whole cluster: control plane, nodes, DNS. Returns when all nodes are Ready and names are answered.
. "$(dirname "$0")/cluster.sh"
mkdir -p "$KUBE_STATE"/{log,pids}
[ ! -s "$KUBE_STATE/pids/kube-apiserver" ] || ! pid_of kube-apiserver >/dev/null || { say "a cluster runs already"; exit 0; }
bash "$here/pki.sh"

# The control plane's network is also the switch between the nodes.
ip netns add $cp_ns
ip -n $cp_ns link set lo up
ip -n $cp_ns link add wk-br0 type bridge
ip -n $cp_ns addr add $cp_ip/24 dev wk-br0
ip -n $cp_ns link set wk-br0 up
ip netns exec $cp_ns sysctl -qw net.ipv4.ip_forward=1

start etcd "$bin/etcd" --name warren --data-dir "$KUBE_STATE/etcd" --unsafe-no-fsync --log-level warn \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
  --initial-cluster warren=http://127.0.0.1:2380
start kube-apiserver "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --v=1 \
  --advertise-address=$cp_ip --bind-address=0.0.0.0 --secure-port=6443 \
  --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
  --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" \
  --kubelet-preferred-address-types=InternalIP \
  --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy-client \
  --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
  --requestheader-extra-headers-prefix=X-Remote-Extra- \
  --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" \
  --enable-aggregator-routing=true --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
  --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
  --service-cluster-ip-range=$service_cidr --allow-privileged=true
wait_until 60 "the API server" kubectl get --raw /readyz
say "the API server is ready"
local_manager=(--bind-address=127.0.0.1 --leader-elect=false --v=1)
config=$KUBE_STATE/controller-manager.conf
start kube-controller-manager "$bin/kube-controller-manager" "${local_manager[@]}" \
  --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
  --client-ca-file="$pki/ca.crt" --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/sa.key" \
  --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
  --use-service-account-credentials=true --allocate-node-cidrs=false --service-cluster-ip-range=$service_cidr
config=$KUBE_STATE/scheduler.conf
start kube-scheduler "$bin/kube-scheduler" "${local_manager[@]}" \
  --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config"

for n in $KUBE_NODES; do bash "$here/node-up.sh" "$n"; done
for n in $KUBE_NODES; do
  wait_until 90 "node $n to be Ready" kubectl wait --for=condition=Ready --timeout=1s "node/$n"
done
say "the nodes are Ready: $KUBE_NODES"
kubectl apply -f "$here/coredns.yaml" >/dev/null
kubectl -n kube-system rollout status deployment/coredns --timeout=90s >/dev/null
wait_until 10 "the default service account" kubectl get serviceaccount default
say "cluster DNS answers"
