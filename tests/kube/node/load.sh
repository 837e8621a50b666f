#!/bin/bash
# load.sh IMAGE.tar: imports an image on every node.
. "$(dirname "$0")/cluster.sh"
for n in $KUBE_NODES; do
  in_node "$n" "$bin/ctr" -n k8s.io images import --snapshotter overlayfs "$1" | sed "s/^/$n: /"
done
