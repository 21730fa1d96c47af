// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor's error numbers mean.

use super::commands::Limits;
use super::verb;
use xsplice_dom0::{Action, Errno};

pub(super) fn explain_interface(errno: Errno) -> anyhow::Error {
    let message = match errno {
        Errno::ENOSYS | Errno::EOPNOTSUPP => {
            "this hypervisor was built without live patching (CONFIG_LIVEPATCH)"
        }
        Errno::EACCES => {
            "the hypervisor refused every version of the sysctl interface that xsplice supports \
             (0x12 to 0x16, Xen 4.13 to 4.22): it is a different version of Xen, or its security \
             policy (XSM) does not allow this domain to patch it (`xl dmesg` then shows `avc: denied`)"
        }
        Errno::EPERM => "this domain may not patch the hypervisor: only the control domain may",
        _ => "the hypervisor refused",
    };
    anyhow::Error::new(errno).context(message)
}

pub(super) fn explain_upload(errno: Errno, name: &str) -> anyhow::Error {
    let message = match errno {
        Errno::EEXIST => format!(
            "{name}: a payload of this name, or with this build-id or one of its symbols, is \
             already loaded"
        ),
        Errno::ENOENT => format!(
            "{name}: it refers to a symbol that neither the hypervisor nor a loaded payload defines"
        ),
        Errno::EINVAL | Errno::EOPNOTSUPP => {
            format!("{name}: the hypervisor refused it; its console says why (`xl dmesg`)")
        }
        Errno::EPERM => format!(
            "{name}: the hypervisor refused it, most likely for its signature; its console says \
             why (`xl dmesg`)"
        ),
        _ => format!("{name}: the upload failed"),
    };
    anyhow::Error::new(errno).context(message)
}

pub(super) fn explain_action(
    errno: Errno,
    name: &str,
    action: Action,
    tries: u32,
    limits: Limits,
) -> anyhow::Error {
    let verb = verb(action);
    let message = match errno {
        Errno::EBUSY | Errno::EAGAIN => format!(
            "{name}: {verb} timed out: the CPUs did not reach the rendezvous within {} ms in {} \
             tries; try again, or raise --timeout",
            limits.timeout,
            tries + 1
        ),
        Errno::EINVAL => format!(
            "{name}: the hypervisor refused to {verb} it: it depends on another payload, is not \
             the topmost, or was reverted and has variables (then unload and load it again)"
        ),
        _ => format!("{name}: {verb} failed"),
    };
    anyhow::Error::new(errno).context(message)
}
