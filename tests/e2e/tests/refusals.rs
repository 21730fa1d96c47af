// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors of the admin tool and the lab.

use std::time::Duration;
use xsplice_e2e::{base, config};
use xsplice_lab::Host;

/// All on one host: a boot takes longer than the three tests.
#[test]
fn refusals_and_time_limits() -> anyhow::Result<()> {
    let base = base()?;
    let mut config = config(&base)?;
    for program in ["setpriv", "sleep"] {
        let place = format!("bin/{program}");
        config
            .programs
            .push((place, format!("/usr/bin/{program}").into()));
    }
    let xen_syms = "usr/lib/debug/boot/xen-syms".to_owned();
    config.files.push((xen_syms, base.xen_syms.clone()));
    let mut host = Host::boot(&config)?;
    non_root_is_refused(&mut host)?;
    crashing_payload_is_refused(&mut host)?;
    unchecked_payload_is_named(&mut host)?;
    hung_command_is_killed(&mut host)?;
    host.shut_down()?;
    Ok(())
}

fn non_root_is_refused(host: &mut Host) -> anyhow::Result<()> {
    let nobody = ["/bin/setpriv", "--reuid=65534", "--clear-groups"];
    for command in [&["list"][..], &["info"], &["unload", "x"]] {
        let argv = [&nobody[..], &["/bin/xsplice"], command].concat();
        let output = host.run(&argv)?;
        assert_eq!(output.code, Some(1), "{output:?}");
        assert_eq!(output.stdout, "", "{output:?}");
        let words = "only root in dom0 may patch the hypervisor";
        assert!(output.stderr.contains(words), "{output:?}");
    }
    Ok(())
}

/// The hypervisor would accept this payload, and crash on its apply.
fn crashing_payload_is_refused(host: &mut Host) -> anyhow::Result<()> {
    let nop = ["/bin/xsplice", "upload", "nop", "/lab/xen_nop.livepatch"];
    let output = host.run(&nop)?;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("instruction"), "{output:?}");
    let anyway = [&nop[..], &["--no-check"]].concat();
    assert_eq!(host.run(&anyway)?.code, Some(0));
    assert_eq!(host.run(&["/bin/xsplice", "unload", "nop"])?.code, Some(0));
    Ok(())
}

/// A payload on top of another is not checked, although the image is there: only the
/// hypervisor has the symbols of the other.
fn unchecked_payload_is_named(host: &mut Host) -> anyhow::Result<()> {
    let warning = "warning: bye: not checked before the upload, because it depends on the payload";
    let bye = [
        "/bin/xsplice",
        "upload",
        "bye",
        "/lab/xen_bye_world.livepatch",
    ];
    let output = host.run(&bye)?;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stderr.starts_with(warning), "{output:?}");
    let way = "with `--xen-syms /usr/lib/debug/boot/xen-syms`, and `--on FILE`";
    assert!(output.stderr.contains(way), "{output:?}");
    assert_eq!(host.run(&["/bin/xsplice", "unload", "bye"])?.code, Some(0));
    let silent = [&bye[..], &["--no-check"]].concat();
    assert_eq!(host.run(&silent)?.stderr, "");
    assert_eq!(host.run(&["/bin/xsplice", "unload", "bye"])?.code, Some(0));
    Ok(())
}

fn hung_command_is_killed(host: &mut Host) -> anyhow::Result<()> {
    let killed = host.run_within(&["/bin/sleep", "600"], Duration::from_secs(2));
    let words = killed.expect_err("it hangs").to_string();
    assert_eq!(
        words,
        "dom0: /bin/sleep 600: killed, because it took longer than 2 s"
    );
    assert_eq!(host.run(&["/bin/xsplice", "list"])?.code, Some(0));
    Ok(())
}
