// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first process of a lab's dom0: brings up what the admin tools need and
//! runs commands for the host.

use crate::protocol::{Output, Reply, Request};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Path of the privcmd driver in the initramfs.
pub const PRIVCMD_MODULE: &str = "lab/xen-privcmd.ko";
/// The serial port to the host: an argument of dom0's kernel, which hands it on as a
/// variable of the environment.
pub(crate) const LINE: &str = "xsplice_line";

/// Runs as process 1 until the host turns the machine off.
pub fn run() -> ExitCode {
    if let Err(error) = serve() {
        println!("lab: dom0 cannot serve: {error}");
    }
    // Process 1 must not exit; the host notices a power-off at once.
    let error = reboot(RebootCommand::PowerOff);
    println!("lab: cannot power off: {error:?}");
    ExitCode::FAILURE
}

fn serve() -> std::io::Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, place, kind, MountFlags::empty(), None)?;
    }
    let module = Path::new("/").join(PRIVCMD_MODULE);
    if module.exists() {
        match finit_module(File::open(module)?, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => println!("lab: cannot load the privcmd driver: {error}"),
        }
    }
    let line = std::env::var_os(LINE)
        .ok_or_else(|| std::io::Error::other("dom0's kernel was not given the serial port"))?;
    let line = rustix::fs::open(&line, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    let mut settings = tcgetattr(&line)?;
    settings.make_raw();
    tcsetattr(&line, OptionalActions::Now, &settings)?;
    let mut writer = File::from(line);
    let mut reader = BufReader::new(writer.try_clone()?);
    // Ends any line that the firmware printed there.
    writer.write_all(b"\n")?;
    send(&mut writer, &Reply::Ready)?;
    let mut request = String::new();
    loop {
        request.clear();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let reply = match serde_json::from_str(&request) {
            Ok(Request::Run { argv, limit }) => run_command(&argv, Duration::from_millis(limit)),
            Ok(Request::Put { path, data }) => match put(Path::new(&path), &data) {
                Ok(()) => Reply::Done,
                Err(error) => Reply::Failed(format!("{path}: {error}")),
            },
            Ok(Request::PowerOff) => return Ok(()),
            Err(error) => Reply::Failed(format!("not a request: {error}")),
        };
        send(&mut writer, &reply)?;
    }
}

fn send(line: &mut File, reply: &Reply) -> std::io::Result<()> {
    let mut text = serde_json::to_string(reply)?;
    text.push('\n');
    line.write_all(text.as_bytes())
}

fn put(path: &Path, data: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, data)
}

/// Runs a command. After `limit`, it is killed with all its children, and the lab
/// continues.
fn run_command(argv: &[String], limit: Duration) -> Reply {
    let Some((program, arguments)) = argv.split_first() else {
        return Reply::Failed("no command".to_owned());
    };
    let child = Command::new(program)
        .args(arguments)
        .env("PATH", "/bin")
        .env("LD_LIBRARY_PATH", "/lib")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Reply::Failed(format!("{program}: {error}")),
    };
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let end = Instant::now() + limit;
    let code = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.code(),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let seconds = limit.as_secs();
                // A process that left the group may hold the output open: do not wait
                // for it.
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
                return Reply::Failed(format!(
                    "{}: killed, because it took longer than {seconds} s",
                    argv.join(" ")
                ));
            }
            Err(error) => return Reply::Failed(format!("{program}: {error}")),
        }
    };
    let text = |pipe: JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&pipe.join().unwrap_or_default()).into_owned()
    };
    Reply::Ran(Output {
        stdout: text(stdout),
        stderr: text(stderr),
        code,
    })
}

/// Reads a pipe to its end in a thread.
fn collect<R: Read + Send + 'static>(pipe: Option<R>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // After an error, report what was read before it.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}
