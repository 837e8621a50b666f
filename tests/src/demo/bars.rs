//! Who answered how often, as bars that grow while one watches; on no terminal, as plain lines at the end.
//!
//! Invariant: what is drawn is what was counted.

use std::{collections::BTreeMap, io::IsTerminal};

use anyhow::Result;

use crate::out;

/// The longest bar, in characters.
const LONGEST: usize = 50;

/// Bars by name.
#[derive(Debug)]
pub struct Bars {
    counts: BTreeMap<String, u32>,
    /// Lines on the terminal that the next drawing replaces.
    drawn: usize,
    live: bool,
}

impl Bars {
    /// None yet.
    pub fn new() -> Self {
        Self {
            counts: BTreeMap::new(),
            drawn: 0,
            live: std::io::stdout().is_terminal(),
        }
    }

    /// One more for a name.
    pub fn add(&mut self, name: &str) {
        *self.counts.entry(name.to_owned()).or_default() += 1;
    }

    /// How many there are for a name.
    pub fn get(&self, name: &str) -> u32 {
        self.counts.get(name).copied().unwrap_or_default()
    }

    /// How many there are.
    pub fn total(&self) -> u32 {
        self.counts.values().sum()
    }

    /// Draws them anew on a terminal.
    pub fn draw(&mut self) -> Result<()> {
        if !self.live {
            return Ok(());
        }
        let mut text = String::new();
        if self.drawn > 0 {
            text = format!("\x1b[{}A", self.drawn);
        }
        let lines = self.lines();
        self.drawn = lines.len();
        for line in lines {
            text.push_str(&format!("\r\x1b[K{line}\n"));
        }
        out::print(text)
    }

    /// Draws them for the last time.
    pub fn end(mut self) -> Result<()> {
        match self.live {
            true => self.draw(),
            false => out::line(self.lines().join("\n")),
        }
    }

    fn lines(&self) -> Vec<String> {
        let total = self.total().max(1);
        let line = |(name, count): (&String, &u32)| {
            let length = LONGEST * *count as usize / total as usize;
            let percent = 100.0 * f64::from(*count) / f64::from(total);
            let bar = "█".repeat(length);
            format!("   {name:<12} {bar:<LONGEST$} {count:>4}  {percent:5.1} %")
        };
        self.counts.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        let mut bars = Bars::new();
        for _ in 0..3 {
            bars.add("v1");
        }
        bars.add("v2");
        let lines = bars.lines();
        let length = |line: &str| line.matches('█').count();
        assert_eq!((length(&lines[0]), length(&lines[1])), (37, 12));
        assert!(lines[0].ends_with("   3   75.0 %"), "{lines:?}");
        assert_eq!((bars.get("v1"), bars.get("v3"), bars.total()), (3, 0, 4));
    }
}
