//! What the conformance suite says of its tests, and which of them have to have passed.
//!
//! Invariants: pure; a test counts as passed only when the suite says so, so that one which hangs, or is not there any
//! more, is missed.

use std::{
    collections::BTreeMap,
    fmt::{Display, Formatter, Write as _},
};

/// How the suite's own test is called, of which all others are parts.
const SUITE: &str = "TestConformance/";
/// How tests for meshes begin; the others are for gateways, and are skipped for want of their features.
const MESH: &str = "Mesh";

/// What must pass: the tests of MESH-HTTP and MESH-GRPC with all extended features, and those of further features that a
/// mesh can have.
const WANTED: [&str; 22] = [
    "MeshBasic",
    "MeshConsumerRoute",
    "MeshFrontend",
    "MeshFrontendHostname",
    "MeshGRPCRouteWeight",
    "MeshHTTPRoute303Redirect",
    "MeshHTTPRoute307Redirect",
    "MeshHTTPRoute308Redirect",
    "MeshHTTPRouteBackendRequestHeaderModifier",
    "MeshHTTPRouteMatching",
    "MeshHTTPRouteNamedRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectHostAndStatus",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRequestHeaderModifier",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteSimpleSameNamespace",
    "MeshHTTPRouteWeight",
    "MeshPorts",
    "MeshTrafficSplit",
];

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Pass,
    Fail,
    Skip,
}

impl Verdict {
    fn read(word: &str) -> Option<Self> {
        match word {
            "PASS" => Some(Self::Pass),
            "FAIL" => Some(Self::Fail),
            "SKIP" => Some(Self::Skip),
            _ => None,
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Skip => "SKIP",
        })
    }
}

/// What a run of the suite came to, by test; the cases within tests are not told apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Results(BTreeMap<String, Verdict>);

/// Whether a line of `go test -v` says that a test of the suite begins.
pub(super) fn begins(line: &str) -> bool {
    line.strip_prefix("=== RUN ")
        .and_then(|rest| rest.trim_start().strip_prefix(SUITE))
        .is_some_and(|name| !name.contains('/'))
}

impl Results {
    /// Takes a line of `go test -v`; whether it tells of a test of the suite.
    pub(super) fn line(&mut self, line: &str) -> bool {
        let Some((name, verdict)) = told(line) else {
            return false;
        };
        self.0.insert(name.to_owned(), verdict);
        true
    }

    /// What must have passed and has not, each with what became of it: all that is wanted of a mesh, whatever else is for
    /// meshes, and whatever failed.
    pub(super) fn missed(&self) -> Vec<String> {
        let mut missed = self.missed_of(&WANTED);
        let others = self.0.iter().filter(|(name, verdict)| {
            let ours = name.starts_with(MESH) || **verdict == Verdict::Fail;
            ours && **verdict != Verdict::Pass && !WANTED.contains(&name.as_str())
        });
        missed.extend(others.map(|(name, verdict)| format!("{name}: {verdict}")));
        missed
    }

    /// Which of these have not passed.
    pub(super) fn missed_of(&self, names: &[&str]) -> Vec<String> {
        let missed = |name: &&str| match self.0.get(*name) {
            Some(Verdict::Pass) => None,
            Some(verdict) => Some(format!("{name}: {verdict}")),
            None => Some(format!("{name}: did not end")),
        };
        names.iter().filter_map(missed).collect()
    }

    /// One line for each test, by name; the same for the same outcome, whenever it ran.
    pub(super) fn list(&self) -> String {
        let mut list = String::new();
        for (name, verdict) in &self.0 {
            let _ = writeln!(list, "{verdict} {name}");
        }
        list
    }

    /// How many passed, failed and were skipped, for people.
    pub(super) fn counts(&self) -> String {
        let of = |verdict| self.0.values().filter(|v| **v == verdict).count();
        format!(
            "{} tests passed, {} failed, {} skipped (those of gateways)",
            of(Verdict::Pass),
            of(Verdict::Fail),
            of(Verdict::Skip)
        )
    }
}

/// The test of the suite that a line says has ended, and how.
fn told(line: &str) -> Option<(&str, Verdict)> {
    let (verdict, rest) = line.trim_start().strip_prefix("--- ")?.split_once(": ")?;
    let name = rest.strip_prefix(SUITE)?.split(' ').next()?;
    let whole = !name.is_empty() && !name.contains('/');
    Some((name, Verdict::read(verdict)?)).filter(|_| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run in which all that is wanted passed, in the words of the suite, with some of these lines otherwise.
    fn ran(otherwise: &[(&str, &str)]) -> Results {
        let mut results = Results::default();
        for name in WANTED.iter().chain(&["GatewayInfrastructure"]) {
            let gateway = if name.starts_with(MESH) {
                "PASS"
            } else {
                "SKIP"
            };
            let word = otherwise.iter().find(|(n, _)| n == name);
            let word = word.map_or(gateway, |(_, word)| word);
            let line = format!("    --- {word}: TestConformance/{name} (1.02s)");
            assert_eq!(results.line(&line), !word.is_empty(), "{line}");
        }
        results
    }

    #[test]
    fn tests_are_told_from_their_cases_and_from_all_else() {
        let mut results = Results::default();
        let lines = [
            ("=== RUN   TestConformance/MeshBasic", false),
            ("--- FAIL: TestConformance (90.21s)", false),
            ("    --- PASS: TestConformance/MeshBasic (1.02s)", true),
            (
                "        --- PASS: TestConformance/MeshBasic/0_request (1.02s)",
                false,
            ),
            ("    --- FAIL: TestConformance/MeshSplit (9.00s)", true),
            (
                "    --- SKIP: TestConformance/GatewayInfrastructure (0.00s)",
                true,
            ),
            (
                "    conformance.go:60: Skipping GatewayInfrastructure: suite does not support Gateway",
                false,
            ),
            ("    --- PASS: TestConformance/ (0.00s)", false),
            ("    --- ELSE: TestConformance/MeshPorts (0.00s)", false),
            ("PASS", false),
        ];
        for (line, tells) in lines {
            assert_eq!(results.line(line), tells, "{line}");
        }
        assert_eq!(
            results.list(),
            "SKIP GatewayInfrastructure\nPASS MeshBasic\nFAIL MeshSplit\n"
        );
        assert_eq!(
            results.counts(),
            "1 tests passed, 1 failed, 1 skipped (those of gateways)"
        );
    }

    #[test]
    fn it_is_shown_where_the_suite_is() {
        assert!(begins("=== RUN   TestConformance/MeshBasic"));
        assert!(!begins("=== RUN   TestConformance/MeshBasic/0_request"));
        assert!(!begins("=== RUN   TestConformance"));
        assert!(!begins("=== CONT  TestConformance/MeshBasic"));
    }

    #[test]
    fn what_is_wanted_has_to_pass_and_nothing_else() {
        assert!(ran(&[]).missed().is_empty());
        for (word, why) in [("SKIP", "SKIP"), ("FAIL", "FAIL"), ("", "did not end")] {
            for name in WANTED {
                let missed = ran(&[(name, word)]).missed();
                assert_eq!(missed, [format!("{name}: {why}")]);
            }
        }
        assert_eq!(Results::default().missed().len(), WANTED.len());
    }

    #[test]
    fn a_test_for_meshes_that_nobody_knows_is_not_skipped_in_silence() {
        let mut results = ran(&[]);
        results.line("    --- PASS: TestConformance/MeshHTTPRouteOfTomorrow (0.10s)");
        assert!(results.missed().is_empty());
        results.line("    --- SKIP: TestConformance/MeshHTTPRouteOfTomorrow (0.00s)");
        assert_eq!(results.missed(), ["MeshHTTPRouteOfTomorrow: SKIP"]);
        results.line("    --- PASS: TestConformance/MeshHTTPRouteOfTomorrow (0.10s)");
        results.line("    --- FAIL: TestConformance/GatewayInfrastructure (0.00s)");
        assert_eq!(results.missed(), ["GatewayInfrastructure: FAIL"]);
    }

    #[test]
    fn one_that_is_asked_for_by_name_has_to_pass_alone() {
        let mut results = Results::default();
        results.line("    --- SKIP: TestConformance/MeshBasic (0.00s)");
        results.line("    --- PASS: TestConformance/MeshPorts (0.50s)");
        assert!(results.missed_of(&["MeshPorts"]).is_empty());
        assert_eq!(results.missed_of(&["MeshBasic"]), ["MeshBasic: SKIP"]);
        assert_eq!(results.missed_of(&["MeshBsic"]), ["MeshBsic: did not end"]);
    }

    #[test]
    fn the_list_is_sorted_and_says_nothing_of_time() {
        let list = ran(&[]).list();
        let names: Vec<&str> = list.lines().filter_map(|l| l.split(' ').nth(1)).collect();
        assert!(names.is_sorted() && names.len() == WANTED.len() + 1);
        assert!(WANTED.is_sorted() && !list.contains(['(', ')', '.']));
    }
}
