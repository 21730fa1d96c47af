// SPDX-License-Identifier: MIT OR Apache-2.0
//! The live-patch operations.

use crate::console::{self, Place};
use crate::privcmd::Hypervisor;
use std::time::{Duration, Instant};
use xsplice_abi::errno::Errno;
use xsplice_abi::sysctl::{self, InterfaceVersion, List, ListV12, Name, Op};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The state of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Loaded, its checks passed.
    Checked,
    /// Its functions are active.
    Applied,
    /// A number that the interface does not define.
    Unknown(u32),
}

/// State of a payload and the result of the last action on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// The state.
    pub state: State,
    /// 0, or a negative error number; `-EAGAIN` while the action is in progress.
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

/// A payload in the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Payload {
    /// Its name.
    pub name: String,
    /// Its status.
    pub status: Status,
    /// Its `key=value` strings.
    pub metadata: Vec<String>,
}

/// An action on a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Apply it.
    Apply,
    /// Revert it.
    Revert,
    /// Revert all others and apply this one.
    Replace,
    /// Unload it.
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
    /// `EACCES` if it speaks none that this crate supports, otherwise the
    /// hypervisor's: `EPERM` if the caller lacks permission, `ENOSYS` or `EOPNOTSUPP`
    /// if live patching is not built in.
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

    /// Where the next line is that the hypervisor prints to its console.
    ///
    /// # Errors
    /// The hypervisor's; `EAGAIN` if it prints faster than this can read.
    pub fn console_end(&self) -> Result<Place, Errno> {
        console::end(self.hypervisor, self.version)
    }

    /// What the hypervisor printed from `place` on, as far as its console ring still
    /// has it. The ring stays as it is.
    ///
    /// # Errors
    /// As those of [`console_end`](Self::console_end).
    pub fn console_since(&self, place: Place) -> Result<String, Errno> {
        console::since(self.hypervisor, self.version, place)
    }

    /// The interface version in use.
    pub fn interface_version(&self) -> InterfaceVersion {
        self.version
    }

    /// Uploads the payload `data` as `name`. With `force`, the hypervisor is asked to
    /// skip the checks that it can skip.
    ///
    /// # Errors
    /// The hypervisor's; before Xen 4.19, `EINVAL` with `force`.
    pub fn upload(&self, name: &str, data: &[u8], force: bool) -> Result<(), Errno> {
        let mut payload = self.hypervisor.buffer(data.len())?;
        payload.as_mut().copy_from_slice(data);
        let (mut name, descriptor) = self.name(name)?;
        let request = sysctl::Upload {
            name: descriptor,
            size: U64::new(data.len() as u64),
            payload: U64::new(self.hypervisor.address(&payload)),
        };
        let mut op = operation(sysctl::UPLOAD);
        if force {
            op.flags.set(sysctl::FLAG_FORCE);
        }
        self.call(&op, &request, &mut [&mut name, &mut payload])?;
        Ok(())
    }

    /// The status of the payload `name`.
    ///
    /// # Errors
    /// `ENOENT` if there is none of this name, otherwise the hypervisor's.
    pub fn get(&self, name: &str) -> Result<Status, Errno> {
        let (mut name, descriptor) = self.name(name)?;
        let request = sysctl::Get {
            name: descriptor,
            ..Default::default()
        };
        let (_, reply) = self.call(&operation(sysctl::GET), &request, &mut [&mut name])?;
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
        self.call(&operation(sysctl::ACTION), &request, &mut [&mut name])?;
        Ok(())
    }

    /// Starts `action` on the payload `name` and waits until it completes.
    ///
    /// # Errors
    /// The hypervisor's, and the action's; `EAGAIN` if it takes longer than all CPUs
    /// could need to reach the rendezvous.
    pub fn act(
        &self,
        name: &str,
        action: Action,
        timeout_ns: u32,
        nodeps: bool,
    ) -> Result<(), Errno> {
        self.action(name, action, timeout_ns, nodeps)?;
        self.wait(name, action, timeout_ns)
    }

    /// Waits until an `action` that was started completes.
    ///
    /// # Errors
    /// As those of [`act`](Self::act).
    pub fn wait(&self, name: &str, action: Action, timeout_ns: u32) -> Result<(), Errno> {
        // The rendezvous starts once every CPU has noticed; allow for that.
        let patience = 2 * Duration::from_nanos(timeout_ns.into()) + Duration::from_secs(1);
        let end = Instant::now() + patience;
        loop {
            match self.get(name) {
                Ok(status) if status.rc == -Errno::EAGAIN.0 => {}
                Ok(status) if status.rc == 0 => return Ok(()),
                Ok(status) => return Err(Errno(status.rc.wrapping_neg())),
                Err(Errno::ENOENT) if action == Action::Unload => return Ok(()),
                Err(errno) => return Err(errno),
            }
            if Instant::now() >= end {
                return Err(Errno::EAGAIN);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All payloads in the hypervisor, in the order of upload.
    ///
    /// # Errors
    /// The hypervisor's; `EAGAIN` if the list kept changing while it was read.
    pub fn list(&self) -> Result<Vec<Payload>, Errno> {
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            let sizes = self.sizes()?;
            match self.list_all(&sizes) {
                Ok(Some(payloads)) => return Ok(payloads),
                // The list changed while it was read: retry from the start.
                Ok(None) | Err(Errno::EINVAL | Errno::ENOMEM | Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Reads the list, in as many calls as the hypervisor requires; `None` if it
    /// changed meanwhile.
    fn list_all(&self, sizes: &Sizes) -> Result<Option<Vec<Payload>>, Errno> {
        let mut payloads = Vec::new();
        loop {
            let done = u32::try_from(payloads.len()).map_err(|_| Errno::E2BIG)?;
            if done >= sizes.count {
                return Ok(Some(payloads));
            }
            match self.list_part(sizes, done)? {
                Some(part) if !part.is_empty() => payloads.extend(part),
                _ => return Ok(None),
            }
        }
    }

    fn sizes(&self) -> Result<Sizes, Errno> {
        if self.version.has_flags_and_metadata() {
            let (_, reply) = self.call(&operation(sysctl::LIST), &List::default(), &mut [])?;
            Ok(Sizes {
                version: reply.version.get(),
                count: reply.nr.get(),
                names: reply.name_total_size.get(),
                metadata: reply.metadata_total_size.get(),
            })
        } else {
            let (_, reply) = self.call(&operation(sysctl::LIST), &ListV12::default(), &mut [])?;
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

    /// Reads the payloads from the one with index `idx` on.
    fn list_part(&self, sizes: &Sizes, idx: u32) -> Result<Option<Vec<Payload>>, Errno> {
        let count = (sizes.count - idx).min(MOST_PER_CALL);
        let mut page = Page::new(self.hypervisor, sizes, count)?;
        let has_metadata = self.version.has_flags_and_metadata();
        let (done, version) = if has_metadata {
            let mut request = page.request(self.hypervisor, sizes, idx, count);
            if self.version.list_takes_sizes() {
                request.name_total_size = sizes.names.into();
                request.metadata_total_size = sizes.metadata.into();
            }
            let buffers = &mut page.buffers();
            let (done, reply) = self.call(&operation(sysctl::LIST), &request, buffers)?;
            (done, reply.version.get())
        } else {
            let List {
                version,
                idx,
                nr,
                status,
                name,
                len,
                ..
            } = page.request(self.hypervisor, sizes, idx, count);
            let request = ListV12 {
                version,
                idx,
                nr,
                status,
                name,
                len,
                ..Default::default()
            };
            let [status, names, name_sizes, ..] = page.buffers();
            let buffers = &mut [status, names, name_sizes];
            let (done, reply) = self.call(&operation(sysctl::LIST), &request, buffers)?;
            (done, reply.version.get())
        };
        let done = usize::try_from(done).unwrap_or(0);
        if version != sizes.version || done > count as usize {
            return Ok(None);
        }
        let stride = (!has_metadata).then_some(sysctl::NAME_SIZE);
        page.payloads(done, stride).map(Some).ok_or(Errno::EINVAL)
    }

    fn name(&self, name: &str) -> Result<(H::Buffer, Name), Errno> {
        let size = name.len() + 1;
        if size > sysctl::NAME_SIZE || name.contains('\0') {
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
        op: &Op,
        request: &T,
        buffers: &mut [&mut H::Buffer],
    ) -> Result<(i64, T), Errno>
    where
        T: IntoBytes + FromBytes + Immutable + KnownLayout,
    {
        let (hypervisor, command) = (self.hypervisor, sysctl::LIVEPATCH_OP);
        let start = op.as_bytes();
        crate::sysctl::sysctl(hypervisor, self.version, command, start, request, buffers)
    }
}

/// The start of the operation `cmd`, without flags.
fn operation(cmd: u32) -> Op {
    Op {
        cmd: cmd.into(),
        ..Default::default()
    }
}

struct Sizes {
    version: u32,
    count: u32,
    names: u32,
    metadata: u32,
}

/// Buffers for a part of the list.
struct Page<B> {
    status: B,
    names: B,
    name_sizes: B,
    metadata: B,
    metadata_sizes: B,
}

impl<B: AsRef<[u8]>> Page<B> {
    /// Room for `count` payloads.
    fn new(
        hypervisor: &impl Hypervisor<Buffer = B>,
        sizes: &Sizes,
        count: u32,
    ) -> Result<Self, Errno> {
        let room = |size: Option<u32>| {
            let size = size.and_then(|size| usize::try_from(size).ok());
            hypervisor.buffer(size.ok_or(Errno::E2BIG)?)
        };
        Ok(Self {
            status: room(count.checked_mul(8))?,
            names: room(Some(sizes.names))?,
            name_sizes: room(count.checked_mul(4))?,
            metadata: room(Some(sizes.metadata))?,
            metadata_sizes: room(count.checked_mul(4))?,
        })
    }

    /// Asks for the payloads from the one with index `idx` on.
    fn request(
        &self,
        hypervisor: &impl Hypervisor<Buffer = B>,
        sizes: &Sizes,
        idx: u32,
        count: u32,
    ) -> List {
        let at = |buffer: &B| U64::new(hypervisor.address(buffer));
        List {
            version: sizes.version.into(),
            idx: idx.into(),
            nr: count.into(),
            status: at(&self.status),
            name: at(&self.names),
            len: at(&self.name_sizes),
            metadata: at(&self.metadata),
            metadata_len: at(&self.metadata_sizes),
            ..Default::default()
        }
    }

    /// What the hypervisor writes to.
    const fn buffers(&mut self) -> [&mut B; 5] {
        [
            &mut self.status,
            &mut self.names,
            &mut self.name_sizes,
            &mut self.metadata,
            &mut self.metadata_sizes,
        ]
    }

    /// The first `count` payloads, whose names are `stride` bytes apart if they are not
    /// contiguous; `None` if a size leads out of the buffers.
    fn payloads(&self, count: usize, stride: Option<usize>) -> Option<Vec<Payload>> {
        let names = split(self.names.as_ref(), self.name_sizes.as_ref(), count, stride)?;
        let sizes = self.metadata_sizes.as_ref();
        let metadata = split(self.metadata.as_ref(), sizes, count, None)?;
        let (status, _) = self.status.as_ref().as_chunks::<8>();
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
        Some(payloads.collect())
    }
}

/// The most payloads that the hypervisor lists in one call.
const MOST_PER_CALL: u32 = 1024;

/// Splits `data` into `count` pieces of the sizes in `sizes` (`uint32_t` each),
/// contiguous or `stride` bytes apart.
fn split<'d>(
    data: &'d [u8],
    sizes: &[u8],
    count: usize,
    stride: Option<usize>,
) -> Option<Vec<&'d [u8]>> {
    let mut at = 0_usize;
    let (sizes, _) = sizes.as_chunks::<4>();
    sizes
        .iter()
        .take(count)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use xsplice_abi::sysctl::Header;

    /// A hypervisor that speaks one interface version and holds payloads.
    struct Fake {
        speaks: u32,
        built_in: bool,
        /// Whether operations have flags, as from Xen 4.19 on.
        knows_force: bool,
        /// Whether the last upload had the flag.
        forced: Cell<bool>,
        /// How many payloads it lists in one call.
        per_call: usize,
        /// The last payload makes way for one with this name between the two calls that
        /// list it.
        renamed: Cell<Option<&'static str>>,
        payloads: RefCell<Vec<(String, u32)>>,
        console: RefCell<Ring>,
    }

    /// A console ring: what it has of all that was printed.
    #[derive(Default)]
    struct Ring {
        printed: Vec<u8>,
        /// How much of that it has no more.
        lost: usize,
    }

    impl Ring {
        /// As Xen reads its own.
        fn read(&self, request: &mut [u8], buffer: &mut [u8]) {
            assert_eq!(request[0], 0, "the ring was emptied");
            let word = |at: usize| {
                let bytes = request[at..at + 4].try_into().expect("four bytes");
                usize::try_from(u32::from_le_bytes(bytes)).expect("it fits")
            };
            let (index, size) = (word(4), word(16));
            let known = request[1] != 0 && (self.lost..=self.printed.len()).contains(&index);
            let from = if known { index } else { self.lost };
            let part = &self.printed[from..self.printed.len().min(from + size)];
            buffer[..part.len()].copy_from_slice(part);
            for (at, value) in [(4, from + part.len()), (16, part.len())] {
                let value = u32::try_from(value).expect("small");
                request[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    struct Memory(Vec<u8>);

    impl AsRef<[u8]> for Memory {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl AsMut<[u8]> for Memory {
        fn as_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
    }

    const START: usize = size_of::<Header>() + size_of::<Op>();
    const METADATA: &[u8] = b"a=1\0b=2\0";

    impl Fake {
        fn new(speaks: u32) -> Self {
            Self {
                speaks,
                built_in: true,
                knows_force: false,
                forced: Cell::default(),
                per_call: 2,
                renamed: Cell::default(),
                payloads: RefCell::default(),
                console: RefCell::default(),
            }
        }

        fn list(&self, op: &mut [u8], buffers: &mut [&mut Memory]) -> Result<i64, Errno> {
            let mut payloads = self.payloads.borrow_mut();
            let word = |op: &[u8], at: usize| {
                u32::from_le_bytes(op[at..at + 4].try_into().expect("four bytes"))
            };
            let (idx, nr) = (word(op, 4) as usize, word(op, 8) as usize);
            let old = self.speaks == 0x12;
            let name_room = word(op, 16) as usize;
            if nr != 0
                && let Some(name) = self.renamed.take()
            {
                payloads.last_mut().expect("one is there").0 = name.to_owned();
            }
            let mut put = |at: usize, value: usize| {
                let value = u32::try_from(value).expect("small");
                op[at..at + 4].copy_from_slice(&value.to_le_bytes());
            };
            put(0, 7);
            if !old {
                put(16, payloads.iter().map(|(name, _)| name.len() + 1).sum());
                put(20, payloads.len() * METADATA.len());
            }
            if nr == 0 {
                put(8, payloads.len());
                return Ok(0);
            }
            let (mut name_at, mut done) = (0, 0);
            for (name, state) in payloads.iter().skip(idx).take(nr.min(self.per_call)) {
                let name_size = name.len() + 1;
                if self.speaks == 0x16 && name_at + name_size > name_room {
                    return Err(Errno::ENOBUFS);
                }
                let at = if old {
                    done * sysctl::NAME_SIZE
                } else {
                    name_at
                };
                buffers[0].0[done * 8..done * 8 + 4].copy_from_slice(&state.to_le_bytes());
                buffers[1].0[at..at + name.len()].copy_from_slice(name.as_bytes());
                buffers[2].0[done * 4] = u8::try_from(name_size).expect("small");
                if !old {
                    let start = done * METADATA.len();
                    buffers[3].0[start..start + METADATA.len()].copy_from_slice(METADATA);
                    buffers[4].0[done * 4] = u8::try_from(METADATA.len()).expect("small");
                }
                name_at += name_size;
                done += 1;
            }
            put(8, payloads.len() - idx - done);
            Ok(i64::try_from(done).expect("small"))
        }
    }

    impl Hypervisor for Fake {
        type Buffer = Memory;

        fn buffer(&self, size: usize) -> Result<Memory, Errno> {
            Ok(Memory(vec![0; size]))
        }

        fn address(&self, buffer: &Memory) -> u64 {
            buffer.0.as_ptr().addr() as u64
        }

        fn call(&self, _: u64, _: [u64; 2], buffers: &mut [&mut Memory]) -> Result<i64, Errno> {
            let (request, buffers) = buffers.split_last_mut().expect("the request itself");
            if !self.built_in {
                return Err(Errno::EOPNOTSUPP);
            }
            if u32::from(request.0[4]) != self.speaks {
                return Err(Errno::EACCES);
            }
            if u32::from(request.0[0]) == sysctl::READ_CONSOLE {
                let request = &mut request.0[size_of::<Header>()..];
                self.console.borrow().read(request, &mut buffers[0].0);
                return Ok(0);
            }
            let cmd = u32::from(request.0[8]);
            let mut payloads = self.payloads.borrow_mut();
            match cmd {
                sysctl::UPLOAD => {
                    if request.0[12] != 0 && !self.knows_force {
                        return Err(Errno::EINVAL);
                    }
                    self.forced.set(request.0[12] == 1);
                    payloads.push((text(&buffers[0].0), sysctl::STATE_CHECKED));
                    Ok(0)
                }
                sysctl::GET | sysctl::ACTION => {
                    let name = text(&buffers[0].0);
                    let found = payloads
                        .iter_mut()
                        .find(|(n, _)| *n == name)
                        .ok_or(Errno::ENOENT)?;
                    if cmd == sysctl::ACTION {
                        found.1 = sysctl::STATE_APPLIED;
                    }
                    request.0[START + 16..START + 20].copy_from_slice(&found.1.to_le_bytes());
                    Ok(0)
                }
                _ => {
                    drop(payloads);
                    self.list(&mut request.0[START..], buffers)
                }
            }
        }
    }

    #[test]
    fn every_interface_version_is_found_and_used() {
        for InterfaceVersion(speaks) in InterfaceVersion::ALL {
            let fake = Fake::new(speaks);
            let livepatch = Livepatch::negotiate(&fake).expect("a version in common");
            assert_eq!(livepatch.interface_version().0, speaks);
            assert_eq!(livepatch.list(), Ok(Vec::new()));
            // More than the hypervisor lists in one call.
            let names = ["one", "two-longer", "three", "four", "five"];
            for name in names {
                livepatch.upload(name, b"payload", false).expect("uploaded");
            }
            livepatch
                .action("two-longer", Action::Apply, 0, false)
                .expect("applied");
            assert_eq!(
                livepatch.get("two-longer").expect("there").state,
                State::Applied
            );
            assert_eq!(livepatch.get("six"), Err(Errno::ENOENT));
            let listed = livepatch.list().expect("listed");
            let found: Vec<&str> = listed.iter().map(|p| p.name.as_str()).collect();
            assert_eq!(found, names, "interface version {speaks:#x}");
            assert_eq!(listed[1].status.state, State::Applied);
            let metadata: &[&str] = if speaks == 0x12 { &[] } else { &["a=1", "b=2"] };
            assert!(listed.iter().all(|p| p.metadata == metadata), "{listed:?}");
        }
    }

    /// From 4.21 on the hypervisor knows how large the buffers are, and refuses.
    #[test]
    fn names_that_outgrew_their_buffer_are_read_again() {
        let fake = Fake::new(0x16);
        let livepatch = Livepatch::negotiate(&fake).expect("a version in common");
        livepatch
            .upload("one", b"payload", false)
            .expect("uploaded");
        fake.renamed.set(Some("another-one"));
        let listed = livepatch.list().expect("listed");
        let names: Vec<&str> = listed.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["another-one"]);
    }

    #[test]
    fn no_common_version_and_no_live_patching_are_different_errors() {
        assert_eq!(
            Livepatch::negotiate(&Fake::new(0x99)).err(),
            Some(Errno::EACCES)
        );
        let without = Fake {
            built_in: false,
            ..Fake::new(0x15)
        };
        assert_eq!(
            Livepatch::negotiate(&without).err(),
            Some(Errno::EOPNOTSUPP)
        );
    }

    #[test]
    fn what_was_printed_since_is_read_and_stays() {
        let fake = Fake::new(0x15);
        let livepatch = Livepatch::negotiate(&fake).expect("a version in common");
        // More than one call gives, and exactly as much.
        for before in [0, 100, 16 << 10, 40_000] {
            *fake.console.borrow_mut() = Ring::default();
            let print = |text: &str| {
                let mut ring = fake.console.borrow_mut();
                ring.printed.extend_from_slice(text.as_bytes());
            };
            print(&"x".repeat(before));
            let place = livepatch.console_end().expect("read");
            assert_eq!(livepatch.console_since(place).as_deref(), Ok(""));
            print("one\ntwo\n");
            for _ in 0..2 {
                let text = livepatch.console_since(place);
                assert_eq!(text.as_deref(), Ok("one\ntwo\n"), "after {before} bytes");
            }
            // The ring is small: what it lost cannot be had, the rest can.
            fake.console.borrow_mut().lost = before + 4;
            let text = livepatch.console_since(place);
            assert_eq!(text.as_deref(), Ok("two\n"), "after {before} bytes");
        }
    }

    #[test]
    fn a_console_without_an_end_is_an_error() {
        let fake = Fake::new(0x15);
        let livepatch = Livepatch::negotiate(&fake).expect("a version in common");
        fake.console.borrow_mut().printed = vec![b'x'; 5 << 20];
        assert_eq!(livepatch.console_end(), Err(Errno::EAGAIN));
    }

    #[test]
    fn flags_are_refused_where_the_interface_has_none() {
        let fake = Fake::new(0x12);
        let livepatch = Livepatch::negotiate(&fake).expect("a version in common");
        livepatch
            .upload("one", b"payload", false)
            .expect("uploaded");
        assert_eq!(
            livepatch.action("one", Action::Apply, 0, true),
            Err(Errno::EOPNOTSUPP)
        );
    }

    #[test]
    fn force_is_a_flag_of_the_operation() {
        let old = Fake::new(0x15);
        let livepatch = Livepatch::negotiate(&old).expect("a version in common");
        let forced = livepatch.upload("one", b"payload", true);
        assert_eq!(forced, Err(Errno::EINVAL), "there is no flag before 4.19");
        let new = Fake {
            knows_force: true,
            ..Fake::new(0x15)
        };
        let livepatch = Livepatch::negotiate(&new).expect("a version in common");
        for (name, force) in [("one", false), ("two", true), ("three", false)] {
            livepatch.upload(name, b"payload", force).expect("uploaded");
            assert_eq!(new.forced.get(), force, "{name}");
        }
    }

    #[test]
    fn impossible_names_never_reach_the_hypervisor() {
        let fake = Fake::new(0x15);
        let livepatch = Livepatch::negotiate(&fake).expect("a version in common");
        for name in ["a\0b", &"n".repeat(128)] {
            assert_eq!(
                livepatch.upload(name, b"payload", false),
                Err(Errno::EINVAL)
            );
        }
        assert!(
            livepatch
                .upload(&"n".repeat(127), b"payload", false)
                .is_ok()
        );
    }
}
