//! What Kubernetes runs, each kind in an enrolled namespace.

use anyhow::{Result, ensure};
use mesh_tests::kube::{CLIENT, SAMPLES, Space};

/// The label that enrols a namespace.
pub const ENROLLED: &str = "warren.dev/mesh: enabled";
/// Nobody is reached in plaintext.
pub const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";

/// Kubelet's probes by HTTP and TCP, of all three purposes, reach pods that nobody else reaches in plaintext. One by gRPC is
/// a connection to a port like these.
pub async fn probes_pass_under_strict() -> Result<()> {
    Space::with("probes", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(STRICT).await?;
        space.apply(&Space::server("web", &nodes[0])).await?;
        space
            .apply(&format!(
                "apiVersion: v1
kind: Pod
metadata: {{name: tcp}}
spec:
  nodeName: {}
  containers:
  - name: echo
    image: {SAMPLES}
    args: [tcp-echo, --port, '9000']
    ports: [{{containerPort: 9000}}]
    startupProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1}}
    livenessProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1, failureThreshold: 1}}
",
                nodes[0]
            ))
            .await?;
        let http = "{httpGet: {path: /status/200, port: 8080}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold:";
        let probed =
            format!("        startupProbe: {http} 30}}\n        livenessProbe: {http} 1}}\n");
        let probed = Space::deployment("http", &nodes[0]) + &probed;
        space.apply(&probed).await?;
        space.rolled_out("deployment/web").await?;
        space.rolled_out("deployment/http").await?;
        space.ready("tcp").await?;
        // Anybody else of the node, and a pod outside the mesh, is refused.
        let address = space
            .kubectl(&[
                "get",
                "pods",
                "-l",
                "app=web",
                "-o",
                "jsonpath={.items[0].status.podIP}",
            ])
            .await?;
        let url = format!("http://{address}:8080/status/200");
        let said = space
            .cluster
            .on_node(&nodes[0], &["curl", "-sS", "-m", "3", &url])
            .await?;
        ensure!(!said.ok, "a process of the node got through: {}", said.out);
        space
            .cluster
            .until_logged(
                &nodes[0],
                &[
                    "connection refused",
                    "dst.workload=web-",
                    "reason=mtls_required",
                ],
            )
            .await?;
        let pods = space.json(&["get", "pods"]).await?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let (name, status) = (&pod["metadata"]["name"], &pod["status"]);
            let container = &status["containerStatuses"][0];
            ensure!(
                container["restartCount"] == 0 && container["started"] == true,
                "a probe of {name} failed: {container}"
            );
        }
        Ok(())
    })
    .await
}

/// A pod of the host's network in an enrolled namespace is no workload of the mesh: it works, in plaintext.
pub async fn pods_of_the_hosts_network_are_left_alone() -> Result<()> {
    Space::with("hostnet", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(&Space::server("web", &nodes[0])).await?;
        let client =
            Space::client("client", &nodes[1]).replace("spec:\n", "spec:\n  hostNetwork: true\n");
        space.apply(&client).await?;
        space.rolled_out("deployment/web").await?;
        space.ready("client").await?;
        let address = space
            .kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])
            .await?;
        space
            .answers_outside("client", &format!("http://{address}/status/200"))
            .await?;
        let lines = space.cluster.log(&nodes[1], "warren-node")?;
        let captured = lines
            .iter()
            .find(|l| l.contains("src.workload=client") && l.contains("src.namespace=hostnet"));
        ensure!(captured.is_none(), "it was captured: {captured:?}");
        Ok(())
    })
    .await
}

/// An init container's and a sidecar container's connections are the pod's, and a Job ends when its work is done.
pub async fn jobs_end_and_init_containers_are_in_the_mesh() -> Result<()> {
    Space::with("jobs", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(STRICT).await?;
        space.apply(&Space::server("web", &nodes[0])).await?;
        space.rolled_out("deployment/web").await?;
        // Another name for the server, by which only the sidecar knows it.
        space
            .apply("apiVersion: v1\nkind: Service\nmetadata: {name: aside}\nspec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n")
            .await?;
        let aside = "until curl -sSf -m 2 http://aside/status/200; do sleep 0.2; done; sleep 100000";
        let get = "for i in 1 2 3 4 5 6 7 8 9 10; do curl -sSf -m 2 http://web/status/200 && exit 0; sleep 1; done; exit 1";
        space
            .apply(&format!(
                "apiVersion: batch/v1
kind: Job
metadata: {{name: work}}
spec:
  backoffLimit: 0
  template:
    spec:
      nodeName: {}
      restartPolicy: Never
      initContainers:
      - {{name: sidecar, image: '{CLIENT}', restartPolicy: Always, args: [-c, '{aside}']}}
      - {{name: first, image: '{CLIENT}', args: [-c, '{get}']}}
      containers:
      - {{name: work, image: '{CLIENT}', args: [-c, '{get}']}}
      - {{name: more, image: '{CLIENT}', args: [-c, '{get}']}}
      terminationGracePeriodSeconds: 1
",
                nodes[1]
            ))
            .await?;
        space
            .kubectl(&["wait", "--for=condition=Complete", "job/work", "--timeout=60s"])
            .await?;
        let lines = space.cluster.log(&nodes[1], "warren-node")?;
        let flows = |service: &str| {
            let service = format!("dst.service={service}.jobs.svc");
            let words = ["src.workload=work-", "path=hbone", "connection complete", &service];
            lines.iter().filter(|l| words.iter().all(|w| l.contains(w))).count()
        };
        let seen = [flows("web"), flows("aside")];
        ensure!(seen[0] >= 3 && seen[1] >= 1, "{seen:?} flows of the job and of its sidecar were logged");
        Ok(())
    })
    .await
}

/// Each pod of a StatefulSet has a name of its own under its headless service.
pub async fn stateful_sets_and_headless_services_are_reached_by_name() -> Result<()> {
    Space::with("stateful", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        space.apply(STRICT).await?;
        space
            .apply(&format!(
                "apiVersion: v1
kind: Service
metadata: {{name: db}}
spec:
  clusterIP: None
  selector: {{app: db}}
  ports: [{{name: http, port: 8080}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  replicas: 2
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {{matchLabels: {{app: db}}}}}}
      containers:
      - name: db
        image: {SAMPLES}
        args: [httpbin, --port, '8080']
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /status/200, port: 8080}}, periodSeconds: 1}}
---
{}",
                Space::client("client", &nodes[1])
            ))
            .await?;
        space.rolled_out("statefulset/db").await?;
        space.ready("client").await?;
        for host in ["db-0.db", "db-1.db", "db"] {
            let url = format!("http://{host}:8080/status/200");
            space
                .cluster
                .until(&url, 10, async || space.get("client", &url).await)
                .await?;
        }
        // One of them is on the client's node, the other is not.
        for db in ["db-0", "db-1"] {
            let to = format!("dst.workload={db} ");
            let words = ["src.workload=client", "src.namespace=stateful", &to, "mtls=true"];
            space.cluster.until_logged(&nodes[1], &words).await?;
        }
        Ok(())
    })
    .await
}

/// Traffic from outside the cluster comes in by a node's port and by a pod's host port, under PERMISSIVE. A service that
/// wants its clients' addresses is reached by the ports of those nodes alone that have a pod of it, which sees them.
pub async fn node_ports_and_host_ports_lead_in() -> Result<()> {
    Space::with("ports", ENROLLED, async |space| {
        let nodes = space.cluster.nodes()?;
        let server = Space::server("web", &nodes[0])
            .replace(
                "spec:\n  selector: {app: web}",
                "spec:\n  type: NodePort\n  externalTrafficPolicy: Cluster\n  selector: {app: web}",
            )
            .replace(
                "containerPort: 8080}",
                "containerPort: 8080, hostPort: 18080}",
            );
        space.apply(&server).await?;
        space.rolled_out("deployment/web").await?;
        let port = space
            .kubectl(&[
                "get",
                "service",
                "web",
                "-o",
                "jsonpath={.spec.ports[0].nodePort}",
            ])
            .await?;
        let address = async |node: &str| {
            let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
            space
                .cluster
                .kubectl(&["get", "node", node, "-o", path])
                .await
        };
        let urls = [
            format!("http://{}:{port}/status/200", address(&nodes[0]).await?),
            format!("http://{}:{port}/status/200", address(&nodes[1]).await?),
            format!("http://{}:18080/status/200", address(&nodes[0]).await?),
        ];
        let outside = async |url: &str| {
            let curl = [
                "curl",
                "-sS",
                "-m",
                "2",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                url,
            ];
            space.cluster.outside(&curl).await
        };
        let answered = async |url: &str| {
            let said = outside(url).await?;
            ensure!(said.out == "200", "{}{}", said.out, said.err);
            Ok(())
        };
        for url in &urls {
            space
                .cluster
                .until(url, 10, async || answered(url).await)
                .await?;
        }
        let local = r#"{"spec":{"externalTrafficPolicy":"Local"}}"#;
        space
            .kubectl(&["patch", "service", "web", "-p", local])
            .await?;
        let closed = async || {
            let said = outside(&urls[1]).await?;
            ensure!(said.out == "000", "{} by a node without a pod", said.out);
            Ok(())
        };
        space
            .cluster
            .until("the node without a pod to lead nowhere", 20, closed)
            .await?;
        answered(&urls[0]).await?;
        let own = [
            "direction=inbound",
            "src.addr=10.99.0.1:",
            "dst.namespace=ports",
        ];
        space.cluster.until_logged(&nodes[0], &own).await?;
        Ok(())
    })
    .await
}
