#!/bin/bash
# policies.sh on ENGINE|off: on every node, starts a network policy engine (kube-router), or stops it and takes its rules
# away. Packets that cross a node's bridge are seen by its rules meanwhile, as on a node whose pods are routed.
. "$(dirname "$0")/cluster.sh"
case $1 in
  on) for n in $KUBE_NODES; do in_node "$n" bash "$here/engine.sh" on "$n" "$2"; done ;;
  off) for n in $KUBE_NODES; do in_node "$n" bash "$here/engine.sh" off "$n"; done ;;
esac
