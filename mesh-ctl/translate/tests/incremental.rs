//! Translation by changes against translation of the whole: the same resources, statuses and hosted identities after
//! every batch of random changes to a small cluster in which everything meets everything.

use std::{collections::BTreeMap, sync::Arc};

use mesh_k8s::ObjectRef;
use mesh_model::mesh::Change;
use mesh_translate::{
    Broken, ClusterView, Origin, Refreshed, Status, Translator, Wanted, translate,
};
use serde_json::{Value, json};

/// A generator of numbers that every run repeats.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % end
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    fn namespace(&mut self) -> &'static str {
        self.of(&["shop", "shop", "bank", "warren-system"])
    }

    fn labels(&mut self) -> Value {
        let mut labels = serde_json::Map::new();
        if !self.one_in(5) {
            labels.insert("app".to_owned(), json!(self.of(&["web", "db"])));
        }
        if self.one_in(2) {
            labels.insert("tier".to_owned(), json!(self.of(&["1", "2"])));
        }
        Value::Object(labels)
    }

    fn ip(&mut self) -> String {
        format!("10.0.0.{}", 1 + self.below(6))
    }

    fn vip(&mut self) -> String {
        format!("172.16.0.{}", 1 + self.below(3))
    }

    fn age(&mut self) -> Value {
        match self.below(3) {
            0 => Value::Null,
            n => json!(format!("2026-01-0{n}T00:00:00Z")),
        }
    }

    fn meta(&mut self, names: &[&str]) -> Value {
        json!({"name": self.of(names), "namespace": self.namespace(), "creationTimestamp": self.age(), "labels": self.labels()})
    }

    fn host(&mut self) -> &'static str {
        self.of(&[
            "api.example.com",
            "a.shop.svc.cluster.local",
            "db.example.com",
            "b.bank.svc.cluster.local",
            "*.wild.com",
        ])
    }

    fn object(&mut self) -> Value {
        if self.one_in(20) {
            return self.made();
        }
        if self.one_in(40) {
            let mut metadata = self.meta(&["", "a", "b"]);
            metadata["name"] = json!(self.of(&["default", "a", "b"]));
            self.through(&mut metadata);
            return json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata});
        }
        match self.below(36) {
            0..=4 => self.pod(),
            5..=6 => self.service(),
            7..=9 => self.slice(),
            10..=11 => self.policy(),
            12 => self.peer_authentication(),
            13..=14 => self.service_entry(),
            15..=16 => self.workload_entry(),
            17 => {
                let label = self.of(&["enabled", "disabled", "odd"]);
                let mut metadata = json!({"name": self.namespace(), "labels": {"warren.dev/mesh": label},
                    "annotations": {"networking.istio.io/traffic-distribution": self.of(&["PreferClose", "Any", "odd"])}});
                self.through(&mut metadata);
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
            }
            18 => {
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.of(&["n1", "n2"]), "labels": {"topology.kubernetes.io/zone": self.of(&["z1", "z2"])}}})
            }
            19 => self.network_policy(),
            20..=23 => self.virtual_service(),
            24..=26 => self.destination_rule(),
            27..=28 => self.gateway(),
            30..=32 => self.route(),
            33..=34 => self.telemetry(),
            29 if self.one_in(2) => {
                json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
                    "metadata": {"name": self.of(&["warren-waypoint", "istio-waypoint"]), "labels": {"istio.io/waypoint-for": self.of(&["all", "none", "odd"])}}})
            }
            29 => {
                let labels = json!({"app": self.of(&["istiod", "web"])});
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "istiod", "namespace": "istio-system"},
                    "spec": {"replicas": 1, "template": {"metadata": {"labels": labels}}}})
            }
            _ if self.one_in(6) => self.settings(),
            _ => {
                json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": self.meta(&["v"])})
            }
        }
    }

    /// Labels that ask for a waypoint, sometimes.
    fn through(&mut self, metadata: &mut Value) {
        if self.one_in(2) {
            return;
        }
        let label = self.of(&["warren.dev/use-waypoint", "istio.io/use-waypoint"]);
        if metadata["labels"].is_null() {
            metadata["labels"] = json!({});
        }
        metadata["labels"][label] = json!(self.of(&["a", "g", "none", "gone"]));
        if self.one_in(3) {
            metadata["labels"][format!("{label}-namespace")] = json!(self.namespace());
        }
        if self.one_in(4) {
            metadata["labels"]["warren.dev/require-waypoint"] = json!("true");
        }
    }

    /// A part of a waypoint as it is made for a namespace or a gateway.
    fn made(&mut self) -> Value {
        let of = self.of(&["shop", "bank"]);
        let (name, namespace) = match self.below(3) {
            0 => ("a".to_owned(), of),
            _ => (format!("waypoint-{of}"), "warren-system"),
        };
        let mut labels = json!({"app.kubernetes.io/managed-by": self.of(&["warren", "warren", "helm"]),
            "gateway.networking.k8s.io/gateway-name": name});
        if namespace == "warren-system" {
            labels["warren.dev/waypoint-for-namespace"] = json!(of);
        }
        if self.one_in(2) {
            return json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"nodeName": "n1", "serviceAccountName": name}, "status": {"phase": "Running", "podIPs": [{"ip": self.ip()}]}});
        }
        let active = self.of(&["true", "true", "false"]);
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": {"warren.dev/waypoint-active": active}},
            "spec": {"clusterIP": self.vip(), "ports": [{"name": "mesh", "port": 15008}]}})
    }

    fn gateway(&mut self) -> Value {
        let mut metadata = self.meta(&["a", "g"]);
        if self.one_in(3) {
            metadata["labels"]["istio.io/waypoint-for"] =
                json!(self.of(&["all", "workload", "service", "none"]));
        }
        let from = self.of(&["Same", "All", "Selector"]);
        let infrastructure = json!({"labels": self.labels(), "parametersRef": {"group": "", "kind": self.of(&["ConfigMap", "Odd"]), "name": "p"}});
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": metadata,
            "spec": {"gatewayClassName": self.of(&["warren-waypoint", "warren-waypoint", "istio-waypoint", "other"]),
                "infrastructure": infrastructure,
                "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": from,
                    "selector": {"matchLabels": {"warren.dev/mesh": "enabled"}}}}}]}})
    }

    /// A host as rules write it: short, full, of an entry, or with a *.
    fn target(&mut self) -> &'static str {
        self.of(&[
            "a",
            "b",
            "a",
            "a.shop.svc.cluster.local",
            "b.bank.svc.cluster.local",
            "api.example.com",
            "gone",
        ])
    }

    fn hosts(&mut self) -> Vec<&'static str> {
        match self.below(5) {
            0 => vec![],
            1 => vec!["*.shop.svc.cluster.local"],
            2 => vec!["*", self.target()],
            _ => vec![self.target()],
        }
    }

    fn export(&mut self) -> Value {
        match self.below(4) {
            0 => json!(["."]),
            1 => json!([self.namespace()]),
            _ => json!([]),
        }
    }

    fn virtual_service(&mut self) -> Value {
        let rules: Vec<Value> = (0..1 + self.below(3)).map(|_| self.rule()).collect();
        let gateways = match self.below(6) {
            0 => json!(["edge"]),
            1 => json!(["edge", "mesh"]),
            _ => json!([]),
        };
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": self.meta(&["v1", "v2", "v3"]),
            "spec": {"hosts": self.hosts(), "gateways": gateways, "exportTo": self.export(), "http": rules}})
    }

    fn rule(&mut self) -> Value {
        let mut rule = json!({});
        if self.one_in(2) {
            rule["match"] = json!([{"uri": {"prefix": self.of(&["/", "/a", "/a/b"])}, "sourceLabels": self.labels()}]);
        }
        if self.one_in(8) {
            rule["match"] = json!([{"uri": {"regex": "(("}}]);
        }
        if self.one_in(4) {
            rule["delegate"] =
                json!({"name": self.of(&["v1", "v2"]), "namespace": self.of(&["", "shop"])});
            return rule;
        }
        let to: Vec<Value> = (0..1 + self.below(2))
            .map(|_| json!({"destination": {"host": self.target(), "subset": self.of(&["", "x", "y"])}, "weight": self.below(3)}))
            .collect();
        rule["route"] = json!(to);
        if self.one_in(3) {
            rule["mirror"] = json!({"host": self.target(), "subset": self.of(&["", "x"])});
        }
        rule
    }

    /// An HTTP route or a gRPC route.
    fn route(&mut self) -> Value {
        let to: Vec<Value> = (0..self.below(3))
            .map(|_| json!({"name": self.of(&["a", "b", "gone"]), "namespace": self.of(&["", "shop"]), "port": self.of(&["80", "81"]).parse::<u16>().expect("a port")}))
            .collect();
        let mut parent = json!({"group": self.of(&["", "gateway.networking.k8s.io"]), "kind": self.of(&["Service", "Service", "Gateway"]),
            "name": self.of(&["a", "b"]), "namespace": self.of(&["", "shop"])});
        if self.one_in(3) {
            parent["port"] = json!(80 + self.below(2));
        }
        let kind = self.of(&["HTTPRoute", "HTTPRoute", "GRPCRoute"]);
        let rules = json!([{"backendRefs": to, "filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": self.of(&["a", "b"]), "port": 80}}}]}]);
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": self.meta(&["r1", "r2"]),
            "spec": {"parentRefs": [parent], "rules": rules}})
    }

    fn destination_rule(&mut self) -> Value {
        let subsets: Vec<Value> = (0..self.below(3))
            .map(|_| json!({"name": self.of(&["x", "y"]), "labels": self.labels()}))
            .collect();
        let host = match self.below(4) {
            0 => self.of(&["*", "*.shop.svc.cluster.local", "*.cluster.local"]),
            _ => self.target(),
        };
        let mut spec = json!({"host": host, "subsets": subsets, "exportTo": self.export()});
        if self.one_in(2) {
            let mode = self.of(&["ISTIO_MUTUAL", "ODD", "SIMPLE"]);
            spec["trafficPolicy"] =
                json!({"tls": {"mode": mode}, "portLevelSettings": [{"port": {"number": 80}}]});
        }
        if self.one_in(3) {
            let label = self.of(&["app", "tier", "tier=1", "app=db"]);
            spec["trafficPolicy"]["loadBalancer"] =
                json!({"localityLbSetting": {"failoverPriority": [label]}});
        }
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": self.meta(&["d1", "d2", "d3"]), "spec": spec})
    }

    fn settings(&mut self) -> Value {
        json!({"apiVersion": "warren.dev/v1", "kind": "MeshConfig", "metadata": {"name": self.of(&["mesh", "other"]), "namespace": "warren-system"},
            "spec": {"rootNamespace": self.of(&["", "bank"]), "trustDomain": self.of(&["cluster.local", "corp"]), "network": self.of(&["", "net1"]),
                "waypoint": self.of(&["", "auto", "manual", "odd"]),
                "extensionProviders": [{"name": "otel", "opentelemetry": {"service": "otel.o.svc.cluster.local", "port": 4317}}],
                "defaultProviders": {"tracing": [self.of(&["otel", "odd"])]}}})
    }

    fn pod(&mut self) -> Value {
        let mut metadata = self.meta(&["p1", "p2", "p3", "p4"]);
        if self.one_in(8) {
            metadata["labels"]["topology.istio.io/network"] = json!("net1");
        }
        if self.one_in(4) {
            metadata["labels"]["gateway.networking.k8s.io/gateway-name"] =
                json!(self.of(&["a", "g"]));
        }
        if self.one_in(4) {
            metadata["labels"]["warren.dev/mesh"] = json!(self.of(&["enabled", "disabled"]));
        }
        self.through(&mut metadata);
        let ips: Vec<_> = (0..1 + self.below(2))
            .map(|_| json!({"ip": self.ip()}))
            .collect();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"nodeName": self.of(&["n1", "n2", "n1", "n2", ""]), "hostNetwork": self.one_in(8), "serviceAccountName": self.of(&["", "a", "b"]),
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": self.of(&["Running", "Running", "Running", "Failed"]), "podIPs": ips,
                "conditions": [{"type": "Ready", "status": self.of(&["True", "False"])}]}})
    }

    fn service(&mut self) -> Value {
        let vip = self.vip();
        let mut metadata = self.meta(&["a", "b"]);
        self.through(&mut metadata);
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"clusterIP": self.of(&["None", &vip, "172.16.0.9"]), "selector": self.labels(),
                "ports": [{"name": "http", "port": 80, "targetPort": self.of(&["http", "8080"])}]}})
    }

    fn slice(&mut self) -> Value {
        let mut metadata = self.meta(&["s1", "s2", "s3"]);
        if !self.one_in(6) {
            metadata["labels"]["kubernetes.io/service-name"] = json!(self.of(&["a", "b"]));
        }
        let endpoints: Vec<Value> = (0..self.below(4))
            .map(|_| {
                let mut endpoint = json!({"addresses": [self.ip()], "conditions": {"ready": self.one_in(2), "serving": self.one_in(2), "terminating": self.one_in(2)}});
                if !self.one_in(3) {
                    endpoint["targetRef"] = json!({"kind": "Pod", "name": self.of(&["p1", "p2", "p3"]), "namespace": self.of(&["", "shop"])});
                }
                endpoint
            })
            .collect();
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "addressType": self.of(&["IPv4", "IPv4", "FQDN"]),
            "ports": [{"name": "http", "port": self.of(&["8080", "9090"]).parse::<u16>().expect("a port")}], "endpoints": endpoints})
    }

    fn policy(&mut self) -> Value {
        let mut spec = json!({"action": self.of(&["ALLOW", "DENY", "AUDIT", "odd"]), "rules": [{"from": [{"source": {"namespaces": [self.namespace()]}}]}]});
        match self.below(4) {
            0 => {}
            1 => {
                spec["targetRefs"] = json!([{"kind": self.of(&["Service", "ServiceEntry", "Gateway"]), "name": self.of(&["a", "b", "e1"]), "namespace": self.of(&["", "shop"])}])
            }
            _ => spec["selector"] = json!({"matchLabels": self.labels()}),
        }
        if self.one_in(8) {
            spec["rules"] = json!("broken");
        }
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": self.meta(&["x", "y", "z"]), "spec": spec})
    }

    fn network_policy(&mut self) -> Value {
        let peers = match self.below(3) {
            0 => json!([]),
            _ => json!([{"podSelector": {"matchLabels": self.labels()}}]),
        };
        let port = 15000 + self.below(10);
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": self.meta(&["n1", "n2", "n3"]),
            "spec": {"podSelector": {"matchLabels": self.labels()}, "ingress": [{"ports": [{"port": port}], "from": peers}]}})
    }

    fn telemetry(&mut self) -> Value {
        let mut spec = json!({"tracing": [{"randomSamplingPercentage": 1 + self.below(3)}]});
        if self.one_in(2) {
            spec["tracing"][0]["providers"] = json!([{"name": self.of(&["otel", "odd"])}]);
        }
        match self.below(4) {
            0 => spec["selector"] = json!({"matchLabels": self.labels()}),
            1 => spec["targetRefs"] = json!([{"kind": "Service", "name": self.of(&["a", "b"])}]),
            2 if self.one_in(4) => spec["tracing"] = json!("broken"),
            _ => {}
        }
        let mut metadata = self.meta(&["t", "u"]);
        if self.one_in(3) {
            metadata["namespace"] = json!(self.of(&["warren-system", "istio-system"]));
        }
        json!({"apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry", "metadata": metadata, "spec": spec})
    }

    fn peer_authentication(&mut self) -> Value {
        let mut spec = json!({"mtls": {"mode": self.of(&["STRICT", "PERMISSIVE", "DISABLE", "UNSET", "odd"])}});
        if self.one_in(2) {
            spec["selector"] = json!({"matchLabels": self.labels()});
        }
        if self.one_in(6) {
            spec["mtls"] = json!("broken");
        }
        json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": self.meta(&["m", "n", "o"]), "spec": spec})
    }

    fn service_entry(&mut self) -> Value {
        let ip = self.ip();
        let endpoints: Vec<Value> = (0..self.below(3))
            .map(|_| json!({"address": self.of(&[&ip, "db.internal", "unix:///x"]), "network": self.of(&["", "net1"]), "ports": {"http": 7070}}))
            .collect();
        let mut spec = json!({"hosts": [self.host(), self.host()], "addresses": [self.vip(), self.of(&[&ip, "192.168.0.0/24"])],
            "resolution": self.of(&["STATIC", "NONE", "DNS", "DNS_ROUND_ROBIN", "odd"]), "ports": [{"number": 80, "name": "http", "protocol": "TCP"}],
            "exportTo": match self.below(4) { 0 => json!(["."]), 1 => json!(["bank"]), 2 => json!(["*"]), _ => Value::Null },
            "endpoints": endpoints});
        if self.one_in(2) {
            spec["workloadSelector"] = json!({"labels": self.labels()});
        }
        json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": self.meta(&["e1", "e2", "e3"]), "spec": spec})
    }

    fn workload_entry(&mut self) -> Value {
        let ip = self.ip();
        json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": self.meta(&["w1", "w2", "w3"]),
            "spec": {"address": self.of(&[&ip, "vm.example.com"]), "labels": self.labels(), "network": self.of(&["", "", "net1"]),
                "ports": {"http": 6060}, "serviceAccount": self.of(&["", "vm", "bad/name"])}})
    }
}

/// What a subscriber to the refreshes holds.
#[derive(Default)]
struct Held {
    resources: BTreeMap<String, Change>,
    statuses: BTreeMap<ObjectRef, Status>,
    hosted: BTreeMap<String, Vec<String>>,
    waypoints: Vec<Wanted>,
}

/// The class and name of a resource.
fn key(change: &Change) -> String {
    match change {
        Change::Config(_) => "config".to_owned(),
        Change::Policy(p) => format!("policy {}", p.name),
        Change::RemovePolicy(name) => format!("policy {name}"),
        Change::Service(s) => format!("service {}", s.name),
        Change::RemoveService(name) => format!("service {name}"),
        Change::ServiceExtra(name, _) | Change::RemoveServiceExtra(name) => {
            format!("service {name} extra")
        }
        Change::Routes(r) => format!("routes {}", r.service),
        Change::RemoveRoutes(name) => format!("routes {name}"),
        Change::Destination(d) => format!("destination {}", d.service),
        Change::RemoveDestination(name) => format!("destination {name}"),
        Change::Workload(w) => format!("workload {}", w.uid),
        Change::RemoveWorkload(uid) => format!("workload {uid}"),
        Change::WorkloadExtra(uid, _) | Change::RemoveWorkloadExtra(uid) => {
            format!("workload {uid} extra")
        }
        Change::Complete => "complete".to_owned(),
    }
}

impl Held {
    fn take(&mut self, refreshed: Refreshed) {
        for change in &refreshed.changes {
            let key = key(change);
            match change {
                Change::RemovePolicy(_)
                | Change::RemoveRoutes(_)
                | Change::RemoveDestination(_)
                | Change::RemoveServiceExtra(_)
                | Change::RemoveWorkloadExtra(_) => {
                    assert!(
                        self.resources.remove(&key).is_some(),
                        "{key} is removed and was not there"
                    );
                }
                Change::RemoveService(_) | Change::RemoveWorkload(_) => {
                    assert!(
                        self.resources.remove(&key).is_some(),
                        "{key} is removed and was not there"
                    );
                    self.resources.remove(&format!("{key} extra"));
                }
                _ => {
                    let new = change.clone();
                    let old = self.resources.insert(key.clone(), new.clone());
                    assert_ne!(old, Some(new), "{key} is said again and has not changed");
                }
            }
        }
        for (object, status) in refreshed.statuses {
            match status {
                Some(status) => drop(self.statuses.insert(object, status)),
                None => drop(self.statuses.remove(&object)),
            }
        }
        if let Some(waypoints) = refreshed.waypoints {
            assert_ne!(
                self.waypoints, waypoints,
                "the same waypoints are told again"
            );
            self.waypoints = waypoints;
        }
        for (node, identities) in refreshed.hosted {
            self.hosted.insert(
                node.to_string(),
                identities.iter().map(ToString::to_string).collect(),
            );
        }
        self.hosted.retain(|_, identities| !identities.is_empty());
    }

    fn check(&self, translator: &Translator, story: &[String]) {
        let whole = translate(translator.view());
        let resources: BTreeMap<String, Change> =
            whole.changes.iter().map(|c| (key(c), c.clone())).collect();
        let told = || {
            story
                .iter()
                .rev()
                .take(12)
                .rev()
                .cloned()
                .collect::<Vec<_>>()
                .join("\n")
        };
        for (name, value) in &resources {
            assert_eq!(
                self.resources.get(name),
                Some(value),
                "{name}, after\n{}",
                told()
            );
        }
        let more: Vec<_> = self
            .resources
            .keys()
            .filter(|name| !resources.contains_key(*name))
            .collect();
        assert!(more.is_empty(), "left over: {more:?}, after\n{}", told());
        let statuses: BTreeMap<_, _> = whole
            .statuses
            .into_iter()
            .map(|s| (s.object.clone(), s))
            .collect();
        for (object, status) in &statuses {
            assert_eq!(
                self.statuses.get(object),
                Some(status),
                "{object}, after\n{}",
                told()
            );
        }
        assert_eq!(
            self.statuses.len(),
            statuses.len(),
            "more statuses, after\n{}",
            told()
        );
        let hosted: BTreeMap<String, Vec<String>> = whole
            .hosted
            .iter()
            .map(|(node, all)| {
                (
                    node.to_string(),
                    all.iter().map(ToString::to_string).collect(),
                )
            })
            .collect();
        assert_eq!(self.hosted, hosted, "hosted, after\n{}", told());
        assert_eq!(
            self.waypoints,
            whole.waypoints,
            "waypoints, after\n{}",
            told()
        );
    }
}

fn change(translator: &mut Translator, dice: &mut Dice, story: &mut Vec<String>) {
    if dice.one_in(4) {
        let objects: Vec<ObjectRef> = translator.view().objects().collect();
        if let Some(object) = objects.get(dice.below(objects.len().max(1))) {
            story.push(format!("remove {object}"));
            return translator.remove(object);
        }
    }
    let document = dice.object();
    story.push(document.to_string());
    let origin = Origin {
        file: "f".into(),
        line: 1 + u32::try_from(dice.below(3)).expect("small"),
    };
    match mesh_k8s::read(document.clone()) {
        Ok(parsed) => translator.apply(parsed.object, origin, Arc::from(parsed.unknown)),
        Err(error) => {
            let (object, broken) = broken(&document, error, origin);
            translator.set_broken(&object, broken);
        }
    }
}

fn broken(document: &Value, error: mesh_k8s::ReadError, origin: Origin) -> (ObjectRef, Broken) {
    let selector = document.pointer("/spec/selector/matchLabels").cloned();
    let broken = Broken {
        origin,
        field: error.field,
        message: error.message,
        selector: selector.and_then(|labels| serde_json::from_value(labels).ok()),
    };
    let object = error.object.expect("every document here has a name");
    (object, broken)
}

/// What would be said of an object is what is said of it once it is there.
fn foretell(translator: &Translator, dice: &mut Dice, story: &[String]) {
    let document = dice.object();
    let mut after = translator.view().clone();
    let (object, said) = match mesh_k8s::read(document.clone()) {
        Ok(parsed) => {
            let (object, unknown) = (parsed.object.reference(), Arc::from(parsed.unknown));
            let apply = |view: &mut ClusterView| {
                view.apply(
                    parsed.object.clone(),
                    Origin::default(),
                    Arc::clone(&unknown),
                );
            };
            apply(&mut after);
            let said = translator.would_say(&object, apply);
            (object, said)
        }
        Err(error) => {
            let (object, broken) = broken(&document, error, Origin::default());
            let apply = |view: &mut ClusterView| view.set_broken(object.clone(), broken.clone());
            apply(&mut after);
            let said = translator.would_say(&object, apply);
            (object, said)
        }
    };
    let expect = translate(&after).statuses;
    let expect = expect.into_iter().find(|status| status.object == object);
    assert_eq!(said, expect, "{document}, after\n{}", story.join("\n"));
}

#[test]
fn translating_changes_is_translating_the_whole() {
    for seed in 1..=150_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mut translator, mut held) = (Translator::default(), Held::default());
        let mut story = vec![format!("seed {seed}")];
        for _ in 0..60 {
            for _ in 0..1 + dice.below(3) {
                change(&mut translator, &mut dice, &mut story);
            }
            held.take(translator.refresh());
            held.check(&translator, &story);
            foretell(&translator, &mut dice, &story);
        }
    }
}
