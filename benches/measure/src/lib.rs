//! What the benchmark programs have in common. It measures nothing itself, so that its tests need neither a GPU nor time.
//!
//! | module | what |
//! |---|---|
//! | [`arguments`] | the command line that all programs take |
//! | [`result`] | measurements, their names, and the [`Report`] that is written to files |
//! | [`limits`] | what the hardware allows |
//! | [`table`] | measurements in the terminal |
//! | [`chart`] | measurements as SVG |
//! | [`peers`] | PyTorch's attention, timed by a child process |

pub mod arguments;
pub mod chart;
pub mod limits;
pub mod peers;
pub mod result;
pub mod table;

pub use arguments::Arguments;
pub use result::{Accuracy, Case, Device, Measurement, Mode, Part, Report, Spread};

use std::path::PathBuf;
use std::process::ExitCode;

/// How a benchmark program ends: what went wrong goes to standard error.
pub fn exit_code(result: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why results could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or its folder can't be written.
    #[error("{} can't be written: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A chart can't be drawn.
    #[error("the chart `{title}` can't be drawn: {reason}")]
    Draw {
        /// The chart's title.
        title: String,
        /// The library's reason.
        reason: String,
    },
}

#[cfg(test)]
mod made_up {
    //! Measurements of no machine.

    use crate::{Accuracy, Case, Device, Measurement, Mode, Part, Report};

    pub fn case(head_dim: usize, mask: &'static str, length: usize, part: Part, contender: &str) -> Case {
        Case { engine: "gpu", head_dim, mask, length, part, contender: contender.into() }
    }

    /// Two contenders at three lengths, with and without a mask.
    pub fn report() -> Report {
        let mut measurements = Vec::new();
        for (head_dim, fastest) in [(128, 1100.0), (64, 660.0)] {
            for (mask, pairs) in [("full", 1.0), ("causal", 0.5)] {
                for (step, length) in [1024, 4096, 16384].into_iter().enumerate() {
                    for (part, contender, speed) in [
                        (Part::Attention, "int8-fp8", 1.0),
                        (Part::EndToEnd, "int8-fp8", 0.8),
                        (Part::Quantization, "int8-fp8", 1.0),
                        (Part::Attention, "torch-cudnn-f16", 0.6),
                    ] {
                        let case = case(head_dim, mask, length, part, contender);
                        let operations = 4.0 * 32768.0 * 2048.0 * length as f64 * pairs;
                        let tops = fastest * speed * (0.6 + 0.2 * step as f64);
                        let (operations, bytes, milliseconds) = match part {
                            Part::Quantization => (None, Some(6.04e8), 0.325),
                            _ => (Some(operations), None, operations / tops / 1e9),
                        };
                        for (mode, slower) in [(Mode::Burst, 1.0), (Mode::Sustained, 1.15)] {
                            let samples = [0.99, 1.0, 1.02].map(|noise| noise * slower * milliseconds);
                            measurements.push(Measurement::new(case.clone(), mode, &samples, operations, bytes));
                        }
                    }
                }
            }
        }
        let accuracy = [("full", 0.0388), ("causal", 0.0377)].map(|(mask, relative_l1)| Accuracy {
            case: case(128, mask, 4096, Part::Accuracy, "int8-fp8"),
            cosine: 0.9992,
            relative_l1,
            rmse: 1e-3,
        });
        let device = Device { name: "Made-up <GPU>".into(), multiprocessors: Some(132), clock_ghz: Some(1.98) };
        Report { device, notes: vec!["made up".into()], measurements, accuracy: accuracy.into() }
    }
}
