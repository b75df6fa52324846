//! Measurements, their names, and the files they are written to.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, chart};

/// Which part of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The attention kernel, or a peer's whole call, which has no other kernels.
    Attention,
    /// Everything before the attention kernel.
    Quantization,
    /// The whole call.
    EndToEnd,
    /// How exact the whole call is.
    Accuracy,
}

impl Part {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Quantization => "quantization",
            Self::EndToEnd => "end-to-end",
            Self::Accuracy => "accuracy",
        }
    }
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// What computes it: `gpu`, `cpu` or `simt`.
    pub engine: &'static str,
    /// Channels of a head.
    pub head_dim: usize,
    /// `full` (no mask), `causal`, `window`, or `mixed` (no mask, sequences of different lengths).
    pub mask: &'static str,
    /// Queries, and keys, of a sequence.
    pub length: usize,
    /// Which part of the call.
    pub part: Part,
    /// Who: a variant of ours, or a peer.
    pub contender: String,
}

impl Case {
    /// What filters look at, such as `gpu/d128/causal/16384/attention/int8-fp8`.
    pub fn name(&self) -> String {
        let Self { engine, head_dim, mask, length, part, contender } = self;
        format!("{engine}/d{head_dim}/{mask}/{length}/{}/{contender}", part.name())
    }
}

/// How calls follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A few, after a rest: no power limit.
    Burst,
    /// Without a rest, until the clock has settled.
    Sustained,
}

impl Mode {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Burst => "burst",
            Self::Sustained => "sustained",
        }
    }
}

/// How a measurement's samples scatter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Spread {
    pub samples: usize,
    pub min: f64,
    pub lower_quartile: f64,
    pub median: f64,
    pub upper_quartile: f64,
    pub max: f64,
}

impl Spread {
    /// The spread of some samples; all zero if there are none.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return Self::default() };
        let at = |quantile: f64| {
            let place = quantile * last as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Self {
            samples: sorted.len(),
            min: at(0.0),
            lower_quartile: at(0.25),
            median: at(0.5),
            upper_quartile: at(0.75),
            max: at(1.0),
        }
    }
}

/// The time of a case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// [`Case::name`].
    pub name: String,
    /// What was measured.
    #[serde(flatten)]
    pub case: Case,
    /// How.
    pub mode: Mode,
    /// Milliseconds of a call; each sample is the mean of calls in a row.
    pub milliseconds: Spread,
    /// 10¹² operations a second in the median sample, for what has matrix products.
    pub tops: Option<f64>,
    /// Gigabytes a second in the median sample, for what moves bytes.
    pub gigabytes_per_second: Option<f64>,
}

impl Measurement {
    /// From each sample's milliseconds, and the operations or bytes of a call.
    pub fn new(case: Case, mode: Mode, samples: &[f64], operations: Option<f64>, bytes: Option<f64>) -> Self {
        let milliseconds = Spread::of(samples);
        Self {
            name: case.name(),
            case,
            mode,
            milliseconds,
            tops: operations.map(|operations| operations / milliseconds.median / 1e9),
            gigabytes_per_second: bytes.map(|bytes| bytes / milliseconds.median / 1e6),
        }
    }

    /// TOPS of the slowest and of the fastest sample.
    pub fn tops_range(&self) -> Option<[f64; 2]> {
        let Spread { min, median, max, .. } = self.milliseconds;
        self.tops.map(|tops| [tops * median / max, tops * median / min])
    }
}

/// How far a call's result is from the exact one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// The call.
    #[serde(flatten)]
    pub case: Case,
    /// Cosine of the angle between the two.
    pub cosine: f64,
    /// Sum of absolute differences over the sum of exact absolute values.
    pub relative_l1: f64,
    /// Root of the mean square difference.
    pub rmse: f64,
}

/// Where it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Device {
    /// The maker's name of it.
    pub name: String,
    /// A GPU's multiprocessors.
    pub multiprocessors: Option<u32>,
    /// A GPU's highest clock, in GHz.
    pub clock_ghz: Option<f64>,
}

/// What a benchmark program found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Where.
    pub device: Device,
    /// What else is worth knowing: versions, the first call's time, peers that were not there.
    pub notes: Vec<String>,
    /// Times.
    pub measurements: Vec<Measurement>,
    /// Errors.
    pub accuracy: Vec<Accuracy>,
}

impl Report {
    /// Writes everything to `folder`: `PROGRAM.json`, `PROGRAM.csv`, `PROGRAM-accuracy.csv`, and the charts. Returns the
    /// files.
    ///
    /// # Errors
    ///
    /// If a file can't be written or a chart can't be drawn.
    pub fn write(&self, folder: &Path, program: &str) -> Result<Vec<PathBuf>, Error> {
        let json = serde_json::to_string_pretty(self).expect("numbers, text and lists are all JSON");
        let mut files = vec![(format!("{program}.json"), json), (format!("{program}.csv"), self.csv())];
        if !self.accuracy.is_empty() {
            files.push((format!("{program}-accuracy.csv"), self.accuracy_csv()));
        }
        for (name, svg) in chart::all(self)? {
            files.push((format!("{program}-{name}.svg"), svg));
        }
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            |source| Error::Write { path, source }
        };
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let write = |(name, text): (String, String)| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(failed(&path))?;
            Ok(path)
        };
        files.into_iter().map(write).collect()
    }

    /// A row a measurement. No field has a comma.
    pub fn csv(&self) -> String {
        let header = "name,engine,head_dim,mask,length,part,contender,mode,samples,ms_min,ms_lower_quartile,ms_median,\
                      ms_upper_quartile,ms_max,tops,gigabytes_per_second\n";
        let number = |number: Option<f64>| number.map_or(String::new(), |number| number.to_string());
        let row = |measurement: &Measurement| {
            let Spread { samples, min, lower_quartile, median, upper_quartile, max } = measurement.milliseconds;
            format!(
                "{},{},{samples},{min},{lower_quartile},{median},{upper_quartile},{max},{},{}\n",
                csv_of(&measurement.case),
                measurement.mode.name(),
                number(measurement.tops),
                number(measurement.gigabytes_per_second)
            )
        };
        header.to_string() + &self.measurements.iter().map(row).collect::<String>()
    }

    /// A row a comparison with the exact result.
    pub fn accuracy_csv(&self) -> String {
        let header = "name,engine,head_dim,mask,length,part,contender,cosine,relative_l1,rmse\n";
        let row = |Accuracy { case, cosine, relative_l1, rmse }: &Accuracy| {
            format!("{},{cosine},{relative_l1},{rmse}\n", csv_of(case))
        };
        header.to_string() + &self.accuracy.iter().map(row).collect::<String>()
    }
}

fn csv_of(case: &Case) -> String {
    let Case { engine, head_dim, mask, length, part, contender } = case;
    format!("{},{engine},{head_dim},{mask},{length},{},{contender}", case.name(), part.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    #[test]
    fn spread_of_few_and_many() {
        assert_eq!(Spread::of(&[]), Spread::default());
        let one = Spread::of(&[3.0]);
        assert_eq!((one.min, one.lower_quartile, one.median, one.upper_quartile, one.max), (3.0, 3.0, 3.0, 3.0, 3.0));
        let even = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((even.samples, even.lower_quartile, even.median, even.upper_quartile), (4, 1.75, 2.5, 3.25));
    }

    #[test]
    fn rates_are_of_the_median() {
        let case = made_up::case(128, "full", 1024, Part::Attention, "int8-fp8");
        assert_eq!(case.name(), "gpu/d128/full/1024/attention/int8-fp8");
        let measured = Measurement::new(case, Mode::Burst, &[2.0, 1.0, 4.0], Some(4e12), None);
        assert_eq!((measured.tops, measured.gigabytes_per_second), (Some(2000.0), None));
        assert_eq!(measured.tops_range(), Some([1000.0, 4000.0]));
    }

    #[test]
    fn csv_says_what_was_measured() {
        let report = made_up::report();
        let csv = report.csv();
        let mut lines = csv.lines();
        let header: Vec<_> = lines.next().unwrap().split(',').collect();
        let rows: Vec<Vec<_>> = lines.map(|line| line.split(',').collect()).collect();
        assert_eq!(rows.len(), report.measurements.len());
        for (row, measurement) in rows.iter().zip(&report.measurements) {
            assert_eq!(row.len(), header.len());
            let field = |name: &str| row[header.iter().position(|field| *field == name).unwrap()];
            let number = |name: &str| field(name).parse::<f64>().ok();
            assert_eq!(field("name"), measurement.case.name());
            assert_eq!(field("length"), measurement.case.length.to_string());
            assert_eq!(field("mode"), measurement.mode.name());
            assert_eq!(number("ms_median"), Some(measurement.milliseconds.median));
            assert_eq!(number("ms_max"), Some(measurement.milliseconds.max));
            assert_eq!(number("tops"), measurement.tops);
            assert_eq!(number("gigabytes_per_second"), measurement.gigabytes_per_second);
        }
        assert_eq!(report.accuracy_csv().lines().count(), 1 + report.accuracy.len());
    }

    #[test]
    fn everything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/folder");
        let files = made_up::report().write(&out, "gpu").unwrap();
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "gpu.json",
                "gpu.csv",
                "gpu-accuracy.csv",
                "gpu-d128-full.svg",
                "gpu-d128-causal.svg",
                "gpu-d64-full.svg",
                "gpu-d64-causal.svg",
                "gpu-accuracy.svg"
            ]
        );
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(out.join("gpu.json")).unwrap()).unwrap();
        assert_eq!(json["device"]["multiprocessors"], 132);
        let first = &json["measurements"][0];
        assert_eq!(first["name"], "gpu/d128/full/1024/attention/int8-fp8");
        assert_eq!((&first["mode"], &first["part"]), (&"burst".into(), &"attention".into()));
        assert_eq!(first["milliseconds"]["samples"], 3);

        let file = out.join("gpu.json");
        let error = made_up::report().write(&file, "gpu").unwrap_err();
        assert!(matches!(error, Error::Write { .. }) && error.to_string().contains("gpu.json"), "{error}");
    }
}
