// Package conformance names what the Gateway API's conformance suite is built from.
package conformance

import _ "sigs.k8s.io/gateway-api/conformance"
