//! Blocks and their fibers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr;
use std::rc::Rc;
use std::sync::Mutex;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use rayon::prelude::*;

use super::barrier::{BARRIERS, NamedBarrier};
use super::blocks::SharedHistory;
use super::clock::{Agent, Epoch, Knowledge};
use super::copy::{AsyncCopy, Groups};
use super::mbarrier::MBarrier;
use super::memory::Memory;
use super::report::{Kind, Problem, Report, Site, ranges};
use super::schedule::{Random, Schedule};
use super::scheduler::{Step, ThreadSet};
use super::shared::{Access, Proxy, SharedMemory};
use super::summation::Accumulation;
use super::warp::Warp;
use super::wgmma::Warpgroup;

/// Threads of the largest block.
pub const MAX_THREADS: u32 = 1024;
/// Shared memory of the largest block.
const MAX_SHARED_BYTES: u32 = 227 * 1024;
/// Stack of a fiber. Only what is touched takes memory.
const STACK_BYTES: usize = 256 * 1024;

/// The shape of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block, a multiple of 32.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// How blocks run.
    pub blocks: Blocks,
}

/// How the blocks of a launch run. Those that agree by atomics must not run in parallel, so that a schedule finds the same
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// In parallel, on as many host threads as there are.
    Parallel,
    /// One after the other.
    InOrder,
    /// Taking turns, as the schedule says; and accesses of global memory must be ordered, between blocks by releasing and
    /// acquiring. How many blocks are there at a time is also a matter of the schedule.
    Together,
}

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who goes next.
    pub schedule: Schedule,
    /// How floating-point products are summed.
    pub accumulation: Accumulation,
    /// Pretends that the kernel has not this instruction. To test that its absence is found.
    pub without: Option<Synchronisation>,
}

impl Options {
    /// A schedule, and the plainest numerics.
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule, accumulation: Accumulation::Single, without: None }
    }
}

/// A place in a kernel's source that fences, waits, arrives or commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Synchronisation {
    /// The instruction.
    pub instruction: &'static str,
    /// The place.
    pub site: &'static Location<'static>,
}

/// What is known of a kernel that ran to its end.
#[derive(Debug, Default)]
pub struct Trace {
    /// The places where it synchronises.
    pub synchronisations: Vec<Synchronisation>,
    /// Under [`Schedule::Preempted`], of the block with the most steps: for each step, how many other things could have
    /// happened.
    pub alternatives: Vec<u32>,
}

impl Trace {
    /// Adds what is known of another block.
    fn add(&mut self, other: Self) {
        self.synchronisations.extend(other.synchronisations);
        if other.alternatives.len() > self.alternatives.len() {
            self.alternatives = other.alternatives;
        }
    }
}

/// Runs a kernel to its end.
///
/// # Errors
///
/// The first mistake of the first block that makes one.
pub fn launch(shape: Launch, memory: &Memory, options: &Options, kernel: impl Fn() + Sync) -> Result<Trace, Report> {
    let Launch { grid, threads, shared_bytes, blocks } = shape;
    let refuse = |message: String| {
        Err(Report { kind: Kind::Launch, message, block: [0; 3], thread: None, schedule: options.schedule })
    };
    if grid.contains(&0) || grid[1].max(grid[2]) > 65535 {
        return refuse(format!("a grid of {grid:?} blocks"));
    }
    if threads == 0 || threads > MAX_THREADS || !threads.is_multiple_of(32) {
        return refuse(format!("a block of {threads} threads; allowed are multiples of 32 up to {MAX_THREADS}"));
    }
    if shared_bytes > MAX_SHARED_BYTES {
        return refuse(format!("{shared_bytes} bytes of shared memory; a block has at most {MAX_SHARED_BYTES}"));
    }
    assert!(CTA.with_borrow(Option::is_none), "a kernel cannot launch a kernel");
    memory.begin_launch();
    let trace = Mutex::new(Trace::default());
    let [x, y, z] = grid.map(u64::from);
    let count = x * y * z;
    let start = |index: u64, history: SharedHistory| {
        let block = [index % x, index / x % y, index / (x * y)].map(|index| index as u32);
        Run::new(Cta::new(shape, (block, index), memory, options, history), &kernel)
    };
    let add = |found: Trace| trace.lock().expect("no thread panics with the lock").add(found);
    let alone = |index: u64| {
        add(start(index, None).finish()?);
        Ok(())
    };
    let failure = match blocks {
        Blocks::Parallel => (0..count).into_par_iter().find_map_first(|index| alone(index).err()),
        Blocks::InOrder => (0..count).find_map(|index| alone(index).err()),
        Blocks::Together => {
            let history = SharedHistory::Some(Rc::default());
            match run_together(count, options.schedule, |index| start(index, history.clone())) {
                Ok(found) => {
                    add(found);
                    None
                }
                Err(report) => Some(report),
            }
        }
    };
    match failure {
        Some(report) => Err(report),
        None => {
            let mut trace = trace.into_inner().expect("no thread panics with the lock");
            trace.synchronisations.sort();
            trace.synchronisations.dedup();
            Ok(trace)
        }
    }
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiting {
    /// Nothing: it runs or can.
    Nothing,
    /// The other lanes of its warp.
    Lanes,
    /// Others that come to a barrier of the block.
    Barrier { id: u32 },
    /// A phase of the mbarrier at an address.
    MBarrier { address: u32, parity: u32 },
    /// Registers that others give back.
    Registers,
    /// A value of the word at a global address.
    Word { address: u64, value: u32 },
    /// Nothing any more: it returned.
    Over,
}

/// A GPU thread.
pub struct Thread {
    pub knowledge: Knowledge,
    pub waiting: Waiting,
    /// Where it waits.
    pub site: Site,
    /// What the collective that it waited for gave it.
    pub result: u64,
    /// Its `cp.async`.
    pub copies: Groups,
    yielder: *const Yielder<(), ()>,
}

/// A block and everything in it but the fibers.
pub struct Cta {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Of the block in its grid.
    pub index: u64,
    pub memory: &'static Memory,
    pub blocks: Blocks,
    /// If blocks run together.
    pub history: SharedHistory,
    pub options: Options,
    /// With a random schedule.
    pub random: Option<Random>,
    /// Of the threads, with some random schedules.
    pub priorities: Vec<u64>,
    /// The thread that runs.
    pub current: u32,
    pub threads: Vec<Thread>,
    pub warps: Vec<Warp>,
    pub warpgroups: Vec<Warpgroup>,
    pub shared: SharedMemory,
    pub mbarriers: BTreeMap<u32, MBarrier>,
    pub copies: Vec<AsyncCopy>,
    pub barriers: [NamedBarrier; BARRIERS],
    /// Registers that no warp holds.
    pub free_registers: u32,
    /// Of [`new_agent`](Self::new_agent).
    agents: u32,
    pub trace: Trace,
    pub ready: ThreadSet,
    report: Option<Report>,
}

impl Cta {
    fn new(
        shape: Launch,
        (block, index): ([u32; 3], u64),
        memory: &Memory,
        options: &Options,
        history: SharedHistory,
    ) -> Self {
        let Launch { grid, threads, shared_bytes, blocks } = shape;
        // SAFETY: the block ends before `launch` does, which holds the borrow.
        let memory: &'static Memory = unsafe { &*ptr::from_ref(memory) };
        let thread = |index: u32| {
            let mut knowledge = Knowledge::default();
            knowledge.seen.hear(Epoch { agent: index as u16, time: 1 });
            let site = Location::caller();
            let (waiting, copies) = (Waiting::Nothing, Groups::default());
            Thread { knowledge, waiting, site, result: 0, copies, yielder: ptr::null() }
        };
        let mut ready = ThreadSet::default();
        (0..threads).for_each(|thread| ready.insert(thread));
        let mut random = match options.schedule {
            Schedule::Random(seed) | Schedule::RandomWarps(seed) => Some(Random::new(seed, index)),
            Schedule::InOrder | Schedule::Reverse | Schedule::Preempted(_) => None,
        };
        let priorities = match (options.schedule, &mut random) {
            (Schedule::Random(seed), Some(random)) if seed % 2 == 1 => (0..threads).map(|_| random.bits()).collect(),
            _ => Vec::new(),
        };
        let registers = super::thread::initial_registers(threads);
        Self {
            grid,
            block,
            index,
            memory,
            blocks,
            history,
            options: options.clone(),
            random,
            priorities,
            current: 0,
            threads: (0..threads).map(thread).collect(),
            warps: (0..threads / 32).map(|_| Warp::new(registers)).collect(),
            warpgroups: (0..threads / 128).map(|_| Warpgroup::default()).collect(),
            shared: SharedMemory::new(shared_bytes, threads),
            mbarriers: BTreeMap::new(),
            copies: Vec::new(),
            barriers: Default::default(),
            free_registers: super::thread::REGISTERS - registers * threads,
            agents: threads + threads / 32,
            trace: Trace::default(),
            ready,
            report: None,
        }
    }

    /// The running thread.
    pub fn thread(&mut self) -> &mut Thread {
        &mut self.threads[self.current as usize]
    }

    /// An agent beside threads and the warps' tensor cores.
    pub fn new_agent(&mut self) -> Agent {
        self.agents += 1;
        (self.agents - 1) as Agent
    }

    /// An access by the running thread.
    pub fn access(&self, site: Site) -> Access {
        self.access_of(self.current, site)
    }

    /// An access by a thread.
    pub fn access_of(&self, thread: u32, site: Site) -> Access {
        let agent = thread as Agent;
        let time = self.threads[thread as usize].knowledge.seen.time(agent);
        Access { epoch: Epoch { agent, time }, proxy: Proxy::Generic, site }
    }

    /// Begins a new time of a thread: what it does next is not known to those who heard of it so far.
    pub fn tick(&mut self, thread: u32) {
        let seen = &mut self.threads[thread as usize].knowledge.seen;
        let agent = thread as u16;
        seen.hear(Epoch { agent, time: seen.time(agent) + 1 });
    }

    /// Makes the running thread wait.
    pub fn block(&mut self, waiting: Waiting, site: Site) {
        let current = self.current;
        let thread = self.thread();
        (thread.waiting, thread.site) = (waiting, site);
        self.ready.remove(current);
    }

    /// Makes a thread ready.
    pub fn wake(&mut self, thread: u32) {
        self.threads[thread as usize].waiting = Waiting::Nothing;
        self.ready.insert(thread);
    }

    fn report(&mut self, problem: Problem) {
        let Problem { kind, message } = problem;
        let report =
            Report { kind, message, block: self.block, thread: Some(self.current), schedule: self.options.schedule };
        self.report.get_or_insert(report);
    }

    /// A mistake that is not one thread's.
    fn block_report(&self, problem: Problem) -> Report {
        let Problem { kind, message } = problem;
        Report { kind, message, block: self.block, thread: None, schedule: self.options.schedule }
    }

    /// Makes those ready whose word has the value that they wait for. Returns whether there are any.
    fn wake_waiting_for_words(&mut self) -> bool {
        let has_come = |thread: &Thread| match thread.waiting {
            Waiting::Word { address, value } => self.memory.word(address, thread.site).is_ok_and(|now| now == value),
            _ => false,
        };
        let threads = (0..).zip(&self.threads);
        let awake: Vec<u32> = threads.filter(|(_, thread)| has_come(thread)).map(|(index, _)| index).collect();
        awake.iter().for_each(|&thread| self.wake(thread));
        !awake.is_empty()
    }

    /// What is wrong when nobody can go on.
    fn stuck(&self) -> Report {
        let mut kind = Kind::Deadlock;
        let mut groups: BTreeMap<(Waiting, Site), Vec<u32>> = BTreeMap::new();
        for (index, thread) in (0..).zip(&self.threads) {
            groups.entry((thread.waiting, thread.site)).or_default().push(index);
        }
        for warp in self.threads.chunks(32) {
            let collective = warp.iter().any(|lane| lane.waiting == Waiting::Lanes);
            let elsewhere = warp.iter().any(|lane| matches!(lane.waiting, Waiting::Over | Waiting::Barrier { .. }));
            if collective && elsewhere {
                kind = Kind::Divergence;
            }
        }
        let mut message = String::from("nobody can go on");
        for ((waiting, site), threads) in groups {
            let what = match waiting {
                Waiting::Nothing => "can run".to_owned(),
                Waiting::Over => "returned".to_owned(),
                Waiting::Lanes => {
                    let warp = &self.warps[threads[0] as usize / 32];
                    format!("wait for the other lanes of their warps in {} at {site}", warp.gathering())
                }
                Waiting::Barrier { id } => {
                    let state = self.barriers[id as usize].describe();
                    format!("wait at barrier {id} ({state}) in bar.sync at {site}")
                }
                Waiting::Registers => format!("wait for registers in setmaxnreg.inc at {site}"),
                Waiting::Word { address, value } => {
                    let now = self.memory.word(address, site).map_or("?".to_owned(), |now| now.to_string());
                    let place = self.memory.place(address);
                    format!("wait for {value} in {place}, which is {now}, in ld.acquire at {site}")
                }
                Waiting::MBarrier { address, parity } => {
                    let state = self.mbarriers.get(&address).map(MBarrier::describe).unwrap_or_default();
                    format!("wait for parity {parity} of the mbarrier at {address:#x} ({state}) at {site}")
                }
            };
            message += &format!("\n    threads {} {what}", ranges(threads));
        }
        self.block_report(Problem::new(kind, message))
    }

    /// What must not be when all threads have returned.
    fn check_end(&self) -> Result<(), Problem> {
        if let Some(copy) = self.copies.first() {
            let message = format!("the kernel ends while the copy issued at {} is in flight", copy.site);
            return Err(Problem::new(Kind::CopyInFlight, message));
        }
        for (index, thread) in self.threads.iter().enumerate() {
            thread.copies.check_end(index)?;
        }
        for (&address, mbarrier) in &self.mbarriers {
            mbarrier.check_end(address)?;
        }
        for (id, barrier) in self.barriers.iter().enumerate() {
            barrier.check_end(id)?;
        }
        for (index, warp) in self.warps.iter().enumerate() {
            warp.tensor.check_end(index)?;
        }
        self.warpgroups.iter().try_for_each(Warpgroup::check_end)
    }
}

thread_local! {
    /// The block that this host thread executes. Its fibers stay on this thread: a [`Run`] is not `Send`.
    static CTA: RefCell<Option<Box<Cta>>> = const { RefCell::new(None) };
    /// Stacks of fibers that returned.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// Calls a function on the block that runs; on a mistake, reports it and never returns.
pub fn run<R>(function: impl FnOnce(&mut Cta) -> Result<R, Problem>) -> R {
    let result = CTA.with_borrow_mut(|cta| {
        let cta =
            cta.as_mut().expect("this is an operation of a GPU thread: call it in a kernel, by simt::host::launch");
        function(cta).map_err(|problem| cta.report(problem))
    });
    match result {
        Ok(value) => value,
        Err(()) => loop {
            suspend();
        },
    }
}

/// Reports a mistake of the running thread, which then never goes on. Does nothing outside of a kernel.
pub fn report(problem: Problem) {
    if CTA.with_borrow(Option::is_some) {
        run(|_| Err::<(), _>(problem));
    }
}

/// Lets others run until the running thread is picked again.
pub fn suspend() {
    let yielder = run(|cta| Ok(cta.thread().yielder));
    // SAFETY: the running fiber's own yielder lives as long as the fiber.
    unsafe { (*yielder).suspend(()) };
}

/// A place where others may run, if the schedule says so.
pub fn hesitate() {
    let interrupted = |cta: &mut Cta| match cta.options.schedule {
        Schedule::Random(_) => cta.random.as_mut().is_some_and(|random| random.below(2) == 0),
        Schedule::Preempted(_) => true,
        Schedule::InOrder | Schedule::Reverse | Schedule::RandomWarps(_) => false,
    };
    if run(|cta| Ok(interrupted(cta))) {
        suspend();
    }
}

/// Notes that the kernel synchronises here. Returns whether the instruction is to be left out.
pub fn synchronises(instruction: &'static str, site: Site) -> bool {
    run(|cta| {
        let here = Synchronisation { instruction, site };
        let same = |known: &Synchronisation| {
            ptr::eq(known.site, site) && ptr::eq(known.instruction, instruction) || *known == here
        };
        let known = &mut cta.trace.synchronisations;
        if !known.iter().any(same) {
            known.push(here);
        }
        Ok(cta.options.without.as_ref().is_some_and(same))
    })
}

type Fiber = Coroutine<(), (), (), DefaultStack>;

fn fiber<K: Fn()>(kernel: &K, stack: DefaultStack) -> Fiber {
    // SAFETY: fibers end with their `Run`, before `launch` does, which holds the borrow.
    unsafe {
        Coroutine::with_stack_unchecked(stack, |yielder: &Yielder<(), ()>, ()| {
            run(|cta| {
                cta.thread().yielder = yielder;
                Ok(())
            });
            kernel();
        })
    }
}

/// A block with its fibers.
struct Run {
    /// `None` while the block is in [`CTA`].
    cta: Option<Box<Cta>>,
    fibers: Vec<Option<Fiber>>,
    /// Fibers that have not returned.
    left: usize,
    /// It waits for other blocks, none of which went on since.
    stuck: bool,
}

/// How far a block got.
enum Progress {
    Finished,
    Paused,
    /// Nobody can go on; whether anybody could before.
    Stuck {
        moved: bool,
        report: Report,
    },
}

impl Run {
    fn new<K: Fn()>(cta: Cta, kernel: &K) -> Self {
        let stack = || {
            let pooled = STACKS.with_borrow_mut(Vec::pop);
            pooled.unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("address space for a fiber's stack"))
        };
        let fibers: Vec<Option<Fiber>> = cta.threads.iter().map(|_| Some(fiber(kernel, stack()))).collect();
        Self { left: fibers.len(), cta: Some(Box::new(cta)), fibers, stuck: false }
    }

    /// Puts the block where its fibers look for it, or back.
    fn swap_in_or_out(&mut self) {
        CTA.with_borrow_mut(|slot| std::mem::swap(slot, &mut self.cta));
    }

    /// Runs threads until all have returned, none can, or it is another block's turn.
    fn advance(&mut self, mut goes_on: impl FnMut() -> bool) -> Result<Progress, Report> {
        self.swap_in_or_out();
        let mut moved = false;
        let progress = loop {
            if self.left == 0 {
                break Ok(Progress::Finished);
            }
            match step(&mut self.fibers, &mut self.left) {
                Ok(None) => moved = true,
                Ok(Some(report)) => break Ok(Progress::Stuck { moved, report }),
                Err(report) => break Err(report),
            }
            if !goes_on() {
                break Ok(Progress::Paused);
            }
        };
        self.swap_in_or_out();
        progress
    }

    /// Runs all threads to their end.
    fn finish(mut self) -> Result<Trace, Report> {
        match self.advance(|| true)? {
            Progress::Stuck { report, .. } => return Err(report),
            Progress::Finished | Progress::Paused => {}
        }
        let cta = self.cta.as_mut().expect("it is not in the slot");
        match cta.check_end() {
            Ok(()) => Ok(std::mem::take(&mut cta.trace)),
            Err(problem) => Err(cta.block_report(problem)),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Fibers that wait are unwound while the block is still there: their operations may be called by destructors.
        self.swap_in_or_out();
        self.fibers.clear();
        self.swap_in_or_out();
    }
}

/// Picks between blocks that run together are, on average, so many steps apart.
const STEPS_PER_TURN: usize = 64;

/// Runs blocks that take turns. With the schedule in order, one is there at a time, in reverse all of them.
fn run_together(count: u64, schedule: Schedule, start: impl Fn(u64) -> Run) -> Result<Trace, Report> {
    let mut random = match schedule {
        Schedule::Random(seed) | Schedule::RandomWarps(seed) => Some(Random::new(seed, count)),
        Schedule::InOrder | Schedule::Reverse | Schedule::Preempted(_) => None,
    };
    let resident = match (&mut random, schedule) {
        (Some(random), _) => 1 + random.below(count as usize),
        (None, Schedule::InOrder) => 1,
        (None, _) => count as usize,
    };
    let mut blocks = 0..count;
    let mut runs: Vec<Run> = blocks.by_ref().take(resident).map(&start).collect();
    let mut found = Trace::default();
    while !runs.is_empty() {
        let able: Vec<usize> = (0..runs.len()).filter(|&index| !runs[index].stuck).collect();
        let index = match &mut random {
            Some(random) => able[random.below(able.len())],
            None => able[able.len() - 1],
        };
        let mut turn = || random.as_mut().is_none_or(|random| random.below(STEPS_PER_TURN) > 0);
        match runs[index].advance(&mut turn)? {
            Progress::Stuck { moved, report } => {
                if moved {
                    runs.iter_mut().for_each(|run| run.stuck = false);
                }
                runs[index].stuck = true;
                if runs.iter().all(|run| run.stuck) {
                    return Err(report);
                }
            }
            Progress::Paused => runs.iter_mut().for_each(|run| run.stuck = false),
            Progress::Finished => {
                found.add(runs.remove(index).finish()?);
                runs.extend(blocks.next().map(&start));
                runs.iter_mut().for_each(|run| run.stuck = false);
            }
        }
    }
    Ok(found)
}

/// Does one thing of the block. Returns what is wrong if nothing can be done.
fn step(fibers: &mut [Option<Fiber>], left: &mut usize) -> Result<Option<Report>, Report> {
    let with_cta = |function: &mut dyn FnMut(&mut Cta) -> Result<(), Report>| {
        CTA.with_borrow_mut(|cta| function(cta.as_mut().expect("the block is there while its fibers run")))
    };
    let (mut next, mut stuck) = (None, None);
    with_cta(&mut |cta| {
        match cta.pick() {
            None if cta.wake_waiting_for_words() => {}
            None => stuck = Some(cta.stuck()),
            Some(Step::Land(copy)) => cta.land(copy),
            Some(Step::Multiply(warp)) => cta.multiply_next(warp),
            Some(Step::Run(thread)) => {
                cta.current = thread;
                next = Some(thread);
            }
        }
        Ok(())
    })?;
    let Some(thread) = next else { return Ok(stuck) };
    let slot = &mut fibers[thread as usize];
    let fiber = slot.as_mut().expect("a fiber that returned is not ready");
    let outcome = catch_unwind(AssertUnwindSafe(|| fiber.resume(())));
    let returned = !matches!(outcome, Ok(CoroutineResult::Yield(())));
    if returned {
        let stack = slot.take().expect("it just ran").into_stack();
        STACKS.with_borrow_mut(|stacks| stacks.push(stack));
        *left -= 1;
    }
    with_cta(&mut |cta| {
        if let Err(panic) = &outcome {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            cta.report(Problem::new(Kind::Panic, text));
        }
        if returned {
            cta.block(Waiting::Over, Location::caller());
        }
        cta.report.take().map_or(Ok(()), Err)
    })?;
    Ok(None)
}
