// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of the host, for node_exporter's textfile collector.

use crate::history::{Action, Outcome};
use crate::{BuildId, Condition, History, Report};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The text of the `.prom` file.
#[must_use]
pub fn metrics(report: &Report, history: &History, version: &str) -> String {
    let mut text = Text(String::new());
    text.gauge("state", "Whether the host is in this state.");
    for condition in Condition::ALL {
        let is = u32::from(condition == report.condition);
        text.value("state", &[("state", condition.word())], is);
    }
    text.gauge("level", "Level of what is applied, 0 without a payload.");
    text.value("level", &[], report.level);
    if let Some(wanted) = report.wanted {
        text.gauge("level_wanted", "Level that the policy wants.");
        text.value("level_wanted", &[], wanted);
    }
    text.gauge("hypervisor_info", "The running hypervisor.");
    let base = report.base.as_ref().map_or("", BuildId::as_str);
    text.value(
        "hypervisor_info",
        &[("build_id", base), ("version", version)],
        1,
    );
    text.gauge("payload_info", "A payload that the hypervisor holds.");
    for payload in &report.payloads {
        let id = payload.known.build_id.as_ref().map_or("", BuildId::as_str);
        let labels = [
            ("name", &*payload.name),
            ("build_id", id),
            ("state", payload.state),
        ];
        text.value("payload_info", &labels, 1);
    }
    text.gauge("quarantined", "Payloads in quarantine.");
    text.value("quarantined", &[], report.quarantine.len());
    text.gauge("damaged_files", "Files of the store that are not used.");
    text.value("damaged_files", &[], report.damaged.len());
    text.gauge(
        "history_broken",
        "Lines of the history that do not belong to its chain.",
    );
    text.value("history_broken", &[], history.changed().count());
    actions(&mut text, history);
    text.0
}

fn actions(text: &mut Text, history: &History) {
    let mut counts = BTreeMap::new();
    let ended = history.lines.iter().map(|line| &line.event);
    for event in ended.filter(|event| event.outcome != Outcome::Begun) {
        *counts.entry((event.action, event.outcome)).or_insert(0_u64) += 1;
    }
    text.head("actions_total", "Actions that have ended.", "counter");
    for ((action, outcome), count) in counts {
        let labels = [("action", action.word()), ("result", outcome.word())];
        text.value("actions_total", &labels, count);
    }
    let mut syncs = history.lines.iter().rev();
    let last = syncs
        .find(|line| line.event.action == Action::Sync && line.event.outcome != Outcome::Begun);
    if let Some(line) = last {
        text.gauge(
            "last_sync_timestamp_seconds",
            "When the last sync that changed something ended.",
        );
        text.value(
            "last_sync_timestamp_seconds",
            &[],
            line.date.since_epoch().as_secs(),
        );
        text.gauge("last_sync_success", "Whether that succeeded.");
        let success = line.event.outcome == Outcome::Done;
        text.value("last_sync_success", &[], u32::from(success));
    }
}

struct Text(String);

impl Text {
    fn gauge(&mut self, name: &str, help: &str) {
        self.head(name, help, "gauge");
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(
            self.0,
            "# HELP xsplice_{name} {help}\n# TYPE xsplice_{name} {kind}"
        );
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", quoted(value)))
            .collect();
        let labels = match labels.as_slice() {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "xsplice_{name}{labels} {value}");
    }
}

/// A label's value, as the format quotes it.
fn quoted(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
