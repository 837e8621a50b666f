#!/bin/bash
# with.sh HELM COMMAND...: runs a program of the machine where the API server is reached, with the cluster's KUBECONFIG.
. "$(dirname "$0")/cluster.sh"
[ -z "$1" ] || PATH=${1%/*}:$PATH
shift
KUBECONFIG=$KUBE_STATE/admin.conf exec ip netns exec "$cp_ns" "$@"
