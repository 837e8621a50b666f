#!/bin/bash
# apiserver.sh off|on: stops the API server, or starts it as it ran. Whoever talks to it is refused meanwhile.
. "$(dirname "$0")/cluster.sh"
case $1 in
  off) stop kube-apiserver ;;
  on)
    start_again kube-apiserver
    wait_until 60 "the API server" kubectl get --raw /readyz
    ;;
esac
