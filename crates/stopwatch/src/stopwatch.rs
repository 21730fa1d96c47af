// SPDX-License-Identifier: MIT OR Apache-2.0
//! The measurement: which CPU reached which address, and when.

use crate::line::{Line, page};
use crate::request::Request;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::{Range, RangeInclusive};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Limit of lines written for one stretch: some addresses are reached all the time.
pub const MOST: usize = 10_000;

/// The time of a begin that was not reached, or whose end has been.
const NEVER: u64 = u64::MAX;

/// Measures the stretches of a request. CPUs are numbered from 0.
///
/// Per-CPU state is written only by that CPU's thread, so no access needs ordering.
#[derive(Debug)]
pub struct Stopwatch {
    /// Sorted by address.
    places: Vec<Place>,
    stretches: Vec<Progress>,
    counted: Option<Range<u64>>,
    /// Number of counted instructions each CPU has executed.
    counts: Vec<AtomicU64>,
    pages: Option<Range<u64>>,
    /// Pages with translated code.
    translated: Mutex<BTreeSet<u64>>,
    ticks: fn() -> u64,
    output: File,
}

/// An address, and what it marks.
#[derive(Debug)]
struct Place {
    address: u64,
    mark: Mark,
}

/// The begin or an end of the stretch with this number.
#[derive(Debug, Clone, Copy)]
enum Mark {
    Begin(usize),
    End(usize),
}

/// The state of a stretch.
#[derive(Debug)]
struct Progress {
    /// When each CPU began it.
    begun: Vec<AtomicU64>,
    /// Number of lines written.
    written: AtomicUsize,
}

impl Stopwatch {
    /// A stopwatch for `cpus` CPUs; `ticks` is the time.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn new(request: &Request, cpus: usize, ticks: fn() -> u64) -> io::Result<Self> {
        let mut places = Vec::new();
        for (number, stretch) in request.stretches.iter().enumerate() {
            let begin = (stretch.begin, Mark::Begin(number));
            let ends = stretch.ends.iter().map(|end| (*end, Mark::End(number)));
            places.extend(
                ends.chain([begin])
                    .map(|(address, mark)| Place { address, mark }),
            );
        }
        places.sort_by_key(|place| place.address);
        let all = |value| (0..cpus).map(move |_| AtomicU64::new(value)).collect();
        let progress = |_| Progress {
            begun: all(NEVER),
            written: AtomicUsize::new(0),
        };
        Ok(Self {
            places,
            stretches: request.stretches.iter().map(progress).collect(),
            counted: request.counted.clone(),
            counts: all(0),
            pages: request.pages.clone(),
            translated: Mutex::default(),
            ticks,
            output: File::create(&request.output)?,
        })
    }

    /// Called when the consecutive instructions at these addresses are translated.
    pub fn translate(&self, addresses: &RangeInclusive<u64>) {
        let asked_for = |page: &u64| {
            let pages = self.pages.as_ref();
            pages.is_some_and(|pages| pages.contains(page))
        };
        let both = [addresses.start(), addresses.end()].map(|address| page(*address));
        for page in both.into_iter().filter(asked_for) {
            // No holder of the lock can panic.
            if self.translated.lock().is_ok_and(|mut all| all.insert(page)) {
                self.write(Line::Page(page));
            }
        }
    }

    /// Whether anything at these addresses is measured.
    pub fn cares(&self, addresses: &RangeInclusive<u64>) -> bool {
        let first = self.first(*addresses.start());
        let place = self.places.get(first);
        let counted = self.counted.as_ref();
        place.is_some_and(|place| place.address <= *addresses.end())
            || counted.is_some_and(|counted| {
                counted.start <= *addresses.end() && *addresses.start() < counted.end
            })
    }

    /// The numbers of the places at `address`.
    pub fn places(&self, address: u64) -> impl Iterator<Item = usize> {
        let first = self.first(address);
        let places = self.places.iter().enumerate().skip(first);
        places
            .take_while(move |(_, place)| place.address == address)
            .map(|(number, _)| number)
    }

    /// Whether the instruction at `address` counts.
    pub fn counts(&self, address: u64) -> bool {
        let counted = self.counted.as_ref();
        counted.is_some_and(|counted| counted.contains(&address))
    }

    /// `cpu` is about to execute the instruction at the place with this number.
    pub fn pass(&self, cpu: usize, place: usize) {
        match self.places.get(place).map(|place| place.mark) {
            Some(Mark::Begin(stretch)) => {
                let begun = self.stretches.get(stretch).and_then(|s| s.begun.get(cpu));
                if let Some(begun) = begun {
                    begun.store(self.now(cpu), Ordering::Relaxed);
                }
            }
            Some(Mark::End(stretch)) => self.end(cpu, stretch, self.now(cpu)),
            None => {}
        }
    }

    /// `cpu` is about to execute an instruction that counts.
    pub fn count(&self, cpu: usize) {
        if let Some(count) = self.counts.get(cpu) {
            let more = count.load(Ordering::Relaxed) + 1;
            count.store(more, Ordering::Relaxed);
        }
    }

    fn end(&self, cpu: usize, stretch: usize, now: u64) {
        let Some(progress) = self.stretches.get(stretch) else {
            return;
        };
        let Some(begun) = progress.begun.get(cpu) else {
            return;
        };
        let since = begun.swap(NEVER, Ordering::Relaxed);
        if since == NEVER || progress.written.fetch_add(1, Ordering::Relaxed) >= MOST {
            return;
        }
        let length = now.saturating_sub(since);
        self.write(Line::Passage { stretch, length });
    }

    fn write(&self, line: Line) {
        let line = format!("{line}\n");
        // In a single write, because other CPUs write too. A failure costs the reader
        // one line; it cannot be reported here.
        let _ = (&self.output).write_all(line.as_bytes());
    }

    /// The current time for `cpu`.
    fn now(&self, cpu: usize) -> u64 {
        if self.counted.is_none() {
            return (self.ticks)();
        }
        let count = self.counts.get(cpu);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How many places there are before `address`.
    fn first(&self, address: u64) -> usize {
        self.places.partition_point(|place| place.address < address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Stretch;
    use std::path::Path;

    /// Two stretches; the second contains the first's begin.
    const BEGIN: u64 = 0x20;
    const ENDS: [u64; 2] = [0x30, 0x40];
    const OUTER: Range<u64> = 0x10..0x20;

    /// The requested pages.
    const PAGES: Range<u64> = 0x1000..0x4000;

    fn stopwatch(output: &Path, counted: Option<Range<u64>>) -> Stopwatch {
        static NOW: AtomicU64 = AtomicU64::new(0);
        let request = Request {
            output: output.to_owned(),
            stretches: vec![
                Stretch {
                    begin: BEGIN,
                    ends: ENDS.to_vec(),
                },
                Stretch {
                    begin: OUTER.start,
                    ends: vec![OUTER.end],
                },
            ],
            counted,
            pages: Some(PAGES),
        };
        // Time increases with each call, even if tests run in parallel.
        let ticks = || NOW.fetch_add(10, Ordering::Relaxed);
        Stopwatch::new(&request, 2, ticks).expect("the directory can be written")
    }

    /// The output after `walk`, which makes the CPUs execute instructions.
    fn passages(
        counted: Option<Range<u64>>,
        walk: impl Fn(&dyn Fn(usize, u64)),
    ) -> Vec<(usize, u64)> {
        let directory = tempfile::tempdir().expect("there is a place for temporary files");
        let output = directory.path().join("passages");
        let stopwatch = stopwatch(&output, counted);
        walk(&|cpu, address| {
            for place in stopwatch.places(address) {
                stopwatch.pass(cpu, place);
            }
            if stopwatch.counts(address) {
                stopwatch.count(cpu);
            }
        });
        let passages = lines(&output).into_iter().map(|line| match line {
            Line::Passage { stretch, length } => (stretch, length),
            Line::Page(page) => panic!("nothing was translated, but {page:x} was"),
        });
        passages.collect()
    }

    fn lines(output: &Path) -> Vec<Line> {
        let text = std::fs::read_to_string(output).expect("it was created");
        let lines = text.lines().map(|line| line.parse());
        lines.map(|line| line.expect("it was written")).collect()
    }

    #[test]
    fn a_stretch_ends_at_the_first_end_that_its_cpu_reaches() {
        let walked = passages(Some(0..100), |step| {
            step(0, BEGIN);
            step(0, 0x21);
            step(0, ENDS[1]);
            // The stretch has already ended.
            step(0, ENDS[0]);
            step(1, ENDS[0]);
        });
        assert_eq!(walked, [(0, 2)]);
    }

    #[test]
    fn cpus_are_measured_independently() {
        let walked = passages(Some(0..100), |step| {
            step(0, BEGIN);
            step(1, BEGIN);
            step(1, 0x21);
            step(0, ENDS[0]);
            step(1, ENDS[0]);
        });
        assert_eq!(walked, [(0, 1), (0, 2)]);
    }

    #[test]
    fn passing_the_begin_again_restarts_the_stretch() {
        let walked = passages(Some(0..100), |step| {
            step(0, BEGIN);
            step(0, 0x21);
            step(0, BEGIN);
            step(0, ENDS[0]);
        });
        assert_eq!(walked, [(0, 1)]);
    }

    #[test]
    fn a_place_can_end_one_stretch_and_begin_another() {
        let walked = passages(Some(0..100), |step| {
            step(0, OUTER.start);
            step(0, BEGIN);
            step(0, 0x21);
            step(0, ENDS[0]);
        });
        assert_eq!(walked, [(1, 1), (0, 2)]);
    }

    #[test]
    fn only_requested_instructions_count() {
        let walked = passages(Some(0x20..0x22), |step| {
            for address in [BEGIN, 0x21, 0x22, 0x1f, ENDS[0]] {
                step(0, address);
            }
        });
        assert_eq!(walked, [(0, 2)]);
    }

    #[test]
    fn without_anything_to_count_ticks_count() {
        let walked = passages(None, |step| {
            step(0, BEGIN);
            step(0, ENDS[0]);
        });
        let &[(0, length)] = walked.as_slice() else {
            panic!("one passage: {walked:?}");
        };
        assert!(length >= 10, "{length}");
    }

    #[test]
    fn output_is_bounded_for_each_stretch() {
        let walked = passages(Some(0..100), |step| {
            for _ in 0..=MOST {
                step(0, BEGIN);
                step(0, ENDS[0]);
            }
            step(0, OUTER.start);
            step(0, OUTER.end);
        });
        assert_eq!(walked.len(), MOST + 1);
        assert_eq!(walked.last(), Some(&(1, 1)));
    }

    #[test]
    fn an_unknown_cpu_is_ignored() {
        let walked = passages(Some(0..100), |step| {
            step(2, BEGIN);
            step(2, ENDS[0]);
        });
        assert_eq!(walked, []);
    }

    #[test]
    fn a_requested_page_is_reported_once() {
        let directory = tempfile::tempdir().expect("there is a place for temporary files");
        let output = directory.path().join("passages");
        let stopwatch = stopwatch(&output, None);
        // None of them, two of them, the same, the last, the first after them.
        for addresses in [
            0xff0..=0xfff,
            0x1fff..=0x2000,
            0x2000..=0x2fff,
            0x3fff..=0x4000,
            0x4000..=u64::MAX,
        ] {
            stopwatch.translate(&addresses);
        }
        let pages = [0x1000, 0x2000, 0x3000].map(Line::Page);
        assert_eq!(lines(&output), pages);
    }

    #[test]
    fn only_measured_addresses_are_instrumented() {
        let directory = tempfile::tempdir().expect("there is a place for temporary files");
        let output = directory.path().join("passages");
        let timing = stopwatch(&output, None);
        for of_interest in [0..=0x10, 0x10..=0x10, 0x3f..=0x50] {
            assert!(timing.cares(&of_interest), "{of_interest:?}");
        }
        for other in [0..=0xf, 0x11..=0x1f, 0x41..=u64::MAX] {
            assert!(!timing.cares(&other), "{other:?}");
        }
        let counting = stopwatch(&output, Some(0x50..0x60));
        assert!(counting.cares(&(0x5f..=0x60)));
        assert!(counting.cares(&(0x41..=0x50)));
        assert!(!counting.cares(&(0x60..=0x61)));
        assert!(!counting.cares(&(0x41..=0x4f)));
    }
}
