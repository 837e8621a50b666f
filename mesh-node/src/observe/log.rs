//! The log: formatting with a level that can be changed at run time, and a writer that never blocks.
//!
//! Invariants: a line is either queued at once or dropped and counted; the one writer thread alone touches
//! the output; `flush` waits a bounded time.

use std::{
    io::{self, Write},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use tracing_subscriber::{
    EnvFilter, Registry, filter::LevelFilter, fmt::MakeWriter, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

/// How many lines may wait for the writer.
const QUEUE: usize = 4096;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl From<LogFormat> for super::AccessFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => super::AccessFormat::Text,
            LogFormat::Json => super::AccessFormat::Json,
        }
    }
}

/// Why the log could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "{filter:?} is not a log filter: {reason}; use for example info or mesh_node=debug,info"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logging was already set up, or is gone.
    #[error("the log cannot be set up or changed: {0}")]
    Setup(String),
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Where finished lines go. Cloning shares the queue.
#[derive(Clone, Debug)]
pub struct LogSink {
    queue: Option<SyncSender<Message>>,
    dropped: Arc<AtomicU64>,
}

impl LogSink {
    /// A sink that a thread of its own writes to `output`.
    pub fn new(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let seen = dropped.clone();
        std::thread::Builder::new()
            .name("log".into())
            .stack_size(128 << 10)
            .spawn(move || write_all(lines, output, &seen))?;
        Ok(Self {
            queue: Some(queue),
            dropped,
        })
    }

    /// A sink that forgets every line.
    pub fn discard() -> Self {
        Self {
            queue: None,
            dropped: Arc::default(),
        }
    }

    /// Queues a line (with its newline), or counts it as dropped when the writer does not keep up.
    pub fn line(&self, line: Vec<u8>) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// How many lines were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Waits until what was queued before has been written, at most `limit`. Says whether it was.
    pub fn flush(&self, limit: Duration) -> bool {
        let Some(queue) = &self.queue else {
            return true;
        };
        let (done, wait) = sync_channel(1);
        queue.try_send(Message::Flush(done)).is_ok() && wait.recv_timeout(limit).is_ok()
    }
}

fn write_all(lines: Receiver<Message>, output: impl Write, dropped: &AtomicU64) {
    let mut out = io::BufWriter::with_capacity(32 << 10, output);
    let mut reported = 0;
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                // An output that cannot be written to has no better place to complain to.
                Message::Line(line) => drop(out.write_all(&line)),
                Message::Flush(done) => {
                    let _ = out.flush();
                    let _ = done.try_send(());
                }
            }
            next = lines.try_recv().ok();
        }
        let now = dropped.load(Relaxed);
        if now != reported {
            let _ = writeln!(
                out,
                "WARN log: {} lines were dropped because the output was too slow",
                now - reported
            );
            reported = now;
        }
        let _ = out.flush();
    }
}

/// Writes one event of `tracing` as one line, when it is dropped.
#[derive(Debug)]
pub struct LineWriter {
    line: Vec<u8>,
    sink: LogSink,
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.sink.line(std::mem::take(&mut self.line));
        }
    }
}

impl<'a> MakeWriter<'a> for LogSink {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter {
            line: Vec::with_capacity(256),
            sink: self.clone(),
        }
    }
}

/// Changes what is logged while the process runs.
#[derive(Clone, Debug)]
pub struct LogControl {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl LogControl {
    /// Replaces the filter, e.g. `debug` or `mesh_node::dns=trace,info`.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.handle
            .reload(parse(filter)?)
            .map_err(|e| LogError::Setup(e.to_string()))
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.handle
            .with_current(EnvFilter::to_string)
            .unwrap_or_else(|e| e.to_string())
    }
}

/// Sets up the process's log.
pub fn init_logging(
    format: LogFormat,
    filter: &str,
    sink: LogSink,
) -> Result<LogControl, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let plain = tracing_subscriber::fmt::layer().with_ansi(false);
    let done = match format {
        LogFormat::Text => registry.with(plain.with_writer(sink)).try_init(),
        LogFormat::Json => registry
            .with(plain.json().flatten_event(true).with_writer(sink))
            .try_init(),
    };
    done.map_err(|e| LogError::Setup(e.to_string()))?;
    Ok(LogControl { handle })
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let wrong = |reason: String| LogError::Filter {
        filter: filter.to_owned(),
        reason,
    };
    if filter.trim().is_empty() {
        return Err(wrong("it is empty".into()));
    }
    // A lone word that is no level would be taken for a target at its most talkative: surely a slip.
    let slip = filter
        .split(',')
        .map(str::trim)
        .find(|d| !d.contains(['=', '[']) && LevelFilter::from_str(d).is_err());
    if let Some(word) = slip {
        return Err(wrong(format!("{word:?} is not a level")));
    }
    EnvFilter::from_str(filter).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Slow {
        written: Arc<Mutex<Vec<u8>>>,
        gate: Arc<Mutex<()>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().unwrap();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_output_loses_lines_and_says_so_but_blocks_nobody() {
        let slow = Slow::default();
        let sink = LogSink::new(slow.clone()).unwrap();
        let closed = slow.gate.lock().unwrap();
        let line = vec![b'x'; 1023]
            .into_iter()
            .chain([b'\n'])
            .collect::<Vec<_>>();
        for _ in 0..QUEUE * 3 {
            sink.line(line.clone());
        }
        assert!(
            sink.dropped() >= QUEUE as u64,
            "only {} dropped",
            sink.dropped()
        );
        assert!(
            !sink.flush(Duration::from_millis(10)),
            "flushed through a closed gate"
        );
        drop(closed);
        while !sink.flush(Duration::from_secs(5)) {
            std::thread::yield_now();
        }
        let text = String::from_utf8(slow.written.lock().unwrap().clone()).unwrap();
        assert!(text.contains("lines were dropped") || sink.flush(Duration::from_secs(1)));
        assert!(text.starts_with("xxx"));
    }

    #[test]
    fn filters_are_checked() {
        let check = |text: &str, ok: bool| assert_eq!(parse(text).is_ok(), ok, "{text:?}");
        check("info", true);
        check("mesh_node::dns=trace,warn", true);
        check("", false);
        check("loud", false);
        check("mesh_node=shouting", false);
    }
}
