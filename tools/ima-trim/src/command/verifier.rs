// SPDX-License-Identifier: GPL-2.0

//! `ima-trim verify --log ...`: judges what the agent of a machine sent.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::ArgAction;
use rustix::fs::flock;
use rustix::fs::fsync;
use rustix::fs::FlockOperation;

use ima_trim_pure::bank::Pcr;
use ima_trim_pure::instance::parse_hex;

use crate::algorithm::Algorithm;
use crate::pcrfile::PcrFile;
use crate::pcrfile::Selection;
use crate::pcrs::Point;
use crate::progress::Progress;
use crate::quote::PublicKey;
use crate::quote::Quote;
use crate::record::Record;
use crate::record::Records;
use crate::verifier;
use crate::verifier::Input;
use crate::verifier::Options;
use crate::verifier::Outcome;
use crate::verifier::Quoted;
use crate::verifier::State;

use super::earlier::Which;
use super::Failure;

/// Whatever is named there is accepted.
const ANY: &str = "any";

/// What a verifier is told on the command line.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The rules, V1 to V26, are in Documentation/admin-guide/verifier.rst, with a table of how each is \
checked here. A program cannot check all: that the key lives in the TPM of this machine and the \
nonce is fresh (V1), what the files in the list are (V11), and who exported a state (V26) is for \
you to know.

The exit status is 0 if the machine is accepted, 1 if it is refused, 2 if the command line makes \
no sense, and 3 if something is missing or failed.")]
pub struct Arguments {
    /// Of this machine, what is archived of an earlier boot: its id, or -1 for the boot before this
    /// one, -2 for that before it
    #[arg(
        long,
        value_name = "BOOT",
        value_parser = Which::parse,
        allow_hyphen_values = true,
        conflicts_with_all = ["log", "pcrs"]
    )]
    pub boot: Option<Which>,
    /// The measurement list, as binary_runtime_measurements gives it; - is standard input
    #[arg(long, value_name = "FILE", requires = "pcrs")]
    pub log: Option<PathBuf>,
    /// The text of starting_pcrs. Without it the list must have all records since boot, as
    /// `ima-trim log --binary` gives them
    #[arg(long, value_name = "FILE", requires = "log")]
    pub starting: Option<PathBuf>,
    /// The list has all records since boot, and the starting values are only compared with it
    #[arg(long, requires = "starting")]
    pub whole: bool,
    /// The PCR values: what tpm2_quote -o wrote, or tpm2_pcrread or tpm2_checkquote printed, or
    /// tokens like sha256:10=<hex>
    #[arg(long, value_name = "FILE", requires = "log")]
    pub pcrs: Option<PathBuf>,
    /// The quote: tpm2_quote -m. Without it the PCR values are believed as they are (V1)
    #[arg(long, value_name = "FILE", requires_all = ["log", "signature", "key", "nonce"])]
    pub quote: Option<PathBuf>,
    /// Its signature: tpm2_quote -s
    #[arg(long, value_name = "FILE", requires = "quote")]
    pub signature: Option<PathBuf>,
    /// The attestation key of this machine, in PEM or as TPM2B_PUBLIC (V1)
    #[arg(long, value_name = "FILE", requires = "quote")]
    pub key: Option<PathBuf>,
    /// The nonce that was sent, in hexadecimal (V1)
    #[arg(long, value_name = "HEX", requires = "quote", value_parser = hex)]
    pub nonce: Option<Nonce>,
    /// What is known of the machine: read if it is there, and written if the machine is accepted
    #[arg(long, value_name = "FILE", requires = "log")]
    pub state: Option<PathBuf>,
    /// Where to keep all accepted records since boot (V14). With them starting values at any record
    /// can be checked (V4)
    #[arg(long, value_name = "FILE", requires = "state")]
    pub keep: Option<PathBuf>,
    /// Print the verdict as JSON
    #[arg(long, requires = "log")]
    pub json: bool,
    /// What the verifier decides
    #[command(flatten)]
    pub decisions: Decisions,
}

/// What the verifier decides.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Decisions")]
pub struct Decisions {
    /// IMA's PCR: CONFIG_IMA_MEASURE_PCR_IDX of the machine's kernel (V2)
    #[arg(long, value_name = "PCR", default_value = "10", value_parser = pcr)]
    pub pcr: Pcr,
    /// Another PCR that the accepted IMA policy names with pcr= (V2)
    #[arg(long, value_name = "PCR", value_parser = pcr)]
    pub policy_pcr: Vec<Pcr>,
    /// The PCRs that were asked for, as for tpm2_quote -l: the quote must cover exactly these.
    /// Without: at least IMA's and 0 to 9, in a bank of SHA-256 or better (V1, V2)
    #[arg(long, value_name = "SELECTION", value_parser = selection)]
    pub asked: Option<Asked>,
    /// The text of starting_pcrs at boot, if something extends IMA's PCRs before IMA does (V5)
    #[arg(long, value_name = "FILE")]
    pub base: Option<PathBuf>,
    /// So many violations since boot were looked at and are accepted. Without: as many as before
    /// (V12)
    #[arg(long, value_name = "N")]
    pub violations: Option<u64>,
    /// So many records that were removed by other means are accounted for (V18, V22)
    #[arg(long, value_name = "N", default_value = "0")]
    pub removed: u64,
    /// The digest of an accepted IMA policy in its record ima_policy_loaded, like sha256:<hex>, or
    /// any. Without: the first that is seen, with a state (V13)
    #[arg(long, value_name = "DIGEST", value_parser = digest_or_any)]
    pub policy: Vec<String>,
    /// The digest of the file of an accepted IMA policy, where the kernel is older than Linux 7.3
    /// and has no such record. Whoever reads that file makes the record of it (V13)
    #[arg(long, value_name = "DIGEST", value_parser = digest)]
    pub policy_file: Vec<String>,
    /// Whether the accepted policy has the rule with label=ima_trim (V13, V23)
    #[arg(
        long,
        value_name = "on|off",
        default_value = "on",
        action = ArgAction::Set,
        value_parser = BoolishValueParser::new()
    )]
    pub events: bool,
    /// A template that the accepted policy uses, besides that of the kernel and ima-buf (V9)
    #[arg(long, value_name = "NAME")]
    pub template: Vec<String>,
    /// A file of digests that must not be there, like sha256:<hex>, one a line (V14)
    #[arg(long, value_name = "FILE")]
    pub revoked: Option<PathBuf>,
    /// Whether the module must have its guard, or any will do (V17)
    #[arg(long, value_name = "on|any", default_value = "on", value_parser = ["on", ANY])]
    pub guard: String,
    /// The digest of a kernel that kexec may start (V25)
    #[arg(long, value_name = "DIGEST", value_parser = digest)]
    pub kernel: Vec<String>,
}

/// A nonce.
#[derive(Clone, Debug)]
pub struct Nonce(Vec<u8>);

/// The PCRs that were asked for.
#[derive(Clone, Debug)]
pub struct Asked(Selection);

/// Judges a machine, and prints the verdict.
///
/// # Errors
///
/// If a file cannot be read or written, or is not what it should be.
pub fn run(args: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let (Some(log), Some(pcrs)) = (&args.log, &args.pcrs) else {
        return Err(Failure::Usage(
            "give the list with --log and the PCR values with --pcrs".to_owned(),
        ));
    };
    let files = Files::read(args, log, pcrs)?;
    let options = args.decisions.options()?;
    // From here on nobody else judges with this state: what it says would be judged twice.
    let successor = args.state.as_deref().map(Successor::begin).transpose()?;
    let state = known(args.state.as_deref())?;
    let kept = match &args.keep {
        Some(path) => read_if_there(path)?,
        None => None,
    };
    let input = Input {
        log: &files.log,
        whole: args.whole,
        starting: files.starting.as_deref(),
        pcrs: &files.pcrs,
        quote: files.quote.as_ref().map(|signed| Quoted {
            message: &signed.message,
            signature: &signed.signature,
            key: &signed.key,
            nonce: &signed.nonce,
        }),
        kept: kept.as_deref(),
    };
    let progress = Progress::new("verifying");
    let outcome = verifier::verify(&options, &state, &input)
        .map_err(|error| Failure::Failed(error.to_string()))?;
    drop(progress);

    // What is known of a machine must never be more than what was kept of it.
    if let Some(keep) = &args.keep {
        store_records(keep, &state, kept.as_deref(), &outcome, &files.log)?;
    }
    if let (Some(successor), Some(state)) = (successor, &outcome.state) {
        let text = state
            .to_json()
            .map_err(|error| about(successor.of, error))?;
        successor.replace(text.as_bytes())?;
    }
    print(args.json, &outcome, out)?;
    match outcome.verdict.refusal() {
        None => Ok(()),
        Some(refusal) => Err(Failure::Negative(format!(
            "the machine is refused by rule {}",
            refusal.rule
        ))),
    }
}

fn print(json: bool, outcome: &Outcome, out: &mut dyn Write) -> Result<(), Failure> {
    let failed = |error| Failure::Failed(format!("standard output: {error}"));
    let text = if json {
        serde_json::to_string_pretty(&outcome.verdict)
            .map_err(|error| Failure::Failed(error.to_string()))?
    } else {
        outcome.verdict.to_string()
    };
    writeln!(out, "{text}").map_err(failed)
}

/// What the agent sent.
struct Files {
    log: Vec<u8>,
    starting: Option<Vec<u8>>,
    pcrs: PcrFile,
    quote: Option<Signed>,
}

/// A quote, and what it is checked with.
struct Signed {
    message: Vec<u8>,
    signature: Vec<u8>,
    key: PublicKey,
    nonce: Vec<u8>,
}

impl Files {
    fn read(args: &Arguments, log: &Path, pcrs: &Path) -> Result<Self, Failure> {
        let quote = match (&args.quote, &args.signature, &args.key, &args.nonce) {
            (Some(quote), Some(signature), Some(path), Some(nonce)) => {
                let key = PublicKey::parse(&read(path)?).map_err(|error| about(path, error))?;
                Some(Signed {
                    message: read(quote)?,
                    signature: read(signature)?,
                    key,
                    nonce: nonce.0.clone(),
                })
            }
            (None, ..) => None,
            _ => {
                return Err(Failure::Usage(
                    "a quote needs --signature, --key and --nonce".to_owned(),
                ))
            }
        };
        // What the quote covers tells what bare values are of. It is judged later.
        let covered = quote
            .as_ref()
            .and_then(|signed| Quote::parse(&signed.message).ok())
            .map(|quote| quote.selection);
        let pcrs =
            PcrFile::parse(&read(pcrs)?, covered.as_ref()).map_err(|error| about(pcrs, error))?;
        Ok(Self {
            log: read(log)?,
            starting: args.starting.as_deref().map(read).transpose()?,
            pcrs,
            quote,
        })
    }
}

/// What is known of a machine: nothing, if there is no such file yet.
pub(super) fn known(path: Option<&Path>) -> Result<State, Failure> {
    let Some(path) = path else {
        return Ok(State::default());
    };
    let Some(bytes) = read_if_there(path)? else {
        return Ok(State::default());
    };
    let text = String::from_utf8_lossy(&bytes);
    State::from_json(&text).map_err(|error| about(path, error))
}

/// Appends the records that were accepted now to those that were before.
fn store_records(
    path: &Path,
    before: &State,
    kept: Option<&[u8]>,
    outcome: &Outcome,
    log: &[u8],
) -> Result<(), Failure> {
    let verifier::Verdict::Accepted { machine, .. } = &outcome.verdict else {
        return Ok(());
    };
    let failed = |error: io::Error| about(path, error);
    let (at, news) = match kept {
        // What is behind them was written right before a crash.
        Some(kept) if !outcome.rebooted => (size(kept, before.records()), outcome.news.clone()),
        // All that the quote covers is there.
        _ if machine.first == 1 => (0, 0..outcome.news.end),
        _ => return Err(about(
            path,
            "records that were accepted before are not there: give the whole list once (ima-trim \
                 log, without --starting)",
        )),
    };
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed)?;
    file.set_len(at).map_err(failed)?;
    file.seek(SeekFrom::Start(at)).map_err(failed)?;
    file.write_all(log.get(news).unwrap_or_default())
        .map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// How many bytes the first records have.
fn size(kept: &[u8], records: u64) -> u64 {
    let count = usize::try_from(records).unwrap_or(usize::MAX);
    let sizes = Records::new(kept)
        .map_while(Result::ok)
        .map(|record: Record<'_>| record.raw().len() as u64);
    sizes.take(count).sum()
}

impl Decisions {
    fn options(&self) -> Result<Options, Failure> {
        let base = match &self.base {
            Some(path) => {
                let point = Point::parse(&read(path)?).map_err(|error| about(path, error))?;
                let missing = Algorithm::ALL
                    .iter()
                    .find(|bank| !point.banks().any(|of| of == **bank));
                if let Some(bank) = missing {
                    return Err(about(
                        path,
                        format!(
                            "the values of the bank {} are missing: give those of all four",
                            bank.name()
                        ),
                    ));
                }
                Some(point)
            }
            None => None,
        };
        let revoked = match &self.revoked {
            Some(path) => digests(path)?,
            None => BTreeSet::new(),
        };
        Ok(Options {
            pcr: self.pcr,
            policy_pcrs: self.policy_pcr.clone(),
            asked: self.asked.as_ref().map(|asked| asked.0.clone()),
            base,
            violations: self.violations,
            removed: self.removed,
            policies: self.policy.clone(),
            policy_files: self.policy_file.iter().cloned().collect(),
            events: self.events,
            templates: self.template.clone(),
            revoked,
            guard: self.guard != ANY,
            kernels: self.kernel.iter().cloned().collect(),
        })
    }
}

fn digests(path: &Path) -> Result<BTreeSet<String>, Failure> {
    String::from_utf8_lossy(&read(path)?)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| digest(line).map_err(|error| about(path, error)))
        .collect()
}

/// `sha256:<hex>`, in lower case.
fn digest(text: &str) -> Result<String, String> {
    let wrong = || format!("\"{text}\" is no digest: give it like sha256:<hex>");
    let (name, digits) = text.split_once(':').ok_or_else(wrong)?;
    let is_right = digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && Algorithm::named(name).is_none_or(|algorithm| digits.len() == 2 * algorithm.size());

    if is_right && !name.is_empty() && !digits.is_empty() {
        Ok(text.to_lowercase())
    } else {
        Err(wrong())
    }
}

fn digest_or_any(text: &str) -> Result<String, String> {
    if text == ANY {
        Ok(text.to_owned())
    } else {
        digest(text)
    }
}

fn pcr(text: &str) -> Result<Pcr, String> {
    let number = text.parse().ok().and_then(Pcr::new);
    number.ok_or_else(|| format!("\"{text}\" is no PCR: give a number from 0 to 23"))
}

fn hex(text: &str) -> Result<Nonce, String> {
    let mut bytes = vec![0; text.len() / 2];

    if !text.is_empty() && parse_hex(text.as_bytes(), &mut bytes) {
        Ok(Nonce(bytes))
    } else {
        Err("give two hexadecimal digits for each byte".to_owned())
    }
}

/// `sha256:0,1,10+sha384:10`.
fn selection(text: &str) -> Result<Asked, String> {
    let banks = text.split('+').map(|bank| {
        let (name, numbers) = bank
            .split_once(':')
            .ok_or("give PCRs like sha256:0,1,10+sha384:10")?;
        let algorithm = Algorithm::named(name)
            .ok_or_else(|| format!("\"{name}\" is no bank: sha1, sha256, sha384 or sha512"))?;
        let pcrs = numbers.split(',').map(pcr).collect::<Result<_, _>>()?;
        Ok((algorithm, pcrs))
    });
    banks.collect::<Result<_, String>>().map(Asked)
}

/// That something about a file is wrong.
pub(super) fn about(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

/// All of a file, or of standard input for `-`.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        fs::read(path)
    };
    bytes.map_err(|error| about(path, error))
}

/// All of a file, if there is one.
fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(about(path, error)),
    }
}

/// What a file is going to be replaced with. Whoever has it is the only one: it is locked.
pub(super) struct Successor<'a> {
    of: &'a Path,
    path: PathBuf,
    file: fs::File,
}

impl<'a> Successor<'a> {
    /// Waits until nobody else has it.
    pub(super) fn begin(of: &'a Path) -> Result<Self, Failure> {
        let mut name = of.as_os_str().to_owned();
        name.push(".new");
        loop {
            let path = PathBuf::from(&name);
            let file = fs::File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|error| about(&path, error))?;
            flock(&file, FlockOperation::LockExclusive)
                .map_err(|errno| about(&path, io::Error::from(errno)))?;
            let ours = Self { of, path, file };
            // If not, whoever had it before has renamed or removed it.
            if ours.is_there()? {
                return Ok(ours);
            }
        }
    }

    /// Whether the file that is locked is the one of that name.
    fn is_there(&self) -> Result<bool, Failure> {
        let failed = |error: io::Error| about(&self.path, error);
        let ours = self.file.metadata().map_err(failed)?;
        match fs::metadata(&self.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Replaces the file as a whole: after a crash at any point it is the old one or the new one.
    pub(super) fn replace(mut self, bytes: &[u8]) -> Result<(), Failure> {
        let of = self.of;
        let failed = |error: io::Error| about(of, error);
        let directory = match self.of.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };

        // A crash has left something in it.
        self.file.set_len(0).map_err(failed)?;
        self.file.write_all(bytes).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.path, self.of).map_err(failed)?;
        let directory = fs::File::open(directory).map_err(failed)?;
        fsync(&directory).map_err(|error| failed(error.into()))
    }
}

impl Drop for Successor<'_> {
    /// Removes what has not replaced anything.
    fn drop(&mut self) {
        if self.is_there().unwrap_or(false) {
            // It is in nobody's way but the eye's.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_options() {
        let Asked(asked) = selection("sha256:0,10+sha384:10").unwrap();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0].1.iter().count(), 2);
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:24",
            "md5:1",
            "sha256:1,",
            "sha256:1+",
        ] {
            assert!(selection(bad).is_err(), "{bad}");
        }
        assert_eq!(hex("8bad").unwrap().0, [0x8b, 0xad]);
        for bad in ["", "8ba", "8bxx"] {
            assert!(hex(bad).is_err(), "{bad}");
        }
        let good = format!("sha256:{}", "AB".repeat(32));
        assert_eq!(digest(&good).unwrap(), good.to_lowercase());
        for bad in ["", "sha256:", "sha256:ab", ":ab", "ab"] {
            assert!(digest(bad).is_err(), "{bad}");
        }
    }
}
