//! One node of a lab, as tests see it: metrics, logs, signals to its proxy.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{task::spawn_blocking, time::sleep};

use super::{Lab, PATIENCE, component::Order, enter::in_netns, net::NodeIndex};

/// The port of a node proxy's metrics.
pub(super) const METRICS_PORT: u16 = 15020;
/// How long a flow that has ended may take to be in the log.
const LOGGED: Duration = Duration::from_secs(20);

/// One node of a lab.
pub struct Node<'a> {
    pub(super) lab: &'a Lab,
    pub(super) name: String,
}

impl Node<'_> {
    /// The node proxy's metrics, as text.
    pub async fn metrics(&self) -> Result<String> {
        self.get("/metrics").await
    }

    /// GET on the node proxy's read-only port.
    pub async fn get(&self, path: &str) -> Result<String> {
        let node =
            NodeIndex::from_name(&self.name).with_context(|| format!("no node `{}`", self.name))?;
        let (netns, path) = (self.lab.place.netns_path(&self.name), path.to_owned());
        let to = SocketAddr::new(IpAddr::V4(node.ip()), METRICS_PORT);
        spawn_blocking(move || in_netns(&netns, move || http_get(to, &path)))
            .await
            .context("asking the node proxy")?
    }

    /// The sum of a metric's values over all label sets that hold every one of `labels`; 0 when there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(sum_metric(&self.metrics().await?, name, labels))
    }

    /// Lines of the node proxy's access log.
    pub async fn access_log(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.lab.place.log(&self.name))?;
        Ok(text
            .lines()
            .filter(|l| l.contains("direction=") || l.contains("\"direction\""))
            .map(str::to_owned)
            .collect())
    }

    /// Those that hold all of `words`.
    pub async fn flows(&self, words: &[&str]) -> Result<Vec<String>> {
        let mut lines = self.access_log().await?;
        lines.retain(|l| words.iter().all(|w| l.contains(w)));
        Ok(lines)
    }

    /// The whole log.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.lab.place.log(&self.name))?)
    }

    /// Sends a signal to the node proxy; with `stay_down` it is not started again.
    pub async fn kill_agent(
        &self,
        signal: nix::sys::signal::Signal,
        stay_down: bool,
    ) -> Result<()> {
        let number = signal as i32;
        self.lab
            .component(
                &self.name,
                if stay_down {
                    Order::SignalAndLeave(number)
                } else {
                    Order::Signal(number)
                },
            )
            .await
    }

    /// Does something to the node proxy.
    pub async fn agent(&self, order: Order) -> Result<()> {
        self.lab.component(&self.name, order).await
    }
}

impl Lab {
    /// Waits until `node`'s proxy has logged a flow in whose line all of `words` are; returns the last such line.
    pub async fn until_logged(&self, node: &str, words: &[&str]) -> Result<String> {
        let deadline = Instant::now() + LOGGED;
        loop {
            let lines = self.node(node).access_log().await?;
            let fits = |l: &&String| words.iter().all(|w| l.contains(w));
            if let Some(line) = lines.iter().rfind(fits) {
                return Ok(line.clone());
            }
            if Instant::now() > deadline {
                bail!(
                    "{node} logged no flow with {words:?} within {LOGGED:?}; it says:\n{}",
                    lines.join("\n")
                );
            }
            sleep(PATIENCE).await;
        }
    }
}

/// The sum of a metric's values in Prometheus's text format.
pub fn sum_metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let lines = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (set, value) = match rest.strip_prefix('{') {
            Some(inner) => inner.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let fits = labels
            .iter()
            .all(|(k, v)| format!(",{set},").contains(&format!(",{k}=\"{v}\",")));
        fits.then(|| value.split(' ').next()?.parse::<f64>().ok())
            .flatten()
    });
    // An empty sum of floats is a negative zero.
    lines.sum::<f64>() + 0.0
}

pub(super) fn http_get(to: SocketAddr, path: &str) -> Result<String> {
    let limit = Duration::from_secs(5);
    let mut stream =
        TcpStream::connect_timeout(&to, limit).with_context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {to}\r\n\r\n")?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .with_context(|| format!("reading {path} of {to}"))?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("{to} did not answer HTTP"))?;
    if !head
        .split(' ')
        .nth(1)
        .is_some_and(|code| code.starts_with('2'))
    {
        bail!(
            "{to}{path}: {}: {}",
            head.lines().next().unwrap_or_default(),
            body.trim()
        );
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::sum_metric;

    #[test]
    fn sums_what_fits() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\"} 4\nab{x=\"1\"} 100\na 7\n";
        assert_eq!(sum_metric(text, "a", &[]), 14.0);
        assert_eq!(sum_metric(text, "a", &[("x", "1")]), 7.0);
        assert_eq!(sum_metric(text, "a", &[("y", "2")]), 3.0);
        assert_eq!(sum_metric(text, "a", &[("y", "3")]), 0.0);
    }
}
