#!/bin/bash
# etcd.sh save|restore: keeps a copy of what etcd holds, as a power cut at this moment would leave it, or puts it back.
# After that everything of the control plane and of the nodes that remembers versions from after the copy is started
# again, as etcd's manual asks.
. "$(dirname "$0")/cluster.sh"
copy=$KUBE_STATE/etcd-copy
control="kube-scheduler kube-controller-manager kube-apiserver etcd"
case $1 in
  save)
    pid=$(pid_of etcd)
    kill -STOP "$pid"
    rm -rf "$copy"
    cp -a "$KUBE_STATE/etcd" "$copy"
    kill -CONT "$pid"
    ;;
  restore)
    for part in $control; do stop "$part"; done
    rm -rf "$KUBE_STATE/etcd"
    cp -a "$copy" "$KUBE_STATE/etcd"
    start_again etcd
    start_again kube-apiserver
    wait_until 60 "the API server" kubectl get --raw /readyz
    start_again kube-controller-manager
    start_again kube-scheduler
    for n in $KUBE_NODES; do in_node "$n" bash "$here/agents.sh" "$n"; done
    ;;
esac
