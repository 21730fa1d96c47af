// SPDX-License-Identifier: MIT OR Apache-2.0

//! The measurements as tables, and which targets were reached.

use super::{Results, Series};
use crate::Arch;
use std::time::Duration;
use xsplice_testbed::size::{self, Size};
use xsplice_testbed::{print, println};

const ALL: [Series; 6] = [
    Series::Functions,
    Series::Symbols,
    Series::Loaded,
    Series::Apply,
    Series::ApplyCold,
    Series::Replace,
];

impl Series {
    fn title(self) -> &'static str {
        match self {
            Self::Functions => "Upload, by functions",
            Self::Symbols => "Upload, by symbols",
            Self::Loaded => "Upload of 1,000 functions and symbols, by payloads like it before it",
            Self::Apply => "Window of an apply, by functions",
            Self::ApplyCold => "Window of an apply, by functions, on cold pages",
            Self::Replace => "Window of a replace, by payloads that are replaced",
        }
    }

    /// The required ratio of the stock core to ours.
    fn target(self, number: usize) -> f64 {
        match (self, number) {
            (Self::Loaded, 10) => 5.0,
            (Self::Functions | Self::Symbols | Self::Loaded, _) => 1.0,
            (Self::Apply | Self::ApplyCold | Self::Replace, _) => 10.0,
        }
    }
}

/// Prints everything; of each pair, the stock core comes first.
pub(super) fn print(arch: Arch, counted: &[Results], timed: &[Results], idle: &[u64], size: &Size) {
    let mut targets = Vec::new();
    for series in ALL {
        let title = series.title();
        println!("\n### {title}\n");
        println!("| | C, instructions | Rust | ratio | C, ticks | Rust | ratio |");
        println!("|---:|---:|---:|---:|---:|---:|---:|");
        let numbers = counted.iter().take(1).flatten();
        for &(_, number, _) in numbers.filter(|(of, ..)| *of == series) {
            print!("| {number} |");
            let ratios = [counted, timed].map(|pair| cells(pair, series, number));
            println!();
            let target = series.target(number);
            let reached = ratios.iter().all(|ratio| *ratio >= target);
            let [instructions, ticks] = ratios;
            targets.push((
                reached,
                format!(
                    "{title}, {number}: {target} times ({instructions:.1} in instructions, \
                     {ticks:.1} in ticks)"
                ),
            ));
        }
    }
    if let &[theirs, ours] = idle {
        println!("\n### The check on return to a guest\n");
        println!("Instructions of `check_for_livepatch_work`: C {theirs}, Rust {ours}.");
        let target = "On return to a guest: no more instructions".to_owned();
        targets.push((ours <= theirs, target));
    }
    let Size { bytes, more } = size;
    println!("\n### Size\n");
    if arch == Arch::X86_64 {
        println!("`xen.gz` has {bytes} bytes, {more} more than Debian's.");
        let most = size::MOST;
        targets.push((*more <= most, format!("Size: at most {most} bytes more")));
    } else {
        println!("`xen` has {bytes} bytes, {more} more than with Xen's own core.");
    }
    println!("\n### Targets\n");
    for (reached, target) in targets {
        let verdict = if reached { "reached" } else { "**missed**" };
        println!("- {verdict}: {target}");
    }
}

/// Prints both values and the ratio of the first to the second; returns the ratio.
fn cells(pair: &[Results], series: Series, number: usize) -> f64 {
    let values: Vec<u64> = pair
        .iter()
        .filter_map(|results| {
            results
                .iter()
                .find(|(of, n, _)| (*of, *n) == (series, number))
        })
        .map(|(.., value)| *value)
        .collect();
    let &[theirs, ours] = values.as_slice() else {
        return 0.0;
    };
    let [long, short] = [theirs, ours].map(Duration::from_nanos);
    let ratio = long.div_duration_f64(short);
    print!(" {theirs} | {ours} | {ratio:.1} |");
    ratio
}
