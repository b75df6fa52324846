//! What the library asks of the driver, with a driver of the test's own in its place: two GPUs that compute nothing.
//!
//! Enqueueing must neither allocate nor wait, nor touch another stream; and each GPU must get what is its own.

use sageattention::{
    AppendBuffers, AttendBuffers, AttentionOptions, AttentionPlan, AttentionProblem, CacheAttentionBuffers,
    CacheOptions, CachePlan, CacheProblem, CausalAlign, DType, Error, Gpu, GpuBuffers, GpuQuantized, Mask, Operand,
    PreparedPlan, PvMode, QkMode, QuantizeBuffers, Rotary, RotaryPairs, RotaryTables, TensorLayout,
};
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Once;

/// A call of the driver.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    /// One without an effect that the tests ask for.
    Other(&'static str),
    PushContext(usize),
    PopContext,
    Memset {
        stream: usize,
        address: u64,
        bytes: usize,
    },
    Launch {
        stream: usize,
        function: usize,
    },
    /// A launch that may begin before the one before it ends.
    OverlappingLaunch {
        stream: usize,
        function: usize,
    },
}

thread_local! {
    /// What this thread has called.
    static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
}

/// Everything that `f` calls.
fn calls(f: impl FnOnce()) -> Vec<Call> {
    CALLS.take();
    f();
    CALLS.take()
}

fn record(call: Call) -> u32 {
    CALLS.with_borrow_mut(|calls| calls.push(call));
    0
}

const GPUS: c_int = 2;
/// Addresses from here on are the second GPU's memory.
const SECOND: u64 = 1 << 40;
/// A context is its GPU's number and this, so that none is null.
const CONTEXT: usize = 0x100;

/// The driver's functions that are called, under the names that the library looks for.
mod driver {
    use super::*;

    pub extern "C" fn init(_: c_uint) -> u32 {
        record(Call::Other("cuInit"))
    }

    pub unsafe extern "C" fn device_count(count: *mut c_int) -> u32 {
        // SAFETY: as the driver's.
        unsafe { *count = GPUS };
        record(Call::Other("cuDeviceGetCount"))
    }

    pub unsafe extern "C" fn device(device: *mut c_int, ordinal: c_int) -> u32 {
        // SAFETY: as the driver's.
        unsafe { *device = ordinal };
        record(Call::Other("cuDeviceGet"))
    }

    pub unsafe extern "C" fn name(name: *mut c_char, bytes: c_int, _: c_int) -> u32 {
        let text = c"a GPU of the test's";
        assert!(text.to_bytes_with_nul().len() <= bytes as usize);
        // SAFETY: as the driver's.
        unsafe { name.copy_from(text.as_ptr(), text.to_bytes_with_nul().len()) };
        record(Call::Other("cuDeviceGetName"))
    }

    pub unsafe extern "C" fn attribute(value: *mut c_int, attribute: c_uint, _: c_int) -> u32 {
        const MULTIPROCESSORS: c_uint = 16;
        const MAJOR: c_uint = 75;
        const MINOR: c_uint = 76;
        // SAFETY: as the driver's.
        unsafe {
            *value = match attribute {
                MULTIPROCESSORS => 132,
                MAJOR => 9,
                MINOR => 0,
                _ => panic!("attribute {attribute}"),
            }
        };
        record(Call::Other("cuDeviceGetAttribute"))
    }

    pub unsafe extern "C" fn retain(context: *mut usize, device: c_int) -> u32 {
        // SAFETY: as the driver's.
        unsafe { *context = CONTEXT + device as usize };
        record(Call::Other("cuDevicePrimaryCtxRetain"))
    }

    pub extern "C" fn push(context: usize) -> u32 {
        record(Call::PushContext(context - CONTEXT))
    }

    pub extern "C" fn pop(_: *mut usize) -> u32 {
        record(Call::PopContext)
    }

    pub unsafe extern "C" fn load(
        module: *mut usize,
        image: *const u8,
        _: c_uint,
        _: *mut c_uint,
        _: *mut *mut c_void,
    ) -> u32 {
        // SAFETY: as the driver's. An image has more bytes than these.
        let image = unsafe {
            *module = 1;
            std::slice::from_raw_parts(image, 4)
        };
        assert!(image == b"\x7fELF" || image.is_ascii(), "machine code, or a text");
        record(Call::Other("cuModuleLoadDataEx"))
    }

    pub unsafe extern "C" fn function(function: *mut usize, _: usize, name: *const c_char) -> u32 {
        // SAFETY: as the driver's.
        unsafe {
            let symbol = CStr::from_ptr(name).to_str().expect("a symbol");
            let is = |start| symbol.starts_with(start);
            *function = if is("sage_quantize") || is("sage_cache_append") {
                QUANTIZE
            } else if is("sage_merge") {
                MERGE
            } else if is("sage_prepare") {
                PREPARE
            } else {
                ATTENTION
            };
        }
        record(Call::Other("cuModuleGetFunction"))
    }

    pub extern "C" fn set_attribute(_: usize, _: c_uint, _: c_int) -> u32 {
        record(Call::Other("cuFuncSetAttribute"))
    }

    pub unsafe extern "C" fn pointer_attributes(
        count: c_uint,
        attributes: *const c_uint,
        values: *const *mut c_int,
        address: u64,
    ) -> u32 {
        const MEMORY_TYPE: c_uint = 2;
        const ORDINAL: c_uint = 9;
        for index in 0..count as usize {
            // SAFETY: as the driver's.
            unsafe {
                **values.add(index) = match *attributes.add(index) {
                    MEMORY_TYPE => 2,
                    ORDINAL => (address >= SECOND).into(),
                    attribute => panic!("attribute {attribute}"),
                }
            };
        }
        record(Call::Other("cuPointerGetAttributes"))
    }

    pub extern "C" fn memset(address: u64, byte: u8, bytes: usize, stream: usize) -> u32 {
        assert_eq!(byte, 0);
        record(Call::Memset { stream, address, bytes })
    }

    #[allow(clippy::too_many_arguments)]
    pub extern "C" fn launch(
        function: usize,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        _: c_uint,
        _: c_uint,
        _: c_uint,
        stream: usize,
        _: *mut *mut c_void,
        _: *mut *mut c_void,
    ) -> u32 {
        assert!(grid_x > 0 && (grid_y, grid_z) == (1, 1) && block_x.is_multiple_of(32));
        record(Call::Launch { stream, function })
    }

    /// `CUlaunchConfig`.
    #[repr(C)]
    pub struct Configuration {
        grid: [c_uint; 3],
        block: [c_uint; 3],
        shared_bytes: c_uint,
        stream: usize,
        attributes: *const Attribute,
        attribute_count: c_uint,
    }

    /// `CUlaunchAttribute`: its number, and a value of 64 bytes from the eighth on.
    #[repr(C)]
    struct Attribute {
        id: c_uint,
        padding: c_uint,
        value: [c_int; 16],
    }

    pub unsafe extern "C" fn launch_with_attributes(
        configuration: *const Configuration,
        function: usize,
        _: *mut *mut c_void,
        _: *mut *mut c_void,
    ) -> u32 {
        const PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;
        // SAFETY: as the driver's.
        let (configuration, attribute) = unsafe { (&*configuration, &*(*configuration).attributes) };
        let Configuration { grid, block, shared_bytes, stream, attribute_count, .. } = *configuration;
        assert!(grid[0] > 0 && grid[1..] == [1, 1] && block[0].is_multiple_of(32) && shared_bytes > 0);
        assert_eq!((attribute_count, attribute.id), (1, PROGRAMMATIC_STREAM_SERIALIZATION));
        assert_eq!((attribute.padding, attribute.value[0]), (0, 1));
        record(Call::OverlappingLaunch { stream, function })
    }

    pub unsafe extern "C" fn version(version: *mut c_int) -> u32 {
        // SAFETY: as the driver's.
        unsafe { *version = 12080 };
        record(Call::Other("cuDriverGetVersion"))
    }
}

const QUANTIZE: usize = 7;
const ATTENTION: usize = 8;
const MERGE: usize = 9;
const PREPARE: usize = 10;

/// The test's driver in place of the installed one, before anything else is called.
fn install() {
    static INSTALLED: Once = Once::new();
    let find = |name: &str| {
        Some(match name {
            "cuInit" => driver::init as *mut c_void,
            "cuDeviceGetCount" => driver::device_count as *mut c_void,
            "cuDeviceGet" => driver::device as *mut c_void,
            "cuDeviceGetName" => driver::name as *mut c_void,
            "cuDeviceGetAttribute" => driver::attribute as *mut c_void,
            "cuDevicePrimaryCtxRetain" => driver::retain as *mut c_void,
            "cuCtxPushCurrent_v2" => driver::push as *mut c_void,
            "cuCtxPopCurrent_v2" => driver::pop as *mut c_void,
            "cuModuleLoadDataEx" => driver::load as *mut c_void,
            "cuModuleGetFunction" => driver::function as *mut c_void,
            "cuFuncSetAttribute" => driver::set_attribute as *mut c_void,
            "cuPointerGetAttributes" => driver::pointer_attributes as *mut c_void,
            "cuMemsetD8Async" => driver::memset as *mut c_void,
            "cuLaunchKernel" => driver::launch as *mut c_void,
            "cuLaunchKernelEx" => driver::launch_with_attributes as *mut c_void,
            "cuDriverGetVersion" => driver::version as *mut c_void,
            // everything else fails, and the call with it
            _ => return None,
        })
    };
    // SAFETY: declared as the driver's functions are, but for pointers and handles, which are numbers here.
    INSTALLED.call_once(|| unsafe { sageattention::gpu::bind_to(find) });
}

/// A small plan on a GPU; none, after a line, if this build holds no kernels.
fn prepare(ordinal: usize, options: AttentionOptions) -> Option<PreparedPlan> {
    prepare_for(ordinal, [1, 4, 1000, 128], options)
}

/// A plan for tensors of this shape.
fn prepare_for(ordinal: usize, shape: [usize; 4], options: AttentionOptions) -> Option<PreparedPlan> {
    install();
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, shape);
    let plan = AttentionPlan::new(problem, options).expect("a valid call");
    match Gpu::open(ordinal).and_then(|gpu| plan.prepare(gpu)) {
        Ok(prepared) => Some(prepared),
        Err(Error::MissingKernel { .. }) => {
            eprintln!("skipped: this build holds no kernels");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Buffers of the GPU that a plan was prepared for.
fn buffers(prepared: &PreparedPlan) -> GpuBuffers {
    let place = |index: u64| prepared.gpu().ordinal() as u64 * SECOND + (index << 20);
    GpuBuffers {
        query: place(1),
        key: place(2),
        value: place(3),
        output: place(4),
        log_sum_exp: prepared.plan().options().return_lse.then(|| place(5)),
        sinks: prepared.plan().options().sinks.then(|| place(7)),
        workspace: place(6),
        workspace_bytes: prepared.plan().workspace_bytes(),
        ..Default::default()
    }
}

fn modes() -> [AttentionOptions; 3] {
    let default = AttentionOptions { return_lse: true, ..Default::default() };
    [
        default,
        AttentionOptions { pv_mode: PvMode::F16, return_lse: false, ..default },
        AttentionOptions { qk_mode: QkMode::Int4, smooth_q: true, ..default },
    ]
}

#[test]
fn enqueueing_is_a_memset_and_two_launches_on_the_callers_stream() {
    const STREAM: usize = 0x5000;
    for ordinal in 0..GPUS as usize {
        for options in modes() {
            let Some(prepared) = prepare(ordinal, options) else { return };
            let buffers = buffers(&prepared);
            // SAFETY: the driver of this test reads and writes nothing.
            let enqueue = || unsafe { prepared.enqueue(STREAM as *mut c_void, &buffers).expect("a valid call") };
            let calls = calls(enqueue);
            // a question about each buffer, as there are several GPUs
            let questions = calls.iter().filter(|call| **call == Call::Other("cuPointerGetAttributes")).count();
            assert_eq!(questions, if options.return_lse { 6 } else { 5 });
            let calls: Vec<_> =
                calls.into_iter().filter(|call| *call != Call::Other("cuPointerGetAttributes")).collect();
            let [push, memset, quantize, attend, pop] = &calls[..] else { panic!("{calls:?}") };
            assert_eq!((push, pop), (&Call::PushContext(ordinal), &Call::PopContext));
            let Call::Memset { stream: STREAM, address, bytes } = *memset else { panic!("{memset:?}") };
            let workspace = buffers.workspace..=buffers.workspace + buffers.workspace_bytes;
            assert!(workspace.contains(&address) && workspace.contains(&(address + bytes as u64)));
            assert_eq!(*quantize, Call::Launch { stream: STREAM, function: QUANTIZE });
            assert_eq!(*attend, Call::Launch { stream: STREAM, function: ATTENTION });
        }
    }
}

/// Attention begins before everything is quantized where both take long, and items are short besides, if its kernel waits for what it needs.
#[test]
fn attention_overlaps_the_quantizer_where_that_gains() {
    const STREAM: usize = 0x5000;
    let default = AttentionOptions::default();
    let f16 = AttentionOptions { pv_mode: PvMode::F16, ..default };
    let window = Mask::Window { left: Some(100), right: Some(100), align: CausalAlign::TopLeft };
    for (shape, options, overlaps) in [
        ([32, 16, 1024, 128], default, true),
        ([32, 16, 1024, 128], f16, true),
        ([32, 16, 1024, 128], AttentionOptions { mask: Mask::Causal, ..default }, true),
        ([16, 32, 1024, 64], default, true),
        ([8, 16, 4096, 128], AttentionOptions { hadamard: true, ..default }, true),
        // one round of items, and a few
        ([1, 16, 1024, 128], default, false),
        ([1, 16, 4096, 128], default, false),
        // items that take nearly as long as quantization
        ([2, 16, 16384, 128], default, false),
        ([2, 16, 16384, 128], AttentionOptions { mask: Mask::Causal, ..default }, true),
        // less to attend to than to quantize
        ([256, 16, 128, 128], default, false),
        ([8, 16, 4096, 128], AttentionOptions { mask: window, ..default }, false),
        // kernels that do not wait
        ([32, 16, 1024, 128], AttentionOptions { soft_cap: Some(30.0), ..default }, false),
        ([32, 16, 1024, 128], AttentionOptions { qk_mode: QkMode::Int4, smooth_q: true, ..default }, false),
    ] {
        let Some(prepared) = prepare_for(0, shape, options) else { return };
        let buffers = buffers(&prepared);
        // SAFETY: the driver of this test reads and writes nothing.
        let mut calls = calls(|| unsafe { prepared.enqueue(STREAM as *mut c_void, &buffers).expect("a valid call") });
        let attend = match overlaps {
            true => Call::OverlappingLaunch { stream: STREAM, function: ATTENTION },
            false => Call::Launch { stream: STREAM, function: ATTENTION },
        };
        let quantize = Call::Launch { stream: STREAM, function: QUANTIZE };
        assert_eq!(calls.split_off(calls.len() - 3), [quantize, attend, Call::PopContext], "{shape:?} {options:?}");
    }
}

/// The quantizer turns queries and keys of pairs of whole chunks itself. Other rotations are a launch for each, before all else.
#[test]
fn rotations_are_two_launches_more_or_none() {
    const STREAM: usize = 0x5000;
    let rotary = |dim, pairs| Some(Rotary { dim, pairs, positions: 1000, query_offset: 0, key_offset: 0 });
    let [interleaved, half_split] = RotaryPairs::ALL;
    for (rotary, hadamard, prepared_operands) in [
        (rotary(128, half_split), false, 0),
        (rotary(32, half_split), false, 0),
        (rotary(40, interleaved), false, 0),
        (rotary(40, half_split), false, 2),
        (rotary(42, interleaved), false, 2),
        (rotary(128, half_split), true, 2),
        (None, true, 2),
    ] {
        let Some(prepared) = prepare(0, AttentionOptions { rotary, hadamard, ..Default::default() }) else { return };
        let tables = rotary.map(|_| RotaryTables { cos: 8 << 20, sin: 9 << 20 });
        let buffers = GpuBuffers { rotary: tables, ..buffers(&prepared) };
        // SAFETY: the driver of this test reads and writes nothing.
        let calls = calls(|| unsafe { prepared.enqueue(STREAM as *mut c_void, &buffers).expect("a valid call") });
        let is_launch = |call: &Call| matches!(call, Call::Launch { .. });
        let launches: Vec<_> = calls.into_iter().filter(is_launch).collect();
        let prepare = std::iter::repeat_n(PREPARE, prepared_operands);
        let expected = prepare.chain([QUANTIZE, ATTENTION]).map(|function| Call::Launch { stream: STREAM, function });
        assert_eq!(launches, expected.collect::<Vec<_>>(), "{rotary:?}, {hadamard}");
    }
}

#[test]
fn operands_by_themselves_are_a_memset_and_a_launch_each() {
    const STREAM: usize = 0x5000;
    let options = AttentionOptions { return_lse: true, ..Default::default() };
    let Some(prepared) = prepare(0, options) else { return };
    let plan = prepared.plan();
    let place = |index: u64| index << 20;
    let stream = STREAM as *mut c_void;
    let scratch_bytes = plan.scratch_bytes();
    let of = |operand: Operand| QuantizeBuffers {
        tensor: place(1),
        quantized: place(2 + operand as u64),
        quantized_bytes: plan.quantized_format(operand).expect("a format").bytes(),
        scratch: place(6),
        scratch_bytes,
    };
    let attend = AttendBuffers {
        output: place(7),
        log_sum_exp: Some(place(8)),
        scratch: place(6),
        scratch_bytes,
        ..Default::default()
    };
    // SAFETY: the driver of this test reads and writes nothing.
    let quantize_key = |buffers: &QuantizeBuffers| unsafe { prepared.quantize_key(stream, buffers) };
    // SAFETY: as above.
    let quantize_query = |key: Option<&_>| unsafe { prepared.quantize_query(stream, &of(Operand::Query), key) };
    let attend_quantized =
        // SAFETY: as above.
        |operands: [&_; 3], buffers: &AttendBuffers| unsafe { prepared.attend_quantized(stream, operands, buffers) };

    let all = calls(|| {
        let key = quantize_key(&of(Operand::Key)).expect("valid keys");
        // SAFETY: as above.
        let value = unsafe { prepared.quantize_value(stream, &of(Operand::Value)).expect("valid values") };
        let query = quantize_query(Some(&key)).expect("valid queries");
        attend_quantized([&query, &key, &value], &attend).expect("a valid call");
    });
    let all = all.into_iter().filter(|call| *call != Call::Other("cuPointerGetAttributes"));
    let (memsets, others): (Vec<_>, Vec<_>) = all.partition(|call| matches!(call, Call::Memset { .. }));
    let step = |function| [Call::PushContext(0), Call::Launch { stream: STREAM, function }, Call::PopContext];
    assert_eq!(others, [QUANTIZE, QUANTIZE, QUANTIZE, ATTENTION].map(step).concat());
    assert_eq!(memsets.len(), 4);
    for memset in memsets {
        let Call::Memset { stream: STREAM, address, bytes } = memset else { panic!("{memset:?}") };
        assert!(address >= place(6) && address + bytes as u64 <= place(6) + scratch_bytes);
    }

    let key = quantize_key(&of(Operand::Key)).expect("valid keys");
    let [query, value] = [Operand::Query, Operand::Value]
        .map(|operand| GpuQuantized { format: plan.quantized_format(operand).expect("a format"), address: place(4) });
    let far = SECOND + place(1);
    type Step<'a> = &'a dyn Fn() -> Result<(), Error>;
    let cases: [(Step, &str); 10] = [
        (
            &|| quantize_key(&QuantizeBuffers { tensor: 0, ..of(Operand::Key) }).map(drop),
            "key's device address is null",
        ),
        (&|| quantize_key(&QuantizeBuffers { tensor: far, ..of(Operand::Key) }).map(drop), "key's device address 0x1"),
        (
            &|| quantize_key(&QuantizeBuffers { quantized: 8, ..of(Operand::Key) }).map(drop),
            "quantized's device address is 0x8",
        ),
        (
            &|| quantize_key(&QuantizeBuffers { quantized_bytes: 9, ..of(Operand::Key) }).map(drop),
            "quantized has 9 bytes",
        ),
        (&|| quantize_key(&QuantizeBuffers { scratch_bytes: 9, ..of(Operand::Key) }).map(drop), "scratch has 9 bytes"),
        (&|| quantize_query(None).map(drop), "key is None"),
        (&|| quantize_query(Some(&value)).map(drop), "key's quantized format is"),
        (&|| attend_quantized([&query, &value, &key], &attend), "key's quantized format is"),
        (
            &|| attend_quantized([&query, &GpuQuantized { address: far, ..key }, &value], &attend),
            "key's device address 0x1",
        ),
        (
            &|| attend_quantized([&query, &key, &value], &AttendBuffers { log_sum_exp: None, ..attend }),
            "log_sum_exp is None",
        ),
    ];
    for (run, words) in cases {
        let mut result = Ok(());
        let calls = calls(|| result = run());
        let message = result.expect_err("a bad buffer").to_string();
        assert!(message.contains(words), "{message}, not {words}");
        assert!(!calls.iter().any(|call| matches!(call, Call::Memset { .. } | Call::Launch { .. })), "{calls:?}");
    }
}

#[test]
fn memory_of_another_gpu_is_refused() {
    let options = AttentionOptions { return_lse: true, sinks: true, ..Default::default() };
    let Some(prepared) = prepare(0, options) else { return };
    let own = buffers(&prepared);
    let far = SECOND + (1 << 20);
    let strangers = [
        ("query", GpuBuffers { query: far, ..own }),
        ("key", GpuBuffers { key: far, ..own }),
        ("value", GpuBuffers { value: far, ..own }),
        ("output", GpuBuffers { output: far, ..own }),
        ("log_sum_exp", GpuBuffers { log_sum_exp: Some(far), ..own }),
        ("sinks", GpuBuffers { sinks: Some(far), ..own }),
        ("workspace", GpuBuffers { workspace: far, ..own }),
    ];
    for (argument, buffers) in strangers {
        let mut result = Ok(());
        // SAFETY: as above.
        let calls = calls(|| result = unsafe { prepared.enqueue(std::ptr::null_mut(), &buffers) });
        assert_eq!(result, Err(Error::WrongGpu { argument, address: far, got: 1, expected: 0 }));
        assert!(!calls.iter().any(|call| matches!(call, Call::Memset { .. } | Call::Launch { .. })), "{calls:?}");
    }
    let words = Error::WrongGpu { argument: "key", address: far, got: 1, expected: 0 }.to_string();
    assert_eq!(words, "key's device address 0x10000100000 is memory of GPU 1; the plan was prepared for GPU 0");
}

#[test]
fn a_second_plan_loads_nothing_again() {
    let Some(first) = prepare(0, AttentionOptions::default()) else { return };
    let again = calls(|| {
        first.plan().prepare(first.gpu()).expect("loaded before");
    });
    assert_eq!(again, []);
}

#[test]
fn a_step_on_a_cache_is_three_launches_on_the_callers_stream() {
    const STREAM: usize = 0x5000;
    install();
    let problem = CacheProblem::new(TensorLayout::Hnd, DType::F16, [2, 4, 1, 128], 2, 1000);
    let plan = CachePlan::new(problem, CacheOptions { smooth_k: true, ..Default::default() }).expect("a valid step");
    let step = match Gpu::open(0).and_then(|gpu| plan.prepare(gpu)) {
        Ok(step) => step,
        Err(Error::MissingKernel { .. }) => return eprintln!("skipped: this build holds no kernels"),
        Err(error) => panic!("{error}"),
    };
    let place = |index: u64| index << 20;
    let key_mean = Some(place(7));
    let append = AppendBuffers {
        key: place(1),
        value: place(2),
        cache: place(3),
        lengths: place(4),
        page_table: None,
        key_mean,
    };
    let attention = CacheAttentionBuffers {
        query: place(1),
        output: place(2),
        cache: place(3),
        lengths: place(4),
        workspace: place(5),
        workspace_bytes: plan.workspace_bytes(),
        key_mean,
        ..Default::default()
    };
    // SAFETY: the driver of this test reads and writes nothing.
    let enqueue = |append: &AppendBuffers, attention: &CacheAttentionBuffers| unsafe {
        step.enqueue_append(STREAM as *mut c_void, append)?;
        step.enqueue_attention(STREAM as *mut c_void, attention)
    };
    let launches: Vec<_> = calls(|| enqueue(&append, &attention).expect("a valid step"))
        .into_iter()
        .filter(|call| *call != Call::Other("cuPointerGetAttributes"))
        .collect();
    let launch = |function| Call::Launch { stream: STREAM, function };
    let [push, pop] = [Call::PushContext(0), Call::PopContext];
    let attend = [push.clone(), launch(ATTENTION), launch(MERGE), pop.clone()];
    assert_eq!(launches, [&[push, launch(QUANTIZE), pop][..], &attend].concat());

    let far = SECOND + place(1);
    let refused = |append: AppendBuffers, attention: CacheAttentionBuffers| {
        let mut result = Ok(());
        let calls = calls(|| result = enqueue(&append, &attention));
        (
            result.expect_err("a bad buffer").to_string(),
            calls.iter().filter(|call| matches!(call, Call::Launch { .. })).count(),
        )
    };
    for (append, attention, words, launches) in [
        (AppendBuffers { cache: far, ..append }, attention, "cache's device address", 0),
        (AppendBuffers { key: 0, ..append }, attention, "key's device address is null", 0),
        (AppendBuffers { lengths: 2, ..append }, attention, "lengths's device address is 0x2", 0),
        (AppendBuffers { key_mean: None, ..append }, attention, "key_mean is None", 0),
        (append, CacheAttentionBuffers { page_table: key_mean, ..attention }, "page_table is there", 1),
        (append, CacheAttentionBuffers { workspace_bytes: 5, ..attention }, "workspace has 5 bytes", 1),
        (append, CacheAttentionBuffers { log_sum_exp: key_mean, ..attention }, "log_sum_exp is a buffer", 1),
        (append, CacheAttentionBuffers { output: far, ..attention }, "output's device address", 1),
    ] {
        let (message, count) = refused(append, attention);
        assert!(message.contains(words) && count == launches, "{message}: {count}");
    }
}
