// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor's error numbers mean.

use super::commands::Limits;
use super::verb;
use crate::code::Code;
use xsplice_dom0::{Action, Errno};

/// Why nothing can be asked of the hypervisor.
pub(super) fn explain_interface(errno: Errno) -> anyhow::Error {
    let (code, message) = match errno {
        Errno::ENOSYS | Errno::EOPNOTSUPP => (
            Code::LivePatchingMissing,
            "this hypervisor was built without live patching (CONFIG_LIVEPATCH)",
        ),
        Errno::EACCES => (
            Code::InterfaceUnknown,
            "the hypervisor refused every version of the sysctl interface that xsplice supports \
             (0x12 to 0x16, Xen 4.13 to 4.22): it is a different version of Xen, or its security \
             policy (XSM) does not allow this domain to patch it (`xl dmesg` then shows `avc: denied`)",
        ),
        Errno::EPERM => (
            Code::NotPermitted,
            "this domain may not patch the hypervisor: only the control domain may",
        ),
        _ => (Code::HypervisorRefused, "the hypervisor refused"),
    };
    anyhow::Error::new(errno).context(code.says(message))
}

/// How a message about a refusal ends: `said` is what the hypervisor printed, which
/// is shown with it.
fn reason(said: &[String]) -> &'static str {
    match said {
        [] => ", and printed no reason",
        _ => "",
    }
}

/// Why an upload failed, where no payload has this name already.
pub(super) fn explain_upload(errno: Errno, name: &str, said: &[String]) -> anyhow::Error {
    let reason = reason(said);
    let (code, message) = match errno {
        // Xen prints the symbol that is there twice, but not the build-id.
        Errno::EEXIST if said.is_empty() => (
            Code::AlreadyLoaded,
            format!("{name}: a payload with its build-id is already loaded, under another name"),
        ),
        Errno::ENOENT => (
            Code::SymbolMissing,
            format!(
                "{name}: it refers to a symbol that neither the hypervisor nor a loaded payload \
                 defines"
            ),
        ),
        Errno::EEXIST | Errno::EINVAL | Errno::EOPNOTSUPP => (
            Code::HypervisorRefused,
            format!("{name}: the hypervisor refused it{reason}"),
        ),
        Errno::EPERM => (
            Code::HypervisorRefused,
            format!(
                "{name}: the hypervisor refused it, most likely for its signature; its console \
                 says why (`xl dmesg`)"
            ),
        ),
        _ => (
            Code::HypervisorRefused,
            format!("{name}: the upload failed"),
        ),
    };
    anyhow::Error::new(errno).context(code.says(message))
}

/// Why an action failed.
pub(super) fn explain_action(
    errno: Errno,
    name: &str,
    action: Action,
    (tries, limits): (u32, Limits),
    said: &[String],
) -> anyhow::Error {
    let verb = verb(action);
    let (code, message) = match errno {
        Errno::EBUSY | Errno::EAGAIN => (
            Code::TimedOut,
            format!(
                "{name}: {verb} timed out: the CPUs did not reach the rendezvous within {} ms in \
                 {} tries; try again, or raise --timeout",
                limits.timeout,
                tries + 1
            ),
        ),
        Errno::EINVAL | Errno::EOPNOTSUPP => {
            let reason = reason(said);
            let message = format!("{name}: the hypervisor refused to {verb} it{reason}");
            (Code::HypervisorRefused, message)
        }
        _ => (Code::HypervisorRefused, format!("{name}: {verb} failed")),
    };
    anyhow::Error::new(errno).context(code.says(message))
}
