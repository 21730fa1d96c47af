// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host whose dom0 is a Debian system with a disk: what an administrator has.

use crate::boot::{gunzip, link, read, write};
use crate::console::Console;
use crate::host::{Error, check, file_error, read_console};
use crate::protocol::Output;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xsplice_system::interrupt::{Directory, Process};

/// What to boot.
#[derive(Debug, Clone)]
pub struct DebianConfig {
    /// The hypervisor: `xen.gz`.
    pub xen: PathBuf,
    /// dom0's kernel.
    pub kernel: PathBuf,
    /// The initramfs that mounts the disk `/dev/vda` and starts the system on it.
    pub initramfs: PathBuf,
    /// The disk, as an image. It is not changed: a host writes to a copy of its own.
    pub disk: PathBuf,
    /// The private key of who may log in as root.
    pub key: PathBuf,
    /// Memory in MiB, and what of it is dom0's.
    pub memory: (u32, u32),
    /// CPUs of the machine.
    pub cpus: u32,
    /// Timeout for a boot, for a shutdown, and for each command.
    pub timeout: Duration,
    /// Upper bound for the output of one boot on the console, in bytes.
    pub console_limit: usize,
}

impl DebianConfig {
    /// 2 CPUs, 1 GiB, 300 seconds: emulation on a busy machine is slow.
    pub fn new(
        xen: PathBuf,
        kernel: PathBuf,
        initramfs: PathBuf,
        disk: PathBuf,
        key: PathBuf,
    ) -> Self {
        Self {
            xen,
            kernel,
            initramfs,
            disk,
            key,
            memory: (1024, 700),
            cpus: 2,
            timeout: Duration::from_secs(300),
            console_limit: 4 << 20,
        }
    }
}

/// The user who logs in, and where QEMU forwards the connections of.
const LOGIN: &str = "root@127.0.0.1";
/// What `ssh` exits with if there is no connection.
const NO_CONNECTION: i32 = 255;
/// What `timeout` exits with if the time is over.
const TIME_OVER: i32 = 124;

/// A running host. Dropping it turns it off, and its disk is gone.
#[derive(Debug)]
pub struct DebianHost {
    config: DebianConfig,
    directory: Directory,
    port: u16,
    running: Option<Running>,
}

/// One boot of it.
#[derive(Debug)]
struct Running {
    qemu: Process,
    console: Arc<Mutex<Console>>,
}

impl DebianHost {
    /// Boots a host with a new disk.
    ///
    /// # Errors
    /// If it cannot be logged in to within the timeout.
    pub fn boot(config: &DebianConfig) -> Result<Self, Error> {
        let directory = Directory::new("xsplice-lab-")
            .map_err(|error| file_error(&std::env::temp_dir(), error))?;
        let place = |name: &str| directory.path().join(name);
        write(&place("xen"), &gunzip(&config.xen, read(&config.xen)?)?)?;
        link(&config.kernel, &place("kernel"))?;
        link(&config.initramfs, &place("initrd"))?;
        let mut disk = Command::new("qemu-img");
        disk.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&config.disk, &place("disk")]);
        local(&mut disk, "qemu-utils")?;
        let mut host = Self {
            config: config.clone(),
            port: free_port()?,
            directory,
            running: None,
        };
        host.start("")?;
        Ok(host)
    }

    /// Turns the host on; `arguments` are dom0's kernel's.
    fn start(&mut self, arguments: &str) -> Result<(), Error> {
        let mut command = self.emulator(arguments);
        let mut qemu = Process::spawn(&mut command).map_err(|error| Error::NoQemu {
            program: "qemu-system-x86_64",
            package: "qemu-system-x86",
            error,
        })?;
        let console = read_console(&mut qemu, self.config.console_limit, None);
        self.running = Some(Running { qemu, console });
        let end = Instant::now() + self.config.timeout;
        loop {
            let answer = self.attempt("systemctl is-system-running --wait")?;
            if answer.code != Some(NO_CONNECTION) {
                return Ok(());
            }
            self.check("boot")?;
            if Instant::now() > end {
                return Err(self.late("boot"));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn emulator(&self, arguments: &str) -> Command {
        let config = &self.config;
        let place = |name: &str| self.directory.path().join(name).display().to_string();
        let (memory, dom0) = config.memory;
        let xen = format!("console=com1 com1=115200,8n1 loglvl=all dom0_mem={dom0}M");
        let modules = format!(
            "{} console=hvc0 quiet {arguments},{}",
            place("kernel"),
            place("initrd")
        );
        let network = "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1";
        let mut command = Command::new("qemu-system-x86_64");
        // A machine that is reset is off: it is started again with the same disk.
        command
            .args(["-accel", "tcg,thread=multi", "-no-reboot"])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
            .args(["-m", &memory.to_string(), "-smp", &config.cpus.to_string()])
            .args(["-kernel", &place("xen"), "-append", &xen])
            .args(["-initrd", &modules, "-drive"])
            .arg(format!("file={},if=virtio,format=qcow2", place("disk")))
            .args(["-netdev", &format!("{network}:{}-:22", self.port)])
            .args(["-device", "virtio-net-pci,netdev=net"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The port of this machine at which its SSH server answers.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs a shell command in dom0, as root.
    ///
    /// # Errors
    /// If it takes too long, or the host is lost.
    pub fn run(&mut self, command: &str) -> Result<Output, Error> {
        let answer = self.attempt(command)?;
        match answer.code {
            Some(NO_CONNECTION) => {
                self.check(command)?;
                Err(Error::Dom0(format!("{command}: {}", answer.stderr.trim())))
            }
            Some(TIME_OVER) => Err(self.late(command)),
            _ => Ok(answer),
        }
    }

    /// Writes a file in dom0.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&mut self, path: &str, file: &std::path::Path) -> Result<(), Error> {
        let mut command = self.bounded("scp");
        command
            .args(self.options())
            .arg("-P")
            .arg(self.port.to_string());
        command.arg(file).arg(format!("{LOGIN}:{path}"));
        let answer = output(&mut command, "openssh-client")?;
        if answer.code == Some(0) {
            return Ok(());
        }
        self.check(path)?;
        Err(Error::Dom0(format!("{path}: {}", answer.stderr.trim())))
    }

    /// Reboots in order, with `arguments` for dom0's kernel; the disk stays.
    ///
    /// # Errors
    /// If it does not go down, or cannot be logged in to again, within the timeout.
    pub fn reboot(&mut self, arguments: &str) -> Result<(), Error> {
        // The connection may end before the answer.
        self.attempt("systemctl reboot")?;
        let end = Instant::now() + self.config.timeout;
        while self.runs() {
            if Instant::now() > end {
                return Err(self.late("shutdown"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.check_console()?;
        self.start(arguments)
    }

    /// Everything that the hypervisor and dom0 have printed in this boot.
    #[must_use]
    pub fn console(&self) -> String {
        let console = self.running.as_ref().and_then(|r| r.console.lock().ok());
        console.map(|c| c.text.clone()).unwrap_or_default()
    }

    fn attempt(&self, command: &str) -> Result<Output, Error> {
        let mut ssh = self.bounded("ssh");
        ssh.args(self.options())
            .arg("-p")
            .arg(self.port.to_string());
        ssh.args([LOGIN, command]);
        output(&mut ssh, "openssh-client")
    }

    /// `program`, which is ended when the timeout is over.
    fn bounded(&self, program: &str) -> Command {
        let mut command = Command::new("timeout");
        command.arg(self.config.timeout.as_secs().to_string());
        command.arg(program);
        command
    }

    /// The options of SSH: its host is known by its port, and connections are kept.
    fn options(&self) -> Vec<String> {
        let line = self.directory.path().join("line").display().to_string();
        let settings = [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=30",
            "ServerAliveInterval=15",
            "ControlMaster=auto",
            "ControlPersist=yes",
            &format!("ControlPath={line}"),
            &format!("IdentityFile={}", self.config.key.display()),
        ]
        .map(|setting| format!("-o{setting}"));
        [&["-F".to_owned(), "none".to_owned()], &settings[..]].concat()
    }

    fn runs(&mut self) -> bool {
        let running = self.running.as_mut();
        running.is_some_and(|r| matches!(r.qemu.try_wait(), Ok(None)))
    }

    /// Fails if the host is lost.
    fn check(&mut self, what: &str) -> Result<(), Error> {
        self.check_console()?;
        if self.runs() {
            return Ok(());
        }
        Err(Error::Off {
            what: what.to_owned(),
            console: self.tail(),
        })
    }

    fn check_console(&self) -> Result<(), Error> {
        self.running.as_ref().map_or(Ok(()), |r| check(&r.console))
    }

    fn late(&self, what: &str) -> Error {
        Error::TimedOut {
            what: what.to_owned(),
            seconds: self.config.timeout.as_secs(),
            console: self.tail(),
        }
    }

    fn tail(&self) -> String {
        let console = self.running.as_ref().and_then(|r| r.console.lock().ok());
        console.map(|c| c.tail()).unwrap_or_default()
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may already have exited.
            let _ = running.qemu.kill();
            let _ = running.qemu.wait();
        }
    }
}

impl Drop for DebianHost {
    fn drop(&mut self) {
        self.stop();
        // The process that keeps the connection ends by itself when it is lost, but not
        // at once.
        let mut ssh = Command::new("ssh");
        ssh.args(self.options()).args(["-O", "exit", LOGIN]);
        let _ = ssh.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A port that nobody listens on.
fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let port = listener.and_then(|listener| listener.local_addr());
    port.map(|address| address.port())
        .map_err(|error| Error::Dom0(format!("no port is free: {error}")))
}

/// Runs a program of this machine, from Debian's `package`.
fn output(command: &mut Command, package: &str) -> Result<Output, Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        Error::Dom0(format!(
            "cannot start {name} (Debian package {package}): {error}"
        ))
    })?;
    Ok(Output {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code(),
    })
}

/// Like [`output`], for what must succeed.
fn local(command: &mut Command, package: &str) -> Result<(), Error> {
    let output = output(command, package)?;
    if output.code == Some(0) {
        return Ok(());
    }
    Err(Error::Dom0(output.stderr))
}
