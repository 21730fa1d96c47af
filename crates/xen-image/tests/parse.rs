// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading linked programs, and refusing other files.

use std::path::Path;
use std::process::Command;
use xsplice_abi::machine::Machine;
use xsplice_xen_image::{Binding, Error, Image, Kind};

const SOURCE: &str = r#"
static int counter = 3;
__attribute__((weak)) int weak(void) { return counter++; }
static __attribute__((noinline)) int local(int x) { return x * counter; }
int global(int x) { return local(x) + weak(); }
__attribute__((section(".init.text"))) int at_boot(void) { return 1; }
__asm__(".globl alias; .set alias, global");
"#;

const EDGES: [&str; 1] = ["-Wl,--defsym=__init_begin=0x300000,--defsym=__init_end=0x301000"];

fn link(directory: &Path, further: &[&str]) -> Vec<u8> {
    link_by("gcc", directory, further)
}

fn link_by(compiler: &str, directory: &Path, further: &[&str]) -> Vec<u8> {
    let (source, output) = (directory.join("x.c"), directory.join("x"));
    std::fs::write(&source, SOURCE).unwrap();
    let status = Command::new(compiler)
        .current_dir(directory)
        .args(["-O1", "-fno-pie", "-no-pie", "-static", "-nostdlib"])
        .args(["-Wl,--build-id=sha1,-e,global,-Ttext=0x200000"])
        .args(["-Wl,--section-start=.init.text=0x300000,--defsym=number=7"])
        .args(further)
        .args(["x.c", "-o"])
        .arg(&output)
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::read(output).unwrap()
}

#[test]
fn symbols_keep_their_files_and_kinds() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::parse(&link(directory.path(), &EDGES)).unwrap();
    assert_eq!(image.build_id().len(), 20);
    assert_eq!(image.machine(), Machine::X86_64);
    assert!(
        image.compiler().starts_with("GCC: "),
        "{}",
        image.compiler()
    );
    assert!(image.has_file("x.c") && !image.has_file("y.c"));

    let global = image.global("global").unwrap();
    assert_eq!(
        (global.kind, global.binding),
        (Kind::Function, Binding::Global)
    );
    assert_eq!(image.global("weak").unwrap().binding, Binding::Weak);
    assert_eq!(image.global("number").unwrap().kind, Kind::Absolute);
    assert!(image.global("local").is_none());
    let local = image.only_known_as("x.c#local").unwrap();
    assert_eq!(local.full_name(), "x.c#local");
    assert_eq!(image.only_known_as("local"), None);
    assert_eq!(image.only_known_as("x.c#counter").unwrap().size, 4);

    // Of two names for one address, the alphabetically first is used.
    let inside = image.symbol_before(global.address + 1).unwrap();
    assert_eq!(inside.name, "alias");
    assert_eq!(image.function_at(global.address + 1), None);
    assert!(image.is_init(image.address_of("at_boot").unwrap()));
    assert!(!image.is_init(global.address));
    let data = image.bytes(image.only_known_as("x.c#counter").unwrap().address, 4);
    assert_eq!(data, Some(&[3, 0, 0, 0][..]));
    assert!(image.code().any(|(start, _)| start == local.address));
}

/// On ARM, every object has symbols that mark code and data; the hypervisor has none of
/// them.
#[test]
fn images_for_arm_are_read_without_mapping_symbols() {
    for (compiler, code, machine) in [
        ("aarch64-linux-gnu-gcc", "$x", Machine::Arm64),
        ("arm-linux-gnueabihf-gcc", "$a", Machine::Arm32),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let further = match machine {
            Machine::Arm32 => &[EDGES[0], "-marm"][..],
            _ => &EDGES,
        };
        let file = link_by(compiler, directory.path(), further);
        let marker = [code.as_bytes(), b"\0"].concat();
        assert!(file.windows(3).any(|bytes| bytes == marker));
        let image = Image::parse(&file).unwrap();
        assert_eq!(image.machine(), machine);
        assert_eq!(image.build_id().len(), 20);
        assert_eq!(image.all_named(code).count(), 0);
        assert_eq!(image.all_named("$d").count(), 0);
        let local = image.only_known_as("x.c#local").unwrap();
        assert_eq!(image.symbol_before(local.address), Some(local));
        let data = image.bytes(image.only_known_as("x.c#counter").unwrap().address, 4);
        assert_eq!(data, Some(&[3, 0, 0, 0][..]));
    }
}

#[test]
fn other_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error = |further: &[&str]| Image::parse(&link(directory.path(), further)).unwrap_err();
    assert!(matches!(error(&[]), Error::NoEdge("__init_begin")));
    assert!(matches!(error(&["-s"]), Error::NoSymbols));
    let mut without = EDGES.to_vec();
    without.push("-Wl,--build-id=none");
    assert!(matches!(error(&without), Error::NoBuildId));
    assert!(matches!(Image::parse(b"text"), Err(Error::Elf(_))));
    let whole = link(directory.path(), &EDGES);
    let narrow = link_by("arm-linux-gnueabihf-gcc", directory.path(), &EDGES);
    for whole in [&whole, &narrow] {
        for end in 0..whole.len() {
            // A truncated file may be readable, but must never cause a panic.
            let _ = Image::parse(&whole[..end]);
        }
        // The other class.
        let mut other = whole.clone();
        other[4] ^= 3;
        let refused = Image::parse(&other).unwrap_err();
        assert!(matches!(refused, Error::Elf(_) | Error::NotAnImage));
    }
    // One machine with the class of another.
    let mut other = narrow.clone();
    other[18..20].copy_from_slice(&62_u16.to_le_bytes());
    assert!(matches!(Image::parse(&other), Err(Error::NotAnImage)));
}
