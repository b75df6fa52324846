//! Global memory: named buffers, far apart, that know which of their bytes were written.

use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering::Relaxed};

use super::report::{Kind, Problem, Site};

/// Log₂ of the distance between buffers.
const SLOT_BITS: u32 = 36;

/// State of a byte that nobody wrote.
const UNWRITTEN: u8 = 0;
/// State of a byte that was written before the launch.
const INITIAL: u8 = 1;
/// State of a byte that was written before the launch, which read it as one that does not change.
const LOADED: u8 = 2;
/// State of a byte that was written once by the launch.
const WRITTEN: u8 = 3;
/// State of a byte that was written more than once by the launch.
const REWRITTEN: u8 = 4;

/// The global memory of a simulated GPU.
#[derive(Debug, Default)]
pub struct Memory {
    buffers: Vec<Buffer>,
}

#[derive(Debug)]
struct Buffer {
    name: String,
    bytes: Vec<Byte>,
}

#[derive(Debug)]
struct Byte {
    value: AtomicU8,
    state: AtomicU8,
    /// Where it got its state.
    site: AtomicPtr<Location<'static>>,
}

impl Byte {
    #[track_caller]
    fn new(value: u8, state: u8) -> Self {
        let site = AtomicPtr::new(ptr::from_ref(Location::caller()).cast_mut());
        Self { value: AtomicU8::new(value), state: AtomicU8::new(state), site }
    }

    fn set_site(&self, site: Site) {
        self.site.store(ptr::from_ref(site).cast_mut(), Relaxed);
    }

    fn site(&self) -> Site {
        // SAFETY: only places that live for ever are stored.
        unsafe { &*self.site.load(Relaxed) }
    }
}

impl Memory {
    /// No buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer that nobody wrote yet. Returns its address.
    pub fn allocate(&mut self, name: &str, bytes: usize) -> u64 {
        self.push(name, (0..bytes).map(|_| Byte::new(0xff, UNWRITTEN)).collect())
    }

    /// A buffer that holds `content`. Returns its address.
    pub fn upload(&mut self, name: &str, content: &[u8]) -> u64 {
        self.push(name, content.iter().map(|&value| Byte::new(value, INITIAL)).collect())
    }

    /// Sets bytes of a buffer, before a launch.
    ///
    /// # Panics
    ///
    /// If the place is not in a buffer.
    pub fn fill(&self, address: u64, value: u8, bytes: usize) {
        for byte in self.expect(address, bytes) {
            byte.value.store(value, Relaxed);
            byte.state.store(INITIAL, Relaxed);
        }
    }

    fn push(&mut self, name: &str, bytes: Vec<Byte>) -> u64 {
        assert!((bytes.len() as u64) < 1 << SLOT_BITS, "{name} is too large: {} bytes", bytes.len());
        self.buffers.push(Buffer { name: name.to_owned(), bytes });
        (self.buffers.len() as u64) << SLOT_BITS
    }

    /// Bytes of a buffer, 0xff where nobody wrote.
    ///
    /// # Panics
    ///
    /// If the place is not in a buffer.
    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        self.expect(address, bytes).iter().map(|byte| byte.value.load(Relaxed)).collect()
    }

    /// Offsets in `address .. address + bytes` that the last launch did not write exactly once.
    ///
    /// # Panics
    ///
    /// If the place is not in a buffer.
    pub fn not_written_once(&self, address: u64, bytes: usize) -> Vec<usize> {
        let states = self.expect(address, bytes).iter().map(|byte| byte.state.load(Relaxed));
        states.enumerate().filter(|&(_, state)| state != WRITTEN).map(|(offset, _)| offset).collect()
    }

    fn expect(&self, address: u64, bytes: usize) -> &[Byte] {
        self.find(address, bytes as u64).unwrap_or_else(|what| panic!("{what}"))
    }

    /// What was written before is no longer this launch's.
    pub(super) fn begin_launch(&self) {
        for byte in self.buffers.iter().flat_map(|buffer| &buffer.bytes) {
            if byte.state.load(Relaxed) != UNWRITTEN {
                byte.state.store(INITIAL, Relaxed);
            }
        }
    }

    fn find(&self, address: u64, bytes: u64) -> Result<&[Byte], String> {
        let offset = address & ((1 << SLOT_BITS) - 1);
        let buffer = (address >> SLOT_BITS).checked_sub(1).and_then(|index| self.buffers.get(index as usize));
        let Some(buffer) = buffer else {
            return Err(format!("{bytes} bytes of global memory at {address:#x}, where no buffer is"));
        };
        buffer.bytes.get(offset as usize..(offset + bytes) as usize).ok_or_else(|| {
            format!("{bytes} bytes at offset {offset} of `{}`, which has {} bytes", buffer.name, buffer.bytes.len())
        })
    }

    fn access(&self, what: &str, address: u64, bytes: u64, alignment: u64, site: Site) -> Result<&[Byte], Problem> {
        if !address.is_multiple_of(alignment) {
            let message = format!("{what} at global address {address:#x}, not a multiple of {alignment}, at {site}");
            return Err(Problem::new(Kind::Unaligned, message));
        }
        self.find(address, bytes)
            .map_err(|place| Problem::new(Kind::OutOfBounds, format!("{what} of {place}, at {site}")))
    }

    /// What a buffer is called, and where in it an address is.
    pub(super) fn place(&self, address: u64) -> String {
        let name = &self.buffers[(address >> SLOT_BITS) as usize - 1].name;
        format!("byte {} of `{name}`", address & ((1 << SLOT_BITS) - 1))
    }

    /// Loads what no kernel in flight writes: what this launch wrote, or writes later, is a mistake.
    pub(super) fn load(
        &self,
        what: &str,
        address: u64,
        into: &mut [u8],
        alignment: u64,
        site: Site,
    ) -> Result<(), Problem> {
        let bytes = self.access(what, address, into.len() as u64, alignment, site)?;
        for (offset, byte) in bytes.iter().enumerate() {
            match byte.state.compare_exchange(INITIAL, LOADED, Relaxed, Relaxed) {
                Ok(_) => byte.set_site(site),
                Err(WRITTEN | REWRITTEN) => {
                    let (place, there) = (self.place(address + offset as u64), byte.site());
                    let message = format!("{what} of {place} at {site}: this launch wrote it at {there}");
                    return Err(Problem::new(Kind::Race, message));
                }
                Err(_) => {}
            }
        }
        self.copy(what, address, bytes, into, site)
    }

    /// Loads what this launch may have written.
    pub(super) fn load_written(&self, what: &str, address: u64, into: &mut [u8], site: Site) -> Result<(), Problem> {
        let len = into.len() as u64;
        let bytes = self.access(what, address, len, len, site)?;
        self.copy(what, address, bytes, into, site)
    }

    fn copy(&self, what: &str, address: u64, bytes: &[Byte], into: &mut [u8], site: Site) -> Result<(), Problem> {
        for (offset, (byte, into)) in bytes.iter().zip(into).enumerate() {
            *into = byte.value.load(Relaxed);
            if byte.state.load(Relaxed) == UNWRITTEN {
                let message =
                    format!("{what} of {}, which nobody wrote, at {site}", self.place(address + offset as u64));
                return Err(Problem::new(Kind::Uninitialized, message));
            }
        }
        Ok(())
    }

    /// The u32 at an address that others change atomically.
    pub(super) fn word(&self, address: u64, site: Site) -> Result<u32, Problem> {
        let mut bytes = [0; 4];
        self.load_written("ld.acquire.gpu.global", address, &mut bytes, site)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Adds atomically; the blocks run one at a time.
    pub(super) fn fetch_add(&self, what: &str, address: u64, value: u32, site: Site) -> Result<u32, Problem> {
        let mut before = [0; 4];
        self.load_written(what, address, &mut before, site)?;
        let before = u32::from_le_bytes(before);
        self.store(address, &before.wrapping_add(value).to_le_bytes(), site)?;
        Ok(before)
    }

    pub(super) fn store(&self, address: u64, from: &[u8], site: Site) -> Result<(), Problem> {
        let bytes = self.access("st.global", address, from.len() as u64, from.len() as u64, site)?;
        for (offset, (byte, from)) in bytes.iter().zip(from).enumerate() {
            byte.value.store(*from, Relaxed);
            match byte.state.swap(WRITTEN, Relaxed) {
                LOADED => {
                    let (place, there) = (self.place(address + offset as u64), byte.site());
                    let message = format!(
                        "st.global of {place} at {site}: this launch loaded it through ld.global.nc or a copy at {there}"
                    );
                    return Err(Problem::new(Kind::Race, message));
                }
                WRITTEN | REWRITTEN => byte.state.store(REWRITTEN, Relaxed),
                _ => {}
            }
            byte.set_site(site);
        }
        Ok(())
    }
}
