// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random sequences of uploads and actions, compared step by step with a model,
//! and with what must then be in memory.

use proptest::prelude::*;
use xsplice_engine::Action;
use xsplice_test_host::model::{self, FUNCTIONS, IDS, Kind, NAMES, Step};

fn kinds() -> impl Strategy<Value = Kind> {
    let id = 0..IDS;
    (
        id.clone(),
        proptest::option::weighted(0.6, id.clone()),
        proptest::option::weighted(0.3, id),
        proptest::bool::weighted(0.3),
        0..FUNCTIONS,
    )
        .prop_map(|(own, depends, uses, data, function)| Kind {
            own,
            depends,
            uses: uses.filter(|uses| *uses != own),
            data,
            function,
        })
}

fn steps() -> impl Strategy<Value = Step> {
    let action = prop_oneof![
        4 => Just(Action::Apply),
        2 => Just(Action::Revert),
        2 => Just(Action::Replace),
        1 => Just(Action::Unload),
    ];
    let name = 0..NAMES.len();
    let act = (
        name.clone(),
        action,
        any::<bool>(),
        proptest::bool::weighted(0.1),
    );
    prop_oneof![
        1 => (name, kinds()).prop_map(|(name, kind)| Step::Upload(name, kind)),
        2 => act.prop_map(|(name, action, nodeps, late)| Step::Act { name, action, nodeps, late }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_sequence_goes_as_the_model_says(steps in proptest::collection::vec(steps(), 1..60)) {
        model::check(&steps);
    }
}
