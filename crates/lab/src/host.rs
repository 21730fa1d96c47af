// SPDX-License-Identifier: MIT OR Apache-2.0
//! Booting a Xen host and running commands in its dom0.

use crate::boot::Boot;
use crate::console::{Console, watch};
use crate::debugger::Debugger;
use crate::monitor::Monitor;
use crate::protocol::{Output, Reply, Request};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xsplice_system::interrupt::{Directory, Process};

/// What to boot.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The hypervisor, which decides what machine is emulated: for x86-64 `xen.gz`, the
    /// ELF file in it, or `xen.efi`, which is booted by UEFI firmware (Debian package
    /// `ovmf`); for ARM the image `xen`.
    pub xen: PathBuf,
    /// dom0's kernel.
    pub kernel: PathBuf,
    /// The privcmd driver for that kernel, if it is a module.
    pub privcmd: Option<PathBuf>,
    /// A static `xsplice` executable: dom0's first process and admin tool.
    pub xsplice: PathBuf,
    /// Additional programs with their paths in dom0; shared libraries are found in
    /// `libraries`.
    pub programs: Vec<(String, PathBuf)>,
    /// Where to look for shared libraries.
    pub libraries: Vec<PathBuf>,
    /// Additional files with their paths in dom0.
    pub files: Vec<(String, PathBuf)>,
    /// CPUs of the machine; if `None`, 4 on x86-64 and 2 on ARM.
    pub cpus: Option<u32>,
    /// How many of them are threads of one core.
    pub threads: u32,
    /// The CPU model, as for QEMU's `-cpu`; QEMU's default if `None`.
    pub processor: Option<String>,
    /// Memory in MiB.
    pub memory: u32,
    /// Timeout for booting, and for each command.
    pub timeout: Duration,
    /// Upper bound for the console's output, in bytes.
    pub console_limit: usize,
    /// Additional arguments on the hypervisor's command line.
    pub xen_arguments: String,
    /// Count instructions: each guest instruction is one tick of the time-stamp
    /// counter, on any machine. All virtual CPUs then share one host CPU.
    pub count_instructions: bool,
    /// A TCG plugin with its arguments, in the syntax of QEMU's option `-plugin`:
    /// `FILE,NAME=VALUE`, with commas in values doubled. The file's path is absolute.
    pub plugin: Option<String>,
    /// Whether [`Host::debugger`] may be called.
    pub debugger: bool,
    /// Is given each line of the console as it comes, without its end.
    pub on_line: Option<fn(&str)>,
}

impl HostConfig {
    /// 1 GiB, 180 seconds (emulation on a busy machine is slow), nothing extra.
    pub fn new(xen: PathBuf, kernel: PathBuf, privcmd: Option<PathBuf>, xsplice: PathBuf) -> Self {
        Self {
            xen,
            kernel,
            privcmd,
            xsplice,
            programs: Vec::new(),
            libraries: Vec::new(),
            files: Vec::new(),
            cpus: None,
            threads: 1,
            processor: None,
            memory: 1024,
            timeout: Duration::from_secs(180),
            console_limit: 4 << 20,
            xen_arguments: String::new(),
            count_instructions: false,
            plugin: None,
            debugger: false,
            on_line: None,
        }
    }
}

/// Why the host is unusable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// The system's error.
        error: io::Error,
    },
    /// QEMU cannot be started.
    #[error("cannot start {program} (Debian package {package}): {error}")]
    NoQemu {
        /// The emulator of the hypervisor's machine.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// The hypervisor crashed.
    #[error("the hypervisor crashed:\n{}", .0.join("\n"))]
    Crashed(Vec<String>),
    /// Timeout.
    #[error("{what} took longer than {seconds} s; the console ended with:\n{console}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// The limit.
        seconds: u64,
        /// The last lines of the console.
        console: String,
    },
    /// The console has printed nothing for half of the timeout, but that a CPU does not go
    /// on, and dom0 does not take commands.
    #[error("the boot has stalled: nothing for {seconds} s; the console ended with:\n{console}")]
    Stalled {
        /// For how long.
        seconds: u64,
        /// The last lines of the console.
        console: String,
    },
    /// The console printed more than a working host does.
    #[error("the console printed more than {0} bytes")]
    ConsoleFlood(usize),
    /// QEMU exited.
    #[error("the machine powered off during {what}; the console ended with:\n{console}")]
    Off {
        /// What the machine was doing.
        what: String,
        /// The last lines of the console.
        console: String,
    },
    /// dom0 sent something that is not a reply.
    #[error("unexpected reply from dom0: {0}")]
    NoReply(String),
    /// dom0 could not carry out the request.
    #[error("dom0: {0}")]
    Dom0(String),
}

/// The socket of the serial port to dom0, in the host's directory.
const LINE: &str = "dom0";
/// The socket of QEMU's machine protocol (QMP), in the host's directory.
const MONITOR: &str = "monitor";
/// The socket of QEMU's debugger interface, in the host's directory.
const DEBUGGER: &str = "debugger";

/// A running Xen host. Dropping it turns it off.
#[derive(Debug)]
pub struct Host {
    qemu: Process,
    line: UnixStream,
    received: Vec<u8>,
    keys_reach_xen: bool,
    console: Arc<Mutex<Console>>,
    timeout: Duration,
    cpus: u32,
    directory: Directory,
}

impl Host {
    /// Boots a host and waits until its dom0 takes commands. A boot that stalls is
    /// reported and tried once more: emulated dom0s stall now and then.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn boot(config: &HostConfig) -> Result<Self, Error> {
        match Self::boot_once(config) {
            Err(stalled @ Error::Stalled { .. }) => {
                report(config, &format!("{stalled}\nbooting once more"));
                Self::boot_once(config)
            }
            booted => booted,
        }
    }

    fn boot_once(config: &HostConfig) -> Result<Self, Error> {
        let directory = Directory::new("xsplice-lab-")
            .map_err(|error| file_error(&std::env::temp_dir(), error))?;
        let boot = Boot::prepare(config, directory.path())?;
        let board = boot.board;
        let mut command = emulator(config, &boot, directory.path());
        let mut qemu = Process::spawn(&mut command).map_err(|error| Error::NoQemu {
            program: board.qemu,
            package: board.package,
            error,
        })?;
        let console = read_console(&mut qemu, config.console_limit, config.on_line);
        let socket = directory.path().join(LINE);
        let line = match connect(&socket, &mut qemu) {
            Ok(line) => line,
            Err(error) => {
                let _ = qemu.kill().and_then(|()| qemu.wait());
                // Its last output may still be in flight.
                std::thread::sleep(Duration::from_millis(100));
                let console = console.lock().map(|c| c.tail()).unwrap_or_default();
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => Error::Off {
                        what: "start".to_owned(),
                        console,
                    },
                    _ => file_error(&socket, error),
                });
            }
        };
        let mut host = Self {
            qemu,
            line,
            received: Vec::new(),
            keys_reach_xen: false,
            console,
            timeout: config.timeout,
            cpus: config.cpus.unwrap_or(board.cpus),
            directory,
        };
        loop {
            match host.receive("boot", Some(config.timeout / 2)) {
                Ok(Reply::Ready) => return Ok(host),
                Ok(other) => return Err(unexpected(other)),
                // Firmware prints on every serial port.
                Err(Error::NoReply(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs a command in dom0.
    ///
    /// # Errors
    /// If it cannot be started, or takes the host down.
    pub fn run<S: AsRef<str>>(&mut self, argv: &[S]) -> Result<Output, Error> {
        // Shorter than the host's own timeout: a hung command is reported by name,
        // and only a hung dom0 costs the host.
        self.run_within(argv, self.timeout * 5 / 6)
    }

    /// Runs a command in dom0; after `limit` it is killed.
    ///
    /// # Errors
    /// If it cannot be started, is killed, or takes the host down.
    pub fn run_within<S: AsRef<str>>(
        &mut self,
        argv: &[S],
        limit: Duration,
    ) -> Result<Output, Error> {
        let argv: Vec<String> = argv.iter().map(|a| a.as_ref().to_owned()).collect();
        let what = argv.join(" ");
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        match self.ask(&Request::Run { argv, limit }, &what)? {
            Reply::Ran(output) => Ok(output),
            other => Err(unexpected(other)),
        }
    }

    /// Writes a file in dom0.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&mut self, path: &str, data: &[u8]) -> Result<(), Error> {
        match self.ask(
            &Request::Put {
                path: path.to_owned(),
                data: data.to_vec(),
            },
            path,
        )? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// The QEMU monitor.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub fn monitor(&self) -> Result<Monitor, Error> {
        let socket = self.directory.path().join(MONITOR);
        UnixStream::connect(&socket)
            .and_then(|line| Monitor::new(line, Arc::clone(&self.console), self.timeout))
            .map_err(|error| file_error(&socket, error))
    }

    /// A debugger for the whole machine, which it stops.
    ///
    /// # Errors
    /// If the host was booted without one, or QEMU does not answer.
    pub fn debugger(&self) -> Result<Debugger, Error> {
        let socket = self.directory.path().join(DEBUGGER);
        UnixStream::connect(&socket)
            .and_then(|line| Debugger::new(line, self.cpus, self.timeout))
            .map_err(|error| file_error(&socket, error))
    }

    /// Presses one of the hypervisor's debug keys and waits until a console line
    /// contains `answer`; returns the output up to then.
    ///
    /// # Errors
    /// If there is no such line within the time-out, or the host is lost.
    pub fn press(&mut self, key: char, answer: &str) -> Result<String, Error> {
        if !self.keys_reach_xen {
            // Serial input goes to dom0 until it is switched to Xen.
            self.type_in("\x01\x01\x01", "Serial input to Xen")?;
            self.keys_reach_xen = true;
        }
        self.type_in(&key.to_string(), answer)
    }

    fn type_in(&mut self, text: &str, answer: &str) -> Result<String, Error> {
        let start = self.console().len();
        if let Some(keyboard) = &mut self.qemu.stdin {
            let typed = keyboard.write_all(text.as_bytes());
            typed.map_err(|e| Error::Dom0(e.to_string()))?;
        }
        self.printed(start, answer, |printed| printed.contains(answer))
    }

    /// Waits until what was printed behind the first `start` bytes is `enough`, which
    /// `what` describes; returns it. The console may be late: dom0's answers do not wait
    /// for it.
    ///
    /// # Errors
    /// If it is not within the time-out, or the host is lost.
    pub fn printed(
        &self,
        start: usize,
        what: &str,
        enough: impl Fn(&str) -> bool,
    ) -> Result<String, Error> {
        let end = Instant::now() + self.timeout;
        loop {
            self.check_console()?;
            let printed = self.console().split_off(start);
            if enough(&printed) {
                return Ok(printed);
            }
            if Instant::now() > end {
                return Err(Error::TimedOut {
                    what: format!("{what:?} on the console"),
                    seconds: self.timeout.as_secs(),
                    console: self.tail(),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything that the hypervisor and dom0 have printed so far.
    pub fn console(&self) -> String {
        self.console
            .lock()
            .map(|c| c.text.clone())
            .unwrap_or_default()
    }

    /// Shuts the host down cleanly, within the timeout.
    ///
    /// # Errors
    /// If it crashes on the way.
    pub fn shut_down(mut self) -> Result<(), Error> {
        self.send(&Request::PowerOff)?;
        let end = Instant::now() + self.timeout;
        while Instant::now() < end && matches!(self.qemu.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.check_console()
    }

    fn ask(&mut self, request: &Request, what: &str) -> Result<Reply, Error> {
        self.check_console()?;
        let reply = self.send(request).and_then(|()| self.receive(what, None));
        if reply.is_err() {
            // Pending output would be taken for the next reply.
            self.stop();
        }
        reply
    }

    fn stop(&mut self) {
        // It may already have exited.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }

    fn send(&mut self, request: &Request) -> Result<(), Error> {
        let mut text = serde_json::to_string(request).map_err(|e| Error::Dom0(e.to_string()))?;
        text.push('\n');
        match self.line.write_all(text.as_bytes()) {
            Err(e) if is_gone(&e) => Err(self.off("a command")),
            written => written.map_err(|e| Error::Dom0(e.to_string())),
        }
    }

    /// Why the machine is gone.
    fn off(&self, what: &str) -> Error {
        // Its last output may still be in flight.
        std::thread::sleep(Duration::from_millis(200));
        self.check_console().err().unwrap_or_else(|| Error::Off {
            what: what.to_owned(),
            console: self.tail(),
        })
    }

    /// Waits for a reply, and no longer than `silence` for the console to print something.
    fn receive(&mut self, what: &str, silence: Option<Duration>) -> Result<Reply, Error> {
        let end = Instant::now() + self.timeout;
        let mut printed = (self.progress(), Instant::now());
        let mut chunk = [0; 4096];
        loop {
            if let Some(at) = self.received.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.received.drain(..=at).collect();
                return serde_json::from_slice(&line)
                    .map_err(|_| Error::NoReply(String::from_utf8_lossy(&line).into_owned()));
            }
            match self.line.read(&mut chunk) {
                Ok(0) => return Err(self.off(what)),
                Err(e) if is_gone(&e) => return Err(self.off(what)),
                Ok(size) => self.received.extend_from_slice(&chunk[..size]),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    self.check_console()?;
                    if Instant::now() > end {
                        return Err(Error::TimedOut {
                            what: what.to_owned(),
                            seconds: self.timeout.as_secs(),
                            console: self.tail(),
                        });
                    }
                    let size = self.progress();
                    if size != printed.0 {
                        printed = (size, Instant::now());
                    }
                    if let Some(silence) = silence.filter(|limit| printed.1.elapsed() > *limit) {
                        return Err(Error::Stalled {
                            seconds: silence.as_secs(),
                            console: self.tail(),
                        });
                    }
                }
                Err(e) => return Err(Error::Dom0(e.to_string())),
            }
        }
    }

    fn check_console(&self) -> Result<(), Error> {
        check(&self.console)
    }

    /// How much the console has printed, but for complaints that a CPU does not go on.
    fn progress(&self) -> usize {
        let console = self.console.lock();
        console.map(|c| progress(&c.text)).unwrap_or_default()
    }

    fn tail(&self) -> String {
        self.console.lock().map(|c| c.tail()).unwrap_or_default()
    }
}

/// The bytes of `text`, but for what Linux prints again and again while a CPU does not go on.
fn progress(text: &str) -> usize {
    const COMPLAINT: &str = "BUG: soft lockup";
    let lines = text.lines().filter(|line| !line.contains(COMPLAINT));
    lines.map(str::len).sum()
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reports what happened to those who follow the console, or on standard error.
fn report(config: &HostConfig, text: &str) {
    match config.on_line {
        Some(on_line) => text.lines().for_each(on_line),
        // Nobody may be reading it.
        None => drop(writeln!(io::stderr(), "{text}")),
    }
}

/// QEMU's command line; `directory` is for its sockets.
fn emulator(config: &HostConfig, boot: &Boot, directory: &Path) -> Command {
    let board = boot.board;
    let (acceleration, counting) = if config.count_instructions {
        (
            "tcg,thread=single",
            ["-icount", "shift=0,sleep=off"].as_slice(),
        )
    } else {
        ("tcg,thread=multi", [].as_slice())
    };
    let place = |socket: &str| directory.join(socket).display().to_string();
    let cpus = config.cpus.unwrap_or(board.cpus);
    let cpus = format!("{cpus},threads={}", config.threads);
    let debugger = format!("unix:{},server=on,wait=off", place(DEBUGGER));
    let debugger = config.debugger.then_some(["-gdb", &debugger]);
    let mut command = Command::new(board.qemu);
    command
        .args(["-accel", acceleration])
        .args(counting)
        .args(["-display", "none", "-no-reboot"])
        .args(["-m", &config.memory.to_string(), "-smp", &cpus])
        .args(["-nic", "none", "-serial", "stdio", "-chardev"])
        .arg(format!(
            "socket,id=line,server=on,wait=off,path={}",
            place(LINE)
        ))
        .args(board.line)
        .args(["-monitor", "none", "-qmp"])
        .arg(format!("unix:{},server=on,wait=off", place(MONITOR)))
        .args(board.arguments)
        .args(config.processor.iter().flat_map(|name| ["-cpu", name]))
        .args(debugger.into_iter().flatten())
        .args(config.plugin.iter().flat_map(|plugin| ["-plugin", plugin]))
        .args(&boot.arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Fails if the hypervisor has crashed, or prints without end.
pub(crate) fn check(console: &Mutex<Console>) -> Result<(), Error> {
    let crash = || console.lock().ok().and_then(|c| c.crash());
    if crash().is_some() {
        // The rest of the crash is still in flight.
        std::thread::sleep(Duration::from_millis(300));
        return Err(Error::Crashed(crash().unwrap_or_default()));
    }
    let Ok(console) = console.lock() else {
        return Ok(());
    };
    if console.flooded {
        Err(Error::ConsoleFlood(console.limit))
    } else {
        Ok(())
    }
}

/// Starts to read what QEMU prints, up to `limit` bytes: the console, and its own
/// complaints.
pub(crate) fn read_console(
    qemu: &mut Process,
    limit: usize,
    on_line: Option<fn(&str)>,
) -> Arc<Mutex<Console>> {
    let console = Arc::new(Mutex::new(Console {
        limit,
        ..Console::default()
    }));
    let output = qemu.stdout.take();
    let errors = qemu.stderr.take();
    let streams = [
        output.map(|s| Box::new(s) as Box<dyn Read + Send>),
        errors.map(|s| Box::new(s) as Box<dyn Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        let console = Arc::clone(&console);
        std::thread::spawn(move || watch(stream, &console, on_line));
    }
    console
}

fn unexpected(reply: Reply) -> Error {
    match reply {
        Reply::Failed(message) => Error::Dom0(message),
        other => Error::Dom0(format!("unexpected {other:?}")),
    }
}

pub(crate) fn file_error(path: &Path, error: io::Error) -> Error {
    Error::File {
        path: path.display().to_string(),
        error,
    }
}

fn connect(socket: &Path, qemu: &mut Child) -> io::Result<UnixStream> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(socket) {
            Ok(line) => {
                line.set_read_timeout(Some(Duration::from_millis(200)))?;
                return Ok(line);
            }
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) if !matches!(qemu.try_wait(), Ok(None)) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Whether the error means that the machine closed its end of the line.
fn is_gone(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    kinds.contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let none = PathBuf::from("/nowhere/xen.gz");
        let config = HostConfig::new(none.clone(), none.clone(), None, none);
        let error = Host::boot(&config)
            .expect_err("there is no such file")
            .to_string();
        assert!(error.starts_with("/nowhere/xen.gz: "), "{error}");
    }

    #[test]
    fn complaints_about_a_cpu_are_no_progress() {
        let booting = "(XEN) PCI add device 0000:00:02.0\n";
        let complaint = "[   29.1] watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [a:66]\n";
        let stuck = [booting, complaint, complaint].concat();
        assert_eq!(progress(&stuck), progress(booting));
        assert!(progress(&[&stuck, booting].concat()) > progress(&stuck));
    }
}
