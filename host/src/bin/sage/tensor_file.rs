//! Safetensors files: reading single tensors, and writing a file all at once.

use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensorError};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Largest header that the format allows, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of the number that a file starts with: the header's length.
const LENGTH_BYTES: u64 = 8;
/// Most names of tensors in an error message.
const LISTED_NAMES: usize = 20;

/// What can be wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system can't read it.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The system can't write it.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Its tensors can't be put into the format.
    #[error("cannot write {}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format's reason.
        source: SafeTensorError,
    },
    /// A directory, a pipe, …
    #[error("{} is not a regular file; tensors are read from regular files only", .path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{} is not a safetensors file: {reason}", .path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It ends too early.
    #[error("{} is truncated: it has {got} bytes, its header announces {announced}", .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length, in bytes.
        got: u64,
        /// The length that it should have.
        announced: u64,
    },
    /// It holds no tensor of that name.
    #[error("{} has no tensor `{name}`; it has {present}", .path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// The tensors that it holds.
        present: String,
    },
}

/// A tensor as a file holds it.
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Sizes of its axes, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, little-endian.
    pub bytes: Vec<u8>,
}

/// A file whose header was read.
pub struct TensorFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the tensors' bytes start.
    data_start: u64,
}

impl TensorFile {
    /// Opens a file, and checks its header and its length.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let read = |source| FileError::Read { path: path.to_owned(), source };
        let other = |reason: String| FileError::NotSafetensors { path: path.to_owned(), reason };
        let mut file = File::open(path).map_err(read)?;
        let status = file.metadata().map_err(read)?;
        if !status.is_file() {
            return Err(FileError::NotRegular { path: path.to_owned() });
        }
        let got = status.len();
        let check_length = |announced| match got < announced {
            true => Err(FileError::Truncated { path: path.to_owned(), got, announced }),
            false => Ok(()),
        };

        if got < LENGTH_BYTES {
            return Err(other(format!("it has {got} bytes, a header's length takes {LENGTH_BYTES}")));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(read)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES {
            return Err(other(format!("it does not start with a header's length, at most {MAX_HEADER_BYTES}")));
        }
        let data_start = LENGTH_BYTES + length;
        check_length(data_start)?;
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(read)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| other(format!("its header is damaged: {error}")))?;
        let announced = data_start + metadata.data_len() as u64;
        check_length(announced)?;
        if got > announced {
            return Err(other(format!("it has {got} bytes, its header announces {announced}")));
        }
        Ok(Self { path: path.to_owned(), file, metadata, data_start })
    }

    /// Reads one tensor.
    pub fn read(&mut self, name: &str) -> Result<Tensor, FileError> {
        let info = self.metadata.info(name).ok_or_else(|| FileError::NoTensor {
            path: self.path.clone(),
            name: name.to_owned(),
            present: self.names(),
        })?;
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let mut read = || {
            self.file.seek(SeekFrom::Start(self.data_start + start as u64))?;
            self.file.read_exact(&mut bytes)
        };
        read().map_err(|source| FileError::Read { path: self.path.clone(), source })?;
        Ok(Tensor { name: name.to_owned(), dtype: info.dtype, shape: info.shape.clone(), bytes })
    }

    /// The tensors' names as a list for a message.
    fn names(&self) -> String {
        let mut names = self.metadata.offset_keys();
        names.sort_unstable();
        let more = names.len().saturating_sub(LISTED_NAMES);
        names.truncate(LISTED_NAMES);
        match (names.is_empty(), more) {
            (true, _) => "none".to_owned(),
            (_, 0) => names.join(", "),
            _ => format!("{}, and {more} more", names.join(", ")),
        }
    }
}

/// A file to be: nothing is seen of it until it is complete.
pub struct NewFile {
    path: PathBuf,
    destination: Destination,
}

enum Destination {
    /// Written beside the path and moved there.
    Replace(NamedTempFile),
    /// A pipe or a device, written as it is.
    Stream(File),
}

impl NewFile {
    /// Finds out whether the file can be made, before there is anything to write.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        Self::open(path).map_err(|source| FileError::Write { path: path.to_owned(), source })
    }

    fn open(path: &Path) -> io::Result<Self> {
        // Through a link, it is the file behind it that is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let destination = match fs::metadata(&path) {
            Ok(status) if status.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(status) if !status.is_file() => Destination::Stream(File::options().write(true).open(&path)?),
            _ => {
                let folder = match path.parent() {
                    Some(folder) if !folder.as_os_str().is_empty() => folder,
                    _ => Path::new("."),
                };
                Destination::Replace(tempfile::Builder::new().permissions(permissions()).tempfile_in(folder)?)
            }
        };
        Ok(Self { path, destination })
    }

    /// Writes the file.
    pub fn write(self, tensors: &[Tensor]) -> Result<(), FileError> {
        let format = |source| FileError::Format { path: self.path.clone(), source };
        let views = tensors.iter().map(|tensor| {
            TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).map(|view| (&tensor.name, view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(format)?;
        let bytes = safetensors::serialize(views, None).map_err(format)?;
        let written = match self.destination {
            Destination::Stream(mut stream) => stream.write_all(&bytes),
            Destination::Replace(mut file) => {
                file.write_all(&bytes).and_then(|()| file.persist(&self.path).map_err(|error| error.error)).map(drop)
            }
        };
        written.map_err(|source| FileError::Write { path: self.path, source })
    }
}

/// What a program gives a new file; the system takes away what the user's mask forbids.
fn permissions() -> Permissions {
    use std::os::unix::fs::PermissionsExt;
    Permissions::from_mode(0o666)
}
