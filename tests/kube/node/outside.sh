#!/bin/bash
# outside.sh COMMAND...: runs a command in the network that connects the nodes, as somebody outside the cluster.
. "$(dirname "$0")/cluster.sh"
ip netns exec "$cp_ns" "$@"
