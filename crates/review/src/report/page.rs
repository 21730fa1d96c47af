// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page's HTML. `maud` escapes markup; line breaks in text from files are escaped
//! here, other deceptive characters in the whole page.

use super::{Caller, Opinion, Review, Reviewed, SourcePatch, recorded};
use crate::compare::{Code, Line, Listing};
use crate::payload::Payload;
use crate::record::{Hunk, Options, Record};
use crate::uses::How;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use xsplice_abi::text::escaped;
use xsplice_host_image::Severity;

const STYLE: &str = include_str!("page.css");
/// Unchanged lines shown around a difference.
const CONTEXT: usize = 3;

pub(super) fn page(review: &Review) -> Markup {
    let payload = &review.payload;
    let content = html! {
        (summary(review))
        (checks(review))
        (opinion(review.opinion))
        (record(payload))
        (patches(review.patches, payload))
        @if !review.functions.is_empty() {
            h2 { "Functions" }
            @for (index, function) in review.functions.iter().enumerate() {
                (reviewed(index, function, payload.record.as_ref()))
            }
        }
        (hooks(payload))
        (data(payload))
        (tables(payload))
        (symbols(payload))
        (sections(payload))
    };
    framed(
        &format!("Live patch {}", review.name),
        &content,
        Some(&html! { footer { (decision()) } }),
    )
}

/// A complete page.
pub(super) fn framed(title: &str, content: &Markup, footer: Option<&Markup>) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { h1 { (title) } }
                main { (content) }
                @if let Some(footer) = footer { (footer) }
            }
        }
    }
}

fn summary(review: &Review) -> Markup {
    let payload = &review.payload;
    let id = |id: &Option<String>| id.clone().unwrap_or_else(|| "none".to_owned());
    let ours = payload.depends.is_some() && payload.depends == payload.xen_depends;
    html! {
        dl {
            dt { "Build-id" } dd { code { (id(&payload.build_id)) } }
            dt { "For hypervisor" } dd { code { (id(&payload.xen_depends)) } }
            dt { "Depends on" }
            dd {
                @if ours { "the hypervisor itself" } @else { code { (id(&payload.depends)) } }
            }
            dt { "SHA-256" } dd { code { (review.sha256) } }
            @if let Some(signature) = review.signature {
                dt { "Signature" } dd { (escaped(signature)) }
            }
            @for entry in &payload.metadata {
                @let (key, value) = entry.split_once('=').unwrap_or(("metadata", entry));
                dt { (escaped(key)) } dd { (escaped(value)) }
            }
        }
        @if !review.functions.is_empty() {
            (wide("Functions", html! { table {
                thead { tr {
                    th { "Function" } th.number { "Old bytes" } th.number { "New bytes" }
                    th { "Differences" }
                } }
                tbody {
                    @for (index, function) in review.functions.iter().enumerate() {
                        @let listing = &function.listing;
                        tr {
                            td { a href=(format!("#f{index}")) { (escaped(&listing.function.name)) } }
                            td.number { (listing.function.old_size) }
                            td.number { (listing.function.new_size) }
                            td { (differences(listing)) }
                        }
                    }
                }
            } }))
        }
    }
}

/// Content that may be wider than the screen: it scrolls, with the keyboard too.
fn wide(label: &str, content: Markup) -> Markup {
    html! { div.wide role="region" aria-label=(label) tabindex="0" { (content) } }
}

/// A yes or no mark; `words` explain it.
fn mark(passed: bool, words: &str) -> Markup {
    let (class, word) = if passed {
        ("good", "yes")
    } else {
        ("bad", "no")
    };
    html! { li { span.badge.(class) { (word) } " " (words) } }
}

fn checks(review: &Review) -> Markup {
    let verdict = review.verdict;
    html! {
        h2 { "Checks" }
        p {
            "The result of loading and applying the payload with the engine, on the hypervisor's image. "
            "It does not run hooks."
        }
        ul.plain {
            (mark(verdict.loads, if verdict.loads {
                "It would load: format, dependencies, symbols, relocations and tables are in order."
            } else { "It would not load." }))
            (mark(verdict.applies, if verdict.applies {
                "It would apply: the code that it patches is as expected."
            } else { "It would not apply." }))
            @for problem in &verdict.problems {
                @let class = match problem.severity {
                    Severity::Warning => "warning",
                    Severity::NotApplied | Severity::NotLoaded => "bad",
                };
                li { span.badge.(class) { (problem.errno) } " " (escaped(&problem.message)) }
            }
            @if verdict.more_problems > 0 { li { "and " (verdict.more_problems) " more" } }
        }
    }
}

/// What `xsplice verify` found, if it was asked.
fn opinion(opinion: Option<&Opinion>) -> Markup {
    let list = |title: &str, items: &[String]| {
        html! {
            @if !items.is_empty() {
                p { (title) }
                ul { @for item in items { li { (escaped(item)) } } }
            }
        }
    };
    html! {
        h2 { "Second opinion" }
        @match opinion {
            None => p {
                "Not requested. " code { "xsplice report -s TREE" } " builds the patched \
                 hypervisor as a whole, and proves that the running one with the payload is \
                 the same."
            },
            Some(opinion) => {
                ul.plain { (mark(opinion.proved, &opinion.summary)) }
                p { "Found by " code { "xsplice verify" } " when this page was made." }
                (list("Different:", &opinion.differences))
                (list("Different on request:", &opinion.left_out))
                (list("Notes:", &opinion.notes))
            }
        }
    }
}

/// The build record: options, the effect of each hunk, warnings and notes.
fn record(payload: &Payload) -> Markup {
    let Some(record) = &payload.record else {
        return html! {
            h2 { "How it was built" }
            p { "The payload has no build record: it was made by another generator." }
        };
    };
    html! {
        h2 { "How it was built" }
        @if let Some(reservation) = record.reservation() { p { (reservation) } }
        (given(&record.options))
        (listed("Changed in place, by generated hooks", &record.patched_data, |data| html! {
            @if data.variable { "variable " } @else { "constant " }
            code { (escaped(&data.name)) } " of " (escaped(&data.file))
            (format!(": {} of {} bytes at {:#x}", data.written, data.size, data.address))
        }))
        (listed("New per-CPU variables", &record.per_cpu, |variable| html! {
            code { (escaped(&variable.name)) } " of " (escaped(&variable.file))
            (format!(": {} bytes at {:#x}", variable.size, variable.address))
        }))
        (listed("Left out", &record.left_out, |change| html! {
            code { (escaped(&change.name)) } " of " (escaped(&change.file)) ": "
            (escaped(&change.why))
        }))
        @if !record.warnings.is_empty() {
            h3 { "Warnings" }
            ul.plain {
                @for warning in &record.warnings {
                    li { span.badge.warning { "warning" } " " (escaped(warning)) }
                }
            }
        }
        (listed("Notes", &record.notes, |note| html! { (escaped(note)) }))
        @if !record.hunks.is_empty() {
            h3 { "Hunks of the source patches" }
            (wide("Hunks of the source patches", hunks(&record.hunks)))
        }
    }
}

/// The options that the payload was built with and that a reviewer has to judge.
fn given(options: &Options) -> Markup {
    let flag = |given: bool, words: &str| (if given { words } else { "" }).to_owned();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let given = [
        ("Refusals overridden (--allow)", options.allow.join(", ")),
        ("Left out (--leave-out)", options.leave_out.join(", ")),
        ("Hooks (--hooks)", options.hooks.join(", ")),
        ("Boot-only code", flag(options.leave_out_init, "left out")),
        ("Symbols", flag(options.prelink, "as addresses")),
        ("Required configuration (--config)", text(&options.config)),
        (
            "Required hypervisor (--xen-depends)",
            text(&options.xen_depends),
        ),
        ("Explicit dependency (--depends)", text(&options.depends)),
    ];
    html! {
        @if given.iter().all(|(_, value)| value.is_empty()) {
            p { "No refusal was overridden, and nothing was left out." }
        } @else {
            dl {
                @for (key, value) in given.iter().filter(|(_, value)| !value.is_empty()) {
                    dt { (key) } dd { (escaped(value)) }
                }
            }
        }
    }
}

/// A list under a heading; nothing if it is empty.
fn listed<T>(title: &str, items: &[T], item: impl Fn(&T) -> Markup) -> Markup {
    html! {
        @if !items.is_empty() {
            h3 { (title) }
            ul { @for entry in items { li { (item(entry)) } } }
        }
    }
}

fn hunks(hunks: &[Hunk]) -> Markup {
    html! { table {
        thead { tr { th { "Hunk" } th { "Effect" } th { "Changes" } } }
        tbody {
            @for hunk in hunks {
                tr {
                    td { (escaped(&hunk.file)) ":" (hunk.line) }
                    td { (escaped(hunk.effect_in_words())) }
                    td { (escaped(&hunk.names.join(", "))) }
                }
            }
        }
    } }
}

/// Space for the reviewer's decision, on paper.
fn decision() -> Markup {
    html! {
        h2 { "Decision" }
        dl.decision {
            dt { "Reviewed by" } dd {}
            dt { "Date" } dd {}
            dt { "Decision" } dd { "\u{2610} sign off   \u{2610} reject" }
            dt { "Remarks" } dd {}
        }
    }
}

fn patches(patches: &[SourcePatch], payload: &Payload) -> Markup {
    let given = |hash: &str| patches.iter().any(|patch| patch.sha256 == hash);
    let missing: Vec<_> = recorded(payload).filter(|(_, hash)| !given(hash)).collect();
    html! {
        @if !patches.is_empty() || !missing.is_empty() { h2 { "Source patches" } }
        @for patch in patches {
            h3 { (escaped(&patch.name)) }
            p {
                @match patch.recorded {
                    Some(true) => { span.badge.good { "verified" }
                        " The payload records this file's SHA-256." },
                    Some(false) => { span.badge.bad { "another file" }
                        " The payload records other source patches." },
                    None => { span.badge.warning { "not verified" }
                        " The payload does not record its source patches." },
                }
                br; code { (patch.sha256) }
            }
            pre.wide role="region" aria-label=(patch.name) tabindex="0" {
                @for line in patch.text.lines() {
                    span.(line_class(line)) { (line) "\n" }
                }
            }
        }
        @for (name, hash) in missing {
            p { span.badge.warning { "not shown" } " " (escaped(name)) " " code { (escaped(hash)) } }
        }
    }
}

fn line_class(line: &str) -> &'static str {
    match line.as_bytes() {
        [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] | [b'd', b'i', b'f', b'f', ..] => "file",
        [b'@', b'@', ..] => "hunk",
        [b'+', ..] => "added",
        [b'-', ..] => "removed",
        _ => "context",
    }
}

/// A summary of the differences.
fn differences(listing: &Listing) -> String {
    let Some(first) = listing.lines.iter().find(|line| !line.same) else {
        return "no instruction, only their targets or the tables about them".to_owned();
    };
    let count = |wanted: &dyn Fn(&Line) -> bool| {
        let differing = listing.lines.iter().filter(|line| !line.same);
        differing.filter(|line| wanted(line)).count()
    };
    let changed = count(&|line| line.old.is_some() && line.new.is_some());
    let removed = count(&|line| line.new.is_none());
    let added = count(&|line| line.old.is_none());
    let offset = first.old.as_ref().or(first.new.as_ref());
    format!(
        "first at +{:#x}; instructions: {changed} changed, {added} added, {removed} removed",
        offset.map_or(0, |code| code.offset)
    )
}

fn reviewed(index: usize, reviewed: &Reviewed, record: Option<&Record>) -> Markup {
    let listing = &reviewed.listing;
    let function = &listing.function;
    let hunks: Vec<_> = record
        .into_iter()
        .flat_map(|record| record.hunks_of(&function.name))
        .collect();
    html! {
        section id=(format!("f{index}")) {
            h3 { (escaped(&function.name)) }
            (place(listing))
            @if !hunks.is_empty() {
                h4 { "Hunks in it" }
                ul {
                    @for hunk in hunks { li {
                        (escaped(&hunk.file)) ":" (hunk.line) " of " (escaped(&hunk.patch))
                    } }
                }
            }
            h4 { "Who uses it" }
            (uses(&reviewed.uses))
            h4 { "Old and new code" }
            div.listing { (lines(&listing.lines)) }
        }
    }
}

fn place(listing: &Listing) -> Markup {
    let function = &listing.function;
    html! {
        dl {
            dt { "Old code" }
            dd {
                (function.old_size) " bytes at "
                @if let Some(address) = function.old_address { code { (format!("{address:#x}")) } }
                @else { "an unknown address of this hypervisor" }
            }
            dt { "New code" }
            dd {
                @if let Some(new) = &function.new {
                    (function.new_size) " bytes at "
                    code { (escaped(&new.section)) (format!("+{:#x}", new.offset)) }
                } @else { (function.new_size) " bytes of no-ops" }
            }
            dt { "Expects" }
            dd {
                @match &function.expected {
                    Some(bytes) => code { (bytes) },
                    None => "nothing about the bytes in memory",
                }
            }
            @if let Some(hash) = &function.preimage {
                dt { "Preimage" } dd { code { "sha256:" (hash) } }
            }
            dt { "Differences" } dd { (differences(listing)) }
        }
    }
}

/// Number of callers' callers to name; the others are counted.
const NAMED: usize = 6;

fn uses(uses: &[Caller]) -> Markup {
    html! {
        @if uses.is_empty() {
            p { "No direct call, jump or pointer in the hypervisor refers to it." }
        } @else {
            ul {
                @for caller in uses {
                    @let how = match caller.place.how {
                        How::Call => "calls it",
                        How::Jump => "jumps to it",
                        How::Address => "takes its address",
                        How::Pointer => "holds its address",
                    };
                    li {
                        code { (caller.place.user) (format!("+{:#x}", caller.place.offset)) }
                        " " (how)
                        @if !caller.callers.is_empty() {
                            @let names: Vec<&str> =
                                caller.callers.iter().take(NAMED).map(String::as_str).collect();
                            span.path {
                                ", and is used by " (names.join(", "))
                                @if caller.callers.len() > NAMED {
                                    " and " (caller.callers.len() - NAMED) " more"
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The lines, folded where they are far from any difference.
fn lines(lines: &[Line]) -> Markup {
    let differs = |at: usize| lines.get(at).is_some_and(|line| !line.same);
    let near: Vec<bool> = (0..lines.len())
        .map(|at| (at.saturating_sub(CONTEXT)..=at + CONTEXT).any(differs))
        .collect();
    let mut start = 0;
    html! {
        @for run in near.chunk_by(|a, b| a == b) {
            @let shown = &lines[start..start + run.len()];
            @if run[0] || shown.len() <= CONTEXT {
                @for one in shown { (line(one)) }
            } @else {
                details {
                    summary { (shown.len()) " instructions without a difference" }
                    @for one in shown { (line(one)) }
                }
            }
            ({ start += run.len(); "" })
        }
    }
}

/// One line; the mark before each side has the same meaning as the colour.
fn line(line: &Line) -> Markup {
    let (class, marks) = match (&line.old, &line.new) {
        _ if line.same => ("same", [" ", " "]),
        (Some(_), Some(_)) => ("changed", ["\u{2212}", "+"]),
        (Some(_), None) => ("removed", ["\u{2212}", " "]),
        _ => ("added", [" ", "+"]),
    };
    let side = |code: &Option<Code>, mark: &str| {
        html! {
            @if let Some(code) = code {
                span.mark { (mark) }
                span.offset { (format!("{:x}", code.offset)) } span { (escaped(&code.text)) }
            }
        }
    };
    html! {
        div.line.(class) {
            div.old { (side(&line.old, marks[0])) } div.new { (side(&line.new, marks[1])) }
        }
    }
}

fn hooks(payload: &Payload) -> Markup {
    html! {
        @if !payload.hooks.is_empty() {
            h2 { "Hooks" }
            p { "Functions of the payload that the hypervisor calls." }
            dl {
                @for hook in &payload.hooks {
                    dt { (hook.stage) } dd { code { (escaped(&hook.functions.join(", "))) } }
                }
            }
        }
    }
}

fn data(payload: &Payload) -> Markup {
    html! {
        @if !payload.carried.is_empty() {
            h2 { "New in the payload" }
            (wide("New in the payload", html! { table {
                thead { tr {
                    th { "Name" } th { "Kind" } th.number { "Bytes" } th { "Section" }
                } }
                tbody {
                    @for symbol in &payload.carried {
                        tr {
                            td { (escaped(&symbol.name)) }
                            td { @if symbol.function { "function" } @else { "data" } }
                            td.number { (symbol.size) }
                            td { code { (escaped(&symbol.section)) } }
                        }
                    }
                }
            } }))
        }
    }
}

fn tables(payload: &Payload) -> Markup {
    html! {
        @if !payload.tables.is_empty() { h2 { "Tables about the code" } }
        @for table in &payload.tables {
            h3 { code { (escaped(&table.name)) } }
            ul {
                @for entry in &table.entries {
                    li { code { (escaped(&entry.place)) } ": " (escaped(&entry.meaning)) }
                }
            }
        }
    }
}

fn symbols(payload: &Payload) -> Markup {
    html! {
        @if !payload.needed.is_empty() || !payload.absolute.is_empty() {
            h2 { "Refers to in the hypervisor" }
            ul.columns {
                @for name in &payload.needed { li { code { (escaped(name)) } } }
                @for symbol in &payload.absolute {
                    li { code { (escaped(&symbol.name)) } " at " code { (format!("{:#x}", symbol.address)) } }
                }
            }
        }
    }
}

fn sections(payload: &Payload) -> Markup {
    html! {
        h2 { "Sections" }
        (wide("Sections", html! { table {
            thead { tr {
                th { "Section" } th { "Flags" } th.number { "Bytes" } th.number { "Relocations" }
            } }
            tbody {
                @for section in &payload.sections {
                    tr {
                        td { code { (escaped(&section.name)) } }
                        td { (section.flags) }
                        td.number { (section.size) }
                        td.number { (section.relocations.len()) }
                    }
                }
            }
        } }))
    }
}
