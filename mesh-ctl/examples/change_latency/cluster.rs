//! The cluster of the measurement as manifests, one object a file as a source would give them, and its changes.

use std::{fs, path::Path};

/// How large the cluster is.
#[derive(Clone)]
pub struct Cluster {
    pub pods: usize,
    pub services: usize,
    pub nodes: usize,
}

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    Pod,
    Policy,
    Service,
}

impl Edit {
    /// The kind of change number `n`: mostly pods, as in a cluster.
    pub fn of(n: usize) -> Self {
        match n % 10 {
            0 | 5 => Self::Policy,
            7 => Self::Service,
            _ => Self::Pod,
        }
    }
}

impl Cluster {
    /// Writes everything; the namespaces come last, so that they are a change for every pod.
    pub fn write(&self, folder: &Path) {
        for i in 0..self.pods {
            fs::write(folder.join(format!("pod-{i}.yaml")), self.pod(i, "v0")).expect("written");
        }
        for i in 0..self.services {
            let text = format!("{}---\n{}", self.service(i, 1), self.slice(i));
            fs::write(folder.join(format!("service-{i}.yaml")), text).expect("written");
            fs::write(folder.join(format!("policy-{i}.yaml")), self.policy(i, 0)).expect("written");
        }
        for i in 0..10 {
            let text = format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: team-{i}, labels: {{warren.dev/mesh: enabled}}}}\n"
            );
            fs::write(folder.join(format!("namespace-{i}.yaml")), text).expect("written");
        }
    }

    /// Change number `n`: a file and its new text.
    pub fn edit(&self, n: usize) -> (String, String) {
        let (pod, service) = (n * 37 % self.pods, n * 13 % self.services);
        match Edit::of(n) {
            Edit::Pod => (format!("pod-{pod}.yaml"), self.pod(pod, &format!("v{n}"))),
            Edit::Policy => (format!("policy-{service}.yaml"), self.policy(service, n)),
            Edit::Service => {
                let text = format!("{}---\n{}", self.service(service, n), self.slice(service));
                (format!("service-{service}.yaml"), text)
            }
        }
    }

    fn service_of(&self, pod: usize) -> usize {
        pod % self.services
    }

    fn pod(&self, i: usize, version: &str) -> String {
        let service = self.service_of(i);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: app-{service}-7d4b9c6f5d-{i}\n  namespace: team-{}\n  labels: {{app: app-{service}, version: {version}}}\n  uid: u{i}\n\
             spec:\n  nodeName: n{}\n  serviceAccountName: app-{service}\n  containers: [{{name: c, image: i, ports: [{{containerPort: 8080}}]}}]\n\
             status:\n  phase: Running\n  podIPs: [{{ip: 10.{}.{}.{}}}]\n  conditions: [{{type: Ready, status: \"True\"}}]\n",
            service % 10,
            i % self.nodes.max(1),
            1 + i / 62_500,
            i / 250 % 250,
            1 + i % 250
        )
    }

    fn service(&self, i: usize, target: usize) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: app-{i}, namespace: team-{}}}\n\
             spec: {{clusterIP: 172.16.{}.{}, selector: {{app: app-{i}}}, ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: extra, port: 81, targetPort: {target}}}]}}\n",
            i % 10,
            i / 250,
            1 + i % 250
        )
    }

    fn slice(&self, i: usize) -> String {
        let namespace = i % 10;
        let members = (0..self.pods)
            .filter(|pod| self.service_of(*pod) == i)
            .take(self.pods / self.services + 1);
        let endpoints: String = members
            .map(|pod| format!("- {{addresses: [10.{}.{}.{}], targetRef: {{kind: Pod, name: app-{i}-7d4b9c6f5d-{pod}, namespace: team-{namespace}}}}}\n", 1 + pod / 62_500, pod / 250 % 250, 1 + pod % 250))
            .collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: app-{i}-1, namespace: team-{namespace}, labels: {{kubernetes.io/service-name: app-{i}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n{endpoints}"
        )
    }

    /// A policy that remembers the number of its change in its first rule.
    fn policy(&self, i: usize, n: usize) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: app-{i}, namespace: team-{}}}\n\
             spec: {{selector: {{matchLabels: {{app: app-{i}}}}}, rules: [{{from: [{{source: {{ipBlocks: [11.{}.{}.{}]}}}}]}}]}}\n",
            i % 10,
            n >> 16 & 255,
            n >> 8 & 255,
            n & 255
        )
    }
}
