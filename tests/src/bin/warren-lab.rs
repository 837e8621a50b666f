//! The lab's command line: a cluster of network namespaces on one machine, to try the mesh without Kubernetes.

use std::{
    io::{Read, Seek},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_tests::{
    interrupt::unless_interrupted,
    lab::{
        Lab,
        capture::Capture,
        component::Order,
        control::Status,
        dns, down,
        enter::Surroundings,
        images::Images,
        kubelet,
        manifest::Source,
        net::{FABRIC_NAME, nft_present},
        place::{LabName, Place, traces},
        pod::Programs,
        show,
        supervisor::{self, Spec},
    },
    out,
};

/// A cluster of network namespaces on this machine: nodes, pods, services, and the mesh.
#[derive(Parser)]
#[command(name = "lab", version)]
struct Cli {
    /// Which lab; several can run side by side.
    #[arg(long, global = true, env = "WARREN_LAB", default_value = "main")]
    name: String,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value = "text")]
    output: Format,
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

#[derive(Subcommand)]
enum Cmd {
    /// Start a lab and leave it running.
    Up(Up),
    /// Make or change objects.
    Apply(Files),
    /// Take objects away, or one pod by `delete pod NAME`.
    Delete(Delete),
    /// Show nodes, pods and services.
    Ps,
    /// Run a program in a pod (or on a node: `n1`, or outside the cluster: `fabric`).
    Exec {
        /// `namespace/name`, a name, or the beginning of one.
        who: String,
        /// The program with its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<String>,
    },
    /// Show the log of a node's proxy (`n1`), a pod, `controller`, `dns` or `supervisor`.
    Logs {
        /// Whose.
        who: String,
        /// Go on as it grows.
        #[arg(short, long)]
        follow: bool,
    },
    /// Show the metrics of a node's proxy.
    Metrics {
        /// The node.
        node: String,
    },
    /// Write down the packets on the wire between a node and the others.
    Capture {
        /// The node.
        node: String,
        /// The pcap file; standard name in the current directory without.
        #[arg(short)]
        write: Option<PathBuf>,
        /// Stop after this time; on Ctrl-C without.
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// Stop, start, restart, upgrade or signal a component: a node's proxy (`n1`), `controller`, `dns`.
    Component {
        /// Which.
        who: String,
        /// What to do.
        #[arg(value_enum)]
        action: Action,
    },
    /// Remove a lab and everything that any earlier run of it left.
    Down {
        /// All labs of this machine.
        #[arg(long)]
        all: bool,
    },
    #[command(hide = true)]
    Supervise { spec: PathBuf },
    #[command(hide = true)]
    Kubelet { socket: PathBuf },
    #[command(hide = true)]
    Dns { names: PathBuf },
    #[command(hide = true)]
    Enter {
        #[command(flatten)]
        surroundings: Surroundings,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<String>,
    },
}

#[derive(Args)]
struct Up {
    /// Manifests: files or directories.
    #[arg(short = 'f', long = "file")]
    files: Vec<PathBuf>,
    /// Programs for container images: YAML, image name (tag `*` for any) to a program with its arguments. It goes
    /// before the sample applications, and holds for every later `apply`; an image nobody knows gives an idle pod.
    #[arg(long, value_name = "FILE")]
    images: Option<PathBuf>,
    /// For objects that name no namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=100))]
    nodes: u8,
    /// Only the cluster, without controller and node proxies.
    #[arg(long)]
    no_mesh: bool,
    /// A variable for the node proxies, as NAME=VALUE.
    #[arg(long = "agent-env")]
    agent_env: Vec<String>,
    /// A further argument for the controller.
    #[arg(long = "controller-arg", allow_hyphen_values = true)]
    controller_args: Vec<String>,
    /// How long to wait for the pods, in seconds.
    #[arg(long, default_value_t = 120)]
    patience: u64,
}

#[derive(Args)]
struct Files {
    /// Manifests: files, directories, or `-`.
    #[arg(short = 'f', long = "file", required = true)]
    files: Vec<PathBuf>,
    /// For objects that name no namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Wait until the pods are ready.
    #[arg(long)]
    wait: bool,
}

#[derive(Args)]
struct Delete {
    /// Manifests: files, directories, or `-`.
    #[arg(short = 'f', long = "file")]
    files: Vec<PathBuf>,
    /// For objects that name no namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// `pod NAME`
    #[arg(conflicts_with = "files", num_args = 2)]
    what: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Action {
    Stop,
    Start,
    Restart,
    /// A second process takes over, the first one drains.
    Upgrade,
    /// SIGKILL; it is started again.
    Kill,
    /// SIGKILL; it stays down until `start`.
    Crash,
    /// SIGSTOP.
    Pause,
    /// SIGCONT.
    Resume,
}

impl Action {
    fn order(self) -> Order {
        match self {
            Self::Stop => Order::Stop,
            Self::Start => Order::Start,
            Self::Restart => Order::Restart,
            Self::Upgrade => Order::Upgrade,
            Self::Kill => Order::Signal(9),
            Self::Crash => Order::SignalAndLeave(9),
            Self::Pause => Order::Signal(19),
            Self::Resume => Order::Signal(18),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Cmd::Enter {
        surroundings,
        program,
    } = &cli.command
    {
        // Before any thread exists: the new view of the machine is for the whole process.
        let Err(e) = surroundings.exec(program);
        eprintln!("lab: {e:#}");
        return ExitCode::from(127);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built");
    out::end("lab", runtime.block_on(run(cli)))
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let name: LabName = cli.name.parse()?;
    let attach = || Lab::attach(cli.name.parse()?);
    match cli.command {
        Cmd::Up(options) => unless_interrupted(up(name, options, cli.output)).await?,
        Cmd::Apply(options) => {
            let lab = attach()?;
            print_lines(
                &lab.apply_sources(read(&options.files)?, &options.namespace)
                    .await?,
                cli.output,
            )?;
            if options.wait {
                lab.wait_ready(Duration::from_secs(120)).await?;
            }
        }
        Cmd::Delete(options) => delete(&attach()?, options, cli.output).await?,
        Cmd::Ps => show(&attach()?.status().await?, cli.output)?,
        Cmd::Exec { who, program } => {
            let status = attach()?
                .command(&who, &program)
                .await?
                .status()
                .context("starting the program")?;
            return Ok(ExitCode::from(
                u8::try_from(status.code().unwrap_or(128)).unwrap_or(255),
            ));
        }
        Cmd::Logs { who, follow } => logs(&attach()?.log(&who).await?, follow).await?,
        Cmd::Metrics { node } => out::print(attach()?.node(&node).metrics().await?)?,
        Cmd::Capture {
            node,
            write,
            seconds,
        } => capture(&Place::new(name)?, &node, write, seconds).await?,
        Cmd::Component { who, action } => attach()?.component(&who, action.order()).await?,
        Cmd::Down { all } => {
            for name in if all { traces()? } else { vec![name] } {
                let removed = down::down(&Place::new(name.clone())?)?;
                match cli.output {
                    Format::Json => out::line(serde_json::to_string(&removed)?)?,
                    Format::Text => out::line(format_args!(
                        "lab {name}: removed {} namespaces and {} directories of pins{}",
                        removed.namespaces,
                        removed.pins,
                        if removed.supervisor {
                            ""
                        } else {
                            " (it did not run)"
                        }
                    ))?,
                }
            }
        }
        Cmd::Supervise { spec } => {
            let lab = std::env::current_exe()?;
            let samples = lab.with_file_name("warren-sample");
            supervisor::run(
                supervisor::read_spec(&spec)?,
                Programs {
                    lab,
                    samples,
                    images: Images::default(),
                },
            )
            .await?;
        }
        Cmd::Kubelet { socket } => kubelet::run(&socket).await?,
        Cmd::Dns { names } => dns::run(&names).await?,
        Cmd::Enter { .. } => bail!("handled before"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(name: LabName, options: Up, output: Format) -> Result<()> {
    let begun = Instant::now();
    let sources = read(&options.files)?;
    let own = std::env::current_exe()?.parent().map(Path::to_owned);
    let images = options
        .images
        .as_deref()
        .map(|file| Images::read(file, own.as_deref()))
        .transpose()?
        .unwrap_or_default();
    let agent_env = options
        .agent_env
        .iter()
        .map(|e| {
            let (k, v) = e
                .split_once('=')
                .with_context(|| format!("--agent-env `{e}` is not NAME=VALUE"))?;
            Ok((k.to_owned(), v.to_owned()))
        })
        .collect::<Result<Vec<_>>>()?;
    let spec = Spec {
        name: name.clone(),
        nodes: options.nodes,
        mesh: !options.no_mesh,
        agent_env,
        controller_args: options.controller_args,
        images,
    };
    if !nft_present() {
        eprintln!(
            "lab: `nft` is not installed: pods outside the mesh reach pods but no service address (`cargo xtask provision` installs it)"
        );
    }
    eprintln!(
        "lab {name}: starting {} nodes{}",
        spec.nodes,
        if spec.mesh { " with the mesh" } else { "" }
    );
    let lab = Lab::up(spec).await?;
    let mut told = Ok(());
    if !sources.is_empty() {
        let lines = lab.apply_sources(sources, &options.namespace).await?;
        if output == Format::Text {
            told = print_lines(&lines, output);
        }
    }
    let settled = lab.wait_ready(Duration::from_secs(options.patience)).await;
    // A lab that is not quite as hoped is left running, to be looked at.
    lab.keep();
    told?;
    let status = settled.context("the lab runs, but not as asked; see `lab ps` and `lab logs`")?;
    if output == Format::Json {
        return show(&status, output);
    }
    out::line(format_args!(
        "lab {name} is up after {:.1} s: {} nodes, {} pods. Next: lab ps | exec POD -- CMD | logs n1 | metrics n1 | down",
        begun.elapsed().as_secs_f32(),
        status.nodes.len(),
        status.pods.len()
    ))
}

async fn delete(lab: &Lab, options: Delete, output: Format) -> Result<()> {
    match options.what.as_slice() {
        [kind, who] if kind == "pod" => lab.delete_pod(who).await,
        [kind, _] => bail!("only `delete pod NAME` works without -f, not `{kind}`"),
        _ if options.files.is_empty() => bail!("say what: -f FILE, or pod NAME"),
        _ => print_lines(
            &lab.delete_sources(read(&options.files)?, &options.namespace)
                .await?,
            output,
        ),
    }
}

fn read(files: &[PathBuf]) -> Result<Vec<Source>> {
    let read: Vec<Vec<Source>> = files
        .iter()
        .map(|f| Source::read(f))
        .collect::<Result<_>>()?;
    Ok(read.concat())
}

fn print_lines(lines: &[String], output: Format) -> Result<()> {
    match output {
        Format::Json => out::line(serde_json::to_string(lines)?),
        Format::Text => lines.iter().try_for_each(out::line),
    }
}

fn show(status: &Status, output: Format) -> Result<()> {
    match output {
        Format::Json => out::line(serde_json::to_string_pretty(status)?),
        Format::Text => out::print(show::text(status)),
    }
}

async fn logs(path: &Path, follow: bool) -> Result<()> {
    let mut file =
        std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    loop {
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        out::print(&text)?;
        if !follow {
            return Ok(());
        }
        // The lab going down takes its logs away.
        if !path.exists() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        file.stream_position()?;
    }
}

async fn capture(
    place: &Place,
    node: &str,
    write: Option<PathBuf>,
    seconds: Option<u64>,
) -> Result<()> {
    let file = write.unwrap_or_else(|| PathBuf::from(format!("{}-{node}.pcap", place.name)));
    let running = Capture::start(
        place.netns_path(FABRIC_NAME),
        node.to_owned(),
        Some(file.clone()),
        false,
    )?;
    eprintln!(
        "writing packets of {node} to {}{}",
        file.display(),
        if seconds.is_none() {
            "; Ctrl-C ends it"
        } else {
            ""
        }
    );
    let limit = async {
        match seconds {
            Some(s) => tokio::time::sleep(Duration::from_secs(s)).await,
            None => std::future::pending().await,
        }
    };
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = limit => {}
        done = tokio::signal::ctrl_c() => done?,
        _ = term.recv() => {}
    }
    running.stop().map(drop)
}
