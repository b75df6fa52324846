//! PyTorch's attention, timed by a child process, a request at a time, so that its bursts alternate with ours.
//!
//! The child is Python with `peers.py`. It says once what it is, then answers each line with a line, all in JSON.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the child runs.
const SCRIPT: &str = include_str!("peers.py");
/// How long the child may take to start: importing PyTorch from a slow disk takes a minute.
const START: Duration = Duration::from_secs(180);
/// How long an answer may take: the first of a shape also plans and makes inputs.
const ANSWER: Duration = Duration::from_secs(60);

/// An attention of PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What measurements call it.
    pub name: &'static str,
    /// PyTorch's name of the backend.
    pub backend: &'static str,
    /// PyTorch's name of the element type.
    pub dtype: &'static str,
}

/// The peers that are measured.
pub const PEERS: [Peer; 2] = [
    Peer { name: "torch-flash-f16", backend: "FLASH_ATTENTION", dtype: "float16" },
    Peer { name: "torch-cudnn-f16", backend: "CUDNN_ATTENTION", dtype: "float16" },
];

/// How to time: a warm-up of at least one call, then samples of at least one call each, without a pause.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// About how long to warm up.
    pub warm_up_ms: f64,
    /// About how long a sample is.
    pub sample_ms: f64,
    /// How many samples.
    pub samples: usize,
}

/// What to time, and how.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Request {
    pub backend: &'static str,
    pub dtype: &'static str,
    pub batch: usize,
    pub heads: usize,
    pub length: usize,
    pub head_dim: usize,
    pub causal: bool,
    #[serde(flatten)]
    pub timing: Timing,
}

/// Why a peer has no time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The child can't be started.
    #[error("`{program}` can't be started: {source}")]
    Start {
        /// Python's program.
        program: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The child can't do what it was asked for: no PyTorch, no GPU, no such backend, not this shape. The next request may
    /// fare better, unless this was the start.
    #[error("{0}")]
    Refused(String),
    /// The child ended, or said what makes no sense.
    #[error("the peers' process {0}")]
    Lost(String),
    /// The child did not answer.
    #[error("the peers' process did not answer within {0:?}")]
    Timeout(Duration),
}

impl PeerError {
    /// Whether the child may answer another request.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// The child process. It ends when this is dropped.
#[derive(Debug)]
pub struct Peers {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    version: String,
}

/// A line from the child.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Error { error: String },
    Version { version: String },
    Milliseconds { milliseconds: Vec<f64> },
}

impl Peers {
    /// Starts Python, and waits until it has PyTorch and a GPU.
    ///
    /// # Errors
    ///
    /// If one of them is missing.
    pub fn start(python: &Path) -> Result<Self, PeerError> {
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]);
        Self::start_command(command, START)
    }

    fn start_command(mut command: Command, patience: Duration) -> Result<Self, PeerError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|source| PeerError::Start { program, source })?;
        let (Some(requests), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(PeerError::Lost("has no pipes".into()));
        };
        let (sender, answers) = channel();
        // Ends with the child's output.
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        let mut peers = Self { child, requests, answers, version: String::new() };
        match peers.answer(patience)? {
            Answer::Version { version } => peers.version = version,
            Answer::Error { error } => return Err(PeerError::Refused(error)),
            Answer::Milliseconds { .. } => return Err(PeerError::Lost("answered before it was asked".into())),
        }
        Ok(peers)
    }

    /// PyTorch's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Milliseconds of a call, a number a sample.
    ///
    /// # Errors
    ///
    /// If the child refuses, or is gone.
    pub fn measure(&mut self, request: &Request) -> Result<Vec<f64>, PeerError> {
        let line = serde_json::to_string(request).expect("numbers and text are JSON");
        let sent = writeln!(self.requests, "{line}").and_then(|()| self.requests.flush());
        sent.map_err(|error| PeerError::Lost(format!("takes no requests: {error}")))?;
        match self.answer(ANSWER)? {
            Answer::Milliseconds { milliseconds } if milliseconds.len() == request.timing.samples => Ok(milliseconds),
            Answer::Error { error } => Err(PeerError::Refused(error)),
            _ => Err(PeerError::Lost("answered something else than was asked".into())),
        }
    }

    fn answer(&mut self, patience: Duration) -> Result<Answer, PeerError> {
        let line = self.answers.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => PeerError::Timeout(patience),
            RecvTimeoutError::Disconnected => PeerError::Lost("ended".into()),
        })?;
        serde_json::from_str(&line).map_err(|_| PeerError::Lost(format!("said `{line}`")))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // It may be waiting for us, or we may have given up on it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request {
        backend: "FLASH_ATTENTION",
        dtype: "float16",
        batch: 2,
        heads: 16,
        length: 4096,
        head_dim: 128,
        causal: true,
        timing: Timing { warm_up_ms: 0.0, sample_ms: 12.0, samples: 2 },
    };
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A shell in Python's place.
    fn start(script: &str, patience: Duration) -> Result<Peers, PeerError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Peers::start_command(command, patience)
    }

    #[test]
    fn requests_are_answered_in_turn() {
        let script = r#"
            echo '{"version": "2.11.0"}'
            read request; case $request in *'"length":4096'*'"causal":true'*'"samples":2'*) echo '{"milliseconds": [1.5, 2]}';; esac
            read request; echo '{"error": "no kernel"}'
            read request; echo '{"milliseconds": [3]}'
        "#;
        let mut peers = start(script, PATIENCE).unwrap();
        assert_eq!(peers.version(), "2.11.0");
        assert_eq!(peers.measure(&REQUEST).unwrap(), [1.5, 2.0]);
        let refused = peers.measure(&REQUEST).unwrap_err();
        assert!(!refused.is_final() && refused.to_string() == "no kernel");
        assert!(peers.measure(&REQUEST).unwrap_err().is_final(), "one sample for two");
        assert!(peers.measure(&REQUEST).unwrap_err().is_final(), "the child has ended");
    }

    /// What the script uses of PyTorch, without a GPU. It has one backend, and prints where answers go.
    const FAKE_TORCH: &str = r#"
import contextlib, sys, time, types
print("not an answer")
__version__, float16 = "fake", "float16"
class Tensor:
    dtype = float16
    def __iadd__(self, other): return self
    def __rmul__(self, other): return self
randn = zeros = lambda *shape, **options: Tensor()
no_grad = contextlib.nullcontext
class Event:
    def __init__(self, enable_timing): pass
    def record(self): self.time = time.perf_counter()
    def synchronize(self): pass
    def elapsed_time(self, other): return (other.time - self.time) * 1e3
cuda = types.SimpleNamespace(Event=Event)
def module(name, **content):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)
class SDPBackend: FLASH_ATTENTION = 1
__path__ = []
module("torch.nn", __path__=[])
module("torch.nn.attention", SDPBackend=SDPBackend, sdpa_kernel=contextlib.nullcontext)
module("torch.nn.functional", scaled_dot_product_attention=lambda *tensors, is_causal: time.sleep(0.001))
"#;

    #[test]
    fn the_script_keeps_to_the_protocol() {
        let folder = tempfile::tempdir().unwrap();
        let start = || {
            let mut command = Command::new("python3");
            command.args(["-c", SCRIPT]).env("PYTHONPATH", folder.path());
            Peers::start_command(command, PATIENCE)
        };
        std::fs::write(folder.path().join("torch.py"), "raise ImportError('no libcudart')").unwrap();
        match start() {
            Err(PeerError::Refused(reason)) => assert!(reason.ends_with("no libcudart"), "{reason}"),
            Err(PeerError::Start { .. }) => return println!("skipped: no python3"),
            other => panic!("{other:?}"),
        }
        std::fs::write(folder.path().join("torch.py"), FAKE_TORCH).unwrap();
        let mut peers = start().unwrap();
        assert_eq!(peers.version(), "fake");
        for _ in 0..2 {
            let milliseconds = peers.measure(&REQUEST).unwrap();
            assert!(milliseconds.iter().all(|call| *call >= 1.0), "{milliseconds:?}");
        }
        let refused = peers.measure(&Request { backend: "CUDNN_ATTENTION", ..REQUEST }).unwrap_err();
        assert!(!refused.is_final() && refused.to_string().contains("no CUDNN_ATTENTION"), "{refused}");
        assert_eq!(peers.measure(&REQUEST).unwrap().len(), 2);
    }

    #[test]
    fn a_child_that_does_not_start() {
        let missing = Peers::start(Path::new("/no/such/python")).unwrap_err();
        assert!(matches!(missing, PeerError::Start { .. }) && missing.to_string().contains("/no/such/python"));
        let refused = start(r#"echo '{"error": "no PyTorch"}'"#, PATIENCE).unwrap_err();
        assert_eq!(refused.to_string(), "no PyTorch");
        assert!(matches!(start("echo hello", PATIENCE).unwrap_err(), PeerError::Lost(_)));
        assert!(matches!(start("exit 1", PATIENCE).unwrap_err(), PeerError::Lost(_)));
        let silent = start("read nothing", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(silent, PeerError::Timeout(_)), "{silent}");
    }
}
