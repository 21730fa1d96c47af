// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sequences of uploads and actions, compared with a model of Xen's state table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xsplice_engine::Action;
use xsplice_test_host::model::{self, FUNCTIONS, IDS, Kind, NAMES, Step};

/// A step from four bytes: the action, the payload, and two for the rest.
fn step(bytes: &[u8; 4]) -> Step {
    let [what, name, a, b] = *bytes;
    let name = usize::from(name) % NAMES.len();
    let action = match what % 8 {
        0..3 => {
            let own = a % IDS;
            let other = |byte: u8| (byte % (IDS + 1)).checked_sub(1);
            return Step::Upload(
                name,
                Kind {
                    own,
                    depends: other(a / IDS),
                    uses: other(b).filter(|uses| *uses != own),
                    data: b & 0x40 != 0,
                    function: u64::from(b >> 4) % FUNCTIONS,
                },
            );
        }
        3 | 4 => Action::Apply,
        5 => Action::Revert,
        6 => Action::Replace,
        _ => Action::Unload,
    };
    Step::Act {
        name,
        action,
        nodeps: a & 1 != 0,
        late: b < 16,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (steps, _) = bytes.as_chunks();
    let steps: Vec<_> = steps.iter().take(100).map(step).collect();
    model::check(&steps);
});
