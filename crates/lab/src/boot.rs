// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that QEMU emulates for a hypervisor, and how it is booted.

use crate::host::{Error, HostConfig, file_error};
use crate::init::{LINE, PRIVCMD_MODULE};
use crate::initramfs::Initramfs;
use std::io::{self, Read as _};
use std::path::Path;
use xsplice_abi::machine::Machine;

/// A machine as QEMU emulates it.
#[derive(Debug)]
pub(crate) struct Board {
    machine: Machine,
    /// The emulator.
    pub(crate) qemu: &'static str,
    /// Debian's package of it.
    pub(crate) package: &'static str,
    /// What makes it this machine.
    pub(crate) arguments: &'static [&'static str],
    /// The serial port that leads from dom0 to the host, as the character device
    /// `line`.
    pub(crate) line: [&'static str; 2],
    /// What dom0's kernel calls this port.
    tty: &'static str,
    /// CPUs, unless others are asked for.
    pub(crate) cpus: u32,
    /// Arguments of the hypervisor.
    xen: &'static str,
    /// Arguments of dom0's kernel.
    dom0: &'static str,
}

/// A PC.
const PC: Board = Board {
    machine: Machine::X86_64,
    qemu: "qemu-system-x86_64",
    package: "qemu-system-x86",
    arguments: &[],
    line: ["-serial", "chardev:line"],
    tty: "/dev/ttyS1",
    cpus: 4,
    xen: "console=com1 com1=115200,8n1",
    dom0: "console=hvc0 earlyprintk=xen",
};

/// QEMU's own ARM machine has one UART, which is Xen's; dom0 gets one on the PCI bus.
const ARM_LINE: [&str; 2] = ["-device", "pci-serial,chardev=line"];
/// dom0 has one virtual CPU: with more it boots several times slower, and every physical
/// CPU takes part in a rendezvous anyway.
const ARM_XEN: &str = "console=dtuart dtuart=/pl011@9000000 dom0_max_vcpus=1";
const ARM_DOM0: &str = "console=hvc0 earlycon=xenboot";

/// ARM, 64 bits. With four CPUs, Xen 4.17's default scheduler sometimes stops scheduling
/// dom0.
const ARM64: Board = Board {
    machine: Machine::Arm64,
    qemu: "qemu-system-aarch64",
    package: "qemu-system-arm",
    arguments: &[
        "-M",
        "virt,virtualization=on,gic-version=3",
        "-cpu",
        "cortex-a57",
    ],
    line: ARM_LINE,
    tty: "/dev/ttyS0",
    cpus: 2,
    xen: ARM_XEN,
    dom0: ARM_DOM0,
};

/// ARM, 32 bits. dom0 cannot reach a PCI bus above 4 GiB.
const ARM32: Board = Board {
    machine: Machine::Arm32,
    qemu: "qemu-system-arm",
    arguments: &[
        "-M",
        "virt,virtualization=on,highmem=off",
        "-cpu",
        "cortex-a15",
    ],
    ..ARM64
};

/// Arguments of every hypervisor.
const XEN: &str = "loglvl=all guest_loglvl=all noreboot dom0_mem=512M";
/// Arguments of every kernel of dom0.
const DOM0: &str = "rdinit=/init quiet";
/// Firmware for a PC.
const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";
/// The magic number of ELF files.
const ELF: &[u8] = b"\x7fELF";
/// On ARM, where QEMU's loader puts dom0's kernel and initramfs: behind its device tree,
/// which would otherwise overwrite them.
const ARM_MODULES: [(&str, &str); 2] = [("kernel", "0x49000000"), ("initrd", "0x4c000000")];

/// The kinds of hypervisor files.
#[derive(Clone, Copy)]
enum Kind {
    /// An ELF file for a Multiboot loader.
    Multiboot,
    /// A UEFI program.
    Efi,
    /// Linux's `Image` format, which is a UEFI program too.
    Arm64,
    /// Linux's `zImage` format.
    Arm32,
}

impl Kind {
    /// Sources: the ELF and PE specifications; Linux's `Documentation/arm64/booting`,
    /// `arch/arm/boot/compressed/head.S`, and `Documentation/arch/x86/boot.rst`.
    fn of(file: &[u8]) -> Option<Self> {
        let at = |offset: usize, magic: &[u8]| {
            file.get(offset..)
                .is_some_and(|rest| rest.starts_with(magic))
        };
        if at(0, ELF) {
            Some(Self::Multiboot)
        } else if at(0x38, b"ARMd") {
            Some(Self::Arm64)
        } else if at(0x24, &0x016f_2818_u32.to_le_bytes()) {
            Some(Self::Arm32)
        } else if at(0, b"MZ") && !at(0x202, b"HdrS") {
            // A Linux kernel for x86 is a UEFI program too, but not a hypervisor.
            Some(Self::Efi)
        } else {
            None
        }
    }

    fn board(self) -> &'static Board {
        match self {
            Self::Multiboot | Self::Efi => &PC,
            Self::Arm64 => &ARM64,
            Self::Arm32 => &ARM32,
        }
    }
}

/// A hypervisor that is ready to boot.
pub(crate) struct Boot {
    pub(crate) board: &'static Board,
    /// QEMU's arguments for the files.
    pub(crate) arguments: Vec<String>,
}

impl Boot {
    /// Puts the files to boot into `directory`.
    pub(crate) fn prepare(config: &HostConfig, directory: &Path) -> Result<Self, Error> {
        let xen = gunzip(&config.xen, read(&config.xen)?)?;
        let kind = Kind::of(&xen).ok_or_else(|| {
            let message = "not a hypervisor: neither xen.gz, nor the ELF file in it, nor xen.efi, \
                           nor the image xen of ARM";
            file_error(&config.xen, io::Error::other(message))
        })?;
        let board = kind.board();
        check_xsplice(&config.xsplice, board.machine)?;
        let files = Files {
            directory,
            kernel: &config
                .kernel
                .canonicalize()
                .map_err(|e| file_error(&config.kernel, e))?,
            initramfs: initramfs(config)?,
            xen,
            xen_arguments: format!("{} {XEN} {}", board.xen, config.xen_arguments),
            dom0_arguments: format!("{} {DOM0} {LINE}={}", board.dom0, board.tty),
        };
        let arguments = match kind {
            Kind::Multiboot => files.multiboot()?,
            Kind::Efi => files.efi()?,
            Kind::Arm64 | Kind::Arm32 => files.arm()?,
        };
        Ok(Self { board, arguments })
    }
}

/// What is booted.
struct Files<'a> {
    directory: &'a Path,
    kernel: &'a Path,
    initramfs: Vec<u8>,
    xen: Vec<u8>,
    xen_arguments: String,
    dom0_arguments: String,
}

impl Files<'_> {
    fn place(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Writes the files under names without commas, which QEMU's arguments would be
    /// split at.
    fn write(&self) -> Result<(), Error> {
        write(&self.directory.join("xen"), &self.xen)?;
        write(&self.directory.join("initrd"), &self.initramfs)?;
        link(self.kernel, &self.directory.join("kernel"))
    }

    fn multiboot(&self) -> Result<Vec<String>, Error> {
        self.write()?;
        let (kernel, initrd) = (self.place("kernel"), self.place("initrd"));
        let modules = format!("{kernel} {},{initrd}", self.dom0_arguments);
        let arguments = ["-kernel", &self.place("xen"), "-append"];
        let more = [&self.xen_arguments, "-initrd", &modules];
        Ok(arguments
            .into_iter()
            .chain(more)
            .map(str::to_owned)
            .collect())
    }

    /// QEMU's loader puts the modules into memory and into the device tree.
    fn arm(&self) -> Result<Vec<String>, Error> {
        self.write()?;
        let arguments = ["-kernel", &self.place("xen"), "-append"];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
        arguments.push(self.xen_arguments.clone());
        for (name, address) in ARM_MODULES {
            let place = self.place(name);
            let mut device = format!("guest-loader,addr={address},{name}={place}");
            if name == "kernel" {
                device.push_str(&format!(",bootargs={}", self.dom0_arguments));
            }
            arguments.extend(["-device".to_owned(), device]);
        }
        Ok(arguments)
    }

    /// The firmware starts the hypervisor, which reads the configuration file of the
    /// same name.
    fn efi(&self) -> Result<Vec<String>, Error> {
        if !Path::new(FIRMWARE).exists() {
            let error = io::Error::new(io::ErrorKind::NotFound, "install Debian's package ovmf");
            return Err(file_error(Path::new(FIRMWARE), error));
        }
        let programs = self.directory.join("disk/EFI/BOOT");
        std::fs::create_dir_all(&programs).map_err(|e| file_error(&programs, e))?;
        write(&programs.join("BOOTX64.EFI"), &self.xen)?;
        write(&programs.join("INITRD"), &self.initramfs)?;
        link(self.kernel, &programs.join("KERNEL"))?;
        let words = format!(
            "[global]\ndefault=lab\n[lab]\noptions={}\nkernel=KERNEL {}\nramdisk=INITRD\n",
            self.xen_arguments, self.dom0_arguments
        );
        write(&programs.join("BOOTX64.CFG"), words.as_bytes())?;
        let disk = format!("file=fat:rw:{},format=raw", self.place("disk"));
        let arguments = ["-bios", FIRMWARE, "-drive", &disk];
        Ok(arguments.map(str::to_owned).to_vec())
    }
}

/// dom0 cannot run a program for another machine, and nothing would report that.
fn check_xsplice(path: &Path, machine: Machine) -> Result<(), Error> {
    let mut header = [0; 20];
    let file = std::fs::File::open(path);
    let read = file.and_then(|mut file| file.read_exact(&mut header));
    read.map_err(|error| file_error(path, error))?;
    let found = Machine::from_elf(u16::from_le_bytes([header[18], header[19]]));
    if header.starts_with(ELF) && found == Some(machine) {
        return Ok(());
    }
    let message = format!("not a program for {machine}, which the hypervisor runs on");
    Err(file_error(path, io::Error::other(message)))
}

pub(crate) fn link(to: &Path, from: &Path) -> Result<(), Error> {
    std::os::unix::fs::symlink(to, from).map_err(|e| file_error(from, e))
}

fn initramfs(config: &HostConfig) -> Result<Vec<u8>, Error> {
    let mut initramfs = Initramfs::default();
    for directory in ["proc", "sys", "dev", "tmp"] {
        initramfs.directory(directory);
    }
    initramfs.file("init", 0o755, &read(&config.xsplice)?);
    initramfs.symlink("bin/xsplice", "/init");
    initramfs.symlink("bin/xen-livepatch", "/init");
    if let Some(module) = &config.privcmd {
        initramfs.file(PRIVCMD_MODULE, 0o644, &read(module)?);
    }
    for (place, program) in &config.programs {
        let place = place.trim_start_matches('/');
        initramfs
            .program(place, program, &config.libraries)
            .map_err(|error| file_error(program, error))?;
    }
    for (place, file) in &config.files {
        initramfs.file(place.trim_start_matches('/'), 0o644, &read(file)?);
    }
    Ok(initramfs.finish())
}

pub(crate) fn gunzip(path: &Path, data: Vec<u8>) -> Result<Vec<u8>, Error> {
    if !data.starts_with(&[0x1f, 0x8b]) {
        return Ok(data);
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(data.as_slice())
        .read_to_end(&mut plain)
        .map_err(|error| file_error(path, error))?;
    Ok(plain)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| file_error(path, error))
}

pub(crate) fn write(path: &Path, data: &[u8]) -> Result<(), Error> {
    std::fs::write(path, data).map_err(|error| file_error(path, error))
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn a_linux_kernel_is_not_mistaken_for_a_hypervisor() {
        let mut file = vec![0; 0x400];
        file[..2].copy_from_slice(b"MZ");
        assert!(matches!(Kind::of(&file), Some(Kind::Efi)));
        file[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(Kind::of(&file).is_none());
    }
}
