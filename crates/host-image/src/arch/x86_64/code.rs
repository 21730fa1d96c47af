// SPDX-License-Identifier: MIT OR Apache-2.0

//! Machine code of the hypervisor, instruction by instruction.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};

/// The instructions of the code at `at`, in order.
pub(super) fn decode(at: u64, code: &[u8]) -> impl Iterator<Item = Instruction> {
    let mut decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
    std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
}

/// The target of a direct call or jump.
pub(super) fn near_target(instruction: &Instruction) -> Option<u64> {
    let near = matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
    );
    Some(instruction.near_branch_target()).filter(|target| near && *target != 0)
}
