//! `cargo xtask lab`: builds what the lab needs, then hands over to it.

use std::process::ExitCode;

use anyhow::Result;

use crate::{provision, root, step};

/// Start, use and remove a lab.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// What to do: up, apply, delete, ps, exec, logs, metrics, capture, component, down; `help` tells more.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Hands over to the lab's own program.
pub fn run(args: &Args) -> Result<ExitCode> {
    let program = step::built()?.join("warren-lab");
    let first = subcommand(&args.words);
    let helps = first.is_none_or(|w| w == "help")
        || args
            .words
            .iter()
            .take_while(|w| *w != "--")
            .any(|w| w == "-h" || w == "--help");
    // A lab that runs is used with the programs it was started with.
    if first == Some("up") && !helps {
        provision::require_lab()?;
        step::build_programs(false)?;
    } else if !program.exists() {
        step::run(step::cargo()?.args(["build", "--locked", "--workspace", "--bins"]))?;
    }
    let mut command = if helps {
        std::process::Command::new(&program)
    } else {
        root::command(
            &program,
            "the lab makes network namespaces and loads kernel programs",
        )?
    };
    step::hand_over(command.args(&args.words))
}

/// The first word that is neither a flag nor a flag's value.
fn subcommand(words: &[String]) -> Option<&str> {
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--name" | "-o" | "--output" => drop(words.next()),
            flag if flag.starts_with('-') => {}
            word => return Some(word),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::subcommand;

    #[test]
    fn finds_the_subcommand_behind_flags() {
        let find = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            subcommand(&words).map(str::to_owned)
        };
        assert_eq!(find("--name up -o json ps").as_deref(), Some("ps"));
        assert_eq!(find("up -f x").as_deref(), Some("up"));
        assert_eq!(find("--name=a down").as_deref(), Some("down"));
        assert_eq!(find("--help"), None);
    }
}
