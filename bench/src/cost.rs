// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cost of running programs: wall-clock time, and total CPU time.

use anyhow::Context as _;
use std::time::{Duration, Instant};

/// The cost of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    pub(super) time: Duration,
    /// Of the programs and their children.
    pub(super) cpu: Duration,
}

impl Cost {
    /// Measures `what`, which must wait for the programs that it starts.
    pub(super) fn of<T>(what: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Self)> {
        let (start, before) = (Instant::now(), children()?);
        let result = what()?;
        let time = start.elapsed();
        let cpu = children()?.saturating_sub(before);
        Ok((result, Self { time, cpu }))
    }

    /// The median of `costs`, separately for time and CPU time.
    pub(super) fn median(costs: &[Self]) -> Self {
        let middle = |get: fn(&Self) -> Duration| {
            let mut all: Vec<_> = costs.iter().map(get).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        Self {
            time: middle(|cost| cost.time),
            cpu: middle(|cost| cost.cpu),
        }
    }
}

/// Two columns of a table.
impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let (time, cpu) = (self.time.as_secs_f64(), self.cpu.as_secs_f64());
        write!(f, "{time:.2} s | {cpu:.2} s")
    }
}

/// CPU time of all reaped children of this process.
fn children() -> anyhow::Result<Duration> {
    /// The kernel's USER_HZ on x86.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Field 3 follows the name, which may contain blanks.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let field =
        |number: usize| -> Option<u64> { fields.split_whitespace().nth(number - 3)?.parse().ok() };
    let ticks = field(16).zip(field(17)).map(|(user, system)| user + system);
    let ticks = ticks.context("/proc/self/stat is not as expected")?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_their_children_are_counted() {
        let spin = "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; true";
        let (_, cost) = Cost::of(|| {
            let status = std::process::Command::new("sh").args(["-c", spin]).status();
            anyhow::ensure!(status?.success());
            Ok(())
        })
        .expect("it runs");
        assert!(cost.cpu > Duration::ZERO, "{cost:?}");
    }
}
