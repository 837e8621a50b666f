//! Rounds: subjects forth and back between two runs of the direct way, and what many of them say together.
//!
//! Invariants: a round whose two direct runs differ by more than a tenth says nothing, and is told; a ratio is
//! always to the direct way of the same round; the middle of several rounds is what is shown.

use super::subject::Subject;

/// How far the direct way may move within a round.
pub const STEADY: f64 = 0.10;

/// One run of one subject: its figures, or why there are none.
pub type Cell = Result<Vec<Option<f64>>, String>;

/// One round of one row.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// All runs in their order.
    pub cells: Vec<(Subject, Cell)>,
}

/// What the rounds say of one figure of one subject.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The middle of the rounds.
    pub value: f64,
    /// The middle of its ratios to the direct way.
    pub ratio: Option<f64>,
}

/// The order of a round: direct, A, B, C, C, B, A, direct.
pub fn order(direct: Option<Subject>, others: &[Subject]) -> Vec<Subject> {
    let there = direct.into_iter().chain(others.iter().copied());
    let back = others.iter().rev().copied().chain(direct);
    there.chain(back).collect()
}

impl Round {
    /// By how much the direct way moved; `None` when it failed, or when there is none.
    pub fn moved(&self) -> Option<f64> {
        let all: Vec<f64> = self
            .cells
            .iter()
            .filter(|(s, _)| s.is_direct())
            .filter_map(|(_, c)| c.as_ref().ok()?.first().copied()?)
            .collect();
        let (first, last) = (all.first()?, all.last()?);
        (all.len() > 1).then(|| (first - last).abs() / ((first + last) / 2.0))
    }

    /// Whether its figures count.
    pub fn steady(&self) -> bool {
        let has_direct = self.cells.iter().any(|(s, _)| s.is_direct());
        !has_direct || self.moved().is_some_and(|m| m <= STEADY)
    }

    /// The mean of a subject's runs.
    fn mean(&self, subject: Subject, measure: usize) -> Option<f64> {
        let of = |(s, cell): &(Subject, Cell)| {
            let figures = cell.as_ref().ok().filter(|_| *s == subject)?;
            figures.get(measure).copied()?
        };
        let all: Vec<f64> = self.cells.iter().filter_map(of).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }
}

/// What `rounds` say of a subject's figure.
pub fn summary(
    rounds: &[&Round],
    subject: Subject,
    direct: Option<Subject>,
    measure: usize,
) -> Option<Summary> {
    let pairs: Vec<(f64, Option<f64>)> = rounds
        .iter()
        .filter_map(|r| {
            Some((
                r.mean(subject, measure)?,
                direct.and_then(|d| r.mean(d, measure)),
            ))
        })
        .collect();
    let ratios = pairs
        .iter()
        .filter_map(|(value, direct)| direct.filter(|d| *d > 0.0).map(|d| value / d))
        .collect();
    Some(Summary {
        value: middle(pairs.iter().map(|p| p.0).collect())?,
        ratio: middle(ratios),
    })
}

fn middle(mut all: Vec<f64>) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    let half = all.len() / 2;
    match all.len() {
        0 => None,
        n if n % 2 == 1 => Some(all[half]),
        _ => Some((all[half - 1] + all[half]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Subject::{Envoy, Far, FarDirect},
        *,
    };

    fn round(direct: [f64; 2], far: [f64; 2]) -> Round {
        let cell = |v: f64| Ok(vec![Some(v)]);
        Round {
            cells: vec![
                (FarDirect, cell(direct[0])),
                (Far, cell(far[0])),
                (Far, cell(far[1])),
                (FarDirect, cell(direct[1])),
            ],
        }
    }

    #[test]
    fn forth_and_back_between_direct() {
        let got = order(Some(FarDirect), &[Far, Envoy]);
        assert_eq!(got, [FarDirect, Far, Envoy, Envoy, Far, FarDirect]);
        assert_eq!(order(None, &[Far]), [Far, Far]);
    }

    #[test]
    fn a_moving_direct_way_spoils_the_round() {
        assert!(round([100.0, 109.0], [1.0; 2]).steady());
        assert!(!round([100.0, 112.0], [1.0; 2]).steady());
        let mut failed = round([100.0, 100.0], [1.0; 2]);
        failed.cells[3].1 = Err("reset".into());
        assert!(!failed.steady());
    }

    #[test]
    fn ratios_are_those_of_their_own_round() {
        let (slow, fast) = (
            round([100.0, 100.0], [50.0, 70.0]),
            round([200.0, 200.0], [100.0, 100.0]),
        );
        let got = summary(&[&slow, &fast], Far, Some(FarDirect), 0).expect("two rounds");
        assert_eq!((got.value, got.ratio), (80.0, Some(0.55)));
        assert_eq!(summary(&[&slow], Envoy, Some(FarDirect), 0), None);
        assert_eq!(summary(&[], Far, Some(FarDirect), 0), None);
    }
}
