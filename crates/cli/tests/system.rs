// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the command treats files, standard output and its environment, on a hypervisor
//! built from one C file.

mod told;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use told::{schemas, told};

const XSPLICE: &str = env!("CARGO_BIN_EXE_xsplice");

const SOURCE: &str = "\
int limit = 4;

int checked(int x)
{
    return x > limit ? -22 : x;
}

int _start(int x)
{
    return checked(x) + 1;
}
";

const PATCH: &str = "\
--- a/xen/common/guest.c
+++ b/xen/common/guest.c
@@ -3,4 +3,4 @@
 int checked(int x)
 {
-    return x > limit ? -22 : x;
+    return x >= limit ? -22 : x;
 }
";

const COMPILE: &str = "gcc -O2 -ffreestanding -fno-pic -mcmodel=kernel -mno-sse \
                       -fno-asynchronous-unwind-tables -fno-stack-protector -fcf-protection=none \
                       -fno-ipa-icf -fno-inline -ffunction-sections -fdata-sections -w";

const LINK: [&str; 5] = [
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,-Ttext-segment=0xffffffff80000000,-z,separate-code,-z,noexecstack",
    "-Wl,--build-id=0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// Linker symbols around parts that this hypervisor does not have.
const EDGES: &str = "\
        .data
        .irp name, _stextentry, _etextentry, __init_begin, __init_end, \
                   _sinittext, _einittext, __ro_after_init_start, __ro_after_init_end, \
                   __per_cpu_start, __per_cpu_data_end
        .globl \\name
\\name:
        .endr
        .section .note.GNU-stack, \"\", @progbits
";

/// A built tree, its hypervisor and a patch for it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        let common = place.at("tree/xen/common");
        std::fs::create_dir_all(&common).expect("made");
        std::fs::create_dir(place.at("tmp")).expect("made");
        std::fs::write(place.at("tree/xen/Rules.mk"), "").expect("written");
        std::fs::write(place.at("fix.patch"), PATCH).expect("written");
        std::fs::write(common.join("guest.c"), SOURCE).expect("written");
        let command = format!("{COMPILE} -c common/guest.c -o common/guest.o");
        place.record(&command);
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]);
        run(shell.current_dir(place.at("tree/xen")));
        std::fs::write(place.at("edges.s"), EDGES).expect("written");
        let mut link = Command::new("gcc");
        link.args(LINK).arg("-o").arg(place.at("xen-syms"));
        link.args(["common/guest.o", "../../edges.s"]);
        run(link.current_dir(place.at("tree/xen")));
        place
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Records `command` as the one that compiled the object.
    fn record(&self, command: &str) {
        let record = format!(
            "cmd_common/guest.o := {command}\n\nsource_common/guest.o := common/guest.c\n\n\
             deps_common/guest.o := \\\n\n"
        );
        let path = self.at("tree/xen/common/.guest.o.cmd");
        std::fs::write(path, record).expect("written");
    }

    /// A build that writes to `output`.
    fn build(&self, output: impl AsRef<Path>) -> Command {
        let mut command = Command::new(XSPLICE);
        command
            .args(["build", "-s", "tree", "-p", "fix.patch"])
            .args(["--xen-syms", "xen-syms", "-o"])
            .arg(output.as_ref())
            .env("TMPDIR", self.at("tmp"))
            .env("XDG_CACHE_HOME", self.at("cache"))
            .current_dir(self.directory.path());
        command
    }

    /// Verifies an already built payload against a patched hypervisor that `recipe`
    /// builds.
    fn verify(&self, patch: &str, recipe: &str) -> Command {
        let xen = self.at("tree/xen");
        std::fs::write(xen.join("Makefile"), format!("xen:\n\t{recipe}\n")).expect("written");
        std::fs::write(xen.join(".prelink.o.cmd"), "cmd_prelink.o := ld -r").expect("written");
        let record = "cmd_common/version.o := gcc -c common/version.c";
        std::fs::write(xen.join("common/.version.o.cmd"), record).expect("written");
        let mut command = Command::new(XSPLICE);
        command
            .args([
                "verify",
                "payload",
                "--xen-syms",
                "xen-syms",
                "-s",
                "tree/xen",
            ])
            .args(["-p", patch])
            .env("TMPDIR", self.at("tmp"))
            .env("XDG_CACHE_HOME", self.at("cache"))
            .current_dir(self.directory.path());
        command
    }

    fn left_in_tmp(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.at("tmp")).expect("it is there");
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_payload(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

#[test]
fn a_payload_is_written_to_any_kind_of_path() {
    let place = Place::new();
    let kept = |path: &str| std::fs::read(place.at(path)).expect("it is there");
    run(&mut place.build("plain"));
    assert!(is_payload(&kept("plain")));
    assert_eq!(place.left_in_tmp(), Vec::<PathBuf>::new());

    symlink("target", place.at("link")).expect("linked");
    run(&mut place.build("link"));
    assert!(place.at("link").is_symlink());
    assert_eq!(kept("target"), kept("plain"));

    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, place.at("pipe"), FileType::Fifo, mode, 0).expect("a pipe");
    let reader = std::thread::spawn({
        let path = place.at("pipe");
        move || std::fs::read(path).expect("read")
    });
    run(&mut place.build("pipe"));
    assert_eq!(reader.join().expect("no panic"), kept("plain"));
    let kind = place.at("pipe").symlink_metadata().expect("it is there");
    assert!(kind.file_type().is_fifo());

    let null = || {
        Path::new("/dev/null")
            .symlink_metadata()
            .expect("it is there")
    };
    let before = (null().ino(), null().rdev());
    run(&mut place.build("/dev/null"));
    assert_eq!((null().ino(), null().rdev()), before);
}

#[test]
fn why_no_payload_was_written_is_in_a_file() {
    let place = Place::new();
    let build = |patch: &str, refusal: &str| {
        std::fs::write(place.at("fix.patch"), patch).expect("written");
        let mut command = place.build("payload");
        command
            .args(["--refusal", refusal])
            .output()
            .expect("it runs")
    };
    let refused = build(&PATCH.replace("x > limit", "x < limit"), "why");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let why = std::fs::read(place.at("why")).expect("it is there");
    let why = told("build", &why);
    assert_eq!(why["error"]["kind"], "refused", "{why:#}");
    assert!(why["error"]["code"].is_string(), "{why:#}");
    // It is about the last build, and other files are left alone.
    let built = build(PATCH, "why");
    assert!(built.status.success(), "{built:?}");
    assert!(!place.at("why").exists());
    for other in ["xen-syms", "payload"] {
        let before = std::fs::read(place.at(other)).expect("it is there");
        let refused = build(PATCH, other);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert_eq!(std::fs::read(place.at(other)).expect("it is there"), before);
    }
}

#[test]
fn standard_output_can_take_the_payload() {
    let place = Place::new();
    run(&mut place.build("plain"));
    let payload = std::fs::read(place.at("plain")).expect("it is there");
    for name in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let output = run(&mut place.build(name));
        assert!(output.stdout == payload, "{name}");
        assert!(words(&output).contains("Replaced functions:"), "{name}");
        let file = File::create(place.at("redirected")).expect("created");
        run(place.build(name).stdout(file));
        let written = std::fs::read(place.at("redirected")).expect("it is there");
        assert!(written == payload, "{name}");
    }
    assert!(!place.at("-").exists());
}

#[test]
fn a_failed_write_to_standard_output_is_an_error() {
    let place = Place::new();
    run(&mut place.build("plain"));
    let full = || {
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("it is there")
    };
    let commands: [&[&str]; 6] = [
        &["--help"],
        &["build", "--help"],
        &["inspect", "plain"],
        &["inspect", "plain", "--json"],
        &["check", "plain", "--xen-syms", "xen-syms"],
        &[
            "report",
            "plain",
            "--xen-syms",
            "xen-syms",
            "-o",
            "page.html",
        ],
    ];
    for arguments in commands {
        let command = || {
            let mut command = Command::new(XSPLICE);
            command.args(arguments).current_dir(place.directory.path());
            command
        };
        let code = run_to_end(&mut command()).status.code();
        let output = run_to_end(command().stdout(full()));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = words(&output);
        assert!(
            said.contains("cannot write to standard output"),
            "{arguments:?}: {said}"
        );
        // A closed pipe is not an error: its reader has seen enough.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = run_to_end(command().stdout(writer));
        assert_eq!(output.status.code(), code, "{arguments:?}");
    }
    let output = run_to_end(place.build("again").stdout(full()));
    assert_eq!(output.status.code(), Some(1));
    let output = run_to_end(place.build("-").stdout(full()));
    assert_eq!(output.status.code(), Some(1));
    let output = run_to_end(&mut place.build("/dev/full"));
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("No payload was written"));
}

#[test]
fn no_input_is_overwritten() {
    let place = Place::new();
    for name in ["config", "below.patch", "hook.c"] {
        std::fs::write(place.at(name), name).expect("written");
    }
    let mut build = place.build("config");
    let report = |more: &[&str]| {
        let mut command = Command::new(XSPLICE);
        command.args(["report", "some.livepatch", "--xen-syms", "xen-syms"]);
        command.args(["-p", "fix.patch", "-s", "tree"]).args(more);
        command.current_dir(place.directory.path());
        command
    };
    let commands = [
        (build.args(["-c", "config"]), "config"),
        (
            &mut report(&["--on-patch", "below.patch", "-o", "below.patch"]),
            "below.patch",
        ),
        (
            &mut report(&["--hooks", "hook.c", "-o", "hook.c"]),
            "hook.c",
        ),
    ];
    for (command, name) in commands {
        let output = run_to_end(command);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let expected = format!("it would overwrite the input {name}");
        assert!(words(&output).contains(&expected), "{output:?}");
        assert_eq!(
            std::fs::read_to_string(place.at(name)).expect("there"),
            name
        );
    }
}

#[test]
fn a_release_is_made_where_it_was_asked_for() {
    const SERIES: &str = "name = \"fixes\"\nkey = \"key\"\n[[base]]\nbuild-id = \"ab01\"\n\
                          tree = \"tree\"\nxen-syms = \"syms\"\n[[level]]\npatches = [\"fix.patch\"]\n\
                          fixes = [\"XSA-480\"]\n";
    let directory = tempfile::tempdir().expect("a directory");
    let at = |path: &str| directory.path().join(path);
    let made = at("out/usr/lib/xen-livepatch/ab01");
    std::fs::create_dir_all(&made).expect("made");
    for (name, text) in [("series.toml", SERIES), ("syms", "syms")] {
        std::fs::write(at(name), text).expect("written");
    }
    std::fs::write(made.join("fixes-1.livepatch.refused.json"), "{").expect("written");
    for (arguments, expected) in [
        ("plan|-o|", "a value is required for '--output <STORE>'"),
        ("table|-o|", "a value is required for '--output <STORE>'"),
        (
            "table|-o|out|--html|series.toml",
            "it would overwrite the input series.toml",
        ),
        (
            "table|-o|out",
            "error: out: /usr/lib/xen-livepatch/ab01/fixes-1",
        ),
        (
            "bundle|-o|series.toml",
            "it would overwrite the input series.toml",
        ),
        ("bundle|-o|syms", "it would overwrite the input syms"),
        ("bundle|-o|new/x", "there is no directory new"),
        ("bundle|-o|x|--base|cd", "there is no hypervisor cd"),
        ("bundle|-o|x|--base|..", "is not a build-id"),
    ] {
        let mut command = Command::new(XSPLICE);
        command.arg("series").args(arguments.split('|'));
        command.arg("series.toml").current_dir(directory.path());
        let output = run_to_end(&mut command);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {output:?}");
        assert!(words(&output).contains(expected), "{output:?}");
    }
    for (name, text) in [("series.toml", SERIES), ("syms", "syms")] {
        assert_eq!(std::fs::read_to_string(at(name)).expect("there"), text);
    }
}

/// The output of a command, whatever its exit code.
fn run_to_end(command: &mut Command) -> Output {
    command.output().expect("it runs")
}

#[test]
fn the_classic_tool_fails_on_a_full_disk_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let tool = directory.path().join("xen-livepatch");
    symlink(XSPLICE, &tool).expect("linked");
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("it is there");
    let output = Command::new(&tool)
        .arg("help")
        .stdout(full)
        .output()
        .expect("it runs");
    assert_ne!(output.status.code(), Some(0), "{output:?}");
}

/// `command`, started by a program that execs it.
fn by(starter: &[&str], command: &Command) -> Command {
    let mut started = Command::new(starter[0]);
    started.args(&starter[1..]);
    started.arg(command.get_program()).args(command.get_args());
    let variables = command.get_envs();
    started.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    started.current_dir(command.get_current_dir().expect("a directory"));
    started
}

#[test]
fn a_signal_leaves_nothing_behind() {
    let signals = [
        (Signal::INT, 130, "SIGINT"),
        (Signal::TERM, 143, "SIGTERM"),
        (Signal::HUP, 129, "SIGHUP"),
    ];
    let place = Place::new();
    run(&mut place.build("payload"));
    // A compiler that starts another process and hangs.
    let slow = "sh -c 'sleep 1000 & echo $! > common/pid; wait'";
    place.record(&format!("{slow} -c common/guest.c -o common/guest.o"));
    let build = || place.build("never");
    let verify = || {
        let mut verify = place.verify("fix.patch", &slow.replace('$', "$$"));
        verify.arg("--no-cache");
        verify
    };
    let commands: [&dyn Fn() -> Command; 2] = [&build, &verify];
    for (command, (signal, code, name)) in commands
        .into_iter()
        .flat_map(|command| signals.map(|signal| (command, signal)))
    {
        // The test's environment may ignore signals, as under `nohup`.
        let child = by(&["env", "--default-signal"], &command())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let sleeper = wait_for_compiler(&place);
        let xsplice = Pid::from_child(&child);
        kill_process(xsplice, signal).expect("sent");
        let output = ended(child);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(
            words(&output).trim(),
            format!("interrupted by {name}: nothing is left behind")
        );
        assert_eq!(place.left_in_tmp(), Vec::<PathBuf>::new());
        assert!(!place.at("never").exists());
        // It has been killed, but may take a moment to exit.
        wait(|| has_ended(&sleeper));
    }
}

/// The copy of the tree links to files that are not built.
#[test]
fn a_verification_writes_to_its_copy_only() {
    let place = Place::new();
    run(&mut place.build("payload"));
    let tools = place.at("tree/tools/misc");
    std::fs::create_dir_all(&tools).expect("made");
    std::fs::write(tools.join("x.c"), "old\n").expect("written");
    let hunk = "@@ -1 +1 @@\n-old\n+new\n";
    let patch = format!("--- a/tools/misc/x.c\n+++ b/tools/misc/x.c\n{hunk}");
    std::fs::write(place.at("tools.patch"), patch).expect("written");
    let seen = "test $$(cat ../tools/misc/x.c) = new && echo error: it is patched >&2; false";
    let output = run_to_end(&mut place.verify("tools.patch", seen));
    assert!(words(&output).contains("it is patched"), "{output:?}");
    let text = std::fs::read_to_string(tools.join("x.c")).expect("it is there");
    assert_eq!(text, "old\n");

    for path in ["../../made.c", "xen/../../../made.c", "//tmp/made.c"] {
        let patch = format!("--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+new\n");
        std::fs::write(place.at("out.patch"), patch).expect("written");
        let output = run_to_end(&mut place.verify("out.patch", "false"));
        let said = words_of_one_error(&output);
        assert!(said.contains("leads out of the tree"), "{path}: {said}");
        assert!(!place.at("made.c").exists() && !place.at("tmp/made.c").exists());
    }
    assert_eq!(place.left_in_tmp(), Vec::<PathBuf>::new());
}

#[test]
fn an_input_of_the_wrong_kind_is_one_error() {
    let place = Place::new();
    run(&mut place.build("payload"));
    let said = words_of_one_error(&run_to_end(&mut place.verify("xen-syms", "false")));
    assert!(
        said.contains("xen-syms: there is no unified diff"),
        "{said}"
    );
    let mut build = place.build("never");
    let said = words_of_one_error(&run_to_end(build.args(["-p", "xen-syms"])));
    assert!(said.contains("xen-syms: this is a binary file"), "{said}");
    std::fs::copy(place.at("fix.patch"), place.at("again.patch")).expect("copied");
    let mut build = place.build("never");
    let said = words_of_one_error(&run_to_end(build.args(["-p", "again.patch"])));
    assert!(said.contains("fix.patch has the same text"), "{said}");
    let mut efi = Command::new(XSPLICE);
    efi.args([
        "efi-syms",
        "--xen-syms",
        "xen-syms",
        "--xen-efi",
        "fix.patch",
        "-o",
        "syms",
    ]);
    let said = words_of_one_error(&run_to_end(efi.current_dir(place.directory.path())));
    assert!(
        said.starts_with("error: fix.patch: this is not a usable xen.efi"),
        "{said}"
    );
    let mut verify = place.verify("fix.patch", "false");
    verify.arg("--no-cache").env("TMPDIR", "/nowhere");
    let said = words_of_one_error(&run_to_end(&mut verify));
    assert!(
        said.starts_with("error: /nowhere: no work directory"),
        "{said}"
    );
    let mut verify = place.verify("fix.patch", "false");
    let said = words_of_one_error(&run_to_end(verify.env("PATH", "/nowhere")));
    assert!(said.starts_with("error: make: "), "{said}");
    let mut verify = place.verify("fix.patch", "false");
    std::fs::remove_file(place.at("tree/xen/Rules.mk")).expect("removed");
    let said = words_of_one_error(&run_to_end(&mut verify));
    assert!(said.contains("not a Xen source tree"), "{said}");
}

#[test]
fn an_input_that_is_read_twice_must_be_a_file() {
    let place = Place::new();
    run(&mut place.build("payload"));
    let pipe = place.at("pipe.patch");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("made");
    let mut build = place.build("never");
    let output = run_to_end(build.args(["--verify", "-p", "pipe.patch"]));
    let said = words_of_one_error(&output);
    assert!(said.contains("pipe.patch: it is read twice"), "{said}");
    let mut report = Command::new(XSPLICE);
    report.args([
        "report",
        "payload",
        "--xen-syms",
        "xen-syms",
        "-s",
        "tree/xen",
    ]);
    report.args(["-p", "pipe.patch", "-o", "page"]);
    let output = run_to_end(report.current_dir(place.directory.path()));
    let said = words_of_one_error(&output);
    assert!(said.contains("pipe.patch: it is read twice"), "{said}");
}

/// Compilers quote the source, which may contain anything.
#[test]
fn a_source_does_not_control_the_terminal() {
    let place = Place::new();
    let patch = PATCH.replace("+    return", "+    \u{1b}[31m\u{202e}return");
    std::fs::write(place.at("fix.patch"), patch).expect("written");
    let output = run_to_end(&mut place.build("never"));
    let said = words(&output);
    assert!(said.contains(r"\u{1b}[31m\u{202e}return"), "{said}");
    assert!(!said.contains(['\u{1b}', '\u{202e}']), "{said}");
}

#[test]
fn a_file_size_limit_leaves_nothing_behind() {
    let place = Place::new();
    let output = run_to_end(&mut by(
        &["sh", "-c", "ulimit -f 1; exec \"$@\"", "sh"],
        &place.build("never"),
    ));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        words(&output).contains("No payload was written"),
        "{output:?}"
    );
    assert_eq!(place.left_in_tmp(), Vec::<PathBuf>::new());
    assert!(!place.at("never").exists());
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let place = Place::new();
    place.record(&format!(
        "sleep 1; {COMPILE} -c common/guest.c -o common/guest.o"
    ));
    let child = by(
        &["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"],
        &place.build("made"),
    )
    .stdout(Stdio::null())
    .stderr(Stdio::piped())
    .spawn()
    .expect("it runs");
    wait(|| !place.left_in_tmp().is_empty());
    kill_process(Pid::from_child(&child), Signal::HUP).expect("sent");
    let output = ended(child);
    assert!(output.status.success(), "{output:?}");
    assert!(place.at("made").exists());
}

#[test]
fn a_work_directory_that_vanishes_is_one_error() {
    let place = Place::new();
    place.record("echo 1 > common/pid; sleep 1; cat common/guest.c > common/guest.o; false -o common/guest.o");
    let child = place
        .build("never")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    wait_for_compiler(&place);
    for path in place.left_in_tmp() {
        std::fs::remove_dir_all(path).expect("removed");
    }
    let output = ended(child);
    assert_eq!(output.status.code(), Some(1));
    let said = words(&output);
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(said.contains("were deleted while it ran"), "{said}");
}

#[test]
fn a_work_directory_can_be_anywhere() {
    let place = Place::new();
    let tree = place.at("tree").canonicalize().expect("it is there");
    let map = format!("-ffile-prefix-map={}=.", tree.display());
    place.record(&format!(
        "{COMPILE} {map} -c common/guest.c -o common/guest.o"
    ));
    run(&mut place.build("one"));
    let odd = place.at("it's a place");
    std::fs::create_dir(&odd).expect("made");
    run(place.build("two").env("TMPDIR", &odd).arg("--no-cache"));
    let read = |name: &str| std::fs::read(place.at(name)).expect("it is there");
    assert!(read("one") == read("two"));
}

#[test]
fn a_cache_that_cannot_be_written_is_a_note() {
    let place = Place::new();
    // A file in place of a directory stops root too.
    std::fs::write(place.at("cache"), "").expect("written");
    let output = run(&mut place.build("made"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("note: "), "{said}");
    assert!(said.contains("compiled objects are not cached"), "{said}");
    assert!(place.at("made").exists());
}

#[test]
fn a_build_id_is_not_accepted_as_a_payload_or_the_reverse() {
    let place = Place::new();
    for given in ["tree", "xen-syms", "not-there", "abc"] {
        let output = run_to_end(place.build("never").args(["--depends", given]));
        assert_eq!(output.status.code(), Some(1), "{given}");
        let said = words(&output);
        assert!(
            said.contains("two hexadecimal digits for each byte"),
            "{said}"
        );
        assert!(said.contains("give its file with `--on`"), "{said}");
    }
    let output = run_to_end(
        place
            .build("never")
            .args(["--on", "tree", "--on-patch", "fix.patch"]),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        words(&output).contains("tree: Is a directory"),
        "{output:?}"
    );
}

#[test]
fn applied_payloads_are_given_with_the_same_option_everywhere() {
    let place = Place::new();
    run(&mut place.build("plain"));
    let commands: [&[&str]; 3] = [
        &["check", "plain", "--guard", "stack"],
        &["report", "plain", "-o", "page"],
        &["verify", "plain", "-s", "tree", "-p", "fix.patch"],
    ];
    for arguments in commands {
        let mut command = Command::new(XSPLICE);
        command.args(arguments).args(["--xen-syms", "xen-syms"]);
        command.args(["--on", "not-there", "--on", "neither"]);
        let output = run_to_end(command.current_dir(place.directory.path()));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = words(&output);
        assert!(said.contains("cannot read not-there"), "{said}");
    }
}

#[test]
fn the_published_schemas_are_those_of_this_version() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = run(Command::new(XSPLICE)
        .args(["schema", "--json"])
        .arg(directory.path()));
    let files = told("schema", &output.stdout)["result"]["files"]
        .as_array()
        .expect("a list")
        .len();
    let mut seen = 0;
    for entry in schemas().read_dir().expect("a directory") {
        let published = entry.expect("an entry").path();
        let name = published.file_name().expect("it has one");
        let current = std::fs::read_to_string(directory.path().join(name)).expect("written");
        let published = std::fs::read_to_string(&published).expect("it is there");
        assert!(
            published == current,
            "{name:?} is old: `xsplice schema docs/schema` writes it again"
        );
        seen += 1;
    }
    assert_eq!(seen, files);
}

#[test]
fn results_are_as_the_schemas_say() {
    let place = Place::new();
    let told_by = |name: &str, command: &mut Command, code: i32| {
        let output = run_to_end(
            command
                .arg("--json")
                .env("XDG_CACHE_HOME", place.at("cache"))
                .current_dir(place.directory.path()),
        );
        assert_eq!(output.status.code(), Some(code), "{name}: {output:?}");
        let value = told(name, &output.stdout);
        assert!(value["result"].is_object(), "{name}: {value:#}");
        assert_eq!(value["error"].is_null(), code == 0, "{name}: {value:#}");
        value
    };
    let built = told_by("build", &mut place.build("plain"), 0);
    assert_eq!(built["changed"], true);
    let address = built["result"]["functions"][0]["old_address"].as_str();
    assert!(
        address.is_some_and(|a| a.starts_with("0xffffffff8")),
        "{built:#}"
    );
    let commands: [(&str, &[&str], i32); 7] = [
        ("check", &["check", "plain", "--xen-syms", "xen-syms"], 0),
        (
            "inspect",
            &["inspect", "plain", "--xen-syms", "xen-syms"],
            0,
        ),
        (
            "report",
            &["report", "plain", "--xen-syms", "xen-syms", "-o", "page"],
            0,
        ),
        ("man", &["man", "pages"], 0),
        ("completions", &["completions", "fish"], 0),
        ("demo", &["demo", "--cpus", "1"], 0),
        ("schema", &["schema", "schemas"], 0),
    ];
    for (name, arguments, code) in commands {
        told_by(name, Command::new(XSPLICE).args(arguments), code);
    }
    // A payload that is made for another hypervisor has a verdict, and is refused.
    let mut other = Command::new("objcopy");
    std::fs::write(place.at("note"), [0; 36]).expect("written");
    other.args([
        "--update-section",
        ".livepatch.xen_depends=note",
        "plain",
        "other",
    ]);
    run(other.current_dir(place.directory.path()));
    for (name, more) in [("check", &[][..]), ("report", &["-o", "page"])] {
        let mut command = Command::new(XSPLICE);
        command
            .args([name, "other", "--xen-syms", "xen-syms"])
            .args(more);
        let value = told_by(name, &mut command, 1);
        assert_eq!(value["error"]["kind"], "refused", "{value:#}");
    }
}

/// Command lines that fail: the name of the command, its line, the kind of the error and
/// its code if it has one, and what it says.
const FAILURES: [(&str, &str, &str, &str); 26] = [
    ("apply", "apply x", "failed xen-missing", "/dev/xen"),
    ("build", "build --nonsense", "usage", "unexpected argument"),
    (
        "check",
        "check none --xen-syms none",
        "failed file-error",
        "cannot read none: No such file",
    ),
    ("completions", "completions none", "usage", "invalid value"),
    ("demo", "demo --cpus 0", "usage", "invalid value"),
    (
        "efi-syms",
        "efi-syms --xen-syms none --xen-efi none -o new",
        "failed file-error",
        "none: No such file",
    ),
    ("info", "info", "failed xen-missing", "/dev/xen"),
    (
        "inspect",
        "inspect fix.patch",
        "failed",
        "not a readable ELF file",
    ),
    (
        "keygen",
        "keygen --key missing/key --cert cert",
        "failed file-error",
        "cannot write missing/key: No such file",
    ),
    (
        "lab-run",
        "lab run none --xen none --kernel none",
        "failed file-error",
        "none: No such file",
    ),
    (
        "lab-try",
        "lab try none --xen none --kernel none",
        "failed",
        "none: No such file",
    ),
    ("list", "list", "failed xen-missing", "/dev/xen"),
    (
        "load",
        "load fix.patch",
        "refused not-a-payload",
        "not an ELF file",
    ),
    ("man", "man fix.patch", "failed file-error", "cannot create"),
    ("replace", "replace x", "failed xen-missing", "/dev/xen"),
    (
        "report",
        "report none --xen-syms none -o missing/page",
        "failed file-error",
        "there is no directory missing",
    ),
    ("revert", "revert x", "failed xen-missing", "/dev/xen"),
    (
        "schema",
        "schema fix.patch",
        "failed file-error",
        "cannot create",
    ),
    (
        "series-bundle",
        "series bundle fix.patch -o out",
        "refused invalid",
        "fix.patch: TOML parse error",
    ),
    (
        "series-plan",
        "series plan fix.patch -o out",
        "refused invalid",
        "fix.patch: TOML parse error",
    ),
    (
        "series-table",
        "series table none -o out",
        "failed file-error",
        "none: No such file",
    ),
    ("sign", "sign x", "usage", "required arguments"),
    ("unload", "unload x", "failed xen-missing", "/dev/xen"),
    (
        "upload",
        "upload x",
        "usage",
        "required arguments were not provided",
    ),
    (
        "verify",
        "verify none --xen-syms none --patched-syms none",
        "failed file-error",
        "cannot read none: No such file",
    ),
    (
        "verify-signature",
        "verify-signature --cert none none",
        "failed file-error",
        "cannot read none",
    ),
];

#[test]
fn failures_are_as_the_schemas_say() {
    let place = Place::new();
    for (name, line, kind, words) in FAILURES {
        let mut command = Command::new(XSPLICE);
        command.arg("--json").args(line.split(' '));
        let output = run_to_end(command.current_dir(place.directory.path()));
        assert_eq!(output.status.code(), Some(1), "{line}");
        let value = told(name, &output.stdout);
        assert_eq!(value["changed"], false, "{name}: {value:#}");
        assert!(value["result"].is_null(), "{name}: {value:#}");
        let error = &value["error"];
        let found = [&error["kind"], &error["code"]].map(|word| word.as_str().unwrap_or_default());
        assert_eq!(found.join(" ").trim_end(), kind, "{name}: {value:#}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(words), "{name}: {message}");
        assert!(!message.starts_with("error"), "{message}");
    }
    let output = run_to_end(place.build("x").args(["--json", "-c", "none"]));
    let error = &told("build", &output.stdout)["error"];
    assert_eq!(error["kind"], "refused", "{error:#}");
    assert_eq!(error["code"], "unreadable-file", "{error:#}");
    assert_eq!(error["problems"][0]["code"], "unreadable-file");
    assert_eq!(error["problems"][0]["place"], "none");
    assert!(
        words(&output).contains(" [unreadable-file]\n"),
        "{output:?}"
    );
}

#[test]
fn another_configuration_is_one_error() {
    let place = Place::new();
    let built: String = (0..20).map(|n| format!("CONFIG_A{n}=y\n")).collect();
    std::fs::write(place.at("tree/xen/.config"), built).expect("written");
    std::fs::write(place.at("other"), "CONFIG_A0=y\nCONFIG_B=y\n").expect("written");
    for (config, words) in [
        ("fix.patch", "fix.patch: it has no settings"),
        (
            "other",
            "only it has CONFIG_B=y; only the tree has CONFIG_A10=y, CONFIG_A11=y",
        ),
    ] {
        let output = run_to_end(place.build("never").args(["-c", config]));
        let said = words_of_one_error(&output);
        assert!(said.contains(words), "{said}");
    }
}

fn words_of_one_error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = words(output);
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    said
}

#[test]
fn an_output_that_cannot_be_written_is_known_before_the_build() {
    let place = Place::new();
    place.record("touch ran; false -c common/guest.c -o common/guest.o");
    std::fs::create_dir_all(place.at("out/fix.livepatch")).expect("made");
    for (output, words) in [
        ("missing/x", "there is no directory missing"),
        ("missing/", "there is no directory missing/"),
        ("fix.patch/x", "ot a directory"),
        ("out", "out/fix.livepatch: is a directory"),
        ("/proc/self/x", "cannot write to /proc/self: "),
    ] {
        let said = words_of_one_error(&run_to_end(&mut place.build(output)));
        assert!(said.contains(words), "{output}: {said}");
    }
    let arguments: [&[&str]; 2] = [
        &["report", "none", "--xen-syms", "none"],
        &["efi-syms", "--xen-efi", "none", "--xen-syms", "none"],
    ];
    for arguments in arguments {
        let mut command = Command::new(XSPLICE);
        command.args(arguments).args(["-o", "missing/x"]);
        let output = run_to_end(command.current_dir(place.directory.path()));
        let said = words_of_one_error(&output);
        assert!(said.contains("there is no directory missing"), "{said}");
    }
}

#[test]
fn a_missing_work_directory_is_one_error() {
    let place = Place::new();
    let record = format!(
        "cmd_common/two.o := {COMPILE} -c common/guest.c -o common/two.o\n\n\
         source_common/two.o := common/guest.c\n\ndeps_common/two.o := \\\n\n"
    );
    std::fs::write(place.at("tree/xen/common/.two.o.cmd"), record).expect("written");
    let output = run_to_end(place.build("never").env("TMPDIR", place.at("gone")));
    let said = words_of_one_error(&output);
    assert!(
        said.contains("no work directory can be made here"),
        "{said}"
    );
}

#[test]
fn a_missing_home_is_not_created_for_the_cache() {
    let place = Place::new();
    let home = place.at("home");
    let mut build = place.build("one");
    let output = run(build.env_remove("XDG_CACHE_HOME").env("HOME", &home));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("compiled objects are not cached"), "{said}");
    assert!(!home.exists());
    std::fs::create_dir(&home).expect("made");
    let mut build = place.build("two");
    run(build.env_remove("XDG_CACHE_HOME").env("HOME", &home));
    let cache = home.join(".cache").metadata().expect("it is there");
    assert_eq!(cache.mode() & 0o777, 0o700);
    let objects = home.join(".cache/xsplice/objects");
    assert!(objects.read_dir().expect("a directory").next().is_some());
}

#[test]
fn a_closed_standard_output_is_a_failure() {
    let place = Place::new();
    run(&mut place.build("plain"));
    let commands: [&[&str]; 4] = [
        &["--help"],
        &["inspect", "plain"],
        &["inspect", "plain", "--json"],
        &["report", "plain", "--xen-syms", "xen-syms", "-o", "-"],
    ];
    for arguments in commands {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" >&-", "sh", XSPLICE]);
        let output = run_to_end(shell.args(arguments).current_dir(place.directory.path()));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = words(&output);
        assert!(
            said.contains("cannot write to standard output: it is closed"),
            "{said}"
        );
    }
}

#[test]
fn names_of_files_are_shown_escaped() {
    let place = Place::new();
    let odd = "a\u{1b}[2K\nerror: b\u{200b}";
    let shown = r"a\u{1b}[2K\nerror: b\u{200b}";
    let commands: [&[&str]; 7] = [
        &["check", odd, "--xen-syms", "xen-syms"],
        &["inspect", odd],
        &[
            "verify",
            odd,
            "--xen-syms",
            "xen-syms",
            "--patched-syms",
            "x",
        ],
        &["report", odd, "--xen-syms", "xen-syms", "-o", "page"],
        &["upload", "x", odd],
        &[
            "build",
            "-s",
            odd,
            "-p",
            "fix.patch",
            "--xen-syms",
            "xen-syms",
            "-o",
            "x",
        ],
        &[
            "build",
            "-s",
            "tree",
            "-p",
            odd,
            "--xen-syms",
            "xen-syms",
            "-o",
            "x",
        ],
    ];
    for arguments in commands {
        let mut command = Command::new(XSPLICE);
        let output = run_to_end(command.args(arguments).current_dir(place.directory.path()));
        let said = words(&output);
        assert!(said.contains(shown), "{arguments:?}: {said}");
        assert!(!said.contains(['\u{1b}', '\u{200b}']), "{said:?}");
    }
}

#[test]
fn metadata_that_deceives_or_repeats_itself_is_refused() {
    let place = Place::new();
    for (options, words) in [
        (["a=1\u{200b}", "b=2"], "it contains \\u{200b}"),
        (["a=1", "a=2"], "this key is given more than once"),
        (
            ["compiler=x", "b=2"],
            "this key is written by the generator itself",
        ),
    ] {
        let options = options.map(|option| format!("--meta={option}"));
        let output = run_to_end(place.build("never").args(options));
        let said = words_of_one_error(&output);
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_file_of_hooks_has_hooks() {
    let place = Place::new();
    std::fs::write(place.at("none.c"), "/* later */\n").expect("written");
    let output = run_to_end(place.build("never").args(["--hooks", "none.c"]));
    let said = words_of_one_error(&output);
    assert!(said.contains("none.c: there is no hook in it"), "{said}");
}

#[test]
fn a_bad_file_is_reported_once() {
    let place = Place::new();
    run(&mut place.build("plain"));
    let payload = std::fs::read(place.at("plain")).expect("it is there");
    std::fs::write(place.at("cut"), &payload[..300]).expect("written");
    let mut command = Command::new(XSPLICE);
    let output = run_to_end(
        command
            .args(["inspect", "cut"])
            .current_dir(place.directory.path()),
    );
    let said = words_of_one_error(&output);
    assert!(said.contains("cut: not a readable ELF file"), "{said}");
    let reason = said.trim_end().rsplit(": ").next().unwrap_or_default();
    assert_eq!(said.matches(reason).count(), 1, "{said}");
}

#[test]
fn bad_arguments_are_reported_before_missing_ones() {
    let place = Place::new();
    let mut command = Command::new(XSPLICE);
    command.args(["verify", "fix.patch", "--xen-syms", "fix.patch"]);
    command.args(["--patched-syms", "xen-syms"]);
    let output = run_to_end(command.current_dir(place.directory.path()));
    let said = words_of_one_error(&output);
    assert!(said.starts_with("error: fix.patch: "), "{said}");
}

/// Waits for the fake compiler and returns the process it started.
fn wait_for_compiler(place: &Place) -> String {
    let mut found = String::new();
    wait(|| {
        for shadow in place.left_in_tmp() {
            let text = std::fs::read_to_string(shadow.join("xen/common/pid"));
            found = text.unwrap_or_default().trim().to_owned();
        }
        !found.is_empty()
    });
    found
}

fn wait(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < end, "the compiler did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the process has exited, or is only waiting to be reaped.
fn has_ended(id: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

fn ended(child: Child) -> Output {
    child.wait_with_output().expect("it ends")
}
