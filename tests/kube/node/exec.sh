#!/bin/bash
# exec.sh NODE COMMAND...: runs a command as a process of the node.
. "$(dirname "$0")/cluster.sh"
in_node "$@"
