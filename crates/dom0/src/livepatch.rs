//! The live-patch operations.

use crate::privcmd::Hypervisor;
use xsplice_abi::errno::Errno;
use xsplice_abi::sysctl::{self, Header, InterfaceVersion, List, ListV12, Name, Op};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What state a payload is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Loaded, its checks passed.
    Checked,
    /// Its functions are in use.
    Applied,
    /// A number that the interface does not define.
    Unknown(u32),
}

/// State of a payload and the result of the last action on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// The state.
    pub state: State,
    /// 0, or a negative error number; `-EAGAIN` while the action is under way.
    pub rc: i32,
}

impl From<sysctl::Status> for Status {
    fn from(status: sysctl::Status) -> Self {
        let state = match status.state.get() {
            sysctl::STATE_CHECKED => State::Checked,
            sysctl::STATE_APPLIED => State::Applied,
            other => State::Unknown(other),
        };
        Self {
            state,
            rc: status.rc.get(),
        }
    }
}

/// A payload that the hypervisor holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Payload {
    /// Its name.
    pub name: String,
    /// Its status.
    pub status: Status,
    /// The `key=value` texts that it carries.
    pub metadata: Vec<String>,
}

/// What can be done with a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Put its functions in use.
    Apply,
    /// Put the functions that it replaced back in use.
    Revert,
    /// Revert all others and apply it.
    Replace,
    /// Take it out of the hypervisor.
    Unload,
}

/// The live-patch operations of a hypervisor.
#[derive(Debug)]
pub struct Livepatch<'a, H> {
    hypervisor: &'a H,
    version: InterfaceVersion,
}

impl<'a, H: Hypervisor> Livepatch<'a, H> {
    /// Finds the interface version that the hypervisor speaks.
    ///
    /// # Errors
    /// `EACCES` if it speaks none that this crate knows, otherwise its own:
    /// `EPERM` if the caller may not, `ENOSYS` or `EOPNOTSUPP` if live
    /// patching is not built in.
    pub fn negotiate(hypervisor: &'a H) -> Result<Self, Errno> {
        for version in InterfaceVersion::ALL {
            let livepatch = Self {
                hypervisor,
                version,
            };
            match livepatch.sizes() {
                Ok(_) => return Ok(livepatch),
                Err(Errno::EACCES) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EACCES)
    }

    /// The interface version in use.
    pub fn interface_version(&self) -> InterfaceVersion {
        self.version
    }

    /// Gives the hypervisor the payload `data` under `name`.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn upload(&self, name: &str, data: &[u8]) -> Result<(), Errno> {
        let mut payload = self.hypervisor.buffer(data.len())?;
        payload.as_mut().copy_from_slice(data);
        let (mut name, descriptor) = self.name(name)?;
        let request = sysctl::Upload {
            name: descriptor,
            size: U64::new(data.len() as u64),
            payload: U64::new(self.hypervisor.address(&payload)),
        };
        self.call(sysctl::UPLOAD, &request, &mut [&mut name, &mut payload])?;
        Ok(())
    }

    /// The status of the payload `name`.
    ///
    /// # Errors
    /// `ENOENT` if there is none of this name, and others of the hypervisor.
    pub fn get(&self, name: &str) -> Result<Status, Errno> {
        let (mut name, descriptor) = self.name(name)?;
        let request = sysctl::Get {
            name: descriptor,
            ..Default::default()
        };
        let (_, reply) = self.call(sysctl::GET, &request, &mut [&mut name])?;
        Ok(reply.status.into())
    }

    /// Starts `action` on the payload `name`; its result is in the status.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn action(
        &self,
        name: &str,
        action: Action,
        timeout_ns: u32,
        nodeps: bool,
    ) -> Result<(), Errno> {
        if nodeps && !self.version.has_flags_and_metadata() {
            return Err(Errno::EOPNOTSUPP);
        }
        let (mut name, descriptor) = self.name(name)?;
        let cmd = match action {
            Action::Unload => sysctl::ACTION_UNLOAD,
            Action::Revert => sysctl::ACTION_REVERT,
            Action::Apply => sysctl::ACTION_APPLY,
            Action::Replace => sysctl::ACTION_REPLACE,
        };
        let request = sysctl::Action {
            name: descriptor,
            cmd: cmd.into(),
            timeout: timeout_ns.into(),
            flags: if nodeps { sysctl::FLAG_NODEPS } else { 0 }.into(),
            ..Default::default()
        };
        self.call(sysctl::ACTION, &request, &mut [&mut name])?;
        Ok(())
    }

    /// Every payload that the hypervisor holds, in the order of upload.
    ///
    /// # Errors
    /// The hypervisor's; `EAGAIN` if the list kept changing while it was read.
    pub fn list(&self) -> Result<Vec<Payload>, Errno> {
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            let sizes = self.sizes()?;
            if sizes.count == 0 {
                return Ok(Vec::new());
            }
            match self.list_once(&sizes) {
                Ok(Some(payloads)) => return Ok(payloads),
                // It changed between the two calls.
                Ok(None) | Err(Errno::EINVAL | Errno::ENOMEM | Errno::E2BIG) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EAGAIN)
    }

    fn sizes(&self) -> Result<Sizes, Errno> {
        if self.version.has_flags_and_metadata() {
            let (_, reply) = self.call(sysctl::LIST, &List::default(), &mut [])?;
            Ok(Sizes {
                version: reply.version.get(),
                count: reply.nr.get(),
                names: reply.name_total_size.get(),
                metadata: reply.metadata_total_size.get(),
            })
        } else {
            let (_, reply) = self.call(sysctl::LIST, &ListV12::default(), &mut [])?;
            let count = reply.nr.get();
            let names = count.saturating_mul(u32::try_from(sysctl::NAME_SIZE).unwrap_or(u32::MAX));
            Ok(Sizes {
                version: reply.version.get(),
                count,
                names,
                metadata: 0,
            })
        }
    }

    fn list_once(&self, sizes: &Sizes) -> Result<Option<Vec<Payload>>, Errno> {
        let room = |size: u32| {
            self.hypervisor
                .buffer(usize::try_from(size).map_err(|_| Errno::E2BIG)?)
        };
        let count = sizes.count;
        let words = count.checked_mul(4).ok_or(Errno::E2BIG)?;
        let mut status = room(count.checked_mul(8).ok_or(Errno::E2BIG)?)?;
        let (mut names, mut name_sizes) = (room(sizes.names)?, room(words)?);
        let (mut metadata, mut metadata_sizes) = (room(sizes.metadata)?, room(words)?);
        let at = |buffer: &H::Buffer| U64::new(self.hypervisor.address(buffer));
        let (done, version, left) = if self.version.has_flags_and_metadata() {
            let mut request = List {
                version: sizes.version.into(),
                nr: count.into(),
                status: at(&status),
                name: at(&names),
                len: at(&name_sizes),
                metadata: at(&metadata),
                metadata_len: at(&metadata_sizes),
                ..Default::default()
            };
            if self.version.list_takes_sizes() {
                request.name_total_size = sizes.names.into();
                request.metadata_total_size = sizes.metadata.into();
            }
            let buffers = &mut [
                &mut status,
                &mut names,
                &mut name_sizes,
                &mut metadata,
                &mut metadata_sizes,
            ];
            let (done, reply) = self.call(sysctl::LIST, &request, buffers)?;
            (done, reply.version.get(), reply.nr.get())
        } else {
            let request = ListV12 {
                version: sizes.version.into(),
                nr: count.into(),
                status: at(&status),
                name: at(&names),
                len: at(&name_sizes),
                ..Default::default()
            };
            let buffers = &mut [&mut status, &mut names, &mut name_sizes];
            let (done, reply) = self.call(sysctl::LIST, &request, buffers)?;
            (done, reply.version.get(), reply.nr.get())
        };
        if done != i64::from(count) || version != sizes.version || left > 0 {
            return Ok(None);
        }
        let stride = (!self.version.has_flags_and_metadata()).then_some(sysctl::NAME_SIZE);
        let names = split(names.as_ref(), name_sizes.as_ref(), stride).ok_or(Errno::EINVAL)?;
        let metadata =
            split(metadata.as_ref(), metadata_sizes.as_ref(), None).ok_or(Errno::EINVAL)?;
        let (status, _) = status.as_ref().as_chunks::<8>();
        let payloads = names
            .iter()
            .zip(&metadata)
            .zip(status)
            .map(|((name, metadata), status)| Payload {
                name: text(name),
                status: sysctl::Status::read_from_bytes(status)
                    .unwrap_or_default()
                    .into(),
                metadata: metadata
                    .split(|&b| b == 0)
                    .filter(|t| !t.is_empty())
                    .map(text)
                    .collect(),
            });
        Ok(Some(payloads.collect()))
    }

    fn name(&self, name: &str) -> Result<(H::Buffer, Name), Errno> {
        let size = name.len() + 1;
        if name.is_empty() || size > sysctl::NAME_SIZE || name.contains('\0') {
            return Err(Errno::EINVAL);
        }
        let mut buffer = self.hypervisor.buffer(size)?;
        buffer.as_mut()[..name.len()].copy_from_slice(name.as_bytes());
        let descriptor = Name {
            name: U64::new(self.hypervisor.address(&buffer)),
            size: U16::new(u16::try_from(size).map_err(|_| Errno::EINVAL)?),
            ..Default::default()
        };
        Ok((buffer, descriptor))
    }

    fn call<T>(
        &self,
        cmd: u32,
        request: &T,
        buffers: &mut [&mut H::Buffer],
    ) -> Result<(i64, T), Errno>
    where
        T: IntoBytes + FromBytes + Immutable + KnownLayout,
    {
        const START: usize = size_of::<Header>() + size_of::<Op>();
        let header = Header {
            cmd: sysctl::LIVEPATCH_OP.into(),
            interface_version: self.version.0.into(),
        };
        let op = Op {
            cmd: cmd.into(),
            ..Default::default()
        };
        let mut buffer = self.hypervisor.buffer(sysctl::SYSCTL_SIZE)?;
        let bytes = buffer.as_mut();
        bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        bytes[size_of::<Header>()..START].copy_from_slice(op.as_bytes());
        bytes[START..START + size_of::<T>()].copy_from_slice(request.as_bytes());
        let address = self.hypervisor.address(&buffer);
        let mut all: Vec<&mut H::Buffer> = buffers.iter_mut().map(|b| &mut **b).collect();
        all.push(&mut buffer);
        let result = self
            .hypervisor
            .call(sysctl::HYPERCALL, [address, 0], &mut all)?;
        let reply = T::read_from_bytes(&buffer.as_ref()[START..START + size_of::<T>()]);
        Ok((result, reply.map_err(|_| Errno::EINVAL)?))
    }
}

struct Sizes {
    version: u32,
    count: u32,
    names: u32,
    metadata: u32,
}

/// Cuts `data` into pieces of the sizes in `sizes` (`uint32_t` each), one
/// behind the other or `stride` bytes apart.
fn split<'d>(data: &'d [u8], sizes: &[u8], stride: Option<usize>) -> Option<Vec<&'d [u8]>> {
    let mut at = 0_usize;
    let (sizes, _) = sizes.as_chunks::<4>();
    sizes
        .iter()
        .map(|&size| {
            let size = usize::try_from(u32::from_le_bytes(size)).ok()?;
            let piece = data.get(at..at.checked_add(size)?)?;
            at = at.checked_add(stride.unwrap_or(size))?;
            Some(piece)
        })
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}
