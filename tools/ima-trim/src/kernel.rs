// SPDX-License-Identifier: GPL-2.0

//! What the kernel says: IMA's files, those of the module, and the TPM's PCRs.
//!
//! Nothing here is believed further than it says: what a list replays to is checked by who reads it.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use ima_trim_pure::bank::Pcr;
use rustix::fs::Mode;
use rustix::fs::OFlags;

use crate::algorithm::Algorithm;
use crate::pcrs::Point;
use crate::pcrs::PointError;
use crate::render::View;
use crate::render::SOURCE;

/// Where securityfs is mounted.
pub const SECURITYFS: &str = "/sys/kernel/security";

/// The TPM that IMA uses: the first one.
pub const TPM: &str = "/sys/class/tpm/tpm0";

/// Bytes that one read of a list asks for. The kernel gives a page, or one record.
const PIECE: usize = 64 << 10;

/// Why the kernel did not say what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The module's files are not there.
    #[error("ima_trim is not loaded ({0} is not there): load it with 'modprobe ima_trim'")]
    NotLoaded(PathBuf),
    /// A file could not be opened, read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// A file has another text than this version of the program knows.
    #[error("{path}: {text:?} is not what is expected there: {expected}")]
    Text {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
        /// What it should say.
        expected: &'static str,
    },
    /// The module does not know the starting values, or they are of another kind.
    #[error("starting_pcrs: {0}")]
    Starting(#[from] PointError),
}

impl KernelError {
    /// Whether this is that error of the operating system.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        matches!(self, Self::File { error, .. } if error.raw_os_error() == Some(errno.raw_os_error()))
    }
}

/// The files of this kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    ima: PathBuf,
    module: PathBuf,
    tpm: PathBuf,
}

impl Kernel {
    /// IMA's files in a securityfs mounted there, and those of the module and the TPM in the usual
    /// places, [`SECURITYFS`] and [`TPM`].
    pub fn new(securityfs: &Path) -> Self {
        Self {
            ima: securityfs.join("ima"),
            module: Path::new(SECURITYFS).join("ima_trim"),
            tpm: TPM.into(),
        }
    }

    /// IMA's directory.
    pub fn ima(&self) -> &Path {
        &self.ima
    }

    /// A file of the module.
    pub fn module(&self, name: &str) -> PathBuf {
        self.module.join(name)
    }

    /// The measurement files that IMA has and that can be rendered, the names without a bank, which
    /// are links, left out. [`SOURCE`] is the first.
    ///
    /// # Errors
    ///
    /// If there is no file of [`SOURCE`]: IMA has one whatever banks the TPM has.
    pub fn views(&self) -> Result<Vec<View>, KernelError> {
        let mut views: Vec<View> = names(&self.ima)?
            .iter()
            .filter_map(|name| View::of_file(name))
            .collect();

        views.sort_by_key(|&view| (view != SOURCE, view));
        if views.first() != Some(&SOURCE) {
            return Err(KernelError::Text {
                path: self.ima.clone(),
                text: String::new(),
                expected:
                    "the files of the measurement list, such as binary_runtime_measurements_sha1",
            });
        }
        Ok(views)
    }

    /// The measurement files of banks that cannot be rendered: `ascii_runtime_measurements_sm3`, say.
    ///
    /// # Errors
    ///
    /// If IMA's directory cannot be read.
    pub fn unknown_files(&self) -> Result<Vec<String>, KernelError> {
        Ok(names(&self.ima)?
            .into_iter()
            .filter(|name| {
                name.contains("_runtime_measurements_")
                    && !name.ends_with("_staged")
                    && View::of_file(name).is_none()
            })
            .collect())
    }

    /// How many records are in the kernel's list now: `runtime_measurements_count`.
    ///
    /// Neither readers nor writers of the list are in the way.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn count(&self) -> Result<u64, KernelError> {
        let path = self.ima.join("runtime_measurements_count");
        number(&path, "a number")
    }

    /// How many violations IMA has counted: `violations`, as it is read.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn violations(&self) -> Result<Vec<u8>, KernelError> {
        read(&self.ima.join("violations"))
    }

    /// Opens the list. Nothing can be trimmed as long as it is open.
    ///
    /// # Errors
    ///
    /// If it cannot be opened: EBUSY if somebody has it open for writing.
    pub fn open(&self, view: View) -> Result<OpenList, KernelError> {
        let path = self.ima.join(view.file_name());
        match File::open(&path) {
            Ok(file) => Ok(OpenList { path, file }),
            Err(error) => Err(KernelError::File { path, error }),
        }
    }

    /// The starting PCR values that the module gives.
    ///
    /// # Errors
    ///
    /// [`KernelError::NotLoaded`], or [`KernelError::Starting`] if the module does not know them.
    pub fn starting(&self) -> Result<Point, KernelError> {
        Ok(Point::parse(&self.read_module("starting_pcrs")?)?)
    }

    /// The text of one of the module's files.
    ///
    /// # Errors
    ///
    /// [`KernelError::NotLoaded`] or [`KernelError::File`].
    pub fn read_module(&self, name: &str) -> Result<Vec<u8>, KernelError> {
        let path = self.module(name);
        match read(&path) {
            Err(error) if error.is(rustix::io::Errno::NOENT) => Err(KernelError::NotLoaded(path)),
            other => other,
        }
    }

    /// What `status` says.
    ///
    /// # Errors
    ///
    /// As [`Kernel::read_module`].
    pub fn status(&self) -> Result<Status, KernelError> {
        let text = self.read_module("status")?;
        Ok(Status {
            lines: String::from_utf8_lossy(&text)
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        })
    }

    /// Opens `trim` so that nobody else can make a request: `O_RDWR | O_EXCL`.
    ///
    /// # Errors
    ///
    /// [`KernelError::NotLoaded`]; EBUSY if somebody has `trim` or `starting_pcrs` open for writing.
    pub fn hold(&self) -> Result<Requests, KernelError> {
        let path = self.module("trim");
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let exclusive = rustix::fs::open(&path, flags, Mode::empty())
            .map(File::from)
            .map_err(io::Error::from);
        match exclusive {
            Ok(file) => Ok(Requests { path, file }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(KernelError::NotLoaded(path))
            }
            Err(error) => Err(KernelError::File { path, error }),
        }
    }

    /// Gives the module its starting values, as their text or as a signed request, by one write to
    /// `starting_pcrs`. Nobody may hold `trim` exclusively meanwhile, this process included.
    ///
    /// # Errors
    ///
    /// As the ABI says of `starting_pcrs`.
    pub fn restore(&self, request: &[u8]) -> Result<(), KernelError> {
        let path = self.module("starting_pcrs");
        let written = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| whole(&mut file, request));
        match written {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(KernelError::NotLoaded(path))
            }
            Err(error) => Err(KernelError::File { path, error }),
        }
    }

    /// The value of a PCR in the TPM now.
    ///
    /// # Errors
    ///
    /// If the TPM has no such bank, or does not answer.
    pub fn pcr(&self, bank: Algorithm, pcr: Pcr) -> Result<Vec<u8>, KernelError> {
        let path = self.tpm.join(format!("pcr-{}/{pcr}", bank.name()));
        let text = read(&path)?;
        let digits = text.trim_ascii();
        let mut value = vec![0; bank.size()];
        if ima_trim_pure::instance::parse_hex(digits, &mut value) {
            return Ok(value);
        }
        Err(KernelError::Text {
            path,
            text: String::from_utf8_lossy(digits).into_owned(),
            expected: "the value of a PCR in hexadecimal",
        })
    }

    /// The banks of the TPM that can be replayed.
    pub fn banks(&self) -> Vec<Algorithm> {
        Algorithm::ALL
            .into_iter()
            .filter(|bank| self.tpm.join(format!("pcr-{}", bank.name())).exists())
            .collect()
    }

    /// The values in the TPM of all PCRs that a point lists, with its totals.
    ///
    /// They are read one after the other: compare them with replays of records that were in the
    /// list both before and after.
    ///
    /// # Errors
    ///
    /// As [`Kernel::pcr`].
    pub fn pcrs_of(&self, point: &Point) -> Result<Vec<(Algorithm, Pcr, Vec<u8>)>, KernelError> {
        let mut values = Vec::new();
        for bank in point.banks() {
            for pcr in point.pcrs().iter() {
                values.push((bank, pcr, self.pcr(bank, pcr)?));
            }
        }
        Ok(values)
    }
}

/// The list of the kernel, open for reading.
#[derive(Debug)]
pub struct OpenList {
    path: PathBuf,
    file: File,
}

impl OpenList {
    /// Appends what follows an offset, until it has appended `limit` bytes or a little more. Gives
    /// whether more may follow.
    ///
    /// The kernel gives whole records, at most a page or one record at a time
    /// (`seq_read_iter()` in `fs/seq_file.c`).
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn read_from(
        &self,
        mut offset: u64,
        limit: usize,
        to: &mut Vec<u8>,
    ) -> Result<bool, KernelError> {
        let enough = to.len().saturating_add(limit);
        let mut piece = vec![0; PIECE];
        while to.len() < enough {
            match self.file.read_at(&mut piece, offset) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    to.extend_from_slice(piece.get(..read).unwrap_or(&piece));
                    offset = offset.saturating_add(read as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(KernelError::File {
                        path: self.path.clone(),
                        error,
                    })
                }
            }
        }
        Ok(true)
    }
}

/// The file `trim`, held so that nobody else can make requests.
#[derive(Debug)]
pub struct Requests {
    path: PathBuf,
    file: File,
}

/// What came of a request to trim, as `trim` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// `trimmed`, `nothing`, `dry-run` or `refused`.
    pub result: String,
    /// The error, if it was refused.
    pub errno: Option<String>,
    /// Records trimmed, or that would be.
    pub records: u64,
    /// Violations among them.
    pub violations: u64,
}

impl Requests {
    /// Makes a request: one line of tokens, or a signed request.
    ///
    /// # Errors
    ///
    /// As the ABI says of `trim`; nothing was trimmed then.
    pub fn trim(&mut self, request: &[u8]) -> Result<Outcome, KernelError> {
        let failed = |error| KernelError::File {
            path: self.path.clone(),
            error,
        };
        // Each request is at offset 0, and so is what is read of its outcome.
        match self.file.write_at(request, 0) {
            Ok(written) if written == request.len() => {}
            Ok(_) => return Err(failed(io::ErrorKind::WriteZero.into())),
            Err(error) => return Err(failed(error)),
        }
        self.outcome()
    }

    /// What came of the last request of this descriptor.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn outcome(&self) -> Result<Outcome, KernelError> {
        let mut text = [0; 4096];
        let read = self
            .file
            .read_at(&mut text, 0)
            .map_err(|error| KernelError::File {
                path: self.path.clone(),
                error,
            })?;
        let mut outcome = Outcome::default();
        for line in String::from_utf8_lossy(text.get(..read).unwrap_or_default()).lines() {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            match key {
                "result" => outcome.result = value.to_owned(),
                "errno" => outcome.errno = Some(value.to_owned()),
                "records" => outcome.records = value.parse().unwrap_or_default(),
                "violations" => outcome.violations = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
        Ok(outcome)
    }
}

/// What the module's `status` says.
#[derive(Clone, Debug, Default)]
pub struct Status {
    lines: Vec<(String, String)>,
}

impl Status {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// How many records were removed from the list since boot, by whomever.
    pub fn removed(&self) -> Option<u64> {
        let number = |key| self.get(key)?.parse::<u64>().ok();
        number("records_trimmed")?.checked_add(number("foreign_records")?)
    }

    /// Whether the module takes no request that nobody has signed.
    pub fn wants_signatures(&self) -> bool {
        self.get("signatures") == Some("required")
    }

    /// All keys and values, in the module's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// The id of this boot, as `/proc/sys/kernel/random/boot_id` has it.
///
/// # Errors
///
/// If it cannot be read.
pub fn boot_id() -> Result<String, KernelError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(String::from_utf8_lossy(&read(path)?).trim().to_owned())
}

/// The whole text of a file.
fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    let mut text = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut text)) {
        Ok(_) => Ok(text),
        Err(error) => Err(KernelError::File {
            path: path.to_owned(),
            error,
        }),
    }
}

/// The number that a file has.
fn number(path: &Path, expected: &'static str) -> Result<u64, KernelError> {
    let text = read(path)?;
    let text = String::from_utf8_lossy(&text);
    text.trim().parse().map_err(|_| KernelError::Text {
        path: path.to_owned(),
        text: text.trim().to_owned(),
        expected,
    })
}

/// The names in a directory.
fn names(directory: &Path) -> Result<Vec<String>, KernelError> {
    let failed = |error| KernelError::File {
        path: directory.to_owned(),
        error,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Writes everything by one write.
fn whole(file: &mut File, text: &[u8]) -> io::Result<()> {
    match file.write(text)? {
        written if written == text.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
