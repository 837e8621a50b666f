#!/bin/bash
# engine.sh on NODE ENGINE|off NODE: within a node, starts kube-router for NetworkPolicies alone, or ends it and takes
# its chains and sets away in one step, so that nobody else's rules are written meanwhile.
. "$(dirname "$0")/cluster.sh"
pid=/run/kube-router.pid
case $1 in
  on)
    sysctl -qw net.bridge.bridge-nf-call-iptables=1
    setsid "$3" --run-firewall=true --run-router=false --run-service-proxy=false --enable-cni=false \
      --kubeconfig="$KUBE_STATE/admin.conf" --hostname-override="$2" --service-cluster-ip-range="$service_cidr" \
      --health-port=0 --v=2 >"$KUBE_STATE/log/$2-policies.log" 2>&1 </dev/null &
    echo $! >$pid
    has_rules() { iptables -S FORWARD | grep -q KUBE-ROUTER; }
    wait_until 30 "the rules of the policy engine on $2" has_rules
    ;;
  off)
    [ -f $pid ] || exit 0
    kill -KILL "$(cat $pid)" 2>/dev/null || true
    wait_until 10 "the end of the policy engine" is_gone "$(cat $pid)"
    rm $pid
    mapfile -t chains < <(iptables -S | sed -n 's/^-N \(KUBE-\(ROUTER\|POD-FW\|NWPLCY\)-[^ ]*\)$/\1/p')
    {
      echo '*filter'
      iptables -S | sed -n 's/^-A \(INPUT\|FORWARD\|OUTPUT\) \(.* -j KUBE-ROUTER-.*\)$/-D \1 \2/p'
      [ ${#chains[@]} = 0 ] || printf -- '-F %s\n' "${chains[@]}"
      [ ${#chains[@]} = 0 ] || printf -- '-X %s\n' "${chains[@]}"
      echo COMMIT
    } | iptables-restore --noflush
    ipset list -n | sed -n '/^KUBE-/p' | xargs -rn1 ipset destroy
    ! iptables -S | grep -q 'KUBE-\(ROUTER\|POD-FW\|NWPLCY\)'
    ;;
esac
