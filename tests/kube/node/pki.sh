#!/bin/bash
# The cluster's certificates and kubeconfigs: one CA, P-256 keys.
. "$(dirname "$0")/cluster.sh"
mkdir -p "$pki"
cd "$pki"

key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
[ -f ca.crt ] || openssl req -x509 "${key[@]}" -keyout ca.key -out ca.crt -days 365 -subj /CN=kubernetes-ca 2>/dev/null

# cert NAME SUBJECT [NAMES]
cert() {
  [ -f "$1.crt" ] && return
  openssl req "${key[@]}" -keyout "$1.key" -out "$1.csr" -subj "$2" 2>/dev/null
  {
    echo keyUsage=critical,digitalSignature
    echo extendedKeyUsage=serverAuth,clientAuth
    [ -z "${3:-}" ] || echo "subjectAltName=$3"
  } >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm "$1.csr" "$1.ext"
}

names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
cert apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:$cp_ip,IP:10.96.0.1,$names"
cert kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
cert front-proxy /CN=front-proxy-client
cert admin /O=system:masters/CN=admin
for part in controller-manager scheduler proxy; do cert $part /CN=system:kube-$part; done
for n in $KUBE_NODES; do cert "node-$n" "/O=system:nodes/CN=system:node:$n" "DNS:$n,IP:$(node_ip "$n")"; done
if [ ! -f sa.key ]; then
  openssl ecparam -genkey -name prime256v1 -noout -out sa.key
  openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null
fi

# kubeconfig NAME CERT HOST
kubeconfig() {
  cat >"$KUBE_STATE/$1.conf" <<END
apiVersion: v1
kind: Config
clusters: [{name: warren, cluster: {server: "https://$3:6443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: user, user: {client-certificate-data: $(base64 -w0 "$2.crt"), client-key-data: $(base64 -w0 "$2.key")}}]
contexts: [{name: warren, context: {cluster: warren, user: user}}]
current-context: warren
END
}
kubeconfig admin admin "$cp_ip"
kubeconfig proxy proxy "$cp_ip"
for part in controller-manager scheduler; do kubeconfig $part $part 127.0.0.1; done
for n in $KUBE_NODES; do kubeconfig "kubelet-$n" "node-$n" "$cp_ip"; done
chmod 600 ./*.key "$KUBE_STATE"/*.conf
