//! Compiles regular expressions, which allocates syntax trees, automata and caches, and matches
//! with each of them once.

use std::hint::black_box;

use regex::Regex;

use crate::run::Run;

/// Typical patterns of programs. Each is used with several names.
const TEMPLATES: [&str; 10] = [
    r"^NAME:\s+(\d+)$",
    r"(?i)\bNAME\b.{0,20}\berror\b",
    r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2}) NAME",
    r"[a-z0-9._%+-]+@NAME\.[a-z]{2,6}",
    r"https?://(www\.)?NAME[^\s/]*(/[^\s?]*)?(\?[^\s]*)?",
    r"(NAME|[a-f0-9]{8})-([a-f0-9]{4}-){3}[a-f0-9]{12}",
    r"^(\s*)(fn|struct|enum)\s+NAME(<[^>]*>)?",
    r"(?x) NAME \s* = \s* ( true | false | [0-9]+ )",
    r"(\d{1,3}\.){3}\d{1,3}:(NAME|\d+)",
    r#""NAME"\s*:\s*"((?:[^"\\]|\\.)*)""#,
];

const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];

const TEXT: &str = "2024-05-06 alpha: beta = 12 at http://www.gamma.example/a/b?c=d from 10.0.0.1:80\n\
    fn delta<T>(x: T) {} mail to someone@epsilon.org about \"alpha\": \"a \\\"quoted\\\" value\"\n\
    beta had an error in deadbeef-0000-1111-2222-333344445555, gamma=true\n";

pub(super) fn run(run: &mut Run) {
    let rounds = run.pick(12, 1, 1);
    let patterns: Vec<String> = NAMES
        .iter()
        .flat_map(|name| TEMPLATES.iter().map(|template| template.replace("NAME", name)))
        .collect();
    run.time((rounds * patterns.len()) as u64, || {
        for _ in 0..rounds {
            let compiled: Vec<Regex> = patterns
                .iter()
                .map(|pattern| Regex::new(pattern).expect("a valid pattern"))
                .collect();
            for regex in &compiled {
                black_box(regex.captures_iter(TEXT).count());
            }
        }
    });
}
