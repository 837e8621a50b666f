#!/bin/bash
. "$(dirname "$0")/cluster.sh"
kubectl "$@"
