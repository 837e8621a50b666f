//! What a decision costs with few and many policies: the model's own example, run as it is.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

/// One line of the example.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// By what the rules differ.
    pub rules: String,
    /// How many policies of ten rules.
    pub policies: u64,
    /// Nanoseconds of a decision that no rule matches.
    pub miss: f64,
    /// Nanoseconds of one that the last rule matches.
    pub hit: f64,
}

/// Runs the example; `None` when it is not built.
pub fn costs(example: &Path) -> Result<Option<Vec<Cost>>> {
    if !example.exists() {
        return Ok(None);
    }
    let done = Command::new(example)
        .output()
        .with_context(|| format!("starting {}", example.display()))?;
    if !done.status.success() {
        bail!(
            "{}: {}",
            example.display(),
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    parse(&String::from_utf8_lossy(&done.stdout)).map(Some)
}

/// Reads the example's table: the name of the rules may hold spaces, what follows are five numbers.
fn parse(text: &str) -> Result<Vec<Cost>> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (rules, numbers) = words.split_at_checked(words.len().checked_sub(5)?)?;
        Some(Cost {
            rules: rules.join(" "),
            policies: numbers[0].parse().ok()?,
            miss: numbers[1].parse().ok()?,
            hit: numbers[2].parse().ok()?,
        })
    };
    text.lines()
        .skip(1)
        .map(|l| line(l).with_context(|| format!("the example wrote `{l}`")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_with_spaces() {
        let got = parse("rules differ by  policies ...\nsame principal, own port      10000            406            980             12.3           44.0\n").expect("as the example writes");
        assert_eq!(
            got,
            [Cost {
                rules: "same principal, own port".into(),
                policies: 10_000,
                miss: 406.0,
                hit: 980.0
            }]
        );
        assert!(parse("head\nnonsense\n").is_err());
    }
}
