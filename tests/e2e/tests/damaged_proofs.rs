// SPDX-License-Identifier: MIT OR Apache-2.0
//! Good payloads, damaged in one place: the second opinion proves one exactly if the
//! damage does not matter to the hypervisor. What matters is decided by
//! [`xsplice_e2e::damage`], which knows nothing of the second opinion.

use anyhow::ensure;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Mutex;
use std::time::Instant;
use xsplice_e2e::corrupted::Good;
use xsplice_e2e::damage::{self, Damage, Kind, Meaning, Symbols, Used};
use xsplice_e2e::mutation::Random;
use xsplice_e2e::{base, exhaustive, repository, seed};
use xsplice_host_image::{Image, check};

/// Source patches, from this repository's top: bug frames, hooks and arrays; fixups of
/// exceptions; alternative calls; data in place; per-CPU variables.
const PATCHES: [&str; 7] = [
    "tests/e2e/patches/second-opinion.patch",
    "tests/e2e/patches/replaced-fixups.patch",
    "tests/e2e/patches/exception-table.patch",
    "tests/e2e/patches/altcall.patch",
    "tests/e2e/data/constants.patch",
    "tests/e2e/data/integer.patch",
    "tests/e2e/data/per-cpu.patch",
];

/// On top of the first.
const TOP: &str = "tests/e2e/stack/on-second-opinion.patch";

/// How many damages of each kind to try, unless all.
const SAMPLE: usize = 12;

struct Attack<'a> {
    good: &'a Good,
    used: Vec<Used<'a>>,
    symbols: Symbols,
    image: Image,
}

impl Attack<'_> {
    /// What is wrong with the opinion on a damaged payload; in words.
    fn wrong(&self, index: usize, damage: &Damage) -> anyhow::Result<Option<String>> {
        let mut payloads = self.good.payloads().to_vec();
        payloads[index] = damage.apply(&payloads[index])?;
        let meaning = Meaning::of(&payloads[index], &self.symbols);
        let same = meaning.is_ok_and(|meaning| self.used[index].is_in(&meaning));
        let opinion = self.good.opinion(&payloads);
        let proved = opinion.as_ref().is_ok_and(|verdict| verdict.proved);
        let what = format!("payload {index}: {:?}: {}", damage.kind, damage.what);
        Ok(match (same, proved) {
            (true, false) if !damage.kind.is_strict() => {
                let why = opinion.map(|verdict| verdict.differences);
                Some(format!(
                    "{what}: it does not matter, and is not proved: {why:?}"
                ))
            }
            (false, true) if self.applies(&payloads, index) => {
                Some(format!("{what}: it is proved"))
            }
            _ => None,
        })
    }

    /// Whether the hypervisor would apply one of them; the first one with the one on top.
    fn applies(&self, payloads: &[Vec<u8>], index: usize) -> bool {
        let top = payloads.len() - 1;
        let stack = match index == 0 || index == top {
            true => vec![0, top],
            false => vec![index],
        };
        let stack = stack.into_iter();
        let named: Vec<_> = stack
            .map(|number| (number.to_string(), &payloads[number]))
            .collect();
        check(&self.image, &named)
            .iter()
            .all(|report| report.applies)
    }
}

/// Some of each kind.
fn sample(all: Vec<(usize, Damage)>) -> anyhow::Result<Vec<(usize, Damage)>> {
    let mut random = Random::new(seed()?);
    let mut kinds: BTreeMap<Kind, Vec<(usize, Damage)>> = BTreeMap::new();
    for (index, damage) in all {
        kinds.entry(damage.kind).or_default().push((index, damage));
    }
    let mut chosen = Vec::new();
    for mut damages in kinds.into_values() {
        for _ in 0..SAMPLE.min(damages.len()) {
            chosen.push(damages.swap_remove(random.below(damages.len())));
        }
    }
    Ok(chosen)
}

#[test]
fn what_matters_is_never_proved() -> anyhow::Result<()> {
    let base = base()?;
    let patches = PATCHES.map(|patch| repository().join(patch));
    let good = Good::stacked(&base, &patches, &repository().join(TOP))?;
    good.proved()?;
    let syms = std::fs::read(&base.xen_syms)?;
    let symbols = Symbols::read(&syms)?;
    let meanings = good.payloads().iter();
    let meanings = meanings.map(|payload| Meaning::of(payload, &symbols));
    let meanings: Result<Vec<Meaning>, String> = meanings.collect();
    let meanings = meanings.map_err(anyhow::Error::msg)?;
    let top = meanings.last();
    let used = meanings.iter().enumerate();
    let used = used.map(|(index, meaning)| Used::new(meaning, top.filter(|_| index == 0)));
    let attack = Attack {
        good: &good,
        used: used.collect(),
        symbols,
        image: Image::parse(&syms)?,
    };
    let mut damages = Vec::new();
    for (index, payload) in good.payloads().iter().enumerate() {
        ensure!(
            attack.applies(good.payloads(), index),
            "{index} is good, and refused"
        );
        damages.extend(
            damage::all(payload)?
                .into_iter()
                .map(|damage| (index, damage)),
        );
    }
    let all = damages.len();
    if !exhaustive() {
        damages = sample(damages)?;
    }
    let tried = damages.len();
    let start = Instant::now();
    let left = Mutex::new(damages);
    let wrong = Mutex::new(Vec::new());
    let work = || -> anyhow::Result<()> {
        while let Some((index, damage)) = { left.lock().unwrap().pop() } {
            wrong.lock().unwrap().extend(attack.wrong(index, &damage)?);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut results = workers.into_iter().map(|worker| worker.join().unwrap());
        results.try_for_each(|result| result)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let line = format!("{tried} of {all} damaged payloads, {seconds:.1} s\n");
    std::io::stderr().write_all(line.as_bytes())?;
    let wrong = wrong.into_inner()?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
